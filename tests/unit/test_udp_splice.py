"""Datagrams that bypass the link: addresses, boundaries, order."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from passt.syscalls.sockopt import UDP_GRO, UDP_SEGMENT
from passt.userspace.config.model import Rule
from tests.unit.udp_rig import FAMILY, LOOPBACK_TEXT
from tests.unit.udp_splice_rig import NS_GUEST_TEXT, UDP, SpliceRig, free_pair, splice_config

MakeRig = Callable[..., SpliceRig]

#: No checksum on sent datagrams, which makes the kernel refuse UDP_SEGMENT.
_SO_NO_CHECK = 11


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    made: list[SpliceRig] = []

    def make(**options: object) -> SpliceRig:
        made.append(SpliceRig(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_inbound_query_and_answer(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    client.sendto(b"query", (LOOPBACK_TEXT[version], rig.port))
    ((payload, source),) = rig.receive_from(server, 1)
    assert payload == b"query"
    assert source[1] == client.getsockname()[1], "the client's port is kept"
    server.sendto(b"answer", source)
    answer = rig.receive_from(client, 1)
    assert answer == [(b"answer", (LOOPBACK_TEXT[version], rig.port))]
    assert rig.link.sent == []
    assert rig.flows() == []


def test_outbound_query_and_answer(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = rig.host_server(version), rig.client(version)
    client.sendto(b"query", (LOOPBACK_TEXT[version], rig.ns_port))
    query = rig.receive_from(server, 1)
    assert query == [(b"query", client.getsockname()[:2])]
    server.sendto(b"answer", query[0][1])
    answer = rig.receive_from(client, 1)
    assert answer == [(b"answer", (LOOPBACK_TEXT[version], rig.ns_port))]
    assert rig.link.sent == []


def test_outbound_keeps_both_loopback_addresses(make_rig: MakeRig) -> None:
    """A resolver on 127.0.0.53 is reached, and sees which address its client has."""
    rig = make_rig()
    server, client = rig.host_server(4, "127.0.0.53"), rig.client(4, "127.0.0.9")
    client.sendto(b"query", ("127.0.0.53", rig.ns_port))
    assert rig.receive_from(server, 1) == [(b"query", client.getsockname())]
    server.sendto(b"answer", client.getsockname())


def test_outbound_target_of_the_rule(make_rig: MakeRig) -> None:
    port = free_pair()
    rule = Rule(UDP, port, port, port + 1, address=bytes(4), target=bytes((127, 0, 0, 77)))
    rig = make_rig(ns_rule=rule)
    server, client = rig.host_server(4, "127.0.0.77"), rig.client(4)
    client.sendto(b"query", ("127.0.0.1", port))
    assert rig.receive_from(server, 1) == [(b"query", client.getsockname())]


def test_port_in_the_middle_of_a_range(make_rig: MakeRig, version: int) -> None:
    """The target port has the distance from its range's start that the port has."""
    rig = make_rig()
    port = free_pair()
    rig.listen(Rule(UDP, port - 3, port + 5, port - 2), port)
    server = rig.socket(version, NS_GUEST_TEXT[version], port + 1)
    rig.client(version).sendto(b"x", (LOOPBACK_TEXT[version], port))
    assert rig.receive(server, 1) == [b"x"]


def test_host_loopback_to_namespace_loopback(make_rig: MakeRig) -> None:
    configuration = splice_config()
    configuration.host_lo_to_ns_lo = True
    rig = make_rig(configuration=configuration)
    server = rig.server(4, "127.0.0.5")
    client = rig.client(4)
    client.sendto(b"x", ("127.0.0.5", rig.port))
    assert rig.receive(server, 1) == [b"x"]


