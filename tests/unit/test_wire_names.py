"""Domain names on the wire, read back by scapy and by a plain reader of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import DHCP6OptDNSDomains

from passt.userspace.wire.names import compress_list, encode, encode_list, labels


def read_list(data: bytes) -> list[bytes]:
    """All names in ``data``; pointers must lead backwards (RFC 1035, 4.1.4)."""
    found = []
    at = 0
    while at < len(data):
        parts = []
        end = 0
        while data[at]:
            if data[at] & 0xC0 == 0xC0:
                target = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
                assert target < at
                end = end or at + 2
                at = target
                continue
            assert data[at] < 64
            parts.append(data[at + 1 : at + 1 + data[at]])
            assert len(parts[-1]) == data[at]
            at += 1 + data[at]
        at = end or at + 1
        found.append(b".".join(parts))
    return found


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        (b"example.com", b"\7example\3com\0"),
        (b"example.com.", b"\7example\3com\0"),
        (b"a", b"\1a\0"),
        (b"a" * 63, b"?" + b"a" * 63 + b"\0"),
        (b"", None),
        (b".", None),
        (b"..", None),
        (b"a..b", None),
        (b".a", None),
        (b"a" * 64, None),
    ],
)
def test_encode(name: bytes, wire: bytes | None) -> None:
    assert encode(name) == wire


def test_longest_name() -> None:
    longest = b".".join([b"a" * 63] * 3 + [b"b" * 61])
    wire = encode(longest)
    assert wire is not None and len(wire) == 255
    assert encode(longest + b"b") is None
    assert encode(b"a." * 126 + b"a") is not None
    assert encode(b"a." * 127 + b"a") is None


def test_compression() -> None:
    wire = compress_list([b"example.com", b"foo.example.com", b"com", b"foo.example.com."], 255)
    assert wire == b"\7example\3com\0\3foo\xc0\0\xc0\x08\xc0\x0d"


def test_only_whole_suffixes_are_compressed() -> None:
    wire = compress_list([b"example.com", b"foo.example.co"], 255)
    assert wire == b"\7example\3com\0\3foo\7example\2co\0"


def test_lists_stop_at_whole_names() -> None:
    names = [b"x" * 60 + b".example", b"y" * 60 + b".example", b"z"]
    for limit in range(200):
        for listed, total in ((encode_list, 70 + 70 + 3), (compress_list, 70 + 63 + 3)):
            wire = listed(names, limit)
            assert len(wire) <= limit
            assert read_list(wire) == names[: len(read_list(wire))]
            assert (len(read_list(wire)) == 3) is (limit >= total)


_LABEL = st.text("abcde-", min_size=1, max_size=8).map(str.encode)
_NAMES = st.lists(st.lists(_LABEL, min_size=1, max_size=5).map(b".".join), max_size=6)


@given(_NAMES)
def test_both_forms_read_back(names: list[bytes]) -> None:
    plain = encode_list(names, 2000)
    assert read_list(plain) == names
    compressed = compress_list(names, 2000)
    assert read_list(compressed) == names
    assert len(compressed) <= len(plain)
    decoded = DHCP6OptDNSDomains(b"\0\x18" + len(plain).to_bytes(2, "big") + plain).dnsdomains
    assert [name.rstrip(".").encode() for name in decoded] == names


@given(st.binary(max_size=300))
def test_any_name(name: bytes) -> None:
    wire = encode(name)
    assert (wire is None) is (labels(name) is None)
    assert wire is None or read_list(wire) == [name.removesuffix(b".")]
