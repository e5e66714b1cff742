"""The memory budget: shares of flows and data, and the numbers that it is based on."""

from __future__ import annotations

from passt.userspace.flow.budget import MAX_DATA, OVERHEAD, Budget, of_process, resident

MIB = 1 << 20


def test_single_flow_gets_half_of_the_room_for_data() -> None:
    budget = Budget(64 * MIB)
    assert budget.data_limit == 16 * MIB
    has = 0
    while budget.allows(65536, has):
        budget.hold(65536)
        has += 65536
    assert has == 8 * MIB
    other = 0
    while budget.allows(65536, other):
        budget.hold(65536)
        other += 65536
    assert other == 4 * MIB
    assert budget.allows(1500, 0)


def test_data_are_bounded_however_many_take_them() -> None:
    budget = Budget(64 * MIB)
    for _ in range(10000):
        if budget.allows(65536, 0):
            budget.hold(65536)
    assert budget.data <= budget.data_limit
    assert budget.tight
    budget.hold(-budget.data)
    assert not budget.tight


def test_largest_share_of_data() -> None:
    assert Budget(1 << 40).data_limit == MAX_DATA
    assert Budget().data_limit == MAX_DATA


def test_room_for_flows() -> None:
    budget = Budget(16 * MIB)
    assert budget.room(1024) == 15 * 1024
    budget.open(1024)
    budget.hold(2048)
    assert budget.room(1024) == 15 * 1024 - 3
    budget.hold(-2048)
    budget.end(1024)
    assert budget.room(1024) == 15 * 1024


def test_tight_by_flows() -> None:
    budget = Budget(16 * MIB)
    budget.open(14 * MIB)
    assert not budget.tight
    budget.open(1)
    assert budget.tight
    budget.end(1)
    assert not budget.tight


def test_what_the_process_has_is_not_for_flows() -> None:
    own = resident()
    assert own > 10 * MIB
    budget = of_process(own + OVERHEAD + 100 * MIB)
    assert 80 * MIB < 1024 * budget.room(1024) * 16 // 15 <= 100 * MIB
    assert of_process(1).room(1024) <= 0
