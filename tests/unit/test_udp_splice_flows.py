"""What bypasses the link, and how spliced flows end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from passt.syscalls.sockopt import IP_FREEBIND, IPV6_FREEBIND
from passt.userspace import log
from passt.userspace.config.model import Rule
from passt.userspace.flow.rules import SPLICE
from passt.userspace.loop import EPOLLERR
from tests.unit.fakes import (
    GUEST4,
    config,
    open_descriptors,
)
from tests.unit.udp_rig import GATEWAY, LOOPBACK_TEXT, Rig
from tests.unit.udp_splice_rig import (
    NS_GUEST_TEXT,
    UDP,
    LocalMaker,
    SpliceRig,
    free_pair,
    splice_config,
)

MakeRig = Callable[..., SpliceRig]


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


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rate-limited messages, without their limits."""
    said: list[str] = []

    def limited(_key: str, _level: int, text: str, *arguments: object) -> None:
        said.append(text % arguments)

    monkeypatch.setattr(log, "limited", limited)
    return said


def established(rig: SpliceRig, version: int) -> tuple[socket.socket, socket.socket]:
    """Client and server, both connected, of a flow that has carried one datagram."""
    server, client = rig.server(version), rig.client(version)
    client.connect((LOOPBACK_TEXT[version], rig.port))
    client.send(b"hello")
    ((_, source),) = rig.receive_from(server, 1)
    server.connect(source)
    return client, server


@pytest.mark.parametrize("spliceable", [True, False], ids=["maker", "no maker"])
def test_what_may_not_bypass_uses_the_link(spliceable: bool) -> None:
    """With ``--no-splice``, and in passt, where nobody makes sockets anywhere else."""
    port = free_pair()
    configuration = config()
    configuration.splice = not spliceable
    rig = Rig(
        Rule(UDP, port, port, port),
        configuration=configuration,
        maker=LocalMaker() if spliceable else None,
    )
    rig.socket(4).sendto(b"x", ("127.0.0.1", port))
    (packet,) = rig.guest_gets(1)
    assert (packet.src, packet.dst) == (GATEWAY[4], GUEST4)
    rig.close()


def test_rule_with_target_uses_the_link(make_rig: MakeRig) -> None:
    port = free_pair()
    target = bytes((192, 0, 2, 77))
    rig = make_rig(rule=Rule(UDP, port, port, port + 1, address=bytes(4), target=target))
    client = rig.client(4)
    client.sendto(b"x", ("127.0.0.1", port))
    (packet,) = rig.guest_gets(1)
    assert (packet.dst, packet.ports[1]) == (target, port + 1)
    rig.guest_sends(4, client.getsockname()[1], b"y", source=target, source_port=port + 1)
    assert rig.receive_from(client, 1) == [(b"y", ("127.0.0.1", port))]


def test_splice_only_refuses_rules_with_target(make_rig: MakeRig, messages: list[str]) -> None:
    port = free_pair()
    configuration = splice_config()
    configuration.splice_only = True
    target = bytes((192, 0, 2, 77))
    rig = make_rig(
        configuration=configuration,
        rule=Rule(UDP, port, port, port + 1, address=bytes(4), target=target),
    )
    client = rig.client(4)
    client.sendto(b"x", ("127.0.0.1", port))
    rig.serve()
    number = client.getsockname()[1]
    assert messages == [f"No rules to forward HOST UDP [127.0.0.1]:{number} -> [127.0.0.1]:{port}"]
    assert rig.link.sent == []
    assert rig.spliced() == []


@pytest.mark.parametrize("pif", ["host", "namespace"])
def test_other_than_loopback_is_refused(
    make_rig: MakeRig, messages: list[str], monkeypatch: pytest.MonkeyPatch, pif: str
) -> None:
    """Neither from strangers with ``--splice-only``, nor from the namespace's own addresses."""
    monkeypatch.setattr("passt.userspace.udp.splice.is_loopback", lambda _address: False)
    configuration = splice_config()
    configuration.splice_only = True
    rig = make_rig(configuration=configuration)
    client = rig.client(4)
    port = rig.port if pif == "host" else rig.ns_port
    client.sendto(b"x", ("127.0.0.1", port))
    rig.serve()
    name = "HOST" if pif == "host" else "SPLICE"
    number = client.getsockname()[1]
    assert messages == [
        f"No rules to forward {name} UDP [127.0.0.1]:{number} -> [127.0.0.1]:{port}"
    ]
    assert rig.link.sent == []
    assert rig.spliced() == []


