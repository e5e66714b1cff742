"""UDP towards the guest, frame by frame: headers, odd frames, extension headers, ICMP errors."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Dot1Q

from tests.system.conftest import StartGuest
from tests.system.kit import offload
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.rawguest import ICMP, IP, UDP, Ether, IPv6, Packet, RawGuest

pytestmark = pytest.mark.system

PORT = 7002


@pytest.fixture
def server(remote: Netns, version: int) -> socket.socket:
    """A datagram socket at REMOTE, with room for much."""
    sock = remote.udp(net.REMOTE[version], PORT)
    sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    return sock


def datagram(
    guest: RawGuest, version: int, payload: bytes, *, sport: int = 5000, dport: int = PORT
) -> Packet:
    """Return a datagram from the guest to REMOTE."""
    return guest.ip(version, net.REMOTE[version]) / UDP(sport=sport, dport=dport) / payload


def received(sock: socket.socket, timeout: float = 0.3) -> list[bytes]:
    """Return everything that arrives until nothing has for *timeout* seconds."""
    sock.settimeout(timeout)
    data = []
    try:
        while True:
            data.append(sock.recv(65535))
    except TimeoutError:
        return data


def marker(guest: RawGuest, version: int) -> None:
    """Send a proper datagram, which must get through whatever was sent before."""
    guest.send(datagram(guest, version, b"marker", sport=5999))


# -- towards the guest ---------------------------------------------------------------------------


def test_headers_and_checksums(guest: RawGuest, version: int, server: socket.socket) -> None:
    guest.send(datagram(guest, version, b"?"))
    _, source = server.recvfrom(10)
    for size in range(71):
        server.sendto(bytes([size]) * size, source)
    frames = guest.expect(lambda p: UDP in p, count=71)
    for size, frame in enumerate(frames):
        ip, udp = frame.packet.payload, frame.packet[UDP]
        assert (udp.sport, udp.dport, udp.len) == (PORT, 5000, 8 + size)
        assert bytes(udp.payload)[:size] == bytes([size]) * size
        assert len(frame.raw) == max(60, 14 + (28 if version == 4 else 48) + size)
        assert frame.packet.dst == guest.mac
        if version == 4:
            assert (ip.ttl, ip.tos, ip.id, str(ip.flags), ip.ihl) == (255, 0, 0, "DF", 5)
        else:
            assert (ip.hlim, ip.tc) == (255, 0)
            assert udp.chksum != 0


def test_checksum_that_comes_out_as_zero(ours_only: None, guest: RawGuest, remote: Netns) -> None:
    """RFC 8200, 8.1: a computed 0 is sent as 0xFFFF; the receiver drops a 0."""
    with remote.udp(net.REMOTE[6], PORT) as server:
        guest.send(datagram(guest, 6, b"?"))
        _, source = server.recvfrom(10)
        head = struct.pack("!HHHH", PORT, 5000, 10, 0)
        packet = bytes(IPv6(src=net.REMOTE[6], dst=guest.address[6], nh=17))
        rest = offload.ones_sum(offload.pseudo_header(packet, 17, 10) + head)
        server.sendto(struct.pack("!H", 0xFFFF - rest), source)
        frame = guest.expect(lambda p: UDP in p)[0]
        assert frame.packet[UDP].chksum == 0xFFFF


def test_largest_datagrams_to_the_guest(
    guest: RawGuest, version: int, server: socket.socket
) -> None:
    guest.send(datagram(guest, version, b"?"))
    _, source = server.recvfrom(10)
    size = 65507 if version == 4 else 65527
    server.sendto((bytes(range(251)) * 262)[:size], source)
    frame = guest.expect(lambda p: UDP in p)[0]
    assert len(frame.raw) == 14 + (20 if version == 4 else 40) + 8 + size


def test_alternating_families(guest: RawGuest, remote: Netns) -> None:
    """Nothing of one family's header may be left in the other's."""
    servers = {v: remote.udp(net.REMOTE[v], PORT) for v in (4, 6)}
    sources = {}
    for version, sock in servers.items():
        guest.send(datagram(guest, version, b"?"))
        sources[version] = sock.recvfrom(10)[1]
    for number in range(20):
        version = 4 if number % 2 else 6
        servers[version].sendto(bytes([number]) * (number * 13 % 40), sources[version])
    frames = guest.expect(lambda p: UDP in p, count=20)
    assert sum(IP in frame.packet for frame in frames) == 10


# -- from the guest ------------------------------------------------------------------------------


def test_different_datagrams_of_one_tuple(
    guest: RawGuest, version: int, server: socket.socket
) -> None:
    payloads = [b"one", b"number two", b"3", b""]
    guest.send(*(datagram(guest, version, payload) for payload in payloads))
    assert received(server) == payloads


def test_thousands_of_one_tuple(guest: RawGuest, version: int, server: socket.socket) -> None:
    # Built once and patched: checksums are not looked at.
    head = guest.frame(datagram(guest, version, b"0000"))[:-4]
    guest.send(*(head + b"%04d" % n for n in range(3000)))
    assert received(server, 1.0) == [b"%04d" % n for n in range(3000)]


def test_hundreds_of_tuples(guest: RawGuest, version: int, server: socket.socket) -> None:
    frames = [
        guest.frame(datagram(guest, version, b"%d %d" % (port, n), sport=port))
        for n in range(2)
        for port in range(10000, 10300)
    ]
    guest.send(*frames)
    data = received(server, 1.0)
    expected = {b"%d %d" % (port, n) for n in range(2) for port in range(10000, 10300)}
    assert set(data) == expected
    assert len(data) == len(expected)


def test_two_guest_addresses_with_the_same_ports(
    guest: RawGuest, version: int, server: socket.socket
) -> None:
    other = {4: "198.51.100.77", 6: "2001:db8:1::77"}[version]
    first = datagram(guest, version, b"first")
    second = datagram(guest, version, b"second")
    second.src = other
    guest.send(first, second)
    assert sorted(received(server)) == [b"first", b"second"]


@pytest.mark.parametrize("ports", [(0, PORT), (5000, 0), (0, 0)])
def test_port_0(
    guest: RawGuest, version: int, server: socket.socket, ports: tuple[int, int]
) -> None:
    guest.send(datagram(guest, version, b"bad", sport=ports[0], dport=ports[1]))
    marker(guest, version)
    assert received(server) == [b"marker"]


@pytest.mark.parametrize(
    "source",
    [
        {4: "0.0.0.0", 6: "::"},
        {4: "224.0.0.251", 6: "ff02::fb"},
        {4: "255.255.255.255", 6: "ff0e::1"},
        {4: "127.0.0.1", 6: "::1"},
    ],
    ids=["unspecified", "multicast", "broadcast", "loopback"],
)
def test_impossible_sources(
    guest: RawGuest, version: int, server: socket.socket, source: dict[int, str]
) -> None:
    packet = datagram(guest, version, b"bad")
    packet.src = source[version]
    guest.send(packet)
    marker(guest, version)
    assert received(server) == [b"marker"]


def test_loopback_destination(guest: RawGuest, host: Netns, version: int) -> None:
    with host.udp(net.LOOPBACK[version], PORT) as loopback:
        target = net.LOOPBACK[version]
        guest.send(guest.ip(version, target) / UDP(sport=5000, dport=PORT) / b"bad")
        assert received(loopback) == []


@pytest.mark.parametrize("where", ["source", "target"])
def test_v4_mapped_addresses(
    ours_only: None, start_guest: StartGuest, host: Netns, where: str
) -> None:
    """An IPv6 frame must not become an IPv4 flow, to the host's loopback least of all."""
    guest = start_guest("--no-map-gw")
    with host.udp("127.0.0.1", PORT) as loopback, host.udp("::1", PORT) as loopback6:
        if where == "target":
            packet = IPv6(src=guest.address[6], dst="::ffff:127.0.0.1")
        else:
            packet = IPv6(src="::ffff:198.51.100.2", dst="::ffff:127.0.0.1")
        guest.send(packet / UDP(sport=5000, dport=PORT) / b"bad")
        assert received(loopback) + received(loopback6) == []


