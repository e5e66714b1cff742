"""Floods from the guest and from peers, against a pasta that does something else meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.conftest import StartGuest, StartPasta
from tests.system.kit import flood
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.rawguest import TCP
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PORT = 7002
#: Descriptors that pasta has without flows, and some more.
FEW = 250


@pytest.fixture
def folder_for_all(tmp_path: Path) -> Path:
    """A folder that pasta's user may write to."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o755)
    return tmp_path


@contextmanager
def flooded(
    pasta: Pasta, version: int, kind: str, target: str, rate: int, *options: str
) -> Iterator[None]:
    """Have the guest flood *target* meanwhile, after a second of it at the beginning."""
    program = str(Path(flood.__file__))
    source = net.HOST[version]
    words = [sys.executable, "-S", program, pasta.interface(), kind, target, "--source", source]
    words += ["--rate", str(rate), *options]
    process = pasta.ns_as_root.popen(words, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    yield
    assert process.poll() is None, "the flood ended early"
    process.terminate()
    sent = int(process.communicate(timeout=10)[0])
    assert sent > rate // 2, "no flood to speak of"


def frames_read(pasta: Pasta) -> int:
    """Frames that pasta has read from its interface so far: the kernel counts them as sent."""
    name = pasta.interface() + ":"
    (fields,) = [row for row in pasta.ns_as_root.table("dev") if row[0] == name]
    return int(fields[10])


class Upload:
    """A connection from pasta's namespace to *remote* that carries as much as it can."""

    def __init__(self, pasta: Pasta, remote: Netns, version: int) -> None:
        with remote.listen(net.REMOTE[version], PORT) as listener:
            self.client = pasta.ns.connect(net.REMOTE[version], PORT)
            self.server, _ = listener.accept()

    def rate(self, seconds: float) -> float:
        """Bytes per second that arrive."""
        stop = threading.Event()
        self.client.settimeout(0.2)

        def send() -> None:
            block = bytes(1 << 18)
            while not stop.is_set():
                try:
                    self.client.send(block)
                except TimeoutError:
                    pass

        sender = threading.Thread(target=send)
        sender.start()
        self.server.settimeout(0.2)
        buffer = bytearray(1 << 20)
        total = 0
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            try:
                total += self.server.recv_into(buffer)
            except TimeoutError:
                pass
        stop.set()
        # The sender may wait for room.
        while sender.is_alive():
            try:
                self.server.recv_into(buffer)
            except TimeoutError:
                pass
            sender.join(0.0)
        return total / seconds


def test_upload_beside_syns_to_closed_ports(
    start_pasta: StartPasta, remote: Netns, version: int
) -> None:
    """Each of them fails at once: opening and closing sockets must not take all the time."""
    pasta = start_pasta()
    upload = Upload(pasta, remote, version)
    alone = upload.rate(1.5)
    with flooded(pasta, version, "syn", net.REMOTE[version], 20000):
        beside = upload.rate(2.0)
        assert pasta.descriptors() < FEW + 1400
    # Some 60% on an idle machine; half a per cent at most with a socket for each SYN.
    assert beside > alone / 80, f"{alone / 1e6:.0f} MB/s alone, {beside / 1e6:.0f} MB/s"


@pytest.mark.parametrize("kind", ["syn", "spoof"])
def test_connections_beside_syns_into_a_black_hole(
    start_pasta: StartPasta, remote: Netns, version: int, kind: str, folder_for_all: Path
) -> None:
    """They stay pending; new connections go through nevertheless, old ones go on."""
    log = folder_for_all / "log"
    pasta = start_pasta("--log-file", str(log))
    upload = Upload(pasta, remote, version)
    with (
        flooded(pasta, version, kind, net.BLACKHOLE[version], 3000),
        remote.listen(net.REMOTE[version], PORT) as listener,
    ):
        assert pasta.descriptors() < FEW + 1400
        for _ in range(3):
            with pasta.ns.connect(net.REMOTE[version], PORT, timeout=20.0) as client:
                server, _ = listener.accept()
                client.sendall(b"through")
                server.settimeout(10)
                assert server.recv(100) == b"through"
                server.close()
        assert upload.rate(0.5) > 0
    lines = log.read_text().count("Too many TCP connections without answer")
    # Five in two seconds, and each test takes a few.
    assert 0 < lines < 60


@pytest.mark.parametrize(
    ("kind", "most"), [("udp", 4096), ("ping", 1024)], ids=["port scan", "ping identifiers"]
)
def test_datagrams_without_answer(
    start_pasta: StartPasta, remote: Netns, version: int, kind: str, most: int
) -> None:
    """Whatever the time it takes: three times the limit are received, and never exceed it."""
    pasta = start_pasta()
    with remote.udp(net.REMOTE[version], PORT) as server:
        old = pasta.ns.udp(family=server.family)
        old.connect((net.REMOTE[version], PORT))
        old.send(b"query")
        payload, client = server.recvfrom(100)
        server.sendto(payload, client)
        assert old.recv(100) == b"query"
        seen = 0

        def flooding() -> bool:
            nonlocal seen
            seen = max(seen, pasta.descriptors())
            return frames_read(pasta) > 3 * most

        with flooded(pasta, version, kind, net.BLACKHOLE[version], 6000):
            wait_for(flooding, 50.0, "three times the limit", interval=0.05)
            assert most // 2 < seen < most + FEW

            def exchanged() -> bool:
                # A flood fills the queue of the interface now and then: it may get lost there.
                old.send(b"again")
                try:
                    return server.recv(100) == b"again"
                except TimeoutError:
                    return False

            server.settimeout(0.5)
            wait_for(exchanged, 20.0, "an old flow that goes on")
            assert pasta.descriptors() < most + FEW


def test_guest_that_answers_no_connection(
    start_guest: StartGuest, remote: Netns, version: int
) -> None:
    """Its peers' connections are bounded, for each of them and altogether."""
    guest = start_guest("-t", "7001")
    sockets = []
    for _ in range(1600):
        sock = remote.new_socket(
            socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM
        )
        sock.bind((net.GATEWAY[version], 0))
        sock.setblocking(False)
        sock.connect_ex((net.HOST[version], 7001))
        sockets.append(sock)
    try:
        time.sleep(0.5)
        assert guest.pasta.descriptors() < FEW + 1024
        since = guest.position()
        # A peer of another address is served beside them.
        remote.connect(net.HOST[version], 7001, source=(net.REMOTE[version], 0), timeout=10.0)
        guest.expect(
            lambda p: TCP in p and p[TCP].flags == "S" and p.payload.src == net.REMOTE[version],
            10.0,
            since,
        )
    finally:
        for sock in sockets:
            sock.close()


# Descriptors.


NOFILE = 400


@pytest.fixture
def few_descriptors(program: Program) -> Program:
    """The program under a low limit."""
    return Program(["prlimit", f"--nofile={NOFILE}:{NOFILE}", *program.argv])


def test_flows_leave_descriptors_to_the_rest(
    few_descriptors: Program,
    host: Netns,
    remote: Netns,
    user: User,
    version: int,
    folder_for_all: Path,
) -> None:
    """As many flows as can be, all answered; then listeners, bypass, pesto, and old flows."""
    control = folder_for_all / "control"
    log = folder_for_all / "log"
    options = "-t", "7001", "-c", str(control), "--log-file", str(log)
    pasta = Pasta(few_descriptors, host, user, *options)
    try:
        upload = Upload(pasta, remote, version)
        inside = pasta.ns.listen(net.HOST[version], 7001)
        spliced = host.connect(net.LOOPBACK[version], 7001)
        spliced_server, _ = inside.accept()
        server = remote.udp(net.REMOTE[version], PORT)
        clients = []
        answered = 0
        for _ in range(2 * NOFILE):
            client = pasta.ns.udp(family=server.family)
            client.connect((net.REMOTE[version], PORT))
            client.send(b"query")
            clients.append(client)
        server.settimeout(1.0)
        try:
            while True:
                payload, peer = server.recvfrom(100)
                server.sendto(payload, peer)
                answered += 1
        except TimeoutError:
            pass
        assert 50 < answered < NOFILE
        # What is refused is not left waiting.
        assert pasta.descriptors() < NOFILE - 20
        with pytest.raises(ConnectionResetError):
            host.connect(net.LOOPBACK[version], 7001).recv(1)
        # The control socket works, …
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(control))
            assert client.recv(8)
        # … so do connections that were there before, in bulk, too, which needs pipes.
        assert upload.rate(0.5) > 0
        sent = 0
        spliced.setblocking(False)
        block = bytes(1 << 20)
        while sent < 16 << 20:
            try:
                sent += spliced.send(block)
            except BlockingIOError:
                spliced_server.recv(1 << 20)
        clients[0].send(b"still")
        assert server.recv(100) == b"still"
        messages = log.read_text().splitlines()
        assert any("Flow table full" in line for line in messages), messages
        assert len(messages) < 60, messages
        # Room is made when flows end, and nothing has been spinning.
        before = pasta.cpu_seconds()
        time.sleep(1.0)
        assert pasta.cpu_seconds() - before < 0.5
        upload.client.close()
        upload.server.close()
        spliced.close()
        spliced_server.close()

        def accepted() -> bool:
            try:
                with host.connect(net.LOOPBACK[version], 7001, timeout=0.3) as client:
                    client.recv(1)
            except TimeoutError:
                return True
            except ConnectionResetError:
                pass
            return False

        wait_for(accepted, 45.0, "no connection after flows have ended", interval=0.5)
    finally:
        pasta.close()