@pytest.mark.parametrize("outbound", [False, True], ids=["in", "out"])
def test_empty_datagrams(make_rig: MakeRig, version: int, outbound: bool) -> None:
    rig = make_rig()
    server = rig.host_server(version) if outbound else rig.server(version)
    client = rig.client(version)
    for payload in (b"", b"x", b"", b"", b""):
        client.sendto(payload, (LOOPBACK_TEXT[version], rig.ns_port if outbound else rig.port))
    query = rig.receive_from(server, 5)
    assert [payload for payload, _ in query] == [b"", b"x", b"", b"", b""]
    for payload in (b"", b"", b"", b"", b"y"):
        server.sendto(payload, query[0][1])
    assert rig.receive(client, 5) == [b"", b"", b"", b"", b"y"]


def test_largest_datagrams(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    sent = [bytes([i]) * (65507 if version == 4 else 65527) for i in range(2)]
    client.sendto(sent[0], (LOOPBACK_TEXT[version], rig.port))
    ((got, source),) = rig.receive_from(server, 1)
    assert got == sent[0]
    client.sendto(sent[1], (LOOPBACK_TEXT[version], rig.port))
    assert rig.receive(server, 1) == sent[1:]
    server.sendto(sent[1], source)
    assert rig.receive(client, 1) == sent[1:]


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_sizes_both_ways(make_rig: MakeRig, version: int, seed: int) -> None:
    rng = random.Random(seed)
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    client.sendto(b"hello", (LOOPBACK_TEXT[version], rig.port))
    ((_, source),) = rig.receive_from(server, 1)
    for _ in range(4):
        if rng.random() < 0.5:
            size, last = rng.choice((1, 100, 1400)), rng.choice((0, 1, 100, 1400))
            sizes = [size] * rng.randrange(1, 90) + [last]
        else:
            sizes = [rng.choice((0, 1, 100, 100, 1400, 3000)) for _ in range(70)]
        sent = [bytes([i]) * size for i, size in enumerate(sizes)]
        for payload in sent:
            client.sendto(payload, (LOOPBACK_TEXT[version], rig.port))
            server.sendto(payload, source)
        assert rig.receive(server, len(sent)) == sent
        assert rig.receive(client, len(sent)) == sent


def trains(sock: socket.socket, *, rig: SpliceRig) -> list[tuple[int, int]]:
    """Length and segment size of what arrives at ``sock``, which has UDP_GRO."""
    rig.serve()
    sock.setblocking(False)
    got: list[tuple[int, int]] = []
    while True:
        try:
            payload, ancillary, _, _ = sock.recvmsg(70000, 100)
        except BlockingIOError:
            return got
        sizes = [struct.unpack("=i", data)[0] for _, kind, data in ancillary if kind == UDP_GRO]
        got.append((len(payload), sizes[0] if sizes else 0))


@pytest.fixture
def streaming(make_rig: MakeRig, version: int) -> tuple[SpliceRig, socket.socket, socket.socket]:
    """A flow that has carried one datagram; its client, connected, and its server."""
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    client.connect((LOOPBACK_TEXT[version], rig.port))
    client.send(b"hello")
    ((_, source),) = rig.receive_from(server, 1)
    server.connect(source)
    return rig, client, server


Streaming = tuple[SpliceRig, socket.socket, socket.socket]


def test_equal_datagrams_leave_as_one_train(streaming: Streaming) -> None:
    rig, client, server = streaming
    server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    for size in (100, 100, 100, 100, 7):
        client.send(bytes(size))
    assert trains(server, rig=rig) == [(407, 100)]


def test_trains_end_where_they_must(streaming: Streaming) -> None:
    """A train holds no more than a packet does."""
    rig, client, server = streaming
    server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    for _ in range(9):
        client.send(bytes(12000))
    assert trains(server, rig=rig) == [(60000, 12000), (48000, 12000)]
    for _ in range(4):
        client.send(bytes(20000))
    assert trains(server, rig=rig) == [(60000, 20000), (20000, 0)]
    for _ in range(3):
        client.send(bytes(40000))
    assert trains(server, rig=rig) == [(40000, 0)] * 3


def test_trains_of_the_sender_are_kept(streaming: Streaming) -> None:
    """From when there are many datagrams."""
    rig, client, server = streaming
    server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    client.send(bytes(5500))
    client.send(bytes(20))
    assert trains(server, rig=rig) == [(1000, 0)] * 5 + [(500, 0), (20, 0)]
    client.send(bytes(8500))
    assert trains(server, rig=rig) == [(8500, 1000)]
    assert rig.halves()[0].joins
    client.send(bytes(5500))
    client.send(bytes(20))
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 10)
    client.send(bytes(640))
    assert trains(server, rig=rig) == [(5500, 1000), (20, 0), (640, 10)]


