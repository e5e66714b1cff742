"""Plots, the HTML page, and tables in documents, from stored results.

In documents, what stands between two comments is replaced: ``<!-- perf: table -->`` or
``<!-- perf: key figures -->``, and ``<!-- perf: end -->``.
"""

from __future__ import annotations

import os
import re

from perf.page import page
from perf.plots import PLOTS, png
from perf.results import Results
from perf.table import key_figures, markdown, rows

_SECTION = re.compile(
    r"(?P<begin><!-- perf: (?P<kind>[\w ]+) -->\n).*?(?P<end><!-- perf: end -->)", re.DOTALL
)


class DocumentError(Exception):
    """A document without a place for figures; the message says which."""


def figures(results: Results) -> list[tuple[str, str, bytes]]:
    """Name, caption and image of each plot that the results have something for."""
    found = []
    for plot in PLOTS:
        figure = plot.draw(results)
        if figure is not None:
            found.append((plot.name, plot.caption, png(figure)))
    return found


def write(results: Results, folder: str) -> list[str]:
    """Write the page and the plots into *folder*; their paths."""
    os.makedirs(folder, exist_ok=True)
    drawn = figures(results)
    contents = {f"{name}.png": image for name, _, image in drawn}
    contents["report.html"] = page(results, drawn).encode()
    for name, content in contents.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    return [os.path.join(folder, name) for name in contents]


def origin(results: Results) -> str:
    """Date, machine and sources, one line of Markdown."""
    facts = results.facts
    versions = ", ".join(
        f"{name}: {subject.version}"
        for name, subject in results.subjects.items()
        if subject.version
    )
    return (
        f"Measured {results.created.partition('T')[0]}, commit {facts.get('commit') or 'unknown'}, "
        f"{facts.get('processors', '?')} processors ({facts.get('processor', '?')}), "
        f"Linux {facts.get('kernel', '?')}, {facts.get('net/ipv4/tcp_congestion_control', '?')}, "
        f"{results.settings.get('rounds', '?')} rounds of {results.settings.get('seconds', '?')} s"
        + (f"; {versions}" if versions else "")
        + f"; load average before {facts.get('load average at start', '?')}"
        + f" and after {facts.get('load average at end', '?')}"
        + ".\n"
    )


def insert(results: Results, text: str, name: str) -> str:
    """*text* with its tables replaced; DocumentError, with *name*, if it has no place for one."""
    reference = results.reference()
    subjects = list(results.subjects)

    def section(match: re.Match[str]) -> str:
        kind = match["kind"]
        if kind == "table":
            table = markdown(rows(results, subjects, reference))
        elif kind == "key figures":
            table = key_figures(results, subjects, reference)
        else:
            raise DocumentError(f"{name}: unknown section {kind!r}")
        return f"{match['begin']}\n{table}\n{origin(results)}{match['end']}"

    replaced, count = _SECTION.subn(section, text)
    if not count:
        raise DocumentError(f"{name}: no <!-- perf: table --> or <!-- perf: key figures -->")
    return replaced
