"""The event loop: order within a round, timers, and descriptors that close."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from passt.userspace.loop import EPOLLIN, EPOLLOUT, Loop


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    os.close(made.fileno())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_timers_fire_in_order_of_their_deadlines(loop: Loop, clock: Clock) -> None:
    seen: list[str] = []
    for name, due in (("c", 103.0), ("a", 101.0), ("b", 101.0), ("d", 104.0)):
        loop.call_at(due, lambda n=name: seen.append(n))  # type: ignore[misc]
    loop.round(0.0)
    assert seen == []
    clock.now = 103.0
    loop.round(0.0)
    assert seen == ["a", "b", "c"]
    assert loop.now == 103.0


def test_cancelled_timer(loop: Loop, clock: Clock) -> None:
    seen: list[int] = []
    timer = loop.call_at(101.0, lambda: seen.append(1))
    loop.call_at(100.5, timer.cancel)
    clock.now = 102.0
    loop.round(0.0)
    timer.cancel()
    assert seen == []


def test_timer_set_by_a_timer(loop: Loop, clock: Clock) -> None:
    """One that is due already fires in the same round."""
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_at(clock.now, lambda: seen.append("second"))

    loop.call_at(101.0, first)
    clock.now = 101.0
    loop.round(0.0)
    assert seen == ["first", "second"]


def test_order_within_a_round(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    other.send(b"x")
    seen: list[str] = []

    def event(_: int) -> None:
        seen.append("event")
        loop.defer(lambda: seen.append("deferred"))
        loop.again(lambda: seen.append("again"))

    loop.add(one.fileno(), EPOLLIN, event)
    loop.call_at(100.0, lambda: seen.append("timer"))
    loop.every_round(lambda: seen.append("end"))
    loop.round(0.0)
    assert seen == ["event", "timer", "deferred", "end"]
    seen.clear()
    loop.remove(one.fileno())
    loop.round()  # does not sleep, or the test would hang
    assert seen == ["again", "end"]


def test_deferred_work_may_defer_more(loop: Loop) -> None:
    seen: list[int] = []
    loop.defer(lambda: loop.defer(lambda: seen.append(2)))
    loop.round(0.0)
    assert seen == [2]
    loop.round(0.0)
    assert seen == [2]


def test_removed_descriptor_gets_no_event(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Not even one that was collected in the same round."""
    seen: list[int] = []

    def event(me: socket.socket, peer: socket.socket) -> None:
        seen.append(me.fileno())
        loop.remove(peer.fileno())

    one, other = pair
    loop.add(one.fileno(), EPOLLOUT, lambda _: event(one, other))
    loop.add(other.fileno(), EPOLLOUT, lambda _: event(other, one))
    loop.round(0.0)
    assert len(seen) == 1
    loop.remove(one.fileno())
    loop.remove(one.fileno())


def test_closing_waits_for_the_end_of_the_round(loop: Loop) -> None:
    """A newcomer in the same round cannot get the number."""
    one, other = socket.socketpair()
    number = one.fileno()
    loop.add(number, EPOLLOUT, lambda _: loop.close(one, number))
    numbers: list[int] = []

    def newcomer() -> None:
        with socket.socket() as sock:
            numbers.append(sock.fileno())

    loop.defer(newcomer)
    loop.round(0.0)
    assert number not in numbers
    assert one.fileno() == -1
    other.close()


def test_modified_interest(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    seen: list[int] = []
    loop.add(pair[0].fileno(), EPOLLIN, seen.append)
    loop.round(0.0)
    assert seen == []
    loop.modify(pair[0].fileno(), EPOLLOUT)
    loop.round(0.0)
    assert seen == [EPOLLOUT]


def test_descriptor_that_cannot_be_polled(loop: Loop, tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "file"), "wb") as file:
        with pytest.raises(OSError, match="not permitted"):
            loop.add(file.fileno(), EPOLLIN, lambda _: None)
        loop.remove(file.fileno())


def test_run_until_stopped(loop: Loop) -> None:
    """The first status counts, and the round is finished."""
    seen: list[str] = []
    loop.again(lambda: loop.stop(3))
    loop.again(lambda: loop.stop(4))
    loop.every_round(lambda: seen.append("end"))
    assert loop.run() == 3
    assert seen == ["end"]


def test_waiting_ends_at_the_first_timer(loop: Loop, clock: Clock) -> None:
    loop.call_at(clock.now - 5, lambda: None)
    loop.round()  # overdue: does not sleep
    loop.call_at(clock.now + 1000, lambda: None)
    loop.round(0.0)  # bounded by the caller


def test_sleep_is_told_from_work() -> None:
    """Time goes by between rounds as well, but that is no time without anything to do."""
    loop = Loop(iter([100.0, 200.0, 200.5, 300.0, 300.0]).__next__)
    loop.round(0.0)
    assert (loop.slept, loop.now) == (0.5, 200.5)
    loop.round(0.0)
    assert (loop.slept, loop.now) == (0.0, 300.0)
