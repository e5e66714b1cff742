"""Spliced connections with more data than fits: pipes, back-pressure, integrity, fairness."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from passt.userspace.splice import pipes as pipes_module
from passt.userspace.splice.flow import BUFFER_SIZE, TURNS, End
from passt.userspace.splice.pipes import PIPE_SIZE, Pipe, PipePool
from tests.unit.splice_kit import PATIENCE, Bypass, reset

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK = os.urandom(1 << 20)


@pytest.fixture
def bypass() -> Iterator[Bypass]:
    kit = Bypass()
    yield kit
    kit.close()


@pytest.fixture(params=["pipes", "small pipes", "no pipes"])
def pipes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What pipes there are: as many as wanted, of two pages (quota used up), or none."""

    def minimal(_pool: PipePool, fd: int) -> int:
        return real(fd, 8192)

    real = pipes_module.set_pipe_size
    if request.param == "small pipes":
        monkeypatch.setattr(PipePool, "_enlarge", minimal)
    elif request.param == "no pipes":
        monkeypatch.setattr(PipePool, "take", lambda _pool: None)
    return str(request.param)


class Stream:
    """One direction of a test: pseudo-random pieces sent, and what arrives, both hashed."""

    def __init__(self, source: socket.socket, target: socket.socket, size: int, seed: int) -> None:
        self.source, self.target = source, target
        self.left = size
        self.random = random.Random(seed)
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.finished = False
        source.setblocking(False)
        target.setblocking(False)

    def send(self) -> None:
        """Send a piece, or what is accepted of it; the end of file after the last."""
        if not self.left:
            return
        offset = self.random.randrange(len(BLOCK))
        limit = self.random.choice((1, 100, 5000, BUFFER_SIZE, 300_000))
        piece = BLOCK[offset : offset + min(limit, self.left)]
        try:
            count = self.source.send(piece)
        except BlockingIOError:
            return
        self.sent.update(piece[:count])
        self.left -= count
        if not self.left:
            self.source.shutdown(socket.SHUT_WR)

    def receive(self) -> None:
        """Take a piece of what has arrived, up to the end of file."""
        if self.finished:
            return
        try:
            data = self.target.recv(self.random.choice((1, 1000, 100_000, 1 << 20)))
        except BlockingIOError:
            return
        self.received.update(data)
        self.finished = not data

    def verify(self) -> None:
        assert not self.left
        assert self.sent.hexdigest() == self.received.hexdigest()


def blocked(end: End) -> bool:
    """Whether data read from ``end`` waits for the other one."""
    return end.pipe is not None or end.held is not None


def fill(bypass: Bypass, source: socket.socket) -> int:
    """Send until nothing is accepted any more; returns how much was."""
    source.setblocking(False)
    total = 0
    while True:
        try:
            total += source.send(BLOCK)
        except BlockingIOError:
            bypass.settle()
            try:
                total += source.send(BLOCK)
            except BlockingIOError:
                return total


def block(bypass: Bypass, source: socket.socket, end: End) -> int:
    """Send until ``end`` has to wait for the other one; returns how much was."""
    total = 0
    while not blocked(end):
        assert total < 100_000_000, "does not block"
        total += source.send(BLOCK[: 1 << 16])
        bypass.settle()
    return total


def drain(bypass: Bypass, target: socket.socket) -> int:
    """Read up to the end of file; returns how much it was."""
    target.setblocking(False)
    total = 0
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline, f"no end after {total} bytes"
        bypass.settle()
        try:
            data = target.recv(50_000)
        except BlockingIOError:
            continue
        if not data:
            return total
        total += len(data)


