"""Local datagrams that bypass the link: who sees which address, and who is refused."""

from __future__ import annotations

import copy
import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import paths
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.paths import Path
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PORT = 7001
OUT = 7003
#: NTP clients use the port of the servers.
NTP = 123


def silent(*socks: socket.socket, seconds: float = 0.3) -> None:
    """AssertionError if anything arrives."""
    time.sleep(seconds)
    for sock in socks:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            raise AssertionError(sock.recvfrom(100))


def test_inbound_addresses(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """The namespace sees its own address and the client's port, the client whom it asked."""
    pasta = start_pasta("-u", str(PORT))
    loopback, own = net.LOOPBACK[version], net.HOST[version]
    with pasta.ns.udp(own, PORT) as server, host.udp(loopback) as client:
        client.sendto(b"query", (loopback, PORT))
        data, source = server.recvfrom(100)
        assert (data, source[:2]) == (b"query", (own, client.getsockname()[1]))
        server.sendto(b"answer", source)
        data, source = client.recvfrom(100)
        assert (data, source[:2]) == (b"answer", (loopback, PORT))


def test_services_on_loopback_are_private(start_pasta: StartPasta, host: Netns) -> None:
    pasta = start_pasta("-u", str(PORT))
    with pasta.ns.udp("127.0.0.1", PORT) as server, host.udp("127.0.0.1") as client:
        client.sendto(b"query", ("127.0.0.1", PORT))
        silent(server, client)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1"])
def test_services_on_loopback_for_loopback(
    start_pasta: StartPasta, host: Netns, address: str
) -> None:
    pasta = start_pasta("-u", str(PORT), "--host-lo-to-ns-lo")
    with pasta.ns.udp(address, PORT) as server, host.udp(address) as client:
        client.sendto(b"query", (address, PORT))
        data, source = server.recvfrom(100)
        assert data == b"query"
        assert source[1] == client.getsockname()[1]
        server.sendto(b"answer", source)
        data, source = client.recvfrom(100)
        assert (data, source[:2]) == (b"answer", (address, PORT))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53", "::1"])
def test_outbound_addresses(start_pasta: StartPasta, host: Netns, address: str) -> None:
    """Any loopback address, on which the host sees the client's own address and port."""
    pasta = start_pasta("-U", str(OUT))
    mine = "127.0.0.77" if "." in address else "::1"
    with host.udp(address, OUT) as server, pasta.ns.udp(mine) as client:
        client.sendto(b"query", (address, OUT))
        data, source = server.recvfrom(100)
        assert (data, source[:2]) == (b"query", client.getsockname()[:2])
        server.sendto(b"answer", source)
        data, source = client.recvfrom(100)
        assert (data, source[:2]) == (b"answer", (address, OUT))


def test_only_loopback_is_outbound(start_pasta: StartPasta, host: Netns) -> None:
    """What the namespace sends to its own address is its own affair."""
    pasta = start_pasta("-U", str(OUT))
    own = net.HOST[4]
    with host.udp("0.0.0.0", OUT) as server, pasta.ns.udp(own) as client:
        client.sendto(b"query", (own, OUT))
        silent(server, client)


def test_clients_that_look_alike(ours_only: None, start_pasta: StartPasta, host: Netns) -> None:
    """Two host addresses, one port: each client gets its own answers."""
    pasta = start_pasta("-u", str(PORT))
    with (
        pasta.ns.udp(net.HOST[4], PORT) as server,
        host.udp("127.0.0.7", 9003) as first,
        host.udp("127.0.0.8", 9003) as second,
    ):
        clients = {b"first": first, b"second": second}
        for data, client in clients.items():
            client.sendto(data, ("127.0.0.1", PORT))
        sources = dict(server.recvfrom(100) for _ in clients)
        assert sources[b"first"] == (net.HOST[4], 9003)
        for data, source in sources.items():
            server.sendto(data, source)
        for data, client in clients.items():
            assert client.recv(100) == data


def test_low_ports_inbound(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """A client on a privileged port keeps it in the namespace."""
    pasta = start_pasta("-u", str(PORT))
    loopback, own = net.LOOPBACK[version], net.HOST[version]
    with pasta.ns.udp(own, PORT) as server, host.udp(loopback, NTP) as client:
        client.sendto(b"query", (loopback, PORT))
        data, source = server.recvfrom(100)
        assert (data, source[:2]) == (b"query", (own, NTP))
        server.sendto(b"answer", source)
        assert client.recvfrom(100)[0] == b"answer"


def test_low_ports_outbound(
    ours_only: None, start_pasta: StartPasta, host: Netns, version: int
) -> None:
    """A privileged port in the namespace; on the host the client has to do with another one."""
    pasta = start_pasta("-U", f"{NTP}:{OUT}")
    loopback = net.LOOPBACK[version]
    with host.udp(loopback, OUT) as server, pasta.ns.udp(loopback, 124) as client:
        for _ in range(2):
            client.sendto(b"query", (loopback, NTP))
            data, source = server.recvfrom(100)
            assert (data, source[0]) == (b"query", loopback)
            server.sendto(b"answer", source)
            data, source = client.recvfrom(100)
            assert (data, source[:2]) == (b"answer", (loopback, NTP))


def test_splice_only(start_pasta: StartPasta, topology: Topology) -> None:
    """There is no link: strangers are not served, loopback is."""
    pasta = start_pasta("--splice-only", "--host-lo-to-ns-lo", "-u", str(PORT), config_net=False)
    with (
        pasta.ns.udp("127.0.0.1", PORT) as server,
        topology.host.udp("127.0.0.1") as client,
        topology.remote.udp(net.REMOTE[4]) as stranger,
    ):
        stranger.sendto(b"stranger", (net.HOST[4], PORT))
        client.sendto(b"query", ("127.0.0.1", PORT))
        data, source = server.recvfrom(100)
        assert data == b"query"
        server.sendto(b"answer", source)
        assert client.recvfrom(100)[0] == b"answer"
        silent(server, stranger)


def test_refused_datagrams_cost_nothing(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """Nobody listens, on either side: no error is told, and none is left behind."""
    pasta = start_pasta("-u", str(PORT), "-U", str(OUT))
    loopback, own = net.LOOPBACK[version], net.HOST[version]
    with host.udp(loopback) as inward, pasta.ns.udp(loopback) as outward:
        for _ in range(20):
            inward.sendto(b"x", (loopback, PORT))
            outward.sendto(b"x", (loopback, OUT))
        silent(inward, outward)
        before = pasta.cpu_seconds()
        silent(inward, outward, seconds=1.0)
        assert pasta.cpu_seconds() - before < 0.2
        with pasta.ns.udp(own, PORT) as server:
            inward.sendto(b"query", (loopback, PORT))
            assert server.recvfrom(100)[0] == b"query"


def test_largest_datagrams(start_pasta: StartPasta, host: Netns, version: int) -> None:
    pasta = start_pasta("-u", str(PORT))
    loopback, own = net.LOOPBACK[version], net.HOST[version]
    payload = bytes(range(256)) * 255 + bytes(227 if version == 4 else 247)
    with pasta.ns.udp(own, PORT) as server, host.udp(loopback) as client:
        client.sendto(payload, (loopback, PORT))
        data, source = server.recvfrom(70000)
        assert data == payload
        server.sendto(payload, source)
        assert client.recvfrom(70000)[0] == payload


@pytest.fixture
def short_lives(host: Netns) -> Iterator[None]:
    """Flows time out after one second, conversations after three."""
    values = {"nf_conntrack_udp_timeout": (1, 30), "nf_conntrack_udp_timeout_stream": (3, 120)}
    if not os.path.exists("/proc/sys/net/netfilter/nf_conntrack_udp_timeout"):
        pytest.skip("no connection tracking in this kernel, hence no setting")
    for name, (value, _) in values.items():
        host.sysctl(f"net/netfilter/{name}", value)
    yield
    for name, (_, usual) in values.items():
        host.sysctl(f"net/netfilter/{name}", usual)


@pytest.mark.paths(("splice-in", 4), ("splice-out", 6))
def test_flows_end(short_lives: None, path: Path) -> None:
    """Sockets go when a flow has been idle, later if it was a conversation, and ports come back."""
    with path.udp_server() as server, path.udp_client(40101) as query, path.udp_client() as chat:

        def flows() -> int:
            """How many of our sockets are connected to clients."""
            kind = "udp" if path.version == 4 else "udp6"
            ours = [row for row in path.client_ns.table(kind) if row[3] == "01"]
            return sum(int(row[1].rpartition(":")[2], 16) == path.port for row in ours)

        for client, rounds in ((query, 1), (chat, 2)):
            for _ in range(rounds):
                client.send(b"query")
                _, source = server.recvfrom(10)
                server.sendto(b"answer", source)
                assert client.recv(10) == b"answer"
        started = time.monotonic()
        assert flows() == 2
        wait_for(lambda: flows() == 1, what="the first flow to end")
        assert time.monotonic() - started > 0.9
        # Other descriptors take the numbers.
        pairs = [path.pair() for _ in range(3)]
        query.send(b"again")
        data, source = server.recvfrom(10)
        server.sendto(b"answer", source)
        assert (data, query.recv(10)) == (b"again", b"answer")
        for pair in pairs:
            for sock in pair:
                sock.close()
        wait_for(lambda: flows() == 0, what="all flows to end")
        assert time.monotonic() - started > 2.9


@pytest.mark.parametrize("name", paths.SPLICED)
def test_no_descriptors_left(
    ours_only: None,
    short_lives: None,
    program: Program,
    topology: Topology,
    user: User,
    name: str,
) -> None:
    """New flows are dropped, old ones work, and all is well when some have ended."""
    limited = copy.copy(user)
    limited.prefix = [*user.prefix, "prlimit", "--nofile=192:192", "--"]
    pasta = Pasta(program, topology.host, limited, *paths.UDP_OPTIONS)
    path = Path(name, 4, topology, pasta)

    def answered(client: socket.socket) -> bool:
        client.send(b"query")
        try:
            _, source = server.recvfrom(10)
        except TimeoutError:
            return False
        server.sendto(b"answer", source)
        return client.recv(10) == b"answer"

    with path.udp_server() as server:
        server.settimeout(0.5)
        clients = [path.udp_client()]
        while answered(clients[-1]):
            clients.append(path.udp_client())
            assert len(clients) < 192
        assert len(clients) > 20
        before = pasta.cpu_seconds()
        for client in clients[:10]:
            assert answered(client)
        assert pasta.cpu_seconds() - before < 0.3
        wait_for(lambda: answered(clients[-1]), what="service after the shortage")
        for client in clients:
            client.close()
    pasta.close()
