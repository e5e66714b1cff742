"""Packed addresses to and from the forms of the socket module."""

from __future__ import annotations

from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    SockName = tuple[str, int] | tuple[str, int, int, int]


def name(address: bytes, port: int, scope: int = 0) -> SockName:
    """A packed ``address`` and ``port`` in the form that the socket module wants.

    ``scope`` is an interface index for link-local addresses, ignored for IPv4.
    """
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address), port
    return socket.inet_ntop(socket.AF_INET6, address), port, 0, scope


def packed(address: SockName) -> bytes:
    """The packed address of what getsockname() or recvfrom() returned (without its port)."""
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    return socket.inet_pton(family, address[0])


def is_scoped(address: bytes) -> bool:
    """Whether ``address`` means nothing without an interface: fe80::/10, ff01::/16, ff02::/16."""
    if len(address) == 4:
        return False
    first, second = address[0], address[1]
    return (first == 0xFE and second & 0xC0 == 0x80) or (first == 0xFF and second & 0xF in (1, 2))
