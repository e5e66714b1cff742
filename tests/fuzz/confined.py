"""Sockets that go nowhere but to us, and fail when told to.

The translators connect to whatever address the guest asks for.  In a harness they get
:class:`Confined` sockets instead: real ones, with all that the kernel does to them, but every
connection ends at a *sink* of this process on loopback, whichever address was asked for.
What was asked for is checked: a guest must not reach addresses that its packets cannot name.

Any call can be made to fail with an error that the kernel may return (:attr:`Net.faults`).

``net.shim`` stands for the module ``bare_socket`` in the modules under test.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from passt.syscalls import bare_socket
from tests.fuzz import oracle

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

#: What calls may fail with, by name of the method.
FAULTS: dict[str, tuple[int, ...]] = {
    "socket": (errno.EMFILE, errno.ENOBUFS, errno.EACCES, errno.EAFNOSUPPORT),
    "bind": (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL),
    "connect": (
        errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.EINVAL,
        errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ETIMEDOUT, errno.ECONNREFUSED,
    ),
    "getsockname": (errno.ENOBUFS,),
    "getpeername": (errno.ENOTCONN,),
    "setsockopt": (errno.ENOPROTOOPT, errno.EINVAL, errno.ENOBUFS),
    "tcpinfo": (errno.ECONNRESET, errno.ENOTCONN),
    "shutdown": (errno.ENOTCONN,),
    "send": (
        errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.EMSGSIZE, errno.EPERM,
        errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EINVAL,
    ),
    "recv": (errno.EAGAIN, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOMEM, errno.EHOSTUNREACH),
    "register": (errno.ENOSPC, errno.ENOMEM),
}  # fmt: skip
FAULT_NAMES = tuple(FAULTS)


class Net:
    """The sinks, and what happens to sockets; one at a time."""

    def __init__(self) -> None:
        self.shim = _Shim(self)
        #: By name of a call: errors of the next calls, 0 for none, −1 for half of the data.
        self.faults: dict[str, deque[int]] = {}
        #: Connections are refused by nobody listening.
        self.refuse = False
        self.listeners: dict[int, socket.socket] = {}
        self.datagrams: dict[int, socket.socket] = {}
        self.closed: dict[int, socket.socket] = {}
        #: Local ports that are not redirected.
        self.open_ports: set[int] = set()
        #: Local ports of sockets that talk to everybody: as they are connected to that, no
        #: answer can reach them.
        self.mute: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            listener = self.listeners[family] = socket.socket(family, socket.SOCK_STREAM)
            listener.bind((LOOPBACK[family], 0))
            listener.listen(64)
            listener.setblocking(False)
            datagrams = self.datagrams[family] = socket.socket(family, socket.SOCK_DGRAM)
            datagrams.bind((LOOPBACK[family], 0))
            datagrams.setblocking(False)
            # Bound, so that nobody else gets the port, but not listening.
            closed = self.closed[family] = socket.socket(family, socket.SOCK_STREAM)
            closed.bind((LOOPBACK[family], 0))

    def fault(self, name: str) -> int:
        """The error that the call ``name`` is to fail with, 0 for none, −1 for half."""
        queue = self.faults.get(name)
        return queue.popleft() if queue else 0

    def check(self, name: str) -> None:
        """Raise the error that is due for a call."""
        number = self.fault(name)
        if number > 0:
            raise OSError(number, "injected")

    @contextmanager
    def calm(self) -> Iterator[None]:
        """For a while nothing fails: the harness has something to do itself."""
        faults, refuse = self.faults, self.refuse
        self.faults, self.refuse = {}, False
        try:
            yield
        finally:
            self.faults, self.refuse = faults, refuse

    def accept(self) -> list[socket.socket]:
        """Connections that arrived at the sinks, non-blocking."""
        found = []
        for listener in self.listeners.values():
            while True:
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    break
                sock.setblocking(False)
                found.append(sock)
        return found

    def received(self) -> list[tuple[socket.socket, bytes, Any]]:
        """Datagrams that arrived at the sinks: sink, content, source."""
        found = []
        for sink in self.datagrams.values():
            while True:
                try:
                    found.append((sink, *sink.recvfrom(65536)))
                except OSError:
                    break
        return found

    def clear(self) -> None:
        """Forget faults and what lies in the sinks."""
        self.faults.clear()
        self.refuse = False
        self.open_ports.clear()
        self.mute.clear()
        for sock in self.accept():
            abandon(sock)
        self.received()


class Confined(socket.socket):
    """A socket whose other end is a sink of ``net``."""

    def __init__(self, net: Net, family: int = -1, kind: int = -1, proto: int = 0) -> None:
        self.net = net
        net.check("socket")
        # An echo socket is a datagram socket here.
        super().__init__(family, kind, 0)
        self.stream = kind & 0xF == socket.SOCK_STREAM

    # Where it goes.

    def _wanted(self, address: Any) -> Any:
        """Check the ``address`` that is asked for; returns where to go instead."""
        host = socket.inet_pton(self.family, address[0])
        assert host in (b"\x7f\0\0\1", bytes(15) + b"\1") or not oracle.is_loopback(host), (
            f"connects to {address[0]}"
        )
        assert any(host), "connects to the unspecified address"
        if self.stream:
            assert oracle.is_unicast(host), "TCP to a group"
            assert address[1], "TCP to port 0"
        net = self.net
        if not self.stream:
            if host == b"\xff" * 4:
                net.mute.add(super().getsockname()[1])
            return net.datagrams[self.family].getsockname()
        return (net.closed if net.refuse else net.listeners)[self.family].getsockname()

    def connect(self, address: Any) -> None:
        if address[1] in self.net.open_ports:
            super().connect(address)
            return
        sink = self._wanted(address)
        self.net.check("connect")
        super().connect(sink)

    def connect_ex(self, address: Any) -> int:
        sink = self._wanted(address)
        number = self.net.fault("connect")
        return number if number > 0 else super().connect_ex(sink)

    def bind(self, address: Any) -> None:
        self.net.check("bind")
        if address[1] not in self.net.open_ports:
            address = LOOPBACK[self.family], 0
        super().bind(address)

    def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
        if not super().getsockname()[1]:
            super().bind((LOOPBACK[self.family], 0))
        sink = self._wanted(address)
        self.net.check("send")
        return super().sendto(data, sink)

    # What may fail.

    def getsockname(self) -> Any:
        self.net.check("getsockname")
        return super().getsockname()

    def getpeername(self) -> Any:
        self.net.check("getpeername")
        return super().getpeername()

    def setsockopt(self, *args: Any) -> None:
        if args[1] != socket.SO_LINGER:
            self.net.check("setsockopt")
        super().setsockopt(*args)

    def getsockopt(self, *args: Any) -> Any:
        if args[0] == socket.IPPROTO_TCP:
            self.net.check("tcpinfo")
        return super().getsockopt(*args)

    def shutdown(self, how: int) -> None:
        self.net.check("shutdown")
        super().shutdown(how)

    def send(self, data: Any, flags: int = 0) -> int:
        number = self.net.fault("send")
        if number > 0:
            raise OSError(number, "injected")
        if number < 0 and self.stream and len(data) > 1:
            data = memoryview(data)[: len(data) // 2]
        return super().send(data, flags)

    def sendmsg(self, *args: Any) -> int:
        self.net.check("send")
        if len(args) == 4 and not oracle.is_unicast(socket.inet_pton(self.family, args[3][0])):
            # Who answers does so from elsewhere.
            args = *args[:3], self._wanted(args[3])
        return super().sendmsg(*args)

    def recv_into(self, *args: Any) -> int:
        self.net.check("recv")
        return super().recv_into(*args)

    def recvmsg_into(self, *args: Any) -> Any:
        self.net.check("recv")
        return super().recvmsg_into(*args)

    def recvfrom_into(self, *args: Any) -> Any:
        self.net.check("recv")
        return super().recvfrom_into(*args)


class _Shim:
    """The module ``bare_socket`` with another class of sockets."""

    def __init__(self, net: Net) -> None:
        self._net = net

    def socket(self, family: int = -1, kind: int = -1, proto: int = 0) -> Confined:
        return Confined(self._net, family, kind, proto)

    def __getattr__(self, name: str) -> Any:
        return getattr(bare_socket, name)


def abandon(sock: socket.socket) -> None:
    """Close ``sock`` with a reset: no TIME_WAIT state remains that would use up the ports."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    except OSError:
        pass
    sock.close()
