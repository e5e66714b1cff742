"""Both ends of a bypassed connection in the hands of all kinds of programs, by either bypass.

What they see must be what a direct connection shows, whoever forwards; and afterwards nothing of
the connection must be left, neither in pasta nor in the kernel's maps.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from passt.syscalls.tcpinfo import inq
from tests.system.kit import stream
from tests.system.kit.netns import wait_for
from tests.system.kit.paths import FAST, SPLICED, Path
from tests.system.test_tcp_close import outcome

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("ours_only"),
    pytest.mark.paths(("splice-in", 4), ("splice-out", 6), ("fast-in", 4), ("fast-out", 6)),
]

MIB = 1 << 20
#: Bytes each way, with each way of waiting.
AMOUNT = 2 * MIB
PATIENCE = 20.0

Wait = Callable[[socket.socket, str], None]


@pytest.fixture(autouse=True)
def nothing_left(path: Path) -> Iterator[None]:
    """As many descriptors as before, but for stocks of sockets and pipes, and maps are empty."""
    before = path.pasta.settled_descriptors()
    yield
    wait_for(lambda: path.pasta.descriptors() <= before + 64, what="descriptors to be closed")
    if path.fast:
        wait_for(lambda: path.accelerated() == 0, what="the maps to be empty")


def by_poll(sock: socket.socket, what: str) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN if what == "in" else select.POLLOUT)
    assert poll.poll(PATIENCE * 1000)


def by_select(sock: socket.socket, what: str) -> None:
    reading = what == "in"
    assert any(select.select([sock] * reading, [sock] * (not reading), [], PATIENCE)[:2])


class ByEpoll:
    """Waits with one descriptor for all of a connection's life, by level or by edge."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._polls: dict[int, select.epoll] = {}

    def __call__(self, sock: socket.socket, what: str) -> None:
        wanted = select.EPOLLIN if what == "in" else select.EPOLLOUT
        poll = self._polls.get(wanted)
        if poll is None:
            poll = self._polls[wanted] = select.epoll()
            poll.register(sock, wanted | self._flags)
        assert poll.poll(PATIENCE)


def by_blocking(sock: socket.socket, what: str) -> None:
    """Not at all: the call itself waits."""


#: How to wait, made anew for each end.
WAYS: dict[str, Callable[[], Wait]] = {
    "blocking": lambda: by_blocking,
    "poll": lambda: by_poll,
    "select": lambda: by_select,
    "level": lambda: ByEpoll(0),
    "edge": lambda: ByEpoll(select.EPOLLET),
}


def converse(sock: socket.socket, wait: Wait, seed: int, done: list[str]) -> None:
    """Send AMOUNT bytes and receive as many, only when told that it is possible."""

    def write() -> None:
        for block in stream.blocks(AMOUNT, seed):
            left = memoryview(block)
            while left:
                try:
                    left = left[sock.send(left[:100_000]) :]
                except BlockingIOError:
                    wait(sock, "out")

    def read() -> None:
        digest, size = hashlib.sha256(), 0
        while size < AMOUNT:
            try:
                data = sock.recv(70_000)
            except BlockingIOError:
                wait(sock, "in")
                continue
            assert data
            digest.update(data)
            size += len(data)
        done.append(digest.hexdigest())

    writing = stream.Background(write)
    read()
    writing.result()


def test_every_way_of_waiting(path: Path) -> None:
    for number, make in enumerate(WAYS.values()):
        client, server = path.pair()
        got: tuple[list[str], list[str]] = ([], [])
        with client, server:
            for sock in (client, server):
                sock.settimeout(PATIENCE if number == 0 else 0)
            one = stream.Background(lambda: converse(client, make(), 1, got[0]))  # noqa: B023
            other = stream.Background(lambda: converse(server, make(), 2, got[1]))  # noqa: B023
            one.result()
            other.result()
        assert got == ([stream.digest(AMOUNT, 2)], [stream.digest(AMOUNT, 1)])


@pytest.mark.parametrize("reader", ["client", "server"])
def test_low_water_mark(path: Path, reader: str) -> None:
    """Who wants at least so much is not woken by less, and is by what comes to complete it."""
    client, server = path.pair()
    one, other = (client, server) if reader == "server" else (server, client)
    with client, server:
        for mark in (10, 1000, 30_000):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
            one.sendall(b"x" * (mark - 1))
            wait_for(lambda: inq(other.fileno()) == mark - 1, what="all but one byte")  # noqa: B023
            poll = select.poll()
            poll.register(other, select.POLLIN)
            assert poll.poll(50) == []
            one.sendall(b"y")
            assert poll.poll(PATIENCE * 1000)
            assert stream.read_exactly(other, mark) == b"x" * (mark - 1) + b"y"


