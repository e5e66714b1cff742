"""Two network namespaces in which ports are taken, by us and by others; no sockets at all.

:class:`World` makes fake sockets to specification, refusing ports that are in use, shows
what is listened on, and has what the forwarder needs besides: owners and a loop.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import cast

from passt.kernel.sockets import SocketSpec
from passt.userspace.config.model import Config
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, IPPROTO_UDP, SPLICE, Rule
from passt.userspace.forward.forwarder import Forwarder
from passt.userspace.forward.portset import portset
from passt.userspace.forward.scan import PortScan
from passt.userspace.loop import Loop

Made = list[socket.socket | OSError]

SO_BINDTOIFINDEX = 62
BINDTODEVICE = (socket.SOL_SOCKET, 25)


class FakeSocket:
    """A bound socket of one side."""

    def __init__(
        self, side: FakeSide, protocol: int, port: int, spec: SocketSpec | None = None
    ) -> None:
        self.side = side
        self.protocol = protocol
        self.port = port
        self.open = True
        plain = (spec or SocketSpec(socket.AF_INET, socket.SOCK_STREAM)).plain()
        family, _, self.options, address, _, _ = plain
        self.family = socket.AddressFamily(family)
        self.host = address[0] if address else ""

    def getsockname(self) -> tuple[str, int]:
        return self.host, self.port

    def getsockopt(self, level: int, name: int) -> int:
        """As it was set; interfaces have the number 7."""
        if (level, name) == (socket.SOL_SOCKET, SO_BINDTOIFINDEX):
            return 7 if any(option[:2] == BINDTODEVICE for option in self.options) else 0
        return next((int(o[2]) for o in self.options if o[:2] == (level, name)), 0)

    def fileno(self) -> int:
        return 3 if self.open else -1

    def close(self) -> None:
        assert self.open, "closed twice"
        self.open = False
        del self.side.bound[self.protocol, self.port]


class FakeSide:
    """One namespace, as far as ports go."""

    def __init__(self) -> None:
        #: Protocol and port of listeners that are not ours.
        self.others: set[tuple[int, int]] = set()
        self.bound: dict[tuple[int, int], FakeSocket] = {}
        #: Errors to come, by port or for any.
        self.errors: dict[int | None, int] = {}
        #: Requests kept back until :meth:`deliver`.
        self.delayed: list[Callable[[], None]] | None = None
        self.specs: list[SocketSpec] = []
        self.scans = 0
        self.room = 1 << 20

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        return [self._make(spec) for spec in specs]

    def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        if self.delayed is None:
            done(self.call(specs))
            return
        made = self.call(specs)
        self.delayed.append(lambda: (done(made), None)[1])

    def deliver(self) -> None:
        assert self.delayed is not None
        pending, self.delayed = self.delayed, []
        for callback in pending:
            callback()

    def ports(self, protocol: int) -> int:
        """What a scan sees: others, and all of ours that have been made."""
        self.scans += 1
        both = self.others | self.bound.keys()
        return portset(port for kind, port in both if kind == protocol)

    def listening(self, protocol: int) -> list[int]:
        """Our ports, sorted."""
        return sorted(port for kind, port in self.bound if kind == protocol)

    def _free(self) -> int:
        """The port of a socket bound to 0."""
        used = {port for _, port in self.bound}
        return next(port for port in range(50001, 65536) if port not in used)

    def _make(self, spec: SocketSpec) -> socket.socket | OSError:
        self.specs.append(spec)
        _, kind, _, address, _, _ = spec.plain()
        assert address is not None
        port = address[1] or self._free()
        protocol = IPPROTO_TCP if kind & socket.SOCK_STREAM else IPPROTO_UDP
        number = self.errors.get(port, self.errors.get(None, 0))
        if (protocol, port) in self.others or (protocol, port) in self.bound:
            number = number or errno.EADDRINUSE
        if len(self.bound) >= self.room:
            number = errno.EMFILE
        if number:
            return OSError(number, os.strerror(number))
        sock = self.bound[protocol, port] = FakeSocket(self, protocol, port, spec)
        return cast(socket.socket, sock)


class FakeOwner:
    """A translator that keeps a list of what it serves."""

    def __init__(self, loop: FakeLoop) -> None:
        self.loop = loop
        self.served: list[tuple[FakeSocket, Rule, int, int]] = []
        self.refuse: dict[int, int] = {}
        #: Sockets given back to us are kept open.
        self.lingering: list[FakeSocket] | None = None

    def attach_listener(self, sock: socket.socket, rule: Rule, port: int, pif: int) -> object:
        if port in self.refuse:
            raise OSError(self.refuse[port], os.strerror(self.refuse[port]))
        handle = cast(FakeSocket, sock), rule, port, pif
        self.served.append(handle)
        return handle

    def detach_listener(self, handle: object) -> None:
        listener = cast(tuple[FakeSocket, Rule, int, int], handle)
        self.served.remove(listener)
        closing = self.loop.closing if self.lingering is None else self.lingering
        closing.append(listener[0])


class FakeLoop:
    """The part of the loop in question, with time under control."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rounds = 0
        self.closing: list[FakeSocket] = []
        self.watched: dict[int, Callable[[int], None]] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self._again: list[Callable[[], None]] = []

    def again(self, callback: Callable[[], None]) -> None:
        self._again.append(callback)

    def add(self, fd: int, _events: int, handler: Callable[[int], None]) -> None:
        assert fd not in self.watched
        self.watched[fd] = handler

    def remove(self, fd: int) -> None:
        del self.watched[fd]

    def call_at(self, deadline: float, callback: Callable[[], None]) -> None:
        self.timers.append((deadline, callback))

    def run(self) -> None:
        """Rounds until there is nothing to do but wait."""
        self._end_round()
        while self._again:
            self.rounds += 1
            assert self.rounds < 10000
            waiting, self._again = self._again, []
            for callback in waiting:
                callback()
            self._end_round()

    def wait(self, seconds: float = 1.0) -> None:
        """Let time pass, and do what is due."""
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback in due:
            callback()
        self.run()

    def _end_round(self) -> None:
        for sock in self.closing:
            sock.close()
        self.closing.clear()


