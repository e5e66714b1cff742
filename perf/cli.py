"""The commands: list, run, compare, report, gate."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from perf.cases import SETS, CaseError, choose
from perf.cases.base import Settings
from perf.results import Results, ResultsError, dump, read

DEFAULT_SUBJECTS = "direct,ours"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m perf", description="How fast it is, compared side by side."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="cases, sets and subjects")
    _add_cases(listing, "all")
    listing.set_defaults(run=list_cases)

    running = commands.add_parser("run", help="measure; takes root")
    _add_cases(running)
    _add_settings(running)
    running.add_argument(
        "--subjects",
        metavar="NAMES",
        default=DEFAULT_SUBJECTS,
        help=f"names of subjects, separated by commas (default: {DEFAULT_SUBJECTS}); see `list`",
    )
    running.add_argument(
        "--subject",
        action="append",
        default=[],
        metavar="NAME=WORDS",
        help="one more subject: a command line; may be repeated",
    )
    running.add_argument("--output", metavar="FILE", help="where results go, as JSON")
    running.set_defaults(run=run_cases)

    comparing = commands.add_parser("compare", help="ratios between subjects of results")
    comparing.add_argument("files", nargs="+", metavar="FILE", help="one, or two to compare")
    comparing.add_argument("--reference", metavar="SUBJECT", help="what ratios refer to")
    comparing.add_argument("--markdown", action="store_true", help="print Markdown")
    comparing.add_argument("--short", action="store_true", help="key figures alone, as Markdown")
    comparing.set_defaults(run=compare)

    gating = commands.add_parser("gate", help="is it slower than it was? status 1 if so")
    _add_cases(gating, "ci")
    _add_settings(gating)
    _add_gate(gating)
    gating.set_defaults(run=gate)

    reporting = commands.add_parser("report", help="plots, an HTML page, tables in documents")
    reporting.add_argument("file", metavar="FILE", help="results, as `run --output` writes them")
    reporting.add_argument("--folder", metavar="DIR", help="where plots and page go")
    reporting.add_argument(
        "--insert",
        action="append",
        default=[],
        metavar="DOCUMENT",
        help="a Markdown file whose tables between <!-- perf: … --> comments are replaced",
    )
    reporting.set_defaults(run=report)
    return parser


def _add_gate(parser: argparse.ArgumentParser) -> None:
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument(
        "--base", metavar="SOURCE", help="compare with this revision, or folder of a source tree"
    )
    against.add_argument(
        "--baseline",
        metavar="FILE",
        help="compare the ratio to `direct` with that of stored results",
    )
    parser.add_argument(
        "--head",
        metavar="SOURCE",
        default=None,
        help="what is compared (default: this source tree; with --baseline what is installed)",
    )
    parser.add_argument(
        "--tolerance",
        type=_percentage,
        default=None,
        metavar="PERCENT",
        help="of the speed that may be lost (default: 15; with --baseline 40)",
    )


def _add_cases(parser: argparse.ArgumentParser, default: str = "quick") -> None:
    parser.add_argument("patterns", nargs="*", metavar="CASE", help="names; patterns as of sh(1)")
    parser.add_argument(
        "--set", choices=SETS, default=default, help=f"if no CASE is given (default: {default})"
    )


def _add_settings(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    default = Settings(rounds=rounds)
    parser.add_argument("--rounds", type=_whole(1), default=default.rounds)
    parser.add_argument(
        "--seconds", type=_whole(1), default=default.seconds, help="of each transfer"
    )
    parser.add_argument(
        "--warm-up", type=_whole(0), default=0, help="seconds of each transfer that do not count"
    )
    parser.add_argument(
        "--exchanges", type=_whole(1), default=default.exchanges, help="per latency measurement"
    )
    parser.add_argument(
        "--no-counting", action="store_true", help="do not count system calls at the end"
    )
    parser.add_argument(
        "--peers", metavar="ROOT", default=os.environ.get("PASST_PEERS", ""),
        help="Debian tree with upstream and slirp4netns (default: $PASST_PEERS)",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="show progress always")


def _whole(least: int) -> Callable[[str], int]:
    """What reads a whole number of at least *least*."""

    def read_number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return read_number


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage between 0 and 100")
    return value / 100


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the options give."""
    return Settings(
        rounds=options.rounds,
        seconds=options.seconds,
        warm_up=options.warm_up,
        exchanges=options.exchanges,
        counting=not options.no_counting,
    )


# -- commands -------------------------------------------------------------------------------------


def list_cases(options: argparse.Namespace) -> int:
    """Print cases and subjects."""
    from perf.rounds import estimate
    from perf.subjects import NAMES

    cases = choose(options.patterns, options.set)
    for case in cases:
        sets = ", ".join(name for name in SETS if name in case.sets)
        print(f"{case.name:48} {case.title}" + (f" [{sets}]" if sets else ""))
    minutes = estimate(cases, 1, Settings()) / 60
    print(f"{len(cases)} cases, {minutes:.0f} min for each subject with default settings")
    print(f"subjects: {', '.join(NAMES)}, tree:FOLDER, tree:REVISION, or a path")
    return 0


