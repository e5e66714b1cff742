"""Ranges of ports behind one socket (--accel=ebpf, as root): what it must have in common with a
socket for each port, and what it must leave to others."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from passt.kernel.ebpf.lookup import CONTROL_GROUPS
from passt.syscalls import bpf
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program, forwarding
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

FIRST, LAST = 20000, 20999
RANGE = f"{FIRST}-{LAST}"
#: The same, best effort.
EFFORT = f"~1-{FIRST - 1},~{LAST + 1}-65535"
THERE = "Large ranges of ports: sk_lookup, program as shipped"
REFUSED = "Large ranges of ports: a socket for each port, as sk_lookup is not available: "
PESTO = [sys.executable, "-m", "passt.userspace.cli.pesto"]

#: Shows one branch of the control groups only, as containers do.
BRANCH = """
root=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
mkdir -p $root/passt-test
mount -t tmpfs tmpfs /mnt
mkdir /mnt/branch
mount --bind $root/passt-test /mnt/branch
mount --move /mnt/branch /sys/fs/cgroup
"""

StartRoot = Callable[..., Pasta]


@pytest.fixture
def start_root(topology: Topology, program: Program) -> Iterator[StartRoot]:
    """A function that starts a pasta as root, which must have what it takes."""
    if program.upstream:
        pytest.skip("the upstream program has no --accel")
    instances: list[Pasta] = []

    def start(*options: str, host: Netns | None = None) -> Pasta:
        words = "--accel=ebpf", "--debug", *options
        instance = Pasta(program, host or topology.host, User("root"), *words)
        instances.append(instance)
        assert THERE in instance.messages()
        return instance

    yield start
    for instance in reversed(instances):
        if instance.alive():
            instance.close()


def listeners(ns: Netns) -> int:
    """How many TCP sockets listen, of either family."""
    return sum(row[3] == "0A" for name in ("tcp", "tcp6") for row in ns.table(name))


def outcome(ns: Netns, address: str, port: int) -> str:
    """What a connection gets: what the server says first, or the error."""
    try:
        with ns.connect(address, port) as client:
            return client.recv(100).decode() or "EOF"
    except OSError as error:
        return type(error).__name__


REFUSAL = "ConnectionRefusedError"


class Greeter:
    """Programs in ``ns`` that listen, and say one line to whoever connects."""

    def __init__(self, ns: Netns, name: str) -> None:
        self.ns = ns
        self.name = name
        self.sockets: list[socket.socket] = []
        self.servers: list[stream.Background[None]] = []

    def __enter__(self) -> Greeter:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()
        # Nobody waits in accept(), where the kernel would keep sockets open.
        for server in self.servers:
            server.result()

    def listen(self, address: str, port: int) -> Greeter:
        sock = self.ns.listen(address, port)
        self.sockets.append(sock)
        greeting = f"{self.name} {port}".encode()
        self.servers.append(stream.Background(lambda: self._serve(sock, greeting)))
        return self

    @staticmethod
    def _serve(sock: socket.socket, greeting: bytes) -> None:
        sock.settimeout(0.2)
        while sock.fileno() >= 0:
            try:
                connection, _ = sock.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with connection:
                connection.sendall(greeting)


def test_a_range(start_root: StartRoot, topology: Topology, version: int) -> None:
    """First, middle and last port, from loopback and from another machine; none beside them."""
    host, remote = topology.host, topology.remote
    before = listeners(host)
    pasta = start_root("-t", "20000-23999,~22000-22009,24000-24999:34000-34999")
    assert listeners(host) == before + 1
    wildcard = {4: "0.0.0.0", 6: "::"}[version]
    with Greeter(pasta.ns, "guest") as guest:
        for port in (20000, 21999, 22000, 22010, 23999, 34500):
            guest.listen(wildcard, port)
        for ns, address in ((host, net.LOOPBACK[version]), (remote, net.HOST[version])):
            for port in (20000, 21999, 22010, 23999):
                assert outcome(ns, address, port) == f"guest {port}"
            assert outcome(ns, address, 24500) == "guest 34500"
            for port in (19999, 22000, 22009, 25000, 34500, 80):
                assert outcome(ns, address, port) == REFUSAL
        # The socket's own port is none of a rule.
        tables = [row for name in ("tcp", "tcp6") for row in host.table(name) if row[3] == "0A"]
        for row in tables:
            assert (
                outcome(host, net.LOOPBACK[version], int(row[1].rpartition(":")[2], 16)) == REFUSAL
            )


def test_all_ports(start_root: StartRoot, topology: Topology) -> None:
    """`-t all`: low ones and the last, not those of outgoing connections; few descriptors."""
    host, remote = topology.host, topology.remote
    host.sysctl("net/ipv4/ip_local_port_range", "32768 60999")
    pasta = start_root("-t", "all")
    assert listeners(host) == 1
    assert pasta.descriptors() < 200
    with Greeter(pasta.ns, "guest") as guest:
        for port in (1, 80, 32767, 40000, 61000, 65535):
            guest.listen("0.0.0.0", port)
        for port in (1, 80, 32767, 61000, 65535):
            assert outcome(remote, net.HOST[4], port) == f"guest {port}"
        for port in (443, 65534):
            assert outcome(remote, net.HOST[4], port) in (REFUSAL, "ConnectionResetError")
        assert outcome(remote, net.HOST[4], 40000) == REFUSAL


def test_data_of_many_connections(start_root: StartRoot, topology: Topology) -> None:
    """They wait to be accepted all at once; all data arrive."""
    pasta = start_root("-t", RANGE)
    server = pasta.ns.listen("0.0.0.0", 20007)
    clients = [topology.host.connect(net.LOOPBACK[4], 20007) for _ in range(50)]
    for number, client in enumerate(clients):
        client.sendall(bytes([number]) * 1000)
        client.shutdown(socket.SHUT_WR)
    seen = set()
    for _ in clients:
        connection, _ = server.accept()
        data = stream.read_exactly(connection, 1000)
        seen.add(data[0])
        assert data == data[:1] * 1000
        connection.close()
    assert seen == set(range(50))


def test_interface_and_address(start_root: StartRoot, topology: Topology) -> None:
    host, remote = topology.host, topology.remote
    pasta = start_root("-t", "%lo/20000-20999", "-t", f"{net.HOST[4]}/21000-21999")
    with Greeter(pasta.ns, "guest") as guest:
        for port in (20000, 21000):
            guest.listen("0.0.0.0", port).listen("::", port)
        for version in (4, 6):
            assert outcome(host, net.LOOPBACK[version], 20000) == "guest 20000"
            assert outcome(remote, net.HOST[version], 20000) == REFUSAL
        assert outcome(remote, net.HOST[4], 21000) == "guest 21000"
        assert outcome(remote, net.HOST[6], 21000) == REFUSAL
        assert outcome(host, net.LOOPBACK[4], 21000) == REFUSAL


# -- local programs come first -------------------------------------------------------------------


def test_program_that_was_there(start_root: StartRoot, topology: Topology) -> None:
    """It keeps its port, which is ours once it has gone."""
    host = topology.host
    with Greeter(host, "local") as local:
        local.listen("127.0.0.1", FIRST)
        pasta = start_root("-t", EFFORT)
        with Greeter(pasta.ns, "guest") as guest:
            for port in (FIRST, LAST):
                guest.listen("0.0.0.0", port)
            assert outcome(host, "127.0.0.1", FIRST) == f"local {FIRST}"
            assert outcome(host, "127.0.0.1", LAST) == f"guest {LAST}"
            local.sockets[0].close()
            wait_for(
                lambda: outcome(host, "127.0.0.1", FIRST) == f"guest {FIRST}",
                what="the port given up",
                interval=0.1,
            )


@pytest.mark.parametrize("listening", [True, False], ids=["listens", "bound"])
def test_program_that_was_there_is_an_error_for_a_fixed_rule(
    program: Program, topology: Topology, listening: bool, start_root: StartRoot
) -> None:
    with topology.host.new_socket(socket.AF_INET, socket.SOCK_STREAM) as sock:

        def bound() -> bool:
            try:
                sock.bind(("127.0.0.1", 20500))
            except OSError:
                # What an earlier test had there may be on its way out.
                return False
            return True

        wait_for(bound, 30, "port 20500")
        if listening:
            sock.listen()
        words = [*program.argv, "--accel=ebpf", *forwarding(["-t", RANGE]), "--", "true"]
        done = topology.host.run(words, check=False)
        assert done.returncode == 1
        assert "Listen failed for HOST TCP port */20500: Address already in use\n" in done.stderr


@pytest.mark.parametrize(
    ("address", "client"),
    [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::", "::1"), ("::1", "::1")],
)
def test_program_that_comes_later(
    start_root: StartRoot, topology: Topology, address: str, client: str
) -> None:
    """It has the port from the moment it listens, and we have it again once it has gone."""
    host = topology.host
    pasta = start_root("-t", RANGE)
    with Greeter(pasta.ns, "guest") as guest, Greeter(host, "local") as local:
        guest.listen("::" if ":" in client else "0.0.0.0", FIRST)
        assert outcome(host, client, FIRST) == f"guest {FIRST}"
        local.listen(address, FIRST)
        for _ in range(5):
            assert outcome(host, client, FIRST) == f"local {FIRST}"
            time.sleep(0.05)
        local.sockets.pop().close()
        wait_for(
            lambda: outcome(host, client, FIRST) == f"guest {FIRST}",
            what="the port given up",
            interval=0.1,
        )
    failure = f"Listen failed for HOST TCP port */{FIRST}: Address already in use"
    assert failure in pasta.messages()


def test_program_that_comes_later_by_mptcp(start_root: StartRoot, topology: Topology) -> None:
    """As those written in Go do, unless told otherwise."""
    host = topology.host
    start_root("-t", RANGE)
    try:
        sock = host.new_socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as error:
        pytest.skip(f"no MPTCP: {error.strerror}")
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", FIRST))
        sock.listen()
        with host.connect("127.0.0.1", FIRST) as client:
            connection, _ = sock.accept()
            with connection:
                connection.sendall(b"local")
                assert client.recv(100) == b"local"


def test_program_elsewhere_is_no_obstacle(start_root: StartRoot, topology: Topology) -> None:
    """Another address, and another network namespace."""
    host, remote = topology.host, topology.remote
    pasta = start_root("-t", f"{net.HOST[4]}/{RANGE}")
    with Greeter(pasta.ns, "guest") as guest, Greeter(host, "local") as local:
        guest.listen("0.0.0.0", FIRST)
        local.listen("127.0.0.1", FIRST)
        with Greeter(remote, "remote").listen("0.0.0.0", FIRST):
            for _ in range(20):
                assert outcome(remote, net.HOST[4], FIRST) == f"guest {FIRST}"
        assert outcome(host, "127.0.0.1", FIRST) == f"local {FIRST}"
    assert "Listen failed" not in pasta.messages()


def test_two_instances(start_root: StartRoot, program: Program, topology: Topology) -> None:
    """Whoever comes first has the port; other ports are no matter."""
    host = topology.host
    first = start_root("-t", RANGE)
    words = [*program.argv, "--accel=ebpf", *forwarding(["-t", "20999-22000"]), "--", "true"]
    done = host.run(words, check=False)
    assert done.returncode == 1
    assert "Listen failed for HOST TCP port */20999: Address already in use\n" in done.stderr
    second = start_root("-t", "21000-22000")
    with Greeter(first.ns, "first") as one, Greeter(second.ns, "second") as two:
        one.listen("0.0.0.0", LAST)
        two.listen("0.0.0.0", 21000)
        assert outcome(host, "127.0.0.1", LAST) == f"first {LAST}"
        assert outcome(host, "127.0.0.1", 21000) == "second 21000"
        first.close()
        assert outcome(host, "127.0.0.1", LAST) == REFUSAL
        assert outcome(host, "127.0.0.1", 21000) == "second 21000"


# -- while it runs -------------------------------------------------------------------------------


def test_rules_change(start_root: StartRoot, topology: Topology, sockets: str) -> None:
    host = topology.host
    path = f"{sockets}/control"
    pasta = start_root("-c", path, "-t", RANGE)

    def pesto(line: str) -> None:
        assert host.run([*PESTO, *line.split(), path]).stderr == ""

    def served(*ports: int) -> None:
        for port in (FIRST, 21000, 40000):
            expected = f"guest {port}" if port in ports else REFUSAL
            wait_for(
                lambda port=port, expected=expected: outcome(host, "127.0.0.1", port) == expected,
                what=f"port {port}: {expected}",
                interval=0.1,
            )

    with Greeter(pasta.ns, "guest") as guest:
        for port in (FIRST, 21000, 40000):
            guest.listen("0.0.0.0", port)
        served(FIRST)
        pesto("-A -t 21000-21999")
        served(FIRST, 21000)
        with host.connect("127.0.0.1", 21000) as client:
            assert client.recv(100) == b"guest 21000"
            pesto("-D -t 21000-21999 -A -t 0.0.0.0/40000-41000")
            served(FIRST, 40000)
        pesto(f"-D -t {RANGE}")
        served(40000)
        pesto("-t none")
        served()
        pesto(f"-t {RANGE}")
        served(FIRST)
    assert listeners(host) == 1


def test_nothing_is_left_after_sigkill(start_root: StartRoot, topology: Topology) -> None:
    host = topology.host
    pasta = start_root("-t", RANGE)

    def attached() -> list[int]:
        fd = os.open(host.path, os.O_RDONLY)
        try:
            return bpf.prog_query(fd, bpf.SK_LOOKUP)
        finally:
            os.close(fd)

    programs = attached()
    assert len(programs) == 1
    os.kill(pasta.process.pid, signal.SIGKILL)
    pasta.process.wait(10)
    wait_for(lambda: not attached(), what="the program to be detached")
    assert outcome(host, "127.0.0.1", FIRST) == REFUSAL
    with pytest.raises(OSError, match="PROG_GET_FD_BY_ID"):
        wait_for(lambda: os.close(bpf.prog_by_id(programs[0])), what="the program to go")


def test_from_the_namespace(start_root: StartRoot, topology: Topology) -> None:
    """-T: the namespace's programs come first there."""
    pasta = start_root("-T", RANGE)
    assert listeners(topology.host) == 0
    assert listeners(pasta.ns) == 1
    with Greeter(topology.host, "host") as host, Greeter(pasta.ns, "inner") as inner:
        host.listen("127.0.0.1", FIRST)
        assert outcome(pasta.ns, "127.0.0.1", FIRST) == f"host {FIRST}"
        inner.listen("127.0.0.1", FIRST)
        assert outcome(pasta.ns, "127.0.0.1", FIRST) == f"inner {FIRST}"
        inner.sockets[0].close()
        wait_for(
            lambda: outcome(pasta.ns, "127.0.0.1", FIRST) == f"host {FIRST}",
            what="the port given up",
            interval=0.1,
        )


