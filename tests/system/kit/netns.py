"""Network namespaces as objects: commands, background processes, sockets, sysctls.

Theory of operation: ``setns(2)`` for network namespaces works per thread, and a socket belongs to
the namespace it was created in for all its life. So a short-lived thread joins the namespace,
creates the socket, and ends; the test goes on using the socket from wherever it is. Programs are
started through ``nsenter(1)``, which execs, so that the process id known to the kit is that of the
program itself.

Every process has its own session: it is killed with its descendants by :meth:`Processes.stop`,
and nothing else ever is.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Command = Sequence[str | os.PathLike[str]]

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def wait_for(
    predicate: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.01
) -> T:
    """Poll *predicate* until it returns something true, and return that.

    *timeout* is in seconds; AssertionError, naming *what*, when it has passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := predicate():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"timeout of {timeout:g} s: {what or predicate}")
        time.sleep(interval)


def wait_writable(sock: socket.socket, timeout: float = 10.0) -> None:
    """Wait until a socket that is being connected is."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(timeout * 1000), f"no connection in {timeout:g} s"


def call_in(path: str, function: Callable[[], T]) -> T:
    """Return ``function()`` as evaluated by a thread that joined the network namespace *path*."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {path}")
            finally:
                os.close(fd)
            result.append(function())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Processes:
    """All processes and sockets of a test, so that they end whatever happened to the test."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self.sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def start(self, argv: Command, **options: Any) -> subprocess.Popen[str]:
        """Start *argv* in a session of its own, text mode; options as of subprocess.Popen."""
        options.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[str] = subprocess.Popen(
            argv, text=True, start_new_session=True, **options
        )
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[str], grace: float = 1.0) -> int:
        """End *process* and its session: SIGTERM, after *grace* seconds SIGKILL. Return status."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        if process in self._running:
            self._running.remove(process)
        return process.wait(5.0)

    @property
    def running(self) -> list[subprocess.Popen[str]]:
        """The processes that have not been stopped, in the order of their start."""
        return self._running[:]

    def stop_all(self, keep: Sequence[subprocess.Popen[str]] = ()) -> None:
        """End every process that still runs, latest first, and close every socket.

        Those in *keep* go on.
        """
        for process in reversed(self._running[:]):
            if process not in keep:
                self.stop(process)
        for sock in list(self.sockets):
            sock.close()


class Netns:
    """One network namespace, given by *path*; *prefix* enters it on a command line."""

    def __init__(
        self, name: str, path: str, processes: Processes, prefix: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self.path = path
        self.processes = processes
        self.prefix = list(prefix) if prefix is not None else ["nsenter", f"--net={path}", "--"]

    def __repr__(self) -> str:
        return f"<Netns {self.name}>"

    # -- programs --------------------------------------------------------------------------------

    def popen(
        self, argv: Command, *, prefix: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Start *argv* in this namespace; *prefix* comes after entering it (another user, say)."""
        return self.processes.start([*self.prefix, *prefix, *argv], **options)

    def run(
        self,
        argv: Command,
        *,
        prefix: Sequence[str] = (),
        timeout: float = 30.0,
        check: bool = True,
        text: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* to its end. A non-zero status (with *check*) or *timeout* is a failure."""
        process = self.popen(
            argv,
            prefix=prefix,
            stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        words = shlex.join([str(word) for word in argv])[:300]
        try:
            out, err = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(
                f"{self.name}: {words}: no end in {timeout:g} s\n{out}{err}"
            ) from None
        finally:
            self.processes.stop(process)
        if check and process.returncode:
            raise AssertionError(f"{self.name}: {words}: status {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def ip(self, batch: str) -> None:
        """Run the lines of *batch* through ``ip -batch``."""
        self.run(["ip", "-batch", "-"], text=batch)

    # -- sockets ---------------------------------------------------------------------------------

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()`` evaluated inside."""
        return call_in(self.path, function)

    def new_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a new socket of this namespace, with a timeout of 10 s."""
        sock = self.call(lambda: socket.socket(family, kind, protocol))
        sock.settimeout(10.0)
        self.processes.sockets.add(sock)
        return sock

    def listen(self, address: str, port: int = 0, *, backlog: int = 128) -> socket.socket:
        """Return a listening TCP socket bound to *address* (its family decides) and *port*."""
        sock = self.new_socket(family_of(address), socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def connect(
        self, address: str, port: int, *, timeout: float = 10.0, source: tuple[str, int] = ("", 0)
    ) -> socket.socket:
        """Return a TCP socket of this namespace connected to *address*; errors as of connect."""
        sock = self.new_socket(family_of(address), socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            if source != ("", 0):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(source)
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def udp(self, address: str = "", port: int = 0, *, family: int = 0) -> socket.socket:
        """Return a UDP socket bound to *address*, or an unbound one of *family*."""
        sock = self.new_socket(family or family_of(address), socket.SOCK_DGRAM)
        sock.settimeout(5.0)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if address:
            sock.bind((address, port))
        return sock

    # -- state -----------------------------------------------------------------------------------

    def sysctl(self, key: str, value: str | int) -> None:
        """Write *value* to ``/proc/sys/`` *key* (slashes) as seen from inside."""

        def write() -> None:
            with open(f"/proc/sys/{key}", "w") as file:
                file.write(str(value))

        self.call(write)

    def table(self, name: str) -> list[list[str]]:
        """Return the fields of each line of ``/proc/net/`` *name*, without the heading."""

        def read() -> list[list[str]]:
            with open(f"/proc/thread-self/net/{name}") as file:
                return [line.split() for line in file][1:]

        return self.call(read)

    def listens(self, port: int, kind: str = "tcp") -> bool:
        """Tell whether a *kind* (tcp, udp) socket, of either family, is bound to *port*."""
        state = "0A" if kind == "tcp" else "07"
        for name in (kind, kind + "6"):
            try:
                rows = self.table(name)
            except FileNotFoundError:  # a kernel without IPv6
                continue
            for row in rows:
                if row[3] == state and int(row[1].rpartition(":")[2], 16) == port:
                    return True
        return False

    def wait_listening(self, port: int, kind: str = "tcp", timeout: float = 10.0) -> None:
        """Wait until :meth:`listens` says so."""
        wait_for(
            lambda: self.listens(port, kind), timeout, f"{kind} port {port} open in {self.name}"
        )


def family_of(address: str) -> int:
    """Return AF_INET6 for an address with a colon, AF_INET for any other."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
