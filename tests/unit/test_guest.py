"""Who is the guest of passt, and who is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from passt.syscalls import bare_socket
from passt.userspace import log
from passt.userspace.link.guest import Guest
from passt.userspace.loop import Loop
from passt.userspace.socketpath import bind_socket
from tests.unit.test_stream_link import frame, framed


class Rig:
    """A guest's port at a path, and what it reports."""

    def __init__(
        self, path: str, *, one_off: bool = False, passed: socket.socket | None = None
    ) -> None:
        self.path = path
        self.loop = Loop()
        sock = bare_socket.socket(fileno=passed.detach()) if passed else bind_socket(path)
        self.guest = Guest(self.loop, sock, one_off=one_off)
        self.arrivals = 0
        self.frames: list[bytes] = []
        self.guest.link.receiver = lambda buf, off, end: self.frames.append(bytes(buf[off:end]))
        self.guest.start(self.arrived)

    def arrived(self) -> None:
        self.arrivals += 1

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock

    def turn(self, rounds: int = 3) -> None:
        for _ in range(rounds):
            self.loop.round(0.0)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "emit", lambda _level, text, *args: lines.append(text % args))
    monkeypatch.setattr(log, "_windows", {})
    return lines


@pytest.fixture
def rig(tmp_path: Path, messages: list[str]) -> Iterator[Rig]:
    yield Rig(str(tmp_path / "socket"))


def test_a_guest_arrives_and_leaves(rig: Rig, messages: list[str]) -> None:
    sock = rig.connect()
    rig.turn()
    assert rig.arrivals == 1
    sock.sendall(framed(frame(60)))
    rig.turn()
    sock.close()
    rig.turn()
    assert rig.frames == [frame(60)]
    assert not rig.guest.link.connected
    assert messages == [
        f"Accepted UNIX socket connection from PID {os.getpid()}",
        "Client connection closed",
    ]


def test_the_next_guest_is_served(rig: Rig) -> None:
    for number in range(10):
        with rig.connect() as sock:
            rig.turn()
            sock.sendall(framed(frame(60, number)))
            rig.turn()
        rig.turn()
    assert rig.arrivals == 10
    assert rig.frames == [frame(60, number) for number in range(10)]


def test_a_second_one_is_refused(rig: Rig, messages: list[str]) -> None:
    with rig.connect() as first:
        rig.turn()
        with rig.connect() as second:
            rig.turn()
            assert second.recv(1) == b""
        first.sendall(framed(frame(60)))
        rig.turn()
        assert rig.frames == [frame(60)]
    assert rig.arrivals == 1
    assert "discarded" in messages[1]


def test_who_comes_as_the_other_leaves(rig: Rig) -> None:
    """Both events in one round, and the newcomer's first."""
    first = rig.connect()
    rig.turn()
    first.sendall(framed(frame(60, 1)))
    first.close()
    with rig.connect() as second:
        rig.guest._on_connection(0)
        second.sendall(framed(frame(60, 2)))
        rig.turn()
        assert rig.frames == [frame(60, 1), frame(60, 2)]
        assert rig.guest.link.connected


def test_who_comes_behind_many_frames(rig: Rig) -> None:
    first = rig.connect()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    rig.turn()
    first.sendall(framed(*[frame(60, number & 0xFF) for number in range(1200)]))
    first.close()
    with rig.connect() as second:
        rig.guest._on_connection(0)
        second.sendall(framed(frame(61)))
        rig.turn(8)
        assert len(rig.frames) == 1201
        assert rig.frames[-1] == frame(61)


def test_without_memory_to_wait_it_waits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "add", refuse)
        rig.loop.remove(rig.guest._sock.fileno())
        rig.guest._resume()
    assert messages == ["Guest socket: No space left on device"]
    assert len(rig.loop._timers) == 1


def test_without_descriptors_it_waits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def refuse(_sock: object) -> None:
        raise OSError(24, "Too many open files")

    with rig.connect(), monkeypatch.context() as patch:
        patch.setattr(bare_socket, "accept", refuse)
        rig.turn(5)
        assert messages == ["Guest socket: Too many open files"]
    assert len(rig.loop._timers) == 1


def test_one_off_ends_with_its_guest(tmp_path: Path, messages: list[str]) -> None:
    rig = Rig(str(tmp_path / "socket"), one_off=True)
    with rig.connect():
        rig.turn()
    assert rig.loop.run() == 0
    assert messages[-1] == "Client connection closed, exiting"


def test_a_connection_that_was_passed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    rig = Rig("", one_off=True, passed=ours)
    with closing(theirs):
        assert rig.arrivals == 1
        theirs.sendall(framed(frame(60)))
        rig.turn()
        assert rig.frames == [frame(60)]
    assert rig.loop.run() == 0