def test_many_after_single_ones(streaming: Streaming) -> None:
    """However long one at a time was read, bursts are noticed, and in order."""
    rig, client, server = streaming
    near, _ = rig.halves()
    for i in range(40):
        client.send(bytes([i]))
        assert rig.receive(server, 1) == [bytes([i])]
        assert not near.joins
    sent = [bytes([i]) * (i % 50) for i in range(200)]
    for payload in sent:
        client.send(payload)
    assert rig.receive(server, 200) == sent
    assert near.joins
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 10)
    client.send(b"0123456789" * 3)
    assert rig.receive(server, 3) == [b"0123456789"] * 3
    client.send(b"single")
    assert rig.receive(server, 1) == [b"single"]


def test_trains_reach_receivers_that_know_none(streaming: Streaming) -> None:
    rig, client, server = streaming
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    payload = random.Random(1).randbytes(10500)
    pieces = [payload[at : at + 1000] for at in range(0, 10500, 1000)]
    server.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    for _ in range(3):
        client.send(payload)
        client.send(b"end")
        assert rig.receive(server, 12) == [*pieces, b"end"]
        server.send(payload)
        assert rig.receive(client, 11) == pieces
    assert all(half.joins for half in rig.halves())


@pytest.mark.parametrize("version", [4], ids=["ipv4"])
def test_sockets_that_take_no_trains(streaming: Streaming) -> None:
    """Trains formed here and trains received are cut."""
    rig, client, server = streaming
    far = rig.halves()[1]
    far.sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
    for i in range(150):
        client.send(bytes([i]) * 100)
    assert rig.receive(server, 150) == [bytes([i]) * 100 for i in range(150)]
    assert far.gso_limit == 99
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    client.send(b"a" * 250)
    assert rig.receive(server, 3) == [b"a" * 100, b"a" * 100, b"a" * 50]
    assert rig.halves()[0].joins
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 50)
    client.send(b"b" * 110)
    assert rig.receive(server, 3) == [b"b" * 50, b"b" * 50, b"b" * 10]
    assert far.gso_limit == 49


def test_train_of_a_new_client(make_rig: MakeRig, version: int) -> None:
    """It is cut for the listening socket, which reads the rest of a burst, too."""
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    client.sendto(b"t" * 1050, (LOOPBACK_TEXT[version], rig.port))
    client.sendto(b"end", (LOOPBACK_TEXT[version], rig.port))
    assert rig.receive(server, 12) == [b"t" * 100] * 10 + [b"t" * 50, b"end"]
    assert len(rig.spliced()) == 1


