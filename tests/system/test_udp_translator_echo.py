"""The echo translator in a network with routers, broken routes and groups.

As in :mod:`tests.system.test_udp_translator`, the translator runs in the test's own process
and the guest is a fake link.  Checksums of all that the guest gets are verified on the way.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from passt.syscalls.ns import setns
from passt.userspace.config.model import Config
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.table import FlowTable
from passt.userspace.icmp import Icmp
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.loop import EPOLLERR, Loop
from tests.system.kit.netns import Netns
from tests.system.kit.topology import (
    ABSENT,
    FAR,
    GATEWAY,
    HOST,
    OWN,
    PROHIBITED,
    REMOTE,
    UNREACHABLE,
    Topology,
)
from tests.unit.fakes import FakeLink, Packet, echo_frame, feed, run_until, settle

pytestmark = pytest.mark.system

GUEST_LL = "fe80::9"
IDENTIFIER = 0x1234


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    """A network of this module's own, as its settings are changed."""
    with Topology() as topology:
        for key in ("ipv4/neigh/eth0/retrans_time_ms", "ipv6/neigh/eth0/retrans_time_ms"):
            topology.host.sysctl(f"net/{key}", 50)
        topology.remote.sysctl("net/ipv4/icmp_echo_ignore_broadcasts", 0)
        yield topology


