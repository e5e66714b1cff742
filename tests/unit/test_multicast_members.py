"""What the guest reports to listen to: joined, delivered, ended, bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.igmp import IGMPv3_MQ
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from passt.userspace.config.model import IPPROTO_UDP as UDP
from passt.userspace.config.model import Rule
from passt.userspace.multicast import members, translator
from passt.userspace.multicast.filters import Filter
from passt.userspace.multicast.sending import GroupFlow
from passt.userspace.multicast.sockets import Place
from passt.userspace.udp.flow import split
from passt.userspace.udp.side import Listener
from passt.userspace.wire import drops
from passt.userspace.wire.membership import (
    ALLOW,
    BLOCK,
    IS_EXCLUDE,
    QUERY_INTERVAL,
    TO_EXCLUDE,
    TO_INCLUDE,
)
from tests.unit.fakes import GATEWAY4, GUEST_MAC, open_descriptors
from tests.unit.multicast_rig import GROUP, GROUP_TEXT, GroupRig
from tests.unit.udp_rig import free_port

ALL = (TO_EXCLUDE, GROUP, ())
NONE = (TO_INCLUDE, GROUP, ())


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def rig(port: int) -> Iterator[GroupRig]:
    """With a rule that forwards ``port``."""
    made = GroupRig(Rule(UDP, port, port, port))
    yield made
    made.report(*((TO_INCLUDE, group, ()) for group in list(made.groups._groups)))
    made.close()


def member_sockets(rig: GroupRig) -> int:
    return sum(isinstance(flow, members.Member) for flow in rig.table.flows())


def test_datagrams_reach_the_guest_as_they_are(rig: GroupRig, port: int) -> None:
    rig.report(ALL)
    assert rig.ports() == {port}
    sender = rig.sender()
    payloads = [b"one", b"", b"three" * 200]
    for payload in payloads:
        sender.sendto(payload, (GROUP_TEXT, port))
    packets = rig.guest_gets(3)
    assert [packet.payload for packet in packets] == payloads
    for packet in packets:
        assert (packet.src, packet.dst, packet.dst_mac) == (GATEWAY4, GROUP, GUEST_MAC)
        assert packet.ports == (sender.getsockname()[1], port)
    # They made no flows.
    assert rig.flows() == []


def test_leaving(rig: GroupRig, port: int) -> None:
    before = open_descriptors()
    rig.report(ALL)
    rig.report(NONE)
    rig.settle()
    assert rig.ports() == set()
    assert (member_sockets(rig), rig.groups._members) == (0, 0)
    assert open_descriptors() == before
    rig.sender().sendto(b"x", (GROUP_TEXT, port))
    rig.settle()
    assert rig.link.sent == []


def test_unicast_of_the_host_never_arrives(rig: GroupRig, port: int) -> None:
    """Nor does what is sent to other groups that the host is in."""
    free = free_port()
    rig.report(ALL)
    rig.guest_sends(4, free, b"makes it a port of the group", to=GROUP, source_port=port)
    assert rig.ports() == {port, free}
    holder = rig.member(free, group="239.9.9.9")
    rig.socket(4).sendto(b"x", ("127.0.0.1", free))
    rig.sender().sendto(b"y", ("239.9.9.9", free))
    assert sorted((holder.recv(9), holder.recv(9))) == [b"x", b"y"]
    rig.settle()
    assert rig.link.sent == []


def test_programs_of_the_host_get_theirs(rig: GroupRig) -> None:
    free = free_port()
    program = rig.member(free)
    rig.report(ALL)
    rig.guest_sends(4, free, b"from the guest", to=GROUP)
    assert program.recv(100) == b"from the guest"
    rig.sender().sendto(b"to all members", (GROUP_TEXT, free))
    assert program.recv(100) == b"to all members"
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"to all members"


def test_our_own_members_do_not_take_the_port(rig: GroupRig) -> None:
    """The guest joins and then asks, from the port of the group: answers to it alone arrive."""
    free = free_port()
    rig.report(ALL)
    rig.guest_sends(4, free, b"makes it a port of the group", to=GROUP)
    assert free in rig.ports()
    rig.guest_sends(4, free, b"who?", to=GROUP, source_port=free)
    assert not [flow for flow in rig.flows() if isinstance(flow, GroupFlow) and flow.shared]
    rig.socket(4).sendto(b"you alone", ("127.0.0.1", free))
    (packet,) = rig.guest_gets(1)
    assert (packet.payload, packet.ports[1]) == (b"you alone", free)


@pytest.mark.parametrize("shared", [False, True])
def test_own_datagrams_do_not_come_back(rig: GroupRig, shared: bool) -> None:
    """Also if a program of the host has the port, whose datagrams do come."""
    free = free_port()
    program = rig.member(free) if shared else None
    rig.report(ALL)
    for payload in (b"a", b"b", b"a"):
        rig.guest_sends(4, free, payload, to=GROUP, source_port=free)
    assert rig.ports() >= {free}
    rig.settle()
    assert rig.link.sent == []
    if program is not None:
        for payload in (b"a", b"b", b"a"):
            assert program.recv(10) == payload
        program.sendto(b"a", (GROUP_TEXT, free))
        (packet,) = rig.guest_gets(1)
        assert (packet.payload, packet.ports) == (b"a", (free, free))


def test_sources(rig: GroupRig, port: int) -> None:
    """By the address that the guest knows them by, whatever theirs is on the host."""
    sender = rig.sender()
    seen, other = GATEWAY4, bytes((10, 1, 1, 1))
    for record, heard in (
        ((ALLOW, GROUP, (other,)), False),
        ((ALLOW, GROUP, (seen,)), True),
        ((BLOCK, GROUP, (seen,)), False),
        ((IS_EXCLUDE, GROUP, (other,)), True),
        ((BLOCK, GROUP, (seen,)), False),
        ((ALLOW, GROUP, (seen, other)), True),
        ((TO_INCLUDE, GROUP, (other,)), False),
        ((TO_INCLUDE, GROUP, (seen,)), True),
        ((TO_INCLUDE, GROUP, ()), False),
    ):
        rig.report(record)
        sender.sendto(b"x", (GROUP_TEXT, port))
        rig.settle()
        assert len(rig.link.take()) == heard, record


def test_more_sources_than_the_kernel_takes(rig: GroupRig, port: int) -> None:
    many = tuple(bytes((10, 1, 1, i)) for i in range(60))
    rig.report((TO_INCLUDE, GROUP, many))
    rig.sender().sendto(b"x", (GROUP_TEXT, port))
    rig.settle()
    assert rig.link.sent == []
    rig.report((BLOCK, GROUP, many), (ALLOW, GROUP, (GATEWAY4,)))
    rig.sender().sendto(b"y", (GROUP_TEXT, port))
    (packet,) = rig.guest_gets(1)
    assert packet.payload == b"y"


# Ports.


def test_port_of_a_protocol(rig: GroupRig) -> None:
    rig.report((TO_EXCLUDE, bytes((239, 255, 255, 250)), ()))
    assert rig.ports(bytes((239, 255, 255, 250))) >= {1900, 3702}


def test_ports_the_guest_sent_to_before_it_joined(rig: GroupRig, port: int) -> None:
    rig.guest_sends(4, 3333, b"x", to=GROUP)
    rig.guest_sends(4, 4444, b"x", to=bytes((239, 1, 2, 4)))
    rig.report(ALL)
    assert rig.ports() == {port, 3333}


def test_ports_sent_to_are_limited(rig: GroupRig, port: int) -> None:
    rig.report(ALL)
    for number in range(100):
        rig.guest_sends(4, 1024 + number, b"x", to=GROUP)
    assert len(rig.ports()) == members.MAX_PORTS + 1


def test_rules_that_come_and_go(rig: GroupRig, port: int) -> None:
    rig.report(ALL)
    other = free_port()
    listener = rig.listen(Rule(UDP, other, other, other))
    rig.settle()
    assert rig.ports() == {port, other}
    rig.udp.detach_listener(listener)
    rig.settle()
    assert rig.ports() == {port}


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ({"address": bytes(4)}, True),
        ({"address": bytes((127, 0, 0, 1))}, False),
        ({"target": bytes((192, 0, 2, 77))}, False),
        ({"ifname": "lo"}, True),
    ],
)
def test_rules_that_count(rig: GroupRig, port: int, rule: dict[str, object], counts: bool) -> None:
    other = free_port()
    rig.listen(Rule(UDP, other, other, other, **rule))  # type: ignore[arg-type]
    rig.report(ALL)
    assert rig.ports() == ({port, other} if counts else {port})


def test_translated_port(rig: GroupRig) -> None:
    other = free_port()
    rig.listen(Rule(UDP, other, other, 7000))
    rig.report(ALL)
    rig.sender().sendto(b"x", (GROUP_TEXT, other))
    (packet,) = rig.guest_gets(1)
    assert packet.ports[1] == 7000


def test_rule_and_membership_deliver_once() -> None:
    """An IPv4 listening socket gets what the host is a member of, by whatever means."""
    port = free_port()
    rig = GroupRig(Rule(UDP, port, port, port, address=bytes(4)))
    rig.member(port)
    sender = rig.sender()
    sender.sendto(b"before", (GROUP_TEXT, port))
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"before"]
    assert len(rig.flows()) == 1
    rig.report(ALL)
    assert rig.flows() == []
    sender.sendto(b"during", (GROUP_TEXT, port))
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"during"]
    rig.settle()
    assert rig.link.sent == []
    rig.report(NONE)
    sender.sendto(b"after", (GROUP_TEXT, port))
    assert [packet.payload for packet in rig.guest_gets(1)] == [b"after"]
    rig.close()


# Questions.


def later(rig: GroupRig, seconds: float) -> None:
    """Let time pass: the loop's, in one step, with its timers."""
    rig.loop.now += seconds
    rig.loop._expire(rig.loop.now)


