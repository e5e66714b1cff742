"""Datagrams by every way through pasta: whole, in order, with the right addresses, and errors."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import paths
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta
from tests.system.kit.paths import Path
from tests.system.kit.topology import Topology

pytestmark = pytest.mark.system

IP_TTL, IP_RECVERR, IP_RECVTTL = 2, 11, 12
IPV6_UNICAST_HOPS, IPV6_RECVERR = 16, 25
PMTUDISC_PROBE = 3
SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6 = 2, 3


def recv_all(sock: socket.socket, count: int, timeout: float = 5.0) -> list[bytes]:
    """Return up to *count* datagrams; fewer when nothing came for *timeout* seconds."""
    sock.settimeout(timeout)
    data: list[bytes] = []
    try:
        while len(data) < count:
            data.append(sock.recv(65535))
    except TimeoutError:
        pass
    return data


@pytest.fixture
def one_processor(path: Path) -> Iterator[None]:
    """Keep test and pasta on one processor.

    A veth pair has a queue per processor, so that the kernel itself reorders what a process sends
    while it is moved from one to another.
    """
    before = os.sched_getaffinity(0)
    for pid in (0, path.pasta.process.pid):
        os.sched_setaffinity(pid, {min(before)})
    yield
    os.sched_setaffinity(0, before)


# -- content -------------------------------------------------------------------------------------


def test_sizes_both_ways(path: Path) -> None:
    """Boundaries are kept, empty datagrams included, and the answer reaches who asked."""
    generator = random.Random(path.version)
    with path.udp_server() as server, path.udp_client() as client:
        for size in (0, 1, 2, 3, 7, 100, 1471, 1472, 1473, 8000, 40000, 65000):
            data = generator.randbytes(size)
            client.send(data)
            received, source = server.recvfrom(65535)
            assert received == data
            server.sendto(data[::-1], source)
            assert client.recv(65535) == data[::-1]


def test_burst_keeps_its_order(one_processor: None, path: Path) -> None:
    """The first burst of a new client: flow creation must not let later datagrams overtake."""
    with path.udp_server() as server, path.udp_client() as client, path.udp_client() as second:
        for number in range(100):
            client.send(b"a%03d" % number)
            second.send(b"b%03d" % number)
        data = recv_all(server, 200, 1.0)
        for letter in (b"a", b"b"):
            mine = [item for item in data if item[:1] == letter]
            assert mine == [letter + b"%03d" % number for number in range(100)]


def test_burst_of_answers(one_processor: None, path: Path) -> None:
    """32 different datagrams in one wake-up: each once, in order, with its own length."""
    with path.udp_server() as server, path.udp_client() as client:
        client.send(b"?")
        _, source = server.recvfrom(10)
        expected = [bytes([n]) * (1 + 997 * n % 1400) for n in range(32)]
        for data in expected:
            server.sendto(data, source)
        assert recv_all(client, 33, 0.2) == expected


def test_clients_are_not_mixed_up(path: Path) -> None:
    with path.udp_server() as server:
        clients = [path.udp_client() for _ in range(20)]
        for round_ in range(5):
            for index, client in enumerate(clients):
                client.send(b"%d %d" % (index, round_))
            for _ in clients:
                data, source = server.recvfrom(100)
                server.sendto(b"answer to " + data, source)
            for index, client in enumerate(clients):
                assert client.recv(100) == b"answer to %d %d" % (index, round_)


def test_server_may_stream(one_processor: None, path: Path) -> None:
    """One request, many answers, also after a pause."""
    with path.udp_server() as server, path.udp_client() as client:
        client.send(b"go")
        _, source = server.recvfrom(10)
        for number in range(50):
            server.sendto(b"%d" % number, source)
            time.sleep(0.002)
        assert recv_all(client, 50, 1.0) == [b"%d" % number for number in range(50)]


# -- addresses -----------------------------------------------------------------------------------


def test_source_port_is_preserved(path: Path) -> None:
    with path.udp_server() as server, path.udp_client(source_port=40123) as client:
        client.send(b"x")
        _, source = server.recvfrom(10)
        if path.name != "splice-in":
            assert source[1] == 40123
        expected = {"remote": net.HOST, "gateway": net.LOOPBACK, "own": net.OWN}
        expected |= {"inbound": net.REMOTE, "splice-out": net.LOOPBACK, "splice-in": net.HOST}
        assert source[0] == expected[path.name][path.version]


def test_ports_are_translated(
    start_pasta: StartPasta, host: Netns, remote: Netns, version: int
) -> None:
    """The client talks to the port it knows, the server on its own; 65535 included."""
    pasta = start_pasta("-u", "6001:7001,65534-65535:65533-65534", "-U", "6002:7002")
    for ns, target, port, server_port in (
        (remote, net.HOST, 6001, 7001),
        (host, net.LOOPBACK, 6001, 7001),
        (remote, net.HOST, 65535, 65534),
        (host, net.LOOPBACK, 65535, 65534),
    ):
        with pasta.ns.udp(net.HOST[version], server_port) as server:
            client = ns.udp(family=server.family)
            client.connect((target[version], port))  # accepts answers from there only
            client.send(b"in")
            _, source = server.recvfrom(10)
            server.sendto(b"back", source)
            assert client.recv(10) == b"back"
    with host.udp(net.LOOPBACK[version], 7002) as server:
        client = pasta.ns.udp(family=server.family)
        client.connect((net.LOOPBACK[version], 6002))
        client.send(b"out")
        _, source = server.recvfrom(10)
        server.sendto(b"back", source)
        assert client.recv(10) == b"back"


def test_answer_leaves_from_the_address_asked(
    start_pasta: StartPasta, remote: Netns, version: int
) -> None:
    """A host with two addresses and one wildcard listener answers from the one that was used."""
    pasta = start_pasta("-u", "7001")
    with pasta.ns.udp(net.HOST[version], 7001) as server:
        for address in (net.OWN[version], net.HOST[version]):
            with remote.udp(family=server.family) as client:
                client.sendto(b"x", (address, 7001))
                _, source = server.recvfrom(10)
                server.sendto(b"y", source)
                assert client.recvfrom(10)[1][:2] == (address, 7001)


def test_loopback_addresses_other_than_one(start_pasta: StartPasta, host: Netns) -> None:
    """``-U`` keeps the loopback address the client used; other interfaces do not lead there."""
    pasta = start_pasta("-U", "7003")
    with host.udp("127.0.0.53", 7003) as server, pasta.ns.udp(family=socket.AF_INET) as client:
        client.connect(("127.0.0.53", 7003))
        client.send(b"x")
        _, source = server.recvfrom(10)
        server.sendto(b"y", source)
        assert client.recv(10) == b"y"
    with host.udp("127.0.0.1", 7003) as server, pasta.ns.udp(family=socket.AF_INET) as client:
        client.sendto(b"x", (net.HOST[4], 7003))
        assert recv_all(server, 1, 0.3) == []


def test_loopback_of_the_namespace_is_not_exposed(
    start_pasta: StartPasta, host: Netns, version: int
) -> None:
    pasta = start_pasta("-u", "7001")
    with pasta.ns.udp(net.LOOPBACK[version], 7001) as server, host.udp(family=server.family) as c:
        c.sendto(b"x", (net.LOOPBACK[version], 7001))
        assert recv_all(server, 1, 0.3) == []


def test_host_lo_to_ns_lo(start_pasta: StartPasta, host: Netns, version: int) -> None:
    pasta = start_pasta("-u", "7001", "--host-lo-to-ns-lo")
    with pasta.ns.udp(net.LOOPBACK[version], 7001) as server, host.udp(family=server.family) as c:
        c.connect((net.LOOPBACK[version], 7001))
        c.send(b"x")
        _, source = server.recvfrom(10)
        server.sendto(b"y", source)
        assert c.recv(10) == b"y"


def test_privileged_source_port(
    ours_only: None, start_pasta: StartPasta, remote: Netns, version: int
) -> None:
    """NTP, IKE: the ordinary user cannot bind the port on the host; another one will do."""
    pasta = start_pasta()
    with remote.udp(net.REMOTE[version], 7002) as server:
        client = pasta.ns.call(lambda: socket.socket(server.family, socket.SOCK_DGRAM))
        client.settimeout(5)
        client.bind(("", 123))
        client.sendto(b"time?", (net.REMOTE[version], 7002))
        _, source = server.recvfrom(10)
        server.sendto(b"late", source)
        assert client.recvfrom(10)[1][:2] == (net.REMOTE[version], 7002)
        client.close()


def test_busy_source_port(
    ours_only: None, start_pasta: StartPasta, host: Netns, remote: Netns, version: int
) -> None:
    pasta = start_pasta()
    with (
        host.udp(net.LOOPBACK[version], 40555),
        remote.udp(net.REMOTE[version], 7002) as server,
        pasta.ns.udp(net.HOST[version], 40555) as client,
    ):
        client.sendto(b"x", (net.REMOTE[version], 7002))
        _, source = server.recvfrom(10)
        server.sendto(b"y", source)
        assert client.recv(10) == b"y"


def test_one_source_port_to_several_destinations(
    topology: Topology, start_pasta: StartPasta, version: int
) -> None:
    pasta = start_pasta()
    servers = [
        (topology.remote, net.REMOTE[version], net.REMOTE[version]),
        (topology.far, net.FAR[version], net.FAR[version]),
        (topology.host, net.LOOPBACK[version], net.GATEWAY[version]),
    ]
    with pasta.ns.udp(net.HOST[version], 40001) as client:
        for ns, address, target in servers:
            with ns.udp(address, 7002) as server:
                client.sendto(target.encode(), (target, 7002))
                data, source = server.recvfrom(100)
                assert (data, source[1]) == (target.encode(), 40001)
                server.sendto(b"y", source)
                assert client.recvfrom(10)[1][:2] == (target, 7002)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.paths(*paths.OUTBOUND)
def test_closed_port_is_refused(path: Path) -> None:
    """Also for the first datagram of a flow."""
    with path.udp_client() as client:
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)


@pytest.mark.paths(*paths.OUTBOUND, *paths.SPLICED)
def test_refusal_does_not_end_the_flow(path: Path) -> None:
    """The server starts late: the same client gets through, and nothing is busy meanwhile."""
    with path.udp_client() as client:
        for _ in range(3):
            try:
                client.send(b"x")
            except ConnectionRefusedError:
                pass
            time.sleep(0.02)
        before = path.pasta.cpu_seconds()
        time.sleep(0.4)
        assert path.pasta.cpu_seconds() - before < 0.1
        with path.udp_server() as server:
            for _ in range(3):  # a pending error may cost one datagram
                try:
                    client.send(b"now")
                except ConnectionRefusedError:
                    pass
            assert recv_all(server, 3, 0.5)[:1] == [b"now"]


class SocketError:
    """An entry of a socket's error queue (ip(7), ``struct sock_extended_err``)."""

    def __init__(self, sock: socket.socket) -> None:
        self.data, control, _, self.target = sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        ((_, _, value),) = [item for item in control if item[1] in (IP_RECVERR, IPV6_RECVERR)]
        self.errno, self.origin, self.type, self.code, _, self.info, _ = struct.unpack_from(
            "IBBBBII", value
        )
        start = 16 + (8 if self.origin == SO_EE_ORIGIN_ICMP6 else 4)
        size = 16 if self.origin == SO_EE_ORIGIN_ICMP6 else 4
        self.offender = str(ipaddress.ip_address(value[start : start + size]))


