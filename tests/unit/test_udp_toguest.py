"""Datagrams to the guest: answers, inbound rules, trains."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator

import pytest

from passt.syscalls.sockopt import IP_PKTINFO
from passt.userspace.config.model import Rule
from passt.userspace.link.base import GSO_UDP_L4
from tests.unit.fakes import GUEST_MAC, OUR_MAC, config, run_until
from tests.unit.udp_rig import GATEWAY, GUEST, GUEST_PORT, LOOPBACK_TEXT, Rig, free_port

UDP = 17

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    made: list[Rig] = []

    def make(*rules: Rule, **options: object) -> Rig:
        made.append(Rig(*rules, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def established(rig: Rig, version: int) -> tuple[socket.socket, tuple[str, int]]:
    """A server that the guest has sent one datagram to, and where its answers go."""
    server = rig.socket(version)
    rig.guest_sends(version, server.getsockname()[1], b"hello")
    _, client = server.recvfrom(100)
    return server, client


def test_answer_has_the_addresses_the_guest_used(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = established(rig, version)
    server.sendto(b"answer", client)
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"answer"
    assert (packet.src, packet.dst) == (GATEWAY[version], GUEST[version])
    assert packet.ports == (server.getsockname()[1], GUEST_PORT)
    assert (packet.src_mac, packet.dst_mac, packet.ttl) == (OUR_MAC, GUEST_MAC, 255)


def test_zero_length_answer(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = established(rig, version)
    server.sendto(b"", client)
    server.sendto(b"x", client)
    assert [packet.payload for packet in rig.guest_gets(2)] == [b"", b"x"]


@pytest.mark.parametrize("gso_udp", [True, False], ids=["trains", "single"])
@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_sizes(make_rig: MakeRig, version: int, seed: int, gso_udp: bool) -> None:
    rng = random.Random(seed)
    rig = make_rig(gso_udp=gso_udp)
    server, client = established(rig, version)
    sizes = [rng.choice((0, 1, 17, 18, 100, 100, 100, 1400, 1400, 3000)) for _ in range(70)]
    sent = [bytes([i]) * size for i, size in enumerate(sizes)]
    for payload in sent:
        server.sendto(payload, client)
    assert [packet.payload for packet in rig.guest_gets(70)] == sent


def test_equal_datagrams_become_one_superframe(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = established(rig, version)
    for i in range(40):
        server.sendto(bytes([i]) * 1400, client)
    run_until(rig.loop, lambda: rig.link.sent)
    ((prefix, frame),) = rig.link.sent
    assert (prefix.gso_type, prefix.gso_size) == (GSO_UDP_L4, 1400)
    assert len(frame) == prefix.hdr_len + 40 * 1400
    assert [packet.payload[0] for packet in rig.guest_gets(40)] == list(range(40))


def test_no_superframe_beyond_the_largest_packet(make_rig: MakeRig) -> None:
    rig = make_rig()
    server, client = established(rig, 4)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for i in range(5):
        server.sendto(bytes([i]) * 20000, client)
    run_until(rig.loop, lambda: len(rig.link.sent) == 2)
    assert [prefix.gso_size for prefix, _ in rig.link.sent] == [20000, 20000]
    assert [packet.payload[0] for packet in rig.guest_gets(5)] == list(range(5))


def test_no_superframe_of_datagrams_above_the_mtu(make_rig: MakeRig) -> None:
    configuration = config()
    configuration.mtu = 1500
    rig = make_rig(configuration=configuration)
    server, client = established(rig, 4)
    for size in (1473, 1473, 1472, 1472):
        server.sendto(b"m" * size, client)
    run_until(rig.loop, lambda: len(rig.link.sent) == 3)
    assert [prefix.gso_size for prefix, _ in rig.link.sent] == [0, 0, 1472]
    assert [len(packet.payload) for packet in rig.guest_gets(4)] == [1473, 1473, 1472, 1472]


@pytest.mark.parametrize("gso_udp", [True, False], ids=["trains", "single"])
def test_trains_of_the_host(make_rig: MakeRig, version: int, gso_udp: bool) -> None:
    """What one sendmsg() with UDP_SEGMENT sent arrives joined (UDP_GRO)."""
    rig = make_rig(gso_udp=gso_udp)
    server, client = established(rig, version)
    server.setsockopt(socket.IPPROTO_UDP, 103, 1000)
    train = b"".join(bytes([i]) * 1000 for i in range(30)) + b"tail"
    server.sendto(train, client)
    got = [packet.payload for packet in rig.guest_gets(31)]
    assert got == [bytes([i]) * 1000 for i in range(30)] + [b"tail"]


def test_largest_datagram_is_one_frame(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = established(rig, version)
    size = 65507 if version == 4 else 65527
    server.sendto(b"L" * size, client)
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"L" * size


def test_versions_alternate_without_stale_fields(make_rig: MakeRig) -> None:
    rig = make_rig()
    pairs = [established(rig, 4), established(rig, 6)]
    for length in (5, 300, 7, 300):
        for server, client in pairs:
            server.sendto(b"v" * length, client)
            (packet,) = rig.guest_gets(1)
            assert packet.payload == b"v" * length


def test_guest_with_a_new_mac_gets_frames_there(make_rig: MakeRig) -> None:
    rig = make_rig()
    server, client = established(rig, 4)
    server.sendto(b"1", client)
    rig.guest_gets(1)
    rig.link.guest_mac = bytes(range(6))
    server.sendto(b"2", client)
    (packet,) = rig.guest_gets(1)
    assert packet.dst_mac == bytes(range(6))


def test_link_that_drops_is_no_error(make_rig: MakeRig) -> None:
    rig = make_rig()
    server, client = established(rig, 4)
    rig.link.accept = False
    server.sendto(b"lost", client)
    run_until(rig.loop, lambda: rig.link.tx_dropped)
    rig.link.accept = True
    server.sendto(b"next", client)
    assert rig.guest_gets(1)[0].payload == b"next"


# Inbound rules.


def test_inbound_datagram_and_answer(make_rig: MakeRig, version: int) -> None:
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, 7001))
    client = rig.socket(version)
    client.sendto(b"in", (LOOPBACK_TEXT[version], port))
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"in"
    assert (packet.src, packet.dst) == (GATEWAY[version], GUEST[version])
    assert packet.ports == (client.getsockname()[1], 7001)
    rig.guest_sends(version, client.getsockname()[1], b"out", source_port=7001)
    payload, address = client.recvfrom(100)
    assert (payload, address[:2]) == (b"out", (LOOPBACK_TEXT[version], port))
    assert len(rig.flows()) == 1


def test_answer_comes_from_the_address_contacted(make_rig: MakeRig) -> None:
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port))
    client = rig.socket(4)
    client.sendto(b"in", ("127.0.0.2", port))
    rig.guest_gets(1)
    rig.guest_sends(4, client.getsockname()[1], b"out", source_port=port)
    assert client.recvfrom(100)[1] == ("127.0.0.2", port)


def test_port_65535_and_a_range_that_ends_there(make_rig: MakeRig) -> None:
    rig = make_rig(Rule(UDP, 65534, 65535, 65534, address=bytes((127, 0, 0, 9))))
    client = rig.socket(4)
    for port in (65534, 65535):
        client.sendto(b"edge", ("127.0.0.9", port))
        (packet,) = rig.guest_gets(1)
        assert packet.ports[1] == port


def test_range_keeps_its_offset(make_rig: MakeRig) -> None:
    port = free_port()
    rig = make_rig(Rule(UDP, port, port + 1, 7000, address=bytes((127, 0, 0, 9))))
    client = rig.socket(4)
    client.sendto(b"second", ("127.0.0.9", port + 1))
    assert rig.guest_gets(1)[0].ports[1] == 7001


@pytest.mark.parametrize("enabled", [4, 6])
def test_one_version_only(make_rig: MakeRig, enabled: int) -> None:
    port = free_port()
    configuration = config()
    configuration.v4.enabled = enabled == 4
    configuration.v6.enabled = enabled == 6
    rig = make_rig(Rule(UDP, port, port, port), configuration=configuration)
    client = rig.socket(enabled)
    client.sendto(b"only", (LOOPBACK_TEXT[enabled], port))
    assert rig.guest_gets(1)[0].payload == b"only"
    other = rig.socket(10 - enabled)
    other.connect((LOOPBACK_TEXT[10 - enabled], port))
    other.send(b"nobody")
    with pytest.raises(ConnectionRefusedError):
        other.recv(10)


def test_burst_of_a_new_client_mixed_with_a_second_one(make_rig: MakeRig, version: int) -> None:
    """Nothing between bind() and connect() is lost, and each client's order is kept."""
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port))
    clients = [rig.socket(version), rig.socket(version)]
    for i in range(100):
        for client in clients:
            client.sendto(bytes([i]), (LOOPBACK_TEXT[version], port))
    packets = rig.guest_gets(200)
    for client in clients:
        number = client.getsockname()[1]
        mine = [packet.payload for packet in packets if packet.ports[0] == number]
        assert mine == [bytes([i]) for i in range(100)]
    assert len(rig.flows()) == 2
    rig.settle()


