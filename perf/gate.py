"""Whether a change made something slower, on a machine that is not quiet.

Only values of the same round are compared: the *head* with the *base*, if there are two sources, or
with the reference ``direct``, whose ratio a stored *baseline* knows.  In two stages:

1. Some rounds of all cases.  A case whose median ratio is below the tolerance is *suspect*.
2. More rounds of the suspects alone, and a verdict from these alone.  A case is a regression if
   their median is below the tolerance again, *and* so many of the ratios are below half of the
   tolerance that a fair coin would hardly do it (sign test).

A suspect that cannot become a regression any more is not measured further.

So one burst of other work does not make a regression: noise would have to point the same way
in both stages.  A head that yields no value where the base does is a regression, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perf.cases.base import Case
from perf.results import Results
from perf.rounds import Run
from perf.statistic import paired_ratios, sign_test
from perf.table import median_ratio

#: The least number of rounds of the second stage: ten of thirteen are enough for a verdict.  With
#: pairs that differ by a fifth for no reason, a third of the speed that is lost is found nine times
#: in ten, and nothing is found where nothing is (tests/unit/test_perf_gate.py).
CONFIRMING = 13


@dataclass(frozen=True)
class Rule:
    """What is a regression."""

    tolerance: float = 0.15  # of the speed that may be lost
    chance: float = 0.05  # of being wrong about the direction

    def suspect(self, ratios: Sequence[float]) -> bool:
        """Whether the ratios of the first stage call for a second."""
        return not ratios or statistics.median(ratios) < 1 - self.tolerance

    def regression(self, ratios: Sequence[float]) -> bool:
        """Whether the ratios of the second stage show a regression."""
        if not ratios:
            return True
        below = sign_test(ratios, 1 - self.tolerance / 2) <= self.chance
        return below and self.suspect(ratios)

    def settled(self, ratios: Sequence[float], done: int, left: int) -> bool:
        """Whether the *left* rounds cannot make a regression of what *done* rounds gave.

        Or if there is nothing to be measured, as nothing came of the first three.
        """
        if not ratios:
            return done >= 3
        worst = [*ratios, *[0.0] * left]
        return sign_test(worst, 1 - self.tolerance / 2) > self.chance


@dataclass(frozen=True)
class Verdict:
    """What was found for a case."""

    case: str
    ratios: tuple[float, ...]  # of the stage that decided; 1 is unchanged
    suspect: bool = False
    regression: bool = False

    def __str__(self) -> str:
        word = "REGRESSION" if self.regression else "ok, at second look" if self.suspect else "ok"
        if not self.ratios:
            return f"{self.case}: {word}, no values"
        low, high = min(self.ratios), max(self.ratios)
        median = statistics.median(self.ratios)
        return f"{self.case}: ×{median:.2f} ({low:.2f} to {high:.2f}) {word}"


Ratios = Callable[[Results, str], list[float]]


def against_subject(metrics: Mapping[str, str], head: str, base: str) -> Ratios:
    """Ratios of two subjects of the same run, by the primary metric of each case."""

    def ratios(results: Results, case: str) -> list[float]:
        metric = metrics[case]
        ours, theirs = (results.values(case, subject, metric) for subject in (head, base))
        return paired_ratios(metric, ours, theirs)

    return ratios


def against_baseline(
    metrics: Mapping[str, str], head: str, reference: str, baseline: Mapping[str, float]
) -> Ratios:
    """Ratios to the reference of the same run, relative to that of the baseline."""
    to_reference = against_subject(metrics, head, reference)

    def ratios(results: Results, case: str) -> list[float]:
        return [ratio / baseline[case] for ratio in to_reference(results, case)]

    return ratios


def baseline_ratios(results: Results, subject: str, reference: str) -> dict[str, float]:
    """By case, the ratio of *subject* to *reference* in stored results."""
    found = {}
    for case, info in results.cases.items():
        ratio = median_ratio(results, case, info.primary, subject, reference)
        if ratio is not None:
            found[case] = ratio
    return found


class Gate:
    """Both stages, on a run."""

    def __init__(self, run: Run, ratios: Ratios, rule: Rule, base: str) -> None:
        self.run = run
        self.ratios = ratios
        self.rule = rule
        self.base = base

    def all(self) -> list[Verdict]:
        """The verdicts on all cases that the base or reference has values of."""
        rounds = self.run.settings.rounds
        measurements = len(self.run.pairs()) * (rounds + 1)
        self.run.progress.start(measurements, self.run.estimate())
        self.run.warm_up()
        first = self._measure(self.run.cases, rounds)
        suspects = [
            case
            for case in self.run.cases
            if case.name in first and self.rule.suspect(first[case.name])
        ]
        second: dict[str, list[float]] = {}
        if suspects:
            more = max(CONFIRMING, 2 * rounds + 1)
            names = ", ".join(case.name for case in suspects)
            self.run.progress.note(f"{more} more rounds for: {names}")
            second = self._measure(suspects, more, early=True)
        verdicts = []
        for name, ratios in first.items():
            if name in second:
                worse = self.rule.regression(second[name])
                verdicts.append(Verdict(name, tuple(second[name]), True, worse))
            else:
                verdicts.append(Verdict(name, tuple(ratios)))
        return verdicts

    def _measure(
        self, cases: Sequence[Case], rounds: int, early: bool = False
    ) -> dict[str, list[float]]:
        """Ratios of new rounds, by case; with *early* only until the verdict is settled."""
        results = self.run.results
        results.samples.clear()
        going = {case.name for case in cases}
        for done in range(1, rounds + 1):
            pairs = [pair for pair in self.run.pairs() if pair[0].name in going]
            self.run.round(pairs)
            if early:
                going -= {
                    name
                    for name in going
                    if self.rule.settled(self.ratios(results, name), done, rounds - done)
                }
        return {
            case.name: self.ratios(results, case.name)
            for case in cases
            if results.values(case.name, self.base, case.primary)
        }
