"""Traffic in every way pasta can be started, for an ordinary user and for root, and on poor hosts.

How starting and ending works in detail is tested elsewhere; here, that packets flow at the moment
the program says it is ready.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program, forwarding, run
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PORT = 7002
SERVICE_WORD = "the service answers"


@pytest.fixture
def root() -> User:
    """The system's administrator."""
    return User("root")


@pytest.fixture
def service(remote: Netns) -> None:
    """A TCP service at REMOTE, both versions, that says one line."""
    for version in (4, 6):
        bracketed = f"[{net.REMOTE[6]}]" if version == 6 else net.REMOTE[4]
        address = f"TCP{version}-LISTEN:{PORT},bind={bracketed},reuseaddr,fork"
        remote.popen(["socat", address, f"SYSTEM:echo {SERVICE_WORD}"])
    wait_for(lambda: len(remote.run(["ss", "-Hltn"]).stdout.splitlines()) == 2)


def ask() -> list[str]:
    """Return a command that asks the service by both versions."""
    addresses = (net.REMOTE[4], f"[{net.REMOTE[6]}]")
    lines = [f"socat -t3 -u TCP:{address}:{PORT},connect-timeout=3 -" for address in addresses]
    return ["sh", "-c", " && ".join(lines)]


ANSWER = f"{SERVICE_WORD}\n" * 2


# -- a command -----------------------------------------------------------------------------------


def test_spawn_as_user(program: Program, host: Netns, user: User, service: None) -> None:
    assert run(program, host, user, [], ask()).stdout == ANSWER


def test_spawn_as_root(
    ours_only: None, program: Program, host: Netns, root: User, service: None
) -> None:
    assert run(program, host, root, [], ask()).stdout == ANSWER


def test_netns_only_as_user(program: Program, host: Netns, user: User, service: None) -> None:
    """In a user namespace that somebody else made."""
    words = [*program.argv, "-q", *forwarding(()), "--config-net", "--netns-only", "--", *ask()]
    done = host.run(["unshare", "--user", "--map-root-user", *words], prefix=user.prefix)
    assert done.stdout == ANSWER


def test_netns_only_as_root(program: Program, host: Netns, root: User, service: None) -> None:
    options = ["--netns-only", "--runas", "0"]
    assert run(program, host, root, options, ask()).stdout == ANSWER


# -- an existing namespace -----------------------------------------------------------------------


class Target:
    """A namespace to join: a process that sleeps in it, started by *user*."""

    def __init__(self, host: Netns, user: User) -> None:
        own = ["--user", "--map-root-user"] if user.uid else []
        self.process = host.popen(
            ["unshare", *own, "--net", "sh", "-c", "echo ready; exec sleep 1000"],
            prefix=user.prefix,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"
        self.pid = self.process.pid
        self.ns = Netns("target", f"/proc/{self.pid}/ns/net", host.processes)


def attach(
    program: Program, host: Netns, user: User, folder: str, where: list[str]
) -> Iterator[int]:
    """Start pasta in the background; yield its process id; it must be there, and end on TERM."""
    path = os.path.join(folder, "pid")
    with open(path, "w"):
        os.chown(path, user.uid, user.gid)
    runas = [] if user.uid else ["--runas", "0"]
    options = [*forwarding(()), "--config-net", "--quiet", "--pid", path, *runas]
    host.run([*program.argv, *options, *where], prefix=user.prefix, timeout=15)
    with open(path) as file:
        pid = int(file.read())
    yield pid
    os.kill(pid, 15)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 3.0, "end of pasta")


@pytest.mark.parametrize("kind", ["pid", "path"])
@pytest.mark.parametrize("who", ["user", "root"])
def test_attach(
    request: pytest.FixtureRequest,
    program: Program,
    host: Netns,
    service: None,
    folder: str,
    user: User,
    root: User,
    kind: str,
    who: str,
) -> None:
    """The parent has returned: the network works without any further waiting."""
    if (who, kind) == ("root", "pid"):
        request.getfixturevalue("ours_only")
    account = {"user": user, "root": root}[who]
    target = Target(host, account)
    named = ""
    if kind == "pid":
        where = [str(target.pid)]
    elif who == "user":
        where = ["--netns", target.ns.path, "--userns", f"/proc/{target.pid}/ns/user"]
    else:
        named = f"{os.path.basename(host.path)}-target"
        subprocess.run(["ip", "netns", "attach", named, str(target.pid)], check=True)
        where = ["--netns", named]
    try:
        for _ in attach(program, host, account, folder, where):
            assert target.ns.run(ask()).stdout == ANSWER
    finally:
        if named:
            subprocess.run(["ip", "netns", "del", named], check=True)


