"""Rules for many ports that are served by one listening socket, as the kernel leads it all there.

A socket for each port takes 20 µs, 4 kB of the kernel's memory and a descriptor.  Where there is a
:class:`Gate` (``--accel=ebpf``, and privilege), fixed TCP rules for at least
:data:`~passt.userspace.forward.binding.MANY` ports have one for all ports of all rules with the
same address and interface instead, and a number per port in memory that we share with the kernel
(:mod:`passt.kernel.ebpf.lookup`).

Which ports can be had is decided as if each were bound:

* a port that some socket is bound to, as a scan tells, is tried: we bind a socket as we would have,
  and close it again.  So addresses, interfaces and options count as they always do;
* so is the first port of a rule, as low ports may not be ours to bind;
* what another instance has open in this way cannot be seen by either, but is asked of the kernel.

A program that begins to listen on a port later could not have, if we had bound it.  Here it can,
and has the port from that moment; we learn of it, and look again once a second, as for any port
that somebody else has.  Ports of outgoing connections are no obstacle.

There are few listeners (:data:`passt.kernel.ebpf.lookup_layout.SLOTS`); rules for which none is
left have a socket for each port.
"""

from __future__ import annotations

import errno
import struct

from passt.kernel.ebpf.lookup_layout import IPV4, IPV6, Place
from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.forward.binding import Binding, has_many
from passt.userspace.forward.portset import ports_in, portset, runs_in
from passt.userspace.forward.sockets import NO_IPV6
from passt.userspace.loop import EPOLLIN
from passt.userspace.tcp.shared import attach_shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from passt.kernel.ebpf.lookup import Claim, PortMaps
    from passt.userspace.flow.rules import Rule
    from passt.userspace.forward.binding import Owner
    from passt.userspace.forward.scan import PortScan
    from passt.userspace.forward.side import Make
    from passt.userspace.forward.sockets import Plan
    from passt.userspace.loop import Loop

    #: Has ports of a binding opened.
    Open = Callable[[Binding, Iterable[int]], None]

#: Seconds from one look at ports that others took to the next.
REST = 0.05

#: Ports tried at a time.
_BATCH = 64

_SO_BINDTOIFINDEX = 62


class Listener:
    """A listening socket, which serves the rules of its ``users``."""

    __slots__ = ("handle", "key", "place", "port", "slot", "sock", "users")

    def __init__(self, key: object, slot: int, sock: socket.socket, place: Place) -> None:
        self.key = key
        self.slot = slot
        self.sock = sock
        self.place = place
        #: Its own, which nothing is open on by this.
        self.port: int = sock.getsockname()[1]
        self.users: list[LookupBinding] = []
        #: Once somebody accepts.
        self.handle: object = None

    def user(self, port: int) -> LookupBinding | None:
        """Whose port this is."""
        for binding in self.users:
            if binding.rule.first <= port <= binding.rule.last:
                return binding
        return None

    def find(self, port: int) -> Rule | None:
        """The rule that a connection to ``port`` is accepted for."""
        binding = self.user(port)
        return None if binding is None else binding.rule


