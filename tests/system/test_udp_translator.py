"""The UDP translator in a network with routers, groups, broken routes and small MTUs.

The translator runs in the test's own process, whose thread joins the *host* namespace; the
guest is a fake link, so frames can be anything and are looked at byte by byte.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from passt.syscalls.ns import setns
from passt.syscalls.sockopt import IP_RECVTTL
from passt.userspace.config.model import Config, Rule
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
from tests.unit.fakes import OUR_MAC, Packet
from tests.unit.multicast_rig import MulticastRig
from tests.unit.udp_rig import GUEST_PORT, Rig

pytestmark = pytest.mark.system

PORT = 7777
OUR_LL = "fe80::1"
GUEST_LL = "fe80::9"


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    """A network of this module's own, as its settings are changed."""
    with Topology() as topology:
        for key in ("ipv4/neigh/eth0/retrans_time_ms", "ipv6/neigh/eth0/retrans_time_ms"):
            topology.host.sysctl(f"net/{key}", 50)
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


@pytest.fixture
def remote(network: Topology) -> Netns:
    return network.remote


def configuration() -> Config:
    """What pasta would find out about the host."""
    made = Config("pasta")
    made.our_mac = OUR_MAC
    for family, version in ((made.v4, 4), (made.v6, 6)):
        family.addr = packed(HOST[version])
        family.gateway = family.map_host_loopback = packed(GATEWAY[version])
        family.ifname = "eth0"
        family.ifindex = socket.if_nametoindex("eth0")
    made.v6.our_ll = packed(OUR_LL)
    return made


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(host: Netns) -> Iterator[MakeRig]:
    made: list[Rig] = []

    def make(*rules: Rule, config: Config | None = None) -> Rig:
        made.append(MulticastRig(*rules, configuration=config or configuration()))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


def send(
    rig: Rig, version: int, to: str, *payloads: bytes, port: int = PORT, ttl: int = 64
) -> None:
    """The guest sends from the address that it shares with the host."""
    rig.guest_sends(version, port, *payloads, to=packed(to), source=packed(HOST[version]), ttl=ttl)


def error(rig: Rig, version: int, quoted: str) -> tuple[int, int, str, int]:
    """Type, code, source and second word of the ICMP error that the guest gets next."""
    (packet,) = rig.guest_gets(1)
    assert packet.protocol == (1 if version == 4 else 58)
    assert packet.dst == packed(HOST[version])
    at = 8 + (16 if version == 4 else 24)
    assert packet.l4[at : at + len(packet.dst)] == packed(quoted)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind, code, _, word = struct.unpack_from("!BBHI", packet.l4)
    return kind, code, socket.inet_ntop(family, packet.src), word


# Errors of the network.


def test_traceroute(rig: Rig, version: int, network: Topology) -> None:
    expired = (11, 0) if version == 4 else (3, 0)
    closed = (3, 3) if version == 4 else (1, 4)
    send(rig, version, FAR[version], b"hop 1", ttl=1)
    kind, code, router, _ = error(rig, version, FAR[version])
    assert (kind, code) == expired
    # The router's address is its own, not that of the destination.
    assert router in (GATEWAY[version], REMOTE[version])
    send(rig, version, FAR[version], b"hop 2", ttl=2)
    assert error(rig, version, FAR[version]) == (*closed, FAR[version], 0)
    server = network.far.udp(FAR[version], PORT)
    send(rig, version, FAR[version], b"there", ttl=2)
    assert server.recv(100) == b"there"
    assert len(rig.flows()) == 1
    rig.settle()


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
        send(rig, version, where[version], b"x")
        for _ in range(10):
            rig.loop.round(0.02)
    kind, code, router, _ = error(rig, version, where[version])
    assert (kind, code) == codes[version]
    assert router in (GATEWAY[version], REMOTE[version])
    rig.settle()


def test_neighbour_that_does_not_answer(rig: Rig, version: int) -> None:
    """The host itself reports it: shown as the gateway."""
    send(rig, version, ABSENT[version], b"x")
    expected = (3, 1) if version == 4 else (1, 3)
    assert error(rig, version, ABSENT[version]) == (*expected, GATEWAY[version], 0)
    rig.settle()