def test_ends_with_the_process(
    program: Program, host: Netns, folder: str, user: User, service: None
) -> None:
    """A pasta attached to a process goes away when the process does."""
    target = Target(host, user)
    path = os.path.join(folder, "pid2")
    with open(path, "w"):
        os.chown(path, user.uid, user.gid)
    words = [*program.argv, *forwarding(()), "--config-net", "--pid", path, str(target.pid)]
    host.run(words, prefix=user.prefix)
    with open(path) as file:
        pid = int(file.read())
    assert os.path.exists(f"/proc/{pid}")
    host.processes.stop(target.process)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 4.0, "end of pasta")


# -- poor hosts ----------------------------------------------------------------------------------


def exchange(client_ns: Netns, target: str, server_ns: Netns, address: str) -> None:
    """A TCP and a UDP exchange."""
    with (
        server_ns.listen(address, PORT) as listener,
        client_ns.connect(target, PORT) as client,
    ):
        server, _ = listener.accept()
        with server:
            client.sendall(b"hello")
            assert stream.read_exactly(server, 5) == b"hello"
    with server_ns.udp(address, PORT) as sock, client_ns.udp(family=sock.family) as client:
        client.connect((target, PORT))
        client.send(b"hello")
        data, source = sock.recvfrom(10)
        sock.sendto(data, source)
        assert client.recv(10) == b"hello"


@pytest.mark.parametrize("version", [4, 6])
def test_host_with_one_version(program: Program, user: User, version: int) -> None:
    with Topology(ipv4=version == 4, ipv6=version == 6) as topology:
        pasta = Pasta(program, topology.host, user, "-t", "7001")
        exchange(pasta.ns, net.REMOTE[version], topology.remote, net.REMOTE[version])
        exchange(pasta.ns, net.GATEWAY[version], topology.host, net.LOOPBACK[version])
        pasta.ns.run(["ping", f"-{version}", "-c1", "-W2", net.FAR[version]])
        with (
            pasta.ns.listen(net.HOST[version], 7001) as listener,
            topology.remote.connect(net.HOST[version], 7001),
        ):
            listener.accept()[0].close()
        pasta.close()


def test_host_with_nothing(program: Program, user: User) -> None:
    """Local mode: link-local addresses, the gateway is the host's loopback."""
    with Topology(bare=True) as topology:
        pasta = Pasta(program, topology.host, user, "-t", "7001")
        exchange(pasta.ns, "169.254.2.2", topology.host, "127.0.0.1")
        pasta.ns.run(["ping", "-c1", "-W2", "169.254.2.2"])
        with (
            pasta.ns.listen("169.254.2.1", 7001) as listener,
            topology.host.connect("127.0.0.1", 7001),
        ):
            listener.accept()[0].close()
        # There is no other address than the link-local one, which needs a scope.
        with (
            pasta.ns.listen("::", 7001) as listener,
            topology.host.connect("::1", 7001),
        ):
            listener.accept()[0].close()
        with pytest.raises(OSError):
            pasta.ns.connect(net.REMOTE[4], PORT, timeout=2)
        pasta.close()


def test_host_with_nothing_by_ipv6(ours_only: None, program: Program, user: User) -> None:
    """The gateway of local mode is fe80::1, and stands for the host's loopback as well."""
    with Topology(bare=True) as topology:
        pasta = Pasta(program, topology.host, user)
        pasta.ns.run(["ping", "-6", "-c1", "-W2", f"fe80::1%{pasta.interface()}"])
        pasta.close()


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_host_link_mtu(program: Program, user: User, version: int, mtu: int) -> None:
    """The host's link is narrower or wider than the guest's."""
    with Topology(mtu=mtu) as topology:
        pasta = Pasta(program, topology.host, user)
        size = 4 << 20
        with (
            topology.remote.listen(net.REMOTE[version], PORT) as listener,
            pasta.ns.connect(net.REMOTE[version], PORT) as client,
        ):
            server, _ = listener.accept()
            server.settimeout(30)
            with server:
                writer = stream.Background(lambda: stream.send(server, size))
                assert stream.receive(client) == (size, writer.result())
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with (
            topology.remote.udp(net.REMOTE[version], PORT) as sink,
            pasta.ns.udp(family=family) as source,
        ):
            source.sendto(bytes(5000), (net.REMOTE[version], PORT))
            assert len(sink.recv(65535)) == 5000
        pasta.close()