class Gate:
    """What one side, host or namespace, has to serve rules in this way."""

    __slots__ = ("_claims", "_listeners", "_loop", "_maps", "_open", "_scan", "own")

    def __init__(self, maps: PortMaps, scan: PortScan, claims: Sequence[Claim] = ()) -> None:
        """``maps`` are attached there, ``scan`` tells which ports are bound there.

        ``claims`` are what other instances had open at start.
        """
        self._maps = maps
        self._scan = scan
        self._claims = claims
        self._listeners: dict[object, Listener] = {}
        self._loop: Loop | None = None
        self._open: Open | None = None
        #: The set of ports that our listeners are bound to.
        self.own = 0

    def attach(self, loop: Loop, reopen: Open) -> None:
        """Learn from now on of ports that others take, to be opened again when they are free."""
        self._loop = loop
        self._open = reopen
        # They cannot be asked for any more.
        self._claims = ()
        loop.add(self._maps.fileno(), EPOLLIN, self._on_bell)

    def bind(self, rule: Rule, pif: int, plans: list[Plan]) -> Binding:
        """A binding for ``rule``, served by this gate if that is worth it."""
        if has_many(rule):
            return LookupBinding(rule, pif, plans, self)
        return Binding(rule, pif, plans)

    # For bindings.

    def join(self, binding: LookupBinding, plan: Plan, make: Make) -> Listener | None:
        """The listener that sockets of ``plan`` are replaced by, made if there is none yet.

        None if there cannot be one more.  OSError: it cannot be made.
        """
        spec = plan.spec(0)
        key = spec.plain()
        listener = self._listeners.get(key)
        if listener is None:
            slot = self._maps.take()
            if slot is None:
                return None
            made = make([spec])[0]
            try:
                if isinstance(made, OSError):
                    raise made
                listener = Listener(key, slot, made, _place(made))
                self._maps.settle(slot, listener.place, made)
            except OSError:
                self._maps.vacate(slot)
                if not isinstance(made, OSError):
                    made.close()
                raise
            self._listeners[key] = listener
            self.own |= 1 << listener.port
        listener.users.append(binding)
        return listener

    def serve(self, listener: Listener, owner: Owner, rule: Rule, pif: int) -> None:
        """Have ``owner`` accept connections, if nobody does yet; OSError if it cannot."""
        if listener.handle is None:
            listener.handle = attach_shared(owner, listener.sock, listener.find, rule, pif)
            self._maps.admit(listener.slot, listener.sock)
            # It has begun to listen itself, where nobody else can.
            port = listener.port
            if any(user.bits() >> port & 1 for user in listener.users):
                self._maps.open(listener.slot, port, port, self._maps.numbers(listener.slot))

    def leave(self, listener: Listener, binding: LookupBinding, owner: Owner | None) -> None:
        """``binding`` does not use ``listener`` any more; its ports are closed."""
        listener.users.remove(binding)
        if listener.users:
            return
        del self._listeners[listener.key]
        self._maps.vacate(listener.slot)
        self.own &= ~(1 << listener.port)
        if listener.handle is not None and owner is not None:
            owner.detach_listener(listener.handle)
        else:
            listener.sock.close()

    def open(
        self, listener: Listener, ports: int, obstacles: Callable[[int], dict[int, int]]
    ) -> dict[int, int]:
        """Open the set ``ports``, but for those that ``obstacles``, called with it, has errors for.

        Returns these.
        """
        # Whoever begins to listen from here on is counted.
        numbers = self._maps.numbers(listener.slot)
        failed = obstacles(ports)
        for first, last in runs_in(ports & ~portset(failed)):
            self._maps.open(listener.slot, first, last, numbers)
        return failed

    def shut(self, listener: Listener, ports: int) -> None:
        """Close the set ``ports``."""
        for first, last in runs_in(ports):
            self._maps.shut(listener.slot, first, last)

    def bound(self) -> int:
        """The set of ports that somebody else may have."""
        return self._scan.bound() & ~self.own

    def claimed(self, place: Place) -> int:
        """The set of ports that other instances had open in ``place``."""
        bits = 0
        for claim in self._claims:
            if claim.place.meets(place):
                bits |= _opened(claim.numbers)
        return bits

    # While the loop runs.

    def _on_bell(self, _events: int) -> None:
        """Others have begun to listen on ports that were open."""
        assert self._loop is not None
        # They may do so as often as they like; we look some times per second.
        self._loop.remove(self._maps.fileno())
        self._loop.call_at(self._loop.now + REST, self._rested)
        records, more = self._maps.rung()
        by_slot = {listener.slot: listener for listener in self._listeners.values()}
        if more:
            records = [(n, port) for n in by_slot for port in self._maps.all_overtaken(n)]
        taken: dict[LookupBinding, list[int]] = {}
        for slot, port in records:
            listener = by_slot.get(slot)
            user = None if listener is None else listener.user(port)
            if user is not None and self._maps.overtaken(slot, port):
                taken.setdefault(user, []).append(port)
        for user, ports in taken.items():
            user.look_again(ports)

    def _rested(self) -> None:
        assert self._loop is not None
        try:
            self._loop.add(self._maps.fileno(), EPOLLIN, self._on_bell)
        except OSError as error:
            log.limited("lookup-bell", log.WARNING, "Ports that others take: %s", error.strerror)
            self._loop.call_at(self._loop.now + REST, self._rested)

    def reopen(self, binding: LookupBinding, ports: list[int]) -> None:
        """Look whether ``ports``, which have just been closed by the kernel, are free."""
        if self._open is not None:
            self._open(binding, ports)


