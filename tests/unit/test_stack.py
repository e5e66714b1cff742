"""The layer-2 input: who gets which frame, and what nobody gets."""

from __future__ import annotations

import struct

import pytest

from passt.userspace.config.model import Config
from passt.userspace.wire import drops
from passt.userspace.wire.ethernet import HEADER
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, OUR_MAC, ip_frame
from tests.unit.tcp_kit import ACK, PSH, Guest, Host, outbound, receive


def count(reason: int) -> int:
    """Drops for ``reason`` so far."""
    return drops.counts[reason]


@pytest.mark.parametrize("padding", [0, 1, 50])
@pytest.mark.parametrize("options", [b"", b"\1\1\1\1"])
def test_both_ways_into_a_flow(padding: int, options: bytes) -> None:
    """Plain headers take the short way, IP options the long one; padding is no payload."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        frame = guest.frame(ACK | PSH, b"hello")
        frame = ip_frame(GUEST4, GATEWAY4, 6, frame[34:], options=options)
        host.feed(frame + bytes(padding))
        assert receive(peer, 5) == b"hello"


def test_extension_headers() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host, version=6)
        frame = bytearray(guest.frame(ACK | PSH, b"hello"))
        header = bytes((6, 0, 1, 4, 0, 0, 0, 0))
        frame[18:21] = struct.pack("!HB", len(frame) - 54 + 8, 0)
        host.feed(bytes(frame[:54]) + header + bytes(frame[54:]))
        assert receive(peer, 5) == b"hello"


@pytest.mark.parametrize("version", [4, 6])
def test_lengths_that_do_not_fit(version: int) -> None:
    """A total length beyond the frame, or short of the headers: nothing gets to the flow."""
    with Host() as host:
        guest, _, flow = outbound(host, version=version)
        frame = bytearray(guest.frame(ACK | PSH, b"hello"))
        nxt = flow.rcv_nxt
        at = 16 if version == 4 else 18
        right = int.from_bytes(frame[at : at + 2], "big")
        for wrong in (0, 19, 39 if version == 4 else 10, right + 1, 65535):
            frame[at : at + 2] = wrong.to_bytes(2, "big")
            host.feed(bytes(frame))
        assert flow.rcv_nxt == nxt


@pytest.mark.parametrize("fragment", [0x2000, 0x0001, 0x3FFF])
def test_fragments_of_a_flow(fragment: int) -> None:
    with Host() as host:
        guest, _, flow = outbound(host)
        frame = bytearray(guest.frame(ACK | PSH, b"hello"))
        frame[20:22] = fragment.to_bytes(2, "big")
        before, nxt = count(drops.IP4_FRAGMENT), flow.rcv_nxt
        host.feed(bytes(frame))
        assert (count(drops.IP4_FRAGMENT), flow.rcv_nxt) == (before + 1, nxt)


class Groups:
    """Takes reports."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def igmp(self, buf: memoryview, l4: int, end: int) -> None:
        self.taken.append(bytes(buf[l4:end]))

    def mld(self, buf: memoryview, ip: int, l4: int, end: int) -> bool:
        assert buf[ip] >> 4 == 6
        self.taken.append(bytes(buf[l4:end]))
        return buf[l4] == 131

    def renew(self) -> None:
        """Nothing depends on the configuration."""


REPORT4 = bytes.fromhex("1600e1efe8010203")
REPORT6 = bytes((131, *range(1, 24)))


@pytest.mark.parametrize("multicast", [False, True])
def test_reports_of_group_membership(multicast: bool) -> None:
    """IGMP behind IP options, MLD behind extension headers; dropped and counted without use."""
    with Host() as host:
        groups = Groups()
        host.stack._groups = groups if multicast else None
        host.feed(ip_frame(GUEST4, bytes((239, 1, 2, 3)), 2, REPORT4, options=b"\x94\4\0\0"))
        assert groups.taken == [REPORT4] * multicast
        assert count(drops.IP4_PROTOCOL) > 0
        before = count(drops.IP4_PROTOCOL), count(drops.PROTOCOL_DISABLED)
        host.feed(ip_frame(GUEST4, bytes((239, 1, 2, 3)), 2, REPORT4))
        host.feed(ip_frame(GUEST4, bytes((239, 1, 2, 3)), 3, REPORT4))
        alert = bytes((58, 0, 5, 2, 0, 0, 1, 0))
        host.feed(ip_frame(GUEST6, b"\xff\5" + bytes(14), 0, alert + REPORT6))
        # Not MLD: an echo request, for which there is no translator here.
        host.feed(ip_frame(GUEST6, GATEWAY6, 58, bytes((128, *range(1, 24)))))
        after = count(drops.IP4_PROTOCOL), count(drops.PROTOCOL_DISABLED)
        assert (after[0] - before[0], after[1] - before[1]) == ((1, 1) if multicast else (2, 2))
        assert groups.taken == [REPORT4, REPORT4, REPORT6, bytes((128, *range(1, 24)))] * multicast


