"""Stocks of unconnected sockets in the target namespace.

Having a socket made there takes two thread switches, so some are held ready, by IP version.
When most of them are used up more are ordered, which arrive while connections are served
from the rest.  If a burst empties the stock the next socket is waited for.
"""

from __future__ import annotations

from passt.kernel.sockets import SocketSpec
from passt.syscalls import bare_socket as socket
from passt.userspace import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from passt.userspace.flow.rules import Rule

    Made = list[socket.socket | OSError]

    class SocketMaker(Protocol):
        """What makes sockets: :class:`passt.kernel.nsthread.NsThread`, or a stand-in."""

        def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
            """Have sockets made, and ``done`` called with them or errors."""

        def call(self, specs: Sequence[SocketSpec]) -> Made:
            """Make sockets now."""


#: Sockets held ready.
STOCK = 32
#: As few as this are left when more are ordered.
REFILL = 8

#: Nagle off: we do not know which data is interactive.  Urgent data in line: bytes out of
#: line would be lost, and block what is behind them.
TCP_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)
#: Listeners of rules for no more ports than this have these options, and connections inherit
#: them (tcp(7)).  With more ports that costs more than it will ever save.
INHERITED_UP_TO = 64


def inherits(rule: Rule) -> bool:
    """Whether connections accepted for ``rule`` have :data:`TCP_OPTIONS` from their listener."""
    return rule.last - rule.first < INHERITED_UP_TO


def tcp_spec(family: int) -> SocketSpec:
    """A socket to connect to a server, non-blocking."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    return SocketSpec(family, kind, options=TCP_OPTIONS)


class SocketPool:
    """Sockets of one kind, made by a :class:`SocketMaker`."""

    __slots__ = ("_maker", "_ordered", "_spec", "_stock")

    def __init__(self, maker: SocketMaker, spec: SocketSpec) -> None:
        self._maker = maker
        self._spec = spec
        self._stock: list[socket.socket] = []
        self._ordered = False

    def fill(self) -> None:
        """Have the stock filled, without waiting."""
        missing = STOCK - len(self._stock)
        if missing > 0 and not self._ordered:
            self._ordered = True
            self._maker.request([self._spec] * missing, self._arrived)

    def take(self) -> socket.socket:
        """A socket, the caller's; OSError if none can be made."""
        stock = self._stock
        if stock:
            sock = stock.pop()
        else:
            made = self._maker.call([self._spec])[0]
            if isinstance(made, OSError):
                raise made
            sock = made
        if len(stock) <= REFILL and not self._ordered:
            self.fill()
        return sock

    def close(self) -> None:
        """Close the sockets in stock."""
        for sock in self._stock:
            sock.close()
        self._stock.clear()

    def _arrived(self, made: Made) -> None:
        """Stock up."""
        self._ordered = False
        for sock in made:
            if isinstance(sock, OSError):
                log.limited("splice-pool", log.WARNING, "TCP: Error refilling namespace socket "
                            "pool: %s", sock.strerror)  # fmt: skip
                continue
            self._stock.append(sock)
