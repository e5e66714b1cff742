"""UDP sockets on the host: options, bind, connect (udp(7), ip(7), ipv6(7), socket(7)).

Flow sockets are bound before they are connected, with SO_REUSEADDR, so that several of them
can share a port with each other and with a listening socket.  The kernel prefers a connected
socket over an unconnected one, and a specific address over the wildcard, so each datagram
reaches the flow that it belongs to, except between bind() and connect(): see
:mod:`passt.userspace.udp.toguest`.
"""

from __future__ import annotations

import errno

from passt.kernel.sockets import SocketSpec, open_socket
from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import (
    IP_FREEBIND,
    IP_PKTINFO,
    IP_RECVERR,
    IPV6_FREEBIND,
    IPV6_RECVERR,
    UDP_GRO,
)
from passt.userspace.flow.sockname import name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.sockets import Option

_TYPE = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK

#: bind() fails with these if the port is not to be had, and another one would do.
PORT_TAKEN = frozenset((errno.EACCES, errno.EADDRINUSE))


def set_pktinfo(sock: socket.socket, wanted: bool, *, v4: bool) -> None:
    """Have datagrams come with the address they were sent to, or no longer."""
    if v4:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, wanted)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, wanted)


def flow_spec(
    family: int, *, device: str = "", freebind: bool = False, shared: bool = True
) -> SocketSpec:
    """The socket of a flow, unbound, which delivers datagrams one by one.

    With ``freebind`` the address to bind to need not be the host's; with ``shared`` its port
    can be that of others.
    """
    # Without SO_BROADCAST 255.255.255.255, and broadcast addresses of subnets, are refused.
    options: tuple[Option, ...] = (
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shared)),
        (socket.SOL_SOCKET, socket.SO_BROADCAST, 1),
    )
    if family == socket.AF_INET:
        options += (
            (socket.IPPROTO_IP, IP_RECVERR, 1),
            (socket.IPPROTO_IP, IP_PKTINFO, 1),
        )
    else:
        # IPv4 flows have sockets of their own, and need not compete for the port.
        options += (
            (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1),
            (socket.IPPROTO_IPV6, IPV6_RECVERR, 1),
            (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1),
        )
    if freebind and family == socket.AF_INET:
        options += ((socket.IPPROTO_IP, IP_FREEBIND, 1),)
    elif freebind:
        options += ((socket.IPPROTO_IPV6, IPV6_FREEBIND, 1),)
    return SocketSpec(family, _TYPE, options=options, device=device)


def enable_gro(sock: socket.socket) -> None:
    """Let the kernel deliver several datagrams as one, marked with their size.

    This is for good: if it were ended, what is queued would be delivered joined, but unmarked.
    """
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    except OSError:
        # Linux < 5.0: datagrams come one by one.
        pass


def keep_inside(sock: socket.socket) -> None:
    """Have what is sent to groups reach members in this network namespace only (ip(7)).

    By the link it would come back to us, as if the guest had sent it.
    """
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)


def flow_socket(
    local: bytes,
    port: int,
    *,
    scope: int,
    device: str,
    any_port: bool,
    freebind: bool = False,
) -> socket.socket:
    """A socket bound to ``local`` and ``port``, ready to be connected.

    ``scope`` is the interface index for a link-local or scoped group address.  With
    ``any_port`` the kernel chooses a port if ``port`` is refused to us or taken.  OSError if
    any step fails.
    """
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    sock = open_socket(flow_spec(family, device=device, freebind=freebind).plain())
    try:
        try:
            sock.bind(name(local, port, scope))
        except OSError as error:
            if not any_port or error.errno not in PORT_TAKEN:
                raise
            sock.bind(name(local, 0, scope))
    except OSError:
        sock.close()
        raise
    return sock