def test_no_route(rig: Rig, version: int, host: Netns) -> None:
    nowhere = "198.18.99.1" if version == 4 else "2001:db8:dead::1"
    host.ip(f"route add unreachable {nowhere}\n")
    send(rig, version, nowhere, b"x")
    kind, code, source, _ = error(rig, version, nowhere)
    assert (kind, code) in ((3, 1), (1, 3), (1, 0))
    assert source == GATEWAY[version]
    assert rig.flows() == []


def test_path_mtu(rig: Rig, version: int, network: Topology) -> None:
    server = network.far.udp(FAR[version], PORT)
    network.remote.ip("link set eth1 mtu 1400\n")
    try:
        send(rig, version, FAR[version], b"M" * 1420)
        expected = (3, 4) if version == 4 else (2, 0)
        kind, code, _, mtu = error(rig, version, FAR[version])
        assert (kind, code, mtu) == (*expected, 1400)
        send(rig, version, FAR[version], *[b"M" * 1420] * 3, *[b"m" * 1000] * 3)
        assert [len(server.recv(2000)) for _ in range(6)] == [1420] * 3 + [1000] * 3
        rig.settle()
    finally:
        network.remote.ip("link set eth1 mtu 1500\n")
        host = network.host
        host.run(["ip", f"-{version}", "route", "flush", "cache"])


def test_trains_above_the_mtu_are_fragmented_like_single_datagrams(
    rig: Rig, version: int, remote: Netns
) -> None:
    server = remote.udp(REMOTE[version], PORT)
    send(rig, version, REMOTE[version], *[b"L" * 2000] * 5)
    assert [len(server.recv(4000)) for _ in range(5)] == [2000] * 5
    (flow,) = rig.flows()
    assert flow.gso_limit == 1999
    send(rig, version, REMOTE[version], *[b"s" * 1400] * 20)
    assert [len(server.recv(4000)) for _ in range(20)] == [1400] * 20
    assert flow.gso_limit == 1999
    rig.guest_sends(
        version,
        PORT,
        b"S" * 6100,
        to=packed(REMOTE[version]),
        source=packed(HOST[version]),
        gso_size=2000,
    )
    assert [len(server.recv(4000)) for _ in range(4)] == [2000, 2000, 2000, 100]


def test_trains_cross_a_real_link(rig: Rig, version: int, remote: Netns) -> None:
    server = remote.udp(REMOTE[version], PORT)
    sent = [bytes([i]) * 1400 for i in range(60)]
    send(rig, version, REMOTE[version], *sent)
    got = []
    for _ in sent:
        payload, client = server.recvfrom(4000)
        got.append(payload)
    assert got == sent
    for payload in sent:
        server.sendto(payload, client)
    assert [packet.payload for packet in rig.guest_gets(60)] == sent


# Groups and broadcast.


