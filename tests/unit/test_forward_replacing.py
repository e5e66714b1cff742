"""Which sockets are open when rules change."""

from __future__ import annotations

import errno

import pytest

from passt.userspace.flow.rules import (
    BEST_EFFORT,
)
from tests.unit.forward_rules import T, auto, errors, rule, tables
from tests.unit.forward_world import World


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return errors(monkeypatch)


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