def queries(rig: GroupRig) -> int:
    """How many general queries were sent; AssertionError for anything else."""
    frames = [frame for _, frame in rig.link.sent]
    rig.link.sent.clear()
    for frame in frames:
        packet = Ether(frame)[IP]
        assert (packet.dst, packet.proto) == ("224.0.0.1", 2)
        assert IGMPv3_MQ(bytes(packet)[24:]).type == 0x11
    return len(frames)


def test_guest_is_asked_while_it_is_a_member(rig: GroupRig) -> None:
    later(rig, 10 * QUERY_INTERVAL)
    assert queries(rig) == 0
    rig.report(ALL)
    later(rig, QUERY_INTERVAL - 1)
    assert queries(rig) == 0
    for _ in range(5):
        later(rig, QUERY_INTERVAL + 1)
        assert queries(rig) == 1
        rig.report(ALL)
    rig.report(NONE)
    later(rig, QUERY_INTERVAL + 1)
    queries(rig)
    assert not [timer for _, _, timer in rig.loop._timers if timer.callback == rig.groups._ask]
    later(rig, 10 * QUERY_INTERVAL)
    assert queries(rig) == 0


def test_member_that_does_not_answer_is_forgotten(rig: GroupRig, port: int) -> None:
    rig.report(ALL, (TO_EXCLUDE, bytes((239, 1, 2, 4)), ()))
    for _ in range(3):
        later(rig, QUERY_INTERVAL + 1)
        rig.report(ALL)
    assert rig.ports() == {port}
    assert rig.ports(bytes((239, 1, 2, 4))) == set()


