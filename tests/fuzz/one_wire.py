"""Codecs against the second decoder: both must see the same in any frame, or both nothing.

Each frame is decoded twice with different bytes around it, so that a codec which looks beyond
its bounds gives itself away.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from passt.userspace.wire import (
    arp,
    checksum,
    drops,
    ethernet,
    icmp,
    ipv4,
    ipv6,
    membership,
    tcp,
    tcp_options,
    udp,
)
from tests.fuzz import frames, oracle
from tests.fuzz.oracle import Incoming

MAX_LEN = 1600
DICTIONARY = frames.DICTIONARY


def one(data: bytes) -> None:
    """Decode the frame ``data``."""
    expected = oracle.incoming(data)
    seen = [decode(junk + data + junk, len(junk), len(junk) + len(data)) for junk in _JUNK]
    assert seen[0] == seen[1], "depends on what is not in the frame"
    assert seen[0] == expected, f"{seen[0]} but {expected}"
    if expected is not None and expected.kind == oracle.TCP:
        end = (expected.l4[12] >> 4) * 4
        check_options(expected.l4[:end], 20, end)
    reports = [reported(junk + data + junk, len(junk), len(junk) + len(data)) for junk in _JUNK]
    assert reports[0] == reports[1], "depends on what is not in the frame"
    assert reports[0] == oracle.membership(data)
    check_options(data, 0, len(data))
    check_sums(data)


_JUNK = bytes(70), b"\xff" * 70


def decode(buf: bytes, off: int, end: int) -> Incoming | None:
    """What our codecs make of a frame, step by step as the stack does."""
    ethertype, source, destination = ethernet.parse(buf, off, end)
    if ethertype < 0:
        return None
    assert (destination, source) == (buf[off : off + 6], buf[off + 6 : off + 12])
    off += ethernet.HEADER_LEN
    if ethertype == ethernet.ETH_P_ARP:
        message = arp.parse(buf, off, end)
        if message is None:
            return None
        _, _, sender, target = message
        return Incoming("arp", sender, target, l4=buf[off : off + 28])
    if ethertype == ethernet.ETH_P_IP:
        kind, at, stop, ttl, src, dst = ipv4.parse(buf, off, end)
    elif ethertype == ethernet.ETH_P_IPV6:
        kind, at, stop, ttl, src, dst = ipv6.parse(buf, off, end)
    else:
        return None
    if kind < 0:
        return None
    assert off < at <= stop <= end
    if stop - at < icmp.HEADER_LEN:
        return None
    l4 = buf[at:stop]
    if kind == oracle.UDP:
        sport, dport, _ = udp.parse(buf, at, stop)
        return Incoming(kind, src, dst, sport, dport, l4, ttl)
    if kind == oracle.TCP:
        sport, dport, seq, ack, flags, _, start = tcp.parse(buf, at, stop)
        if sport < 0:
            return None
        assert at + 20 <= start <= stop
        return Incoming(kind, src, dst, sport, dport, l4, ttl, seq, ack, flags)
    assert icmp.parse(buf, at, stop)[0] == l4[0]
    return Incoming(kind, src, dst, l4=l4, ttl=ttl)


def reported(buf: bytes, off: int, end: int) -> oracle.Membership | None:
    """What our codecs make of a message of IGMP or MLD, ``None`` if it is none."""
    ethertype = ethernet.parse(buf, off, end)[0]
    ip = off + ethernet.HEADER_LEN
    if ethertype == ethernet.ETH_P_IP:
        kind, at, stop, *_ = ipv4.parse(buf, ip, end)
        if kind == -drops.IP4_PROTOCOL and buf[ip + 9] == membership.IPPROTO_IGMP:
            return oracle.Membership(4, membership.parse_igmp(buf, at, stop))
    elif ethertype == ethernet.ETH_P_IPV6:
        kind, at, stop, *_ = ipv6.parse(buf, ip, end)
        if kind == oracle.ICMPV6 and stop - at >= 8 and membership.is_mld(buf[at]):
            return oracle.Membership(16, membership.parse_mld(buf, ip, at, stop))
    return None


def check_options(data: bytes, at: int, end: int) -> None:
    """TCP options, compared with a list of what is there."""
    found = tcp_options.parse_options(data, at, end)
    mss = scale = -1
    permitted, stamps = False, None
    sack: tuple[tuple[int, int], ...] = ()
    for kind, body in options(data[at:end]):
        if (kind, len(body)) == (2, 2):
            mss = int.from_bytes(body, "big")
        elif (kind, len(body)) == (3, 1):
            scale = body[0]
        elif (kind, len(body)) == (4, 0):
            permitted = True
        elif kind == 5 and body and not len(body) % 8:
            edges = [int.from_bytes(body[i : i + 4], "big") for i in range(0, len(body), 4)]
            sack = tuple(zip(edges[::2], edges[1::2], strict=True))
        elif (kind, len(body)) == (8, 8):
            stamps = (oracle.number(body, 0, 4), oracle.number(body, 4, 4))
    assert (found.mss, found.window_scale, found.sack_permitted) == (mss, scale, permitted)
    assert (found.sack, found.timestamps) == (sack, stamps)


def options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each option, up to the end or the first that does not fit."""
    while data and data[0]:
        if data[0] == 1:
            data = data[1:]
            continue
        if len(data) < 2 or data[1] < 2 or data[1] > len(data):
            return
        yield data[0], data[2 : data[1]]
        data = data[data[1] :]


def check_sums(data: bytes) -> None:
    """Checksums, whole and in parts."""
    total = oracle.ones_sum(data)
    assert checksum.raw_sum(data) == total
    assert checksum.raw_sum(memoryview(b"?" + data)[1:]) == total
    half = len(data) // 4 * 2
    parts = checksum.raw_sum(data[:half]) + checksum.raw_sum(data[half:])
    assert checksum.fold(parts) == total
    if len(data) >= 20:
        # As if the frame were one to be completed, at a place that it names itself.
        start, offset = data[0] % len(data), data[1]
        frame = bytearray(data)
        checksum.complete(memoryview(frame), start, offset)
        field = start + offset
        if field + 2 > len(data):
            assert frame == data
        else:
            assert frame[:field] + frame[field + 2 :] == data[:field] + data[field + 2 :]


def seeds() -> Iterator[tuple[str, bytes]]:
    """One frame of each kind."""
    yield from frames.samples().items()


def mutate(data: bytes, rnd: Random) -> bytes:
    """Another frame; lengths follow what was changed, more often than not."""
    return frames.mutate(data, rnd)
