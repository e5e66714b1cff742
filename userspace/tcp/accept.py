"""Listening TCP sockets: connections are accepted here and go one of two ways.

A connection that may bypass the link is handed to :mod:`passt.userspace.splice`; any other
is offered to the guest by :meth:`passt.userspace.tcp.tcp.Tcp.accepted`, if there is a link.
On an idle loop one is accepted per wake-up: a second attempt that finds nothing costs more than
another round, which comes by itself while there are more.  Where a round serves many descriptors
that next round is far away, so as many connections are accepted, within bounds.

A listener whose connection finds no place, or no descriptor, rests for a moment: the event is
level-triggered and would come at once.  Meanwhile the kernel's queue holds what comes, and beyond
that its SYN cookies do.  After a refusal the rest is short, since others who wait behind may well
find a place.
"""

from __future__ import annotations

import errno

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import linger_reset
from passt.userspace import log
from passt.userspace.flow.accept import accept, local_name
from passt.userspace.flow.nat import endpoint
from passt.userspace.flow.rules import HOST, PIF_NAMES
from passt.userspace.loop import EPOLLIN
from passt.userspace.splice.pool import TCP_OPTIONS, inherits
from passt.userspace.tcp.const import ACCEPT_PAUSE, LISTEN_BACKLOG, REFUSAL_PAUSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.kernel.sockets import Option
    from passt.userspace.flow.rules import Rule
    from passt.userspace.loop import Loop, Timer
    from passt.userspace.splice.tcp import SpliceTcp
    from passt.userspace.tcp.shared import Shared
    from passt.userspace.tcp.tcp import Tcp

#: Errors of accept() that concern one connection, not the listener (accept(2)).
_PASSING = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPERM,
    )
)

#: Connections accepted per wake-up at most, on a busy loop.
_MAX_ACCEPTS = 16


class Acceptors:
    """Serves listening sockets of inbound (``-t``) and outbound (``-T``) rules."""

    __slots__ = ("_splice", "_tcp", "loop")

    def __init__(self, loop: Loop, tcp: Tcp | None, splice: SpliceTcp | None) -> None:
        """``tcp`` is ``None`` without a link, ``splice`` without a namespace to bypass to."""
        self.loop = loop
        self._tcp = tcp
        self._splice = splice

    def attach_listener(
        self, sock: socket.socket, rule: Rule, port: int, pif: int = HOST
    ) -> Acceptor:
        """Start to accept on ``sock``, bound to ``port`` of ``pif``; OSError if it cannot."""
        if sock.getblocking():
            sock.setblocking(False)
        sock.listen(LISTEN_BACKLOG)
        # What connections do not have from their listener.
        options = () if inherits(rule) else TCP_OPTIONS
        acceptor = Acceptor(self, sock, rule, port, pif, options)
        acceptor.resume()
        return acceptor

    def detach_listener(self, handle: object) -> None:
        """Close the socket behind ``handle``; its connections go on."""
        assert isinstance(handle, Acceptor)
        handle.close()

    def accepted(
        self, sock: socket.socket, peer: tuple[bytes, int], rule: Rule, port: int, pif: int
    ) -> bool:
        """Pass a new connection on; False if no more can be served now."""
        if self._splice is not None and self._splice.takes(rule, peer[0], pif):
            return self._splice.accepted(sock, peer, rule, port, pif)
        if self._tcp is not None:
            return self._tcp.accepted(sock, peer, rule, port)
        refuse_without_rule(sock, peer, pif)
        return True


class Acceptor:
    """Accepts the connections of one listening socket."""

    __slots__ = ("_family", "_options", "_owner", "_pif", "_port", "_rule", "_sock", "_timer")

    def __init__(
        self,
        owner: Acceptors | Shared,
        sock: socket.socket,
        rule: Rule,
        port: int,
        pif: int,
        options: Sequence[Option],
    ) -> None:
        """``options`` are to be set on each connection."""
        self._owner = owner
        self._sock = sock
        self._rule = rule
        self._port = port
        self._pif = pif
        self._family = int(sock.family)
        self._options = options
        self._timer: Timer | None = None

    def resume(self) -> None:
        """Watch for connections; OSError if epoll refuses."""
        self._owner.loop.add(self._sock.fileno(), EPOLLIN, self._on_event)

    def close(self) -> None:
        """Stop, and close the socket at the end of the round."""
        if self._timer is not None:
            self._timer.cancel()
        self._owner.loop.close(self._sock, self._sock.fileno())

    def _on_event(self, _events: int) -> None:
        for _ in range(min(self._owner.loop.load, _MAX_ACCEPTS)):
            try:
                sock, address, port = accept(self._sock, self._family)
                for option in self._options:
                    sock.setsockopt(*option)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PASSING:
                    continue
                log.limited("tcp-accept-error", log.WARNING, "TCP accept: %s", error.strerror)
                self._pause(ACCEPT_PAUSE)
                return
            if not self._owner.accepted(sock, (address, port), self._rule, self._port, self._pif):
                self._pause(REFUSAL_PAUSE)
                return

    def _pause(self, seconds: float) -> None:
        """Rest: what is missing now will not be there at once."""
        self._owner.loop.remove(self._sock.fileno())
        self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        loop = self._owner.loop
        self._timer = loop.call_at(loop.now + seconds, self._rested)

    def _rested(self) -> None:
        """Try again after a pause."""
        self._timer = None
        try:
            self.resume()
        except OSError as error:
            log.limited("tcp-resume", log.WARNING, "TCP listener: %s", error.strerror)
            self._rest(ACCEPT_PAUSE)


def refuse(sock: socket.socket) -> None:
    """Reset an accepted connection that leads nowhere."""
    try:
        linger_reset(sock)
    except OSError:
        # The peer was faster.
        pass
    sock.close()


def refuse_without_rule(sock: socket.socket, peer: tuple[bytes, int], pif: int) -> None:
    """Reset a connection that no rule leads anywhere, and say whose: ``peer``'s, on ``pif``."""
    log.limited(
        "tcp-refused", log.ERR, "No rules to forward %s TCP %s -> %s",
        PIF_NAMES[pif], endpoint(*peer), endpoint(*local_name(sock)),
    )  # fmt: skip
    refuse(sock)