# Another network.


def test_members_move_with_the_link(
    rig: GroupRig, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same groups on another interface, flows anew; none without, and a question when back."""
    rig.report(ALL)
    rig.guest_sends(4, 3333, b"x", to=GROUP)
    now: dict[int, Place] = {4: Place(True, 1, "lo")}
    monkeypatch.setattr(translator, "places", lambda _config: dict(now))
    members = dict(rig.groups._groups[GROUP].members)
    rig.groups.renew()
    assert rig.groups._groups[GROUP].members == members
    assert rig.flows() == []
    assert not rig.groups._senders
    # By another name, the only interface here where this works for certain.
    now[4] = Place(True, 1, "other")
    rig.groups.renew()
    assert rig.ports() == {port, 3333}
    assert all(member.index < 0 for member in members.values())
    rig.sender().sendto(b"x", (GROUP_TEXT, port))
    assert len(rig.guest_gets(1)) == 1
    now.clear()
    rig.groups.renew()
    assert member_sockets(rig) == len(rig.groups._groups) == 0
    rig.guest_sends(4, 3333, b"x", to=GROUP)
    rig.report(ALL)
    assert rig.flows() == []
    assert not rig.groups._groups
    now[4] = Place(True, 1, "lo")
    rig.groups.renew()
    later(rig, 6)
    assert queries(rig) == 1
    rig.report(ALL)
    assert rig.ports() == {port}


# Bounds.


def test_groups_are_limited(rig: GroupRig) -> None:
    before = drops.counts[drops.MEMBERSHIP_LIMIT]
    groups = [bytes((239, 5, 0, i)) for i in range(100)]
    rig.report(*((TO_EXCLUDE, group, ()) for group in groups))
    assert len(rig.groups._groups) == translator.MAX_GROUPS
    assert drops.counts[drops.MEMBERSHIP_LIMIT] == before + 1
    rig.report((TO_INCLUDE, groups[0], ()))
    rig.report((TO_EXCLUDE, groups[99], ()))
    assert groups[99] in rig.groups._groups


def test_sockets_are_limited(rig: GroupRig) -> None:
    for _ in range(20):
        number = free_port()
        if number not in rig.udp._host.listeners:
            rig.listen(Rule(UDP, number, number, number))
    rig.report(*((TO_EXCLUDE, bytes((239, 5, 0, i)), ()) for i in range(64)))
    assert member_sockets(rig) == members.MAX_SOCKETS == rig.groups._members


def test_the_flow_table_limits_sockets_too(port: int) -> None:
    rig = GroupRig(Rule(UDP, port, port, port), limit=10)
    rig.report(*((TO_EXCLUDE, bytes((239, 5, 0, i)), ()) for i in range(64)))
    assert 0 < member_sockets(rig) <= 10
    rig.report(*((TO_INCLUDE, bytes((239, 5, 0, i)), ()) for i in range(64)))
    assert rig.table.count == 0
    rig.close()


def test_reports_are_limited_and_asked_for_again(rig: GroupRig) -> None:
    """A guest that joins and leaves all the time costs only so much; the truth comes out later."""
    before = drops.counts[drops.MEMBERSHIP_LIMIT]
    for _ in range(2000):
        rig.report(ALL)
        rig.report(NONE)
    assert drops.counts[drops.MEMBERSHIP_LIMIT] > before + 1000
    rig.link.sent.clear()
    later(rig, 6)
    assert queries(rig) == 1
    rig.report(ALL)
    assert len(rig.ports()) == 1


def test_changes_do_not_cost_more_where_much_is_forwarded(rig: GroupRig, port: int) -> None:
    """Neither ports nor flows are walked through for a change: that would be 40 ms each."""
    side = rig.udp._host
    added = range(port + 1, 65536)
    side.listeners.update({number: [] for number in added})
    keys = [number.to_bytes(12, "big") for number in range(100000)]
    side.flows.update(dict.fromkeys(keys))  # type: ignore[arg-type]
    before = time.thread_time()
    for _ in range(100):
        rig.report(ALL)
        assert rig.ports() == {port}
        rig.report(NONE)
    spent = time.thread_time() - before
    for number in added:
        del side.listeners[number]
    for key in keys:
        del side.flows[key]
    assert spent < 1.0


def test_malformed_reports_are_counted(rig: GroupRig) -> None:
    before = drops.counts[drops.MEMBERSHIP_FORMAT]
    rig.groups.igmp(memoryview(bytes(8)), 0, 8)
    rig.groups.igmp(memoryview(b""), 0, 0)
    assert drops.counts[drops.MEMBERSHIP_FORMAT] == before + 2


def test_reports_of_a_version_without_interface(rig: GroupRig) -> None:
    message = bytes(8) + bytes((131,))
    assert rig.groups.mld(memoryview(message), 0, 8, 9)
    assert not rig.groups.mld(memoryview(bytes(8) + b"\x80"), 0, 8, 9)
    assert not rig.groups._groups


def test_groups_of_the_link_are_not_joined(rig: GroupRig) -> None:
    rig.report((TO_EXCLUDE, bytes((224, 0, 0, 2)), ()))
    assert not rig.groups._groups


def test_group_that_cannot_be_joined(rig: GroupRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a warning; the guest is a member all the same, and may leave."""

    def fail(*_: object) -> None:
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr("passt.userspace.multicast.sockets.Place.receiver", fail)
    rig.report(ALL)
    assert GROUP in rig.groups._groups
    assert rig.ports() == set()
    rig.report(NONE)
    assert not rig.groups._groups


def test_guest_with_another_mac(rig: GroupRig, port: int) -> None:
    rig.report(ALL)
    sender = rig.sender()
    for mac in (GUEST_MAC, b"\2\0\0\0\0\7"):
        rig.link.guest_mac = mac
        sender.sendto(b"x", (GROUP_TEXT, port))
        (packet,) = rig.guest_gets(1)
        assert packet.dst_mac == mac


FEW_GROUPS = [bytes((239, 8, 0, i)) for i in range(4)] + [bytes((224, 0, 0, 2))]
FEW_SOURCES = st.lists(st.integers(1, 4).map(lambda i: bytes((10, 0, 0, i))), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("report"),
            st.lists(
                st.tuples(st.integers(1, 6), st.sampled_from(FEW_GROUPS), FEW_SOURCES.map(tuple)),
                max_size=4,
            ),
        ),
        st.tuples(st.just("send"), st.sampled_from(FEW_GROUPS), st.integers(31000, 31003)),
        st.tuples(st.just("rule"), st.integers(31000, 31003)),
        st.tuples(st.just("later"), st.integers(1, 300)),
        st.tuples(
            st.just("silence"),
        ),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    """Groups are those reported last and not silent for too long; each port of one has a socket."""
    rig = GroupRig()
    before = len(os.listdir("/proc/self/fd"))
    expected: dict[bytes, tuple[Filter, float]] = {}
    sent: dict[bytes, set[int]] = {}
    rules: dict[int, Listener] = {}
    try:
        for what, *operands in steps:
            if what == "report":
                rig.report(*operands[0])
                for kind, group, sources in operands[0]:
                    if group[0] == 224:
                        continue
                    heard = expected.get(group, (Filter(), 0.0))[0].apply(kind, sources)
                    expected[group] = heard, rig.loop.now
                    if heard.is_empty:
                        del expected[group]
                        sent.pop(group, None)
            elif what == "send":
                rig.guest_sends(4, operands[1], b"x", to=operands[0])
            elif what == "rule":
                port = operands[0]
                if port in rules:
                    rig.udp.detach_listener(rules.pop(port))
                else:
                    rules[port] = rig.listen(Rule(UDP, port, port, port))
            elif what == "later":
                later(rig, operands[0])
            else:
                for flow in rig.flows():
                    rig.udp.end(flow)
            now = rig.loop.now
            rig.loop.round(0.0)
            # Whoever was asked and did not answer is forgotten only when somebody looks.
            known = rig.groups._groups
            for group in set(expected) - set(known):
                assert now - expected.pop(group)[1] > translator.LIFETIME
                sent.pop(group, None)
            assert set(known) == set(expected)
            for flow in rig.flows():
                group, port, *_ = split(flow.host_key)
                if group in known:
                    sent.setdefault(group, set()).add(port)
            for group, membership in known.items():
                assert membership.filter == expected[group][0]
                assert set(membership.members) == sent.get(group, set()) | set(rules)
            assert rig.groups._members == member_sockets(rig)
    finally:
        rig.report(*((TO_INCLUDE, group, ()) for group in FEW_GROUPS))
        for listener in rules.values():
            rig.udp.detach_listener(listener)
        rig.close()
        rig.loop.round(0.0)
        rig.loop._epoll.close()
    assert rig.table.count == 0
    assert not rig.groups._senders
    assert len(os.listdir("/proc/self/fd")) <= before


def test_many_sources_are_not_remembered_for_ever(rig: GroupRig, port: int) -> None:
    rig.report(ALL)
    for _ in range(100):
        rig.sender().sendto(b"x", (GROUP_TEXT, port))
    rig.guest_gets(100)
    (member,) = rig.groups._groups[GROUP].members.values()
    assert len(member.streams) <= 16
