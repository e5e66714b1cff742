"""Medians, spread, paired ratios, and the sign test.

Noise on a shared machine is neither small nor normal: bursts of other work make some rounds much
slower.  So nothing here assumes a distribution.  Pairs are values of the same round; the sign test
asks how often a pair went one way, and how likely that is if both ways are equally likely.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from perf.metrics import ratio


class Summary(NamedTuple):
    """Values of several rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the distance of the extremes, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def summarize(values: Iterable[float]) -> Summary:
    """Summarize *values*; ValueError if there are none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return Summary(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


def paired_ratios(
    metric: str, ours: Mapping[int, float], theirs: Mapping[int, float]
) -> list[float]:
    """Ratios, more than 1 for better, of the rounds that both have; values by round."""
    found = []
    for number in sorted(ours.keys() & theirs.keys()):
        quotient = ratio(metric, ours[number], theirs[number])
        if quotient is not None:
            found.append(quotient)
    return found


def sign_test(values: Sequence[float], pivot: float) -> float:
    """The chance of as many values below *pivot* as there are, or more, by fair coin.

    Values equal to *pivot* do not count.  One-sided: small if most are below.
    """
    below = sum(value < pivot for value in values)
    total = below + sum(value > pivot for value in values)
    ways = sum(math.comb(total, k) for k in range(below, total + 1))
    return ways / float(2**total)
