"""Plots of results, by matplotlib, which is imported when the first is drawn.

Each function takes results and returns a figure, or None if they do not hold what it shows.  What
is to be seen is chosen by functions without drawing (:func:`series`, :func:`bars`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from perf.metrics import PERCENTILES
from perf.results import Fact, Results
from perf.table import median_ratio, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that people with any kind of colour vision can tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
_GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}


class Plot(NamedTuple):
    """A figure by name."""

    name: str
    caption: str
    draw: Callable[[Results], Figure | None]


# -- what to show ---------------------------------------------------------------------------------


def series(
    results: Results, metric: str, axis: str, **fixed: Fact
) -> dict[str, list[tuple[float, float]]]:
    """By subject, medians of *metric* over *axis*, of the cases that have the *fixed* axes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for case, info in results.cases.items():
        at = info.axes.get(axis)
        if not isinstance(at, int | float):
            continue
        if any(info.axes.get(name) != value for name, value in fixed.items()):
            continue
        for subject in results.subjects:
            value = summary(results, case, metric, subject)
            if value is not None:
                found.setdefault(subject, []).append((float(at), value.median))
    return {subject: sorted(points) for subject, points in found.items()}


def bars(
    results: Results, prefixes: tuple[str, ...], reference: str
) -> dict[str, dict[str, float]]:
    """By case, then by subject, the ratio to the reference; of cases whose names have a prefix."""
    found: dict[str, dict[str, float]] = {}
    for case, info in results.cases.items():
        if not case.startswith(prefixes):
            continue
        for subject in results.subjects:
            if subject == reference:
                continue
            ratio = median_ratio(results, case, info.primary, subject, reference)
            if ratio is not None:
                found.setdefault(case, {})[subject] = ratio
    return found


# -- drawing --------------------------------------------------------------------------------------


