"""The host's neighbours: what netlink says of them, what is kept, and what the guest is told."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink import neighbours as netlink
from passt.kernel.netlink.neighbours import NeighbourSocket
from passt.userspace.config.model import Config
from passt.userspace.flow.nat import Nat
from passt.userspace.loop import Loop
from passt.userspace.services import neighbours
from passt.userspace.services.neighbours import MAX_ENTRIES, PERIOD, Neighbours
from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from tests.unit.fakes import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_MAC,
    OUR_LL,
    OUR_MAC,
    FakeLink,
    config,
    udp_frame,
)

MAC = b"\2\0\0\0\0\x11"
OTHER = b"\2\0\0\0\0\x22"
HOST4 = bytes((192, 0, 2, 50))
HOST6 = GUEST6[:15] + b"\x50"
REACHABLE, STALE, FAILED, PERMANENT = 2, 4, 0x20, 0x80


def message(
    address: bytes,
    mac: bytes | None = MAC,
    *,
    index: int = 7,
    state: int = REACHABLE,
    kind: int = 28,
    number: int = 0,
    type_: int = 1,
) -> bytes:
    """A netlink message about a neighbour."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = struct.pack("=BxxxiHBB", family, index, state, 0, type_)
    body += struct.pack("=HH", 4 + len(address), 1) + address
    if mac is not None:
        body += (struct.pack("=HH", 4 + len(mac), 2) + mac).ljust(12, b"\0")
    body += struct.pack("=HHI", 8, 99, 0)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body


DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


class Queue:
    """Stands for a netlink socket: gives datagrams, or raises errors."""

    def __init__(self) -> None:
        self.waiting: list[bytes | int] = []
        self.sent: list[bytes] = []
        self.options: list[tuple[int, ...]] = []

    def recv(self, _size: int) -> bytes:
        if not self.waiting:
            raise OSError(errno.EAGAIN, "nothing")
        item = self.waiting.pop(0)
        if isinstance(item, int):
            raise OSError(item, os.strerror(item))
        return item

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)

    def close(self) -> None:
        pass


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> tuple[Queue, Queue]:
    """Changes and answers, for the next socket made."""
    made = Queue(), Queue()
    left = list(made)
    monkeypatch.setattr(netlink, "_open", lambda *_: left.pop(0))
    return made


def test_changes_are_read(queues: tuple[Queue, Queue]) -> None:
    changes, _ = queues
    source = NeighbourSocket(7, 8)
    changes.waiting = [
        message(HOST4),
        message(HOST6, index=8) + message(HOST4, OTHER, kind=29),
        message(HOST4, None, state=FAILED),
        message(HOST4, state=STALE),
    ]
    assert source.changes() == [
        (HOST4, MAC, True),
        (HOST6, MAC, True),
        (HOST4, OTHER, False),
        (HOST4, b"", False),
        (HOST4, MAC, True),
    ]
    assert source.changes() == []


def test_what_is_not_for_us(queues: tuple[Queue, Queue]) -> None:
    changes, _ = queues
    source = NeighbourSocket(7, 0)
    changes.waiting = [
        message(HOST4, index=8),
        message(HOST6, index=7),
        message(HOST4, type_=5),
        message(HOST4, kind=24),
        b"",
        b"\0" * 15,
        b"\0" * 64,
        message(HOST4)[:-1],
        message(b"\1\2\3"),
        message(HOST4)[:20] + struct.pack("=I", 7) + bytes(200),
    ]
    assert source.changes() == []


@given(st.binary(max_size=200), st.integers(0, 80))
def test_any_bytes(junk: bytes, at: int) -> None:
    """Nothing is an error; what comes out are addresses."""
    source = NeighbourSocket.__new__(NeighbourSocket)
    source._indices = {socket.AF_INET: 7, socket.AF_INET6: 7}
    whole = message(HOST4)
    for data in (junk, whole[:at] + junk, whole[:at] + junk + whole[at + len(junk) :]):
        entries: list[tuple[bytes, bytes, bool]] = []
        source._read(data, entries, -1)
        assert all(len(address) in (4, 16) for address, _, _ in entries)