def test_guest_without_address_is_not_reached(make_rig: MakeRig, messages: list[str]) -> None:
    configuration = splice_config()
    configuration.v6.addr = None
    rig = make_rig(configuration=configuration)
    rig.client(6).sendto(b"x", ("::1", rig.port))
    rig.serve()
    assert len(messages) == 1
    assert rig.spliced() == []


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where sockets are connected to, which they really are only on loopback."""
    targets: list[object] = []

    class Recording(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            targets.append(address)
            if address[0].startswith("127.") or address[0] == "::1":
                super().connect(address)
            else:
                super().connect(("127.0.0.9" if len(address) == 2 else "::1", 9))

    monkeypatch.setattr("passt.syscalls.bare_socket.socket", Recording)
    return targets


def test_link_local_guest_is_on_the_link_of_the_namespace(
    make_rig: MakeRig, recording: list[object]
) -> None:
    configuration = splice_config()
    configuration.v6.addr = None
    rig = make_rig(configuration=configuration, ns_ifindex=77)
    rig.nat.observe6(bytes.fromhex("fe800000000000000000000000000010"))
    rig.nat.observed6 = None
    rig.client(6).sendto(b"x", ("::1", rig.port))
    rig.serve()
    assert recording[0] == ("fe80::10", rig.port + 1, 0, 77)


def test_group_address_is_kept(make_rig: MakeRig, recording: list[object]) -> None:
    port = free_pair()
    group = bytes((224, 0, 0, 251))
    rig = make_rig(rule=Rule(UDP, port, port, port + 1, address=group))
    membership = group + bytes((127, 0, 0, 1))
    rig.listener.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    client = rig.client(4)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes((127, 0, 0, 1)))
    client.sendto(b"who?", ("224.0.0.251", port))
    rig.serve()
    assert recording[0] == ("224.0.0.251", port + 1)
    assert rig.link.sent == []


def test_group_that_cannot_be_kept_inside(
    make_rig: MakeRig, recording: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of setsockopt(2) must not get to the loop; nothing is sent then."""

    def fail(_sock: socket.socket) -> None:
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr("passt.userspace.udp.splice.keep_inside", fail)
    port = free_pair()
    group = bytes((224, 0, 0, 251))
    rig = make_rig(rule=Rule(UDP, port, port, port + 1, address=group))
    membership = group + bytes((127, 0, 0, 1))
    rig.listener.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    client = rig.client(4)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes((127, 0, 0, 1)))
    client.sendto(b"who?", ("224.0.0.251", port))
    rig.serve()
    assert recording == []
    assert rig.spliced() == []


def test_outbound_target_elsewhere_is_sent_from_any_address(
    make_rig: MakeRig, recording: list[object]
) -> None:
    port = free_pair()
    target = bytes((198, 51, 100, 7))
    rig = make_rig(ns_rule=Rule(UDP, port, port, port + 1, address=bytes(4), target=target))
    rig.client(4).sendto(b"x", ("127.0.0.1", port))
    rig.serve()
    assert recording[0] == ("198.51.100.7", port + 1)
    assert rig.halves()[1].side.name == "HOST"


# Lifetime.


