"""The control socket of a running pasta: pesto's changes, and clients that mean no good.

What a change does to ports and connections is seen from outside: who listens, who is served, who
goes on.  Every test ends with a pasta that still serves pesto.
"""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from passt.userspace.control.server import TIME_LIMIT
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, SPLICE, Rule
from tests.system.conftest import StartPasta
from tests.system.kit import paths, stream
from tests.system.kit import topology as net
from tests.system.kit.netns import wait_for
from tests.system.kit.pasta import Pasta
from tests.system.kit.paths import Path
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PESTO = [sys.executable, "-m", "passt.userspace.cli.pesto"]
OTHER = 7005


class Controlled:
    """A pasta with the usual forwarding, and pesto for it."""

    def __init__(self, start_pasta: StartPasta, topology: Topology, path: str) -> None:
        self.topology = topology
        self.path = path
        # With -d it speaks on standard error while the command runs.
        self.pasta: Pasta = start_pasta("-d", "-c", path, *paths.OPTIONS)

    def pesto(self, line: str) -> tuple[int, str, str]:
        """Run pesto; exit status, output, messages."""
        done = self.topology.host.run([*PESTO, *line.split(), self.path], check=False)
        return done.returncode, done.stdout, done.stderr

    def shown(self) -> str:
        """The tables, as pesto prints them."""
        status, out, err = self.pesto("")
        assert (status, err) == (0, "")
        return out

    def client(self) -> socket.socket:
        """A raw client of the control socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(2 * TIME_LIMIT)
        sock.connect(self.path)
        return sock

    def way(self, name: str, version: int = 4) -> Path:
        """A way through this pasta."""
        return Path(name, version, self.topology, self.pasta)

    def listens(self, port: int) -> bool:
        """Whether TCP ``port`` is open on the host."""
        return self.topology.host.listens(port)


@pytest.fixture
def controlled(start_pasta: StartPasta, topology: Topology, sockets: str) -> Iterator[Controlled]:
    made = Controlled(start_pasta, topology, os.path.join(sockets, "control"))
    yield made
    assert made.shown().startswith("passt/pasta configuration ")


def exchange(client: socket.socket, server: socket.socket) -> None:
    """A word each way."""
    for one, other in ((client, server), (server, client)):
        one.sendall(b"word")
        assert stream.read_exactly(other, 4) == b"word"


def test_socket_is_its_owners(
    ours_only: None, controlled: Controlled, topology: Topology, user: User
) -> None:
    status = os.stat(controlled.path)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_uid, status.st_gid) == (user.uid, user.gid)
    greeting = ["sh", "-c", f"socat -t5 - UNIX-CONNECT:{controlled.path} | head -c 7"]
    assert topology.host.run(greeting, prefix=user.prefix).stdout == "basil:s"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    done = topology.host.run(greeting, prefix=nobody)
    assert done.stdout == ""
    assert "Permission denied" in done.stderr


def test_json(controlled: Controlled) -> None:
    status, out, err = controlled.pesto("--json -A -t 127.0.0.1/8100-8109:8200-8209 -U 8300,auto")
    assert (status, err) == (0, "")
    host, namespace = json.loads(out)["tables"]
    assert (host["pif"], namespace["pif"]) == ("HOST", "SPLICE")
    added = host["rules"][-1]
    assert (added["protocol"], added["address"]) == ("tcp", "127.0.0.1")
    assert [added[name] for name in ("first", "last", "target_first")] == [8100, 8109, 8200]
    automatic = [(rule["protocol"], rule["first"]) for rule in namespace["rules"] if rule["auto"]]
    assert automatic[0] == ("udp", 8300)


def test_connections_survive_changes(controlled: Controlled) -> None:
    """All rules go: so do the ports, but no connection and no flow.  Then they come back."""
    ways = [controlled.way(name) for name in ("remote", "inbound", *paths.SPLICED)]
    pairs = [way.pair() for way in ways]
    flows = []
    for way in ways[2:]:
        server, client = way.udp_server(), way.udp_client()
        client.send(b"first")
        flows.append((client, server, server.recvfrom(10)[1]))
    before = controlled.shown()
    assert controlled.pesto("-C HOST -C SPLICE") == (0, "", "")
    wait_for(lambda: not controlled.listens(paths.PORT_IN), what="port closed")
    for way in ways[1:]:
        with pytest.raises(ConnectionRefusedError):
            way.connect()
    for client, server in pairs:
        exchange(client, server)
    for client, server, source in flows:
        server.sendto(b"late", source)
        assert client.recv(10) == b"late"
        client.send(b"second")
        assert server.recv(10) == b"second"
    words = f"-t {paths.PORT_IN} -u {paths.PORT_IN}"
    words += f" -T {paths.PORT_SPLICE_OUT} -U {paths.PORT_SPLICE_OUT}"
    assert controlled.pesto(words) == (0, "", "")
    assert sorted(controlled.shown().split("\n")) == sorted(before.split("\n"))
    for way, (client, server) in zip(ways, pairs, strict=True):
        exchange(client, server)
        exchange(*way.pair())


@pytest.mark.parametrize(
    "line",
    [
        f"-D -t {paths.PORT_IN} -A -t {OTHER} -t {OTHER}",
        f"-D -t {paths.PORT_IN} -A -T {OTHER} -T 1-70000",
        f"-C HOST -C SPLICE -A -t {OTHER} -D -t {paths.PORT_IN}",
        f"-t {OTHER} -T {OTHER},0",
    ],
)
def test_command_lists_are_atomic(controlled: Controlled, line: str) -> None:
    before = controlled.shown()
    status, out, err = controlled.pesto(line)
    assert (status, out) == (1, "")
    assert err
    assert controlled.shown() == before
    assert controlled.listens(paths.PORT_IN)
    assert not controlled.listens(OTHER)


def hostile() -> dict[str, bytes]:
    """Requests that cannot be granted, and things that are no requests."""
    good = Rule(IPPROTO_TCP, OTHER, OTHER, OTHER).pack()
    bad = Rule(IPPROTO_TCP, 5, 4, 5).pack()
    section = struct.Struct("!BI")
    generator = random.Random(5)
    return {
        "second rule bad": section.pack(HOST, 2) + good + bad + b"\0",
        "second table bad": section.pack(HOST, 1) + good + section.pack(SPLICE, 1) + bad + b"\0",
        "no such table": section.pack(HOST, 1) + good + section.pack(2, 1) + good + b"\0",
        "too many": section.pack(HOST, 0xFFFFFFFF) + good * 300,
        "interface name": section.pack(HOST, 1) + good[:32] + b"x" * 16 + good[48:] + b"\0",
        "cut": section.pack(HOST, 1) + good[:30],
        "one byte": b"\1",
        "no end": section.pack(HOST, 1) + good,
        "text": b"GET / HTTP/1.1\r\n\r\n" * 100,
        "noise": bytes((HOST,)) + generator.randbytes(1 << 16),
    }


def test_hostile_clients(controlled: Controlled) -> None:
    """Nothing changes; the next client, and traffic, are served."""
    before = controlled.shown()
    for name, data in hostile().items():
        for _ in range(10):
            with controlled.client() as client:
                try:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert controlled.shown() == before, name
        assert not controlled.listens(OTHER), name
        exchange(*controlled.way("splice-in").pair())


def test_stalled_client(ours_only: None, controlled: Controlled) -> None:
    """Traffic is not held up at all, others for as long as one client may take."""
    client, server = controlled.way("splice-in").pair()
    with controlled.client() as stalled:
        stalled.sendall(b"\1")
        started = time.monotonic()
        before = controlled.pasta.cpu_seconds()
        exchange(client, server)
        exchange(*controlled.way("inbound").pair())
        assert time.monotonic() - started < TIME_LIMIT / 2
        # Another one, meanwhile, is waiting for its turn.
        assert controlled.pesto(f"-A -t {OTHER}") == (0, "", "")
        assert time.monotonic() - started > TIME_LIMIT / 2
        assert controlled.pasta.cpu_seconds() - before < 0.5
    assert controlled.listens(OTHER)


def test_busy_port(ours_only: None, controlled: Controlled, topology: Topology) -> None:
    """It is named, the other ports of the rule open, and it follows when it is free."""
    with topology.host.listen("127.0.0.1", OTHER):
        line = f"-A -t {OTHER - 1}-{OTHER + 1}"
        message = f"Listen failed for HOST TCP port */{OTHER}: Address already in use\n"
        assert controlled.pesto(line) == (1, "", message)
        assert controlled.listens(OTHER + 1)
        assert message in controlled.pasta.messages()
    with controlled.pasta.ns.listen(net.HOST[4], OTHER) as listener:

        def served() -> bool:
            try:
                client = topology.host.connect("127.0.0.1", OTHER)
            except ConnectionRefusedError:
                return False
            exchange(client, listener.accept()[0])
            return True

        wait_for(served, what="the port that was busy")


def test_changes_are_logged_once(controlled: Controlled) -> None:
    assert controlled.pesto(f"-t {OTHER} -T {OTHER}:81") == (0, "", "")
    wait_for(lambda: controlled.listens(OTHER), what="port open")
    lines = [line.partition(" ")[2] for line in controlled.pasta.messages().split("\n")]
    new = lines[lines.index("New forwarding rules for HOST:") :]
    expected = [
        "New forwarding rules for HOST:",
        f"    TCP [*]:{OTHER}  =>  {OTHER} ",
        "New forwarding rules for SPLICE:",
        f"    TCP [*]%lo:{OTHER}  =>  81 ",
    ]
    assert [line for line in new if line.startswith(("New ", "    TCP"))] == expected
