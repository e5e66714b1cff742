"""Which sockets of automatic rules are open, as others come and go."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    HOST,
    Rule,
)
from passt.userspace.forward.side import ForwardError
from tests.unit.forward_rules import T, U, auto, errors, rule
from tests.unit.forward_world import FakeSocket, World


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return errors(monkeypatch)


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
