"""One listening socket for many ports: which of them a connection was meant for.

The kernel leads connections to all ports of some rules to one socket
(:mod:`passt.userspace.forward.lookup`).  Each has the port that it was meant for as its own, so
that it is accepted as any other, and its rule looked up then.
"""

from __future__ import annotations

from passt.userspace.flow.accept import local_name
from passt.userspace.splice.pool import TCP_OPTIONS
from passt.userspace.tcp.accept import Acceptor, Acceptors, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.syscalls import bare_socket as socket
    from passt.userspace.flow.rules import Rule

    #: The rule that a port belongs to.
    Find = Callable[[int], Rule | None]

#: Connections that may wait to be accepted; the kernel has its own limit (net.core.somaxconn).
#: They are those of many ports.
BACKLOG = 4096


class Shared:
    """What the acceptor of such a socket has in place of ``Acceptors``."""

    __slots__ = ("_find", "_owner", "loop")

    def __init__(self, owner: Acceptors, find: Find) -> None:
        self._owner = owner
        self._find = find
        self.loop = owner.loop

    def accepted(
        self, sock: socket.socket, peer: tuple[bytes, int], _rule: Rule, _port: int, pif: int
    ) -> bool:
        """Pass a new connection on by the port it came to; False if no more can be served."""
        port = local_name(sock)[1]
        rule = self._find(port)
        if rule is None:
            # It was given up a moment ago.
            refuse(sock)
            return True
        return self._owner.accepted(sock, peer, rule, port, pif)


def attach_shared(owner: object, sock: socket.socket, find: Find, rule: Rule, pif: int) -> object:
    """Start to accept on ``sock`` for the ports that ``find`` knows; OSError if it cannot.

    ``rule`` is one of the rules, ``owner`` the :class:`~passt.userspace.tcp.accept.Acceptors` that
    the returned handle may be given back to.
    """
    assert isinstance(owner, Acceptors)
    sock.setblocking(False)
    for option in TCP_OPTIONS:
        # Connections inherit them.
        sock.setsockopt(*option)
    sock.listen(BACKLOG)
    acceptor = Acceptor(Shared(owner, find), sock, rule, 0, pif, ())
    acceptor.resume()
    return acceptor
