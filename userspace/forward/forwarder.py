"""Keeps listening sockets in step with forwarding rules, with scans, and with requests.

Start-up, in this order, on whichever occasion allows each step::

    Forwarder(config)
    set_gate(pif, …)         with --accel=ebpf: serves rules for many ports
    open_fixed(HOST, …)      while low ports can still be had
    open_fixed(SPLICE, …)    by whoever is in the namespace
    scan(pif, …)             for each side: how to look at the ports in use there
    open_auto(…)             what automatic rules make of it
    attach(loop, …)          sockets are served, and tended from then on
    use(SPLICE, …)           how to make sockets in the namespace while the loop runs

Until then everything is done at once, and what cannot be had is an error.  Afterwards, once a
second, both sides are scanned if there are automatic rules, and ports that could not be opened
are tried again; without either, nothing wakes us up.

:meth:`Forwarder.replace` puts other rules in the place of these, all or none being the affair
of whoever made the tables.  Sockets of rules that remain are not touched.

Source: pasta(1), ``--tcp-ports``; pesto(1).
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, IPPROTO_UDP, SPLICE, RuleTable
from passt.userspace.forward.auto import Heard, wanted
from passt.userspace.forward.portset import ports_in
from passt.userspace.forward.side import Side
from passt.userspace.forward.sockets import Here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from passt.userspace.config.model import Config
    from passt.userspace.forward.binding import Binding, Owner
    from passt.userspace.forward.lookup import Gate
    from passt.userspace.forward.scan import PortScan
    from passt.userspace.forward.side import Make, Opener
    from passt.userspace.loop import Loop

    #: Takes what went wrong, a line each.
    Done = Callable[[Sequence[str]], None]

#: Seconds between scans.
INTERVAL = 1.0

#: Lines about failures kept for whoever asked for new rules.
_MAX_PROBLEMS = 20


class Forwarder:
    """Owns the tables of rules and all listening sockets.

    Its sides are HOST and, in pasta, SPLICE.
    """

    __slots__ = (
        "_done",
        "_loop",
        "_opening",
        "_problems",
        "_retries",
        "_scans",
        "_sides",
        "_timed",
    )

    def __init__(self, config: Config) -> None:
        """Take the rules of ``config``, which are known to be sound."""
        pasta = config.mode == "pasta"
        self._sides: dict[int, Side] = {}
        for pif, rules in ((HOST, config.rules), (SPLICE, config.rules_ns)):
            if pif == SPLICE and not pasta:
                continue
            table = RuleTable(pif, config.rule_caps)
            table.extend(rules)
            self._sides[pif] = Side(table, config, self._report, self._settled)
        self._sides[HOST].opener = Here()
        #: passt tries once per change of rules.
        self._retries = pasta
        self._scans: dict[int, PortScan] = {}
        self._loop: Loop | None = None
        #: A timer is running.
        self._timed = False
        #: Somebody waits to be told that all sockets are open.
        self._done: Done | None = None
        #: Sockets of new rules have not all been asked for yet.
        self._opening = False
        self._problems: list[str] = []

    def tables(self) -> list[RuleTable]:
        """The tables in force, by ascending pif; not to be changed."""
        return [side.table for side in self._sides.values()]

    # At start.

    def set_scope(self, pif: int, ifindex: int) -> None:
        """Set the interface that link-local listening addresses on ``pif`` are taken to be on."""
        self._sides[pif].scope = ifindex

    def set_gate(self, pif: int, gate: Gate) -> None:
        """Have ``gate`` serve those rules on ``pif`` that it takes, before any port is open."""
        self._sides[pif].gate = gate

    def open_fixed(self, pif: int, make: Make) -> None:
        """Open the sockets of rules on ``pif`` that are not automatic; ``make`` makes them there.

        Raises :class:`~passt.userspace.forward.side.ForwardError`.
        """
        side = self._sides[pif]
        side.bind_rules()
        for binding in side.bindings:
            if not binding.rule.auto:
                side.open_now(binding, binding.all_ports, make)

    def scan(self, pif: int, scan: PortScan) -> None:
        """Use ``scan``, ours from here on, to see which ports are in use on ``pif``."""
        self._scans[pif] = scan

    def scans(self, pif: int) -> bool:
        """Whether there is a way to see which ports are in use on ``pif``."""
        return pif in self._scans

    def open_auto(self, makers: Mapping[int, Make]) -> None:
        """Scan both sides and open what automatic rules want; ``makers`` by pif.

        Raises :class:`~passt.userspace.forward.side.ForwardError`.
        """
        for side, binding, ports in self._plan():
            side.open_now(binding, ports_in(ports), makers[side.table.pif])

    def attach(self, loop: Loop, owners: Mapping[int, Owner]) -> None:
        """Have all sockets served, by protocol, and tended from now on.

        Raises :class:`~passt.userspace.forward.side.ForwardError`.
        """
        self._loop = loop
        for side in self._sides.values():
            side.attach(loop, owners)
        self._tend()

    def use(self, pif: int, opener: Opener) -> None:
        """Have ``opener`` make the sockets on ``pif`` that the loop asks for.

        To be called before the loop runs; sockets on HOST are made by ourselves otherwise.
        """
        self._sides[pif].opener = opener

    # Later.

    def replace(self, tables: Sequence[RuleTable], done: Done | None = None) -> None:
        """Put ``tables`` in force, ours from here on, one for each side.

        Then, or later, ``done`` is called with what went wrong; until then this must not be
        called again.  Established connections are not affected.
        """
        assert self._loop is not None
        self._done = done
        self._problems.clear()
        for table in tables:
            self._sides[table.pif].replace(table)
        self._opening = True
        # Sockets that were given up are closed at the end of this round.
        self._loop.again(self._open_new)

    def _open_new(self) -> None:
        """Open the sockets of rules that have none yet."""
        for side in self._sides.values():
            for binding in side.bindings:
                if not (binding.rule.auto or len(binding) or binding.failed):
                    side.open(binding, binding.all_ports)
        self._apply_auto()
        self._opening = False
        self._tend()
        self._settled()

    def _settled(self) -> None:
        """Tell whoever waits, if all sockets are open that can be."""
        if self._opening or not all(side.idle for side in self._sides.values()):
            return
        self._tend()
        done, self._done = self._done, None
        if done is not None:
            done(self._problems[:])

    def _report(self, lines: list[str]) -> None:
        """Tell the user what went wrong."""
        for line in lines:
            log.limited("listen", log.ERR, "%s", line)
        if self._done is not None:
            self._problems += lines[: _MAX_PROBLEMS - len(self._problems)]

    # Once a second.

    def _tend(self) -> None:
        """Start the timer if there is something to do."""
        automatic = any(rule.auto for side in self._sides.values() for rule in side.table)
        if self._timed or not (automatic or self._retriable()):
            return
        assert self._loop is not None
        self._timed = True
        self._loop.call_at(self._loop.now + INTERVAL, self._tick)

    def _tick(self) -> None:
        self._timed = False
        self._apply_auto()
        for side, binding, ports in self._retriable():
            side.open(binding, ports)
        self._tend()

    def _retriable(self) -> list[tuple[Side, Binding, list[int]]]:
        """Ports of fixed rules to be tried again."""
        if not self._retries:
            return []
        return [
            (side, binding, ports)
            for side in self._sides.values()
            for binding in side.bindings
            if binding.failed and not binding.rule.auto and (ports := binding.retriable())
        ]

    def _apply_auto(self) -> None:
        """Scan both sides, close and open ports of automatic rules accordingly."""
        for side, binding, ports in self._plan():
            have = binding.bits()
            if ports != have:
                side.close(binding, ports_in(have & ~ports))
                side.open(binding, ports_in(ports & ~have))

    def _plan(self) -> list[tuple[Side, Binding, int]]:
        """The set of ports that each automatic rule is to have open.

        What is ours, on either side, is settled before anything is changed.
        """
        if SPLICE not in self._sides:
            return []
        host, namespace = self._sides[HOST], self._sides[SPLICE]
        plan: list[tuple[Side, Binding, int]] = []
        scanned: dict[tuple[int, int], int] = {}
        for protocol in (IPPROTO_TCP, IPPROTO_UDP):
            inbound = _automatic(host, protocol)
            outbound = _automatic(namespace, protocol)
            if not inbound and not outbound:
                continue
            sets = wanted(
                [binding.rule for binding in inbound],
                [binding.rule for binding in outbound],
                self._heard(host, protocol, bool(outbound), scanned),
                self._heard(namespace, protocol, bool(inbound), scanned),
            )
            sides = [host] * len(inbound) + [namespace] * len(outbound)
            plan += zip(sides, inbound + outbound, sets, strict=True)
        return plan

    def _heard(
        self, side: Side, protocol: int, needed: bool, scanned: dict[tuple[int, int], int]
    ) -> Heard:
        """What is listened on at ``side``; nothing if that is not ``needed``.

        ``scanned`` has what was found so far, by pif and protocol.
        """
        scan = self._scans.get(side.table.pif)
        ours = side.ours(protocol)
        if not needed or scan is None:
            return Heard(0, ours)

        def heard(what: int) -> int:
            key = side.table.pif, what
            if key not in scanned:
                scanned[key] = scan.ports(what)
            return scanned[key]

        if protocol == IPPROTO_TCP:
            return Heard(heard(IPPROTO_TCP), ours)
        tcp = Heard(heard(IPPROTO_TCP), side.ours(IPPROTO_TCP))
        return Heard(heard(IPPROTO_UDP), ours, tcp)


def _automatic(side: Side, protocol: int) -> list[Binding]:
    """Bindings of the automatic rules for ``protocol``."""
    return [b for b in side.bindings if b.rule.auto and b.rule.protocol == protocol]