def test_short_frames() -> None:
    with Host() as host:
        before = count(drops.FRAME_SHORT)
        for size in range(14):
            host.feed(bytes(size))
        assert count(drops.FRAME_SHORT) == before + 14
        for ethertype in (0x0800, 0x86DD, 0x0806, 0x1234):
            head = HEADER.pack(OUR_MAC, GUEST_MAC, ethertype)
            for size in range(70):
                host.feed(head + bytes(size))
        assert host.table.count == 0


def test_unknown_ethertype() -> None:
    with Host() as host:
        before = count(drops.ETHERTYPE)
        host.feed(HEADER.pack(OUR_MAC, GUEST_MAC, 0x88CC) + bytes(60))
        assert count(drops.ETHERTYPE) == before + 1


@pytest.mark.parametrize("version", [4, 6])
def test_disabled_version(version: int) -> None:
    def without(config: Config) -> None:
        (config.v4 if version == 4 else config.v6).enabled = False

    with Host(tweak=without) as host:
        before = count(drops.FAMILY_DISABLED)
        host.feed(Guest(host, 80, version=version).frame(ACK))
        assert count(drops.FAMILY_DISABLED) == before + 1
        if version == 4:
            host.feed(HEADER.pack(OUR_MAC, GUEST_MAC, 0x0806) + bytes(60))
            assert count(drops.FAMILY_DISABLED) == before + 2
        assert host.link.sent == []


def test_arp_is_answered() -> None:
    with Host() as host:
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + GUEST4 + bytes(6)
        host.feed(HEADER.pack(b"\xff" * 6, GUEST_MAC, 0x0806) + request + GATEWAY4)
        ((_, reply),) = host.link.sent
        assert reply[:14] == HEADER.pack(GUEST_MAC, OUR_MAC, 0x0806)
        assert reply[22:32] == OUR_MAC + GATEWAY4


@pytest.mark.parametrize("size", [14, 60])
def test_link_layer_address_is_learned(size: int) -> None:
    with Host() as host:
        mac = bytes.fromhex("020000000042")
        host.feed(HEADER.pack(OUR_MAC, mac, 0x88CC) + bytes(size - 14))
        assert host.link.guest_mac == mac


def test_announcement() -> None:
    """Requests for the guest's address, of both versions."""
    with Host() as host:
        host.stack.announce()
        assert {frame[12:14] for _, frame in host.link.sent} == {b"\x08\x06", b"\x86\xdd"}


@pytest.mark.parametrize("mac", ["000000000000", "01005e000001", "ffffffffffff", OUR_MAC.hex()])
def test_addresses_that_no_station_has_are_not_learned(mac: str) -> None:
    with Host() as host:
        host.feed(HEADER.pack(OUR_MAC, bytes.fromhex(mac), 0x88CC) + bytes(46))
        assert host.link.guest_mac == GUEST_MAC


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        (17, drops.PROTOCOL_DISABLED),
        (1, drops.PROTOCOL_DISABLED),
        (132, drops.IP4_PROTOCOL),
    ],
)
def test_protocols_without_a_translator(protocol: int, reason: int) -> None:
    with Host() as host:
        before = count(reason)
        host.feed(ip_frame(GUEST4, GATEWAY4, protocol, bytes(20)))
        assert host.link.sent == []
        assert count(reason) == before + 1


@pytest.mark.parametrize(
    ("version", "protocol", "reason"),
    [
        (4, 6, drops.TCP_SHORT),
        (4, 17, drops.UDP_SHORT),
        (4, 1, drops.ICMP_SHORT),
        (6, 6, drops.TCP_SHORT),
        (6, 17, drops.UDP_SHORT),
        (6, 58, drops.ICMP_SHORT),
    ],
)
def test_headers_cut_short_are_counted_as_what_they_are(
    version: int, protocol: int, reason: int
) -> None:
    source, target = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
    with Host() as host:
        for size in range(8):
            before = count(reason)
            host.feed(ip_frame(source, target, protocol, b"\x85" * size))
            assert count(reason) == before + 1


def test_our_own_address_is_not_observed() -> None:
    """Frames of ours that come back from a bridge do not move the guest."""
    with Host() as host:
        host.feed(ip_frame(GATEWAY4, GUEST4, 17, bytes(20)))
        assert host.nat.observed4 == GUEST4