def watched_client(ns: Netns, version: int, target: str, port: int, ttl: int = 64) -> socket.socket:
    """Return a connected socket that keeps ICMP errors in its error queue."""
    client = ns.udp(family=socket.AF_INET if version == 4 else socket.AF_INET6)
    if version == 4:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IP, IP_TTL, ttl)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl)
    client.connect((target, port))
    return client


def next_error(sock: socket.socket) -> SocketError:
    """Return the next entry of the error queue, waiting up to 3 s for it."""

    def look() -> SocketError | None:
        try:
            return SocketError(sock)
        except BlockingIOError:
            return None

    sock.setblocking(False)
    error = wait_for(look, 3.0, "an ICMP error")
    assert error
    return error


def test_traceroute(start_pasta: StartPasta, version: int) -> None:
    """The router at hop 1, the target's port unreachable at hop 2."""
    pasta = start_pasta()
    exceeded = (11, 0) if version == 4 else (3, 0)
    unreachable = (3, 3) if version == 4 else (1, 4)
    for ttl, offender, kind in (
        (1, net.GATEWAY[version], exceeded),
        (2, net.FAR[version], unreachable),
    ):
        with watched_client(pasta.ns, version, net.FAR[version], 33434, ttl) as client:
            client.send(b"probe")
            error = next_error(client)
            assert ((error.type, error.code), error.offender) == (kind, offender)


