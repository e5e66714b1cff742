"""The listening sockets of one side, host or namespace: all rules of a table.

Before there is a loop, sockets are opened at once, and it is an error if those of a fixed
rule cannot be had.  Later, they are opened in batches, one per round, so that a rule for
thousands of ports does not keep traffic waiting, and errors are just reported.

Automatic rules follow what the guest does, which may listen on all ports there are.  So
listeners opened later leave half of the reserve of descriptors that is kept from flows (see
:mod:`passt.userspace.flow.table`) to the rest of the program.
"""

from __future__ import annotations

import errno
import os
import resource

from passt.kernel.errors import SetupError
from passt.kernel.queues import deque
from passt.userspace.flow.rules import IPPROTO_TCP
from passt.userspace.flow.table import reserve_of
from passt.userspace.forward.binding import Binding
from passt.userspace.forward.portset import portset
from passt.userspace.forward.sockets import plans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from passt.kernel.sockets import SocketSpec
    from passt.syscalls import bare_socket as socket
    from passt.userspace.config.model import Config
    from passt.userspace.flow.rules import Rule, RuleTable
    from passt.userspace.forward.binding import Owner
    from passt.userspace.forward.lookup import Gate
    from passt.userspace.loop import Loop

    Made = list[socket.socket | OSError]
    #: Makes sockets at once.
    Make = Callable[[Sequence[SocketSpec]], Made]

    class Opener(Protocol):
        """Makes sockets on the side concerned: the namespace's thread, for one."""

        def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
            """Have sockets made, and ``done`` called with them or errors, at once or later."""

        def call(self, specs: Sequence[SocketSpec]) -> Made:
            """Make sockets now."""


#: Sockets opened per round: some milliseconds' worth.
_BATCH = 256

#: What follows the line about the first socket that could not be opened.
_GIVING_UP = "Couldn't listen on requested ports"


class ForwardError(SetupError):
    """Sockets of a rule cannot be opened; the text, of two lines, is for the user."""


