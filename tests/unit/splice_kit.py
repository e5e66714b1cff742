"""A bypass between sockets of this process: both "namespaces" are this machine's loopback.

:class:`LocalMaker` stands in for the thread in the namespace: what it makes at once and what
it delivers later is up to the test.  :class:`Bypass` has a forwarded port, a server that it
leads to, and a loop that the test drives: nothing happens behind its back.  Loopback delivers
at once, so :meth:`Bypass.settle` can run until epoll has nothing to say any more.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from passt.kernel.sockets import SocketSpec, open_sockets
from passt.syscalls.sockopt import linger_reset
from passt.userspace.config.model import Config
from passt.userspace.flow.accept import accept
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, Rule
from passt.userspace.flow.table import FlowTable
from passt.userspace.loop import EPOLLIN, Loop
from passt.userspace.splice.flow import SplicedTcp
from passt.userspace.splice.pool import TCP_OPTIONS
from passt.userspace.splice.tcp import SpliceTcp

LOOPBACK4 = socket.inet_aton("127.0.0.1")
LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")

#: Seconds that a test waits for what must happen.
PATIENCE = 10.0

T = TypeVar("T")
Made = list[socket.socket | OSError]


class LocalMaker:
    """Makes sockets here; those requested are delivered by :meth:`deliver`."""

    def __init__(self) -> None:
        self.requests: list[tuple[list[SocketSpec], Callable[[Made], object]]] = []
        self.calls = 0
        #: What is "made" if set.
        self.error: OSError | None = None

    def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        self.requests.append((list(specs), done))

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        self.calls += 1
        return self._make(specs)

    def deliver(self) -> None:
        """Serve all requests."""
        requests, self.requests = self.requests, []
        for specs, done in requests:
            done(self._make(specs))

    def _make(self, specs: Sequence[SocketSpec]) -> Made:
        if self.error is not None:
            return [self.error] * len(specs)
        return open_sockets([spec.plain() for spec in specs])


class Bypass:
    """A server, a port that leads to it, and the loop between them."""

    def __init__(
        self, *, target: str = "127.0.0.1", pif: int = HOST, backlog: int = 4096, **config: bool
    ) -> None:
        self.loop = Loop()
        self.table = FlowTable()
        self.config = Config("pasta")
        for name, value in config.items():
            setattr(self.config, name, value)
        self.nat = Nat(self.config)
        self.nat.observed4 = LOOPBACK4
        self.nat.observed6 = LOOPBACK6
        self.maker = LocalMaker()
        self.splice = SpliceTcp(self.config, self.nat, self.loop, self.table, self.maker)
        self.maker.deliver()
        self.pif = pif
        self.full = False
        self._sockets: list[socket.socket] = []
        self.server_listener = self.listener(target, backlog)
        wildcard = "::" if ":" in target else "0.0.0.0"
        self._family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._listener = self.listener(wildcard, 4096)
        for option in TCP_OPTIONS:
            self._listener.setsockopt(*option)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.rule = Rule(IPPROTO_TCP, self.port, self.port, self.server_listener.getsockname()[1])
        self.loop.add(self._listener.fileno(), EPOLLIN, self._on_accept)

    def close(self) -> None:
        """Close everything; AssertionError if a pipe is missing."""
        for flow in self.flows():
            flow.reset("end of test")
        self.loop.round(0)
        self.splice.close()
        for sock in self._sockets:
            sock.close()
        assert self.splice._shared.pipes._count == 0

    def listener(self, address: str, backlog: int) -> socket.socket:
        """A listening socket, closed at the end."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._sockets.append(sock)
        sock.bind((address, 0))
        sock.listen(backlog)
        return sock

    def _on_accept(self, _events: int) -> None:
        sock, source, port = accept(self._listener, self._family)
        if not self.splice.accepted(sock, (source, port), self.rule, self.port, self.pif):
            self.full = True

    def flows(self) -> list[SplicedTcp]:
        """The connections there are."""
        return [flow for flow in self.table.flows() if isinstance(flow, SplicedTcp)]

    def idle(self) -> bool:
        """Whether the loop would sleep now."""
        return not select.select([self.loop.fileno()], [], [], 0)[0]

    def settle(self) -> None:
        """Run until the loop would sleep; AssertionError if it never would."""
        for _ in range(10_000):
            if self.idle():
                return
            self.loop.round(0)
        raise AssertionError("the loop does not come to rest")

    def until(self, condition: Callable[[], object]) -> None:
        """Run until ``condition`` holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.loop.round(0.01)

    def client(self, address: str = "127.0.0.1", *, buffer: int = 0) -> socket.socket:
        """Connect to the forwarded port; ``buffer`` limits what it receives unread."""
        sock = socket.socket(self._family)
        self._sockets.append(sock)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(PATIENCE)
        sock.connect((address, self.port))
        return sock

    def server(self) -> socket.socket:
        """The server's end of the next connection."""
        self.server_listener.setblocking(False)
        sock, _ = self._attempt(self.server_listener.accept)
        self._sockets.append(sock)
        sock.settimeout(PATIENCE)
        return sock

    def connect(self, address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection."""
        client = self.client(address)
        return client, self.server()

    def _attempt(self, action: Callable[[], T]) -> T:
        """Repeat ``action`` while it would block, and run."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.settle()
            try:
                return action()
            except BlockingIOError:
                assert time.monotonic() < deadline, "waited in vain"
                self.loop.round(0.01)

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """The next ``size`` bytes, or what comes before the end of file."""
        sock.setblocking(False)
        data = b""
        piece = b"more"
        while piece and size:
            piece = self._attempt(lambda left=size: sock.recv(left))
            data += piece
            size -= len(piece)
        sock.settimeout(PATIENCE)
        return data

    def expect(self, sock: socket.socket, data: bytes) -> None:
        """Find ``data`` at ``sock``."""
        assert self.receive(sock, len(data)) == data

    def is_finished(self, sock: socket.socket) -> bool:
        """Whether the next thing to read is the end of file."""
        try:
            return self.receive(sock, 1) == b""
        except ConnectionResetError:
            return False

    def is_reset(self, sock: socket.socket) -> bool:
        """Whether the next thing to read is a reset."""
        try:
            self.receive(sock, 1)
        except ConnectionResetError:
            return True
        return False

    def until_gone(self) -> None:
        """Run until no connection is left."""
        self.until(lambda: not self.flows())

    def transfer(self, source: socket.socket, target: socket.socket, data: bytes) -> None:
        """Send ``data`` and find it at the other end."""
        unsent = memoryview(data)
        arrived = bytearray()
        deadline = time.monotonic() + PATIENCE
        for sock in (source, target):
            sock.setblocking(False)
        while len(arrived) < len(data):
            assert time.monotonic() < deadline, f"{len(arrived)} of {len(data)} bytes arrived"
            if unsent:
                try:
                    unsent = unsent[source.send(unsent) :]
                except BlockingIOError:
                    pass
            self.settle()
            try:
                arrived += target.recv(1 << 20)
            except BlockingIOError:
                pass
        for sock in (source, target):
            sock.settimeout(PATIENCE)
        assert arrived == data


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    linger_reset(sock)
    sock.close()