def test_datagrams_that_reached_a_new_socket_before_connect(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client sends while a flow's socket is bound and not connected yet."""
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port))
    first, second = rig.socket(4), rig.socket(4)
    connects: list[object] = []

    class Racing(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            if not connects:
                second.sendto(b"stray 1", ("127.0.0.1", port))
                second.sendto(b"stray 2", ("127.0.0.1", port))
                first.sendto(b"again", ("127.0.0.1", port))
            connects.append(address)
            super().connect(address)

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Racing)
    first.sendto(b"first", ("127.0.0.1", port))
    packets = rig.guest_gets(4)
    by_port = {
        sock.getsockname()[1]: [p.payload for p in packets if p.ports[0] == sock.getsockname()[1]]
        for sock in (first, second)
    }
    assert list(by_port.values()) == [[b"first", b"again"], [b"stray 1", b"stray 2"]]
    second.sendto(b"later", ("127.0.0.1", port))
    assert rig.guest_gets(1)[0].payload == b"later"
    assert len(rig.flows()) == 2


def test_stray_on_a_socket_with_a_pending_error(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's datagram is refused before its socket is drained."""
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port))
    stranger = rig.socket(4)
    closed = rig.closed_port(4)

    class Racing(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            if address[1] == closed:
                stranger.sendto(b"stray", ("127.0.0.1", port))
            super().connect(address)

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Racing)
    rig.guest_sends(4, closed, b"refused", source_port=port)
    rig.udp._drain_fresh()
    packets = sorted(rig.guest_gets(2), key=lambda packet: packet.protocol)
    assert packets[0].l4[:2] == b"\x03\x03"
    assert packets[1].payload == b"stray"
    assert packets[1].ports == (stranger.getsockname()[1], port)
    rig.settle()