class Side:
    """Sockets for the rules of ``table``."""

    __slots__ = (
        "_busy",
        "_closing",
        "_config",
        "_last_fd",
        "_loop",
        "_owners",
        "_queue",
        "bindings",
        "gate",
        "opener",
        "report",
        "scope",
        "settled",
        "table",
    )

    def __init__(
        self,
        table: RuleTable,
        config: Config,
        report: Callable[[list[str]], None],
        settled: Callable[[], None],
    ) -> None:
        self._config = config
        self.table = table
        #: In the order of the table.
        self.bindings: list[Binding] = []
        #: Index of the interface that link-local addresses are taken to be on.
        self.scope = 0
        #: Called with lines for the user, and when the last of the sockets asked for is there.
        self.report = report
        self.settled = settled
        #: Serves rules for many ports, if there is one.
        self.gate: Gate | None = None
        self._loop: Loop | None = None
        #: Highest number that the descriptor of a socket opened in the loop may have.
        self._last_fd = 0
        #: Makes the sockets once there is a loop.
        self.opener: Opener | None = None
        self._owners: Mapping[int, Owner] = {}
        #: Ports still to be asked for.
        self._queue: deque[tuple[Binding, list[int]]] = deque()
        #: A batch has been asked for.
        self._busy = False
        #: Protocol, port and socket of listeners given up, which may still be open.
        self._closing: list[tuple[int, int, socket.socket]] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be opened."""
        return not self._busy and not self._queue

    def ours(self, protocol: int) -> int:
        """The set of ports that are open here for ``protocol``, about to be, or still."""
        self._closing = [each for each in self._closing if each[2].fileno() >= 0]
        bits = portset(port for kind, port, _ in self._closing if kind == protocol)
        if self.gate is not None and protocol == IPPROTO_TCP:
            bits |= self.gate.own
        for binding in self.bindings:
            if binding.rule.protocol == protocol:
                bits |= binding.bits()
        return bits

    # At start.

    def bind_rules(self) -> None:
        """Make a binding, without sockets, for each rule of the table."""
        self.bindings = [self._bind(rule) for rule in self.table]

    def _bind(self, rule: Rule) -> Binding:
        """A binding, without sockets, for ``rule``."""
        pif, ways = self.table.pif, plans(rule, self._config, self.scope)
        if self.gate is None:
            return Binding(rule, pif, ways)
        return self.gate.bind(rule, pif, ways)

    def open_now(self, binding: Binding, ports: Sequence[int], make: Make) -> None:
        """Open ``ports`` of ``binding``.

        :class:`ForwardError` if one of them cannot be opened and the rule is not best effort,
        if none of a fixed rule can, and if nothing more can be opened at all.
        """
        if binding.at_once(ports, make):
            ports = ()
        for start in range(0, len(ports), _BATCH):
            batch = ports[start : start + _BATCH]
            while batch:
                batch = binding.expect(batch)
                specs = binding.specs(batch)
                batch = binding.land(batch, make(specs)) if specs else ()
        self._check(binding)

    def _check(self, binding: Binding) -> None:
        """Raise for failures of ``binding`` that somebody has to be told of."""
        news = binding.news()
        if news:
            raise ForwardError(f"{news[0]}\n{_GIVING_UP}")

    def attach(self, loop: Loop, owners: Mapping[int, Owner]) -> None:
        """Have the sockets served, by protocol, those opened later included.

        :class:`ForwardError` if that fails as :meth:`open_now` does.
        """
        self._loop = loop
        nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last_fd = nofile - reserve_of(nofile) // 2 - 1
        self._owners = owners
        if self.gate is not None:
            self.gate.attach(loop, self.open)
        for binding in self.bindings:
            binding.attach(owners[binding.rule.protocol])
            self._check(binding)

    # Later.

    def replace(self, table: RuleTable) -> None:
        """Go over to ``table``: sockets of rules that are in both stay open.

        Those of other rules are closed now, and to be opened with :meth:`open`.
        """
        kept = {}
        staying = set(table)
        for binding in self.bindings:
            if binding.rule in staying:
                kept[binding.rule] = binding
            else:
                self._given_up(binding, binding.end())
        self.table = table
        self.bindings = []
        for rule in table:
            new = kept.get(rule)
            if new is None:
                new = self._bind(rule)
                new.attach(self._owners[rule.protocol])
            self.bindings.append(new)
        self._queue = deque(item for item in self._queue if not item[0].dead)

    def close(self, binding: Binding, ports: Iterable[int]) -> None:
        """Close those of ``ports`` that are open; those just being opened have to wait."""
        self._given_up(binding, binding.close(port for port in ports if port not in binding.asked))

    def _given_up(self, binding: Binding, closing: list[tuple[int, socket.socket]]) -> None:
        self._closing += [(binding.rule.protocol, port, sock) for port, sock in closing]

    def open(self, binding: Binding, ports: Iterable[int]) -> None:
        """Have ``ports`` of ``binding`` opened, from the next round on."""
        assert self.opener is not None
        ports = ports if isinstance(ports, range) else list(ports)
        if binding.at_once(ports, self.opener.call):
            self.report(binding.news())
            if self.idle:
                self.settled()
            return
        wanted = binding.expect(ports)
        if not wanted:
            return
        idle = self.idle
        self._queue.append((binding, wanted))
        if idle:
            self._next_round()

    def _next_round(self) -> None:
        assert self._loop is not None
        self._loop.again(self._pump)

    def _pump(self) -> None:
        """Ask for a batch of sockets."""
        if not self._queue or self._busy:
            return
        binding, ports = self._queue[0]
        batch = ports[:_BATCH]
        del ports[:_BATCH]
        if not ports:
            self._queue.popleft()

        def landed(made: Made) -> None:
            self._busy = False
            again = binding.land(batch, [self._spare(sock) for sock in made])
            if again:
                self._queue.appendleft((binding, binding.expect(again)))
            self._told(binding)

        specs = binding.specs(batch)
        if specs:
            assert self.opener is not None
            self._busy = True
            self.opener.request(specs, landed)
        else:
            self._told(binding)

    def _spare(self, sock: socket.socket | OSError) -> socket.socket | OSError:
        """``sock``, or an error in its place if it is one of the last descriptors."""
        if isinstance(sock, OSError) or sock.fileno() <= self._last_fd:
            return sock
        sock.close()
        return OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _told(self, binding: Binding) -> None:
        """Report what came of a batch, and go on."""
        if not binding.dead:
            self.report(binding.news())
        if self._queue:
            self._next_round()
        else:
            self.settled()
