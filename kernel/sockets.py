"""Sockets made to a specification, in whichever network namespace the maker is.

A socket belongs to the network namespace of the thread that called socket(2), whoever uses
it later.  So a process that needs sockets of two namespaces has those of the other one made
by somebody who is there: before the last fork by the netlink process
(:mod:`passt.kernel.netlink.sockets`), afterwards by a thread (:mod:`passt.kernel.nsthread`).
Both take the same specifications, which are plain values and can be sent to a process.

Sources: network_namespaces(7), socket(2), socket(7).
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    SockName = tuple[str, int] | tuple[str, int, int, int]
    #: (level, name, value) of setsockopt(2).
    Option = tuple[int, int, int | bytes]
    #: Specification as plain values, see :meth:`SocketSpec.plain`.
    PlainSpec = tuple[int, int, tuple[Option, ...], SockName | None, int, int]

_SO_BINDTODEVICE = 25


class SocketSpec:
    """What socket to make: all steps from socket(2) to listen(2).

    * ``family``, ``kind``: as of socket(2); close-on-exec is always set, ``kind`` may
      include ``SOCK_NONBLOCK``.
    * ``options``: triples for setsockopt(2), set in order before the socket is bound.
    * ``device``: interface that the socket is bound to first of all, empty for none.
    * ``address``: what to bind to, as the socket module has it, ``None`` to leave it unbound.
    * ``backlog``: for listen(2), −1 to leave it at that.
    * ``protocol``: as of socket(2).
    """

    __slots__ = ("_plain",)

    def __init__(
        self,
        family: int,
        kind: int,
        *,
        options: tuple[Option, ...] = (),
        device: str = "",
        address: SockName | None = None,
        backlog: int = -1,
        protocol: int = 0,
    ) -> None:
        if device:
            bind = (socket.SOL_SOCKET, _SO_BINDTODEVICE, os.fsencode(device))
            options = (bind, *options)
        self._plain: PlainSpec = int(family), int(kind), options, address, backlog, protocol

    def at(self, address: SockName) -> SocketSpec:
        """The same specification with another address, of the same family."""
        family, kind, options, _, backlog, protocol = self._plain
        spec = SocketSpec.__new__(SocketSpec)
        spec._plain = family, kind, options, address, backlog, protocol
        return spec

    def plain(self) -> PlainSpec:
        """The specification as a tuple of plain values: family, kind, options, address, …"""
        return self._plain


def open_socket(plain: PlainSpec, options: tuple[Option, ...] | None = None) -> socket.socket:
    """Make the socket that ``plain`` describes, here; OSError if a step fails.

    ``options``: those of ``plain`` that have to be set, if that is known.
    """
    family, kind, all_options, address, backlog, protocol = plain
    if options is None:
        options = all_options
    sock = socket.socket(family, kind, protocol)
    try:
        for level, name, value in options:
            sock.setsockopt(level, name, value)
        if address is not None:
            sock.bind(address)
        if backlog >= 0:
            sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def needed(plain: PlainSpec) -> tuple[Option, ...]:
    """Those options of ``plain`` that a new socket does not have anyway, here; OSError."""
    family, kind, options, _, _, protocol = plain
    with socket.closing(socket.socket(family, kind, protocol)) as fresh:
        return tuple(
            (level, name, value)
            for level, name, value in options
            if not isinstance(value, int) or fresh.getsockopt(level, name) != value
        )


def open_sockets(specs: Iterable[PlainSpec]) -> list[socket.socket | OSError]:
    """Make sockets; in place of those that cannot be made, the error.

    After one that failed for want of descriptors or memory no others are tried.  Of thousands
    of the same kind, none is told what a new socket has by default.
    """
    made: list[socket.socket | OSError] = []
    exhausted: OSError | None = None
    common: tuple[Option, ...] | None = None
    options: tuple[Option, ...] = ()
    for spec in specs:
        if exhausted is not None:
            made.append(exhausted)
            continue
        try:
            if common is not spec[2]:
                options = needed(spec)
                common = spec[2]
            made.append(open_socket(spec, options))
        except OSError as error:
            made.append(error)
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                exhausted = error
    return made