def _figure(
    width: float, height: float, panels: int = 1, *, alike: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of panels of *width* by *height* inches, in lines of up to three."""
    from matplotlib.figure import Figure

    columns = 2 if panels in (2, 4) else min(3, panels)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=alike).flat)
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid[:panels]


def _colour(results: Results, subject: str) -> str:
    return COLOURS[list(results.subjects).index(subject) % len(COLOURS)]


def _marker(results: Results, subject: str) -> str:
    return MARKERS[list(results.subjects).index(subject) % len(MARKERS)]


def _lines(
    results: Results, panels: Sequence[tuple[str, dict[str, list[tuple[float, float]]]]], label: str
) -> tuple[Figure, list[Axes]] | None:
    """One panel of lines for each title that has any."""
    shown = [(title, lines) for title, lines in panels if any(len(v) > 1 for v in lines.values())]
    if not shown:
        return None
    figure, all_axes = _figure(5, 3.6, len(shown))
    for axes, (title, lines) in zip(all_axes, shown, strict=True):
        for subject, points in lines.items():
            x, y = zip(*points, strict=True)
            colour, marker = _colour(results, subject), _marker(results, subject)
            axes.plot(x, y, color=colour, marker=marker, label=subject)
        axes.set_title(title)
        axes.set_xlabel(label)
        axes.grid(**_GRID)
    all_axes[0].legend(fontsize="small")
    return figure, all_axes


def over_mtu(results: Results) -> Figure | None:
    """Bulk TCP through the tap over its MTU."""
    common: dict[str, Fact] = {"route": "host", "version": 4, "flows": 1}
    panels = [
        (f"TCP {way}", series(results, "rate", "mtu", way=way, **common)) for way in ("out", "in")
    ]
    sizes = sorted({x for _, lines in panels for points in lines.values() for x, _ in points})
    places = {size: float(place) for place, size in enumerate(sizes)}
    spaced = [
        (title, {who: [(places[x], y) for x, y in points] for who, points in lines.items()})
        for title, lines in panels
    ]
    drawn = _lines(results, spaced, "MTU of the guest's interface, bytes")
    if drawn is None:
        return None
    figure, all_axes = drawn
    for axes in all_axes:
        axes.set_xticks(range(len(sizes)), [f"{size:.0f}" for size in sizes])
        axes.set_ylim(bottom=0)
    all_axes[0].set_ylabel("Gbit/s")
    return figure


def over_rtt(results: Results) -> Figure | None:
    """Bulk TCP through the tap to a remote host over the round-trip time."""
    common: dict[str, Fact] = {"route": "remote", "version": 4, "flows": 1, "mtu": 65520}
    panels = [
        (
            f"TCP {way}, loss {loss:g} %",
            series(results, "rate", "rtt", way=way, loss=loss, **common),
        )
        for way in ("out", "in")
        for loss in (0.0, 0.1)
    ]
    drawn = _lines(results, panels, "round-trip time, ms")
    if drawn is None:
        return None
    figure, all_axes = drawn
    for axes in all_axes:
        axes.set_yscale("log")
    all_axes[0].set_ylabel("Gbit/s")
    return figure


def latency(results: Results) -> Figure | None:
    """Percentiles of all exchanges."""
    cases = [
        case
        for case, info in results.cases.items()
        if info.primary == "p50" and not case.startswith("loads/") and results.metrics(case)
    ]
    if not cases:
        return None
    figure, all_axes = _figure(4.2, 2.8, len(cases), alike=False)
    for case, axes in zip(cases, all_axes, strict=True):
        for subject in results.subjects:
            points = [
                (position, found.median)
                for position, name in enumerate(PERCENTILES)
                if (found := summary(results, case, name, subject))
            ]
            if points:
                x, y = zip(*points, strict=True)
                colour, marker = _colour(results, subject), _marker(results, subject)
                axes.plot(x, y, color=colour, marker=marker, markersize=4, label=subject)
        axes.set_yscale("log")
        axes.set_title(results.cases[case].title, fontsize="small")
        axes.set_xticks(range(len(PERCENTILES)), ["50 %", "90 %", "99 %", "99.9 %"])
        axes.set_ylabel("µs")
        axes.grid(**_GRID)
    all_axes[0].legend(fontsize="x-small")
    return figure


def _ratios(*prefixes: str) -> Callable[[Results], Figure | None]:
    """What draws bars for the cases whose names have one of *prefixes*."""

    def draw(results: Results) -> Figure | None:
        reference = results.reference()
        found = bars(results, prefixes, reference) if reference else {}
        if not found:
            return None
        subjects = [s for s in results.subjects if any(s in each for each in found.values())]
        size = 0.8 / len(subjects)
        figure, (axes,) = _figure(9, 1.2 + 0.16 * len(found) * (len(subjects) + 1))
        for number, subject in enumerate(subjects):
            places = [
                position + (number - (len(subjects) - 1) / 2) * size
                for position, case in enumerate(found)
                if subject in found[case]
            ]
            values = [each[subject] for each in found.values() if subject in each]
            colour = _colour(results, subject)
            axes.barh(places, values, size, color=colour, label=subject)
            for place, value in zip(places, values, strict=True):
                axes.annotate(f" {value:.2f}", (value, place), va="center", fontsize="xx-small")
        axes.axvline(1, color="#444444", linewidth=1)
        axes.set_yticks(
            range(len(found)), [results.cases[case].title for case in found], fontsize="small"
        )
        axes.set_ylim(len(found) - 0.4, -0.6)  # the first at the top
        axes.set_xlim(left=0)
        axes.set_xlabel(f"ratio to {reference}; longer is better")
        axes.grid(axis="x", **_GRID)
        axes.set_axisbelow(True)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    return draw


PLOTS = (
    Plot(
        "ratios-loopback",
        "Connections between loopback interfaces, as a share of what loopback itself does.",
        _ratios("splice/"),
    ),
    Plot(
        "ratios-tap-tcp",
        "TCP through the guest's interface, as a share of loopback (host) or the veth pair.",
        _ratios("tap/tcp/"),
    ),
    Plot(
        "ratios-tap-datagrams",
        "UDP and echo requests through the guest's interface, likewise.",
        _ratios("tap/udp/", "tap/icmp/"),
    ),
    Plot("mtu", "Bulk TCP through the guest's interface: throughput versus MTU.", over_mtu),
    Plot("latency", "Exchanges: percentiles of latency.", latency),
    Plot("rtt", "Bulk TCP to a distant peer: throughput versus round-trip time.", over_rtt),
)


def png(figure: Figure) -> bytes:
    """The figure as a PNG image, with a palette: a quarter of the size."""
    import io

    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    image = Image.open(drawn).convert("RGB").quantize(64)
    image.save(packed, format="png", optimize=True)
    return packed.getvalue()
