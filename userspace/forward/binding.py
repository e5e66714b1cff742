"""The listening sockets of one rule, and what became of those that could not be opened.

A port of the rule is in one of four states: not wanted, asked for (the namespace's thread
may take its time), open, or failed.  A failure is kept until the port opens after all, so
that it is news once and not with every new attempt.
"""

from __future__ import annotations

import errno
import os

from passt.userspace import log
from passt.userspace.flow.rules import IPPROTO_TCP, PIF_NAMES, PROTOCOL_NAMES
from passt.userspace.forward.portset import portset
from passt.userspace.forward.sockets import NO_IPV6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from passt.kernel.sockets import SocketSpec
    from passt.syscalls import bare_socket as socket
    from passt.userspace.flow.rules import Rule
    from passt.userspace.forward.side import Make
    from passt.userspace.forward.sockets import Plan

    class Owner(Protocol):
        """The translator of a protocol: serves listening sockets until they are taken back."""

        def attach_listener(self, sock: socket.socket, rule: Rule, port: int, pif: int) -> object:
            """Start to serve ``sock``, bound to ``port``; a handle.  OSError if it cannot."""

        def detach_listener(self, handle: object) -> None:
            """Close the socket behind ``handle``, later if something still depends on it."""


#: Privilege that is not there now will not be there later.
_HOPELESS = frozenset((errno.EACCES, errno.EPERM))

#: Fixed TCP rules for as many ports as this may be served by one socket for all of them
#: (:mod:`passt.userspace.forward.lookup`).
MANY = 1000

#: Nothing more can be opened, whatever it is.
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


def has_many(rule: Rule) -> bool:
    """Whether ``rule`` is for :data:`MANY` ports."""
    return rule.protocol == IPPROTO_TCP and not rule.auto and rule.sockets >= MANY


