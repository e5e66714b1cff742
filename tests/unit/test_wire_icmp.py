"""ICMP and ICMPv6: echo messages, and errors that quote a datagram, with exact lengths."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.wire import drops, icmp
from passt.userspace.wire.checksum import checksum, fold, pseudo_sum, raw_sum
from passt.userspace.wire.icmp_error import (
    MAX_QUOTE6,
    syn_error4,
    syn_error6,
    udp_error4,
    udp_error6,
)

GUEST_MAC = b"\2\0\0\0\0\1"
OUR_MAC = bytes.fromhex("9a559a559a55")
GUEST4, PEER4, ROUTER4 = (bytes((192, 0, 2, last)) for last in (15, 99, 1))
GUEST6, PEER6, ROUTER6 = (
    socket.inet_pton(socket.AF_INET6, text)
    for text in ("2001:db8::15", "2001:db8:9::99", "fe80::1")
)


def assert_checksums(frame: bytes) -> None:
    """The outer checksums are those that scapy computes for the same content."""
    packet = Ether(frame)
    if IP in packet:
        rest = packet[IP].original[: packet[IP].len]
        assert checksum(rest[:20]) == 0
        assert checksum(rest[20:]) == 0
    else:
        claimed = packet[IPv6].payload.cksum
        layer: Packet = packet[IPv6].copy()
        del layer.payload.cksum
        assert IPv6(bytes(layer)).payload.cksum == claimed


def error4(kind: int, code: int, mtu: int = 0, payload: bytes = b"query") -> bytes:
    """The frame of an ICMP error from the router."""
    guest, peer = (GUEST4, 1000), (PEER4, 53)
    return udp_error4(GUEST_MAC, OUR_MAC, ROUTER4, guest, peer, kind, code, mtu, payload)


def error6(kind: int, code: int, mtu: int = 0, payload: bytes = b"query") -> bytes:
    """The frame of an ICMPv6 error from the router."""
    guest, peer = (GUEST6, 1000), (PEER6, 53)
    return udp_error6(GUEST_MAC, OUR_MAC, ROUTER6, guest, peer, kind, code, mtu, payload, 0x77)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), st.integers(0, 65535))
def test_parse_what_scapy_builds(kind: int, code: int, identifier: int, sequence: int) -> None:
    raw = b"?" + icmp.ECHO_HEADER.pack(kind, code, 0x1234, identifier, sequence)
    assert icmp.parse(raw, 1, 9) == (kind, code, identifier, sequence)
    echo = bytes(ICMP(type=8, code=0, id=identifier, seq=sequence))
    assert icmp.parse(echo, 0, len(echo)) == (icmp.ECHO_REQUEST, 0, identifier, sequence)
    echo = bytes(ICMPv6EchoRequest(id=identifier, seq=sequence, cksum=1))
    assert icmp.parse(echo, 0, len(echo)) == (icmp.ECHO_REQUEST6, 0, identifier, sequence)


def test_truncation() -> None:
    for length in range(8):
        assert icmp.parse(bytes(8), 0, length)[0] == -drops.ICMP_SHORT
    assert icmp.parse(bytes(8), 0, 8) == (0, 0, 0, 0)


@pytest.mark.parametrize("length", [*range(71), 1472, 65507])
def test_echo_reply_over_ipv4(length: int) -> None:
    data = (b"0123456789abcdef" * 4096)[:length]
    frame = icmp.echo_reply(GUEST_MAC, OUR_MAC, PEER4, GUEST4, 0, 0xFFFF, data)
    assert len(frame) == max(60, 14 + 28 + length)
    assert_checksums(frame)
    packet = Ether(frame)
    assert (packet.dst, packet.src) == ("02:00:00:00:00:01", "9a:55:9a:55:9a:55")
    header = packet[IP]
    assert (header.src, header.dst, header.ttl, header.len) == (
        "192.0.2.99",
        "192.0.2.15",
        255,
        28 + length,
    )
    assert (header.tos, header.id, str(header.flags)) == (0, 0, "DF")
    message = packet[ICMP]
    assert (message.type, message.code, message.id, message.seq) == (0, 0, 0, 0xFFFF)
    assert bytes(frame[42 : 42 + length]) == data


@pytest.mark.parametrize("length", [*range(71), 1472, 65527])
def test_echo_reply_over_ipv6(length: int) -> None:
    data = (b"0123456789abcdef" * 4096)[:length]
    frame = icmp.echo_reply(GUEST_MAC, OUR_MAC, PEER6, GUEST6, 7, 0, data)
    assert len(frame) == 14 + 48 + length
    assert_checksums(frame)
    packet = Ether(frame)
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (
        "2001:db8:9::99",
        "2001:db8::15",
        255,
    )
    message = packet[ICMPv6EchoReply]
    assert (message.code, message.id, message.seq, message.data) == (0, 7, 0, data)


@pytest.mark.parametrize("known", range(13))
def test_quote_of_ipv4(known: int) -> None:
    quoted = min(known, 8)
    frame = error4(3, 3, payload=b"queryqueryquery"[:known])
    assert_checksums(frame)
    packet = Ether(frame)
    assert len(frame) == 14 + 20 + 8 + 20 + 8 + quoted
    assert packet[IP].len == len(frame) - 14
    assert (packet[IP].src, packet[IP].dst, packet[IP].ttl) == ("192.0.2.1", "192.0.2.15", 255)
    inner = packet[IPerror]
    assert (inner.src, inner.dst) == ("192.0.2.15", "192.0.2.99")
    assert (inner.len, inner.id, str(inner.flags), inner.ttl) == (28 + quoted, 0, "DF", 255)
    assert checksum(frame[42:62]) == 0
    datagram = packet[UDPerror]
    assert (datagram.sport, datagram.dport) == (1000, 53)
    assert (datagram.len, datagram.chksum) == (8 + quoted, 0)
    assert frame[70:] == b"queryqueryquery"[:quoted]


@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        *((3, code, 0) for code in (0, 1, 2, 3, 5, 9, 10, 13, 15)),
        (3, 4, 1400),
        (11, 0, 0),
        (12, 0, 0),
        (12, 1, 0),
    ],
)
def test_type_code_and_second_word_of_ipv4(kind: int, code: int, word: int) -> None:
    frame = error4(kind, code, mtu=1400)
    assert (frame[34], frame[35]) == (kind, code)
    assert int.from_bytes(frame[38:42], "big") == word
    assert_checksums(frame)


@pytest.mark.parametrize("known", [0, 1, 5, 8, 9, 70, 1183, 1184, 1185, 1232, 60000])
def test_quote_of_ipv6(known: int) -> None:
    payload = (b"0123456789abcde" * 4001)[:known]
    quoted = min(known, 1184)
    frame = error6(1, 4, payload=payload)
    assert_checksums(frame)
    packet = Ether(frame)
    assert len(frame) == 14 + 40 + 8 + 40 + 8 + quoted <= 14 + 1280
    assert packet[IPv6].plen == len(frame) - 54
    assert (packet[IPv6].src, packet[IPv6].dst) == ("fe80::1", "2001:db8::15")
    assert (packet[IPv6].hlim, packet[IPv6].fl) == (255, 0)
    inner = packet[IPerror6]
    assert (inner.src, inner.dst) == ("2001:db8::15", "2001:db8:9::99")
    assert (inner.plen, inner.hlim, inner.fl) == (8 + quoted, 255, 0x77)
    datagram = packet[UDPerror]
    assert (datagram.sport, datagram.dport, datagram.len) == (1000, 53, 8 + quoted)
    pseudo = pseudo_sum(GUEST6, PEER6, 17, 8 + quoted)
    assert fold(raw_sum(frame[102:]) + pseudo) == 0xFFFF
    assert frame[110:] == payload[:quoted]


def test_largest_quote_of_ipv6() -> None:
    assert MAX_QUOTE6 == 1184


@pytest.mark.parametrize(
    ("layer", "kind", "code", "word"),
    [
        *((ICMPv6DestUnreach, 1, code, 0) for code in range(8)),
        (ICMPv6PacketTooBig, 2, 0, 1400),
        (ICMPv6TimeExceeded, 3, 0, 0),
        (ICMPv6TimeExceeded, 3, 1, 0),
        (ICMPv6ParamProblem, 4, 0, 0),
        (ICMPv6ParamProblem, 4, 2, 0),
        (ICMPv6ParamProblem, 4, 1, 0),
    ],
)
def test_type_code_and_second_word_of_ipv6(
    layer: type[Packet], kind: int, code: int, word: int
) -> None:
    frame = error6(kind, code, mtu=1400)
    assert Ether(frame).haslayer(layer)
    assert (frame[54], frame[55]) == (kind, code)
    assert int.from_bytes(frame[58:62], "big") == word
    assert_checksums(frame)


def test_payload_may_be_a_view() -> None:
    assert error4(3, 3, payload=memoryview(b"query")) == error4(3, 3)  # type: ignore[arg-type]
    assert error6(1, 4, payload=memoryview(b"query")) == error6(1, 4)  # type: ignore[arg-type]


def test_syn_quoted_in_ipv4() -> None:
    frame = syn_error4(GUEST_MAC, OUR_MAC, ROUTER4, (GUEST4, 1000), (PEER4, 80), 3, 13, 0xFEDCBA98)
    assert_checksums(frame)
    packet = Ether(frame)
    assert (frame[34], frame[35], len(frame)) == (3, 13, 14 + 20 + 8 + 20 + 20)
    assert packet[IPerror].len == 40
    quoted = packet[TCPerror]
    assert (quoted.sport, quoted.dport, quoted.seq, quoted.ack) == (1000, 80, 0xFEDCBA98, 0)
    assert (quoted.dataofs, str(quoted.flags)) == (5, "S")


def test_syn_quoted_in_ipv6() -> None:
    frame = syn_error6(GUEST_MAC, OUR_MAC, ROUTER6, (GUEST6, 1000), (PEER6, 80), 1, 1, 0xFEDCBA98)
    assert_checksums(frame)
    packet = Ether(frame)
    assert (frame[54], frame[55], len(frame)) == (1, 1, 14 + 40 + 8 + 40 + 20)
    assert packet[IPerror6].plen == 20
    quoted = packet[TCPerror]
    assert (quoted.sport, quoted.dport, quoted.seq, str(quoted.flags)) == (
        1000,
        80,
        0xFEDCBA98,
        "S",
    )