@pytest.mark.parametrize("buffers", ["large", "small"])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_with_pieces_of_any_size(
    bypass: Bypass, pipes: str, seed: int, buffers: str
) -> None:
    """Senders, receivers and half-closes at different times; now and then a round of ours."""
    client, server = bypass.connect()
    if buffers == "small":
        # Less is taken at a time than we read.
        (flow,) = bypass.flows()
        for end in (flow.client, flow.server):
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    size = 6_000_000 if buffers == "large" else 600_000
    up = Stream(client, server, size, seed)
    down = Stream(server, client, size // 3, seed + 100)
    turn = random.Random(seed)
    streams = (up, down)
    steps = [up.send, down.send, up.receive, down.receive, lambda: bypass.loop.round(0)]
    # One of the four is slow.
    weights = [turn.choice((1, 10)) for _ in range(4)] + [10]
    deadline = time.monotonic() + PATIENCE
    while not (up.finished and down.finished):
        assert time.monotonic() < deadline, "the transfer does not end"
        for step in turn.choices(steps, weights, k=100):
            step()
    for stream in streams:
        stream.verify()
    bypass.settle()
    bypass.until_gone()


def test_slow_reader_gets_all_after_sender_finished(bypass: Bypass, pipes: str) -> None:
    client, server = bypass.connect()
    total = fill(bypass, client)
    client.close()
    assert drain(bypass, server) == total


class Reluctant(socket.socket):
    """A socket short of memory: it takes so many bytes in its first calls, 0 for none."""

    taken = (100, 0, 700, 0, 1)
    calls = 0

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        size = self.taken[self.calls] if self.calls < len(self.taken) else len(memoryview(data))
        self.calls += 1
        if not size:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().send(memoryview(data)[:size], flags)


def test_early_data_that_is_not_taken_at_once(bypass: Bypass) -> None:
    """The first read happens before epoll knows the sockets."""
    sock = Reluctant(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    bypass.splice._pools[4]._stock.append(sock)
    client = bypass.client()
    client.sendall(b"early")
    early = BLOCK[:5000]
    client.sendall(early)
    bypass.loop.round(0)
    (flow,) = bypass.flows()
    assert flow.server.sock is sock
    assert blocked(flow.client)
    client.sendall(b"late")
    server = bypass.server()
    client.close()
    bypass.settle()
    assert sock.calls > len(sock.taken)
    bypass.expect(server, b"early" + early + b"late")
    assert bypass.is_finished(server)


@pytest.mark.parametrize("ends", ["open", "finished", "both finished"])
def test_stalled_receiver_costs_nothing(bypass: Bypass, pipes: str, ends: str) -> None:
    """Data and end of file wait behind a receiver that does not read: epoll says nothing."""
    client, server = bypass.connect()
    if ends == "both finished":
        server.shutdown(socket.SHUT_WR)
        bypass.settle()
        assert bypass.is_finished(client)
    (flow,) = bypass.flows()
    total = block(bypass, client, flow.client)
    if ends != "open":
        client.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.idle()
    assert blocked(flow.client)
    if ends == "open":
        client.shutdown(socket.SHUT_WR)
    assert drain(bypass, server) == total


def test_both_directions_stalled(bypass: Bypass) -> None:
    client, server = bypass.connect()
    fill(bypass, client)
    fill(bypass, server)
    bypass.settle()
    assert bypass.idle()
    (flow,) = bypass.flows()
    assert blocked(flow.client)
    assert blocked(flow.server)
    # Each way opens by itself.
    server.setblocking(True)
    for _ in range(50):
        server.recv(1 << 20)
        bypass.settle()
        if not blocked(flow.client):
            break
    assert not blocked(flow.client)
    assert blocked(flow.server)


@pytest.mark.parametrize("who", ["client", "server"])
def test_reset_while_stalled(bypass: Bypass, pipes: str, who: str) -> None:
    client, server = bypass.connect()
    fill(bypass, client)
    one, other = (client, server) if who == "client" else (server, client)
    reset(one)
    bypass.settle()
    bypass.until_gone()
    if who == "client":
        # What has arrived may be read before the reset shows.
        with pytest.raises(ConnectionResetError):
            while other.recv(1 << 20):
                pass
    else:
        assert bypass.is_reset(other)


def test_pipes_are_held_only_while_there_is_data_in_them(
    bypass: Bypass, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Pipe] = []
    given: list[Pipe] = []
    take, give_back = PipePool.take, PipePool.give_back

    def record_take(pool: PipePool) -> Pipe | None:
        pipe = take(pool)
        assert pipe is not None
        taken.append(pipe)
        return pipe

    def record_give_back(pool: PipePool, pipe: Pipe) -> None:
        given.append(pipe)
        give_back(pool, pipe)

    monkeypatch.setattr(PipePool, "take", record_take)
    monkeypatch.setattr(PipePool, "give_back", record_give_back)
    one, two = bypass.connect(), bypass.connect()
    for _ in range(4):
        bypass.transfer(*one, BLOCK * 2)
        bypass.transfer(*two, BLOCK * 2)
    assert len(taken) >= 8
    assert taken == given
    # One does for all.
    assert len(set(taken)) == 1
    bypass.transfer(*one, b"small")
    before = len(taken)
    bypass.transfer(*one, b"small again")
    assert len(taken) == before


def test_pipe_with_data_in_it_is_not_used_again(bypass: Bypass) -> None:
    client, server = bypass.connect()
    (flow,) = bypass.flows()
    server.setblocking(False)
    deadline = time.monotonic() + PATIENCE
    while flow.client.pipe is None:
        assert time.monotonic() < deadline
        fill(bypass, client)
        try:
            server.recv(1 << 20)
        except BlockingIOError:
            pass
        bypass.settle()
    reset(client)
    bypass.settle()
    client, server = bypass.connect()
    bypass.transfer(client, server, BLOCK * 4)


def test_one_round_is_bounded(bypass: Bypass) -> None:
    """A bulk transfer leaves room for others in each round of the loop."""
    client, server = bypass.connect()
    fill(bypass, client)
    server.setblocking(False)
    received = 0
    try:
        while True:
            received += len(server.recv(1 << 20))
    except BlockingIOError:
        pass
    before = received
    bypass.loop.round(0)
    try:
        while True:
            received += len(server.recv(1 << 20))
    except BlockingIOError:
        pass
    # What waited in the pipe goes first.
    assert 0 < received - before <= (TURNS + 1) * PIPE_SIZE


def test_others_are_served_during_a_bulk_transfer(bypass: Bypass) -> None:
    busy = bypass.connect()
    quiet = bypass.connect()
    fill(bypass, busy[0])
    busy[1].setblocking(False)
    quiet[0].sendall(b"ping")
    for _ in range(3):
        try:
            busy[1].recv(1 << 20)
        except BlockingIOError:
            pass
        bypass.loop.round(0)
    bypass.expect(quiet[1], b"ping")
    assert blocked(bypass.flows()[0].client)


def test_signals_during_bulk(bypass: Bypass) -> None:
    """Interrupted calls are repeated, with nothing counted twice."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        client, server = bypass.connect()
        bypass.transfer(client, server, BLOCK * 16)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [10, BUFFER_SIZE, 1_000_000])
@pytest.mark.parametrize("finish", [False, True])
def test_urgent_data_stays_in_line(bypass: Bypass, size: int, finish: bool) -> None:
    """splice(2) stops at urgent data, and takes what is behind an end of file for nothing."""
    client, server = bypass.connect()
    data = (BLOCK * 2)[:size]
    # All is queued before we look.
    client.setblocking(False)
    sent = client.send(data)
    client.setblocking(True)
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"behind")
    if finish:
        client.shutdown(socket.SHUT_WR)
    wanted = data[:sent] + b"!behind"
    arrived = bypass.receive(server, len(wanted))
    assert len(arrived) == len(wanted)
    assert arrived == wanted
    if finish:
        assert bypass.is_finished(server)