def test_lengths(guest: RawGuest, version: int, server: socket.socket) -> None:
    """Padding is not payload; a packet that claims more than there is, or less, is dropped."""
    whole = guest.frame(datagram(guest, version, b"payload"))
    if version == 4:
        guest.send(whole + bytes(25), whole + bytes(200))
        assert received(server) == [b"payload"] * 2
        for total in (0, 19, 27, len(whole), 65535):
            guest.send(whole[:16] + struct.pack("!H", total) + whole[18:])
        empty = datagram(guest, version, b"")
        guest.send(guest.frame(empty) + b"not mine")
        marker(guest, version)
        assert received(server) == [b"", b"marker"]
    else:
        for length in (0, 7, len(whole), 65535):
            guest.send(whole[:18] + struct.pack("!H", length) + whole[20:])
        marker(guest, version)
        assert received(server) == [b"marker"]
    for cut in range(14, len(whole) - 7, 3):
        guest.send(whole[:cut])
    marker(guest, version)
    assert received(server) == [b"marker"]


@pytest.mark.parametrize("first_byte", [0x44, 0x40, 0x4F])
def test_ipv4_header_length(guest: RawGuest, remote: Netns, first_byte: int) -> None:
    with remote.udp(net.REMOTE[4], PORT) as server:
        whole = bytearray(guest.frame(datagram(guest, 4, b"x")))
        whole[14] = first_byte
        guest.send(bytes(whole))
        marker(guest, 4)
        assert received(server) == [b"marker"]


