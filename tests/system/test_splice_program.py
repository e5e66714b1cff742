"""The loopback bypass of the whole program: what it costs, and bursts of connections."""

from __future__ import annotations

import errno
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.kit import stream
from tests.system.kit.netns import wait_for
from tests.system.kit.paths import SPLICED, Path

pytestmark = [pytest.mark.system, pytest.mark.paths(*SPLICED)]

MIB = 1 << 20


def fill(sock: socket.socket) -> int:
    """Send until nothing has been taken for a while; returns how much was."""
    total = 0
    sock.settimeout(0.5)
    try:
        while True:
            total += sock.send(b"x" * MIB)
    except TimeoutError:
        return total


@pytest.mark.parametrize("finished", ["none", "reader", "both"])
def test_stalled_reader_costs_nothing(path: Path, finished: str) -> None:
    """Data, and perhaps ends of file, wait for a reader: no CPU time, and then all of it."""
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


def test_two_descriptors_per_connection(path: Path) -> None:
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
