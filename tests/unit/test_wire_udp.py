"""UDP headers against scapy, and the checksum that must not be zero."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6

from passt.userspace.wire import drops, udp
from passt.userspace.wire.checksum import fold, pseudo_sum, raw_sum

SRC = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
DST = socket.inet_pton(socket.AF_INET6, "2001:db8::2")
PSEUDO = pseudo_sum(SRC, DST, 17, 0)
U16 = st.integers(0, 0xFFFF)


@given(U16, U16, U16, st.binary(max_size=9))
def test_parse_what_scapy_builds(sport: int, dport: int, length: int, payload: bytes) -> None:
    raw = b"??" + bytes(UDP(sport=sport, dport=dport, len=length, chksum=1) / payload)
    assert udp.parse(raw, 2, len(raw)) == (sport, dport, 10)
    assert raw[10:] == payload


def test_truncation() -> None:
    raw = bytes(UDP(sport=1, dport=2))
    for length in range(8):
        assert udp.parse(raw, 0, length)[0] == -drops.UDP_SHORT
    assert udp.parse(raw, 0, 8) == (1, 2, 8)


@pytest.mark.parametrize("length", [*range(71), 1400, 65527])
def test_header_over_ipv6_is_what_scapy_builds(length: int) -> None:
    payload = bytes(range(256)) * 256
    payload = payload[:length]
    expected = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=7, dport=9) / payload
    assert udp.header(7, 9, payload, PSEUDO) == bytes(expected)[40:48]


def test_header_without_checksum() -> None:
    assert udp.header(1000, 2000, b"abc") == bytes.fromhex("03e8 07d0 000b 0000")


@given(U16, U16, st.binary(max_size=40))
def test_checksum_is_never_zero(sport: int, dport: int, payload: bytes) -> None:
    payload = payload[: len(payload) & ~1]
    length = 8 + len(payload) + 2
    # Two more bytes that bring the sum to 65535.
    rest = raw_sum(payload) + PSEUDO + sport + dport + 2 * length
    payload += (0xFFFF - fold(rest)).to_bytes(2, "big")
    header = udp.header(sport, dport, payload, PSEUDO)
    assert header[6:8] == b"\xff\xff"
    assert fold(raw_sum(header + payload) + PSEUDO + length) == 0xFFFF
