"""A world whose host has a gate: one socket for many ports, and a kernel that we make up."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, cast

from passt.kernel.ebpf.lookup import Claim, PortMaps
from passt.kernel.ebpf.lookup_layout import COUNT, NUMBERS, OPEN, SLOTS, Place
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, Rule
from passt.userspace.forward import lookup
from passt.userspace.forward.lookup import Gate
from passt.userspace.forward.scan import PortScan
from tests.unit.forward_world import FakeSide, World

BELL = 9


class FakePortMaps:
    """What the maps say, without any."""

    def __init__(self) -> None:
        self.free = list(range(SLOTS))
        self.places: dict[int, Place] = {}
        self.admitted: dict[int, object] = {}
        self.wanted = [[0] * 65536 for _ in range(SLOTS)]
        self.taken = [[0] * 65536 for _ in range(SLOTS)]
        self.records: list[tuple[int, int]] = []
        self.more = False

    def fileno(self) -> int:
        return BELL

    def take(self) -> int | None:
        return self.free.pop(0) if self.free else None

    def settle(self, slot: int, place: Place, _sock: object) -> None:
        assert slot not in self.free
        self.places[slot] = place

    def admit(self, slot: int, sock: object) -> None:
        self.admitted[slot] = sock

    def vacate(self, slot: int) -> None:
        self.places.pop(slot, None)
        self.admitted.pop(slot, None)
        self.wanted[slot] = [0] * 65536
        self.free.insert(0, slot)

    def numbers(self, slot: int) -> bytes:
        return struct.pack("=65536H", *self.taken[slot])

    def open(self, slot: int, first: int, last: int, numbers: bytes) -> None:
        assert len(numbers) == NUMBERS
        found = struct.unpack("=65536H", numbers)
        for port in range(first, last + 1):
            self.wanted[slot][port] = OPEN | found[port]

    def shut(self, slot: int, first: int, last: int) -> None:
        self.wanted[slot][first : last + 1] = [0] * (last + 1 - first)

    def overtaken(self, slot: int, port: int) -> bool:
        wanted = self.wanted[slot][port]
        return bool(wanted) and wanted != OPEN | self.taken[slot][port]

    def all_overtaken(self, slot: int) -> list[int]:
        return [port for port in range(65536) if self.overtaken(slot, port)]

    def rung(self) -> tuple[list[tuple[int, int]], bool]:
        records, self.records = self.records, []
        more, self.more = self.more, False
        return records, more

    # The kernel's part.

    def opened(self, slot: int = 0) -> list[int]:
        """The ports that connections are led from to a listener."""
        if slot not in self.places:
            return []
        pairs = zip(self.wanted[slot], self.taken[slot], strict=True)
        return [port for port, (want, have) in enumerate(pairs) if want == OPEN | have]

    def listens(self, port: int, *, ring: bool = True) -> None:
        """Somebody begins to listen on ``port``, anywhere."""
        for slot in self.places:
            before = self.taken[slot][port]
            self.taken[slot][port] = before + 1 & COUNT
            if self.wanted[slot][port] == OPEN | before and ring:
                self.records.append((slot, port))


class FakeScan:
    """Looks at a side."""

    def __init__(self, side: FakeSide) -> None:
        self.side = side
        self.looks = 0

    def bound(self) -> int:
        self.looks += 1
        return self.side.ports(IPPROTO_TCP)


class LookupWorld(World):
    """Host and namespace; the host has a gate."""

    def __init__(
        self, inbound: Sequence[Rule] = (), claims: Sequence[Claim] = (), **options: Any
    ) -> None:
        super().__init__(inbound, **options)
        self.maps = FakePortMaps()
        self.scan = FakeScan(self.host)
        self.gate = Gate(cast(PortMaps, self.maps), cast(PortScan, self.scan), claims)
        self.forwarder.set_gate(HOST, self.gate)
        #: What a listener was served with: :class:`passt.userspace.tcp.shared.Find`.
        self.finds: list[Any] = []

    def check(self) -> None:
        """Nothing: sockets are not those of ports."""

    def attach_shared(self, owner: Any, sock: Any, find: Any, rule: Rule, pif: int) -> object:
        """In the place of :func:`passt.userspace.tcp.shared.attach_shared`."""
        self.finds.append(find)
        self.maps.listens(sock.port, ring=False)
        return owner.attach_listener(sock, rule, sock.port, pif)

    def occupy(self, port: int) -> None:
        """A program of the host listens on ``port``."""
        self.host.others.add((IPPROTO_TCP, port))
        self.maps.listens(port)
        self.ring()

    def ring(self) -> None:
        """Let the loop see the bell, if it looks."""
        handler = self.loop.watched.get(BELL)
        if handler is not None and (self.maps.records or self.maps.more):
            handler(1)
        self.loop.run()


def serve_by(monkeypatch: Any, world: LookupWorld) -> None:
    """Have listeners of ``world`` served by its owners."""
    monkeypatch.setattr(lookup, "attach_shared", world.attach_shared)
