"""UDP sockets on the host: options, bind, connect (udp(7), ip(7), ipv6(7), socket(7)).

Flow sockets are bound before they are connected, with SO_REUSEADDR, so that several of them
can share a port with each other and with a listening socket.  The kernel prefers a connected
socket over an unconnected one, and a specific address over the wildcard, so each datagram
reaches the flow that it belongs to, except between bind() and connect(): see
:mod:`passt.userspace.udp.toguest`.
"""

from __future__ import annotations

import errno
import socket

from passt.syscalls.sockopt import IP_PKTINFO, IP_RECVERR, IPV6_RECVERR, UDP_GRO
from passt.userspace.flow.sockname import name

_TYPE = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

#: bind() fails with these if the port is not to be had, and another one would do.
_PORT_TAKEN = frozenset((errno.EACCES, errno.EADDRINUSE))


def set_pktinfo(sock: socket.socket, wanted: bool, *, v4: bool) -> None:
    """Have datagrams come with the address they were sent to, or no longer."""
    if v4:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, wanted)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, wanted)


def new_socket(family: int, device: str = "") -> socket.socket:
    """An unbound UDP socket with the options that flows and listeners have in common.

    Those are non-blocking, SO_REUSEADDR, an error queue, packet information, and the
    ``device`` it is restricted to, if any.  OSError if one of them fails.
    """
    sock = socket.socket(family, _TYPE)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        set_pktinfo(sock, True, v4=family == socket.AF_INET)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    except OSError:
        sock.close()
        raise
    return sock


def listening_socket(family: int, device: str) -> socket.socket:
    """A :func:`new_socket` that may serve both IP versions, and learn of errors in both."""
    sock = new_socket(family, device)
    if family == socket.AF_INET6:
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        except OSError:
            sock.close()
            raise
    return sock


def flow_socket(
    local: bytes, port: int, *, scope: int, device: str, any_port: bool
) -> socket.socket:
    """A socket bound to ``local`` and ``port``, ready to be connected.

    ``scope`` is the interface index for a link-local or scoped group address.  With
    ``any_port`` the kernel chooses a port if ``port`` is refused to us or taken.  OSError if
    any step fails.
    """
    sock = new_socket(socket.AF_INET if len(local) == 4 else socket.AF_INET6, device)
    try:
        # Without it 255.255.255.255, and broadcast addresses of subnets, are refused.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if len(local) == 16:
            # IPv4 flows have sockets of their own, and need not compete for the port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        except OSError:
            # Linux < 5.0: datagrams come one by one.
            pass
        try:
            sock.bind(name(local, port, scope))
        except OSError as error:
            if not any_port or error.errno not in _PORT_TAKEN:
                raise
            sock.bind(name(local, 0, scope))
    except OSError:
        sock.close()
        raise
    return sock
