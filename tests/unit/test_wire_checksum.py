"""The Internet checksum against scapy's, at every size class, parity and alignment."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.utils import checksum as scapy_checksum

from passt.userspace.wire.checksum import checksum, complete, fold, pseudo_sum, raw_sum

RANDOM = random.Random(1071)


def word_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("alignment", range(8))
def test_short_lengths_at_every_alignment(alignment: int) -> None:
    space = memoryview(bytearray(RANDOM.randbytes(96)))
    for length in range(71):
        view = space[alignment : alignment + length]
        assert checksum(view) == scapy_checksum(bytes(view)), length
        assert raw_sum(view) == word_sum(bytes(view)), length


@pytest.mark.parametrize(
    "length",
    [575, 1460, 2047, 2048, 2049, 2050, 8191, 8192, 8193, 8194, 16385, 65535, 65589, 200001],
)
def test_long_lengths(length: int) -> None:
    data = RANDOM.randbytes(length)
    assert raw_sum(data) == word_sum(data)
    # The largest words make the largest carries.
    full = b"\xff" * (length - 2) + b"\x12\x34"[: 1 + length % 2]
    assert raw_sum(full) == word_sum(full)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 2048, 2050, 65536])
def test_both_zeroes(length: int) -> None:
    assert raw_sum(bytes(length)) == 0
    assert checksum(bytes(length)) == 0xFFFF
    assert raw_sum(b"\xff" * (length & ~1)) == (0xFFFF if length > 1 else 0)
    assert checksum(b"\xff" * 2 * length) == 0


@given(st.binary(max_size=5000))
def test_any_content(data: bytes) -> None:
    assert raw_sum(data) == word_sum(data)
    assert raw_sum(bytearray(data)) == raw_sum(memoryview(data)) == raw_sum(data)


@given(st.integers(min_value=0, max_value=1 << 200))
def test_fold_keeps_the_residue(total: int) -> None:
    folded = fold(total)
    assert 0 <= folded <= 0xFFFF
    assert folded % 65535 == total % 65535
    assert (folded == 0) == (total == 0)


@given(st.binary(max_size=100).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=99))
def test_sums_of_parts_add_up(first: bytes, second: bytes) -> None:
    assert fold(raw_sum(first) + raw_sum(second)) == raw_sum(first + second)
    assert checksum(second, raw_sum(first)) == checksum(first + second)


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.binary())
def test_pseudo_header_of_ipv4(src: bytes, dst: bytes, payload: bytes) -> None:
    header = IP(src=".".join(map(str, src)), dst=".".join(map(str, dst)), proto=17, ihl=5)
    ours = checksum(payload, pseudo_sum(src, dst, 17, len(payload)))
    assert ours == in4_chksum(17, header, payload)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary())
def test_pseudo_header_of_ipv6(src: bytes, dst: bytes, payload: bytes) -> None:
    header = IPv6(bytes(IPv6())[:8] + src + dst)
    ours = checksum(payload, pseudo_sum(src, dst, 17, len(payload)))
    assert ours == in6_chksum(17, header, payload)


@pytest.mark.parametrize("length", range(20))
def test_complete_a_partial_checksum(length: int) -> None:
    payload = RANDOM.randbytes(length)
    expected = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=7, dport=9) / payload)
    pseudo = pseudo_sum(b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02", 17, 8 + length)
    frame = bytearray(expected)
    frame[26:28] = fold(pseudo).to_bytes(2, "big")
    complete(memoryview(frame), 20, 6)
    assert frame == expected


def test_complete_writes_the_other_zero() -> None:
    frame = bytearray(b"\xff\xff\x00\x00")
    complete(memoryview(frame), 0, 2)
    assert frame == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(("start", "offset"), [(0, 7), (7, 0), (8, 0), (65535, 65535), (-8, 2)])
def test_complete_leaves_fields_outside_the_frame_alone(start: int, offset: int) -> None:
    frame = bytearray(b"\1" * 8)
    complete(memoryview(frame), start, offset)
    assert frame == b"\1" * 8
