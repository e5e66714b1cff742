"""A receiver who does not read, and a sender without limit: what the kernel keeps is bounded.

The bound is what the issue asks for: credit, the buffers of all sockets concerned, and 8 MiB.
Two things are measured. What the sender got rid of is exact. How much memory the kernel has
taken is not, as other programs run meanwhile: so there are three attempts to stay below.
``PASST_MEMORY_SECONDS`` says for how long the sender tries.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import socket
import time

import pytest

from passt.userspace.config.model import DEFAULT_BUDGET, DEFAULT_CREDIT
from tests.system.kit import stream
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.paths import Path

MIB = 1 << 20
SLACK = 8 * MIB
SECONDS = float(os.environ.get("PASST_MEMORY_SECONDS", "1"))
ATTEMPTS = 3
#: What splicing may have in a pipe, for connections that left the fast path.
PIPE = MIB
SMALL = 1 << 16

pytestmark = [pytest.mark.system, pytest.mark.time_limit(60 + 8 * int(SECONDS))]

#: Neither free, nor cache, nor of processes: the kernel's own, network included.
_OTHERS = ("MemFree", "Buffers", "Cached", "AnonPages", "SReclaimable", "PageTables")


def kernel_memory() -> int:
    """Bytes that the kernel uses for itself."""
    with open("/proc/meminfo") as file:
        rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.MULTILINE))
    return (int(rows["MemTotal"]) - sum(int(rows[name]) for name in _OTHERS)) << 10


def buffers(path: Path) -> int:
    """Bytes that the buffers of all sockets of the port may have, both ways."""
    total = 0
    for namespace in (path.client_ns, path.server_ns):
        total += _buffers(namespace, path.port)
    return total


def _buffers(namespace: Netns, port: int) -> int:
    words = ["ss", "-tmnH", "state", "established", f"( sport = :{port} or dport = :{port} )"]
    output = namespace.run(words).stdout
    return sum(int(size) for size in re.findall(r"\b(?:rb|tb)(\d+)", output))


class Sender:
    """Sends pseudo-random data as fast as they are taken."""

    def __init__(self, sock: socket.socket, data: bytes) -> None:
        self.sock = sock
        self._data = memoryview(data)
        self._at = 0
        self.total = 0
        self.digest = hashlib.sha256()
        sock.setblocking(False)

    def push(self) -> None:
        """Send what is taken at once."""
        try:
            while True:
                sent = self.sock.send(self._data[self._at :])
                self.digest.update(self._data[self._at : self._at + sent])
                self._at = (self._at + sent) % len(self._data)
                self.total += sent
        except BlockingIOError:
            return


def push_all(senders: list[Sender], seconds: float) -> None:
    """Have all of them send whenever they can, for so long."""
    by_fd = {sender.sock.fileno(): sender for sender in senders}
    until = time.monotonic() + seconds
    with select.epoll() as poll:
        for fd in by_fd:
            poll.register(fd, select.EPOLLOUT)
        while (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(left):
                by_fd[fd].push()


def drain(sock: socket.socket, sender: Sender) -> None:
    """Read what was sent, to the last byte and the end, and compare."""
    sender.sock.setblocking(True)
    sender.sock.shutdown(socket.SHUT_WR)
    assert stream.receive(sock) == (sender.total, sender.digest.hexdigest())


@pytest.mark.paths(("fast-in", 4), ("fast-out", 6))
def test_one_idle_receiver(path: Path) -> None:
    data = os.urandom(3 * MIB)
    growths = []
    for _ in range(ATTEMPTS):
        client, server = path.pair()
        with client, server:
            before = kernel_memory()
            sender = Sender(client, data)
            push_all([sender], SECONDS)
            growths.append(kernel_memory() - before)
            bound = DEFAULT_CREDIT + buffers(path) + PIPE + SLACK
            taken = sender.total
            assert taken <= bound
            # Nothing more is taken.
            push_all([sender], SECONDS / 4)
            assert sender.total == taken
            drain(server, sender)
        wait_for(lambda: path.accelerated() == 0, what="the maps to be empty")
        if growths[-1] <= bound:
            return
    raise AssertionError(f"the kernel took {growths} bytes, more than {bound}")


@pytest.mark.paths(("fast-in", 4))
def test_a_hundred_idle_receivers(path: Path) -> None:
    """The test's own sockets are small, so that most of what there is belongs to pasta."""
    data = os.urandom(3 * MIB)
    before = kernel_memory()
    with path.listen() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        pairs = []
        for _ in range(100):
            client = path.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            server, _ = listener.accept()
            server.settimeout(20)
            pairs.append((client, server))
        path.wait_accelerated(100)
        senders = [Sender(client, data) for client, _ in pairs]
        push_all(senders, 2 * SECONDS)
        growth = kernel_memory() - before
        bound = DEFAULT_BUDGET + buffers(path) + 100 * PIPE + SLACK
        assert sum(sender.total for sender in senders) <= bound
        assert growth <= bound
        for sender, (_, server) in zip(senders, pairs, strict=True):
            drain(server, sender)
        for pair in pairs:
            for sock in pair:
                sock.close()
    wait_for(lambda: path.accelerated() == 0, what="the maps to be empty")
