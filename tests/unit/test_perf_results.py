"""The file format of the performance suite: what goes in comes out, anything else is refused."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.metrics import METRICS
from perf.results import (
    SCHEMA,
    CaseInfo,
    Count,
    Failure,
    Results,
    ResultsError,
    Sample,
    SubjectInfo,
    dump,
    load,
    read,
)

NAMES = ["a/b", "c"]
NUMBERS = st.floats(0, 1e9)
PLAIN = st.text() | st.integers(-(2**53), 2**53) | NUMBERS | st.none()
CASES, SUBJECTS = st.sampled_from(NAMES), st.sampled_from(["x", "y"])
SAMPLES = st.builds(
    Sample,
    CASES,
    SUBJECTS,
    st.integers(1, 99),
    st.dictionaries(st.sampled_from(sorted(METRICS)), NUMBERS),
    NUMBERS | st.none(),
    NUMBERS,
    NUMBERS,
    st.integers(0, 2**40),
)
COUNTS = st.builds(
    Count, CASES, SUBJECTS, st.text(), st.integers(0), st.integers(-1), NUMBERS, st.integers(0)
)
FAILURES = st.builds(Failure, CASES, SUBJECTS, st.integers(0, 9), st.text())
FACTS = st.dictionaries(st.text(), PLAIN)
RESULTS = st.builds(
    Results,
    st.text(),
    FACTS,
    FACTS,
    st.fixed_dictionaries({name: st.builds(SubjectInfo, st.text(), st.text()) for name in "xy"}),
    st.fixed_dictionaries(
        {
            name: st.builds(CaseInfo, st.text(), st.text(), st.sampled_from(sorted(METRICS)), FACTS)
            for name in NAMES
        }
    ),
    st.lists(SAMPLES, max_size=5),
    st.lists(COUNTS, max_size=5),
    st.lists(FAILURES, max_size=5),
)


@given(RESULTS)
def test_round_trip(results: Results) -> None:
    assert load(dump(results)) == results


def valid() -> dict[str, Any]:
    """The data of a file."""
    results = Results(
        "2026-01-01",
        {"kernel": "6.18"},
        {"rounds": 1},
        {"x": SubjectInfo("ours")},
        {"a/b": CaseInfo("title", "a/b", "rate")},
        [Sample("a/b", "x", 1, {"rate": 1.0})],
        [Count("a/b", "x", "perf", 1, 1, 1.0, 0)],
        [Failure("a/b", "x", 1, "reason")],
    )
    data: dict[str, Any] = json.loads(dump(results))
    return data


def change(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """What sets the value at *path*."""

    def apply(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("schema", value=SCHEMA + 1), f"schema {SCHEMA + 1}, expected {SCHEMA}"),
        (change("created", value=1), "created is not str"),
        (change("facts", value=[]), "facts is not dict"),
        (change("facts", "kernel", value=[1]), "kernel is not a plain value"),
        (change("samples", value=1), "malformed"),
        (change("samples", 0, value=1), "malformed"),
        (change("samples", 0, "case", value="z"), "unknown case 'z'"),
        (change("samples", 0, "subject", value="z"), "unknown subject 'z'"),
        (change("samples", 0, "round", value="1"), "round is not int"),
        (change("samples", 0, "values", value={"speed": 1}), "unknown metric 'speed'"),
        (change("samples", 0, "values", value={"rate": "1"}), "rate is not a number"),
        (change("samples", 0, "colour", value=1), "malformed"),
        (change("counts", 0, "calls", value=1.5), "calls is not int"),
        (change("failures", 0, "reason", value=None), "reason is not str"),
        (change("cases", "a/b", "primary", value="z"), "unknown metric 'z'"),
        (change("subjects", "x", value="ours"), "malformed"),
        (lambda data: data.pop("cases"), "no cases"),
        (lambda data: data.pop("schema"), "no schema"),
    ],
)
def test_refused(apply: Callable[[dict[str, Any]], None], message: str) -> None:
    data = valid()
    load(json.dumps(data))
    apply(data)
    with pytest.raises(ResultsError, match=message):
        load(json.dumps(data))


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(ResultsError):
        load(text)


def test_messages_name_the_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ResultsError, match=r"results\.json: .*No such file"):
        read(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match=r"results\.json"):
        read(str(path))


def test_queries() -> None:
    results = load(json.dumps(valid()))
    assert results.values("a/b", "x", "rate") == {1: 1.0}
    assert results.values("a/b", "x", "loss") == {}
    assert results.metrics("a/b") == ["rate"]
    assert results.reference() is None
    count = results.count("a/b", "x")
    assert count is not None
    assert count.calls == 1
    assert results.count("a/b", "y") is None