@pytest.fixture
def host(network: Topology) -> Iterator[Netns]:
    """The host namespace, which the test itself is in."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(network.host.path, os.O_RDONLY)
    try:
        setns(target)
        yield network.host
    finally:
        setns(own)
        os.close(own)
        os.close(target)
        network.processes.stop_all()


class Rig:
    """An echo translator with what pasta would have found out about the host."""

    def __init__(self) -> None:
        self.config = made = Config("pasta")
        for family, version in ((made.v4, 4), (made.v6, 6)):
            family.addr = packed(HOST[version])
            family.gateway = family.map_host_loopback = packed(GATEWAY[version])
            family.ifindex = socket.if_nametoindex("eth0")
        made.v6.our_ll = packed("fe80::1")
        self.loop = Loop()
        self.link = FakeLink()
        self.table = FlowTable()
        self.nat = Nat(made)
        self.icmp = Icmp(made, self.nat, self.loop, self.link, self.table)

    def close(self) -> None:
        for flow in self.table.flows():
            assert isinstance(flow, EchoFlow)
            self.icmp.end(flow)
        self.loop.round(0.0)

    def ping(
        self,
        target: str,
        sequence: int = 1,
        data: bytes = b"",
        *,
        identifier: int = IDENTIFIER,
        source: str = "",
        code: int = 0,
        ttl: int = 64,
    ) -> None:
        """The guest sends one request."""
        source = source or HOST[6 if ":" in target else 4]
        feed(
            self.icmp,
            echo_frame(
                packed(source), packed(target), identifier, sequence, data, code=code, ttl=ttl
            ),
        )

    def gets(self, count: int = 1) -> list[Packet]:
        """The next packets that reach the guest."""
        got: list[Packet] = []

        def enough() -> bool:
            got.extend(self.link.take())
            return len(got) >= count

        run_until(self.loop, enough)
        assert len(got) == count
        return got

    def quiet(self) -> None:
        """Nothing more reaches the guest, and the loop is idle."""
        settle(self.loop)
        assert self.link.sent == []


@pytest.fixture
def rig(host: Netns) -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def check_reply(
    packet: Packet, source: str, sequence: int, data: bytes, identifier: int = IDENTIFIER
) -> None:
    """``packet`` is the right answer to a request."""
    v4 = ":" not in source
    assert (packet.protocol, packet.ttl) == (1 if v4 else 58, 255)
    assert packet.src == packed(source)
    assert packet.l4[:2] == (b"\x00\x00" if v4 else b"\x81\x00")
    assert struct.unpack_from("!HH", packet.l4, 4) == (identifier, sequence)
    assert packet.l4[8:] == data


def check_error(packet: Packet, kind: tuple[int, int], target: str, sequence: int) -> str:
    """``packet`` is an error about our request; returns who sent it."""
    v4 = ":" not in target
    assert (packet.l4[0], packet.l4[1]) == kind
    at = 24 if v4 else 32
    assert packet.l4[at : at + len(packet.dst)] == packed(target)
    at += len(packet.dst)
    assert packet.l4[at] == (8 if v4 else 128)
    assert struct.unpack_from("!HH", packet.l4, at + 4) == (IDENTIFIER, sequence)
    return socket.inet_ntop(socket.AF_INET if v4 else socket.AF_INET6, packet.src)


@pytest.mark.parametrize("where", [REMOTE, FAR, GATEWAY, OWN], ids=["remote", "far", "gw", "own"])
def test_reply(rig: Rig, version: int, where: dict[int, str]) -> None:
    rig.ping(where[version], 3, b"payload")
    check_reply(rig.gets()[0], where[version], 3, b"payload")
    rig.quiet()


def test_all_lengths(rig: Rig, version: int) -> None:
    for size in (*range(71), 1472, 1473, 9000, 60000):
        data = bytes(i & 0xFF for i in range(size))
        rig.ping(REMOTE[version], size & 0xFFFF, data)
        check_reply(rig.gets()[0], REMOTE[version], size & 0xFFFF, data)


def test_identifier_and_sequence_zero(rig: Rig, version: int) -> None:
    rig.ping(REMOTE[version], 0, identifier=0)
    check_reply(rig.gets()[0], REMOTE[version], 0, b"", identifier=0)


def test_nothing_is_suppressed(rig: Rig, version: int) -> None:
    for sequence in (5, 5, 6, 6, 5):
        rig.ping(REMOTE[version], sequence)
        check_reply(rig.gets()[0], REMOTE[version], sequence, b"")


def test_one_identifier_to_two_hosts(rig: Rig, version: int) -> None:
    rig.ping(REMOTE[version], 1, b"remote")
    rig.ping(FAR[version], 1, b"far")
    first, second = sorted(rig.gets(2), key=lambda packet: packet.l4[8:])
    check_reply(first, FAR[version], 1, b"far")
    check_reply(second, REMOTE[version], 1, b"remote")


def test_identifier_that_a_program_of_the_host_uses(rig: Rig, version: int) -> None:
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as ping:
        ping.settimeout(5)
        ping.bind(("" if version == 4 else "::", IDENTIFIER))
        assert ping.getsockname()[1] == IDENTIFIER
        message = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, 0, 77) + b"theirs"
        ping.sendto(message, (REMOTE[version], 0))
        rig.ping(REMOTE[version], 1, b"ours")
        check_reply(rig.gets()[0], REMOTE[version], 1, b"ours")
        assert ping.recv(100)[6:] == struct.pack("!H", 77) + b"theirs"
    rig.quiet()


def test_neighbour_by_link_local_address(rig: Rig, network: Topology) -> None:
    def read() -> str:
        with open("/proc/thread-self/net/if_inet6") as file:
            for line in file:
                address, _, _, scope, _, name = line.split()
                if name == "eth0" and scope == "20":
                    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        raise AssertionError("no link-local address")

    target = network.remote.call(read)
    rig.ping(target, 8, b"near", source=GUEST_LL)
    (packet,) = rig.gets()
    check_reply(packet, target, 8, b"near")
    assert packet.dst == packed(GUEST_LL)


@pytest.mark.parametrize("group", ["224.0.0.1", "ff02::1"])
def test_members_of_a_group_answer_for_themselves(rig: Rig, group: str) -> None:
    rig.ping(group, 4, b"all", ttl=1, source=GUEST_LL if ":" in group else "")
    got: list[Packet] = []

    def remote_answered() -> bool:
        got.extend(rig.link.take())
        return len({packet.src for packet in got}) >= (1 if group == "224.0.0.1" else 2)

    run_until(rig.loop, remote_answered)
    for packet in got:
        assert packet.src[0] not in (0xFF, 224)
        assert packet.l4[8:] == b"all"


# Errors.


def test_traceroute(rig: Rig, version: int) -> None:
    rig.ping(FAR[version], 1, b"x" * 20, ttl=1)
    expired = (11, 0) if version == 4 else (3, 0)
    router = check_error(rig.gets()[0], expired, FAR[version], 1)
    assert router in (GATEWAY[version], REMOTE[version])
    rig.ping(FAR[version], 2, ttl=2)
    check_reply(rig.gets()[0], FAR[version], 2, b"")
    assert rig.table.count == 1
    rig.quiet()


@pytest.mark.parametrize(
    ("where", "codes"),
    [(UNREACHABLE, {4: (3, 1), 6: (1, 0)}), (PROHIBITED, {4: (3, 13), 6: (1, 1)})],
    ids=["unreachable", "prohibited"],
)
def test_router_that_refuses(
    rig: Rig, version: int, where: dict[int, str], codes: dict[int, tuple[int, int]]
) -> None:
    deadline = time.monotonic() + 5
    while not rig.link.sent and time.monotonic() < deadline:
        # Linux limits such errors to one per second, counting others before.
        rig.ping(where[version], 6)
        for _ in range(10):
            rig.loop.round(0.02)
    assert check_error(rig.gets()[0], codes[version], where[version], 6) in (
        GATEWAY[version],
        REMOTE[version],
    )
    rig.quiet()


def test_neighbour_that_does_not_answer(rig: Rig, version: int) -> None:
    for sequence in (1, 2):
        rig.ping(ABSENT[version], sequence)
        expected = (3, 1) if version == 4 else (1, 3)
        source = check_error(rig.gets()[0], expected, ABSENT[version], sequence)
        assert source == GATEWAY[version]
    rig.quiet()


def test_no_route(rig: Rig, version: int, host: Netns) -> None:
    nowhere = "198.18.98.1" if version == 4 else "2001:db8:dead::2"
    host.ip(f"route add unreachable {nowhere}\n")
    rig.ping(nowhere, 2)
    (packet,) = rig.gets()
    kind = (packet.l4[0], packet.l4[1])
    assert kind in ((3, 1), (1, 3), (1, 0))
    assert check_error(packet, kind, nowhere, 2) == GATEWAY[version]
    rig.quiet()


def test_pending_error_does_not_cost_the_next_request(
    rig: Rig, version: int, network: Topology
) -> None:
    rig.ping(FAR[version], 1, ttl=1)
    time.sleep(0.2)
    rig.ping(FAR[version], 2)
    kinds = {packet.l4[0] for packet in rig.gets(2)}
    assert kinds == ({11, 0} if version == 4 else {3, 129})


def test_code_that_the_kernel_refuses(rig: Rig, version: int) -> None:
    rig.ping(REMOTE[version], 1, code=3)
    rig.ping(REMOTE[version], 2)
    check_reply(rig.gets()[0], REMOTE[version], 2, b"")


def test_broadcast_is_dropped(rig: Rig) -> None:
    rig.ping("255.255.255.255")
    rig.ping("198.51.100.255")
    settle(rig.loop)
    assert all(packet.l4[0] != 0 for packet in rig.link.take())


def test_excluded_by_ping_group_range(rig: Rig, version: int, host: Netns) -> None:
    host.sysctl("net/ipv4/ping_group_range", "1 0")
    try:
        rig.ping(REMOTE[version])
        rig.quiet()
        assert rig.table.count == 0
    finally:
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647")
    rig.ping(REMOTE[version], 2)
    check_reply(rig.gets()[0], REMOTE[version], 2, b"")


def test_error_event_without_error(rig: Rig) -> None:
    rig.ping(REMOTE[4])
    rig.gets()
    (flow,) = rig.table.flows()
    assert isinstance(flow, EchoFlow)
    rig.icmp.ready(flow, EPOLLERR)
    assert rig.table.count == 1
    for _ in range(20):
        rig.icmp.ready(flow, EPOLLERR)
    assert rig.table.count == 0


def test_outbound_options(rig: Rig, version: int, network: Topology) -> None:
    """--outbound is the source; a device is not used towards loopback."""
    rig.config.v4.outbound_if = rig.config.v6.outbound_if = "eth0"
    family = rig.config.v4 if version == 4 else rig.config.v6
    family.outbound_addr = packed(OWN[version])
    level = socket.SOCK_RAW
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    watch = network.remote.new_socket(
        socket.AF_INET if version == 4 else socket.AF_INET6, level, protocol
    )
    rig.ping(REMOTE[version], 1, b"source?")
    check_reply(rig.gets()[0], REMOTE[version], 1, b"source?")
    while True:
        message, address = watch.recvfrom(2000)
        if b"source?" in message:
            break
    assert address[0] == OWN[version]
    rig.ping(GATEWAY[version], 1, b"home")
    check_reply(rig.gets()[0], GATEWAY[version], 1, b"home")
