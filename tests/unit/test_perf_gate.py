"""The gate of the performance suite: its rule, and both stages with simulated noise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.cases.base import Case, Outcome, Settings, Work
from perf.gate import Gate, Rule, Verdict, against_baseline, against_subject, baseline_ratios
from perf.lab import Lab
from perf.progress import Progress
from perf.results import CaseInfo, Results, Sample, SubjectInfo
from perf.rounds import Run
from tests.unit.test_perf_rounds import FakeLab, FakeSubject, Notes

RATIOS = st.lists(st.floats(0.01, 100), min_size=1, max_size=15)
RULE = Rule()

# -- the rule -------------------------------------------------------------------------------------


@given(RATIOS)
def test_no_regression_without_suspicion(ratios: list[float]) -> None:
    if RULE.regression(ratios):
        assert RULE.suspect(ratios)


@given(RATIOS, st.floats(1.0, 10.0))
def test_faster_is_never_worse(ratios: list[float], factor: float) -> None:
    faster = [ratio * factor for ratio in ratios]
    assert RULE.suspect(faster) <= RULE.suspect(ratios)
    assert RULE.regression(faster) <= RULE.regression(ratios)


@given(RATIOS, st.floats(0.15, 0.9))
def test_more_tolerance_never_finds_more(ratios: list[float], tolerance: float) -> None:
    wider = Rule(tolerance)
    assert wider.suspect(ratios) <= RULE.suspect(ratios)
    assert wider.regression(ratios) <= RULE.regression(ratios)


@given(RATIOS, st.randoms())
def test_order_is_of_no_importance(ratios: list[float], rnd: random.Random) -> None:
    other = list(ratios)
    rnd.shuffle(other)
    assert RULE.regression(other) == RULE.regression(ratios)


@given(st.lists(st.floats(0.93, 2.0), min_size=1))
def test_within_half_of_the_tolerance_is_no_regression(ratios: list[float]) -> None:
    assert not RULE.suspect(ratios)
    assert not RULE.regression(ratios)


def test_a_few_low_values_are_no_regression() -> None:
    assert not RULE.regression([0.1, 0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert not RULE.regression([0.5] * 3)  # a fair coin does that
    assert RULE.regression([0.5] * 9)
    assert RULE.regression([0.5] * 8 + [1.5])
    assert not RULE.regression([0.5] * 7 + [1.5] * 2)
    assert RULE.regression([0.5] * 10 + [1.5] * 3)


@given(st.lists(st.sampled_from([0.5, 0.95]), min_size=1, max_size=12), st.integers(0, 12))
def test_what_is_settled_stays_so(ratios: list[float], left: int) -> None:
    if RULE.settled(ratios, len(ratios), left):
        assert not RULE.regression(ratios)
        assert not any(RULE.regression(ratios + [0.5] * more) for more in range(left + 1))
    else:
        assert RULE.regression(ratios + [0.5] * left) or left + len(ratios) < 5


def test_no_values_are_a_regression() -> None:
    assert RULE.suspect([])
    assert RULE.regression([])


# -- both stages ----------------------------------------------------------------------------------


class Noise:
    """Figures of a busy machine: the speed drifts, and a fifth of the measurements is disturbed."""

    def __init__(self, seed: int, factor: float) -> None:
        self._random = random.Random(seed)
        self._drift = 1.0
        self._factor = factor

    def measure(self, work: Work) -> Outcome:
        """A rate; the subject b has *factor* of the speed of a."""
        rnd = self._random
        self._drift *= rnd.lognormvariate(0, 0.05)
        speed = 10 * self._drift * rnd.lognormvariate(0, 0.08)
        if rnd.random() < 0.2:
            speed *= rnd.uniform(0.3, 0.9)
        return Outcome({"rate": speed * (self._factor if work.subject.name == "b" else 1)})


def gate(cases: Sequence[Case], rounds: int = 5) -> Gate:
    """A gate for subject b against a."""
    subjects = [FakeSubject(name, Notes()) for name in "ab"]
    settings = Settings(rounds=rounds, counting=False)
    run = Run(cast(Lab, FakeLab()), subjects, cases, settings, Progress())
    metrics = {case.name: case.primary for case in cases}
    return Gate(run, against_subject(metrics, "b", "a"), RULE, "a")


def simulate(seed: int, *factors: float) -> list[Verdict]:
    """The verdicts on cases that differ by *factors*."""
    noises = [Noise(seed * 100 + number, factor) for number, factor in enumerate(factors)]
    return gate(
        [Case(str(number), "", "rate", noise.measure) for number, noise in enumerate(noises)]
    ).all()


def test_an_unchanged_build_passes() -> None:
    """Nine cases, fifty times."""
    failed = sum(any(v.regression for v in simulate(seed, *[1.0] * 9)) for seed in range(50))
    assert failed == 0


def test_a_slow_build_is_caught_and_named() -> None:
    """One case of three at two thirds of the speed, fifty times."""
    named = [[v.case for v in simulate(seed, 1.0, 0.66, 1.0) if v.regression] for seed in range(50)]
    assert named.count(["1"]) >= 42
    assert all(names in ([], ["1"]) for names in named)


def test_a_fast_build_passes() -> None:
    assert not any(v.regression or v.suspect for v in simulate(1, 1.5, 3.0))


def test_a_broken_path_is_a_regression() -> None:
    def measure(work: Work) -> Outcome:
        if work.subject.name == "b":
            raise AssertionError("no connection")
        return Outcome({"rate": 1.0})

    tried = gate([Case("broken", "", "rate", measure)], rounds=1)
    (verdict,) = tried.all()
    assert verdict.regression
    assert len(tried.run.results.samples) == 3  # of the base: it is given up soon
    assert str(verdict) == "broken: REGRESSION, no values"


def test_what_the_base_cannot_do_is_not_judged() -> None:
    def measure(work: Work) -> Outcome:
        if work.subject.name == "a":
            raise AssertionError("no connection")
        return Outcome({"rate": 1.0})

    assert gate([Case("new", "", "rate", measure)], rounds=1).all() == []


# -- against a baseline ---------------------------------------------------------------------------


def results(subjects: dict[str, float]) -> Results:
    """One round of one case."""
    return Results(
        "",
        subjects={name: SubjectInfo(name) for name in subjects},
        cases={"one": CaseInfo("one", "one", "p50")},
        samples=[Sample("one", name, 1, {"p50": value}) for name, value in subjects.items()],
    )


def test_baseline_is_a_ratio() -> None:
    stored = baseline_ratios(results({"direct": 10.0, "ours": 40.0}), "ours", "direct")
    assert stored == {"one": 0.25}
    ratios = against_baseline({"one": "p50"}, "head", "direct", stored)
    # A machine that is twice as slow changes nothing, latency that doubles does.
    assert ratios(results({"direct": 20.0, "head": 80.0}), "one") == [1.0]
    assert ratios(results({"direct": 20.0, "head": 160.0}), "one") == [0.5]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "one: ×0.90 (0.80 to 1.00) ok"),
        ({"suspect": True}, "one: ×0.90 (0.80 to 1.00) ok, at second look"),
        ({"suspect": True, "regression": True}, "one: ×0.90 (0.80 to 1.00) REGRESSION"),
    ],
)
def test_verdicts_for_people(fields: dict[str, Any], text: str) -> None:
    assert str(Verdict("one", (0.8, 0.9, 1.0), **fields)) == text
