"""The fuzzer itself: it finds what is planted, and repeats itself from its seed."""

from __future__ import annotations

import time
from random import Random
from types import SimpleNamespace

import pytest

from passt.userspace.wire import tcp_options
from tests.fuzz import engine, program
from tests.fuzz.catalogue import Harness
from tests.fuzz.engine import Campaign, TooSlow, attempt, minimise, shorten
from tests.fuzz.lines import Lines, executable
from tests.fuzz.mutate import havoc


def planted(data: bytes) -> None:
    """Fails for what a mutation of ``hello world`` soon becomes."""
    assert data[:5] != b"hello" or b"\xff" not in data, "planted"


def options(data: bytes) -> None:
    """A parser whose lines take some finding."""
    tcp_options.parse_options(data, 0, len(data))


def made(one: object) -> Harness:
    """A harness around ``one``."""
    harness = Harness.__new__(Harness)
    vars(harness).update(
        name="made", one=one, mutate=None, max_len=40, dictionary=(), module=SimpleNamespace()
    )
    return harness


def test_planted_fault_is_found_once_and_shortened() -> None:
    campaign = Campaign(made(planted), [b"hello world"], 1)
    campaign.run(1.0)
    (find,) = campaign.finds
    assert "planted" in find.text
    short = shorten(campaign.harness, find)
    assert short.data == b"hello\xff"


def test_the_same_seed_tries_the_same() -> None:
    tried: list[list[bytes]] = []
    for _ in range(2):
        seen: list[bytes] = []
        campaign = Campaign(made(seen.append), [b"one", b"three"], 7)
        campaign.run(0.05)
        tried.append(seen[:200])
    shorter = min(map(len, tried))
    assert shorter > 50
    assert tried[0][:shorter] == tried[1][:shorter]


def test_inputs_that_reach_something_new_are_kept() -> None:
    lines = Lines()
    campaign = Campaign(made(options), [b""], 3, lines=lines)
    campaign.run(1.0)
    assert len(campaign.added) > 4
    ((_, reached, total),) = lines.table(("userspace/wire/tcp_options.py",))
    assert 20 < reached <= total
    few = minimise(campaign.harness, campaign.added, [])
    assert 0 < len(few) <= len(campaign.added)
    with Lines() as again:
        for data in few:
            options(data)
    with Lines() as everything:
        for data in campaign.added:
            options(data)
    assert again.seen == everything.seen


def test_executable_lines_are_those_of_functions() -> None:
    path = tcp_options.__file__
    with open(path) as file:
        text = file.read().splitlines()
    assert all(
        text[line - 1].startswith(" ") and '"""' not in text[line - 1] for line in executable(path)
    )


def test_endless_input_is_a_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TIME_LIMIT", 0.05)

    def forever(_data: bytes) -> None:
        while True:
            time.sleep(0.01)

    assert isinstance(attempt(forever, b""), TooSlow)


@pytest.mark.parametrize("seed", range(50))
def test_any_bytes_are_a_program(seed: int) -> None:
    rnd = Random(seed)
    data = rnd.randbytes(rnd.randrange(300))
    steps = program.decode(data, 14)
    assert len(steps) <= program.MAX_STEPS
    assert program.decode(program.encode(steps), 14) == steps
    changed = program.mutate(data, rnd, 14, lambda step, _: step, lambda _: (3, b"x"))
    assert all(operation < 14 for operation, _ in program.decode(changed, 14))


@pytest.mark.parametrize("seed", range(20))
def test_changes_keep_within_the_limit(seed: int) -> None:
    rnd = Random(seed)
    data = rnd.randbytes(30)
    for _ in range(200):
        data = havoc(data, rnd, limit=50, dictionary=(b"word",), others=(b"another", b""))
        assert len(data) <= 50
