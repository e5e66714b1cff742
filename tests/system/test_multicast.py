"""Multicast between the guest and a peer on the host's link: queries, answers, members, streams.

The guest is an ordinary program in the namespace, so that its kernel reports what it joins.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.users import User

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ours_only")]

SSDP, MDNS = 1900, 5353
#: By version: SSDP, mDNS, and one without a port of its own.
SEARCH = {4: "239.255.255.250", 6: "ff02::c"}
NAMES = {4: "224.0.0.251", 6: "ff02::fb"}
STREAM = {4: "239.1.2.3", 6: "ff05::1234"}

MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP, MCAST_JOIN_SOURCE_GROUP = 42, 45, 46
IP_RECVTTL, IP_MULTICAST_ALL = 12, 49


def level(version: int) -> int:
    """The level of socket options."""
    return socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6


def storage(address: str) -> bytes:
    """struct sockaddr_storage of an address."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        raw = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, packed, 0)
    else:
        raw = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))
    return raw.ljust(128, b"\0")


class Station:
    """A program's socket in a namespace, on eth0."""

    def __init__(self, ns: Netns, version: int, port: int = 0, *, ttl: int = 0) -> None:
        self.version = version
        self.index = ns.call(lambda: socket.if_nametoindex("eth0"))
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.sock = sock = ns.udp(family=family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            request = struct.pack("=8xi", self.index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        if ttl:
            kind = socket.IP_MULTICAST_TTL if version == 4 else socket.IPV6_MULTICAST_HOPS
            sock.setsockopt(level(version), kind, ttl)
        if port:
            sock.bind(("", port))

    def join(self, group: str, source: str = "", *, leave: bool = False) -> Station:
        """Join, or leave, ``group``, for one ``source`` or all."""
        request = struct.pack("=I4x", self.index) + storage(group)
        kind = MCAST_LEAVE_GROUP if leave else MCAST_JOIN_GROUP
        if source:
            request += storage(source)
            kind = MCAST_JOIN_SOURCE_GROUP
        self.sock.setsockopt(level(self.version), kind, request)
        return self

    def send(self, data: bytes, address: str, port: int) -> None:
        """Send to an address, which on the link is that of this interface."""
        near = address.startswith(("ff02", "fe80"))
        self.sock.sendto(data, (address, port, *((0, self.index) if near else ())))

    def get(self, seconds: float = 5.0) -> tuple[bytes, str, int, int]:
        """The next datagram: data, source address and port, TTL."""
        self.sock.settimeout(seconds)
        data, control, _, source = self.sock.recvmsg(2000, 100)
        ttls = [struct.unpack("=i", value)[0] for _, kind, value in control if kind in (2, 52)]
        return data, source[0].partition("%")[0], source[1], ttls[0]

    def hears_nothing(self) -> bool:
        """Whether nothing arrives for a while."""
        try:
            raise AssertionError(self.get(0.4))
        except TimeoutError:
            return True


def guest_of(pasta: Pasta, version: int, port: int = 0, *, ttl: int = 0) -> Station:
    """A program's socket in the guest, whose link-local address receives by now.

    The kernel has a local route to it only when it has noticed that the tap has a carrier.
    """
    if version == 6:
        wait_for(lambda: has_link_local(pasta.ns), what="link-local address in use")
    return Station(pasta.ns, version, port, ttl=ttl)


def has_link_local(ns: Netns) -> bool:
    """Whether some address of fe80::/10 is a local destination."""
    return any(row[0].startswith("fe80") and row[1] == "80" for row in ns.table("ipv6_route"))


def joined(ns: Netns, group: str) -> bool:
    """Whether eth0 of the namespace is a member of ``group``."""
    if ":" in group:
        wanted = socket.inet_pton(socket.AF_INET6, group).hex()
        return any(row[1:3] == ["eth0", wanted] for row in ns.table("igmp6"))
    wanted = f"{int.from_bytes(socket.inet_aton(group), 'little'):08X}"
    return any(row[0] == wanted for row in ns.table("igmp"))


def wait_joined(ns: Netns, group: str, *, left: bool = False) -> None:
    """Wait until the host is a member, or no longer."""
    wait_for(lambda: joined(ns, group) != left, what=f"membership in {group}")


def alias(version: int, address: str, names: dict[int, str]) -> bool:
    """Whether ``address`` is that of ``names``, or link-local, as IPv6 prefers on the link."""
    return address == names[version] or (version == 6 and address.startswith("fe80:"))


@pytest.mark.parametrize("ttl", [1, 4])
def test_search_is_answered_from_elsewhere(
    start_pasta: StartPasta, remote: Netns, version: int, ttl: int
) -> None:
    """SSDP: the answer comes from the address and a port of whoever answers, not the group."""
    pasta = start_pasta()
    device = Station(remote, version, SSDP).join(SEARCH[version])
    guest = guest_of(pasta, version, ttl=ttl)
    guest.send(b"M-SEARCH", SEARCH[version], SSDP)
    data, asker, port, seen_ttl = device.get()
    assert (data, seen_ttl) == (b"M-SEARCH", ttl)
    assert alias(version, asker, net.HOST)
    assert port == guest.sock.getsockname()[1]
    for number in (1, 2):
        answering = remote.udp(net.REMOTE[version], 0)
        with answering:
            answering.sendto(b"200 OK %d" % number, (net.HOST[version], port))
            data, source, source_port, _ = guest.get()
            assert data == b"200 OK %d" % number
            assert (source, source_port) == (net.REMOTE[version], answering.getsockname()[1])


def test_names_are_asked_for_and_answered_by_multicast(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int
) -> None:
    """mDNS from and to port 5353, the guest being a member: nothing is heard twice."""
    pasta = start_pasta()
    group = NAMES[version]
    responder = Station(remote, version, MDNS).join(group)
    guest = guest_of(pasta, version, MDNS).join(group)
    wait_joined(host, group)
    guest.send(b"who is printer.local?", group, MDNS)
    data, asker, port, _ = responder.get()
    assert (data, port) == (b"who is printer.local?", MDNS)
    assert alias(version, asker, net.HOST)
    # The guest's own kernel gives it its own question, once.
    assert guest.get()[0] == b"who is printer.local?"
    responder.send(b"I am", group, MDNS)
    data, source, port, _ = guest.get()
    assert (data, port) == (b"I am", MDNS)
    assert alias(version, source, net.REMOTE) or source == net.GATEWAY[version]
    # For a question that asks for it, an answer to the guest alone.
    responder.send(b"I am, and nobody else needs to know", net.HOST[version], MDNS)
    assert guest.get()[0] == b"I am, and nobody else needs to know"
    assert guest.hears_nothing()


def test_name_asked_for_from_another_port_is_answered_directly(
    start_pasta: StartPasta, remote: Netns, version: int
) -> None:
    """Legacy unicast of mDNS: the answer comes from port 5353 of the responder."""
    pasta = start_pasta()
    responder = Station(remote, version, MDNS).join(NAMES[version])
    guest = guest_of(pasta, version)
    guest.send(b"who?", NAMES[version], MDNS)
    port = responder.get()[2]
    responder.send(b"me", net.HOST[version], port)
    data, _, source_port, _ = guest.get()
    assert (data, source_port) == (b"me", MDNS)


def test_programs_of_the_host_are_not_disturbed(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int
) -> None:
    """One that has the port of mDNS keeps its unicast, hears the guest, and is heard by it."""
    resident = Station(host, version, MDNS).join(NAMES[version])
    pasta = start_pasta()
    group = NAMES[version]
    outside = Station(remote, version, MDNS).join(group)
    guest = guest_of(pasta, version, MDNS).join(group)
    guest.send(b"from the guest", group, MDNS)
    data, _, port, _ = outside.get()
    assert (data, port) == (b"from the guest", MDNS)
    assert resident.get()[0] == b"from the guest"
    assert guest.get()[0] == b"from the guest"
    assert guest.hears_nothing()
    resident.send(b"from the host", group, MDNS)
    assert guest.get()[0] == outside.get()[0] == b"from the host"
    outside.send(b"to the host alone", net.HOST[version], MDNS)
    assert resident.get()[0] == b"from the host"
    assert resident.get()[0] == b"to the host alone"
    assert guest.hears_nothing()


def test_program_of_the_host_that_starts_later_has_its_port(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int
) -> None:
    pasta = start_pasta()
    outside = Station(remote, version, MDNS).join(NAMES[version])
    guest = guest_of(pasta, version, MDNS)
    guest.send(b"early", NAMES[version], MDNS)
    assert outside.get()[0] == b"early"
    resident = Station(host, version, MDNS)
    outside.send(b"for the newcomer", net.HOST[version], MDNS)
    assert resident.get()[0] == b"for the newcomer"
    assert guest.hears_nothing()


@pytest.mark.parametrize("rule", ["explicit", "auto"])
def test_stream_to_a_group(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int, rule: str
) -> None:
    """Whoever joins gets all of it, at a port that is forwarded, until it leaves."""
    port = 5004
    pasta = start_pasta("-u", str(port) if rule == "explicit" else "auto")
    group = STREAM[version]
    guest = guest_of(pasta, version, port)
    guest.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    guest.join(group)
    wait_joined(host, group)
    sender = Station(remote, version, 6000, ttl=3)
    if rule == "auto":
        wait_for(lambda: received(sender, guest, group, port), what="the port to be found")
    pieces = [bytes((i & 255, i >> 8)) * (1 + i % 600) for i in range(1000)]
    expected = hashlib.sha256(b"".join(pieces)).hexdigest()
    digest = hashlib.sha256()

    def play() -> None:
        for i, piece in enumerate(pieces):
            sender.send(piece, group, port)
            if not i % 20:
                time.sleep(0.005)

    thread = threading.Thread(target=play)
    thread.start()
    for _ in pieces:
        data, _, source_port, _ = guest.get()
        digest.update(data)
        assert source_port == 6000
    thread.join()
    assert digest.hexdigest() == expected
    guest.join(group, leave=True)
    wait_joined(host, group, left=True)
    sender.send(b"too late", group, port)
    assert guest.hears_nothing()


def received(sender: Station, guest: Station, group: str, port: int) -> bool:
    """Whether a datagram arrives; others that were under way are taken, too."""
    sender.send(b"?", group, port)
    try:
        guest.get(0.2)
        while guest.get(0.2):
            pass
    except TimeoutError:
        return bool(guest)
    return False


def test_one_source_of_a_group(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int
) -> None:
    """IGMPv3 and MLDv2: only the source that was asked for is heard."""
    group = {4: "232.1.2.3", 6: "ff35::8000:1234"}[version]
    pasta = start_pasta("-u", "5004")
    guest = guest_of(pasta, version, 5004).join(group, net.REMOTE[version])
    wait_joined(host, group)
    for address in (net.GATEWAY[version], net.REMOTE[version]):
        sender = Station(remote, version)
        sender.sock.bind((address, 0))
        sender.send(address.encode(), group, 5004)
    data, source, *_ = guest.get()
    assert (data.decode(), source) == (net.REMOTE[version], net.REMOTE[version])
    assert guest.hears_nothing()


def test_port_that_the_guest_sends_to(
    start_pasta: StartPasta, remote: Netns, host: Netns, version: int
) -> None:
    """A group without a port of its own, and no rule: the first datagram tells."""
    pasta = start_pasta()
    group = STREAM[version]
    other = Station(remote, version, 7777, ttl=3).join(group)
    guest = guest_of(pasta, version, 7777, ttl=3).join(group)
    wait_for(lambda: spoken(guest, other, group), what="a datagram to the group")
    wait_joined(host, group)
    other.send(b"hello to you", group, 7777)
    wait_for(lambda: guest.get()[0] == b"hello to you", what="an answer to the group")


def spoken(guest: Station, other: Station, group: str) -> bool:
    guest.send(b"hello", group, 7777)
    return other.get()[0] == b"hello"


#: Ask every second, for answers within one, and forget after four.
HURRY = """
from passt.userspace.wire import membership
membership.QUERY_INTERVAL = membership.RESPONSE_TIME = 1
from passt.userspace.multicast import translator
translator.LIFETIME = 4
"""


def test_members_that_are_asked_answer(
    program: Program, host: Netns, user: User, folder: str
) -> None:
    """The guest's kernel takes our queries for those of a router, and confirms what it joined."""
    path = os.path.join(folder, "hurry")
    os.makedirs(path)
    with open(os.path.join(path, "sitecustomize.py"), "w") as file:
        file.write(HURRY)
    hurried = Program(["env", f"PYTHONPATH={path}", *program.argv])
    pasta = Pasta(hurried, host, user, "-u", "5004")
    groups = [STREAM[4], STREAM[6]]
    guests = [guest_of(pasta, v, 5004).join(group) for v, group in zip((4, 6), groups, strict=True)]
    for group in groups:
        wait_joined(host, group)
    time.sleep(6)
    assert all(joined(host, group) for group in groups)
    # Nobody answers any more, as if the guest had been reset.
    pasta.ns_as_root.ip("link set dev eth0 down\n")
    for group in groups:
        wait_joined(host, group, left=True)
    for guest in guests:
        guest.sock.close()
    pasta.close()


def test_off(start_pasta: StartPasta, remote: Netns, host: Netns, version: int) -> None:
    """With --no-multicast nothing leaves, and nothing is joined."""
    pasta = start_pasta("--no-multicast")
    group = STREAM[version]
    other = Station(remote, version, 7777).join(group)
    guest = guest_of(pasta, version, 7777, ttl=3).join(group)
    guest.send(b"hello", group, 7777)
    assert other.hears_nothing()
    assert not joined(host, group)
    # Everything else is as it was.
    with remote.udp(net.REMOTE[version], 7778) as server:
        guest.send(b"still there?", net.REMOTE[version], 7778)
        assert server.recvfrom(100)[0] == b"still there?"