def test_lost_changes(queues: tuple[Queue, Queue]) -> None:
    """What is in the queue is old by then; nothing of it is told."""
    changes, _ = queues
    source = NeighbourSocket(7, 7)
    changes.waiting = [message(HOST4), errno.ENOBUFS, message(HOST4, OTHER)]
    assert source.changes() is None
    assert changes.waiting == []
    changes.waiting = [errno.EBADF]
    with pytest.raises(OSError, match="Bad file"):
        source.changes()


def test_reading_all(queues: tuple[Queue, Queue]) -> None:
    _, questions = queues
    source = NeighbourSocket(7, 8)
    questions.waiting = [
        message(HOST6, OTHER, index=8, number=77),
        message(HOST4, number=1),
        DONE,
        message(HOST6, index=8, number=2) + DONE[:8] + struct.pack("=II", 2, 0) + DONE[16:],
    ]
    assert source.all() == [(HOST4, MAC, True), (HOST6, MAC, True)]
    assert [data[16] for data in questions.sent] == [socket.AF_INET, socket.AF_INET6]
    assert [struct.unpack_from("=I", data, 32)[0] for data in questions.sent] == [7, 8]
    with pytest.raises(OSError, match="nothing"):
        source.all()


def test_endless_answer(queues: tuple[Queue, Queue], monkeypatch: pytest.MonkeyPatch) -> None:
    _, questions = queues
    source = NeighbourSocket(7, 0)
    monkeypatch.setattr(netlink, "_LIMIT", 1000)
    questions.waiting = [message(HOST4, number=1)] * 100
    with pytest.raises(OSError, match="Too many"):
        source.all()


