"""Keys, the index of flows, their headers."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from passt.userspace.udp.base import UdpBase
from passt.userspace.udp.flow import FlowIndex, Pair, UdpFlow, pair, split
from passt.userspace.udp.frames import MAX_PAYLOAD4, Headers
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, OUR_MAC, FakeLink

KEY4 = GUEST4 + GATEWAY4 + b"\x10\x01\x00\x35"
KEY6 = GUEST6 + GATEWAY6 + b"\x10\x01\x00\x35"


@pytest.fixture(scope="module")
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        yield made


def new_flow(sock: socket.socket, key: bytes) -> UdpFlow:
    return UdpFlow(cast(UdpBase, None), sock, key, key, from_guest=True)


@pytest.mark.parametrize(("key", "length"), [(KEY4, 12), (KEY6, 36)])
def test_keys(key: bytes, length: int) -> None:
    assert len(key) == length
    size = (length - 4) // 2
    assert split(key) == (key[:size], 0x1001, key[size : 2 * size], 53)


def test_pairs_in_messages() -> None:
    assert pair(KEY4) == str(Pair(KEY4)) == "[192.0.2.10]:4097 -> [192.0.2.1]:53"
    assert pair(KEY6) == "[2001:db8:0:1::10]:4097 -> [2001:db8:0:1::1]:53"


def test_index_finds_the_earliest_whatever_is_removed(sock: socket.socket) -> None:
    """Against the obvious list, with random additions and removals."""
    rng = random.Random(1)
    keys = [bytes([i]) * 12 for i in range(3)]
    index = FlowIndex()
    model: dict[bytes, list[UdpFlow]] = {key: [] for key in keys}
    for _ in range(3000):
        key = rng.choice(keys)
        if rng.random() < 0.52 or not model[key]:
            flow = new_flow(sock, key)
            index.add(flow)
            model[key].append(flow)
        else:
            flow = model[key].pop(rng.randrange(len(model[key])))
            index.remove(flow)
            index.remove(flow)
        for key, flows in model.items():
            assert index.first.get(key) is (flows[0] if flows else None)
    for flows in model.values():
        for flow in flows:
            index.remove(flow)
    assert index.first == {}


def headers(key: bytes) -> tuple[FakeLink, Headers]:
    link = FakeLink()
    return link, Headers(link, OUR_MAC, key)


@given(payload=st.binary(max_size=200))
@pytest.mark.parametrize("key", [KEY4, KEY6], ids=["ipv4", "ipv6"])
def test_scapy_agrees(key: bytes, payload: bytes) -> None:
    link, made = headers(key)
    head = made.build(len(payload))
    frame = Ether(head[link.headroom :] + payload)
    ip = frame[IP] if len(key) == 12 else frame[IPv6]
    datagram = frame[UDP]
    assert (frame.dst, frame.src) == (link.guest_mac.hex(":"), OUR_MAC.hex(":"))
    assert (datagram.sport, datagram.dport, datagram.len) == (53, 4097, 8 + len(payload))
    assert bytes(datagram.payload) == payload
    if len(key) == 12:
        assert (ip.src, ip.dst, ip.ttl, ip.tos, ip.id) == ("192.0.2.1", "192.0.2.10", 255, 0, 0)
        assert str(ip.flags) == "DF"
        assert ip.len == 28 + len(payload)
        assert datagram.chksum == 0
        good = ip.copy()
        del good.chksum
        assert IP(bytes(good)).chksum == ip.chksum
    else:
        assert (ip.src, ip.dst, ip.hlim) == ("2001:db8:0:1::1", "2001:db8:0:1::10", 255)
        assert (ip.tc, ip.fl, ip.plen) == (0, 0, 8 + len(payload))


@pytest.mark.parametrize("key", [KEY4, KEY6], ids=["ipv4", "ipv6"])
def test_kept_headers_equal_fresh_ones(key: bytes) -> None:
    rng = random.Random(2)
    link, made = headers(key)
    for _ in range(300):
        length = rng.choice((1000, 2000, 2500, MAX_PAYLOAD4))
        segment = rng.choice((0, 0, 500, 999))
        assert made.build(length, segment) == Headers(link, OUR_MAC, key).build(length, segment)
