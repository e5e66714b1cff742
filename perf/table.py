"""Results as text: for terminals, and as Markdown.

Each figure is a median; behind it, the ratio to the reference: the median of the ratios of pairs,
where more than 1 is better.  Beside it what it cost: processor time, and system calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from perf.metrics import METRICS, show
from perf.results import Results
from perf.statistic import Summary, paired_ratios, summarize


def median_ratio(
    results: Results, case: str, metric: str, subject: str, reference: str
) -> float | None:
    """The median of paired ratios, None without pairs."""
    ours = results.values(case, subject, metric)
    theirs = results.values(case, reference, metric)
    ratios = paired_ratios(metric, ours, theirs)
    return statistics.median(ratios) if ratios else None


def summary(results: Results, case: str, metric: str, subject: str) -> Summary | None:
    """The summary of the values of all rounds, None without any."""
    values = results.values(case, subject, metric)
    return summarize(values.values()) if values else None


def cost(results: Results, case: str, subject: str) -> str:
    """Processor time and system calls, per GiB and MiB, or per exchange; empty if unknown."""
    samples = [s for s in results.of(case, subject) if s.cpu is not None]
    count = results.count(case, subject)
    bulk = results.cases[case].primary == "rate"
    words = []
    if bulk and (per := [s.cpu / s.mib * 1024 for s in samples if s.cpu is not None and s.mib]):
        words.append(f"{statistics.median(per):.2f} s/GiB")
    elif per := [s.cpu / s.exchanges * 1e6 for s in samples if s.cpu is not None and s.exchanges]:
        words.append(f"{statistics.median(per):.0f} µs each")
    if count and bulk and count.mib:
        words.append(f"{count.calls / count.mib:.1f} calls/MiB")
    elif count and count.exchanges:
        words.append(f"{count.calls / count.exchanges:.1f} calls each")
    return ", ".join(words)


def cell(results: Results, case: str, metric: str, subject: str, reference: str | None) -> str:
    """One figure, with its spread and ratio."""
    found = summary(results, case, metric, subject)
    if found is None:
        return "–"
    text = show(metric, found.median)
    if found.rounds > 1:
        text += f" ±{found.spread * 100:.0f} %"
    if reference and subject != reference:
        ratio = median_ratio(results, case, metric, subject, reference)
        if ratio is not None:
            text += f" (×{ratio:.2f})"
    return text


def rows(
    results: Results, subjects: Sequence[str], reference: str | None, *, costs: bool = True
) -> list[list[str]]:
    """Heading and lines of a table; the reference is what ratios refer to."""
    table = [["measurement", *subjects]]
    for case, info in results.cases.items():
        for metric in results.metrics(case):
            kind = METRICS[metric]
            better = "" if kind.higher else " ↓"
            name = info.title if metric == info.primary else f"{info.title}: {kind.title}"
            line = [name + better]
            for subject in subjects:
                text = cell(results, case, metric, subject, reference)
                if costs and text != "–" and metric == info.primary:
                    text = "; ".join(filter(None, (text, cost(results, case, subject))))
                line.append(text)
            table.append(line)
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    head, *lines = table
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(text) + "\n"


def plain(table: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join(lines) + "\n"


def between(first: Results, second: Results, reference: str) -> list[list[str]]:
    """Two runs: ratios to the reference in each, and how the second compares with the first.

    Absolute figures of different runs are not comparable, their ratios to a reference are.
    """
    table = [["measurement", "subject", "first", "second", "second : first"]]
    for case, info in second.cases.items():
        if case not in first.cases:
            continue
        for subject in second.subjects:
            if subject == reference or subject not in first.subjects:
                continue
            ratios = [
                median_ratio(each, case, info.primary, subject, reference)
                for each in (first, second)
            ]
            if ratios[0] is not None and ratios[1] is not None:
                numbers = [*ratios, ratios[1] / ratios[0]]
                table.append([info.title, subject, *(f"×{number:.2f}" for number in numbers)])
    return table


def key_figures(results: Results, subjects: Sequence[str], reference: str | None) -> str:
    """The short Markdown table: one line per case of the set `quick`, its primary metric alone."""
    from perf.cases import CASES

    table = [["measurement", *subjects]]
    for case, info in results.cases.items():
        if case in CASES and "quick" in CASES[case].sets:
            better = "" if METRICS[info.primary].higher else " ↓"
            cells = [cell(results, case, info.primary, s, reference) for s in subjects]
            table.append([info.title + better, *cells])
    return markdown(table)
