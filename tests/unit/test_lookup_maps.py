"""What user space writes for the programs of lookup.bpf.c, and how it reads them; no kernel."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passt.kernel.ebpf import lookup as module
from passt.kernel.ebpf.acquire import UnavailableError
from passt.kernel.ebpf.lookup import PortMaps
from passt.kernel.ebpf.lookup_layout import (
    COUNT,
    IPV4,
    IPV6,
    NAMES,
    NUMBERS,
    OPEN,
    PORTS,
    RING,
    SLOTS,
    Place,
)
from passt.syscalls import bpf
from passt.userspace.config.model import Config
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, Rule
from passt.userspace.forward import gates
from passt.userspace.tcp import shared
from passt.userspace.tcp.accept import Acceptors

PAGE = 4096
LOOPBACK = socket.inet_aton("127.0.0.1")
OTHER = socket.inet_aton("192.0.2.1")
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")


class Memory:
    """The memory of maps, by descriptor and offset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.areas: dict[tuple[int, int], bytearray] = {}
        self.updates: list[tuple[int, bytes, bytes]] = []
        self.links: list[tuple[int, int]] = []
        monkeypatch.setattr(bpf, "map_memory", self.map)
        monkeypatch.setattr(bpf, "map_update", lambda *args: self.updates.append(args))
        monkeypatch.setattr(bpf, "link_create", self.link)
        self.fds = [os.open("/dev/null", os.O_RDONLY) for _ in NAMES]
        program, link = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
        self.maps = PortMaps(self.fds, program, link)

    def map(self, fd: int, size: int, *, writable: bool, offset: int = 0) -> memoryview:
        assert offset % PAGE == 0
        area = self.areas[fd, offset] = bytearray((size + 7) // 8 * 8)
        view = memoryview(area).cast("Q")
        return view if writable else view.toreadonly()

    def link(self, program: int, target: int, attach_type: int) -> int:
        assert attach_type == bpf.SK_LOOKUP
        self.links.append((program, target))
        return os.open("/dev/null", os.O_RDONLY)

    def area(self, name: str, offset: int = 0) -> bytearray:
        return self.areas[self.fds[NAMES.index(name)], offset]

    def number(self, name: str, slot: int, port: int) -> int:
        (value,) = struct.unpack_from("=H", self.area(name), slot * NUMBERS + 2 * port)
        return int(value)

    def count(self, slot: int, port: int, value: int) -> None:
        """As the program does when somebody begins to listen."""
        struct.pack_into("=H", self.area("taken"), slot * NUMBERS + 2 * port, value)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    made = Memory(monkeypatch)
    yield made
    made.maps.close()


def test_listeners_are_few(memory: Memory) -> None:
    taken = [memory.maps.take() for _ in range(SLOTS)]
    assert sorted(slot for slot in taken if slot is not None) == list(range(SLOTS))
    assert memory.maps.take() is None
    memory.maps.vacate(2)
    assert memory.maps.take() == 2


def test_where_a_listener_is(memory: Memory) -> None:
    """struct listener: namespace, versions, interface, mask, port, address, mask."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        (cookie,) = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 71, 8))
        memory.maps.settle(1, Place(IPV4, LOOPBACK, 5), sock)
        port = sock.getsockname()[1]
        memory.maps.admit(1, sock)
        fd = memory.fds[NAMES.index("socks")]
        assert memory.updates == [(fd, struct.pack("=I", 1), struct.pack("=I", sock.fileno()))]
    layout = struct.Struct("=QIIII16sI4x")
    found = layout.unpack_from(memory.area("listeners"), layout.size)
    all_bits = 0xFFFFFFFF
    assert found == (cookie, IPV4, 5, all_bits, port, LOOPBACK + bytes(12), all_bits)
    assert not any(memory.area("listeners")[: layout.size])
    memory.maps.vacate(1)
    assert layout.unpack_from(memory.area("listeners"), layout.size)[1] == 0


def test_masks_of_a_wildcard() -> None:
    element = Place(IPV4 | IPV6).pack(1, 2)
    assert struct.unpack("=QIIII16sI4x", element) == (1, 3, 0, 0, 2, bytes(16), 0)


@pytest.mark.parametrize(
    "place",
    [
        Place(IPV4, LOOPBACK, 3),
        Place(IPV6, LOOPBACK6),
        Place(IPV4 | IPV6),
        Place(IPV4, bytes(4)),
    ],
)
def test_place_and_back(place: Place) -> None:
    found = Place.unpack(place.pack(7, 8))
    assert (found.versions, found.address, found.ifindex) == (
        place.versions,
        place.address,
        place.ifindex,
    )


@pytest.mark.parametrize(
    ("one", "other", "meeting"),
    [
        (Place(IPV4), Place(IPV6), False),
        (Place(IPV4 | IPV6), Place(IPV6, LOOPBACK6), True),
        (Place(IPV4, LOOPBACK), Place(IPV4, OTHER), False),
        (Place(IPV4, LOOPBACK), Place(IPV4, bytes(4)), True),
        (Place(IPV4, b"", 1), Place(IPV4, b"", 2), False),
        (Place(IPV4, b"", 1), Place(IPV4, LOOPBACK), True),
    ],
)
def test_places_that_meet(one: Place, other: Place, meeting: bool) -> None:
    assert one.meets(other) == other.meets(one) == meeting


@pytest.mark.parametrize("slot", [0, SLOTS - 1])
def test_ports_open_and_close(memory: Memory, slot: int) -> None:
    maps = memory.maps
    memory.count(slot, 101, 5)
    memory.count(slot, 102, COUNT)
    maps.open(slot, 100, 102, maps.numbers(slot))
    maps.open(slot, PORTS - 1, PORTS - 1, maps.numbers(slot))
    ports = (99, 100, 101, 102, 103, PORTS - 1)
    numbers = [memory.number("open", slot, port) for port in ports]
    assert numbers == [0, OPEN, OPEN | 5, OPEN | COUNT, 0, OPEN]
    others = [n for n in range(SLOTS) if n != slot]
    assert not any(memory.number("open", other, port) for other in others for port in ports)
    maps.shut(slot, 100, 101)
    assert [memory.number("open", slot, port) for port in ports[:4]] == [0, 0, 0, OPEN | COUNT]
    assert maps.take() is not None
    maps.vacate(slot)
    assert not any(memory.area("open"))


def test_ports_that_others_take(memory: Memory) -> None:
    maps = memory.maps
    maps.open(3, 80, 81, maps.numbers(3))
    assert not maps.overtaken(3, 80)
    memory.count(3, 80, 1)
    memory.count(3, 82, 1)
    assert maps.overtaken(3, 80)
    assert not maps.overtaken(3, 81)
    # It was not open.
    assert not maps.overtaken(3, 82)
    assert maps.all_overtaken(3) == [80]
    assert maps.all_overtaken(2) == []
    maps.open(3, 80, 80, maps.numbers(3))
    assert not maps.overtaken(3, 80)


def test_number_that_is_older_does_not_open(memory: Memory) -> None:
    """Somebody listened between the look at the numbers and now."""
    maps = memory.maps
    before = maps.numbers(0)
    memory.count(0, 80, 1)
    maps.open(0, 80, 80, before)
    assert maps.overtaken(0, 80)


def ring(memory: Memory, records: list[int]) -> None:
    """The kernel's side of the ring: ``records`` are there to be read."""
    for number, record in enumerate(records):
        struct.pack_into("=IIQ", memory.area("bell", PAGE), PAGE + 16 * number, 8, 0, record)
    struct.pack_into("=Q", memory.area("bell", PAGE), 0, 16 * len(records))


def test_bell(memory: Memory) -> None:
    assert memory.maps.rung() == ([], False)
    ring(memory, [0 << 16 | 80, 3 << 16 | 65535])
    assert memory.maps.rung() == ([(0, 80), (3, 65535)], False)
    assert memory.maps.rung() == ([], False)


def test_bell_that_is_full(memory: Memory) -> None:
    ring(memory, [1 << 16 | port for port in range(RING // 16 - 1)])
    records, more = memory.maps.rung()
    assert (len(records), more) == (RING // 16 - 1, True)


def test_attached_for_a_while(memory: Memory) -> None:
    memory.maps.serve(17)
    memory.maps.serve_own()
    assert memory.links[0][1] == 17
    assert len({program for program, _ in memory.links}) == 1
    memory.maps.leave()


# Connections.


class FakeOwner(Acceptors):
    """Acceptors that only note what they are given."""

    def __init__(self) -> None:
        self.loop = None  # type: ignore[assignment]
        self.taken: list[tuple[object, ...]] = []

    def accepted(self, *words: object) -> bool:
        self.taken.append(words)
        return False


def test_connection_gets_the_rule_of_its_port() -> None:
    rule = Rule(IPPROTO_TCP, 1, 65535, 1)
    owner = FakeOwner()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        front = shared.Shared(owner, {port: rule}.get)
        with socket.create_connection(server.getsockname()):
            sock, _ = server.accept()
            assert front.accepted(sock, (LOOPBACK, 5), rule, 0, HOST) is False
            assert owner.taken == [(sock, (LOOPBACK, 5), rule, port, HOST)]
            sock.close()


def test_connection_to_a_port_that_was_given_up_is_reset() -> None:
    owner = FakeOwner()
    rule = Rule(IPPROTO_TCP, 1, 2, 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        front = shared.Shared(owner, {}.get)
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            sock, _ = server.accept()
            assert front.accepted(sock, (LOOPBACK, 5), rule, 0, HOST) is True
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert owner.taken == []


# What start-up makes of it.


@pytest.mark.parametrize(
    ("rules", "control", "level"),
    [
        ([Rule(IPPROTO_TCP, 1, 1000, 1)], False, "warn"),
        ([Rule(IPPROTO_TCP, 1, 999, 1)], True, "info"),
        ([Rule(IPPROTO_TCP, 1, 999, 1)], False, ""),
    ],
    ids=["wanted", "may come", "nobody"],
)
def test_gate_that_cannot_be_had(
    rules: list[Rule], control: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(
        gates.log, "emit", lambda level, text, *args: lines.append((level, text % args))
    )
    monkeypatch.setattr(gates, "acquire", refusing("no privilege to load a program"))
    config = Config("pasta")
    config.rules = rules
    made = gates.Gates(config, control=control, compile_first=False)
    assert not made
    expected = {"warn": gates.log.WARNING, "info": gates.log.INFO}
    text = (
        "Large ranges of ports: a socket for each port, as sk_lookup is not available: "
        "no privilege to load a program"
    )
    assert lines == ([(expected[level], text)] if level else [])


def refusing(why: str) -> Callable[..., object]:
    def acquire(*, compile_first: bool) -> object:
        raise UnavailableError(why)

    return acquire


def test_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.kernels, "OLDEST", (999, 0, 0))
    with pytest.raises(UnavailableError, match=r"kernel too old: .*, at least 999.0 needed"):
        module.acquire(compile_first=False)


def test_root_of_control_groups_is_one_for_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not if somebody, such as a security module, keeps us from looking."""
    fd = os.open(tmp_path, os.O_RDONLY)
    assert module._is_root(fd)

    def refuse(*_words: object, **_options: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        assert not module._is_root(fd)
    (tmp_path / "cgroup.type").touch()
    assert not module._is_root(fd)
    os.close(fd)
