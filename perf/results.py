"""What a run leaves: samples, counts of system calls, failures, facts; as JSON with a version.

The version counts changes that a reader must know of; a reader refuses others than its own.
Values are by the names of :mod:`perf.metrics`.  Rounds count from 1.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from perf.metrics import METRICS

SCHEMA = 1

Fact = str | int | float | None


class ResultsError(Exception):
    """A file that does not hold results of this version; the message says why."""


@dataclass(frozen=True)
class CaseInfo:
    """A case as the results remember it."""

    title: str
    group: str
    primary: str  # the metric to compare
    axes: dict[str, Fact] = field(default_factory=dict)  # mtu, rtt, …: for plots


@dataclass(frozen=True)
class SubjectInfo:
    """A subject as the results remember it."""

    command: str
    version: str = ""


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    case: str
    subject: str
    round: int
    values: dict[str, float]
    cpu: float | None = None  # seconds of processor time of the subject
    elapsed: float = 0.0  # seconds
    mib: float = 0.0  # moved meanwhile
    exchanges: int = 0  # made meanwhile


@dataclass(frozen=True)
class Count:
    """System calls of a subject during a separate, short measurement."""

    case: str
    subject: str
    tool: str
    calls: int
    switches: int  # of the processor to another task; -1 if the tool cannot tell
    mib: float
    exchanges: int


@dataclass(frozen=True)
class Failure:
    """A measurement that could not be made."""

    case: str
    subject: str
    round: int
    reason: str


@dataclass
class Results:
    """All of one run."""

    created: str  # ISO 8601
    facts: dict[str, Fact] = field(default_factory=dict)
    settings: dict[str, Fact] = field(default_factory=dict)
    subjects: dict[str, SubjectInfo] = field(default_factory=dict)
    cases: dict[str, CaseInfo] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def values(self, case: str, subject: str, metric: str) -> dict[int, float]:
        """Values by round."""
        return {s.round: s.values[metric] for s in self.of(case, subject) if metric in s.values}

    def of(self, case: str, subject: str) -> Iterator[Sample]:
        """The samples of a case and a subject."""
        return (s for s in self.samples if s.case == case and s.subject == subject)

    def metrics(self, case: str) -> list[str]:
        """The metrics that a case has, in the order of the table of metrics."""
        found = {name for s in self.samples if s.case == case for name in s.values}
        return [name for name in METRICS if name in found]

    def count(self, case: str, subject: str) -> Count | None:
        """The count of system calls of a case and a subject."""
        return next((c for c in self.counts if (c.case, c.subject) == (case, subject)), None)

    def reference(self) -> str | None:
        """The subject that shows what the machine can do, None if it was left out."""
        return "direct" if "direct" in self.subjects else None


def dump(results: Results) -> str:
    """Return the text of a file: a line for each record, for the sake of diffs."""
    parts = []
    for name, value in {"schema": SCHEMA, **dataclasses.asdict(results)}.items():
        if isinstance(value, list):
            text = "[" + ",".join(f"\n{json.dumps(each)}" for each in value) + "\n]"
        elif isinstance(value, dict):
            items = (f"\n{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
            text = "{" + ",".join(items) + "\n}"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(text: str) -> Results:
    """Return the results that *text* holds; ResultsError."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ResultsError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise ResultsError("not results of perf: no schema")
    if data["schema"] != SCHEMA:
        raise ResultsError(f"schema {data['schema']!r}, expected {SCHEMA}")
    try:
        results = Results(
            created=_typed(data["created"], str, "created"),
            facts=_facts(data["facts"], "facts"),
            settings=_facts(data["settings"], "settings"),
            subjects={k: _record(SubjectInfo, v) for k, v in data["subjects"].items()},
            cases={k: _record(CaseInfo, v) for k, v in data["cases"].items()},
            samples=[_record(Sample, each) for each in data["samples"]],
            counts=[_record(Count, each) for each in data["counts"]],
            failures=[_record(Failure, each) for each in data["failures"]],
        )
    except KeyError as error:
        raise ResultsError(f"no {error.args[0]}") from None
    except (AttributeError, TypeError) as error:
        raise ResultsError(f"malformed: {error}") from None
    _check(results)
    return results


def read(path: str) -> Results:
    """Return the results in a file; ResultsError, also if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return load(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from None
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from None


R = TypeVar("R", CaseInfo, SubjectInfo, Sample, Count, Failure)
V = TypeVar("V")

#: What JSON must hold for each type of a field; a float may be written as an integer.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, float]": (dict,),
    "dict[str, Fact]": (dict,),
}


def _typed(value: object, kind: type[V], name: str) -> V:
    if not isinstance(value, kind):
        raise ResultsError(f"{name} is not {kind.__name__}")
    return value


def _facts(value: object, name: str) -> dict[str, Fact]:
    for key, each in _typed(value, dict, name).items():
        if not isinstance(each, str | int | float | None):
            raise ResultsError(f"{name}: {key} is not a plain value")
    return dict(_typed(value, dict, name))


def _record(kind: type[R], value: Any) -> R:
    for each in dataclasses.fields(kind):
        if each.name in value and (
            not isinstance(value[each.name], _KINDS[str(each.type)])
            or isinstance(value[each.name], bool)
        ):
            raise ResultsError(f"{kind.__name__}: {each.name} is not {each.type}")
    return kind(**value)


def _check(results: Results) -> None:
    """What belongs together does."""
    records: list[Sample | Count | Failure] = [
        *results.samples,
        *results.counts,
        *results.failures,
    ]
    for record in records:
        if record.case not in results.cases:
            raise ResultsError(f"unknown case {record.case!r}")
        if record.subject not in results.subjects:
            raise ResultsError(f"unknown subject {record.subject!r}")
    for case in results.cases.values():
        if case.primary not in METRICS:
            raise ResultsError(f"unknown metric {case.primary!r}")
    for sample in results.samples:
        for name, value in sample.values.items():
            if name not in METRICS:
                raise ResultsError(f"unknown metric {name!r}")
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ResultsError(f"{sample.case}: {name} is not a number")
