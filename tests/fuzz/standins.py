"""What stands in for the surroundings of the product in a :class:`~tests.fuzz.world.World`."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Sequence
from random import Random

from passt.kernel.sockets import SocketSpec, open_sockets
from passt.userspace.link.base import GSO_NONE, GSO_UDP_L4
from passt.userspace.link.tap import TapLink
from passt.userspace.loop import Loop
from tests.fuzz.confined import Net
from tests.unit.fakes import GUEST_MAC, Prefix

Made = list[socket.socket | OSError]

#: What peers send: peer k begins at k × 977.
STREAM = Random(1).randbytes(1 << 20)
MAX_SENT = 1 << 19

#: virtio_net_hdr: flags, GSO type, header length, GSO size, checksum start and offset.
_VNET = struct.Struct("=BBHHHH")


class Peer:
    """The far end of a TCP connection, number ``index``."""

    def __init__(self, index: int, sock: socket.socket) -> None:
        self.index = index
        self.sock = sock
        self.sent = 0
        self.got = bytearray()

    def stream(self, position: int, size: int) -> bytes:
        """What the peer sends from ``position`` on."""
        start = self.index * 977 % 65536 + position
        return STREAM[start : start + size]


class SocketTap(TapLink):
    """The real link over a socket, which keeps frames apart as a tap device does.

    Looks like :class:`tests.unit.fakes.FakeLink` to the world.
    """

    #: As of a loop that never sleeps: whatever waits is read.
    slept = 0.0

    def __init__(self, *, gso: bool) -> None:
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self._near, self._far):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        super().__init__(
            self._near.fileno(),
            self,
            vnet_hdr=True,
            gso_tcp4=gso,
            gso_tcp6=gso,
            gso_udp=gso,
            on_dead=self._died,
        )
        self.guest_mac = GUEST_MAC
        self.accept = True
        self._sent: list[tuple[Prefix, bytes]] = []

    def _died(self, why: str) -> None:
        raise AssertionError(f"the link is dead: {why}")

    def close(self) -> None:
        """Close both ends."""
        self._near.close()
        self._far.close()

    def inject(self, frame: bytes, gso_size: int) -> bool:
        """Have ``frame`` waiting to be read; False if there is no room for it."""
        kind = GSO_UDP_L4 if gso_size else GSO_NONE
        try:
            self._far.send(_VNET.pack(0, kind, 0, gso_size, 0, 0) + frame)
        except BlockingIOError:
            return False
        return True

    def waiting(self) -> bool:
        """Whether there is something to read."""
        return bool(select.select([self._near], [], [], 0)[0])

    @property
    def sent(self) -> list[tuple[Prefix, bytes]]:
        """What was sent to the guest, until it is cleared."""
        while True:
            try:
                data = self._far.recv(1 << 17)
            except OSError:
                return self._sent
            _, kind, header, size, start, offset = _VNET.unpack_from(data)
            self._sent.append((Prefix(kind, size, header, start, offset), data[_VNET.size :]))

    def send(self, length: int) -> bool:
        return super().send(length) if self.accept else self._refuse()

    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        return super().sendv(parts) if self.accept else self._refuse()

    def _refuse(self) -> bool:
        self.tx_dropped += 1
        return False


class Maker:
    """Makes sockets of a namespace that is where we are."""

    def request(self, _specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        """Nothing in advance."""
        done([])

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        """Sockets, or errors."""
        return open_sockets(spec.plain() for spec in specs)


class Epoch:
    """The module ``time`` on a certain day."""

    @staticmethod
    def time() -> float:
        """Seconds of Unix time."""
        return 1.75e9


class WorldLoop(Loop):
    """A loop on the world's clock, whose epoll may refuse."""

    __slots__ = ("_net",)

    def __init__(self, clock: Callable[[], float], net: Net) -> None:
        super().__init__(clock)
        self._net = net

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._net.check("register")
        super().add(fd, events, handler)