@pytest.mark.parametrize(
    ("targets", "code"),
    [(net.UNREACHABLE, {4: (3, 1), 6: (1, 0)}), (net.PROHIBITED, {4: (3, 13), 6: (1, 1)})],
    ids=["unreachable", "prohibited"],
)
def test_router_errors(
    start_pasta: StartPasta, version: int, targets: dict[int, str], code: dict[int, tuple[int, int]]
) -> None:
    pasta = start_pasta()
    with watched_client(pasta.ns, version, targets[version], 7) as client:
        client.send(b"probe")
        error = next_error(client)
        assert (error.type, error.code) == code[version]
        assert error.offender == net.GATEWAY[version]


def test_path_mtu(start_pasta: StartPasta, topology: Topology, version: int) -> None:
    """A narrow link on the way: the guest is told its MTU, and the retry arrives."""
    pasta = start_pasta()
    topology.remote.ip("link set eth1 mtu 1300\n")
    try:
        with (
            topology.far.udp(net.FAR[version], 7002) as server,
            watched_client(pasta.ns, version, net.FAR[version], 7002) as client,
        ):
            client.send(bytes(1400))
            error = next_error(client)
            assert (error.type, error.code) == ((3, 4) if version == 4 else (2, 0))
            assert error.info == 1300
            client.setblocking(True)
            # As from a guest whose own kernel does not fragment: the host has to do it.
            level, name = ((0, 10), (41, 23))[version == 6]
            client.setsockopt(level, name, PMTUDISC_PROBE)
            client.send(bytes(1400))
            assert [len(data) for data in recv_all(server, 1)] == [1400]
    finally:
        topology.remote.ip("link set eth1 mtu 1500\n")
        flush = ["ip", f"-{version}", "route", "flush", "cache"]
        topology.host.run(flush)