class LookupBinding(Binding):
    """A binding whose ports are open by a gate, unless there is no listener to be had."""

    __slots__ = ("_denied", "_gate", "_listener", "_open", "_tried", "_turn")

    def __init__(self, rule: Rule, pif: int, plans: list[Plan], gate: Gate) -> None:
        super().__init__(rule, pif, plans)
        self._gate = gate
        self._listener: Listener | None = None
        #: The sets of open ports, and of those that are too low for us to bind.
        self._open = 0
        self._denied = 0
        #: Ports have been opened before, or could not be.
        self._tried = False
        #: Where to go on among too many ports to try all of them.
        self._turn = 0

    def __len__(self) -> int:
        return self._open.bit_count() + super().__len__()

    def bits(self) -> int:
        """The set of ports that are open or will be."""
        return self._open | super().bits()

    def at_once(self, ports: Iterable[int], make: Make) -> bool:
        """Open ``ports``; those that cannot be are in ``failed``.  False if we cannot do it."""
        wanted = portset(ports)
        try:
            if not self._joined(make):
                return False
        except OSError as error:
            for port in ports_in(wanted):
                self._fail(port, error.errno or errno.EIO)
            return True
        listener = self._listener
        assert listener is not None
        failed = self._gate.open(
            listener, wanted, lambda bits: self._obstacles(bits, listener.place, make)
        )
        self._tried = True
        opened = wanted & ~portset(failed)
        self._open |= opened
        for port, number in failed.items():
            self._fail(port, number)
        if self.failed:
            for port in [port for port in self.failed if opened >> port & 1]:
                del self.failed[port]
        return True

    def attach(self, owner: Owner) -> None:
        """Have ``owner`` serve connections, those to ports opened later included."""
        super().attach(owner)
        if self._listener is not None:
            try:
                self._serve(self._listener, owner)
            except OSError as error:
                for port in self.all_ports:
                    self._fail(port, error.errno or errno.EIO)

    def look_again(self, ports: list[int]) -> None:
        """Others began to listen on ``ports``, which are closed by that: find out what they are."""
        assert self._listener is not None
        taken = portset(ports)
        self._open &= ~taken
        self._gate.shut(self._listener, taken)
        self._gate.reopen(self, ports)

    def end(self) -> list[tuple[int, socket.socket]]:
        """Close everything: the rule is gone."""
        closing = super().end()
        self._part()
        return closing

    def _joined(self, make: Make) -> bool:
        """Have a listener, which may have to be made; OSError, False if there is none left."""
        while self._listener is None:
            if not self._plans:
                raise OSError(errno.EAFNOSUPPORT, "")
            try:
                listener = self._gate.join(self, self._plans[0], make)
            except OSError as error:
                if error.errno in NO_IPV6 and len(self._plans) > 1:
                    del self._plans[0]
                    continue
                raise
            if listener is None:
                return False
            self._listener = listener
            if self._owner is not None:
                self._serve(listener, self._owner)
        return True

    def _serve(self, listener: Listener, owner: Owner) -> None:
        """Have ``owner`` accept on ``listener``; OSError, and no listener, if it cannot."""
        try:
            self._gate.serve(listener, owner, self.rule, self.pif)
        except OSError:
            self._part()
            raise

    def _part(self) -> None:
        """Give the listener up."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._gate.shut(listener, self._open)
            self._open = 0
            self._gate.leave(listener, self, self._owner)

    def _obstacles(self, ports: int, place: Place, make: Make) -> dict[int, int]:
        """Errors that sockets for ``ports`` of the set would meet."""
        # Privilege that we have at first is not missing later, even if binding fails then.
        low = ports & self._denied if self._tried else ports
        denied = low & ((1 << self._lowest(low, make)) - 1)
        self._denied = self._denied & ~low | denied
        failed = dict.fromkeys(ports_in(denied), errno.EACCES)
        rest = ports & ~denied
        if not self._tried:
            claimed = rest & self._gate.claimed(place)
            failed.update(dict.fromkeys(ports_in(claimed), errno.EADDRINUSE))
            rest &= ~claimed & self._gate.bound()
        elif rest.bit_count() > _BATCH:
            rest &= self._gate.bound()
        candidates = ports_in(rest)
        if self._tried and len(candidates) > _BATCH:
            # Others who listen on thousands of ports must not keep us from everything else.
            self._turn = (self._turn + _BATCH) % len(candidates)
            failed.update(dict.fromkeys(candidates, errno.EADDRINUSE))
            candidates = (candidates[self._turn :] + candidates[: self._turn])[:_BATCH]
            for port in candidates:
                del failed[port]
        found = self._attempts(candidates, make)
        bound = self._gate.bound() if errno.EACCES in found.values() else 0
        for port, number in found.items():
            if number != errno.EACCES:
                failed[port] = number
            elif bound >> port & 1:
                failed[port] = errno.EADDRINUSE
        return failed

    def _lowest(self, ports: int, make: Make) -> int:
        """The lowest of ``ports`` that we may bind, by trying; one more than the last if none."""
        first, last = (ports & -ports).bit_length() - 1, ports.bit_length() - 1
        if not ports or self._attempts([first], make).get(first) != errno.EACCES:
            return 0
        # From some port on all may be bound: net.ipv4.ip_unprivileged_port_start.
        denied, allowed = first, last + 1
        while allowed - denied > 1:
            middle = (denied + allowed) // 2
            if self._attempts([middle], make).get(middle) == errno.EACCES:
                denied = middle
            else:
                allowed = middle
        return allowed

    def _attempts(self, ports: Sequence[int], make: Make) -> dict[int, int]:
        """Errors that binding sockets to ``ports`` meets, by trying."""
        failed = {}
        spec = self._plans[0].spec
        own = self._gate.own
        for start in range(0, len(ports), _BATCH):
            batch = [port for port in ports[start : start + _BATCH] if not own >> port & 1]
            for port, sock in zip(batch, make([spec(port) for port in batch]), strict=True):
                if isinstance(sock, OSError):
                    failed[port] = sock.errno or errno.EIO
                else:
                    sock.close()
        return failed


def _place(sock: socket.socket) -> Place:
    """Where a socket is bound to; OSError."""
    host = sock.getsockname()[0]
    ifindex = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
    if sock.family == socket.AF_INET:
        return Place(IPV4, socket.inet_aton(host), ifindex)
    address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    only = any(address) or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return Place(IPV6 if only else IPV4 | IPV6, address, ifindex)


def _opened(numbers: bytes) -> int:
    """The set of ports that are open by the numbers of a claim."""
    values = struct.unpack(f"={len(numbers) // 2}H", numbers)
    return portset(port for port, value in enumerate(values) if value)
