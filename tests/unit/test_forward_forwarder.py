"""Which sockets are open, at start, as others come and go, and when rules change."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passt.userspace import log
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SPLICE,
    Rule,
    RuleTable,
)
from passt.userspace.forward.side import ForwardError
from tests.unit.forward_world import FakeSocket, World

T, U = IPPROTO_TCP, IPPROTO_UDP
LOCALHOST = bytes((127, 0, 0, 1))


def rule(
    first: int,
    last: int = 0,
    to: int = 0,
    protocol: int = T,
    address: bytes | None = None,
    ifname: str = "",
    flags: int = 0,
) -> Rule:
    return Rule(protocol, first, last or first, to or first, address, ifname, None, flags)


def auto(first: int = 1, last: int = 65535, protocol: int = T, to: int = 0) -> Rule:
    return rule(first, last, to, protocol, flags=AUTO | BEST_EFFORT)


def tables(world: World, inbound: list[Rule], outbound: list[Rule]) -> list[RuleTable]:
    made = []
    for pif, rules in ((HOST, inbound), (SPLICE, outbound)):
        table = RuleTable(pif, world.config.rule_caps)
        table.extend(rules)
        made.append(table)
    return made


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    def limited(_key: object, level: int, msg: str, *args: object) -> None:
        assert level == log.ERR
        lines.append(msg % args)

    monkeypatch.setattr(log, "limited", limited)
    return lines


# Fixed rules at start


def test_fixed_rules_are_opened_and_served() -> None:
    world = World([rule(80, 82), rule(53, protocol=U)], [rule(5432)]).start()
    assert world.host.listening(T) == [80, 81, 82]
    assert world.host.listening(U) == [53]
    assert world.ns.listening(T) == [5432]
    # Nothing to be scanned or tried again: no timer.
    assert world.loop.timers == []
    assert world.host.scans == world.ns.scans == 0


def test_passt_has_one_side() -> None:
    world = World([rule(80)], mode="passt").start()
    assert world.host.listening(T) == [80]
    assert [table.pif for table in world.forwarder.tables()] == [HOST]


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (rule(80, 90), "HOST TCP port */85"),
        (rule(85, protocol=U, address=LOCALHOST), "HOST UDP port 127.0.0.1/85"),
        (rule(85, ifname="lo"), "HOST TCP port *%lo/85"),
        (rule(85, address=bytes(16)), "HOST TCP port ::/85"),
    ],
)
def test_a_busy_port_of_a_fixed_rule_is_fatal(what: Rule, where: str) -> None:
    world = World([what])
    world.host.errors[85] = errno.EADDRINUSE
    with pytest.raises(ForwardError) as caught:
        world.open()
    assert str(caught.value) == (
        f"Listen failed for {where}: Address already in use\nCouldn't listen on requested ports"
    )


def test_outbound_rules_fail_likewise() -> None:
    world = World([], [rule(85, ifname="lo")])
    world.ns.errors[85] = errno.EACCES
    with pytest.raises(ForwardError, match=r"SPLICE TCP port \*%lo/85: Permission denied"):
        world.open()


def test_best_effort_takes_what_it_can(messages: list[str]) -> None:
    world = World([rule(1, 10, flags=BEST_EFFORT)])
    world.host.errors.update({3: errno.EACCES, 5: errno.EADDRINUSE})
    world.start()
    assert world.host.listening(T) == [1, 2, 4, 6, 7, 8, 9, 10]
    assert messages == []


def test_best_effort_with_nothing_is_fatal() -> None:
    world = World([rule(1, 10, flags=BEST_EFFORT)])
    world.host.errors[None] = errno.EACCES
    with pytest.raises(ForwardError) as caught:
        world.open()
    assert str(caught.value) == (
        "All listens failed for HOST TCP */1-10\nCouldn't listen on requested ports"
    )


def test_running_out_of_descriptors_is_fatal() -> None:
    world = World([rule(1, 1000, flags=BEST_EFFORT)])
    world.host.room = 500
    with pytest.raises(ForwardError, match=r"TCP port \*/501: Too many open files\n"):
        world.open()


def test_failing_to_listen_is_failing_to_bind() -> None:
    world = World([rule(80, 81)])
    world.open()
    world.tcp.refuse[81] = errno.EADDRINUSE
    with pytest.raises(ForwardError, match=r"port \*/81: Address already in use"):
        world.attach()
    assert world.host.listening(T) == [80]


def test_rules_of_a_version_that_is_off() -> None:
    world = World([rule(80, address=LOCALHOST)])
    world.config.v4.enabled = False
    with pytest.raises(ForwardError, match="Address family not supported"):
        world.open()


def test_dual_stack_does_without_ipv6() -> None:
    world = World([rule(80, 300)])
    world.host.errors[None] = errno.EAFNOSUPPORT
    made = world.host.call
    asked: list[int] = []

    def call(specs):  # type: ignore[no-untyped-def]
        families = {spec.plain()[0] for spec in specs}
        assert len(families) == 1
        asked.append(len(specs))
        if families == {2}:
            world.host.errors.clear()
        return made(specs)

    world.forwarder.open_fixed(HOST, call)
    assert len(world.host.listening(T)) == 221
    assert asked[0] == asked[1] == 221


# Automatic rules


def both_ways() -> World:
    return World([auto(protocol=T), auto(protocol=U)], [auto(protocol=T), auto(protocol=U)])


def test_listeners_are_there_at_start() -> None:
    world = both_ways()
    world.ns.others = {(T, 8080), (U, 53)}
    world.host.others = {(T, 5432)}
    world.start()
    assert world.host.listening(T) == [8080]
    assert world.host.listening(U) == [53, 8080]
    assert world.ns.listening(T) == world.ns.listening(U) == [5432]


def test_listeners_come_and_go() -> None:
    world = both_ways().start()
    assert not world.host.bound
    assert not world.ns.bound
    world.ns.others.add((T, 8080))
    world.loop.wait()
    world.check()
    assert world.host.listening(T) == [8080]
    for _ in range(5):
        world.loop.wait()
        # Our own listener on the host is no reason to open anything in the namespace.
        assert world.host.listening(T) == world.host.listening(U) == [8080]
        assert not world.ns.bound
    world.ns.others.clear()
    world.loop.wait()
    world.check()
    assert not world.host.bound


def test_only_what_is_needed_is_scanned() -> None:
    world = World([auto(protocol=T)], [rule(80)]).start()
    world.loop.wait()
    assert world.ns.scans == 2
    assert world.host.scans == 0


def test_scans_are_a_second_apart() -> None:
    world = World([auto()]).start()
    world.ns.others.add((T, 8080))
    world.loop.wait(0.9)
    assert not world.host.bound
    world.loop.wait(0.1)
    assert world.host.listening(T) == [8080]
    assert len(world.loop.timers) == 1


def test_last_descriptors_are_not_for_listeners(messages: list[str]) -> None:
    """A guest that listens on all ports gets as many of them as leave room for the rest."""
    world = World([auto()]).start()
    side = world.forwarder._sides[HOST]
    side._last_fd = FakeSocket(world.host, T, 0).fileno() - 1
    world.ns.others = {(T, port) for port in range(1000, 3000)}
    world.loop.wait()
    assert not world.host.bound
    assert 0 < len(messages) <= 2000
    assert messages[0] == "Listen failed for HOST TCP port */1000: Too many open files"
    side._last_fd += 1
    world.loop.wait()
    world.check()
    assert world.host.listening(T) == list(range(1000, 3000))


def test_ports_outside_of_rules_are_left_alone() -> None:
    world = World([auto(8000, 8010), auto(9000, 9001)])
    world.ns.others = {(T, port) for port in (7999, 8000, 8010, 8011, 9001)}
    world.start()
    assert world.host.listening(T) == [8000, 8010, 9001]


def test_translated_rules_go_by_their_target() -> None:
    world = World([auto(8000, 8002, to=9000), auto(9500, 9500, to=80)])
    world.ns.others = {(T, 9001), (T, 8000), (T, 80)}
    world.start()
    assert world.host.listening(T) == [8001, 9500]


def test_udp_follows_tcp_but_not_the_reverse() -> None:
    world = both_ways()
    world.ns.others = {(U, 53)}
    world.start()
    assert world.host.listening(T) == []
    assert world.host.listening(U) == [53]


def test_udp_does_not_follow_our_own_tcp() -> None:
    world = World([auto(protocol=T)], [auto(protocol=U)])
    world.ns.others = {(T, 5201)}
    world.start()
    world.loop.wait()
    world.loop.wait()
    assert world.host.listening(T) == [5201]
    assert not world.ns.bound


def test_fixed_rules_are_ours_too() -> None:
    world = World([rule(8080)], [auto()]).start()
    world.loop.wait()
    assert not world.ns.bound


def test_a_tie_is_left_alone() -> None:
    """Both sides have a TCP listener on one port; UDP follows on neither."""
    world = both_ways()
    world.ns.others = {(T, 5201)}
    world.host.others = {(T, 5201)}
    world.start()
    for _ in range(4):
        assert not world.host.bound
        assert not world.ns.bound
        world.loop.wait()


def test_a_tie_keeps_what_is_open() -> None:
    world = both_ways()
    world.ns.others = {(T, 5201)}
    world.start()
    assert world.host.listening(U) == [5201]
    # Somebody else manages to listen there, on an address of his own.
    world.host.others = {(T, 5201)}
    for _ in range(4):
        world.loop.wait()
        assert world.host.listening(U) == [5201]
        assert not world.ns.bound


def test_a_service_that_moves() -> None:
    """From the namespace to the host, and back: no trace of old maps."""
    world = both_ways().start()
    for _ in range(3):
        world.ns.others, world.host.others = {(T, 80)}, set()
        world.loop.wait()
        world.loop.wait()
        assert (world.host.listening(T), world.ns.listening(T)) == ([80], [])
        world.ns.others, world.host.others = set(), set()
        world.loop.wait()
        world.host.others = {(T, 80)}
        world.loop.wait()
        world.loop.wait()
        assert (world.host.listening(T), world.ns.listening(T)) == ([], [80])
        world.host.others = set()
        world.loop.wait()


def test_sockets_on_their_way_are_ours() -> None:
    """The thread in the namespace has made sockets that we have not heard of yet."""
    world = both_ways().start()
    world.ns.delayed = []
    world.host.others = {(T, 80)}
    world.loop.wait()
    assert world.ns.listening(T) == [80]
    assert not world.tcp.served
    world.host.others = set()
    world.loop.wait()
    assert not world.host.bound
    world.host.others = {(T, 80)}
    world.ns.deliver()
    world.loop.wait()
    world.ns.deliver()
    world.loop.run()
    world.check()
    assert world.ns.listening(T) == [80]
    assert not world.host.bound


def test_sockets_that_are_closed_later_are_ours_until_then() -> None:
    """The UDP translator keeps listening sockets for flows that have no other."""
    world = both_ways()
    world.ns.others = {(U, 53)}
    world.start()
    world.udp.lingering = []
    world.ns.others = set()
    for _ in range(3):
        world.loop.wait()
        assert world.host.listening(U) == [53]
        assert not world.udp.served
        assert not world.ns.bound
    (sock,) = world.udp.lingering
    sock.close()
    world.udp.lingering = None
    world.ns.others = {(U, 53)}
    world.loop.wait()
    world.check()
    assert world.host.listening(U) == [53]


def test_gone_before_it_arrived() -> None:
    world = both_ways().start()
    world.ns.delayed = []
    world.host.others = {(T, 80)}
    world.loop.wait()
    world.host.others = set()
    world.loop.wait()
    world.ns.deliver()
    world.loop.wait()
    world.ns.deliver()
    world.loop.wait()
    world.check()
    assert not world.ns.bound


def test_busy_ports_are_quiet_and_tried_again(messages: list[str]) -> None:
    world = both_ways()
    world.host.errors[22] = errno.EADDRINUSE
    world.ns.others = {(T, 22)}
    world.start()
    assert not world.host.bound
    world.loop.wait()
    assert messages == []
    world.host.errors.clear()
    world.loop.wait()
    world.check()
    assert world.host.listening(T) == world.host.listening(U) == [22]


def test_busy_ports_of_a_listed_automatic_rule(messages: list[str]) -> None:
    """Said once, in the way of no other rule."""
    world = World([rule(8000, 8010, flags=AUTO), auto(9000, 9000)]).start()
    world.host.errors[8001] = errno.EADDRINUSE
    world.ns.others = {(T, 8001), (T, 8002), (T, 9000)}
    for _ in range(3):
        world.loop.wait()
        assert world.host.listening(T) == [8002, 9000]
    assert messages == ["Listen failed for HOST TCP port */8001: Address already in use"]


def test_without_scans_nothing_is_automatic() -> None:
    world = both_ways()
    for pif, side in world.sides.items():
        world.forwarder.open_fixed(pif, side.call)
    world.ns.others = {(T, 80)}
    world.attach()
    world.loop.wait()
    assert not world.host.bound


def test_many_ports_take_many_rounds() -> None:
    world = both_ways().start()
    world.host.others = {(T, port) for port in range(1000, 4000)}
    before = world.loop.rounds
    world.loop.wait()
    world.check()
    assert len(world.ns.bound) == 6000
    assert world.loop.rounds - before >= 12


LISTENERS = st.sets(st.tuples(st.sampled_from([T, U]), st.integers(1, 4)))
RULES = st.lists(
    st.builds(
        rule,
        st.integers(1, 4),
        to=st.integers(1, 4),
        protocol=st.sampled_from([T, U]),
        flags=st.sampled_from([AUTO | BEST_EFFORT, BEST_EFFORT]),
    ),
    max_size=4,
    unique_by=lambda r: (r.protocol, r.first),
)


@settings(deadline=None)
@given(
    RULES,
    RULES,
    st.lists(st.tuples(LISTENERS, LISTENERS), min_size=1, max_size=4),
)
def test_whatever_others_do_we_come_to_rest(
    inbound: list[Rule], outbound: list[Rule], history: list[tuple[set[tuple[int, int]], ...]]
) -> None:
    world = World(inbound, outbound)
    world.host.others, world.ns.others = history[0]
    try:
        world.start()
    except ForwardError:
        return
    for host, namespace in history:
        # Nobody can take a port that we have.
        world.host.others = host - world.host.bound.keys()
        world.ns.others = namespace - world.ns.bound.keys()
        for _ in range(4):
            world.loop.wait()
        states = []
        for _ in range(3):
            world.loop.wait()
            world.check()
            states.append((sorted(world.host.bound), sorted(world.ns.bound)))
        assert all(a == b for a, b in itertools.pairwise(states))
        # Whatever is open leads to something that is not ours.
        for owner in (world.tcp, world.udp):
            for _sock, what, port, pif in owner.served:
                if what.auto:
                    far = world.ns if pif == HOST else world.host
                    target = what.target_port(port)
                    kinds = (T,) if what.protocol == T else (T, U)
                    assert any((kind, target) in far.others for kind in kinds)


# New rules


def test_rules_that_stay_keep_their_sockets() -> None:
    stays, goes, comes = rule(80), rule(81), rule(82)
    world = World([stays, goes], [rule(5432)]).start()
    kept = world.host.bound[T, 80]
    outcome: list[list[str]] = []
    world.forwarder.replace(
        tables(world, [comes, stays], [rule(5432)]), lambda lines: outcome.append(list(lines))
    )
    assert outcome == []
    world.loop.run()
    world.check()
    assert outcome == [[]]
    assert world.host.listening(T) == [80, 82]
    assert world.host.bound[T, 80] is kept
    assert world.ns.listening(T) == [5432]
    assert [r.first for r in world.forwarder.tables()[0]] == [82, 80]


def test_a_changed_rule_may_have_the_same_port() -> None:
    world = World([rule(80)]).start()
    outcome: list[list[str]] = []
    changed = rule(80, to=8080)
    world.forwarder.replace(tables(world, [changed], []), lambda lines: outcome.append(list(lines)))
    world.loop.run()
    world.check()
    assert outcome == [[]]
    assert [served[1] for served in world.tcp.served] == [changed]


def test_failures_are_told_and_tried_again(messages: list[str]) -> None:
    world = World().start()
    world.host.others = {(T, 81)}
    outcome: list[list[str]] = []
    world.forwarder.replace(
        tables(world, [rule(80, 82), rule(90)], []), lambda lines: outcome.append(list(lines))
    )
    world.loop.run()
    text = "Listen failed for HOST TCP port */81: Address already in use"
    assert outcome == [[text]]
    # Rules after the one that failed are served.
    assert world.host.listening(T) == [80, 82, 90]
    world.loop.wait()
    world.loop.wait()
    assert messages == [text]
    world.host.others.clear()
    world.loop.wait()
    world.check()
    assert world.host.listening(T) == [80, 81, 82, 90]
    world.loop.wait()
    assert world.loop.timers == []


def test_best_effort_failures_are_told_if_total(messages: list[str]) -> None:
    world = World().start()
    world.host.errors.update({1: errno.EACCES, 2: errno.EACCES, 5: errno.EACCES})
    outcome: list[list[str]] = []
    wanted = [rule(1, 2, flags=BEST_EFFORT), rule(5, 6, flags=BEST_EFFORT)]
    world.forwarder.replace(tables(world, wanted, []), lambda lines: outcome.append(list(lines)))
    world.loop.run()
    assert outcome == [["All listens failed for HOST TCP */1-2"]]
    # Without privilege there is no point in trying again.
    assert world.loop.timers == []
    assert messages == outcome[0]


def test_passt_tries_once() -> None:
    world = World(mode="passt").start()
    world.host.others = {(T, 80)}
    world.forwarder.replace(tables(world, [rule(80)], [])[:1])
    world.loop.run()
    assert world.loop.timers == []


def test_the_answer_waits_for_the_namespace() -> None:
    world = World().start()
    world.ns.delayed = []
    outcome: list[list[str]] = []
    world.forwarder.replace(
        tables(world, [rule(80)], [rule(1000, 1999)]), lambda lines: outcome.append(list(lines))
    )
    for _ in range(4):
        world.loop.run()
        assert outcome == []
        world.ns.deliver()
    assert outcome == [[]]
    world.check()
    assert len(world.ns.bound) == 1000


def test_replaced_while_sockets_are_being_made() -> None:
    world = World().start()
    world.ns.delayed = []
    world.forwarder.replace(tables(world, [], [rule(1000, 1999)]))
    world.loop.run()
    assert len(world.ns.bound) == 256
    outcome: list[list[str]] = []
    world.forwarder.replace(
        tables(world, [], [rule(3000)]), lambda lines: outcome.append(list(lines))
    )
    world.loop.run()
    world.ns.deliver()
    world.loop.run()
    world.ns.deliver()
    world.loop.run()
    assert outcome == [[]]
    world.check()
    assert world.ns.listening(T) == [3000]


def test_automatic_rules_can_be_added_and_removed() -> None:
    world = World().start()
    world.ns.others = {(T, 8080)}
    outcome: list[list[str]] = []
    world.forwarder.replace(tables(world, [auto()], []), lambda lines: outcome.append(list(lines)))
    world.loop.run()
    assert outcome == [[]]
    assert world.host.listening(T) == [8080]
    world.ns.others = {(T, 8081)}
    world.loop.wait()
    assert world.host.listening(T) == [8081]
    world.forwarder.replace(tables(world, [], []))
    world.loop.run()
    assert not world.host.bound
    world.loop.wait()
    assert world.loop.timers == []


def test_running_out_of_descriptors_later(messages: list[str]) -> None:
    world = World().start()
    world.host.room = 10
    outcome: list[list[str]] = []
    world.forwarder.replace(
        tables(world, [rule(1, 100, flags=BEST_EFFORT)], []),
        lambda lines: outcome.append(list(lines)),
    )
    world.loop.run()
    assert len(world.host.bound) == 10
    assert outcome[0][0] == "Listen failed for HOST TCP port */11: Too many open files"
    assert len(outcome[0]) == 20
    assert len(messages) == 90
    world.host.room = 1000
    world.loop.wait()
    world.check()
    assert len(world.host.bound) == 100