def test_version_must_fit_the_ethertype(
    ours_only: None, guest: RawGuest, version: int, server: socket.socket
) -> None:
    whole = bytearray(guest.frame(datagram(guest, version, b"x")))
    whole[14] = (whole[14] & 0x0F) | (0x60 if version == 4 else 0x40)
    guest.send(bytes(whole))
    marker(guest, version)
    assert received(server) == [b"marker"]


def test_ipv4_options_and_checksums(guest: RawGuest, remote: Netns) -> None:
    """Options are skipped; checksums are for others to check; the UDP length is not looked at."""
    with remote.udp(net.REMOTE[4], PORT) as server:
        raw = bytearray(guest.frame(datagram(guest, 4, b"options")))
        with_options = raw[:14] + bytes([0x46]) + raw[15:34] + b"\x01\x01\x01\x00" + raw[34:]
        struct.pack_into("!H", with_options, 16, len(with_options) - 14)
        wrong = raw[:24] + b"\xba\xd0" + raw[26:40] + b"\xba\xd0" + raw[42:]
        wrong_length = raw[:38] + b"\xff\xff" + raw[40:]
        guest.send(bytes(with_options), bytes(wrong), bytes(wrong_length))
        assert received(server) == [b"options"] * 3


@pytest.mark.parametrize(
    "fields", [{"flags": "MF"}, {"frag": 5}, {"flags": "evil"}], ids=["more", "offset", "reserved"]
)
def test_ipv4_fragments_are_dropped(
    guest: RawGuest, remote: Netns, fields: dict[str, object]
) -> None:
    with remote.udp(net.REMOTE[4], PORT) as server:
        packet = datagram(guest, 4, b"fragment")
        for name, value in fields.items():
            setattr(packet, name, value)
        guest.send(packet)
        marker(guest, 4)
        assert received(server) == [b"marker"]


EXTENSIONS = {
    "hop-by-hop": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
    "destination": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]),
    "routing": lambda: IPv6ExtHdrRouting(addresses=[], segleft=0),
    "both": lambda: (
        IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
    ),
    "whole-fragment": lambda: IPv6ExtHdrFragment(offset=0, m=0, id=1),
}


@pytest.mark.parametrize("kind", list(EXTENSIONS))
def test_ipv6_extension_headers(ours_only: None, guest: RawGuest, remote: Netns, kind: str) -> None:
    with remote.udp(net.REMOTE[6], PORT) as server:
        head = guest.ip(6, net.REMOTE[6]) / EXTENSIONS[kind]()
        guest.send(head / UDP(sport=5000, dport=PORT) / b"behind it")
        data, source = server.recvfrom(100)
        assert (data, source[1]) == (b"behind it", 5000)


@pytest.mark.parametrize("fragment", [(0, 1), (5, 0), (5, 1)])
def test_ipv6_fragments_are_dropped(
    guest: RawGuest, remote: Netns, fragment: tuple[int, int]
) -> None:
    with remote.udp(net.REMOTE[6], PORT) as server:
        head = guest.ip(6, net.REMOTE[6]) / IPv6ExtHdrFragment(
            offset=fragment[0], m=fragment[1], id=1, nh=17
        )
        guest.send(head / UDP(sport=5000, dport=PORT) / bytes(16))
        marker(guest, 6)
        assert received(server) == [b"marker"]


def test_extension_header_chains_are_bounded(guest: RawGuest, remote: Netns) -> None:
    """Chains that run out of the packet, or go on for ever, end nowhere."""
    with remote.udp(net.REMOTE[6], PORT) as server:
        base = bytearray(guest.frame(guest.ip(6, net.REMOTE[6], nh=0) / bytes(64)))
        endless = bytes(base[:54]) + bytes([0, 0] + [0] * 6) * 8
        too_long = bytes(base[:54]) + bytes([17, 255] + [0] * 62)
        esp = bytes(base[:20]) + bytes([50]) + bytes(base[21:])
        none = bytes(base[:20]) + bytes([59]) + bytes(base[21:])
        guest.send(endless, too_long, esp, none)
        marker(guest, 6)
        assert received(server) == [b"marker"]


