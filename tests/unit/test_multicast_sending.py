"""Flows to groups: ports, TTL, answers, and who else has the port."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from passt.userspace.multicast.sending import Echoes, GroupFlow
from passt.userspace.udp.base import UNANSWERED
from passt.userspace.wire import drops
from tests.unit.fakes import GATEWAY4, GUEST4, config
from tests.unit.multicast_rig import GROUP, GROUP_TEXT, GroupRig
from tests.unit.udp_rig import GUEST_PORT, Rig, free_port

MDNS_LIKE = free_port()


@pytest.fixture
def rig() -> Iterator[GroupRig]:
    made = GroupRig()
    yield made
    made.close()


def test_leaves_from_the_guests_port_with_its_ttl(rig: GroupRig) -> None:
    port = free_port()
    member = rig.member(port)
    member.setsockopt(socket.IPPROTO_IP, 12, 1)
    for ttl in (1, 7, 1):
        rig.guest_sends(4, port, b"hello", to=GROUP, ttl=ttl)
        data, control, _, source = member.recvmsg(100, 100)
        assert (data, source) == (b"hello", (rig.own, GUEST_PORT))
        assert [int.from_bytes(value, "little") for _, _, value in control] == [ttl]
    (flow,) = rig.flows()
    assert isinstance(flow, GroupFlow)
    assert not flow.shared


def test_outbound_address(rig: GroupRig) -> None:
    """The user's choice; answers to it reach the guest, those to other addresses do not."""
    rig.config.v4.outbound_addr = bytes((127, 0, 0, 9))
    port = free_port()
    member = rig.member(port)
    rig.guest_sends(4, port, b"hello", to=GROUP)
    assert member.recvfrom(100) == (b"hello", ("127.0.0.9", GUEST_PORT))
    rig.socket(4).sendto(b"no", ("127.0.0.1", GUEST_PORT))
    rig.socket(4).sendto(b"yes", ("127.0.0.9", GUEST_PORT))
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"yes"]


def test_trains_of_the_guest(rig: GroupRig) -> None:
    port = free_port()
    member = rig.member(port)
    payloads = [bytes((i,)) * 500 for i in range(20)] + [b"last"]
    rig.guest_sends(4, port, *payloads, to=GROUP)
    assert [member.recv(2000) for _ in payloads] == payloads


def test_answers_from_anybody_reach_the_guest(rig: GroupRig) -> None:
    """Each with its own source, which is not the group's; and the flow lives longer for it."""
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    (flow,) = rig.flows()
    assert not flow.answered
    for number in (1, 2):
        answering = rig.socket(4, f"127.0.0.{number}")
        answering.sendto(b"me", ("127.0.0.1", GUEST_PORT))
        (packet,) = rig.guest_gets(1)
        assert (packet.src, packet.dst) == (GATEWAY4, GUEST4)
        assert packet.ports == (answering.getsockname()[1], GUEST_PORT)
        assert packet.payload == b"me"
    assert flow.answered
    assert flow.host_active == 2


def test_many_answers_at_once(rig: GroupRig) -> None:
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    socks = [rig.socket(4) for _ in range(3)]
    for round_ in range(5):
        for sock in socks:
            sock.sendto(b"%d" % round_, ("127.0.0.1", GUEST_PORT))
    packets = rig.guest_gets(15)
    for sock in socks:
        port = sock.getsockname()[1]
        mine = [packet.payload for packet in packets if packet.ports[0] == port]
        assert mine == [b"0", b"1", b"2", b"3", b"4"]


def test_what_everybody_gets_is_no_answer(rig: GroupRig) -> None:
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    shouting = rig.sender()
    shouting.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    shouting.sendto(b"to all", ("127.255.255.255", GUEST_PORT))
    shouting.sendto(b"to a group", (GROUP_TEXT, GUEST_PORT))
    rig.settle()
    assert rig.link.sent == []


def test_port_of_somebody_else(rig: GroupRig) -> None:
    """Another one serves, and nothing that is his comes here."""
    holder = rig.socket(4, "0.0.0.0", GUEST_PORT)
    port = free_port()
    member = rig.member(port)
    rig.guest_sends(4, port, b"who?", to=GROUP)
    data, (_, source_port) = member.recvfrom(100)
    assert data == b"who?"
    assert source_port != GUEST_PORT
    client = rig.socket(4)
    client.sendto(b"for the holder", ("127.0.0.1", GUEST_PORT))
    assert holder.recv(100) == b"for the holder"
    client.sendto(b"for the guest", ("127.0.0.1", source_port))
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"for the guest"
    assert packet.ports[1] == GUEST_PORT


def test_port_of_the_group_is_shared(rig: GroupRig) -> None:
    """As with mDNS: the same port at both ends, which a program of the host has, too."""
    holder = rig.member(MDNS_LIKE)
    rig.guest_sends(4, MDNS_LIKE, b"who?", to=GROUP, source_port=MDNS_LIKE)
    assert holder.recvfrom(100) == (b"who?", (rig.own, MDNS_LIKE))
    (flow,) = rig.flows()
    assert isinstance(flow, GroupFlow)
    assert flow.shared
    rig.socket(4).sendto(b"for the holder", ("127.0.0.1", MDNS_LIKE))
    assert holder.recv(100) == b"for the holder"
    rig.settle()
    assert rig.link.sent == []