def test_packet_information_that_cannot_be_switched_off(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is work in vain, no more."""

    class Stubborn(socket.socket):
        __slots__ = ()

        def setsockopt(self, *args):  # type: ignore[no-untyped-def]
            if args[1:] == (IP_PKTINFO, False):
                raise OSError(92, "Protocol not available")
            super().setsockopt(*args)

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Stubborn)
    rig = make_rig()
    server, client = established(rig, 4)
    rig.settle()
    server.sendto(b"answer", client)
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"answer"]


def test_strays_without_a_rule_are_dropped(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers cannot use the port of a flow that the guest began."""
    rig = make_rig()
    stranger = rig.socket(4)

    class Racing(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            stranger.sendto(b"stranger", ("127.0.0.1", self.getsockname()[1]))
            super().connect(address)

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Racing)
    server, client = established(rig, 4)
    server.sendto(b"answer", client)
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"answer"]
    stranger.sendto(b"late", client)
    rig.settle()
    assert rig.link.sent == []
    assert len(rig.flows()) == 1


def test_group_datagram_keeps_its_destination(make_rig: MakeRig) -> None:
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port, address=bytes((224, 0, 0, 251))))
    # A socket bound to the group gets what this host sends to itself over lo, if it is a member.
    (listener,) = rig.udp._host.listeners[port]
    membership = bytes((224, 0, 0, 251, 127, 0, 0, 1))
    listener.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    client = rig.socket(4)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes((127, 0, 0, 1)))
    client.sendto(b"who?", ("224.0.0.251", port))
    (packet,) = rig.guest_gets(1)
    assert packet.dst == bytes((224, 0, 0, 251))
    assert packet.dst_mac == GUEST_MAC
    rig.settle()
    assert rig.link.sent == []


def test_source_that_has_no_address_for_the_guest_is_dropped(make_rig: MakeRig) -> None:
    """Loopback clients, with neither gateway nor mapping: nobody that the guest could answer."""
    port = free_port()
    configuration = config()
    configuration.v4.gateway = configuration.v4.map_host_loopback = None
    rig = make_rig(Rule(UDP, port, port, port), configuration=configuration)
    client = rig.socket(4)
    client.sendto(b"x", ("127.0.0.1", port))
    rig.settle()
    assert rig.link.sent == []
    assert rig.flows() == []


def test_clients_that_look_alike_have_flows_of_their_own(make_rig: MakeRig) -> None:
    """The guest's answers go to the earliest, and to the next when that has ended."""
    port = free_port()
    rig = make_rig(Rule(UDP, port, port, port))
    number = free_port()
    clients = [rig.socket(4, address, number) for address in ("127.0.0.7", "127.0.0.8")]
    for client in clients:
        client.sendto(b"hi", ("127.0.0.1", port))
        rig.guest_gets(1)
    rig.guest_sends(4, number, b"one", source_port=port)
    assert clients[0].recv(10) == b"one"
    rig.udp.end(rig.flows()[0])
    rig.guest_sends(4, number, b"two", source_port=port)
    assert clients[1].recv(10) == b"two"


def test_privileged_port_is_served_by_the_listening_socket(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Privileges are gone when flows are made: their sockets cannot have the port."""

    def refused(*_arguments: object, **_options: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    port = free_port()
    rig = make_rig(Rule(UDP, port, port, 53))
    monkeypatch.setattr("passt.userspace.udp.base.flow_socket", refused)
    clients = [rig.socket(version), rig.socket(version)]
    for _ in range(2):
        for i, client in enumerate(clients):
            client.sendto(b"query", (LOOPBACK_TEXT[version], port))
            (packet,) = rig.guest_gets(1)
            number = client.getsockname()[1]
            assert packet.ports == (number, 53)
            for answers in ([b"one"], [b"many"] * 3, [b"a", b"bb"]):
                rig.guest_sends(version, number, *answers, source_port=53, ttl=40 + i)
                for answer in answers:
                    payload, address = client.recvfrom(100)
                    assert payload == answer
                    assert address[:2] == (LOOPBACK_TEXT[version], port)
    assert len(rig.flows()) == 2
    for flow in rig.flows():
        rig.udp.end(flow)
    rig.settle()
    clients[0].sendto(b"still there", (LOOPBACK_TEXT[version], port))
    assert rig.guest_gets(1)[0].payload == b"still there"
