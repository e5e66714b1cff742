"""Sockets made in another namespace, and connections spliced to them.

The bypass runs in a thread of the test, with its listeners in the namespace *host*; what it
connects to is in *guest*, where a :class:`~passt.kernel.nsthread.NsThread` makes sockets.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from passt.kernel.nsthread import NsThread
from passt.kernel.sockets import SocketSpec, open_socket
from passt.syscalls import bare_socket
from passt.userspace.config.model import Config
from passt.userspace.flow.accept import accept
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, SPLICE, Rule
from passt.userspace.flow.table import FlowTable
from passt.userspace.loop import EPOLLIN, Loop
from passt.userspace.splice.pool import TCP_OPTIONS
from passt.userspace.splice.tcp import SpliceTcp
from tests.system.netlink_lab import Lab, Net

pytestmark = pytest.mark.system

CAP_NET_BIND_SERVICE = 10
PORT = 8000
GUEST4, GUEST6 = "192.0.2.10", "2001:db8::10"
STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
REUSE = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


@pytest.fixture
def guest() -> Iterator[Net]:
    net = Net("unshare", "-n")
    net.run(
        "sysctl -qw net.ipv6.conf.default.accept_dad=0\n"
        "ip link set lo up\n"
        "ip link add tap0 type veth peer name far0; ip link set far0 up; ip link set tap0 up\n"
        f"ip addr add {GUEST4}/24 dev tap0; ip addr add {GUEST6}/64 dev tap0\n"
    )
    yield net
    net.close()


@pytest.fixture
def thread(guest: Net) -> Iterator[NsThread]:
    """The thread in the guest's namespace."""
    made = NsThread()
    fd = guest.fd()
    made.start(fd, 1 << CAP_NET_BIND_SERVICE)
    os.close(fd)
    yield made
    made.close()


def wildcard(device: str) -> SocketSpec:
    """A dual-stack listener on PORT."""
    return SocketSpec(
        socket.AF_INET6,
        STREAM,
        options=(REUSE, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0), *TCP_OPTIONS),
        device=device,
        address=("::", PORT, 0, 0),
        backlog=4096,
    )


