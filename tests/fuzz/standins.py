"""What stands in for the surroundings of the product in a :class:`~tests.fuzz.world.World`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from random import Random

from passt.kernel.sockets import SocketSpec, open_sockets
from passt.userspace.loop import Loop
from tests.fuzz.confined import Net

Made = list[socket.socket | OSError]

#: What peers send: peer k begins at k × 977.
STREAM = Random(1).randbytes(1 << 20)
MAX_SENT = 1 << 19


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
