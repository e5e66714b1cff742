"""A control server in a loop of its own, what it was asked for, and raw clients.

:class:`Rig` is driven round by round by the test; :class:`Service` runs the same in a thread, for
clients that wait.  Both keep tables as a program does, and do what the test says about ports.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from passt.userspace.control.server import ControlServer
from passt.userspace.flow.rules import (
    CAP_AUTO,
    CAP_IFNAME,
    CAP_IPV4,
    CAP_IPV6,
    CAP_TCP,
    CAP_UDP,
    HOST,
    IPPROTO_TCP,
    SPLICE,
    Rule,
    RuleTable,
)
from passt.userspace.loop import Loop
from passt.userspace.socketpath import bind_private

PASST = CAP_IPV4 | CAP_IPV6 | CAP_TCP | CAP_UDP | CAP_IFNAME
PASTA = PASST | CAP_AUTO


class Journal:
    """Stands in for :mod:`passt.userspace.log`; everything is in :attr:`lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, msg: str, *args: object) -> None:
        """Keep a message of any level."""
        self.lines.append(msg % args if args else msg)

    err = warn = debug = info

    INFO = WARNING = 0

    def limited(self, _key: str, _level: int, msg: str, *args: object) -> None:
        """Keep a message, however many there were of its kind."""
        self.info(msg, *args)


def tcp(first: int, last: int = 0, to: int = 0, **values: object) -> Rule:
    """A rule for TCP ports."""
    return Rule(IPPROTO_TCP, first, last or first, to or first, **values)  # type: ignore[arg-type]


class Rig:
    """A server at ``path``: pasta with two tables, or passt with one."""

    def __init__(self, path: str, *, pasta: bool = True) -> None:
        self.path = path
        #: Seconds that the clock of the loop is ahead.
        self.ahead = 0.0
        self.loop = Loop(lambda: monotonic() + self.ahead)
        self.tables = [RuleTable(HOST, PASTA if pasta else PASST)]
        if pasta:
            self.tables.append(RuleTable(SPLICE, PASTA))
        #: How often tables were replaced, and what to say of ports the next time.
        self.replaced = 0
        self.problems: list[str] = []
        #: Keep callers waiting, for :meth:`finish`.
        self.hold = False
        self.waiting: Callable[[Sequence[str]], None] | None = None
        self.server = ControlServer(
            self.loop, bind_private(path), lambda: self.tables, self._replace
        )
        self.server.start()

    def _replace(self, tables: list[RuleTable], done: Callable[[Sequence[str]], None]) -> None:
        self.tables = tables
        self.replaced += 1
        if self.hold:
            assert self.waiting is None
            self.waiting = done
        else:
            done(self.problems)

    def finish(self) -> None:
        """Tell the server that its request has been carried out."""
        assert self.waiting is not None
        done, self.waiting = self.waiting, None
        done(self.problems)

    def rounds(self, count: int = 4) -> None:
        """Let the loop go round, without sleeping."""
        for _ in range(count):
            self.loop.round(0.0)

    def connect(self) -> socket.socket:
        """A raw client, connected, whose reads fail at once where they would wait."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(self.path)
        return sock

    def greeted(self) -> socket.socket:
        """A raw client that has read all that the server says by itself."""
        sock = self.connect()
        self.rounds()
        assert sock.recv(1 << 20)[:8] == b"basil:s\0"
        return sock

    def shown(self) -> list[list[str]]:
        """The tables in force, as text."""
        return [[str(rule) for rule in table] for table in self.tables]

    def close(self) -> None:
        """Drop clients, stop listening."""
        self.server.close()
        self.rounds(1)


class Service(Rig):
    """A rig whose loop runs in a thread until :meth:`close`."""

    def __init__(self, path: str, *, pasta: bool = True) -> None:
        super().__init__(path, pasta=pasta)
        self._ending = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            self.loop.round(0.02)

    def close(self) -> None:
        """End the thread, then the server."""
        self._ending = True
        self._thread.join()
        super().close()
