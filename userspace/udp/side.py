"""One side that sockets are on: the host, or the target namespace.

Datagrams are told apart by addresses and ports, which mean something only within a network
namespace.  So each side (*pif*, see :mod:`passt.userspace.flow.rules`) has an index of its own
of what they belong to, and its own listening sockets.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import IP_PKTINFO, IPV6_PKTINFO
from passt.userspace.flow.nat import V4_MAPPED
from passt.userspace.flow.rules import PIF_NAMES
from passt.userspace.flow.sockname import name
from passt.userspace.udp.flow import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from passt.userspace.flow.rules import Rule
    from passt.userspace.udp.base import UdpBase
    from passt.userspace.udp.flow import UdpFlow
    from passt.userspace.udp.spliced import Half

    #: What takes the datagrams that arrive from one peer.
    Receiver: TypeAlias = UdpFlow | Half


class Side:
    """Flows and listening sockets of one pif."""

    __slots__ = ("flows", "listeners", "name", "pif")

    def __init__(self, pif: int) -> None:
        self.pif = pif
        self.name = PIF_NAMES[pif]
        #: By key of the datagrams that arrive, the earliest where several share one.
        self.flows: dict[bytes, Receiver] = {}
        #: Listening sockets by port.
        self.listeners: dict[int, list[Listener]] = {}

    def listener(self, local: bytes, port: int) -> Listener | None:
        """The socket that listens on ``local`` and ``port``, if there is one."""
        for listener in self.listeners.get(port, ()):
            if listener.rule.accepts(local):
                return listener
        return None


class Listener:
    """A listening socket, its port, and the rule that it was opened for."""

    __slots__ = ("fd", "owner", "port", "retired", "rule", "side", "sock", "users", "v4")

    def __init__(
        self, owner: UdpBase, side: Side, sock: socket.socket, rule: Rule, port: int
    ) -> None:
        self.owner = owner
        self.side = side
        self.sock = sock
        self.fd = sock.fileno()
        self.rule = rule
        self.port = port
        self.v4 = sock.family == socket.AF_INET
        #: Flows that are served through this socket for want of one of their own.
        self.users: set[Receiver] = set()
        #: Not listening any more, and only kept open for them.
        self.retired = False

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self.owner.listener_ready(self, events)


def share(receiver: Receiver, via: Listener, key: bytes, peer_scope: int) -> None:
    """Have ``receiver`` send by the socket of ``via`` what answers datagrams of ``key``.

    ``peer_scope`` is the scope of their source.
    """
    peer, peer_port, local, _ = split(key)
    receiver.via = via
    receiver.fresh = False
    if len(local) == 4 and not via.v4:
        # An IPv6 socket speaks IPv4 with addresses in mapped form.
        local = V4_MAPPED + local
        peer = V4_MAPPED + peer
    receiver.peer = name(peer, peer_port, peer_scope)
    if via.v4:
        # struct in_pktinfo: interface index, source address, unused.
        receiver.ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + local + bytes(4))]
    else:
        # struct in6_pktinfo: source address, interface index.
        receiver.ancillary = [(socket.IPPROTO_IPV6, IPV6_PKTINFO, local + bytes(4))]