class Binding:
    """Sockets of ``rule`` on ``pif``, made by one of ``plans``.

    ``asked`` holds ports whose sockets are being made, or soon will be, ``failed`` errors by
    port.
    """

    __slots__ = (
        "_bits",
        "_hopeless",
        "_news",
        "_owner",
        "_plans",
        "_sockets",
        "asked",
        "dead",
        "failed",
        "pif",
        "rule",
    )

    def __init__(self, rule: Rule, pif: int, plans: list[Plan]) -> None:
        self.rule = rule
        self.pif = pif
        #: The rule is gone; sockets that still arrive are to be closed.
        self.dead = False
        self.asked: set[int] = set()
        self.failed: dict[int, int] = {}
        self._plans = plans
        self._owner: Owner | None = None
        #: By port: the socket, and the owner's handle for it.
        self._sockets: dict[int, tuple[socket.socket, object]] = {}
        #: The set of ports open or asked for, ``None`` if it has to be made anew.
        self._bits: int | None = 0
        #: Ports that failed since :meth:`news` was asked.
        self._news: list[int] = []
        #: It has been told that no port could be opened.
        self._hopeless = False

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def all_ports(self) -> range:
        """All ports of the rule."""
        return range(self.rule.first, self.rule.last + 1)

    def bits(self) -> int:
        """The set of ports that are open or will be."""
        bits = self._bits
        if bits is None:
            bits = self._bits = portset(self._sockets) | portset(self.asked)
        return bits

    def at_once(self, _ports: Iterable[int], _make: Make) -> bool:
        """Open ports at once, if there is a way that takes no socket for each; False if not."""
        return False

    def expect(self, ports: Iterable[int]) -> list[int]:
        """Note that sockets for ``ports`` will be asked for; returns those that are not yet."""
        wanted = [port for port in ports if port not in self.asked]
        self.asked.update(wanted)
        self._bits = None
        return wanted

    def specs(self, ports: Sequence[int]) -> list[SocketSpec]:
        """How to make the sockets for ``ports``, which were expected.

        An empty list, and failure, if the IP version of the rule is disabled.
        """
        if self._plans:
            spec = self._plans[0].spec
            return [spec(port) for port in ports]
        self.asked.difference_update(ports)
        for port in ports:
            self._fail(port, errno.EAFNOSUPPORT)
        return []

    def land(self, ports: Sequence[int], made: Sequence[socket.socket | OSError]) -> list[int]:
        """Take what was made for ``ports``; returns those to ask for again.

        That happens once, when it turns out that there is no IPv6.
        """
        again = []
        self.asked.difference_update(ports)
        self._bits = None
        for port, sock in zip(ports, made, strict=True):
            if not isinstance(sock, OSError):
                if self.dead:
                    sock.close()
                else:
                    self._take(port, sock)
            else:
                number = sock.errno or errno.EIO
                if number in NO_IPV6 and len(self._plans) > 1:
                    again.append(port)
                else:
                    self._fail(port, number)
        if again:
            del self._plans[0]
        return again

    def attach(self, owner: Owner) -> None:
        """Have ``owner`` serve the sockets, those that come later included."""
        self._owner = owner
        sockets = self._sockets
        self._sockets = {}
        for port, (sock, _) in sockets.items():
            self._take(port, sock)

    def close(self, ports: Iterable[int]) -> list[tuple[int, socket.socket]]:
        """Close the sockets of ``ports``; connections made by way of them go on.

        Returns ports and sockets, as their owner may have reasons to leave them open.
        """
        assert self._owner is not None
        closing = []
        for port in ports:
            sock, handle = self._sockets.pop(port)
            self._owner.detach_listener(handle)
            closing.append((port, sock))
        self._bits = None
        return closing

    def end(self) -> list[tuple[int, socket.socket]]:
        """Close everything: the rule is gone.  Returns the same as :meth:`close`."""
        self.dead = True
        return self.close(list(self._sockets))

    def news(self) -> list[str]:
        """What to tell the user of failures since the last time, a line each."""
        rule = self.rule
        lines = []
        for port in self._news:
            if not rule.best_effort or self.failed.get(port) in EXHAUSTED:
                lines.append(self.failure(port))
            elif log.debug_on:
                log.debug("%s", self.failure(port))
        self._news.clear()
        if self.failed and not len(self) and not self.asked and not rule.auto:
            if rule.best_effort and not self._hopeless:
                lines.append(self.total_failure())
            self._hopeless = True
        return lines

    def failure(self, port: int) -> str:
        """What to say of a ``port`` that failed."""
        reason = os.strerror(self.failed[port])
        return f"Listen failed for {self._title('port ')}/{port}: {reason}"

    def total_failure(self) -> str:
        """What to say if no port of the rule is open."""
        rule = self.rule
        return f"All listens failed for {self._title('')}/{rule.first}-{rule.last}"

    def retriable(self) -> list[int]:
        """Ports that failed, and that might do better another time."""
        return [
            port
            for port, number in self.failed.items()
            if number not in _HOPELESS or not self.rule.best_effort
        ]

    def _fail(self, port: int, number: int) -> None:
        """Note that ``port`` could not be opened, and why."""
        self._bits = None
        if self.failed.get(port) != number:
            self.failed[port] = number
            self._news.append(port)

    def _title(self, word: str) -> str:
        rule = self.rule
        return f"{PIF_NAMES[self.pif]} {PROTOCOL_NAMES[rule.protocol]} {word}{rule.listen_name()}"

    def _take(self, port: int, sock: socket.socket) -> None:
        """Keep ``sock``, and have it served if there is somebody to do so."""
        handle: object = None
        if self._owner is not None:
            try:
                handle = self._owner.attach_listener(sock, self.rule, port, self.pif)
            except OSError as error:
                sock.close()
                self._fail(port, error.errno or errno.EIO)
                return
        self._sockets[port] = sock, handle
        if self.failed:
            self.failed.pop(port, None)
