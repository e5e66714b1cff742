"""Sets of ports as integers: bit p is set if port p is in the set.

An integer of 65536 bits is united, intersected and compared with another in about a
microsecond, whatever is in it, and shifted to translate all its ports at once.  Making one,
and listing what is in it, goes by way of bytes and text, which take time per port.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_BYTES = 8192


def portset(ports: Iterable[int]) -> int:
    """The set of ``ports``, each 0 to 65535; at once if they are a range."""
    if isinstance(ports, range) and ports.step == 1 and ports:
        return span(ports[0], ports[-1])
    field = bytearray(_BYTES)
    for port in ports:
        field[port >> 3] |= 1 << (port & 7)
    return int.from_bytes(field, "little")


def span(first: int, last: int) -> int:
    """The set of all ports from ``first`` to ``last``."""
    return (1 << last + 1) - (1 << first)


def ports_in(bits: int) -> list[int]:
    """The ports in a set, in ascending order."""
    digits = f"{bits:b}"[::-1]
    ports = []
    port = digits.find("1")
    while port >= 0:
        ports.append(port)
        port = digits.find("1", port + 1)
    return ports


def runs_in(bits: int) -> list[tuple[int, int]]:
    """The first and last port of each run of consecutive ports in a set, ascending."""
    digits = f"{bits:b}0"[-2::-1] + "0"
    runs = []
    first = digits.find("1")
    while first >= 0:
        end = digits.index("0", first)
        runs.append((first, end - 1))
        first = digits.find("1", end)
    return runs


def shifted(bits: int, offset: int) -> int:
    """Each port of a set plus ``offset``, which may be negative; below 0 they are lost."""
    return bits << offset if offset >= 0 else bits >> -offset
