"""TCP streams arrive whole, in order, and in time, by every way through pasta."""

from __future__ import annotations

import socket
import statistics
import time

import pytest

from tests.system.kit import paths, stream
from tests.system.kit.netns import wait_writable
from tests.system.kit.paths import Path

pytestmark = [pytest.mark.system, pytest.mark.paths(*paths.TCP)]

MIB = 1 << 20


def ends(path: Path, sender: str) -> tuple[socket.socket, socket.socket]:
    """Return the sending and the receiving end of a new connection."""
    client, server = path.pair()
    return (client, server) if sender == "client" else (server, client)


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.paths(*paths.TCP, versions=(4,))
def test_slow_reader(path: Path, sender: str) -> None:
    """A reader that does nothing stops the sender, costs no processor time, and loses nothing."""
    # More than all buffers of the kernel on the way can hold: with splicing there are two sockets
    # and a pipe more, and the one that pasta empties quickly at first grows to the maximum.
    size = (96 if path.name in paths.SPLICED + paths.FAST else 24) * MIB
    source, sink = ends(path, sender)
    with source, sink:
        source.settimeout(30.0)
        writer = stream.Background(lambda: stream.send(source, size))
        time.sleep(0.8)
        assert writer.is_alive(), "somebody buffers without bound"
        before = path.pasta.cpu_seconds()
        time.sleep(0.7)
        assert path.pasta.cpu_seconds() - before < 0.15, "busy while nothing can move"
        assert stream.receive(sink) == (size, writer.result())


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.paths("remote", "inbound", *paths.SPLICED, *paths.FAST, versions=(4,))
def test_finished_sender_and_stalled_reader(path: Path, sender: str) -> None:
    """FIN behind data that cannot be delivered yet: no busy loop, then all the data, then EOF."""
    source, sink = ends(path, sender)
    with source, sink:
        source.settimeout(0.3)
        sent = 0
        try:
            while sent < 64 * MIB:
                sent += source.send(bytes(4096))
        except TimeoutError:
            pass
        source.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        before = path.pasta.cpu_seconds()
        time.sleep(0.7)
        assert path.pasta.cpu_seconds() - before < 0.15, "busy while nothing can move"
        sink.settimeout(60.0)
        assert stream.receive(sink)[0] == sent


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.paths(*paths.TCP, versions=(4,))
def test_reader_in_small_steps(path: Path, sender: str) -> None:
    source, sink = ends(path, sender)
    if path.name in ("remote", "inbound"):  # where the segments are smaller than that
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
    size = 2 * MIB
    with source, sink:
        source.settimeout(30.0)
        writer = stream.Background(lambda: stream.send(source, size))
        data = bytearray()
        started = time.monotonic()
        while piece := sink.recv(1 + len(data) % 7919):
            data += piece
        assert time.monotonic() - started < 8, "the sender waits for its timers"
        assert b"".join(stream.blocks(size)) == bytes(data)
        writer.result()


def test_server_speaks_first(path: Path) -> None:
    """A mail server's greeting reaches a client that has sent nothing."""
    client, server = path.pair()
    with client, server:
        server.sendall(b"220 ready\r\n")
        assert stream.read_exactly(client, 11) == b"220 ready\r\n"


@pytest.mark.paths("inbound", "splice-in", "fast-in")
def test_client_sends_and_closes_at_once(path: Path) -> None:
    """Everything is there before the guest has even been asked."""
    with path.listen() as listener:
        with path.connect() as client:
            sent = stream.send(client, 40000)
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            assert stream.receive(server) == (40000, sent)


def exchange_times(client: socket.socket, server: socket.socket, count: int) -> list[float]:
    """Return the seconds that each of *count* small requests and answers took."""
    for sock in (client, server):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer() -> None:
        for number in range(count):
            stream.read_exactly(server, 5 + number % 44)
            server.sendall(bytes(5 + number % 44))

    answering = stream.Background(answer)
    times = []
    for number in range(count):
        started = time.perf_counter()
        client.sendall(bytes(5 + number % 44))
        stream.read_exactly(client, 5 + number % 44)
        times.append(time.perf_counter() - started)
    answering.result()
    return times


def test_small_messages_do_not_wait(path: Path) -> None:
    """No Nagle, no delayed acknowledgement: a database protocol is not slowed to 40 ms steps."""
    client, server = path.pair()
    with client, server:
        times = exchange_times(client, server, 300)
    assert statistics.median(times) < 0.005
    assert sum(time > 0.035 for time in times) < 30


def test_two_small_writes_do_not_wait(path: Path) -> None:
    """Write, write, read, with Nagle's algorithm off: header and body leave at once."""
    client, server = path.pair()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, server:
        slow = 0
        for _ in range(50):
            started = time.perf_counter()
            client.sendall(b"head")
            client.sendall(b"body")
            stream.read_exactly(server, 8)
            server.sendall(b"answer")
            stream.read_exactly(client, 6)
            slow += time.perf_counter() - started > 0.035
        assert slow < 5


@pytest.mark.parametrize("sender", ["client", "server"])
def test_urgent_byte_is_kept_in_line(ours_only: None, path: Path, sender: str) -> None:
    source, sink = ends(path, sender)
    with source, sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        source.sendall(b"abc")
        source.send(b"X", socket.MSG_OOB)
        source.sendall(b"def")
        source.shutdown(socket.SHUT_WR)
        data = b""
        while piece := sink.recv(100):
            data += piece
        assert data == b"abcXdef"


@pytest.mark.paths("remote", "gateway", "inbound", *paths.SPLICED, *paths.FAST, versions=(4,))
def test_many_connections_at_once(path: Path) -> None:
    """More connections in one go than any pool holds, all served, each with its own data."""
    count = 200
    with path.listen(backlog=512) as listener:
        clients = path.connect_many(count)

        def serve() -> None:
            listener.settimeout(10)
            accepted = [listener.accept()[0] for _ in range(count)]
            for sock in accepted:
                with sock:
                    sock.settimeout(10)
                    sock.sendall(stream.read_exactly(sock, 4) * 100)

        serving = stream.Background(serve)
        for number, client in enumerate(clients):
            wait_writable(client)
            client.settimeout(10)
            client.sendall(number.to_bytes(4, "big"))
        for number, client in enumerate(clients):
            with client:
                assert stream.read_exactly(client, 400) == number.to_bytes(4, "big") * 100
        serving.result()
