"""Flows without answer: how many, how fast, and who has to make room."""

from __future__ import annotations

import pytest

from passt.userspace.flow import pending
from passt.userspace.flow.pending import BURST, GRACE, SWEEP, Pending
from passt.userspace.flow.table import Flow


class Clock:
    """All that a queue needs of the loop."""

    def __init__(self) -> None:
        self.now = 1000.0


class Call(Flow):
    """A flow that records its being given up."""

    __slots__ = ("answered", "given_up", "last")

    def __init__(self) -> None:
        super().__init__()
        self.index = 0
        self.answered = False
        self.given_up = False
        self.last = 0.0

    def idle_since(self, when: float) -> bool:
        return self.last <= when

    def give_up(self) -> None:
        self.given_up = True
        self.index = -1


class Rig:
    def __init__(self, limit: int) -> None:
        self.clock = Clock()
        self.queue = Pending(self.clock, limit)  # type: ignore[arg-type]
        self.calls: list[Call] = []

    def attempt(self, *parties: bytes) -> Call | None:
        """A flow that wants to be made."""
        if not self.queue.admits(*parties):
            return None
        call = Call()
        self.queue.add(call, *parties)
        self.calls.append(call)
        return call

    def flood(self, seconds: float, rate: int, *parties: bytes) -> int:
        """Attempts at ``rate`` per second; returns how many were successful."""
        made = 0
        for _ in range(int(seconds * rate)):
            self.clock.now += 1 / rate
            made += self.attempt(*parties) is not None
        return made

    def waiting(self) -> int:
        """Flows that exist and nobody has answered."""
        return sum(call.index >= 0 and not call.answered for call in self.calls)


def test_number_is_bounded_whatever_the_rate() -> None:
    rig = Rig(100)
    rig.flood(3.0, 5000)
    assert rig.waiting() <= 100
    assert len(rig.queue) <= 100


def test_rate_is_bounded() -> None:
    rig = Rig(100)
    assert rig.flood(1.0, 5000) <= 100
    assert 150 <= rig.flood(2.0, 5000) <= 220


def test_rate_is_bounded_for_those_refused_at_once() -> None:
    """A closed port: the flow ends as soon as it is made."""
    rig = Rig(100)
    made = 0
    for _ in range(10000):
        rig.clock.now += 1 / 5000
        call = rig.attempt()
        if call is not None:
            made += 1
            call.index = -1
    assert 150 <= made <= 320
    rig.clock.now += GRACE
    assert rig.attempt() is not None
    assert len(rig.queue) == 1


def test_failed_attempts_count() -> None:
    rig = Rig(100)
    made = 0
    for _ in range(10000):
        rig.clock.now += 1 / 5000
        if rig.queue.admits():
            made += 1
            rig.queue.add(None)
    assert 150 <= made <= 320


def test_everyone_has_a_second() -> None:
    rig = Rig(20)
    first = rig.attempt()
    assert first is not None
    rig.flood(GRACE * 0.99, 5000)
    assert not first.given_up
    rig.flood(0.1, 5000)
    assert first.given_up


def test_the_oldest_makes_room() -> None:
    rig = Rig(20)
    rig.flood(4.0, 1000)
    ended = [call.given_up for call in rig.calls]
    assert ended == sorted(ended, reverse=True)
    assert any(ended)


def test_without_competition_nobody_has_to_go() -> None:
    rig = Rig(20)
    call = rig.attempt()
    rig.clock.now += 100
    assert rig.attempt() is not None
    assert call is not None
    assert not call.given_up


def test_places_are_given_out_evenly() -> None:
    """Not hundreds in one round of the loop, after half of them."""
    rig = Rig(1024)
    rig.clock.now += 10
    assert sum(rig.attempt() is not None for _ in range(5000)) in range(512, 512 + BURST + 3)
    for _ in range(3000):
        rig.clock.now += 0.001
        assert sum(rig.attempt() is not None for _ in range(50)) <= BURST + 1


def test_answered_flows_cost_nothing() -> None:
    """Any number of connections per second, if each is answered."""
    rig = Rig(20)
    for _ in range(5000):
        rig.clock.now += 1 / 10000
        call = rig.attempt()
        assert call is not None
        call.answered = True
    assert len(rig.queue) <= 1


def test_answered_flows_behind_one_that_is_not() -> None:
    rig = Rig(20)
    slow = rig.attempt()
    refused = 0
    for _ in range(200):
        rig.clock.now += 2 * SWEEP / 20
        call = rig.attempt()
        refused += call is None
        if call is not None:
            call.answered = True
    assert refused == 0
    assert slow is not None


def test_stream_that_nobody_answers_is_left_alone() -> None:
    """Datagrams of a one-way stream keep coming: others have to make room."""
    rig = Rig(20)
    stream = rig.attempt()
    assert stream is not None
    for _ in range(50):
        rig.flood(0.1, 1000)
        stream.last = rig.clock.now
    assert not stream.given_up


def test_all_streams_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded search for somebody who can go, then a refusal."""
    rig = Rig(2000)
    rig.flood(3.0, 2000)
    for call in rig.calls:
        call.last = rig.clock.now + 5
    rig.clock.now += 3
    looks = 0

    def idle_since(self: Call, when: float) -> bool:
        nonlocal looks
        looks += 1
        return self.last <= when

    monkeypatch.setattr(Call, "idle_since", idle_since)
    rig.queue._limit = len(rig.queue)
    assert rig.attempt() is None
    assert looks == pending._TRIES


def test_party_cannot_take_all() -> None:
    rig = Rig(100)
    assert rig.flood(0.9, 5000, b"greedy") <= 75
    for _ in range(8):
        rig.clock.now += 0.011
        assert rig.attempt(b"modest") is not None
    rig.clock.now += 10
    rig.attempt(b"modest")
    assert set(rig.queue._counts) <= {b"greedy", b"modest"}


def test_counts_of_parties_go_with_their_entries() -> None:
    rig = Rig(50)
    for number in range(200):
        rig.flood(0.05, 200, bytes((number % 7,)), bytes((number % 3, 1)))
    total = sum(rig.queue._counts.values())
    assert total == 2 * len(rig.queue)
    for call in rig.calls:
        call.answered = True
    rig.clock.now += 10
    assert rig.attempt(b"one") is not None
    assert rig.queue._counts == {b"one": 1}