class World:
    """Host and namespace, and a forwarder between them."""

    def __init__(
        self, inbound: Sequence[Rule] = (), outbound: Sequence[Rule] = (), mode: str = "pasta"
    ) -> None:
        self.config = Config(mode)
        self.config.rules = list(inbound)
        self.config.rules_ns = list(outbound)
        self.config.rule_caps = 0x3F if mode == "pasta" else 0x2F
        self.host = FakeSide()
        self.ns = FakeSide()
        self.loop = FakeLoop()
        self.tcp = FakeOwner(self.loop)
        self.udp = FakeOwner(self.loop)
        self.forwarder = Forwarder(self.config)

    @property
    def sides(self) -> dict[int, FakeSide]:
        pifs = (HOST, SPLICE) if self.config.mode == "pasta" else (HOST,)
        return dict(zip(pifs, (self.host, self.ns), strict=False))

    def open(self) -> None:
        """The part of start-up before there is a loop."""
        for pif, side in self.sides.items():
            self.forwarder.open_fixed(pif, side.call)
            self.forwarder.scan(pif, cast(PortScan, side))
        self.forwarder.open_auto({pif: side.call for pif, side in self.sides.items()})

    def attach(self) -> None:
        self.forwarder.attach(cast(Loop, self.loop), {IPPROTO_TCP: self.tcp, IPPROTO_UDP: self.udp})
        for pif, side in self.sides.items():
            self.forwarder.use(pif, side)

    def start(self) -> World:
        self.open()
        self.attach()
        self.check()
        return self

    def check(self) -> None:
        """Every socket that is open is served by the owner of its protocol, and vice versa."""
        for protocol, owner in ((IPPROTO_TCP, self.tcp), (IPPROTO_UDP, self.udp)):
            served = {id(sock) for sock, _, _, _ in owner.served}
            bound = {
                id(sock)
                for side in (self.host, self.ns)
                for (kind, _), sock in side.bound.items()
                if kind == protocol
            }
            assert served == bound
            for sock, rule, port, pif in owner.served:
                assert sock.open
                assert sock.port == port
                assert rule.first <= port <= rule.last
                assert sock.side is self.sides[pif]
