"""What is measured: units, which direction is better, and ratios that say so.

Cases return values by the names of this table.  A *ratio* of two values is always such that more
than 1 means better, so that one rule serves rates and times.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A kind of value."""

    unit: str
    higher: bool  # higher is better
    title: str


METRICS = {
    "rate": Metric("Gbit/s", True, "received"),
    "loss": Metric("%", False, "lost datagrams"),
    "packets": Metric("1000/s", True, "received datagrams"),
    "p50": Metric("µs", False, "median"),
    "p90": Metric("µs", False, "90th percentile"),
    "p99": Metric("µs", False, "99th percentile"),
    "p999": Metric("µs", False, "99.9th percentile"),
    "time": Metric("ms", False, "time"),
    "rss": Metric("MiB", False, "resident"),
    "pss": Metric("MiB", False, "proportional share"),
    "flows": Metric("", True, "flows reached"),
    "fill": Metric("s", False, "time for 10,000 flows"),
    "flow-memory": Metric("MiB", False, "memory per 1,000 flows"),
    "flow-descriptors": Metric("", False, "descriptors per flow"),
    "wakeups": Metric("/min", False, "wake-ups"),
    "busy": Metric("ms/min", False, "processor time"),
}

PERCENTILES = ("p50", "p90", "p99", "p999")


def ratio(metric: str, value: float, reference: float) -> float | None:
    """How much better *value* is than *reference*: 2.0 is twice as good; None if undefined."""
    if value <= 0 or reference <= 0:
        return None
    return value / reference if METRICS[metric].higher else reference / value


def show(metric: str, value: float) -> str:
    """*value* with its unit, three significant digits."""
    digits = f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    unit = METRICS[metric].unit
    return f"{digits} {unit}" if unit and not unit.startswith(("/", "%")) else digits + unit
