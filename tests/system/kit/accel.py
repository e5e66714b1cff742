"""Accelerated connections without a program: a loop that runs only when the test says so.

What arrives in between has been forwarded by the kernel.
"""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable

from passt.kernel.ebpf.maps import MapSet
from passt.syscalls import bpf
from passt.userspace.flow.rules import HOST
from passt.userspace.flow.table import FlowTable
from passt.userspace.loop import Loop
from passt.userspace.splice.accel import Accelerator
from passt.userspace.splice.flow import SplicedTcp, Splicing
from passt.userspace.splice.pipes import PipePool
from passt.userspace.splice.pool import TCP_OPTIONS

MIB = 1 << 20
ENDPOINTS = (HOST, b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 2)


def connection() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new one; the second is ours, as a program's would be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        for option in TCP_OPTIONS:
            sock.setsockopt(*option)
        sock.settimeout(20)
    return one, other


class Rig:
    """A loop with spliced connections, accelerated as ``credit`` and ``budget`` allow."""

    def __init__(self, maps: MapSet, credit: int = 1 << 20, budget: int = 64 << 20) -> None:
        self.maps = maps
        self.loop, self.table = Loop(), FlowTable()
        self.shared = Splicing(self.loop, self.table, PipePool())
        self.shared.accelerator = Accelerator(self.loop, maps, credit, budget)
        self.sockets: list[socket.socket] = []

    @property
    def accelerator(self) -> Accelerator:
        assert self.shared.accelerator
        return self.shared.accelerator

    def connect(self, early: bytes = b"") -> tuple[socket.socket, socket.socket, SplicedTcp]:
        """A new connection: client, server, and what is between them."""
        client, ours = connection()
        theirs, server = connection()
        self.sockets += (client, server)
        client.sendall(early)
        return client, server, self.splice(ours, theirs)

    def splice(self, ours: socket.socket, theirs: socket.socket) -> SplicedTcp:
        """Have the loop forward between two sockets."""
        ours.setblocking(False)
        theirs.setblocking(False)
        flow = SplicedTcp(self.shared, ours, theirs, ENDPOINTS)
        self.table.add(flow, "test", b"", 0)
        flow.start(connected=True)
        return flow

    def fast(self) -> tuple[socket.socket, socket.socket, SplicedTcp]:
        """One that is accelerated."""
        client, server, flow = self.connect()
        self.until(lambda: flow.fast is not None, "acceleration")
        return client, server, flow

    def until(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Run the loop until something is the case."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, what
            self.loop.round(0.01)

    def during(self, *work: Callable[[], object], seconds: float = 80) -> None:
        """Run the loop while threads do ``work``."""
        threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        self.until(lambda: not any(t.is_alive() for t in threads), "work", seconds)

    def expect(self, sock: socket.socket, data: bytes) -> None:
        """Run the loop until ``sock`` has received what must be ``data``."""
        got = b""
        while len(got) < len(data):
            self.until(lambda: select.select([sock], [], [], 0)[0], f"{data!r}")
            more = sock.recv(len(data) - len(got))
            assert more, "end of file"
            got += more
        assert got == data

    def numbers(self) -> int:
        """Sockets that the program knows."""
        return len(bpf.map_keys(self.maps._ends, 8))

    def close(self) -> None:
        for flow in list(self.table.flows()):
            flow.reset("end")  # type: ignore[attr-defined]
        self.loop.round(0)
        for sock in self.sockets:
            sock.close()
        assert self.numbers() == 0
        assert self.accelerator.active == 0


def fill(sock: socket.socket) -> tuple[int, str]:
    """Send until nothing is taken for a while; returns bytes, and their digest."""
    sock.settimeout(0.3)
    data = random.randbytes(MIB)
    digest, total = hashlib.sha256(), 0
    try:
        while total < 512 * MIB:
            sent = sock.send(data)
            digest.update(data[:sent])
            total += sent
    except TimeoutError:
        sock.settimeout(20)
    return total, digest.hexdigest()


def drain(sock: socket.socket, total: int) -> str:
    """Digest of the next bytes."""
    digest = hashlib.sha256()
    while total:
        data = sock.recv(min(total, MIB))
        assert data
        digest.update(data)
        total -= len(data)
    return digest.hexdigest()
