"""The follower's loop: when it looks, what it survives, and what ends it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from passt.kernel.follow import helper
from passt.kernel.follow.start import Follower


class Monitor:
    """Events, each a byte in a pipe."""

    def __init__(self) -> None:
        self.readable, self.writable = os.pipe()

    def fileno(self) -> int:
        return self.readable

    def drain(self) -> bool:
        return bool(os.read(self.readable, 100))

    def happen(self) -> None:
        os.write(self.writable, b"x")


class Following:
    """Counts looks; *script* says what each does."""

    def __init__(self, *script: Callable[[], object]) -> None:
        self.script = list(script)
        self.looks = 0

    def due(self) -> float | None:
        return None

    def look(self, _now: float) -> None:
        self.looks += 1
        self.script.pop(0)()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The follower's end of the channel, and the program's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


def serve(sock: socket.socket, following: Following, monitor: Monitor) -> None:
    stand_ins: Any = following, monitor
    helper._serve(sock, *stand_ins, None)


def fail() -> None:
    raise OSError(errno.ENOMEM, "no memory")


def test_first_look_waits_for_nothing_and_events_bring_others(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    monitor = Monitor()
    following = Following(monitor.happen, monitor.happen, theirs.close)
    serve(ours, following, monitor)
    assert following.looks == 3


def test_word_that_comes_late_is_no_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    monitor = Monitor()
    theirs.send(b"\n")
    following = Following(monitor.happen, theirs.close)
    serve(ours, following, monitor)
    assert following.looks == 2


def test_failures_in_passing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    monkeypatch.setattr(helper, "RETRY", 0.01)
    following = Following(*[fail] * helper.ATTEMPTS, theirs.close)
    serve(ours, following, Monitor())
    assert following.looks == helper.ATTEMPTS + 1


def test_failures_without_end(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "RETRY", 0.01)
    following = Following(*[fail] * 100)
    with pytest.raises(OSError, match="no memory"):
        serve(pair[0], following, Monitor())
    assert following.looks == helper.ATTEMPTS + 1


def test_reports_survive_the_way() -> None:
    """Fields in their order, whatever they are."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report = helper.Report()
    report.templates = {2: (3, "eth0", b"1234", 24, None, None, [b"5678"]), 10: None}
    report.lost, report.withdrawn, report.waits = [b"abcd"], [b"efgh"], True
    report.resolv_conf = b"nameserver 192.0.2.1\n"
    report.notes = [("debug", "a note")]
    helper.send(theirs, report)
    follower = Follower(0, ours)
    received = follower.receive()
    assert received is not None
    for name in report.__slots__:
        assert getattr(received, name) == getattr(report, name)
    theirs.close()
    assert follower.receive() is None
    follower.proceed()
    follower.close()
