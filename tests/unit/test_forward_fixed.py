"""Which sockets are open from the start, and what is fatal then."""

from __future__ import annotations

import errno

import pytest

from passt.userspace.flow.rules import (
    BEST_EFFORT,
    HOST,
    Rule,
)
from passt.userspace.forward.side import ForwardError
from tests.unit.forward_rules import LOCALHOST, T, U, errors, rule
from tests.unit.forward_world import World


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return errors(monkeypatch)


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