# Memory.


def peak(pasta: Pasta) -> int:
    """Largest resident size so far, in bytes."""
    with open(f"/proc/{pasta.process.pid}/status") as file:
        (kib,) = [line.split()[1] for line in file if line.startswith("VmHWM:")]
    return int(kib) << 10


def test_memory_ceiling(program: Program, host: Netns, remote: Netns, user: User) -> None:
    """Tens of thousands of flows, each answered at once, so that none has to make room."""
    pasta = Pasta(program, host, user, "--max-memory", "48M")
    server = remote.udp(net.REMOTE[4], PORT)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    stop = threading.Event()

    def echo() -> None:
        server.settimeout(0.2)
        while not stop.is_set():
            try:
                payload, peer = server.recvfrom(100)
                server.sendto(payload, peer)
            except TimeoutError:
                pass

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        old = Upload(pasta, remote, 4)
        with flooded(pasta, 4, "udp", net.REMOTE[4], 5000, "--port", str(PORT)):
            time.sleep(7)
            flows = pasta.descriptors()
            # 17000 and more without the ceiling, in 44 MB.
            assert 8000 < flows < 13500
            assert old.rate(0.5) > 0
        assert peak(pasta) <= 48 << 20, f"{peak(pasta) >> 10} KiB with {flows} descriptors"
    finally:
        stop.set()
        thread.join()
        pasta.close()