def member(ns: Netns, group: str, port: int) -> socket.socket:
    """A socket in ``ns`` that gets datagrams to ``group`` on eth0, with their TTL."""
    sock = ns.udp(family=socket.AF_INET6 if ":" in group else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    index: int = ns.call(lambda: socket.if_nametoindex("eth0"))
    if ":" in group:
        sock.bind(("::", port))
        membership = packed(group) + struct.pack("=I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    else:
        sock.bind(("0.0.0.0", port))
        membership = packed(group) + struct.pack("=4si", bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    return sock


@pytest.mark.parametrize("ttl", [1, 4])
@pytest.mark.parametrize("group", ["239.255.255.250", "ff02::fb", "ff05::c"])
def test_group_gets_what_the_guest_sends(rig: Rig, remote: Netns, group: str, ttl: int) -> None:
    sock = member(remote, group, 1900)
    send(rig, 6 if ":" in group else 4, group, b"NOTIFY", port=1900, ttl=ttl)
    payload, ancillary, _, address = sock.recvmsg(100, 100)
    assert payload == b"NOTIFY"
    assert struct.unpack("=i", ancillary[0][2])[0] == ttl
    assert address[1] == GUEST_PORT
    rig.settle()
    assert rig.link.sent == []


@pytest.mark.parametrize("target", ["255.255.255.255", "198.51.100.255"])
def test_broadcast(rig: Rig, remote: Netns, target: str) -> None:
    sock = remote.udp("0.0.0.0", PORT)
    send(rig, 4, target, b"anybody?")
    assert sock.recvfrom(100) == (b"anybody?", (HOST[4], GUEST_PORT))


@pytest.mark.parametrize("group", ["224.0.0.251", "ff02::fb", "255.255.255.255"])
def test_inbound_group_keeps_its_address(
    make_rig: MakeRig, host: Netns, remote: Netns, group: str
) -> None:
    version = 6 if ":" in group else 4
    address = bytes(16 if version == 6 else 4)
    rig = make_rig(Rule(17, 5353, 5353, 5353, address=address))
    rig.nat.observe6(packed(GUEST_LL))
    membership = None if group == "255.255.255.255" else member(host, group, 5354)
    client = remote.udp(family=socket.AF_INET6 if version == 6 else socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    client.sendto(b"who?", (group, 5353))
    (packet,) = rig.guest_gets(1)
    assert packet.dst == packed(group)
    assert packet.ports[1] == 5353
    assert packet.payload == b"who?"
    # Once, and then silence.
    rig.settle()
    assert rig.link.sent == []
    if membership is not None:
        membership.close()


@pytest.mark.parametrize("group", ["224.0.0.251", "ff02::fb"])
def test_guest_does_not_hear_itself(make_rig: MakeRig, host: Netns, group: str) -> None:
    """The kernel loops what the host sends to a group back to the host."""
    version = 6 if ":" in group else 4
    rig = make_rig(Rule(17, 5353, 5353, 5353, address=bytes(16 if version == 6 else 4)))
    own_member = member(host, group, 5353)
    rig.guest_sends(
        version, 5353, b"mine", to=packed(group), source=packed(HOST[version]), source_port=5353
    )
    assert own_member.recv(100) == b"mine"
    rig.settle()
    assert rig.link.sent == []
    assert len(rig.flows()) == 1


# Addresses.


def test_inbound_from_the_network(make_rig: MakeRig, remote: Netns, version: int) -> None:
    rig = make_rig(Rule(17, 6001, 6001, 7001))
    client = remote.udp(REMOTE[version])
    client.sendto(b"in", (HOST[version], 6001))
    (packet,) = rig.guest_gets(1)
    assert (packet.src, packet.dst) == (packed(REMOTE[version]), packed(HOST[version]))
    assert packet.ports == (client.getsockname()[1], 7001)
    answer(rig, version, packet, b"out")
    payload, address = client.recvfrom(100)
    assert (payload, address[:2]) == (b"out", (HOST[version], 6001))


def answer(rig: Rig, version: int, packet: Packet, *payloads: bytes) -> None:
    """The guest answers the sender of ``packet``."""
    source_port, destination_port = packet.ports
    rig.guest_sends(
        version,
        source_port,
        *payloads,
        to=packet.src,
        source=packet.dst,
        source_port=destination_port,
    )


def test_answer_leaves_from_the_address_contacted(
    make_rig: MakeRig, remote: Netns, version: int
) -> None:
    rig = make_rig(Rule(17, 6001, 6001, 7001))
    client = remote.udp(REMOTE[version])
    for target in (OWN[version], HOST[version]):
        client.sendto(b"in", (target, 6001))
        (packet,) = rig.guest_gets(1)
        # Both look the same to the guest: end the first, or it would get all answers.
        answer(rig, version, packet, b"out")
        assert client.recvfrom(100)[1][:2] == (target, 6001)
        rig.udp.end(rig.flows()[0])
        rig.settle()


def test_bindv6only_does_not_matter(make_rig: MakeRig, host: Netns, remote: Netns) -> None:
    host.sysctl("net/ipv6/bindv6only", 1)
    try:
        rig = make_rig(Rule(17, 6001, 6001, 7001))
    finally:
        host.sysctl("net/ipv6/bindv6only", 0)
    for version in (4, 6):
        client = remote.udp(REMOTE[version])
        client.sendto(b"in", (HOST[version], 6001))
        assert rig.guest_gets(1)[0].payload == b"in"


def test_wildcards_of_both_versions_can_be_listened_on(make_rig: MakeRig, remote: Netns) -> None:
    rig = make_rig(
        Rule(17, 6001, 6001, 7004, address=bytes(4)), Rule(17, 6001, 6001, 7006, address=bytes(16))
    )
    for version in (4, 6):
        client = remote.udp(REMOTE[version])
        client.sendto(b"in", (HOST[version], 6001))
        assert rig.guest_gets(1)[0].ports[1] == 7000 + version


def link_local(ns: Netns) -> str:
    """The link-local address of eth0 in ``ns``."""

    def read() -> str:
        with open("/proc/thread-self/net/if_inet6") as file:
            for line in file:
                address, _, _, scope, _, name = line.split()
                if name == "eth0" and scope == "20":
                    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        raise AssertionError("no link-local address")

    return ns.call(read)


def test_link_local(make_rig: MakeRig, host: Netns, remote: Netns) -> None:
    rig = make_rig(Rule(17, 6001, 6001, 7001))
    rig.nat.observe6(packed(GUEST_LL))
    theirs = link_local(remote)
    index: int = remote.call(lambda: socket.if_nametoindex("eth0"))
    sock = remote.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((theirs, PORT, 0, index))
    rig.guest_sends(6, PORT, b"out", to=packed(theirs), source=packed(GUEST_LL))
    payload, address = sock.recvfrom(100)
    assert payload == b"out"
    sock.sendto(b"back", address)
    (packet,) = rig.guest_gets(1)
    assert (packet.src, packet.dst) == (packed(theirs), packed(GUEST_LL))
    sock.sendto(b"in", (link_local(host), 6001, 0, index))
    (packet,) = rig.guest_gets(1)
    assert (packet.src, packet.dst) == (packed(theirs), packed(GUEST_LL))
    answer(rig, 6, packet, b"answer")
    payload, address = sock.recvfrom(100)
    assert (payload, address[1]) == (b"answer", 6001)


def test_outbound_device_is_not_used_for_loopback(make_rig: MakeRig, version: int) -> None:
    made = configuration()
    made.v4.outbound_if = made.v6.outbound_if = "eth0"
    rig = make_rig(config=made)
    server = rig.socket(version)
    rig.guest_sends(
        version,
        server.getsockname()[1],
        b"home",
        to=packed(GATEWAY[version]),
        source=packed(HOST[version]),
    )
    assert server.recv(100) == b"home"


def test_outbound_options_by_version(make_rig: MakeRig, remote: Netns) -> None:
    """--outbound-if6 leaves IPv4 alone; --outbound is the source address."""
    made = configuration()
    made.v6.outbound_if = "eth0"
    made.v4.outbound_addr = packed(OWN[4])
    rig = make_rig(config=made)
    server = remote.udp(REMOTE[4], PORT)
    send(rig, 4, REMOTE[4], b"x")
    assert server.recvfrom(100) == (b"x", (OWN[4], GUEST_PORT))
    send(rig, 6, REMOTE[6], b"y")
    devices = [
        flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
        for flow in rig.flows()
    ]
    assert devices == [b"", b"eth0"]


# Privileged ports without privileges.


@pytest.fixture
def drop_privileges() -> Iterator[Callable[[], None]]:
    """A function that makes the test an ordinary user until its end."""
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


def test_low_source_port_is_replaced(
    rig: Rig, remote: Netns, version: int, drop_privileges: Callable[[], None]
) -> None:
    server = remote.udp(REMOTE[version], PORT)
    drop_privileges()
    rig.guest_sends(
        version,
        PORT,
        b"ntp",
        to=packed(REMOTE[version]),
        source=packed(HOST[version]),
        source_port=123,
    )
    payload, address = server.recvfrom(100)
    assert payload == b"ntp"
    assert address[1] >= 1024
    server.sendto(b"time", address)
    (packet,) = rig.guest_gets(1)
    assert packet.ports == (PORT, 123)


def test_low_port_is_served_after_privileges_are_gone(
    make_rig: MakeRig, remote: Netns, version: int, drop_privileges: Callable[[], None]
) -> None:
    rig = make_rig(Rule(17, 53, 53, 53))
    client = remote.udp(REMOTE[version])
    drop_privileges()
    for target in (HOST[version], OWN[version]):
        client.sendto(b"query", (target, 53))
        (packet,) = rig.guest_gets(1)
        answer(rig, version, packet, b"answer", b"answer", b"last")
        for expected in (b"answer", b"answer", b"last"):
            payload, address = client.recvfrom(100)
            assert (payload, address[:2]) == (expected, (target, 53))
        rig.udp.end(rig.flows()[0])
        rig.settle()