def test_other_ethernet_frames(guest: RawGuest, version: int, server: socket.socket) -> None:
    packet = datagram(guest, version, b"tagged")
    tagged = Ether(src=guest.mac, dst="9a:55:9a:55:9a:55") / Dot1Q(vlan=5) / packet
    unknown = Ether(src=guest.mac, dst="9a:55:9a:55:9a:55", type=0x88B5) / bytes(50)
    length = Ether(src=guest.mac, dst="01:80:c2:00:00:00", type=38) / bytes(50)
    guest.send(tagged, unknown, length, bytes(14))
    marker(guest, version)
    assert received(server) == [b"marker"]


def test_other_protocols_are_dropped(guest: RawGuest, version: int, server: socket.socket) -> None:
    for protocol in (2, 47, 50, 103, 132, 136, 255):
        field = {"proto": protocol} if version == 4 else {"nh": protocol}
        guest.send(guest.ip(version, net.REMOTE[version], **field) / bytes(40))
    marker(guest, version)
    assert received(server) == [b"marker"]


def test_replies_go_to_the_observed_address(guest: RawGuest, remote: Netns, version: int) -> None:
    """The guest uses another address than assigned: inbound flows follow it."""
    other = {4: "198.51.100.77", 6: "2001:db8:1::77"}[version]
    packet = datagram(guest, version, b"it is me")
    packet.src = other
    with remote.udp(net.REMOTE[version], PORT) as server:
        guest.send(packet)
        assert server.recv(100) == b"it is me"
    with remote.udp(net.REMOTE[version], 6000) as client:
        client.sendto(b"hello", (net.HOST[version], 7001))
        frame = guest.expect(lambda p: UDP in p and p[UDP].dport == 7001)[0]
        assert frame.packet.payload.dst == other


# -- errors --------------------------------------------------------------------------------------


def error_for(guest: RawGuest, version: int, packet: Packet) -> bytes:
    """Send *packet*; return the IP packet with the ICMP error it causes."""
    since = guest.position()
    guest.send(packet)
    layer = ICMP if version == 4 else ICMPv6DestUnreach
    frame = guest.expect(lambda p: layer in p, since=since)[0]
    return frame.raw[14:]


@pytest.mark.parametrize("targets", [net.REMOTE, net.GATEWAY, net.OWN], ids=["remote", "gw", "own"])
@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_port_unreachable(
    guest: RawGuest, version: int, targets: dict[int, str], size: int
) -> None:
    """From the address the guest asked, quoting its datagram as it sent it."""
    target = targets[version]
    payload = bytes(range(size))
    packet = guest.ip(version, target) / UDP(sport=5000, dport=9) / payload
    answer = error_for(guest, version, packet)
    if version == 4:
        ip, quote = IP(answer), answer[28:]
        assert (ip.src, ip.dst, ip.ttl) == (target, guest.address[4], 255)
        assert tuple(answer[20:22]) == (3, 3)
        inner = IP(quote[:20])
        head, data = quote[20:28], quote[28:]
    else:
        ip6, quote = IPv6(answer), answer[48:]
        assert (ip6.src, ip6.dst, ip6.hlim) == (target, guest.address[6], 255)
        assert tuple(answer[40:42]) == (1, 4)
        inner = IPv6(quote[:40])
        head, data = quote[40:48], quote[48:]
    assert (inner.src, inner.dst) == (guest.address[version], target)
    assert struct.unpack("!HH", head[:4]) == (5000, 9)
    quoted = min(size, 8 if version == 4 else 1184)
    assert data[:quoted] == payload[:quoted]


@pytest.mark.parametrize("size", [0, 1, 8, 1000, 1400])
def test_port_unreachable_has_its_exact_length(
    ours_only: None, guest: RawGuest, version: int, size: int
) -> None:
    packet = datagram(guest, version, bytes(size), dport=9)
    answer = error_for(guest, version, packet)
    if version == 4:
        total = struct.unpack_from("!H", answer, 2)[0]
        assert total == 28 + 28 + min(size, 8)
    else:
        total = 40 + struct.unpack_from("!H", answer, 4)[0]
        assert total == 40 + 8 + 48 + min(size, 1184)
        assert total <= 1280


def test_errors_do_not_stop_the_flow(guest: RawGuest, version: int, remote: Netns) -> None:
    error_for(guest, version, datagram(guest, version, b"too early"))
    time.sleep(0.05)
    with remote.udp(net.REMOTE[version], PORT) as server:
        guest.send(datagram(guest, version, b"again"))
        marker(guest, version)
        assert b"again" in received(server)