def test_another_interface(queues: tuple[Queue, Queue], monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter in the kernel has to go then, and ours tells them apart."""
    changes, _ = queues
    source = NeighbourSocket(7, 8)
    source.retarget(8, 7)
    assert changes.options == []
    source.retarget(9, 0)
    source.retarget(10, 10)
    assert changes.options == [(socket.SOL_SOCKET, 27, 0)]
    changes.waiting = [message(HOST4, index=7), message(HOST6, index=10)]
    assert source.changes() == [(HOST6, MAC, True)]


def test_real_sockets() -> None:
    """They can be had without privilege; lo has no neighbours, or few."""
    source = NeighbourSocket(1, 1)
    assert source.changes() == []
    source.retarget(2, 0)
    source.retarget(1, 1)
    assert all(len(entry) == 3 for entry in source.all())
    source.close()


class Source:
    """Stands for the netlink sockets of a table."""

    def __init__(self) -> None:
        self.now: list[tuple[bytes, bytes, bool]] = []
        self.changed: list[tuple[bytes, bytes, bool]] | None = []
        self.failure: OSError | None = None
        self.read = 0
        self.indices = (0, 0)
        self.readable, self.waker = os.pipe()

    def retarget(self, index4: int, index6: int) -> None:
        self.indices = (index4, index6)

    def fileno(self) -> int:
        return self.readable

    def all(self) -> list[tuple[bytes, bytes, bool]]:
        self.read += 1
        if self.failure is not None:
            raise self.failure
        return self.now

    def changes(self) -> list[tuple[bytes, bytes, bool]] | None:
        changed, self.changed = self.changed, []
        return changed


class World:
    """A table, and what is around it."""

    def __init__(self, configuration: Config | None = None, *now: tuple[bytes, bytes]) -> None:
        self.config = configuration or config()
        self.loop = Loop()
        self.link = FakeLink()
        self.source = Source()
        self.source.now = [(*entry, True) for entry in now]
        self.nat = Nat(self.config)
        surroundings = self.config, self.nat, self.link, self.loop
        self.table = Neighbours(*surroundings, self.source)  # type: ignore[arg-type]
        self.table.start()

    def change(self, *entries: tuple[bytes, bytes, bool]) -> None:
        """The kernel reports changes, and they are looked at."""
        self.source.changed = list(entries)
        self.table._on_event(1)
        self.later(PERIOD)

    def later(self, seconds: float) -> None:
        """Let time pass, in one step."""
        self.loop.now += seconds
        self.loop._expire(self.loop.now)

    def frames(self) -> list[bytes]:
        """What was sent to the guest."""
        frames = [frame for _, frame in self.link.sent]
        self.link.sent.clear()
        return frames


def test_macs() -> None:
    world = World(None, (HOST4, MAC), (HOST6, OTHER), (GATEWAY4, MAC), (GATEWAY6, MAC))
    mac_for = world.table.mac_for
    assert (mac_for(HOST4), mac_for(HOST6)) == (MAC, OTHER)
    # The gateway stands for the host; so whoever is beyond it has our MAC, too.
    for addr in (GATEWAY4, GATEWAY6, bytes((198, 51, 100, 1)), b"\x20" * 16):
        assert mac_for(addr) == OUR_MAC
    world.change((HOST4, OTHER, True), (HOST6, b"", False))
    assert (mac_for(HOST4), mac_for(HOST6)) == (OTHER, OUR_MAC)


def test_another_template() -> None:
    """What was there is forgotten, and what is there now read; new addresses stand for the host."""
    world = World(None, (HOST4, MAC), (HOST6, OTHER))
    v4, v6 = world.config.v4, world.config.v6
    v4.ifindex, v6.enabled = 9, False
    v4.map_host_loopback = v4.gateway = HOST4
    world.source.now = [(HOST4, OTHER, True), (GATEWAY4, MAC, True)]
    world.table.renew()
    assert world.source.indices == (9, 0)
    mac_for = world.table.mac_for
    assert (mac_for(GATEWAY4), mac_for(HOST4), mac_for(HOST6)) == (MAC, OUR_MAC, OUR_MAC)


def test_macs_beyond_a_gateway_that_is_itself() -> None:
    configuration = config()
    configuration.v4.map_host_loopback = None
    configuration.v4.map_guest_addr = bytes((192, 0, 2, 99))
    world = World(configuration, (GATEWAY4, MAC), (bytes((192, 0, 2, 99)), MAC))
    assert world.table.mac_for(GATEWAY4) == MAC
    assert world.table.mac_for(bytes((198, 51, 100, 1))) == MAC
    assert world.table.mac_for(bytes((192, 0, 2, 99))) == OUR_MAC
    assert world.table.mac_for(b"\x20" * 16) == OUR_MAC


@pytest.mark.parametrize(
    "entry",
    [
        (GUEST4, MAC),
        (GUEST6, MAC),
        (bytes((127, 0, 0, 1)), MAC),
        (bytes((224, 0, 0, 1)), MAC),
        (HOST4, b""),
        (HOST4, bytes(6)),
        (HOST4, b"\1\0\0\0\0\1"),
        (HOST4, bytes(20)),
    ],
)
def test_what_is_no_neighbour_of_the_guests(entry: tuple[bytes, bytes]) -> None:
    world = World(None, entry)
    assert world.table.mac_for(entry[0]) == OUR_MAC
    assert world.table._macs == {}


def test_frames_in_a_neighbours_name_are_not_the_guests() -> None:
    """They are ours, on their way back from a bridge in the guest."""
    world = World(None, (HOST4, MAC))
    services = Services(world.config, world.nat, world.link, world.loop, world.table)
    surroundings = world.config, world.nat, world.link
    stack = Stack(*surroundings, None, None, None, services)
    for mac, learned in ((MAC, False), (OTHER, True)):
        frame = udp_frame(GUEST4, HOST4, 1, 2, b"x")
        frame = frame[:6] + mac + frame[12:]
        stack.receive(memoryview(frame), 0, len(frame))
        assert (world.link.guest_mac == mac) == learned
    world.change((HOST4, b"", False))
    assert not services.shows(MAC)


def test_table_is_limited() -> None:
    many = [(bytes((10, 0, i >> 8, i & 255)), MAC) for i in range(1000)]
    world = World(None, *many)
    assert len(world.table._macs) == MAX_ENTRIES
    world.change((many[0][0], b"", False), (many[999][0], OTHER, True))
    assert world.table.mac_for(many[999][0]) == OTHER
    assert len(world.table._macs) == MAX_ENTRIES


def test_announcements() -> None:
    """Once the link is ready: those who are new, each once, and not ourselves."""
    world = World(None, (HOST4, MAC), (HOST6, MAC))
    world.change((bytes((192, 0, 2, 51)), OUR_MAC, True))
    assert world.frames() == []
    world.table.announce()
    arp, advertisement = world.frames()
    assert arp[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert arp[20:42] == b"\0\1" + MAC + HOST4 + bytes(6) + HOST4
    assert advertisement[:14] == GUEST_MAC + OUR_MAC + b"\x86\xdd"
    assert advertisement[22:54] == OUR_LL + b"\xff\2" + bytes(13) + b"\1"
    assert advertisement[54] == 136
    assert advertisement[58:62] == b"\xa0\0\0\0"
    assert advertisement[62:86] == HOST6 + b"\2\1" + MAC
    world.change((HOST4, OTHER, True), (HOST6, MAC, True))
    assert world.frames() == []
    world.change((HOST4, b"", False))
    world.change((HOST4, OTHER, True))
    (again,) = world.frames()
    assert again[6:12] == OTHER


def test_versions_and_services_that_are_off() -> None:
    configuration = config()
    configuration.v4.enabled = configuration.ndp = False
    world = World(configuration, (HOST4, MAC), (HOST6, MAC))
    world.table.announce()
    assert world.frames() == []


def test_changes_are_looked_at_once_in_a_while() -> None:
    world = World()
    fd = world.source.fileno()
    assert fd in world.loop._handlers
    world.source.changed = [(HOST4, MAC, True)]
    os.write(world.source.waker, b"x")
    world.loop.round(1.0)
    assert world.table.mac_for(HOST4) == MAC
    # It is still readable, but nobody looks.
    assert fd not in world.loop._handlers
    world.later(PERIOD / 2)
    assert fd not in world.loop._handlers
    world.later(PERIOD)
    assert fd in world.loop._handlers
    assert not world.loop._timers


def test_after_a_loss_all_is_read_anew() -> None:
    world = World(None, (HOST4, MAC))
    assert world.source.read == 1
    world.later(60)
    world.source.now = [(HOST6, MAC, True)]
    world.source.changed = None
    world.table._on_event(1)
    assert (world.table.mac_for(HOST4), world.table.mac_for(HOST6)) == (OUR_MAC, MAC)
    # Lost again at once: not so soon, but without another event.
    world.source.now = [(HOST4, OTHER, True)]
    for _ in range(5):
        world.source.changed = None
        world.table._on_event(1)
    assert world.source.read == 2
    world.later(60)
    assert world.source.read == 3
    assert world.table.mac_for(HOST4) == OTHER
    assert world.table.mac_for(HOST6) == OUR_MAC


def test_failure_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning; the next change is another chance."""
    world = World(None, (HOST4, MAC))
    world.source.failure = OSError(errno.ENOMEM, "no")
    world.source.changed = None
    world.later(60)
    world.table._on_event(1)
    assert world.table.mac_for(HOST4) == MAC
    world.source.failure = None
    world.source.now = []
    world.later(60)
    world.change()
    assert world.table.mac_for(HOST4) == OUR_MAC


def test_epoll_that_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "EPOLLIN", 0)
        patch.setattr(Loop, "add", refuse)
        world.table._on_event(1)
        world.later(PERIOD)
    assert world.source.fileno() not in world.loop._handlers
    world.later(PERIOD)
    assert world.source.fileno() in world.loop._handlers