def test_flows_outlive_their_listening_socket(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    client, server = established(rig, version)
    rig.udp.detach_listener(rig.listener)
    rig.serve()
    assert rig.listener.sock.fileno() == -1
    client.send(b"more")
    assert rig.receive(server, 1) == [b"more"]
    server.send(b"answer")
    assert rig.receive(client, 1) == [b"answer"]
    stranger = rig.client(version)
    stranger.connect((LOOPBACK_TEXT[version], rig.port))
    stranger.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        stranger.recv(10)


@pytest.mark.parametrize(
    ("exchange", "stream"),
    [("q", False), ("qqq", False), ("qa", False), ("qaq", True), ("qaa", True)],
)
def test_time_outs(make_rig: MakeRig, exchange: str, stream: bool) -> None:
    """A query with its answer is short; an answer and more of either makes a stream."""
    rig = make_rig()
    server, client = rig.server(4), rig.client(4)
    source = ("", 0)
    for step in exchange:
        if step == "q":
            client.sendto(b"q", ("127.0.0.1", rig.port))
            ((_, source),) = rig.receive_from(server, 1)
        else:
            server.sendto(b"a", source)
            rig.receive(client, 1)
    (flow,) = rig.spliced()
    timeout = rig.udp.timeout_stream if stream else rig.udp.timeout_short
    rig.loop.now = flow.last + timeout
    rig.udp._spliced_expiry.run()
    assert flow.index >= 0
    rig.loop.now = flow.last + timeout + 1.5
    rig.udp._spliced_expiry.run()
    assert flow.index < 0
    assert rig.spliced() == []
    assert rig.udp._host.flows == {}
    assert rig.udp._namespace.flows == {}


def test_nothing_is_left_of_ended_flows(make_rig: MakeRig, version: int) -> None:
    rig = make_rig()
    client, _ = established(rig, version)
    stocked = len(rig.udp._pools[4 if version == 4 else 16]._stock)
    before = open_descriptors()
    for _ in range(50):
        for flow in rig.spliced():
            rig.udp.end_spliced(flow)
            rig.udp.end_spliced(flow)
        rig.serve()
        client.send(b"x")
        rig.serve()
    left = len(rig.udp._pools[4 if version == 4 else 16]._stock)
    assert open_descriptors() - left == before - stocked
    assert len(rig.spliced()) == 1


def test_events_of_the_round_that_ended_the_flow(make_rig: MakeRig) -> None:
    """Whatever was already found for it has no effect."""
    rig = make_rig()
    client, server = established(rig, 4)
    near, far = rig.halves()
    client.send(b"x")
    server.send(b"y")
    near.end()
    near.take(range(1))
    near.ready(EPOLLERR)
    far.end()
    rig.serve()
    assert rig.spliced() == []


# Options and messages.


def test_freebind(make_rig: MakeRig, version: int) -> None:
    """Sockets that answer from the address that a client used, whoever has it."""
    configuration = splice_config()
    configuration.freebind = True
    rig = make_rig(configuration=configuration)
    established(rig, version)
    near, _ = rig.halves()
    option = (
        (socket.IPPROTO_IP, IP_FREEBIND) if version == 4 else (socket.IPPROTO_IPV6, IPV6_FREEBIND)
    )
    assert near.sock.getsockopt(*option) == 1


def test_flow_names_both_sides(make_rig: MakeRig) -> None:
    rig = make_rig()
    client, server = established(rig, 4)
    number = client.getsockname()[1]
    assert str(rig.spliced()[0]) == (
        f"Flow 0 (UDP flow): HOST [127.0.0.1]:{number} -> [127.0.0.1]:{rig.port} => "
        f"SPLICE [127.0.0.1]:{number} -> [127.0.0.2]:{rig.port + 1}"
    )
    assert server.getsockname() == (NS_GUEST_TEXT[4], rig.port + 1)


def test_debug_messages(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "debug_on", True)
    monkeypatch.setattr(log, "debug", said.append)
    rig = make_rig()
    established(rig, 4)
    (flow,) = rig.spliced()
    text = str(flow)
    flow.near.end()  # type: ignore[union-attr]
    assert f"{text}: new" in said
    assert f"{text}: end" in said


def test_listening_socket_that_cannot_be_watched(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    sock = rig.socket(4)
    port = sock.getsockname()[1]

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(rig.loop), "add", refuse)
    with pytest.raises(OSError, match="No space"):
        rig.udp.attach_listener(sock, Rule(UDP, port, port, port), port, SPLICE)
    assert port not in rig.udp._namespace.listeners
