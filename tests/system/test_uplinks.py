"""Hosts with several addresses and uplinks: the guest gets where the host would, as the host would.

::

    router1 ── eth0 ┐
                    ├ host (pasta)
    router2 ── eth1 ┘

Each router also has the address ``WORLD``, so that it shows which of them a packet came to, and
with which source.  Every test makes the routes and rules that it is about.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.topology import Topology, veth_pair
from tests.system.kit.users import User

pytestmark = pytest.mark.system

#: By uplink, then by IP version: the host's address there, and the router's.
HOST = ({4: "198.51.100.2", 6: "2001:db8:1::2"}, {4: "198.51.101.2", 6: "2001:db8:2::2"})
ROUTER = ({4: "198.51.100.1", 6: "2001:db8:1::1"}, {4: "198.51.101.1", 6: "2001:db8:2::1"})
WORLD = {4: "192.88.99.7", 6: "2001:db8:77::7"}
#: One half of the world each, and a table with a number beyond eight bits.
HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
TABLE = 51820
PORT = 7300

Start = Callable[..., Pasta]


class Uplinks(Topology):
    """The network above, without any default route or rule."""

    def _build(self) -> None:
        self.host = self.namespace("host")
        self.routers = [self.namespace(f"router{number}") for number in (1, 2)]
        for index, router in enumerate(self.routers):
            veth_pair(self.host, f"eth{index}", router, "eth0")
            for version, length, whole, nodad in ((4, 24, 32, ""), (6, 64, 128, "nodad")):
                self.host.ip(f"addr add {HOST[index][version]}/{length} dev eth{index} {nodad}\n")
                router.ip(
                    f"addr add {ROUTER[index][version]}/{length} dev eth0 {nodad}\n"
                    f"addr add {WORLD[version]}/{whole} dev lo {nodad}\n"
                    f"route add default via {HOST[index][version]}\n"
                )


@pytest.fixture(scope="module")
def shared_uplinks() -> Iterator[Uplinks]:
    with Uplinks() as uplinks:
        yield uplinks


@pytest.fixture
def uplinks(shared_uplinks: Uplinks) -> Iterator[Uplinks]:
    """The network; what a test adds with ``settings`` is gone afterwards."""
    yield shared_uplinks
    shared_uplinks.processes.stop_all()


@pytest.fixture
def settings(uplinks: Uplinks) -> Iterator[Callable[[str], None]]:
    """A function that adds to the host: lines of ``-4|-6 route|rule|addr ARGUMENTS``."""
    added: list[list[str]] = []

    def add(lines: str) -> None:
        for line in lines.splitlines():
            option, what, *rest = line.split()
            uplinks.host.run(["ip", option, what, "add", *rest])
            rest = [word for word in rest if word not in ("nodad", "mngtmpaddr")]
            added.append(["ip", option, what, "del", *rest])

    yield add
    for words in reversed(added):
        uplinks.host.run(words)


@pytest.fixture
def start(uplinks: Uplinks, program: Program, user: User) -> Iterator[Start]:
    """A function that starts a pasta on the host with the given options."""
    with contextlib.ExitStack() as stack:

        def begin(*options: str) -> Pasta:
            pasta = Pasta(program, uplinks.host, user, *options)
            stack.callback(pasta.close)
            return pasta

        yield begin


def world_of(
    uplinks: Uplinks, pasta: Pasta, version: int, *, balanced: bool = False
) -> tuple[int, str, str]:
    """Index of the router where a connection to WORLD arrives, and its source, by TCP and UDP.

    Pings take the same way, or at least one that fits their source.
    """
    arrived: list[tuple[int, str]] = []
    listeners = [router.listen(WORLD[version], PORT) for router in uplinks.routers]
    datagrams = [router.udp(WORLD[version], PORT) for router in uplinks.routers]
    with contextlib.ExitStack() as stack:
        for sock in (*listeners, *datagrams):
            stack.callback(sock.close)
        with pasta.ns.connect(WORLD[version], PORT) as client:
            for index, listener in enumerate(listeners):
                listener.settimeout(0 if index else 0.3)
                with contextlib.suppress(BlockingIOError, TimeoutError):
                    served, peer = listener.accept()
                    served.sendall(b"answer")
                    served.close()
                    arrived.append((index, peer[0]))
            assert client.recv(10) == b"answer"
        with pasta.ns.udp(family=listeners[0].family) as asking:
            asking.sendto(b"question", (WORLD[version], PORT))
            sources = []

            def answered() -> bool:
                for sock in datagrams:
                    sock.settimeout(0)
                    with contextlib.suppress(BlockingIOError):
                        _, peer = sock.recvfrom(100)
                        sock.sendto(b"answer", peer)
                        sources.append(peer[0])
                return bool(sources)

            wait_for(answered, what="datagram")
            assert asking.recv(100) == b"answer"
    ((index, source),) = arrived
    pinged, sender = ping_world(uplinks, pasta, version)
    assert sender == HOST[pinged][version]
    assert balanced or pinged == index
    return index, source, sources[0]


def ping_world(uplinks: Uplinks, pasta: Pasta, version: int) -> tuple[int, str]:
    """Index of the router where a ping to WORLD arrives, and its source."""
    family, protocol, echo_request, header = (
        (socket.AF_INET, socket.IPPROTO_ICMP, 8, 20)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 0)
    )
    raws = [router.new_socket(family, socket.SOCK_RAW, protocol) for router in uplinks.routers]
    with contextlib.ExitStack() as stack:
        for raw in raws:
            raw.setblocking(False)
            stack.callback(raw.close)
        pasta.ns.run(["ping", f"-{version}", "-c", "1", "-W", "5", WORLD[version]])
        found = []
        for index, raw in enumerate(raws):
            with contextlib.suppress(BlockingIOError):
                while True:
                    message, peer = raw.recvfrom(2000)
                    if message[header] == echo_request:
                        found.append((index, peer[0]))
    (arrived,) = found
    return arrived


def shown(pasta: Pasta, what: str) -> list[dict[str, Any]]:
    """What ``ip -j WHAT`` shows in the namespace."""
    found: list[dict[str, Any]] = json.loads(pasta.ns.run(["ip", "-j", *what.split()]).stdout)
    return found


def addresses(pasta: Pasta, version: int) -> list[str]:
    """The guest's addresses of global scope, with prefix lengths, as the kernel lists them."""
    listed = shown(pasta, f"-{version} addr show dev {pasta.interface()} scope global")
    return [f"{a['local']}/{a['prefixlen']}" for link in listed for a in link["addr_info"] if a]


