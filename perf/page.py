"""The HTML page of results: one file, with all images in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from perf.results import Fact, Results
from perf.table import rows

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem;
         border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 2px solid #999; } td:first-child { min-width: 16rem; }
"""

_READING = """Each figure is the median of all rounds, ± half the distance of the extremes.
In parentheses: how it compares with {reference} in the same round, median of all rounds; more than
×1 is better, whatever is measured. ↓ marks what is better when it is less. Behind the semicolon:
processor time of the program and its system calls, for each MiB or exchange."""


def _table(lines: Sequence[Sequence[str]], heading: bool = True) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    head = f"<thead>{row(lines[0], 'th')}</thead>" if heading else ""
    body = "\n".join(row(line, "td") for line in (lines[1:] if heading else lines))
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _facts(facts: Mapping[str, Fact]) -> str:
    return _table([[name, "" if value is None else str(value)] for name, value in facts.items()],
                  heading=False)  # fmt: skip


def _figure(name: str, caption: str, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    text = html.escape(caption)
    return (
        f'<figure id="{name}"><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def page(results: Results, figures: Sequence[tuple[str, str, bytes]]) -> str:
    """The page; *figures* are names, captions and PNG images."""
    reference = results.reference()
    subjects = [["subject", "command", "version"]]
    subjects += [[name, s.command, s.version] for name, s in results.subjects.items()]
    facts = results.facts
    machine = f"{facts.get('processor', 'a machine')}, Linux {facts.get('kernel', '?')}"
    failures = [["measurement", "subject", "round", "reason"]]
    failures += [[f.case, f.subject, str(f.round), f.reason] for f in results.failures]
    parts = [
        "<h1>Performance, compared</h1>",
        f"<p>Measured {html.escape(results.created)} on {html.escape(machine)}.</p>",
        "<h2>Who</h2>",
        _table(subjects),
        *(_figure(*each) for each in figures),
        "<h2>All figures</h2>",
        f"<p>{html.escape(_READING.format(reference=reference or 'nothing'))}</p>",
        _table(rows(results, list(results.subjects), reference)),
        "<h2>Where</h2>",
        _facts(results.facts),
        "<h2>How</h2>",
        _facts(results.settings),
    ]
    if results.failures:
        parts += ["<h2>What could not be measured</h2>", _table(failures)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Performance, compared</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