def test_burst_of_new_clients_keeps_its_order(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    server = rig.server(version)
    clients = [rig.client(version) for _ in range(40)]
    for i in range(5):
        for client in clients:
            client.sendto(bytes([i]), (LOOPBACK_TEXT[version], rig.port))
    by_port: dict[int, list[bytes]] = {}
    for payload, source in rig.receive_from(server, 200):
        by_port.setdefault(source[1], []).append(payload)
    assert by_port == {
        client.getsockname()[1]: [bytes([i]) for i in range(5)] for client in clients
    }
    assert len(rig.spliced()) == 40
    assert rig.maker.stocked > 0


def test_clients_that_look_alike_get_their_own_answers(make_rig: MakeRig) -> None:
    """The later one reaches the server from another port."""
    rig = make_rig()
    server = rig.server(4)
    number = free_pair()
    clients = [rig.client(4, address, number) for address in ("127.0.0.7", "127.0.0.8")]
    sources = []
    for i, client in enumerate(clients):
        client.sendto(bytes([i]), ("127.0.0.1", rig.port))
        ((payload, source),) = rig.receive_from(server, 1)
        assert payload == bytes([i])
        sources.append(source)
    assert sources[0][1] == number
    assert sources[1][1] != number
    for i, source in enumerate(sources):
        server.sendto(bytes([i]), source)
    for i, client in enumerate(clients):
        assert rig.receive(client, 1) == [bytes([i])]


def test_port_that_somebody_else_has(make_rig: MakeRig, version: int) -> None:
    """Another one is taken; the client's own socket has it, and does not share it."""
    rig = make_rig()
    server, client = rig.server(version), rig.socket(version)
    client.sendto(b"query", (LOOPBACK_TEXT[version], rig.port))
    ((_, source),) = rig.receive_from(server, 1)
    assert source[1] != client.getsockname()[1]
    server.sendto(b"answer", source)
    assert rig.receive(client, 1) == [b"answer"]


def test_client_on_the_port_of_the_service(make_rig: MakeRig) -> None:
    """NTP for one: with its own port the far socket would be connected to itself."""
    rig = make_rig()
    client = rig.client(4, "127.0.0.1", rig.ns_port + 1)
    client.sendto(b"query", ("127.0.0.1", rig.ns_port))
    rig.serve()
    far = rig.halves()[1]
    assert far.sock.getsockname() != far.sock.getpeername()
    assert far.sock.getpeername() == ("127.0.0.1", rig.ns_port + 1)


def test_stray_datagrams_between_bind_and_connect(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They become flows of their own, on either side, in order."""
    rig = make_rig()
    server, host_server = rig.server(4), rig.host_server(4, "127.0.0.9")
    number = rig.ns_port
    first, second, third = rig.client(4, "127.0.0.3", number), rig.client(4), rig.client(4)
    connects: list[object] = []

    class Racing(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            if not connects:
                # The far socket has, on the wildcard, the first client's port, which is
                # that of the listening socket in the namespace.
                assert self.getsockname() == ("0.0.0.0", number)
                third.sendto(b"stray out", ("127.0.0.9", number))
            if len(connects) == 1:
                assert self.getsockname() == ("127.0.0.1", rig.port)
                second.sendto(b"stray 1", ("127.0.0.1", rig.port))
                second.sendto(b"stray 2", ("127.0.0.1", rig.port))
                first.sendto(b"again", ("127.0.0.1", rig.port))
            connects.append(address)
            super().connect(address)

    monkeypatch.setattr("passt.syscalls.bare_socket.socket", Racing)
    first.sendto(b"first", ("127.0.0.1", rig.port))
    got = rig.receive_from(server, 4)
    monkeypatch.undo()
    assert [payload for payload, source in got if source[1] == number] == [b"first", b"again"]
    assert [payload for payload, source in got if source[1] != number] == [b"stray 1", b"stray 2"]
    assert rig.receive(host_server, 1) == [b"stray out"]
    assert len(rig.spliced()) == 3
    third.sendto(b"later", ("127.0.0.9", number))
    assert rig.receive(host_server, 1) == [b"later"]


def test_both_versions_through_one_socket(make_rig: MakeRig) -> None:
    """A dual-stack listening socket; the flows are of the version that the client used."""
    rig = make_rig()
    for number in (4, 6):
        server, client = rig.server(number), rig.client(number)
        client.sendto(b"x", (LOOPBACK_TEXT[number], rig.port))
        assert rig.receive(server, 1) == [b"x"]
    families = [flow.near.sock.family for flow in rig.spliced() if flow.near is not None]
    assert families == [FAMILY[4], FAMILY[6]]
