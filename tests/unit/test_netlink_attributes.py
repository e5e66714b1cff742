"""Attribute lists: exact, bounds-checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink.attributes import FormError, pack, pack_u32, parse, u32, walk
from tests.unit.netlink_bytes import attr

KINDS = st.integers(0, 0x3FFF)


@given(st.lists(st.tuples(KINDS, st.binary(max_size=40))))
def test_packed_lists_are_walked_back(records: list[tuple[int, bytes]]) -> None:
    data = b"".join(pack(kind, payload) for kind, payload in records)
    assert [(k, data[a:b]) for k, a, b in walk(data, 0, len(data))] == records
    assert len(data) % 4 == 0


@given(st.binary(max_size=64))
def test_arbitrary_bytes_never_reach_outside(data: bytes) -> None:
    try:
        found = list(walk(data, 0, len(data)))
    except FormError:
        return
    assert all(0 <= start <= end <= len(data) for _, start, end in found)


def test_flag_bits_of_the_type_are_no_part_of_it() -> None:
    assert parse(attr(0x8000 | 9, b"nest")) == {9: b"nest"}
    assert parse(attr(0x4000 | 7, b"nets")) == {7: b"nets"}


@pytest.mark.parametrize("data", [b"\x03\x00\x01\x00", b"\x09\x00\x01\x00abcd", b"\x00" * 4])
def test_records_must_hold_their_header_and_fit_the_list(data: bytes) -> None:
    with pytest.raises(FormError):
        parse(data)


def test_a_list_may_end_within_its_padding() -> None:
    assert parse(attr(1, b"abcde")[:-3]) == {1: b"abcde"}
    assert parse(attr(1, b"abcd") + b"\0\0") == {1: b"abcd"}


def test_numbers() -> None:
    assert pack_u32(4, 0x01020304) == attr(4, (0x01020304).to_bytes(4, "little"))
    assert u32(b"\x02\0\0\0\xff") == 2
    with pytest.raises(FormError):
        u32(b"\x02\0\0")