def test_port_that_cannot_be_shared(rig: GroupRig) -> None:
    rig.member(MDNS_LIKE, reuse=False)
    other = free_port()
    rig.guest_sends(4, MDNS_LIKE, b"who?", to=GROUP, source_port=MDNS_LIKE)
    (flow,) = rig.flows()
    assert flow.sock.getsockname()[1] not in (MDNS_LIKE, other)


def test_newcomers_get_their_port(rig: GroupRig) -> None:
    """Once the guest has it others can have it, and what arrives is theirs."""
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    newcomer = rig.member(GUEST_PORT)
    rig.socket(4).sendto(b"yours", ("127.0.0.1", GUEST_PORT))
    assert newcomer.recv(100) == b"yours"
    rig.settle()
    assert rig.link.sent == []


def test_conversation_with_one_that_answered(rig: GroupRig) -> None:
    """An ordinary flow from the same port: its peer's datagrams are its own, others are not."""
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    peer, other = rig.socket(4), rig.socket(4)
    rig.guest_sends(4, peer.getsockname()[1], b"hello", to=GATEWAY4)
    data, address = peer.recvfrom(100)
    assert (data, address) == (b"hello", ("127.0.0.1", GUEST_PORT))
    peer.sendto(b"to you", address)
    other.sendto(b"me, too", address)
    packets = rig.guest_gets(2)
    assert {packet.payload for packet in packets} == {b"to you", b"me, too"}
    assert len(rig.flows()) == 2


def test_flow_ends_by_silence(rig: GroupRig) -> None:
    rig.guest_sends(4, free_port(), b"who?", to=GROUP)
    (flow,) = rig.flows()
    rig.loop.now += rig.udp.timeout_short + 2
    assert rig.udp._review(flow) == 0.0
    assert rig.flows() == []
    assert not rig.groups._senders


@pytest.mark.parametrize(
    ("version", "group"),
    [(6, bytes.fromhex("ff02000000000000000000000000fbfb")), (4, bytes((224, 0, 0, 251)))],
)
def test_no_multicast_without_an_interface(version: int, group: bytes) -> None:
    """The plain translator drops it; the other one does for versions without a place."""
    for kind in (Rig, GroupRig) if version == 6 else (Rig,):
        rig = kind(configuration=config())
        before = drops.counts[drops.NO_FLOW]
        rig.guest_sends(version, 5353, b"x", to=group)
        assert drops.counts[drops.NO_FLOW] == before + 1
        assert rig.flows() == []
        rig.close()


def test_unanswered_flows_are_limited(rig: GroupRig) -> None:
    assert len(rig.flows()) == 0
    for i in range(UNANSWERED // 2):
        rig.guest_sends(4, 9, b"x", to=bytes((239, 7, i >> 8, i & 255)))
    assert len(rig.flows()) < UNANSWERED // 4


def test_failures_leave_nothing(rig: GroupRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a message, where the reason is that there is no network."""
    told: list[object] = []
    monkeypatch.setattr("passt.userspace.log.limited", lambda *words: told.append(words))
    for name in ("source", "sender"):
        with monkeypatch.context() as patch:
            patch.setattr(f"passt.userspace.multicast.sockets.Place.{name}", _fail)
            rig.guest_sends(4, 9, b"x", to=GROUP)
        assert rig.flows() == []
        assert rig.link.sent == []
    assert not rig.groups._senders
    assert told == []
    monkeypatch.setattr("passt.userspace.multicast.sockets.Place.sender", _exhausted)
    rig.guest_sends(4, 9, b"x", to=GROUP)
    assert len(told) == 1


def test_socket_whose_port_the_kernel_does_not_tell(
    rig: GroupRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of getsockname(2) must not get to the loop; nothing is left of it."""

    class Silent(socket.socket):
        def getsockname(self) -> object:
            raise OSError(105, "No buffer space available")

    sock = Silent(socket.AF_INET, socket.SOCK_DGRAM)
    sender = "passt.userspace.multicast.sockets.Place.sender"
    monkeypatch.setattr(sender, lambda *_, **_more: (sock, False))
    rig.guest_sends(4, 9, b"x", to=GROUP)
    assert rig.flows() == []
    assert sock.fileno() < 0


def _exhausted(*_: object, **_more: object) -> None:
    raise OSError(24, "Too many open files")


def _fail(*_: object, **_more: object) -> None:
    raise OSError(101, "Network is unreachable")


def test_echoes() -> None:
    """Each comes back once, soon, and only from where it was sent."""

    class Clock:
        now = 100.0

    clock = Clock()
    echoes = Echoes(clock)  # type: ignore[arg-type]
    echoes.note(b"key", b"one")
    echoes.note(b"key", b"one")
    echoes.note(b"key", b"two")
    take: Callable[[bytes, bytes], bool] = echoes.take
    assert not take(b"other", b"one")
    assert take(b"key", b"two")
    assert [take(b"key", b"one") for _ in range(3)] == [True, True, False]
    echoes.note(b"key", b"late")
    clock.now += 5
    assert not take(b"key", b"late")
    for i in range(5000):
        echoes.note(b"key", b"%d" % i)
    assert not take(b"key", b"0")
    assert take(b"key", b"4999")