def test_refused_splice_stays_off_the_tap(start_pasta: StartPasta, host: Netns) -> None:
    """No ICMP error may be made up for a spliced flow."""
    pasta = start_pasta("-u", "7001")
    sniffer = pasta.ns_as_root.new_socket(socket.AF_PACKET, socket.SOCK_RAW)
    sniffer.bind((pasta.interface(), 3))
    with host.udp(family=socket.AF_INET) as client:
        client.connect(("127.0.0.1", 7001))
        client.send(b"x")
        time.sleep(0.2)
    assert not [data for data in recv_all(sniffer, 100, 0.1) if data[12:14] == b"\x08\x00"]


# -- multicast and broadcast ---------------------------------------------------------------------


def group_member(ns: Netns, group: str, port: int, interface: str = "eth0") -> socket.socket:
    """Return a socket that receives what is sent to the multicast *group*."""
    index = ns.call(lambda: socket.if_nametoindex(interface))
    if ":" in group:
        sock = ns.udp("::", port)
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    else:
        sock = ns.udp("0.0.0.0", port)
        request = socket.inet_aton(group) + bytes(4) + struct.pack("=i", index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    return sock


def test_multicast_leaves_with_ttl_1(start_pasta: StartPasta, remote: Netns) -> None:
    pasta = start_pasta()
    with group_member(remote, "239.255.255.250", 1900) as member:
        client = pasta.ns.udp(family=socket.AF_INET)
        client.sendto(b"NOTIFY", ("239.255.255.250", 1900))
        data, control, _, source = member.recvmsg(100, 100)
        assert (data, source[0]) == (b"NOTIFY", net.HOST[4])
        assert [struct.unpack("i", value)[0] for _, kind, value in control if kind == 2] == [1]


@pytest.mark.parametrize("group", ["ff02::fb", "ff05::2"])
def test_ipv6_multicast(
    request: pytest.FixtureRequest, start_pasta: StartPasta, remote: Netns, group: str
) -> None:
    if group.startswith("ff02"):
        request.getfixturevalue("ours_only")
    pasta = start_pasta()
    index = pasta.ns.call(lambda: socket.if_nametoindex("eth0"))
    with group_member(remote, group, 5353) as member:
        client = pasta.ns.udp(family=socket.AF_INET6)
        client.sendto(b"query", (group, 5353, 0, index))
        assert recv_all(member, 1) == [b"query"]


@pytest.mark.parametrize("target", ["255.255.255.255", "198.51.100.255"])
def test_broadcast_from_the_guest(
    ours_only: None, start_pasta: StartPasta, remote: Netns, target: str
) -> None:
    pasta = start_pasta()
    with remote.udp("0.0.0.0", 7002) as server, pasta.ns.udp(family=socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"anyone?", (target, 7002))
        assert recv_all(server, 1) == [b"anyone?"]


def test_undeliverable_datagrams_leave_nothing_behind(
    start_pasta: StartPasta, remote: Netns, host: Netns
) -> None:
    """Datagrams that no flow can be made for: discarded once, no descriptor left, no load."""
    pasta = start_pasta("-u", "7001")
    before = pasta.settled_descriptors()
    index = remote.call(lambda: socket.if_nametoindex("eth0"))
    with (
        remote.udp(family=socket.AF_INET6) as outside,
        pasta.ns.udp(family=socket.AF_INET) as inside,
    ):
        host.ip(f"route add unreachable {net.BLACKHOLE[4]}\n")
        for port in range(500):
            outside.sendto(b"x", ("ff02::1", 7001, 0, index))
            inside.sendto(b"x", (net.BLACKHOLE[4], 1000 + port))
        wait_for(lambda: idle(pasta), what="idle pasta")
        host.ip(f"route del unreachable {net.BLACKHOLE[4]}\n")
    assert pasta.descriptors() <= before + 10


def idle(pasta: Pasta) -> bool:
    """Tell, after a while, whether the program hardly used the processor in it."""
    used = pasta.cpu_seconds()
    time.sleep(0.4)
    return pasta.cpu_seconds() - used < 0.1
