"""Accepting a connection with as little as possible around the system call, and its names.

``socket.socket.accept`` computes enumerations, and asks what is known already; together
with taking apart the peer's name that is as much time as the call itself, spent before a
short connection gets anywhere.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.userspace.flow.nat import UNSPECIFIED4, unmap

_MAPPED = "::ffff:"
_inet_aton = socket.inet_aton
_socket = socket.socket


def accept(listener: socket.socket, family: int) -> tuple[socket.socket, bytes, int]:
    """Accept one connection on ``listener``, a non-blocking TCP socket of ``family``.

    Returns the non-blocking socket, and the peer's packed address (IPv4 if v4-mapped) and port.
    OSError as accept(2).  TCP options of the listener are inherited (tcp(7)).
    """
    fd, name = listener._accept()  # type: ignore[attr-defined]  # what accept() is made of
    sock = _socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
    sock.setblocking(False)
    host: str = name[0]
    if ":" not in host:
        return sock, _inet_aton(host), name[1]
    if host.startswith(_MAPPED):
        mapped = host[len(_MAPPED) :]
        if ":" not in mapped:
            return sock, _inet_aton(mapped), name[1]
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return sock, unmap(packed), name[1]


def local_name(sock: socket.socket) -> tuple[bytes, int]:
    """Our packed address (IPv4 if v4-mapped) and port of a connection.

    0.0.0.0 and 0 if the kernel does not tell (getsockname(2), ENOBUFS): that is nobody's.
    """
    try:
        host, port, *_ = sock.getsockname()
    except OSError:
        return UNSPECIFIED4, 0
    if ":" in host:
        return unmap(socket.inet_pton(socket.AF_INET6, host.partition("%")[0])), port
    return _inet_aton(host), port
