"""TCP: segments of the guest to sockets of the host and back, without payload buffers."""

from __future__ import annotations

import socket

from passt.userspace.flow.listen import open_listeners as _open_listeners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config, Rule

_SO_BINDTODEVICE = 25


def open_listeners(config: Config) -> list[tuple[Rule, int, socket.socket]]:
    """Bound, not yet listening sockets for the TCP rules of ``config``; see the callee."""
    return _open_listeners(config, socket.IPPROTO_TCP, _new_socket)


def _new_socket(family: int, ifname: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ifname:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, ifname.encode())
    except OSError:
        sock.close()
        raise
    return sock