def default(pasta: Pasta, version: int) -> list[dict[str, Any]]:
    """The guest's default routes."""
    return shown(pasta, f"-{version} route show default")


def source_towards(pasta: Pasta, version: int) -> str:
    """The source that the guest prefers towards the world."""
    return str(shown(pasta, f"-{version} route get {WORLD[version]}")[0]["prefsrc"])


# -- routes -------------------------------------------------------------------------------------


def test_default_routes_with_metrics(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    """The best one serves as template, whichever was there first; connections follow it."""
    settings(
        f"-{version} route default via {ROUTER[0][version]} metric 200\n"
        f"-{version} route default via {ROUTER[1][version]} metric 100"
    )
    pasta = start(f"-{version}")
    assert pasta.interface() == "eth1"
    (route,) = default(pasta, version)
    assert (route["gateway"], route["metric"]) == (ROUTER[1][version], 100)
    source = HOST[1][version]
    assert source_towards(pasta, version) == source
    assert world_of(uplinks, pasta, version) == (1, source, source)


def test_connections_follow_the_hosts_routes_of_the_moment(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    """Also when these change: the guest's own address and routes are no hindrance."""
    settings(f"-{version} route default via {ROUTER[0][version]} metric 200")
    pasta = start()
    assert world_of(uplinks, pasta, version) == (0, HOST[0][version], HOST[0][version])
    settings(f"-{version} route default via {ROUTER[1][version]} metric 100")
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


def test_default_route_over_both_uplinks(
    ours_only: None,
    uplinks: Uplinks,
    start: Start,
    settings: Callable[[str], None],
    version: int,
) -> None:
    """The guest has a default route through the interface it has; the host does the balancing."""
    hops = " ".join(f"nexthop via {ROUTER[i][version]} dev eth{i}" for i in (0, 1))
    settings(f"-{version} route default {hops}")
    pasta = start()
    (route,) = default(pasta, version)
    assert route["gateway"] == ROUTER[0][version]
    index, *sources = world_of(uplinks, pasta, version, balanced=True)
    assert sources[0] == HOST[index][version]


def test_halves_of_the_world_through_a_tunnel(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    """As some VPNs have it: the default route stays, but is not used by anybody."""
    first, second = HALVES[version]
    settings(
        f"-{version} route default via {ROUTER[0][version]}\n"
        f"-{version} route {first} via {ROUTER[1][version]}\n"
        f"-{version} route {second} via {ROUTER[1][version]}"
    )
    pasta = start()
    assert pasta.interface() == "eth0"
    assert default(pasta, version)[0]["gateway"] == ROUTER[0][version]
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


def test_table_for_what_is_not_marked(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    """As WireGuard's own script has it: a rule for all packets but the tunnel's own."""
    settings(
        f"-{version} route default via {ROUTER[0][version]}\n"
        f"-{version} route default via {ROUTER[1][version]} table {TABLE}\n"
        f"-{version} rule not fwmark {TABLE} table {TABLE} priority 200\n"
        f"-{version} rule table main suppress_prefixlength 0 priority 100"
    )
    pasta = start()
    assert pasta.interface() == "eth0"
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


def test_default_route_in_another_table_only(
    ours_only: None,
    uplinks: Uplinks,
    start: Start,
    settings: Callable[[str], None],
    version: int,
) -> None:
    settings(
        f"-{version} route default via {ROUTER[1][version]} dev eth1 table {TABLE}\n"
        f"-{version} rule table {TABLE} priority 200"
    )
    pasta = start("-4" if version == 4 else "-6")
    assert pasta.interface() == "eth1"
    (route,) = default(pasta, version)
    assert route["gateway"] == ROUTER[1][version]
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


# -- options about the way out ------------------------------------------------------------------


def test_outbound_address_decides_by_rules(
    ours_only: None,
    uplinks: Uplinks,
    start: Start,
    settings: Callable[[str], None],
    version: int,
) -> None:
    """One table per uplink, for packets from its address: a source chooses the way."""
    settings(
        f"-{version} route default via {ROUTER[0][version]}\n"
        f"-{version} route default via {ROUTER[1][version]} table 101\n"
        f"-{version} rule from {HOST[1][version]} table 101 priority 200"
    )
    pasta = start("-i", "eth1", "-o", HOST[1][4], "-o", HOST[1][6], f"-{version}")
    (route,) = default(pasta, version)
    assert route["gateway"] == ROUTER[1][version]
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


def test_outbound_interface(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    settings(
        f"-{version} route default via {ROUTER[0][version]}\n"
        f"-{version} route default via {ROUTER[1][version]} metric 2000"
    )
    pasta = start(f"--outbound-if{version}", "eth1", f"-{version}")
    assert pasta.interface() == "eth1"
    assert world_of(uplinks, pasta, version) == (1, HOST[1][version], HOST[1][version])


def test_answers_leave_by_the_uplink_of_the_question(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None], version: int
) -> None:
    """Services inside are reached by both uplinks, though the default route is one's."""
    settings(
        f"-{version} route default via {ROUTER[0][version]}\n"
        f"-{version} route default via {ROUTER[1][version]} table 101\n"
        f"-{version} rule from {HOST[1][version]} table 101 priority 200"
    )
    pasta = start("-t", str(PORT), "-u", str(PORT))
    everywhere = "0.0.0.0" if version == 4 else "::"
    with pasta.ns.listen(everywhere, PORT) as listener, pasta.ns.udp(everywhere, PORT) as server:
        for index, router in enumerate(uplinks.routers):
            # Not from the router's own address, for which there would be a route anyway.
            source, target = (WORLD[version], 0), (HOST[index][version], PORT)
            with router.connect(*target, source=source) as client:
                served, _ = listener.accept()
                with served:
                    served.sendall(b"answer")
                    assert client.recv(10) == b"answer"
            with router.udp(*source) as client:
                client.sendto(b"question", target)
                _, peer = server.recvfrom(100)
                server.sendto(b"answer", peer)
                assert client.recvfrom(100)[1][:2] == target


# -- addresses ----------------------------------------------------------------------------------


def test_several_addresses_by_option(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """The last one is preferred; incoming connections go there, and may come from the others."""
    settings(
        f"-4 route default via {ROUTER[0][4]}\n-6 route default via {ROUTER[0][6]}\n"
        "-6 addr fd00:1::5/64 dev eth0 nodad\n-4 addr 10.1.1.5/24 dev eth0"
    )
    words = ("10.1.1.5/24", "198.51.100.70/24", "fd00:1::5/64", "2001:db8:1::70/80")
    pasta = start(*(word for each in words for word in ("-a", each)), "-t", str(PORT))
    assert set(addresses(pasta, 4)) == {"10.1.1.5/24", "198.51.100.70/24"}
    assert set(addresses(pasta, 6)) == {"fd00:1::5/64", "2001:db8:1::70/80"}
    assert source_towards(pasta, 4) == "198.51.100.70"
    assert source_towards(pasta, 6) == "2001:db8:1::70"
    for version, main, other in (
        (4, "198.51.100.70", "10.1.1.5"),
        (6, "2001:db8:1::70", "fd00:1::5"),
    ):
        assert world_of(uplinks, pasta, version)[0] == 0
        with (
            pasta.ns.listen(main, PORT) as listener,
            uplinks.host.connect(other, PORT, source=(other, 0)) as client,
        ):
            served, peer = listener.accept()
            with served:
                assert peer[0] == ROUTER[0][version]
                served.sendall(b"answer")
                assert client.recv(10) == b"answer"


def test_host_connects_from_another_address_that_the_guest_has_too(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """Whichever of its addresses it connects to, it comes from that one."""
    settings(
        f"-4 route default via {ROUTER[0][4]}\n-6 route default via {ROUTER[0][6]}\n"
        "-4 addr 10.1.1.5/24 dev eth0\n"
        "-6 addr fd00:1::5/64 dev eth0 nodad\n-6 addr 2001:db8:1::5/64 dev eth0 nodad"
    )
    pasta = start("-t", str(PORT), "-u", str(PORT))
    assert set(addresses(pasta, 4)) == {f"{HOST[0][4]}/24", "10.1.1.5/24"}
    six = {f"{HOST[0][6]}/64", "fd00:1::5/64", "2001:db8:1::5/64"}
    assert set(addresses(pasta, 6)) == six
    for version, everywhere in ((4, "0.0.0.0"), (6, "::")):
        listener, server = pasta.ns.listen(everywhere, PORT), pasta.ns.udp(everywhere, PORT)
        for each in addresses(pasta, version):
            address = each.partition("/")[0]
            with uplinks.host.connect(address, PORT, source=(address, 0)) as client:
                served, peer = listener.accept()
                with served:
                    assert peer[0] == ROUTER[0][version]
                    served.sendall(b"answer")
                    assert client.recv(10) == b"answer"
            with uplinks.host.udp(address) as asking:
                asking.sendto(b"question", (address, PORT))
                _, peer = server.recvfrom(100)
                assert peer[0] == ROUTER[0][version]
                server.sendto(b"answer", peer)
                assert asking.recvfrom(100)[0] == b"answer"


def test_temporary_and_duplicate_addresses(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """Of a host with privacy extensions the guest's address is the one that stays."""
    host = uplinks.host
    settings(f"-6 route default via {ROUTER[0][6]}")
    host.sysctl("net/ipv6/conf/eth0/use_tempaddr", 2)
    settings("-6 addr 2001:db8:1:7::9/64 dev eth0 mngtmpaddr nodad")
    listed = wait_for(
        lambda: host.run(["ip", "-6", "-o", "addr", "show", "dev", "eth0", "temporary"]).stdout,
        what="temporary address",
    )
    temporary = listed.split()[3]
    try:
        pasta = start("-d")
        assert f"assign: {temporary.partition('/')[0]}\n" not in pasta.messages()
        assert temporary in addresses(pasta, 6)
    finally:
        host.sysctl("net/ipv6/conf/eth0/use_tempaddr", 0)
        host.ip(f"addr del {temporary} dev eth0\n")


# -- link-local neighbours ----------------------------------------------------------------------


def test_link_local_neighbours_of_the_host(
    uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """They are those on the template interface."""
    settings(f"-6 route default via {ROUTER[0][6]}")
    converse_link_locally(start(), uplinks.routers[0])


def test_link_local_neighbours_where_ipv6_has_nothing_else(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """As in most networks without IPv6: those on the interface that IPv4 uses."""
    settings(f"-4 route default via {ROUTER[1][4]}")
    global6 = [(f"eth{index}", f"{HOST[index][6]}/64") for index in (0, 1)]
    for name, address in global6:
        uplinks.host.ip(f"addr del {address} dev {name}\n")
    try:
        pasta = start()
        assert addresses(pasta, 6) == []
        converse_link_locally(pasta, uplinks.routers[1])
    finally:
        for name, address in global6:
            uplinks.host.ip(f"addr add {address} dev {name} nodad\n")


def test_link_local_neighbours_on_the_outbound_interface(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """Which sockets are bound to, and so can reach no others."""
    settings(f"-6 route default via {ROUTER[0][6]}")
    converse_link_locally(start("-i", "eth0", "--outbound-if6", "eth1"), uplinks.routers[1])


def test_link_local_neighbours_connect(
    ours_only: None, uplinks: Uplinks, start: Start, settings: Callable[[str], None]
) -> None:
    """By either uplink; the guest answers them as if they were its own neighbours."""
    settings(f"-6 route default via {ROUTER[0][6]}")
    pasta = start("-t", str(PORT), "-u", str(PORT))
    listener, server = pasta.ns.listen("::", PORT), pasta.ns.udp("::", PORT)
    for index, router in enumerate(uplinks.routers):
        ours, scope = link_local(router), router.call(lambda: socket.if_nametoindex("eth0"))
        target = link_local(uplinks.host, f"eth{index}"), PORT, 0, scope
        client = router.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
        client.connect(target)
        served, peer = listener.accept()
        with served:
            assert peer[0].partition("%")[0] == ours
            served.sendall(b"answer")
            assert client.recv(10) == b"answer"
        asking = router.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
        asking.connect(target)
        asking.send(b"question")
        _, peer = server.recvfrom(100)
        assert peer[0].partition("%")[0] == ours
        server.sendto(b"answer", peer)
        assert asking.recv(100) == b"answer"


def converse_link_locally(pasta: Pasta, router: Netns) -> None:
    """By TCP, UDP and ping between the guest and the link-local address of a router."""
    address = link_local(router)
    name = pasta.interface()
    scope = pasta.ns.call(lambda: socket.if_nametoindex(name))
    far_scope = router.call(lambda: socket.if_nametoindex("eth0"))
    server = router.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, PORT, 0, far_scope))
    server.listen()
    client = pasta.ns.new_socket(socket.AF_INET6, socket.SOCK_STREAM)
    client.connect((address, PORT, 0, scope))
    served, peer = server.accept()
    assert peer[0].startswith("fe80:")
    served.sendall(b"answer")
    assert client.recv(10) == b"answer"
    answering = router.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    answering.bind((address, PORT, 0, far_scope))
    asking = pasta.ns.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    asking.sendto(b"question", (address, PORT, 0, scope))
    _, peer = answering.recvfrom(100)
    answering.sendto(b"answer", peer)
    assert asking.recvfrom(100)[0] == b"answer"
    pasta.ns.run(["ping", "-6", "-c", "1", "-W", "5", f"{address}%{name}"])


def link_local(ns: Netns, name: str = "eth0") -> str:
    """The link-local address of an interface of a namespace."""
    words = ["ip", "-j", "-6", "addr", "show", "dev", name, "scope", "link"]
    return next(
        str(each["local"])
        for link in json.loads(ns.run(words).stdout)
        for each in link.get("addr_info", ())
        if each
    )
