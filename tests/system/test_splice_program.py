"""The loopback bypass of the whole program: what it costs, many connections, peers at fault."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from passt.syscalls.sockopt import linger_reset
from tests.system.conftest import StartPasta
from tests.system.kit import paths, stream
from tests.system.kit import topology as net
from tests.system.kit.netns import wait_for, wait_writable
from tests.system.kit.paths import FAST, SPLICED, Path
from tests.system.kit.servers import redis
from tests.system.kit.topology import Topology

pytestmark = [pytest.mark.system, pytest.mark.paths(*SPLICED, *FAST)]

MIB = 1 << 20
SYN_SENT = "02"

#: Each way, and each IP version, once.
crosswise = pytest.mark.paths(("splice-in", 4), ("splice-out", 6), ("fast-in", 4), ("fast-out", 6))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let the test, and the programs it starts, have as many descriptors as may be."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def fill(sock: socket.socket) -> int:
    """Send until nothing has been taken for a while; returns how much was."""
    total = 0
    sock.settimeout(0.5)
    try:
        while True:
            total += sock.send(b"x" * MIB)
    except TimeoutError:
        return total


@crosswise
@pytest.mark.parametrize("finished", ["none", "reader", "both"])
def test_stalled_reader_costs_nothing(
    request: pytest.FixtureRequest, path: Path, finished: str
) -> None:
    """Data, and perhaps ends of file, wait for a reader: no CPU time, and then all of it."""
    if finished != "none":
        request.getfixturevalue("ours_only")
    client, server = path.pair()
    with client, server:
        if finished != "none":
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        total = fill(client)
        if finished == "both":
            client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        before = path.pasta.cpu_seconds()
        time.sleep(1.0)
        assert path.pasta.cpu_seconds() - before <= 0.05
        if finished != "both":
            client.shutdown(socket.SHUT_WR)
        received = 0
        while data := server.recv(MIB):
            received += len(data)
        assert received == total


@crosswise
def test_two_descriptors_per_connection(ours_only: None, path: Path) -> None:
    """Pipes are not kept by connections, and everything comes back."""
    with path.listen() as listener:
        pairs = []
        for _ in range(3):
            # Pools and pipes reach their usual size.
            client = path.connect()
            server, _ = listener.accept()
            sent = stream.Background(lambda sock=client: stream.send(sock, 8 * MIB))
            assert stream.receive(server) == (8 * MIB, sent.result())
            client.close()
            server.close()
        time.sleep(0.5)
        before = path.pasta.descriptors()
        for _ in range(100):
            client = path.connect()
            server, _ = listener.accept()
            client.sendall(b"x" * 1000)
            assert stream.read_exactly(server, 1000)
            pairs.append((client, server))
        # Up to a stock of sockets and some pipes may have come on top or been used.
        assert path.pasta.descriptors() - before <= 200 + 32 + 16
        for pair in pairs:
            for sock in pair:
                sock.close()
        wait_for(lambda: path.pasta.descriptors() <= before + 48, what="descriptors to come back")


def test_burst_of_connections(path: Path) -> None:
    """More at once than sockets are held ready for, several times."""
    with path.listen() as listener:
        for _ in range(4):
            with ThreadPoolExecutor(60) as pool:
                clients = list(pool.map(lambda _: path.connect(), range(60)))
            servers = [listener.accept()[0] for _ in clients]
            for number, client in enumerate(clients):
                client.sendall(struct.pack("!I", number))
                client.shutdown(socket.SHUT_WR)
            numbers = [struct.unpack("!I", stream.read_exactly(sock, 4))[0] for sock in servers]
            assert sorted(numbers) == list(range(60))
            for sock in (*clients, *servers):
                sock.close()


def test_nobody_listens(path: Path) -> None:
    """The client is connected, then reset; or it learns at once. A hundred times."""
    for _ in range(100):
        with pytest.raises(ConnectionError) as caught, path.connect() as client:
            client.recv(1)
        assert caught.value.errno in (errno.ECONNRESET, errno.ECONNREFUSED)
    with path.listen() as listener, path.connect() as client:
        server, _ = listener.accept()
        with server:
            server.sendall(b"now")
            assert stream.read_exactly(client, 3) == b"now"


def test_netcat_finds_nobody(path: Path) -> None:
    """It is connected, as the handshake is over before we know, and reset before it is idle."""
    words = ["ncat", f"-{path.version}", "--recv-only", "--idle-timeout", "8"]
    started = time.monotonic()
    done = path.client_ns.run([*words, path.target, str(path.port)], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Connection re" in done.stderr  # refused or reset
    assert time.monotonic() - started < 4


@crosswise
def test_a_thousand_connections_at_once(many_descriptors: None, path: Path) -> None:
    """All open at the same time, used in turn, each with its own content."""
    chooser = random.Random(1)
    block = chooser.randbytes(1 << 18)
    with path.listen(backlog=4096) as listener:
        server = threading.Thread(target=stream.answer_with_hashes, args=(listener,), daemon=True)
        server.start()
        before = path.pasta.descriptors()
        clients = [path.connect() for _ in range(1000)]
        hashes = [hashlib.sha256() for _ in clients]
        for _ in range(3):
            for state, sock in zip(hashes, clients, strict=True):
                data = block[chooser.randrange(1 << 17) :][: chooser.choice((7, 1000, 100_000))]
                sock.sendall(data)
                state.update(data)
        wait_for(lambda: path.pasta.descriptors() >= before + 2000 - 64, what="all connections")
        for sock in clients:
            sock.shutdown(socket.SHUT_WR)
        for state, sock in zip(hashes, clients, strict=True):
            assert sock.recv(100, socket.MSG_WAITALL) == state.digest()
            assert sock.recv(1) == b""
            sock.close()
        wait_for(lambda: path.pasta.descriptors() <= before + 64, what="connections gone")
        listener.shutdown(socket.SHUT_RDWR)
        server.join(10)
        assert not server.is_alive()


def end(sock: socket.socket, how: str) -> None:
    """End a connection in one way or the other."""
    sock.settimeout(20)
    try:
        if how == "reset":
            linger_reset(sock)
        elif how == "finish":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        elif how == "write":
            sock.sendall(b"x" * 70_000)
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end was faster
    finally:
        sock.close()


@crosswise
@pytest.mark.parametrize("ways", [("reset",), ("finish",), ("reset", "finish", "write", "close")])
def test_storm_of_ends(many_descriptors: None, path: Path, ways: tuple[str, ...]) -> None:
    """Resets, ends of file, or all sorts of ends of either side, hundreds at a time."""
    chooser = random.Random(2)
    with path.listen(backlog=512) as listener:
        before = path.pasta.descriptors()
        with ThreadPoolExecutor(100) as pool:
            for _ in range(3):
                clients = [path.connect() for _ in range(100)]
                both = clients + [listener.accept()[0] for _ in clients]
                chooser.shuffle(both)
                ends = [pool.submit(end, sock, chooser.choice(ways)) for sock in both]
                for each in ends:
                    each.result(30)
        # Sockets in stock, and pipes in reserve.
        wait_for(lambda: path.pasta.descriptors() <= before + 64, what="connections gone")
        client = path.connect()
        server, _ = listener.accept()
        with client, server:
            server.sendall(b"still here")
            assert stream.read_exactly(client, 10) == b"still here"


@crosswise
def test_server_with_a_full_backlog(ours_only: None, path: Path) -> None:
    """Clients wait, without being read or costing anything, until the server accepts.

    Data and end of file leave in one segment. Of two, a kernel without room for the connection may
    take the second and lose the first, which is what happens to upstream's.
    """
    with path.listen(backlog=2) as listener:
        clients = [path.connect() for _ in range(12)]
        for number, client in enumerate(clients):
            client.sendall(b"%02d" % number)
            client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        before = path.pasta.cpu_seconds()
        time.sleep(0.3)
        assert path.pasta.cpu_seconds() - before <= 0.05
        listener.settimeout(20)
        numbers = []
        for _ in clients:
            server, _ = listener.accept()
            with server:
                server.settimeout(10)
                number = stream.read_exactly(server, 2)
                assert server.recv(1) == b""
                server.sendall(number)
                numbers.append(int(number))
        assert sorted(numbers) == list(range(12))
        for number, client in enumerate(clients):
            with client:
                assert stream.read_exactly(client, 2) == b"%02d" % number
                assert client.recv(1) == b""


@crosswise
def test_our_own_backlog_full(path: Path) -> None:
    """More clients than the kernel holds for us, while we do not run: all are served later."""
    with path.listen(backlog=512) as listener:
        os.kill(path.pasta.process.pid, signal.SIGSTOP)
        try:
            clients = path.connect_many(300)
        finally:
            os.kill(path.pasta.process.pid, signal.SIGCONT)
        # Who does not speak first would wait, as the kernel forgets that it answered.
        for number, client in enumerate(clients):
            wait_writable(client, 20)
            client.settimeout(20)
            client.sendall(b"%03d" % number)
        listener.settimeout(20)
        for _ in clients:
            server, _ = listener.accept()
            with server:
                server.sendall(stream.read_exactly(server, 3))
        for number, client in enumerate(clients):
            with client:
                assert stream.read_exactly(client, 3) == b"%03d" % number


@pytest.mark.paths("splice-in", versions=(4,))
def test_server_that_does_not_answer(path: Path) -> None:
    """No answer at all: the client is connected, is not read, and reset when the kernel gives up.

    A client that does not want to wait leaves nothing behind.
    """
    namespace = path.pasta.ns_as_root
    namespace.sysctl("net/ipv4/tcp_syn_retries", 1)
    chain = "table ip lost {\n chain in {\n type filter hook input priority 0\n"
    chain += f" tcp dport {path.port} drop\n }}\n}}\n"
    namespace.run(["nft", "-f", "-"], text=chain)

    def calling() -> int:
        return sum(row[3] == SYN_SENT for row in namespace.table("tcp"))

    patient, hasty = path.connect(), path.connect()
    wait_for(lambda: calling() == 2, what="both on their way")
    linger_reset(hasty)
    hasty.close()
    wait_for(lambda: calling() == 1, 0.9, "one given up")
    with patient:
        patient.sendall(b"never read")
        patient.settimeout(20)
        with pytest.raises(ConnectionResetError):
            patient.recv(1)
    assert calling() == 0
    namespace.run(["nft", "delete", "table", "ip", "lost"])
    client, server = path.pair()
    with client, server:
        client.sendall(b"now")
        assert stream.read_exactly(server, 3) == b"now"


def test_no_route_to_the_server(start_pasta: StartPasta, topology: Topology, version: int) -> None:
    """connect() fails at once where the namespace has lost its address; then it has it again."""
    pasta = start_pasta(*paths.TCP_OPTIONS)
    device, address = pasta.interface(), net.HOST[version]
    prefix = "24" if version == 4 else "64"
    for what in ("addr", "route"):
        pasta.ns_as_root.run(["ip", f"-{version}", what, "flush", "dev", device])
    path = Path("splice-in", version, topology, pasta)
    before = pasta.settled_descriptors()
    for _ in range(50):
        with pytest.raises(ConnectionResetError), path.connect() as client:
            client.recv(1)
    assert pasta.descriptors() <= before + 32
    option = "nodad" if version == 6 else ""
    pasta.ns_as_root.ip(f"addr add {address}/{prefix} dev {device} {option}\n")
    client, server = path.pair()
    with client, server:
        client.sendall(b"back")
        assert stream.read_exactly(server, 4) == b"back"


@crosswise
def test_redis_benchmark(path: Path, folder: str) -> None:
    """Fifty clients, thousands of small requests, one or many at a time, and larger values."""
    redis(path.server_ns, folder, [path.address], path.port)
    for words in (
        "-n 5000 -t ping,set,get,lpush",
        "-n 20000 -P 16 -t set,get",
        "-n 1000 -d 50000 -t set,get",
    ):
        line = ["redis-benchmark", "-h", path.target, "-p", str(path.port), "-c", "50", "--csv"]
        done = path.client_ns.run([*line, *words.split()], timeout=60)
        assert "rror" not in done.stdout + done.stderr
        rates = [float(row.split(",")[1].strip('"')) for row in done.stdout.splitlines()[1:]]
        assert len(rates) == words[words.index("-t") :].count(",") + 1 + ("ping" in words)
        assert min(rates) > 300
