"""The interpreter's own sockets, without what the standard ``socket`` module puts around them.

That module makes enumerations of some hundred constants, and imports ``enum`` and
``selectors`` with all that they need: 7 of the 35 ms that starting takes on the development
machine, twice, as the netlink process needs sockets, too.  Its class adds attributes that are
looked up in Python; the one here is the C type by itself, whose making costs half.

Everybody writes ``from passt.syscalls import bare_socket as socket``.  Differences that show:
``family`` and ``type`` are plain numbers; a socket is no context manager (:class:`closing` is
one) and has no ``accept()`` (:func:`accept`).  Sockets of the standard module are instances of
this type, so they fit wherever it is asked for.

Source: Python's ``Lib/socket.py`` describes what it adds.
"""

from __future__ import annotations

from _socket import *  # noqa: F403
from _socket import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class closing:  # noqa: N801 - called like the one of contextlib, whose import costs
    """Context manager: the socket, closed at the end of the block."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket) -> None:
        self._sock = sock

    def __enter__(self) -> socket:
        return self._sock

    def __exit__(self, *_exc: object) -> None:
        self._sock.close()


def accept(listener: socket) -> tuple[socket, Any]:
    """accept4(2): the connection, close-on-exec, and its peer's address; OSError."""
    fd, address = listener._accept()  # type: ignore[attr-defined]
    return socket(listener.family, listener.type, listener.proto, fd), address
