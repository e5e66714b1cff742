"""pesto and the control socket, ours and upstream's, in all four combinations.

Upstream's programs are those of the Debian tree named by ``PASST_PEERS``, or installed ones; the
tests that need them are skipped if there are none.

The same changes are made by both clients to both servers: all must print the same, end with the
same status, and leave tables that are the same to the byte.  Our server runs in the test process
and opens no ports.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from passt.userspace.control import server as server_module
from passt.userspace.control.client import Connection
from passt.userspace.control.protocol import REFUSED, ReceivedTable, pack_state
from tests.system.conftest import StartPasta
from tests.system.kit.netns import wait_for
from tests.system.kit.pasta import Pasta, Program, peer_command
from tests.system.kit.topology import Topology
from tests.system.kit.users import User
from tests.unit.control_rig import Journal, Service, tcp

pytestmark = pytest.mark.system

VARIABLE = "PASST_PEERS"
OURS = [sys.executable, "-m", "passt.userspace.cli.pesto"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def upstream(name: str) -> list[str]:
    """The words that start upstream's *name*; skips the test if there is no such program."""
    root = os.environ.get(VARIABLE)
    if root:
        return peer_command(root, name)
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True)
        if "Red Hat" in version.stdout:
            return [found]
    pytest.skip(f"no upstream {name}: set {VARIABLE}")


class Server:
    """A server at *path*, and both clients for it, run where its ports are."""

    def __init__(self, topology: Topology, path: str) -> None:
        self.topology = topology
        self.path = path

    def pesto(self, program: list[str], line: str) -> Outcome:
        """Run a client; the path, which differs between servers, reads PATH in what it prints."""
        done = self.topology.host.run([*program, *line.split(), self.path], check=False)
        out, err = (text.replace(self.path, "PATH") for text in (done.stdout, done.stderr))
        return Outcome(done.returncode, out, err)

    def tables(self) -> list[ReceivedTable]:
        """The tables of the server."""
        connection = Connection(self.path)
        try:
            return connection.state()
        finally:
            connection.close()

    def restore(self, tables: list[ReceivedTable]) -> None:
        """Have the server go back to *tables*."""
        connection = Connection(self.path)
        connection.state()
        assert connection.replace(tables) == (0, [])
        connection.close()


