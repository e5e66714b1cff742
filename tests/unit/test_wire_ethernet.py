"""Ethernet framing, MAC addresses in text, drop reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from passt.userspace.wire import drops, ethernet

MAC_A = bytes.fromhex("9a559a559a55")
MAC_B = bytes.fromhex("020304050607")


def test_parse_what_scapy_builds() -> None:
    data = b"??" + bytes(Ether(dst="9a:55:9a:55:9a:55", src="02:03:04:05:06:07", type=0x86DD))
    assert ethernet.parse(data, 2, len(data)) == (ethernet.ETH_P_IPV6, MAC_B, MAC_A)


def test_too_short() -> None:
    data = bytes(20)
    for length in range(14):
        assert ethernet.parse(data, 3, 3 + length)[0] == -drops.FRAME_SHORT
    assert ethernet.parse(data, 3, 17)[0] == 0


@pytest.mark.parametrize("length", [0, 1, 45, 46, 47, 1500])
def test_frames_are_padded_to_60_bytes(length: int) -> None:
    half = length // 2
    frame = ethernet.frame(MAC_A, MAC_B, 0x0800, b"x" * half, b"x" * (length - half))
    assert len(frame) == max(60, 14 + length)
    parsed = Ether(frame)
    assert (parsed.dst, parsed.src, parsed.type) == (
        "9a:55:9a:55:9a:55",
        "02:03:04:05:06:07",
        0x0800,
    )
    assert frame[14:] == (b"x" * length).ljust(46, b"\0")


@given(st.binary(min_size=6, max_size=6))
def test_mac_text_round_trip(mac: bytes) -> None:
    text = ethernet.format_mac(mac)
    assert ethernet.parse_mac(text) == ethernet.parse_mac(text.upper()) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9a:55:9a:55:9a",
        "9a:55:9a:55:9a:55:9a",
        "9a:55:9a:55:9a:5",
        "9a:55:9a:55:9a:555",
        "9a-55-9a-55-9a-55",
        "9a:55:9a:55:9a:5g",
        "9a:55:9a:55:9a: 5",
        "9a:55:9a:55:9a:+5",
        " 9a:55:9a:55:9a:55",
        "9a:55:9a:55:9a:55\n",
        "9a:55:9a:55:9a:\uff15\uff15",
    ],
)
def test_bad_macs(text: str) -> None:
    with pytest.raises(ValueError, match="Invalid MAC address: "):
        ethernet.parse_mac(text)


@given(st.text(max_size=20))
def test_any_text_is_a_mac_or_refused(text: str) -> None:
    try:
        mac = ethernet.parse_mac(text)
    except ValueError:
        return
    assert ethernet.format_mac(mac) == text.lower()


def test_drop_reasons_are_numbered_and_named() -> None:
    reasons = [
        value
        for name, value in vars(drops).items()
        if name.isupper() and name != "NAMES" and isinstance(value, int)
    ]
    assert sorted(reasons) == list(range(1, len(drops.NAMES)))
    assert len(set(drops.NAMES)) == len(drops.NAMES)
    assert len(drops.counts) == len(drops.NAMES)


def test_drops_are_counted_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "counts", [0] * len(drops.NAMES))
    assert drops.dump() == ""
    for _ in range(3):
        drops.bump(drops.IP4_FRAGMENT)
    drops.bump(drops.UDP_SHORT)
    assert [line.split(None, 1) for line in drops.dump().splitlines()] == [
        ["3", "IPv4 fragment"],
        ["1", "UDP header truncated"],
    ]
