"""Medians, paired ratios, and the sign test of the performance suite."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.metrics import METRICS, ratio, show
from perf.statistic import paired_ratios, sign_test, summarize

POSITIVE = st.floats(1e-6, 1e6)


@given(st.lists(POSITIVE, min_size=1))
def test_summary(values: list[float]) -> None:
    found = summarize(values)
    assert found.median == statistics.median(values)
    assert (found.low, found.high, found.rounds) == (min(values), max(values), len(values))
    assert found.spread >= 0


def test_summary_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@given(st.sampled_from(sorted(METRICS)), POSITIVE, POSITIVE)
def test_more_than_one_is_better(metric: str, value: float, reference: float) -> None:
    found = ratio(metric, value, reference)
    assert found is not None
    if value != reference:
        better = value > reference if METRICS[metric].higher else value < reference
        assert (found > 1) == better
    other_way = ratio(metric, reference, value)
    assert other_way is not None
    assert found * other_way == pytest.approx(1)


@pytest.mark.parametrize(("value", "reference"), [(0, 1), (1, 0), (0, 0), (-1, 1)])
def test_no_ratio(value: float, reference: float) -> None:
    assert ratio("rate", value, reference) is None


def test_only_rounds_that_both_have_are_paired() -> None:
    assert paired_ratios("rate", {1: 2.0, 2: 3.0, 4: 8.0}, {2: 1.5, 3: 9.0, 4: 2.0}) == [2.0, 4.0]
    assert paired_ratios("p50", {1: 2.0}, {1: 8.0}) == [4.0]
    assert paired_ratios("rate", {1: 2.0}, {2: 8.0}) == []


@pytest.mark.parametrize("count", range(1, 7))
def test_sign_test_is_what_counting_all_outcomes_gives(count: int) -> None:
    outcomes = list(itertools.product((0.5, 1.5), repeat=count))
    for values in outcomes:
        below = sum(value < 1 for value in values)
        as_many = sum(sum(each < 1 for each in other) >= below for other in outcomes)
        assert sign_test(values, 1.0) == pytest.approx(as_many / len(outcomes))


def test_ties_do_not_count() -> None:
    assert sign_test([1.0, 1.0, 0.9, 0.9, 1.1], 1.0) == sign_test([0.9, 0.9, 1.1], 1.0)
    assert sign_test([1.0], 1.0) == 1.0


def test_figures_for_people() -> None:
    assert show("rate", 13.456) == "13.5 Gbit/s"
    assert show("p99", 12345.6) == "12346 µs"
    assert show("loss", 0.5) == "0.5%"
    assert show("flows", 10000) == "10000"
    assert show("wakeups", 30) == "30/min"