@pytest.fixture
def service(sockets: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """What our server is made of."""
    monkeypatch.setattr(server_module, "log", Journal())
    service = Service(f"{sockets}/ours")
    yield service
    service.close()


@pytest.fixture
def ours(topology: Topology, service: Service) -> Server:
    """Our server."""
    return Server(topology, service.path)


@pytest.fixture
def theirs(topology: Topology, sockets: str, user: User) -> Iterator[Server]:
    """Upstream's pasta."""
    path = f"{sockets}/theirs"
    pasta = Pasta(Program(upstream("pasta")), topology.host, user, "-c", path)
    yield Server(topology, path)
    pasta.close()


#: Command lines, each for the tables that those before left.
LINES = [
    "",
    "-s -t 8080:80 -u 5000",
    "-A -t 9000-9010 -T 7000",
    "-D -t 9000",
    "-A -t 8080:80",
    "-A -t 8001 -t 8080",
    "-s -D -t 9000-9010",
    "-C FOO",
    "-C TAP",
    "-C HOST -C foo",
    "-s -C SPLICE",
    "-s -t 127.0.0.1/8100,8101:8181 -u [::1]/8100 -U 8200-8210,~8205",
    "-A -t 8101",
    "-A -t none",
    "-D -t none",
    "-A -T none",
    "-s -D -U 8200-8210,~8205",
    "-A -t 0.0.0.0/8300:192.0.2.9/83 -u ::/8300-8309:[2001:db8::9]/8400-8409",
    "",
    "-A -t 8500:192.0.2.9/85",
    "-A -t 127.0.0.9/8500:224.0.0.1/85",
    "-A -t 127.0.0.9/8500:2001:db8::9/85",
    "-A -u 127.0.0.9%lo/8500",
    "-D -u 127.0.0.9/8500",
    "-s -D -u 127.0.0.9%lo/8500",
    "-s -t none",
    "-s -t auto",
    "-A -t 80",
    "-s -D -t auto",
    "-s -t 8000-8010,auto",
    "-s -t 9000-9001 -C HOST -t 9002 -C HOST -t 9003",
    "-C HOST -D -t 9003",
    "-s -D -C HOST -A -t 9004",
    "-s -t 9005 -A -t 9006 -T 9007",
    "-A -t 1-70000",
    "-A -t 0",
    "-A -t 9100:0",
    "-A -t 9100-9101:65535-65536",
    "-A -t foo/22",
    "-A -t 127.0.0.1/foo",
    "-T 127.0.0.1/80",
    "-A -t %lo/9200 -s",
    "-A -t %eth0/9200",
    "--show --clear HOST --add --tcp-ports 9300 --udp-ports 9300 --delete --tcp-ports=9300",
    "-d -C HOST -C SPLICE",
]


def test_all_combinations_agree(ours: Server, theirs: Server) -> None:
    original = upstream("pesto")
    servers = (ours, theirs)
    for line in LINES:
        before = [server.tables() for server in servers]
        outcomes = [server.pesto(OURS, line) for server in servers]
        after = [pack_state(server.tables()) for server in servers]
        assert outcomes[0] == outcomes[1], line
        assert after[0] == after[1], line

        for server, tables in zip(servers, before, strict=True):
            server.restore(tables)
        reference = [server.pesto(original, line) for server in servers]
        if "-d" in line.split():  # of which it has more to say
            reference = [outcome._replace(err=outcomes[0].err) for outcome in reference]
        assert reference == outcomes, line
        assert [pack_state(server.tables()) for server in servers] == after, line


def test_deleting_then_adding(ours: Server, theirs: Server) -> None:
    """Upstream's client cannot; ours can, also with upstream's server."""
    for server in (ours, theirs):
        assert server.pesto(OURS, "-t 8001 -t 8002") == (0, "", "")
        assert server.pesto(OURS, "-D -t 8001 -A -t 8001:81 -D -t 8002 -A -t 8002:82") == (
            0,
            "",
            "",
        )
        assert [str(rule) for rule in server.tables()[0]] == [
            "TCP [*]:8001  =>  81 ",
            "TCP [*]:8002  =>  82 ",
        ]


def test_original_client_and_ports_not_opened(ours: Server, service: Service) -> None:
    """Our server's reply is nothing to upstream's client; ours prints it and fails."""
    original = upstream("pesto")
    service.problems = ["Listen failed for HOST TCP port */8001: Address already in use"]
    assert ours.pesto(OURS, "-t 8001") == (1, "", service.problems[0] + "\n")
    for _ in range(5):
        assert ours.pesto(original, "-t 8001") == (0, "", "")
    assert service.shown() == [["TCP [*]:8001  =>  8001 "], []]


def test_original_server_refuses(theirs: Server) -> None:
    theirs.pesto(OURS, "-t 8001")
    for size in (1, 200):
        connection = Connection(theirs.path)
        tables = connection.state()
        for table in tables:
            for _ in range(size):
                table.receive(tcp(5, 4))
        assert connection.replace(tables)[0] == REFUSED
        connection.close()
    assert [str(rule) for rule in theirs.tables()[0]] == ["TCP [*]:8001  =>  8001 "]


def test_ports_of_the_original_open_and_close(topology: Topology, theirs: Server) -> None:
    host = topology.host
    assert theirs.pesto(OURS, "-t 8001 -u 8001").status == 0
    host.wait_listening(8001)
    host.wait_listening(8001, "udp")
    assert theirs.pesto(OURS, "-D -t 8001 -A -t 8002").status == 0
    wait_for(lambda: not host.listens(8001) and host.listens(8002), what="other port")
    assert host.listens(8001, "udp")


def test_original_client_and_a_running_pasta(
    topology: Topology, start_pasta: StartPasta, sockets: str
) -> None:
    """Both clients see the same before and after; ports open, and close, as the original says."""
    original, host = upstream("pesto"), topology.host
    pasta = start_pasta("-c", f"{sockets}/program", "-t", "8001-8010:9001-9010", "-U", "auto")
    server = Server(topology, f"{sockets}/program")
    assert server.pesto(original, "") == server.pesto(OURS, "")
    assert server.pesto(original, "-A -t 8020:80 -u [::1]/8021 -T 8022").status == 0
    assert server.pesto(original, "-D -t 8001-8010:9001-9010").status == 0
    wait_for(lambda: host.listens(8020) and host.listens(8021, "udp"), what="ports open")
    wait_for(lambda: pasta.ns.listens(8022), what="port open in the namespace")
    wait_for(lambda: not host.listens(8001), what="ports closed")
    shown = server.pesto(OURS, "")
    assert server.pesto(original, "") == shown
    assert "TCP [*]:8020  =>  80 \n" in shown.out


def test_clients_take_turns(topology: Topology, ours: Server, service: Service) -> None:
    """Each of several clients at once adds a port; none undoes what another did."""
    clients = [
        topology.host.popen([*OURS, "-A", "-t", str(port), ours.path]) for port in range(8001, 8009)
    ]
    assert [client.wait(30) for client in clients] == [0] * 8
    assert sorted(rule.first for rule in service.tables[0]) == list(range(8001, 8009))


def test_others_may_not_connect(ours: Server, topology: Topology, user: User) -> None:
    """Our socket was made by root here, so nobody else gets through."""
    assert stat.S_IMODE(os.stat(ours.path).st_mode) == 0o600
    done = topology.host.run(
        ["socat", "-u", f"UNIX-CONNECT:{ours.path}", "-"], prefix=user.prefix, check=False
    )
    assert "Permission denied" in done.stderr
    assert done.stdout == ""
