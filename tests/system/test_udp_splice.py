"""Local datagrams that bypass the link: who sees which address, and who is refused."""

from __future__ import annotations

import socket
import time

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.topology import Topology

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