@pytest.mark.parametrize("in_line", [False, True])
def test_urgent_data(path: Path, in_line: bool) -> None:
    """They arrive in their place, as data: we cannot know what the receiver wants."""
    client, server = path.pair()
    with client, server:
        for one, other in ((client, server), (server, client)):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, in_line)
            for number in range(20):
                one.sendall(b"before%02d" % number)
                one.send(b"!", socket.MSG_OOB)
                one.sendall(b"after")
                assert stream.read_exactly(other, 14) == b"before%02d!after" % number


@pytest.mark.parametrize("deaf", ["client", "server"])
def test_reading_is_shut_down(path: Path, deaf: str) -> None:
    """Who does not want to read can go on writing, and the other end may send until then."""
    client, server = path.pair()
    one, other = (client, server) if deaf == "client" else (server, client)
    with client, server:
        one.shutdown(socket.SHUT_RD)
        other.sendall(b"unheard" * 1000)
        # With both directions shut down, the kernel answers what still comes with a reset.
        wait_for(lambda: inq(one.fileno()) == 7000, what="what is not read")
        digest = stream.Background(lambda: stream.send(one, 3 * MIB, 1))
        assert stream.receive(other) == (3 * MIB, digest.result())


FLOOD = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
number = 0
while True:
    sock.sendall(number.to_bytes(4, "big") * 1000)
    number += 1
"""
LISTEN = """
import socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
sock.setblocking(True)
for _ in range(50):
    sock.recv(100_000)
time.sleep(60)
"""


def hand_over(sock: socket.socket, script: str) -> subprocess.Popen[bytes]:
    """Have another process be the only owner of *sock*, and run *script* with it."""
    words = [sys.executable, "-c", script, str(sock.fileno())]
    process = subprocess.Popen(words, pass_fds=[sock.fileno()])
    sock.close()
    return process


@pytest.mark.parametrize("who", ["client", "server"])
def test_writer_is_killed(path: Path, who: str) -> None:
    """All that it got rid of arrives, in order, and then the end."""
    client, server = path.pair()
    one, other = (client, server) if who == "client" else (server, client)
    process = hand_over(one, FLOOD)
    with other:
        data = bytearray(stream.read_exactly(other, 4 * MIB))
        time.sleep(0.1)  # buffers are full, or about to be
        process.kill()
        process.wait()
        while more := other.recv(MIB):
            data += more
    for number, at in enumerate(range(0, len(data), 4000)):
        block = data[at : at + 4000]
        assert block == (number.to_bytes(4, "big") * 1000)[: len(block)], (at, len(data))


@pytest.mark.parametrize("who", ["client", "server"])
def test_reader_is_killed(path: Path, who: str) -> None:
    """The kernel resets its connection, as it has not read everything: the writer learns of it."""
    client, server = path.pair()
    one, other = (client, server) if who == "client" else (server, client)
    process = hand_over(one, LISTEN)
    with other:
        other.settimeout(0.5)
        try:
            while True:
                other.sendall(os.urandom(MIB))
        except TimeoutError:
            pass
        process.kill()
        process.wait()
        other.settimeout(PATIENCE)
        assert outcome(other) == "ECONNRESET"


@pytest.mark.paths(*SPLICED, *FAST)
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_state_is_freed_at_once(path: Path, how: str) -> None:
    """A hundred connections that end in some way; nothing_left has the rest."""
    before = path.pasta.descriptors()
    with path.listen() as listener:
        pairs = []
        for number in range(50):
            client = path.connect()
            server, _ = listener.accept()
            client.sendall(b"%03d" % number)
            assert stream.read_exactly(server, 3) == b"%03d" % number
            pairs.append((client, server))
        if path.fast:
            path.wait_accelerated(100)
        for number, (client, server) in enumerate(pairs):
            one, other = (client, server) if number % 2 else (server, client)
            if how == "reset":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif how == "half":
                one.shutdown(socket.SHUT_WR)
                assert other.recv(1) == b""
                other.sendall(b"rest")
                assert stream.read_exactly(one, 4) == b"rest"
            one.close()
            assert outcome(other) == ("ECONNRESET" if how == "reset" else "EOF")
            other.close()
    wait_for(lambda: path.pasta.descriptors() <= before + 64, 5, "descriptors to be closed")
