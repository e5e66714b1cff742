"""The flow table: lowest free index, limit, and removal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.flow.table import MAX_FLOWS, Flow, FlowTable


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
            assert table.add(flow) == bool(free)
            if free:
                assert flow.index == free[0]
                taken[free[0]] = flow
        assert table.count == len(taken)
        assert table.flows() == [taken[index] for index in sorted(taken)]
