"""How TCP connections end, by every way through pasta: EOF, reset, or refusal, and seen as such."""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
import time
from functools import partial

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import paths, stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.paths import Path
from tests.system.kit.topology import Topology

pytestmark = [pytest.mark.system, pytest.mark.paths(*paths.TCP)]

MIB = 1 << 20
# As a reset, or as what an ICMP error of the same meaning becomes.
FAILURES = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES)


def reset(sock: socket.socket) -> None:
    """Close *sock* with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def outcome(sock: socket.socket) -> str:
    """Return how the stream ends for a reader: ``EOF`` or the name of the error."""
    try:
        while sock.recv(65536):
            pass
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "EOF"


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close(path: Path, first: str) -> None:
    """One side finishes, then gets everything the other still has to say, and its EOF."""
    client, server = path.pair()
    one, other = (client, server) if first == "client" else (server, client)
    with one, other:
        writer = stream.Background(lambda: stream.send(one, MIB, 1))
        assert stream.receive(other) == (MIB, writer.result())
        time.sleep(0.05)  # the closed direction has been noticed by everybody
        back = stream.Background(lambda: stream.send(other, 2 * MIB, 2))
        assert stream.receive(one) == (2 * MIB, back.result())


@pytest.mark.parametrize("by", ["client", "server"])
def test_reset(path: Path, by: str) -> None:
    client, server = path.pair()
    one, other = (client, server) if by == "client" else (server, client)
    with other:
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        reset(one)
        assert outcome(other) == "ECONNRESET"


@pytest.mark.parametrize("by", ["client", "server"])
def test_close_with_unread_data_resets(path: Path, by: str) -> None:
    """A kernel resets a connection closed before all has been read: so does pasta."""
    client, server = path.pair()
    one, other = (client, server) if by == "client" else (server, client)
    with other:
        other.sendall(b"never read")
        wait_for(lambda: one.recv(64, socket.MSG_PEEK), what="data at the other end")
        one.close()
        assert outcome(other) == "ECONNRESET"


def test_answer_before_a_reset(ours_only: None, path: Path) -> None:
    """A server refuses a request without reading it all: its answer arrives, then the reset."""
    with path.listen() as listener:
        for _ in range(50):
            with path.connect() as client:
                server, _ = listener.accept()
                with server:
                    client.sendall(b"a long request")
                    assert server.recv(1) == b"a"
                    server.sendall(b"413")
                assert stream.read_exactly(client, 3) == b"413"
                assert outcome(client) == "ECONNRESET"


def test_crossing_ends(path: Path) -> None:
    """Last data and FIN from both sides at once: both get data and EOF, never a reset."""
    with path.listen() as listener:
        for round_ in range(50):
            client = path.connect()
            server, _ = listener.accept()
            server.settimeout(10.0)
            with client, server:
                for sock in (client, server):
                    sock.sendall(b"%d" % round_)
                    sock.shutdown(socket.SHUT_WR)
                for sock in (client, server):
                    assert stream.receive(sock)[0] == len(b"%d" % round_)


def test_request_answer_close(path: Path) -> None:
    """The client finishes after its request, the server answers and closes: no answer is lost."""
    with path.listen() as listener:
        for _ in range(100):
            client = path.connect()
            server, _ = listener.accept()
            server.settimeout(10.0)
            with client:
                client.sendall(b"request")
                client.shutdown(socket.SHUT_WR)
                with server:
                    assert stream.read_exactly(server, 7) == b"request"
                    assert server.recv(1) == b""
                    server.sendall(b"answer" * 1000)
                assert stream.receive(client)[0] == 6000


def test_both_ways_finished_at_different_times(path: Path) -> None:
    client, server = path.pair()
    with client, server:
        readers = [stream.Background(partial(stream.receive, s)) for s in (client, server)]
        writers = [
            stream.Background(lambda: stream.send(client, 8 * MIB, 3)),
            stream.Background(lambda: stream.send(server, 3 * MIB, 4)),
        ]
        assert readers[0].result() == (3 * MIB, writers[1].result())
        assert readers[1].result() == (8 * MIB, writers[0].result())


@pytest.mark.paths(*paths.OUTBOUND)
def test_closed_port_is_refused(path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        path.connect()
    assert time.monotonic() - started < 0.5


@pytest.mark.paths(*paths.INBOUND, *paths.SPLICED, *paths.FAST)
def test_closed_forwarded_port_is_reset(path: Path) -> None:
    """pasta has to accept before it can ask; then the refusal must come as a reset, not as EOF."""
    try:
        client = path.connect()
    except ConnectionResetError:  # so quick that connect() itself reports it
        return
    with client:
        assert outcome(client) == "ECONNRESET"


@pytest.mark.paths(*paths.OUTBOUND)
def test_netcat_to_closed_port(path: Path) -> None:
    words = ["ncat", "-v", "-n", "-z", "-w", "5", path.target, str(path.port)]
    done = path.client_ns.run(words, check=False, timeout=10)
    assert done.returncode == 1
    assert "refused" in done.stderr.lower()


@pytest.mark.parametrize("addresses", [net.UNREACHABLE, net.PROHIBITED], ids=["route", "filter"])
def test_unreachable_target(
    start_pasta: StartPasta, version: int, addresses: dict[int, str]
) -> None:
    """An ICMP error for the SYN ends the attempt.

    At the second SYN at the latest: an error that arrives while connect() still holds the host's
    socket is noted by the kernel, but does not end the attempt.
    """
    pasta = start_pasta()
    started = time.monotonic()
    with pytest.raises(OSError) as caught:
        pasta.ns.connect(addresses[version], 80)
    assert caught.value.errno in FAILURES
    assert time.monotonic() - started < 2.0


def test_no_route_on_host(
    topology: Topology, start_pasta: StartPasta, host: Netns, version: int
) -> None:
    """connect() failing at once on the host fails in the guest, and leaves nothing behind."""
    pasta = start_pasta()
    target = net.BLACKHOLE[version]
    bits = 32 if version == 4 else 128
    host.ip(f"route add unreachable {target}/{bits}\n")
    try:
        before = pasta.settled_descriptors()
        for _ in range(20):
            with pytest.raises(OSError) as caught:
                pasta.ns.connect(target, 80)
            assert caught.value.errno in FAILURES
        wait_for(lambda: pasta.descriptors() <= before + 2, 5.0, "descriptors to be freed")
    finally:
        host.ip(f"route del unreachable {target}/{bits}\n")


@pytest.mark.paths("remote", "inbound", *paths.SPLICED)
def test_socat_half_close(path: Path) -> None:
    """socat sends a file, finishes, and then collects what the other side computes of it."""
    kind = f"TCP{path.version}"
    address, target = (f"[{a}]" if ":" in a else a for a in (path.address, path.target))
    path.server_ns.popen(
        ["socat", f"{kind}-LISTEN:{path.port},bind={address},reuseaddr", "SYSTEM:sha256sum"]
    )
    path.server_ns.wait_listening(path.port)
    words = "the quick brown fox\n" * 10000
    done = path.client_ns.run(["socat", "-t10", "-", f"{kind}:{target}:{path.port}"], text=words)
    assert done.stdout.split()[0] == hashlib.sha256(words.encode()).hexdigest()


@pytest.mark.paths("remote", "inbound", *paths.SPLICED, *paths.FAST, versions=(4,))
def test_same_ports_again(path: Path) -> None:
    """The same four-tuple is usable again as soon as a reset connection is gone."""
    with path.listen() as listener:
        for _ in range(200):
            client = path.connect(source_port=40001)
            server, _ = listener.accept()
            with server:
                client.sendall(b"hello")
                assert stream.read_exactly(server, 5) == b"hello"
                reset(client)
                assert outcome(server) == "ECONNRESET"


@pytest.mark.paths("remote", *paths.SPLICED, *paths.FAST, versions=(4,))
def test_descriptors_are_freed(path: Path) -> None:
    pasta = path.pasta
    client, server = path.pair()
    client.close()
    server.close()
    time.sleep(0.2)
    before = pasta.settled_descriptors()
    with path.listen() as listener:
        pairs = []
        for _ in range(100):
            client = path.connect()
            pairs.append((client, listener.accept()[0]))
        assert pasta.descriptors() >= before + 50
        for client, server in pairs:
            client.close()
            server.close()
    wait_for(lambda: pasta.descriptors() <= before + 40, 5.0, "descriptors to be freed")