def run_cases(options: argparse.Namespace) -> int:
    """Measure, write the results, print a table."""
    from perf.lab import Lab
    from perf.progress import display
    from perf.rounds import Run
    from perf.subjects import make
    from perf.table import rows

    cases = choose(options.patterns, options.set)
    need_root()
    if options.output and not os.access(os.path.dirname(options.output) or ".", os.W_OK):
        raise RefusedError(f"{options.output}: no such folder, or it cannot be written to")
    with Lab() as lab:
        texts = [*filter(None, options.subjects.split(",")), *options.subject]
        subjects = [make(text, lab, options.peers) for text in texts]
        if len({subject.name for subject in subjects}) < len(subjects):
            raise RefusedError("two subjects have the same name")
        progress = display(options.verbose)
        try:
            results = Run(lab, subjects, cases, settings_of(options), progress).all()
        finally:
            progress.close()
    if options.output:
        write(options.output, dump(results))
    show(rows(results, list(results.subjects), results.reference()))
    print_failures(results)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print ratios."""
    from perf.table import between, key_figures, markdown, rows

    if len(options.files) > 2:
        raise RefusedError("compare takes one or two files")
    found = [read(path) for path in options.files]
    reference = options.reference or found[0].reference()
    if reference and any(reference not in each.subjects for each in found):
        raise RefusedError(f"no subject {reference}")
    subjects = list(found[0].subjects)
    if options.short:
        print(key_figures(found[0], subjects, reference), end="")
        return 0
    if len(found) == 1:
        table = rows(found[0], subjects, reference)
    elif reference is None:
        raise RefusedError("results of two runs are compared by a reference: --reference")
    else:
        table = between(found[0], found[1], reference)
    if options.markdown:
        print(markdown(table), end="")
    else:
        show(table)
    return 0


def gate(options: argparse.Namespace) -> int:
    """Say which cases became slower; 1 if any did."""
    import dataclasses

    from perf.gate import Gate, Rule, against_baseline, against_subject, baseline_ratios
    from perf.lab import TREE, Lab
    from perf.progress import display
    from perf.rounds import Run
    from perf.subjects import make

    cases = choose(options.patterns, options.set)
    rule = Rule(options.tolerance or (0.4 if options.baseline else 0.15))
    metrics = {case.name: case.primary for case in cases}
    if options.baseline:
        head = f"head=tree:{options.head}" if options.head else "head=ours"
        base = "direct"
        stored = baseline_ratios(read(options.baseline), "ours", base)
        cases = [case for case in cases if case.name in stored]
        if not cases:
            raise RefusedError(f"{options.baseline} has none of these cases")
        ratios = against_baseline(metrics, "head", base, stored)
    else:
        head, base = f"head=tree:{options.head or TREE}", f"base=tree:{options.base}"
        ratios = against_subject(metrics, "head", "base")
    need_root()
    settings = dataclasses.replace(settings_of(options), counting=False)
    with Lab() as lab:
        subjects = [make(text, lab, options.peers) for text in (base, head)]
        progress = display(options.verbose)
        try:
            run = Run(lab, subjects, cases, settings, progress)
            verdicts = Gate(run, ratios, rule, subjects[0].name).all()
        finally:
            progress.close()
    for verdict in verdicts:
        print(verdict)
    print_failures(run.results)
    if len(verdicts) < len(cases):
        raise RefusedError("not all cases could be measured")
    return int(any(verdict.regression for verdict in verdicts))


def report(options: argparse.Namespace) -> int:
    """Write the report, and tables into documents."""
    from perf import report as reports

    results = read(options.file)
    if not options.folder and not options.insert:
        raise RefusedError("nothing to do: neither --folder nor --insert")
    if options.folder:
        try:
            import matplotlib  # noqa: F401 - is it there?
        except ImportError:
            raise RefusedError("plots need matplotlib: pip install '.[perf]'") from None
        for path in reports.write(results, options.folder):
            print(path)
    for path in options.insert:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            write(path, reports.insert(results, text, path))
        except (OSError, reports.DocumentError) as error:
            raise RefusedError(str(error)) from None
    return 0


# -- common ---------------------------------------------------------------------------------------


class RefusedError(Exception):
    """What was asked for cannot be done; the message says why."""


def need_root() -> None:
    """RefusedError unless root."""
    if os.geteuid():
        raise RefusedError("needs root, for network namespaces")


def show(table: Sequence[Sequence[str]]) -> None:
    """Print a table, on a terminal in columns that fit it (rich), if that is installed."""
    from perf.table import plain

    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            grid = Table(*table[0], show_lines=True)
            for line in table[1:]:
                grid.add_row(*line)
            Console(markup=False, highlight=False).print(grid)
            return
    print(plain(table), end="")


def write(path: str, text: str) -> None:
    """Write a file as a whole."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def print_failures(results: Results) -> None:
    """Say what could not be measured, on standard error."""
    for failure in results.failures:
        where = f"{failure.case}, {failure.subject}, round {failure.round}"
        print(f"{where}: {failure.reason.splitlines()[0]}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its status."""
    from perf.lab import SourceError, interrupts
    from perf.subjects import SubjectError

    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        with interrupts():
            status = command(options)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Whoever read, head(1) for one, has enough; nor is there anything left to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (CaseError, ResultsError, SourceError, SubjectError, RefusedError) as error:
        print(f"perf: {error}", file=sys.stderr)
        return 2