# -- where it cannot be had ----------------------------------------------------------------------


def test_without_privilege(program: Program, topology: Topology, user: User) -> None:
    pasta = Pasta(program, topology.host, user, "--debug", "--accel=ebpf", "-t", "20000-20999")
    assert f"{REFUSED}no privilege to load a program\n" in pasta.messages()
    assert listeners(topology.host) == 1000
    with Greeter(pasta.ns, "guest") as guest:
        guest.listen("0.0.0.0", 20999)
        assert outcome(topology.host, "127.0.0.1", 20999) == "guest 20999"
    pasta.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("mount -t tmpfs tmpfs /sys/fs/cgroup", "no control groups of version 2"),
        (BRANCH, "the root of control groups is out of reach"),
    ],
    ids=["none", "branch"],
)
def test_without_control_groups(
    program: Program, host: Netns, script: str, reason: str, start_root: StartRoot
) -> None:
    """As in a container, others of the same network namespace would not be seen."""
    words = [*program.argv, "--debug", "--accel=ebpf", *forwarding(["-t", "20000-20999"])]
    prefix = ["unshare", "--mount", "sh", "-ec", f'{script}\nexec "$0" "$@"']
    try:
        done = host.run([*words, "--", "true"], prefix=prefix)
    finally:
        for path in CONTROL_GROUPS:
            if os.path.isdir(f"{path}/passt-test"):
                os.rmdir(f"{path}/passt-test")
    assert f"{REFUSED}{reason}\n" in done.stderr
