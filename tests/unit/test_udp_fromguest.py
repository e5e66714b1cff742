"""Datagrams from the guest, over real loopback sockets."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterator

import pytest

from passt.syscalls.sockopt import IP_RECVTTL
from passt.userspace.flow import nat
from passt.userspace.wire import drops, ethernet
from tests.unit.fakes import GUEST_MAC, OUR_MAC, ip_frame, udp_frame
from tests.unit.udp_rig import GATEWAY, GUEST, GUEST_PORT, LOOPBACK_TEXT, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def receive(sock: socket.socket, count: int) -> list[bytes]:
    """The next ``count`` datagrams; nothing must be behind them."""
    got = [sock.recv(65536) for _ in range(count)]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(65536)
    sock.settimeout(5)
    return got


def test_source_port_is_kept(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    rig.guest_sends(version, server.getsockname()[1], b"query")
    payload, address = server.recvfrom(100)
    assert (payload, address[:2]) == (b"query", (LOOPBACK_TEXT[version], GUEST_PORT))


def test_different_datagrams_of_one_batch_arrive_once_in_order(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    rig.guest_sends(version, server.getsockname()[1], b"one", b"two", b"three")
    assert receive(server, 3) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("seed", range(8))
def test_any_mix_of_sizes_keeps_boundaries_and_order(rig: Rig, version: int, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice((0, 1, 7, 100, 100, 100, 100, 1400, 1400, 3000)) for _ in range(60)]
    sent = [bytes([i]) * size for i, size in enumerate(sizes)]
    server = rig.socket(version)
    rig.guest_sends(version, server.getsockname()[1], *sent)
    assert receive(server, 60) == sent


def test_queries_reach_the_hosts_resolver(
    rig: Rig, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = rig.socket(version, {4: "127.0.0.53", 6: "::1"}[version])
    port = server.getsockname()[1]
    monkeypatch.setattr(nat, "DNS_PORTS", (port,))  # not privileged ones
    family = rig.config.v4 if version == 4 else rig.config.v6
    family.dns_match = match = {4: b"\xa9\xfe\1\1", 6: b"\xfd" + bytes(14) + b"\1"}[version]
    family.dns_host = {4: b"\x7f\0\0\x35", 6: bytes(15) + b"\1"}[version]
    rig.guest_sends(version, port, b"query", to=match)
    query, client = server.recvfrom(100)
    server.sendto(b"answer", client)
    (answer,) = rig.guest_gets(1)
    assert (query, answer.payload, answer.src) == (b"query", b"answer", match)
    assert answer.ports == (port, GUEST_PORT)


def test_no_resolver_for_a_query(rig: Rig, version: int) -> None:
    family = rig.config.v4 if version == 4 else rig.config.v6
    family.dns_match = GATEWAY[version]
    rig.guest_sends(version, 53, b"query")
    (error,) = rig.guest_gets(1)
    assert error.l4[:2] == {4: b"\3\3", 6: b"\1\4"}[version]
    assert error.src == GATEWAY[version]
    assert rig.flows() == []


def test_zero_length(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    rig.guest_sends(version, server.getsockname()[1], b"", b"", b"x")
    assert receive(server, 3) == [b"", b"", b"x"]


def test_largest_datagrams(rig: Rig, version: int) -> None:
    size = 65493 if version == 4 else 65473
    server = rig.socket(version)
    for _ in range(3):
        rig.guest_sends(version, server.getsockname()[1], b"y" * size)
        assert receive(server, 1) == [b"y" * size]


def test_long_trains_are_all_delivered(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    for first in range(0, 3000, 60):
        sent = [i.to_bytes(2, "big") * 20 for i in range(first, first + 60)]
        rig.guest_sends(4, port, *sent)
        assert receive(server, 60) == sent


def test_trains_leave_in_one_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting(socket.socket):
        __slots__ = ()

        def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def]
            calls.append(len(buffers))
            return super().sendmsg(buffers, *rest)

        def send(self, payload, *rest):  # type: ignore[no-untyped-def]
            calls.append(1)
            return super().send(payload, *rest)

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Counting)
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], *[b"a" * 500] * 50, b"b" * 20, b"c" * 500)
    receive(server, 52)
    assert calls == [51, 1]


def test_trains_of_small_datagrams_have_at_most_64(rig: Rig) -> None:
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], *[b"z"] * 150)
    assert receive(server, 150) == [b"z"] * 150


def test_superframe_is_cut(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    train = b"".join(bytes([i]) * 1000 for i in range(20)) + b"end"
    rig.guest_sends(version, server.getsockname()[1], train, gso_size=1000)
    assert receive(server, 21) == [bytes([i]) * 1000 for i in range(20)] + [b"end"]


@pytest.mark.parametrize("size", [1, 3, 999])
def test_superframe_of_many_small_datagrams(rig: Rig, size: int) -> None:
    server = rig.socket(4)
    train = bytes(range(128))
    rig.guest_sends(4, server.getsockname()[1], train, gso_size=size)
    expected = [train[i : i + size] for i in range(0, 128, size)]
    assert receive(server, len(expected)) == expected


@pytest.mark.parametrize(("size", "length"), [(1, 129), (1, 60000), (400, 51201)])
def test_superframe_of_more_datagrams_than_kernels_make_is_dropped(
    rig: Rig, version: int, size: int, length: int
) -> None:
    """A frame of 64 KiB in datagrams of one byte kept everybody waiting for 0.1 s."""
    server = rig.socket(version)
    port = server.getsockname()[1]
    dropped = drops.counts[drops.UDP_TRAIN]
    rig.guest_sends(version, port, bytes(length), gso_size=size)
    assert not rig.flows()
    rig.guest_sends(version, port, b"next")
    rig.guest_sends(version, port, bytes(length), gso_size=size)
    assert receive(server, 1) == [b"next"]
    assert drops.counts[drops.UDP_TRAIN] == dropped + 2


def test_superframe_between_datagrams_keeps_its_place(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    first, second = (
        udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, port, payload)
        for payload in (b"1" * 50, b"2" * 50)
    )
    link = rig.link
    kept = []
    for frame, size in ((first, 0), (second, 20)):
        buf = memoryview(bytearray(frame))
        kept.append(buf)
        link.rx_gso_size = size
        rig.udp.input(buf, 0, 34, len(frame), 4)
    link.rx_gso_size = 0
    rig.udp.batch_end()
    assert receive(server, 4) == [b"1" * 50, b"2" * 20, b"2" * 20, b"2" * 10]


def test_superframe_of_the_size_of_the_train_before_is_not_taken_for_one_datagram(
    rig: Rig,
) -> None:
    server = rig.socket(4)
    frame = udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, server.getsockname()[1], b"s" * 40)
    for size in (0, 20):
        rig.link.rx_gso_size = size
        rig.udp.input(memoryview(bytearray(frame)), 0, 34, len(frame), 4)
    rig.link.rx_gso_size = 0
    rig.udp.batch_end()
    assert receive(server, 3) == [b"s" * 40, b"s" * 20, b"s" * 20]


def test_interleaved_flows_each_keep_their_order(rig: Rig) -> None:
    servers = [rig.socket(4), rig.socket(4)]
    frames = [
        udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, servers[i % 2].getsockname()[1], bytes([i]))
        for i in range(40)
    ]
    rig.feed(*frames)
    for number, server in enumerate(servers):
        assert receive(server, 20) == [bytes([i]) for i in range(number, 40, 2)]


def test_ip_options_and_padding_are_skipped(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    plain = udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, port, b"plain")
    options = udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, port, b"behind", options=b"\x01" * 8)
    rig.feed(plain.ljust(200, b"\xee"), options)
    assert receive(server, 2) == [b"plain", b"behind"]
    assert len(rig.flows()) == 1


def test_ipv6_extension_headers_are_skipped(rig: Rig) -> None:
    server = rig.socket(6)
    port = server.getsockname()[1]
    plain = udp_frame(GUEST[6], GATEWAY[6], GUEST_PORT, port, b"plain")
    datagram = udp_frame(GUEST[6], GATEWAY[6], GUEST_PORT, port, b"behind")[54:]
    hop_by_hop = b"\x11\x00\x01\x04\x00\x00\x00\x00"
    rig.feed(plain, ip_frame(GUEST[6], GATEWAY[6], 0, hop_by_hop + datagram))
    assert receive(server, 2) == [b"plain", b"behind"]
    assert len(rig.flows()) == 1


def test_ttl_is_set_when_it_changes_and_trains_do_not_mix(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    port = server.getsockname()[1]
    level, wanted, kind = (
        (socket.IPPROTO_IP, IP_RECVTTL, socket.IP_TTL)
        if version == 4
        else (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT)
    )
    server.setsockopt(level, wanted, 1)
    frames = [
        udp_frame(GUEST[version], GATEWAY[version], GUEST_PORT, port, b"t" * 10, ttl)
        for ttl in (10, 11, 10, 10, 12)
    ]
    rig.feed(*frames)
    seen = []
    for _ in frames:
        _, ancillary, _, _ = server.recvmsg(100, 100)
        seen += [int.from_bytes(data[:4], sys.byteorder) for _, k, data in ancillary if k == kind]
    assert seen == [10, 11, 10, 10, 12]


def test_ttl_zero_keeps_the_last_one(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    rig.guest_sends(4, port, b"a", ttl=33)
    rig.guest_sends(4, port, b"b", ttl=0)
    assert receive(server, 2) == [b"a", b"b"]
    (flow,) = rig.flows()
    assert flow.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 33


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_port": 0}, "source port 0"),
        ({"source": bytes(4)}, "unspecified source"),
        ({"to": bytes(4)}, "unspecified destination"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_endpoints(rig: Rig, change: dict[str, object], reason: str) -> None:
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], b"x", **change)  # type: ignore[arg-type]
    assert rig.flows() == []
    rig.guest_sends(4, 0, b"x")
    assert rig.flows() == []
    rig.guest_sends(4, server.getsockname()[1], b"good")
    assert receive(server, 1) == [b"good"]


def test_refused_endpoints_of_ipv6(rig: Rig) -> None:
    rig.guest_sends(6, 9, b"x", source=bytes(16))
    rig.guest_sends(6, 9, b"x", to=bytes(16))
    rig.guest_sends(6, 9, b"x", source_port=0)
    assert rig.flows() == []


def test_two_guest_addresses_are_two_flows(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    frames = [
        udp_frame(bytes((192, 0, 2, last)), GATEWAY[4], GUEST_PORT, port, bytes([last]))
        for last in (10, 11, 10)
    ]
    rig.feed(*frames)
    assert sorted(receive(server, 3)) == [b"\x0a", b"\x0a", b"\x0b"]
    assert [flow.guest_addr[3] for flow in rig.flows()] == [10, 11]


def test_source_port_that_is_taken_is_replaced(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    holder = rig.socket(version)
    taken = holder.getsockname()[1]
    rig.guest_sends(version, server.getsockname()[1], b"query", source_port=taken)
    payload, address = server.recvfrom(100)
    assert payload == b"query"
    assert address[1] != taken
    server.sendto(b"answer", address)
    (packet,) = rig.guest_gets(1)
    assert packet.ports == (server.getsockname()[1], taken)
    assert packet.payload == b"answer"


def test_socket_never_talks_to_itself(rig: Rig) -> None:
    """A server on 127.0.0.1 that shares its port: the guest's own port must not shadow it."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.settimeout(5)
    with server:
        port = server.getsockname()[1]
        rig.guest_sends(4, port, b"time?", source_port=port)
        payload, address = server.recvfrom(100)
        assert payload == b"time?"
        assert address[1] != port
        server.sendto(b"now", address)
        (packet,) = rig.guest_gets(1)
        assert packet.ports == (port, port)


def test_buffers_are_kept_only_when_asked_for(rig: Rig) -> None:
    server = rig.socket(4)
    frame = udp_frame(GUEST[4], GATEWAY[4], GUEST_PORT, server.getsockname()[1], b"a" * 30)
    buf = memoryview(bytearray(frame))
    assert rig.udp.input(buf, 0, 34, len(frame), 4) is True
    rig.link.rx_gso_size = 10
    assert rig.udp.input(buf, 0, 34, len(frame), 4) is False
    rig.link.rx_gso_size = 0
    rig.udp.batch_end()
    assert receive(server, 4) == [b"a" * 30] + [b"a" * 10] * 3


def test_frames_are_built_as_expected() -> None:
    frame = udp_frame(GUEST[4], GATEWAY[4], 1, 2, b"")
    assert ethernet.parse(frame, 0, len(frame)) == (ethernet.ETH_P_IP, GUEST_MAC, OUR_MAC)
