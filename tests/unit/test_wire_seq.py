"""Sequence arithmetic: order across the wrap, and agreement of all comparisons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.wire.seq import (
    between,
    near,
    seq_add,
    seq_diff,
    seq_ge,
    seq_gt,
    seq_le,
    seq_lt,
)

SEQ = st.integers(min_value=0, max_value=0xFFFFFFFF)
TOP = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, -1),
        (0, TOP, 1),
        (TOP, 0, -1),
        (0x10, 0xFFFFFFF0, 0x20),
        (0x80000000, 0, -0x80000000),
        (0, 0x80000000, -0x80000000),
        (0x7FFFFFFF, 0, 0x7FFFFFFF),
    ],
)
def test_difference(a: int, b: int, difference: int) -> None:
    assert seq_diff(a, b) == difference


@given(SEQ, SEQ)
def test_comparisons_agree_with_the_difference(a: int, b: int) -> None:
    difference = seq_diff(a, b)
    assert -0x80000000 <= difference < 0x80000000
    assert seq_lt(a, b) is (difference < 0)
    assert seq_le(a, b) is (difference <= 0)
    assert seq_gt(a, b) is (difference > 0)
    assert seq_ge(a, b) is (difference >= 0)


@pytest.mark.parametrize("a", [0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, TOP])
@pytest.mark.parametrize("b", [0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, TOP])
def test_comparisons_agree_at_the_edges(a: int, b: int) -> None:
    difference = seq_diff(a, b)
    assert seq_lt(a, b) is (difference < 0)
    assert seq_le(a, b) is (difference <= 0)
    assert seq_gt(a, b) is (difference > 0)
    assert seq_ge(a, b) is (difference >= 0)


@given(SEQ, st.integers(min_value=-(1 << 31), max_value=(1 << 31) - 1))
def test_addition_is_undone_by_difference(seq: int, count: int) -> None:
    assert 0 <= seq_add(seq, count) <= TOP
    assert seq_diff(seq_add(seq, count), seq) == count


@given(SEQ, st.integers(min_value=0, max_value=1 << 24), st.integers(min_value=0, max_value=TOP))
def test_between(low: int, size: int, ahead: int) -> None:
    assert between(low, seq_add(low, ahead), seq_add(low, size)) is (ahead <= size)


@given(SEQ)
def test_near_ends_at_the_largest_window(seq: int) -> None:
    assert near(seq_add(seq, 1 << 24), seq)
    assert near(seq, seq_add(seq, 1 << 24))
    assert not near(seq_add(seq, (1 << 24) + 1), seq)
    assert not near(seq, seq_add(seq, (1 << 24) + 1))
