"""The flow table: lowest free index, limits, fairness, and removal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.flow.budget import Budget
from passt.userspace.flow.table import FAIR, MAX_FLOWS, RESERVE, Flow, FlowTable


def test_limit() -> None:
    table = FlowTable(2)
    flows = [Flow() for _ in range(3)]
    assert [table.add(flow) for flow in flows] == [True, True, False]
    assert [flow.index for flow in flows] == [0, 1, -1]
    assert (table.count, table.refused) == (2, 1)
    table.remove(flows[2])
    table.remove(flows[0])
    table.remove(flows[0])
    assert table.count == 1
    assert table.add(flows[2])
    assert flows[2].index == 0
    assert FlowTable().limit == MAX_FLOWS == 131071


def test_text() -> None:
    flow = Flow()
    assert str(flow) == "Flow -1 (flow): "


@given(st.lists(st.integers(0, 20), max_size=80))
def test_against_a_set(steps: list[int]) -> None:
    """Number n adds or removes the n-th flow; the lowest free index is taken."""
    table = FlowTable(15)
    flows = [Flow() for _ in range(21)]
    taken: dict[int, Flow] = {}
    for step in steps:
        flow = flows[step]
        if flow.index >= 0:
            del taken[flow.index]
            table.remove(flow)
            assert flow.index == -1
        else:
            free = [index for index in range(15) if index not in taken]
            source = bytes((step,))
            assert table.add(flow, f"group {step}", source) == bool(free)
            if free:
                assert flow.index == free[0]
                taken[free[0]] = flow
        assert table.count == len(taken)
        assert table.flows() == [taken[index] for index in sorted(taken)]
    for flow in taken.values():
        table.remove(flow)
    assert (table.count, table.sockets, table.budget.flows, table._counts) == (0, 0, 0, {})


# Fairness.


def fill(table: FlowTable, group: str, source: bytes, most: int = 10**6) -> list[Flow]:
    """Flows of one party, as many as it can have."""
    made = []
    while len(made) < most:
        flow = Flow()
        if not table.add(flow, group, source):
            break
        made.append(flow)
    return made


def test_greedy_party_leaves_a_ninth() -> None:
    table = FlowTable(9000)
    assert len(fill(table, "guest", b"a")) == 8000
    # Another address, protocol and all: it gets its share of what is left.
    assert len(fill(table, "host", b"b")) == 889
    assert len(fill(table, "ping", b"c")) == 99


def test_source_does_not_starve_others_of_its_group() -> None:
    table = FlowTable(9000)
    fill(table, "host", b"greedy")
    assert not table.admits(Flow, "host", b"greedy")
    # The group has used up its share as well, through one source: it is the same eight ninths.
    table.remove(table.flows()[0])
    assert table.admits(Flow, "host", b"modest")


def test_group_is_held_to_its_share_by_however_many_sources() -> None:
    table = FlowTable(9000)
    made = 0
    for number in range(20000):
        made += table.add(Flow(), "flood", number.to_bytes(4, "big"))
    assert made == 8000
    assert table.admits(Flow, "other", b"x")


def test_hosts_of_one_ipv6_network_are_one_source() -> None:
    table = FlowTable(9000)
    prefix = bytes.fromhex("20010db800010002")
    for number in range(20000):
        table.add(Flow(), f"group {number}", prefix + number.to_bytes(8, "big"))
    assert table.count == 8000
    assert table.admits(Flow, "x", bytes.fromhex("20010db800010003") + bytes(8))


def test_shares_become_equal() -> None:
    """Flows of a party that had everything end; another one takes the places."""
    table = FlowTable(1700)
    first = fill(table, "a", b"a")
    second = fill(table, "b", b"b")
    assert len(first) > 8 * len(second)
    for _ in range(4000):
        table.remove(first.pop(0))
        for mine, name in ((second, "b"), (first, "a")):
            mine += fill(table, name, name.encode(), 1)
    assert abs(len(first) - len(second)) < 20
    assert table.limit - table.count >= 0.95 * 1700 // (2 * FAIR + 1)


# Descriptors.


class Pair(Flow):
    """A flow with two sockets."""

    __slots__ = ()
    sockets = 2


def test_reserve_of_descriptors() -> None:
    table = FlowTable()
    table.limit_descriptors(20000, 100)
    assert table.socket_limit == 20000 - RESERVE - 100
    assert len(fill(table, "a", b"a")) <= table.socket_limit
    small = FlowTable()
    small.limit_descriptors(64, 20)
    assert small.socket_limit == 28


def test_both_sockets_count() -> None:
    table = FlowTable()
    table.limit_descriptors(20000, 976)
    made = 0
    while table.add(Pair(), f"g{made % 500}", b""):
        made += 1
    assert table.sockets == 2 * made <= 18000
    while table.add(Pair(), "another", made.to_bytes(4, "big")):
        made += 1
    assert 17700 < table.sockets <= 18000


def test_number_of_a_descriptor_tells_of_others() -> None:
    """However few flows there are: a high number means that all lower ones are in use."""
    table = FlowTable()
    table.limit_descriptors(1024, 10)
    assert table.add(Flow(), fd=767)
    assert not table.add(Flow(), fd=768)
    assert table.refused == 1


# Memory.


def test_memory_ends_before_entries_do() -> None:
    table = FlowTable(budget=Budget(1 << 20))
    made = fill(table, "a", b"a")
    assert len(made) < (1 << 20) // Flow.cost
    fill(table, "b", b"b")
    fill(table, "c", b"c")
    fill(table, "d", b"d")
    # The last sixteenth is for those which exist.
    assert table.budget.flows <= (1 << 20) - (1 << 16)
    assert table.budget.tight
    for flow in made:
        table.remove(flow)
    assert not table.budget.tight
