"""ARP and NDP messages: layouts against scapy, truncation at every byte."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import NoPayload

from passt.userspace.wire import arp, icmp, ndp

MAC = bytes.fromhex("9a559a559a55")
ASKER = b"\2\0\0\0\0\1"
OURS = socket.inet_pton(socket.AF_INET6, "fe80::1")
GUEST = socket.inet_pton(socket.AF_INET6, "2001:db8:0:7:1:2:3:4")


def test_parse_what_scapy_builds() -> None:
    raw = b"?" + bytes(ARP(op=1, hwsrc="02:00:00:00:00:01", psrc="192.0.2.15", pdst="192.0.2.1"))
    expected = (1, ASKER, bytes((192, 0, 2, 15)), bytes((192, 0, 2, 1)))
    assert arp.parse(raw, 1, len(raw)) == expected
    padded = raw + bytes(18)
    assert arp.parse(padded, 1, len(padded)) == expected
    for end in range(1, len(raw)):
        assert arp.parse(raw, 1, end) is None


@pytest.mark.parametrize(
    "fields", [{"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}, {"hwlen": 0}]
)
def test_other_hardware_and_protocols(fields: dict[str, int]) -> None:
    raw = bytearray(bytes(ARP()))
    at, size = {"hwtype": (0, 2), "ptype": (2, 2), "hwlen": (4, 1), "plen": (5, 1)}[
        next(iter(fields))
    ]
    assert arp.parse(raw, 0, len(raw)) is not None
    raw[at : at + size] = next(iter(fields.values())).to_bytes(size, "big")
    assert arp.parse(raw, 0, len(raw)) is None


@given(st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    message = arp.parse(data, 0, len(data))
    assert message is None or len(data) >= 28


def test_arp_frame() -> None:
    built = arp.frame(ASKER, MAC, arp.REPLY, MAC, b"\xc0\0\2\1", ASKER, b"\xc0\0\2\x0f")
    assert len(built) == 60
    message = Ether(built)[ARP]
    assert (message.op, message.hwsrc, message.psrc) == (2, "9a:55:9a:55:9a:55", "192.0.2.1")
    assert (message.hwdst, message.pdst) == ("02:00:00:00:00:01", "192.0.2.15")


def test_is_ndp() -> None:
    assert [kind for kind in range(256) if ndp.is_ndp(kind)] == [133, 134, 135, 136]


def sent(message: bytearray) -> IPv6:
    """The message as scapy reads it, after its checksum was verified."""
    frame = icmp.frame6(ASKER, MAC, OURS, GUEST, message)
    packet = Ether(frame)[IPv6]
    claimed = packet.payload.cksum
    del packet.payload.cksum
    assert IPv6(bytes(packet)).payload.cksum == claimed
    return Ether(frame)[IPv6]


def test_neighbour_solicitation() -> None:
    message = sent(ndp.neighbour_solicitation(GUEST))[ICMPv6ND_NS]
    assert message.tgt == "2001:db8:0:7:1:2:3:4"
    assert isinstance(message.payload, NoPayload)


def test_neighbour_advertisement() -> None:
    message = sent(ndp.neighbour_advertisement(GUEST, MAC))[ICMPv6ND_NA]
    assert (message.R, message.S, message.O, message.res) == (1, 1, 1, 0)
    assert message.tgt == "2001:db8:0:7:1:2:3:4"
    option = message[ICMPv6NDOptDstLLAddr]
    assert (option.len, option.lladdr) == (1, "9a:55:9a:55:9a:55")


def test_router_advertisement() -> None:
    mtu = ndp.option(ndp.MTU, ndp.mtu_body(65520))
    message = sent(ndp.router_advertisement(MAC, [GUEST[:8]], mtu))[ICMPv6ND_RA]
    assert (message.chlim, message.M, message.O, message.prf) == (255, 1, 0, 0)
    assert (message.routerlifetime, message.reachabletime, message.retranstimer) == (65535, 0, 0)
    prefix = message[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("2001:db8:0:7::", 64, 1, 1)
    assert (prefix.R, prefix.validlifetime, prefix.preferredlifetime) == (
        0,
        0xFFFFFFFF,
        0xFFFFFFFF,
    )
    assert message[ICMPv6NDOptSrcLLAddr].lladdr == "9a:55:9a:55:9a:55"
    assert message[ICMPv6NDOptMTU].mtu == 65520
    # In this order, and nothing behind.
    assert len(message) == 16 + 32 + 8 + 8
    assert [bytes(message)[at] for at in (16, 48, 56)] == [3, 1, 5]


def test_router_advertisement_that_ends() -> None:
    message = sent(ndp.router_advertisement(MAC, [GUEST[:8]], b"", ending=True))[ICMPv6ND_RA]
    prefix = message[ICMPv6NDOptPrefixInfo]
    lifetimes = (message.routerlifetime, prefix.validlifetime, prefix.preferredlifetime)
    assert lifetimes == (0, 0, 0)


def test_router_advertisement_without_prefix_and_options() -> None:
    message = sent(ndp.router_advertisement(MAC, [], b""))[ICMPv6ND_RA]
    assert len(message) == 16 + 8
    assert message[ICMPv6NDOptSrcLLAddr].lladdr == "9a:55:9a:55:9a:55"
