"""A link that leads nowhere, for ``--splice-only``: there is no interface in the namespace."""

from __future__ import annotations

from passt.userspace.link.base import GSO_NONE, MAX_FRAME, Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class NullLink(Link):
    """Never receives, drops what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.tx = memoryview(bytearray(MAX_FRAME))

    def fileno(self) -> int:
        """There is no descriptor: −1."""
        return -1

    def prefix(
        self,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
        hdr_len: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> bytes:
        """Nothing precedes frames."""
        return b""

    def send(self, length: int) -> bool:
        """Count a dropped frame."""
        self.tx_dropped += 1
        return False

    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Count a dropped frame."""
        self.tx_dropped += 1
        return False
