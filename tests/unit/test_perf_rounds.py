"""How the performance suite goes through rounds: with subjects and cases that only take notes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, cast

import pytest

from perf.cases.base import Case, Outcome, Settings, Work
from perf.lab import Lab
from perf.progress import Bar, Lines, Progress, display, duration
from perf.rounds import Run, brief, estimate, short
from perf.subjects import Instance, Subject, UnsupportedError
from tests.system.kit.netns import Processes
from tests.system.kit.topology import Topology


class FakeNs:
    """A namespace in which ethtool knows nothing."""

    def run(self, argv: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 1, "", "")


class FakeNetwork:
    """A network without anything in it."""

    def __init__(self) -> None:
        self.processes = Processes()
        self.host = FakeNs()


class FakeLab:
    """One network for everything."""

    def __init__(self) -> None:
        self.only = FakeNetwork()

    def network(self, rtt: int = 0, loss: float = 0.0) -> FakeNetwork:
        return self.only

    def facts(self) -> dict[str, str]:
        return {"delay and loss by": "magic"}


class Notes(list[str]):
    """What happened, in order."""


class FakeInstance(Instance):
    def __init__(self, notes: Notes, name: str) -> None:
        self.notes = notes
        self.name = name
        notes.append(f"start {name}")

    def close(self) -> None:
        self.notes.append(f"end {self.name}")


class FakeSubject(Subject):
    process = False

    def __init__(self, name: str, notes: Notes) -> None:
        super().__init__(name, name)
        self.notes = notes

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        return FakeInstance(self.notes, self.name)


def make_case(name: str, notes: Notes, failing: Exception | None = None, **rest: Any) -> Case:
    """A case that notes its name and the subject's, and fails for the subject b if it should."""

    def measure(work: Work) -> Outcome:
        notes.append(f"{name} {work.subject.name} {work.settings.seconds}")
        if failing and work.subject.name == "b":
            raise failing
        return Outcome({"rate": 1.0}, mib=2.0)

    return Case(name, name, "rate", measure, **rest)


def run(cases: list[Case], notes: Notes, **settings: Any) -> Run:
    subjects = [FakeSubject(name, notes) for name in "ab"]
    every = Settings(counting=False, **settings)
    return Run(cast(Lab, FakeLab()), subjects, cases, every, Progress())


def test_rounds_are_interleaved() -> None:
    notes = Notes()
    cases = [make_case("one", notes), make_case("two", notes)]
    results = run(cases, notes, rounds=2, seconds=7).all()
    measured = [note for note in notes if " " in note and note.split()[0] in ("one", "two")]
    warm_up = ["one a 1", "one b 1", "two a 1", "two b 1"]
    each = ["one a 7", "one b 7", "two a 7", "two b 7"]
    assert measured == warm_up + each + each
    assert [(s.case, s.subject, s.round) for s in results.samples] == [
        (case, subject, number)
        for number in (1, 2)
        for case in ("one", "two")
        for subject in ("a", "b")
    ]
    assert notes.count("start a") == notes.count("end a")
    assert results.facts["delay and loss by"] == "magic"
    assert results.subjects["a"].command == "a"


def test_a_failure_is_noted_and_the_run_goes_on() -> None:
    notes = Notes()
    cases = [make_case("one", notes, AssertionError("broken\nin two")), make_case("two", notes)]
    results = run(cases, notes, rounds=2).all()
    assert [(s.case, s.subject) for s in results.samples].count(("one", "b")) == 0
    assert len(results.samples) == 6
    failures = [(f.case, f.subject, f.round, f.reason) for f in results.failures]
    assert failures == [("one", "b", number, "broken\nin two") for number in (0, 1, 2)]
    assert notes.count("start b") == notes.count("end b")


def test_what_is_not_supported_is_not_tried_again() -> None:
    notes = Notes()
    results = run([make_case("one", notes, UnsupportedError("no way"))], notes, rounds=3).all()
    assert [note for note in notes if note.startswith("one b")] == ["one b 1"]
    assert [f.reason for f in results.failures] == ["unsupported: no way"]


def test_a_fault_of_the_suite_ends_the_run() -> None:
    notes = Notes()
    with pytest.raises(ZeroDivisionError):
        run([make_case("one", notes, ZeroDivisionError())], notes, rounds=1).all()
    assert notes[-1] == "end b"


def test_only_some_subjects() -> None:
    notes = Notes()
    results = run([make_case("one", notes, only=frozenset({"a"}))], notes, rounds=1).all()
    assert [s.subject for s in results.samples] == ["a"]


def test_estimate_grows_with_everything() -> None:
    notes = Notes()
    cases = [make_case("one", notes), make_case("two", notes)]
    base = estimate(cases, 2, Settings(rounds=2))
    assert estimate(cases[:1], 2, Settings(rounds=2)) < base
    assert estimate(cases, 3, Settings(rounds=2)) > base
    assert estimate(cases, 2, Settings(rounds=3)) > base
    assert estimate(cases, 2, Settings(rounds=2, counting=False)) < base
    assert short(Settings(exchanges=10)).exchanges == 10


def test_long_reasons_keep_both_ends() -> None:
    assert brief("short") == "short"
    text = brief("begin" + "x" * 9999 + "end")
    assert len(text) < 2010
    assert text.startswith("begin")
    assert text.endswith("end")


def test_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    bar = Bar.make()
    assert bar
    bar.start(2, 130)
    bar.step("one")
    bar.note("failed: [one]")
    bar.step("two")
    bar.close()
    printed = capsys.readouterr().err
    assert "2 measurements, about 2 min" in printed
    assert "failed: [one]" in printed


def test_quiet_unless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert type(display()) is Progress
    assert type(display(verbose=True)) is Lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("CI", raising=False)
    assert isinstance(display(), Bar | Lines)
    assert type(display()) is not Progress
    monkeypatch.setenv("CI", "1")
    assert type(display()) is Progress


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(sys.stderr)
    lines.start(2, 130)
    lines.step("one")
    lines.step("two")
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "2 measurements, about 2 min"
    assert printed[1].startswith("[1/2] ")
    assert printed[2].endswith(" two")
    assert duration(42.4) == "42 s"