class Running:
    """A bypass with a forwarded port in *host*, and one in *guest*, running in a thread."""

    def __init__(self, host: Net, thread: NsThread, tap_index: int) -> None:
        self.host, self.thread = host, thread
        self.loop, self.table = Loop(), FlowTable()
        config = Config("pasta")
        self.nat = Nat(config)
        self.nat.observed4 = socket.inet_aton(GUEST4)
        self.nat.observed6 = socket.inet_pton(socket.AF_INET6, GUEST6)
        self.splice = SpliceTcp(config, self.nat, self.loop, self.table, thread, tap_index)
        self.loop.add(thread.fileno(), EPOLLIN, thread.on_event)
        self._sockets: list[socket.socket] = []
        with host.inside():
            self._serve(open_socket(wildcard("").plain()), HOST)
        (there,) = thread.call([wildcard("lo")])
        assert isinstance(there, bare_socket.socket)
        self._serve(there, SPLICE)
        self._thread = threading.Thread(target=self._run)

    def _serve(self, sock: socket.socket, pif: int) -> None:
        rule = Rule(IPPROTO_TCP, PORT, PORT, PORT + 1)

        def on_accept(_events: int) -> None:
            made, source, port = accept(sock, socket.AF_INET6)
            self.splice.accepted(made, (source, port), rule, PORT, pif)

        self.loop.add(sock.fileno(), EPOLLIN, on_accept)
        self._sockets.append(sock)

    def _run(self) -> None:
        # Sockets of the program's own side are made by itself.
        with self.host.inside():
            self.loop.run()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        wake, wakened = os.pipe()
        self.loop.add(wake, EPOLLIN, lambda _events: None)
        self.loop.stop(0)
        os.write(wakened, b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()
        os.close(wake)
        os.close(wakened)
        for flow in self.table.flows():
            flow.reset("end")  # type: ignore[attr-defined]
        for sock in self._sockets:
            sock.close()
        self.splice.close()


@pytest.fixture
def running(guest: Net, thread: NsThread) -> Iterator[Running]:
    host = Net("unshare", "-n")
    host.run("ip link set lo up")
    with guest.inside():
        tap_index = socket.if_nametoindex("tap0")
    made = Running(host, thread, tap_index)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    made.start()
    yield made
    made.close()
    sys.setswitchinterval(interval)
    host.close()


def listen(net: Net, address: str, port: int) -> socket.socket:
    with net.inside():
        return socket.create_server(
            (address, port),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=4096,
        )


def connect(net: Net, address: str, port: int = PORT) -> socket.socket:
    with net.inside():
        return socket.create_connection((address, port), 20)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# The thread.


def test_sockets_belong_to_the_namespace(thread: NsThread, guest: Net) -> None:
    listener = listen(guest, GUEST4, 7777)
    (sock,) = thread.call([SocketSpec(socket.AF_INET, socket.SOCK_STREAM)])
    assert isinstance(sock, bare_socket.socket)
    sock.connect((GUEST4, 7777))
    assert sock.getpeername() == (GUEST4, 7777)
    sock.close()
    listener.close()


def test_low_ports_need_the_capability(guest: Net) -> None:
    low = SocketSpec(socket.AF_INET, socket.SOCK_STREAM, address=("127.0.0.1", 80))
    fd = guest.fd()
    with_it, without = NsThread(), NsThread()
    without.start(fd, 0)
    (refused,) = without.call([low])
    assert isinstance(refused, OSError)
    assert refused.errno == errno.EACCES
    with_it.start(fd, 1 << CAP_NET_BIND_SERVICE)
    (sock,) = with_it.call([low])
    assert isinstance(sock, bare_socket.socket)
    sock.close()
    os.close(fd)
    with_it.close()
    without.close()
    # Nobody else changed.
    assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{guest.pid}/ns/net")


# The worker, for what must be there before the last fork.


def test_worker_makes_sockets_in_the_namespace(guest: Net) -> None:
    lab = Lab()
    fd = guest.fd()
    try:
        lab.worker.enter(None, fd, None)
        specs = [
            SocketSpec(
                socket.AF_INET,
                STREAM,
                options=(REUSE,),
                device="lo",
                address=("0.0.0.0", port),
                backlog=5,
            )
            for port in range(79, 330)
        ]
        specs[150:150] = [specs[0], SocketSpec(socket.AF_INET, STREAM, device="nope")]
        made = lab.worker.sockets(specs)
        lists = lab.worker.port_lists()
        # What was made stays when the worker is gone.
        lab.worker.close()
        errors = {n: each.errno for n, each in enumerate(made) if isinstance(each, OSError)}
        assert errors == {150: errno.EADDRINUSE, 151: errno.ENODEV}
        opened = [each for each in made if isinstance(each, bare_socket.socket)]
        ports = [sock.getsockname()[1] for sock in opened]
        assert ports == list(range(79, 330))
        assert not any(os.get_inheritable(sock.fileno()) for sock in opened)
        with connect(guest, "127.0.0.1", 200), pytest.raises(ConnectionRefusedError):
            connect(guest, GUEST4, 200)
        assert len(lists) == 4
        assert None not in lists
        for _ in range(2):
            listening = read_ports(lists[0] or 0)
            assert listening >= set(ports)
        for sock in opened:
            sock.close()
        assert not read_ports(lists[0] or 0) & set(ports)
        for fd_ in lists:
            os.close(fd_ or 0)
    finally:
        os.close(fd)
        lab.close()


def read_ports(fd: int) -> set[int]:
    """Listening ports in a file like /proc/net/tcp."""
    os.lseek(fd, 0, os.SEEK_SET)
    text = b""
    while data := os.read(fd, 1 << 16):
        text += data
    rows = [row.split() for row in text.decode().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def test_worker_needs_a_namespace_first() -> None:
    lab = Lab()
    try:
        with pytest.raises(Exception, match="No namespace entered yet"):
            lab.worker.port_lists()
    finally:
        lab.close()


# Connections.


@pytest.mark.parametrize(
    ("client", "server"), [("127.0.0.1", GUEST4), ("127.0.0.9", GUEST4), ("::1", GUEST6)]
)
def test_from_host_to_guest(running: Running, guest: Net, client: str, server: str) -> None:
    listener = listen(guest, server, PORT + 1)
    with connect(running.host, client) as sock:
        other, _ = listener.accept()
        sock.sendall(b"request")
        assert other.recv(100) == b"request"
        other.sendall(b"answer")
        assert sock.recv(100) == b"answer"
        # The guest's own external address, not loopback.
        assert other.getpeername()[0] == server
        other.close()
    listener.close()


def test_loopback_services_of_the_guest_are_not_exposed(running: Running, guest: Net) -> None:
    listener = listen(guest, "127.0.0.1", PORT + 1)
    # The reset may come as soon as the connection is made.
    with pytest.raises(ConnectionResetError), connect(running.host, "127.0.0.1") as sock:
        sock.recv(1)
    listener.close()


def test_link_local_target_is_scoped(running: Running, guest: Net) -> None:
    running.nat.observed6 = None
    (shown,) = guest.link_local("tap0")
    address = shown["local"]
    running.nat.observed_ll = socket.inet_pton(socket.AF_INET6, address)
    with guest.inside():
        listener = socket.create_server(("::", PORT + 1), family=socket.AF_INET6)
    with connect(running.host, "::1") as sock:
        other, _ = listener.accept()
        assert other.getsockname()[0].partition("%")[0] == address
        other.sendall(b"x")
        assert sock.recv(1) == b"x"
        other.close()
    listener.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53", "::1"])
def test_from_guest_to_host(running: Running, guest: Net, address: str) -> None:
    listener = listen(running.host, address, PORT + 1)
    with connect(guest, address) as sock:
        other, _ = listener.accept()
        other.sendall(b"greeting")
        assert sock.recv(100) == b"greeting"
        other.close()
    listener.close()


def test_external_addresses_do_not_reach_the_port(running: Running, guest: Net) -> None:
    """The listener is bound to lo."""
    with pytest.raises(ConnectionRefusedError):
        connect(guest, GUEST4)


def test_small_messages_do_not_wait(running: Running, guest: Net) -> None:
    """Two small writes and a read, as of database protocols: no delayed acknowledgements."""
    listener = listen(guest, GUEST4, PORT + 1)
    with connect(running.host, "127.0.0.1") as sock:
        other, _ = listener.accept()
        for end in (sock, other):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(200):
            before = time.monotonic()
            sock.sendall(b"12345")
            sock.sendall(b"x" * 44)
            received = 0
            while received < 49:
                received += len(other.recv(100))
            other.sendall(b"12345")
            sock.recv(100)
            times.append(time.monotonic() - before)
        other.close()
    listener.close()
    # Steps of 40 ms would show in every one.
    assert sorted(times)[100] < 0.03


def test_two_way_bulk_with_half_close(running: Running, guest: Net) -> None:
    listener = listen(guest, GUEST4, PORT + 1)
    size = 64 << 20
    block = os.urandom(1 << 20)

    def send(sock: socket.socket, seed: int, delay: float) -> str:
        chooser = random.Random(seed)
        state = hashlib.sha256()
        left = size
        while left:
            piece = block[chooser.randrange(1 << 19) :][: min(left, chooser.randrange(1, 1 << 19))]
            sock.sendall(piece)
            state.update(piece)
            left -= len(piece)
        time.sleep(delay)
        sock.shutdown(socket.SHUT_WR)
        return state.hexdigest()

    def receive(sock: socket.socket) -> str:
        state = hashlib.sha256()
        while data := sock.recv(1 << 18):
            state.update(data)
        return state.hexdigest()

    with connect(running.host, "127.0.0.1") as client, ThreadPoolExecutor(4) as pool:
        server, _ = listener.accept()
        client.settimeout(60)
        server.settimeout(60)
        sent = pool.submit(send, client, 1, 0.0), pool.submit(send, server, 2, 0.2)
        got = pool.submit(receive, server), pool.submit(receive, client)
        assert [each.result() for each in sent] == [each.result() for each in got]
        server.close()
    wait_for(lambda: running.table.count == 0, "flows stay")
    listener.close()


def test_idle_connections_cost_no_wake_ups(running: Running, guest: Net) -> None:
    listener = listen(guest, GUEST4, PORT + 1)
    clients = [connect(running.host, "127.0.0.1") for _ in range(200)]
    servers = [listener.accept()[0] for _ in clients]
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    time.sleep(0.2)
    running.loop.every_round(count)
    time.sleep(0.5)
    assert rounds <= 1
    for sock in clients + servers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    listener.close()
