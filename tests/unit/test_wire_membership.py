"""IGMP and MLD: reports as scapy writes them are read, queries are what scapy expects."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.igmp import (
    IGMP_MQ,
    IGMP_MR,
    IGMPv2_LG,
    IGMPv2_MR,
    IGMPv3_MQ,
    IGMPv3_MR,
    IGMPv3_MR_Group,
)
from scapy.layers.inet import IP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6MLDMultAddrRec,
    ICMPv6MLDone,
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.wire import membership
from passt.userspace.wire.checksum import checksum, pseudo_sum
from passt.userspace.wire.membership import Record

GROUP4 = "239.1.2.3"
GROUP6 = "ff05::1234"
GUEST_LL = "fe80::15"
JUNK = b"\xee" * 10


def packed(address: str) -> bytes:
    """An address as bytes."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def igmp(message: Packet | bytes) -> list[Record] | None:
    """What is read from an IGMP message with junk around it."""
    raw = bytes(message)
    return membership.parse_igmp(memoryview(JUNK + raw + JUNK), 10, 10 + len(raw))


def mld_packet(message: Packet, **fields: object) -> bytes:
    """The IPv6 packet that a guest would send around ``message``."""
    head = IPv6(**{"src": GUEST_LL, "dst": "ff02::16", "hlim": 1, **fields})
    return bytes(head / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()]) / message)


def mld(packet: bytes, l4: int = 48) -> list[Record] | None:
    """What is read from the MLD message at ``l4`` of ``packet``, with junk around it."""
    buf = memoryview(JUNK + packet + JUNK)
    return membership.parse_mld(buf, 10, 10 + l4, 10 + len(packet))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (IGMP_MR(gaddr=GROUP4), membership.TO_EXCLUDE),
        (IGMPv2_MR(gaddr=GROUP4), membership.TO_EXCLUDE),
        (IGMPv2_LG(gaddr=GROUP4), membership.TO_INCLUDE),
    ],
)
def test_igmp_of_older_versions(message: Packet, expected: int) -> None:
    assert igmp(message) == [(expected, packed(GROUP4), ())]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ICMPv6MLReport(mladdr=GROUP6), membership.TO_EXCLUDE),
        (ICMPv6MLDone(mladdr=GROUP6), membership.TO_INCLUDE),
    ],
)
def test_mld_of_older_version(message: Packet, expected: int) -> None:
    assert mld(mld_packet(message)) == [(expected, packed(GROUP6), ())]


ADDRESS4 = st.binary(min_size=4, max_size=4).map(lambda raw: socket.inet_ntop(2, raw))
ADDRESS6 = st.binary(min_size=16, max_size=16).map(lambda raw: socket.inet_ntop(10, raw))
KIND = st.integers(1, 6)
GROUPS4 = st.binary(min_size=3, max_size=3).map(lambda raw: socket.inet_ntop(2, b"\xef" + raw))
GROUPS6 = st.binary(min_size=15, max_size=15).map(lambda raw: socket.inet_ntop(10, b"\xff" + raw))


@given(st.lists(st.tuples(KIND, GROUPS4, st.lists(ADDRESS4, max_size=5)), max_size=5))
def test_igmp_version_3(records: list[tuple[int, str, list[str]]]) -> None:
    message = IGMPv3_MR(
        records=[
            IGMPv3_MR_Group(rtype=kind, maddr=group, srcaddrs=sources)
            for kind, group, sources in records
        ]
    )
    assert igmp(message) == [
        (kind, packed(group), tuple(map(packed, sources))) for kind, group, sources in records
    ]


@given(
    st.lists(
        st.tuples(KIND, GROUPS6, st.lists(ADDRESS6, max_size=5), st.sampled_from(["", "abcd"])),
        max_size=5,
    )
)
def test_mld_version_2(records: list[tuple[int, str, list[str], str]]) -> None:
    message = ICMPv6MLReport2(
        records=[
            # Scapy would count the bytes, not the words.
            ICMPv6MLDMultAddrRec(
                rtype=kind,
                dst=group,
                sources=sources,
                auxdata=auxiliary,
                auxdata_len=len(auxiliary) // 4,
            )
            for kind, group, sources, auxiliary in records
        ]
    )
    assert mld(mld_packet(message)) == [
        (kind, packed(group), tuple(map(packed, sources))) for kind, group, sources, _ in records
    ]


def test_queries_and_unknown_kinds_report_nothing() -> None:
    assert igmp(IGMP_MQ(gaddr="0.0.0.0")) == []
    assert igmp(IGMPv3_MQ()) == []
    assert igmp(summed(b"\x99\0\0\0" + packed(GROUP4))) == []
    assert mld(mld_packet(ICMPv6MLQuery())) == []
    assert igmp(v3(record(9, GROUP4) + record(2, GROUP4))) == [(2, packed(GROUP4), ())]


def test_what_is_no_group_is_not_reported() -> None:
    assert igmp(IGMPv2_MR(gaddr="192.0.2.1")) == []
    assert igmp(v3(record(2, "192.0.2.1"))) == []
    assert mld(mld_packet(ICMPv6MLReport(mladdr="2001:db8::1"))) == []


def record(kind: int, group: str, *sources: str, auxiliary: int = 0, claimed: int = -1) -> bytes:
    """A record of version 3, possibly claiming another number of sources."""
    count = len(sources) if claimed < 0 else claimed
    head = struct.pack("!BBH", kind, auxiliary, count) + packed(group)
    return head + b"".join(map(packed, sources)) + bytes(4 * auxiliary)


def v3(records: bytes, count: int = -1) -> bytes:
    """An IGMPv3 report with as many records, by default, as there are without sources."""
    if count < 0:
        count = len(records) // 8
    return summed(struct.pack("!BBHHH", 0x22, 0, 0, 0, count) + records)


def summed(message: bytes) -> bytes:
    """The message with the checksum it should have, if it is long enough for one."""
    raw = bytearray(message)
    if len(raw) >= 4:
        raw[2:4] = b"\0\0"
        raw[2:4] = checksum(raw).to_bytes(2, "big")
    return bytes(raw)


def test_truncation_at_every_byte() -> None:
    whole = v3(record(1, GROUP4, "192.0.2.1", "192.0.2.2", auxiliary=1), 1)
    assert igmp(whole) == [(1, packed(GROUP4), (packed("192.0.2.1"), packed("192.0.2.2")))]
    for end in range(len(whole)):
        assert igmp(summed(whole[:end])) is None
    packet = mld_packet(
        ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=1, dst=GROUP6, sources=["fe80::1"])])
    )
    assert mld(packet) == [(1, packed(GROUP6), (packed("fe80::1"),))]
    for end in range(48, len(packet)):
        assert mld(summed6(packet[:end])) is None


def summed6(packet: bytes) -> bytes:
    """The packet of an MLD message with the checksum it should have, if it is long enough."""
    raw = bytearray(packet)
    if len(raw) >= 52:
        raw[50:52] = b"\0\0"
        pseudo = pseudo_sum(bytes(raw[8:24]), bytes(raw[24:40]), 58, len(raw) - 48)
        raw[50:52] = checksum(raw[48:], pseudo).to_bytes(2, "big")
    return bytes(raw)


@pytest.mark.parametrize("bit", range(64))
def test_wrong_checksum(bit: int) -> None:
    raw = bytearray(bytes(IGMPv2_MR(gaddr=GROUP4)))
    raw[bit // 8] ^= 1 << bit % 8
    assert igmp(bytes(raw)) is None
    packet = bytearray(mld_packet(ICMPv6MLReport(mladdr=GROUP6)))
    packet[48 + bit // 8] ^= 1 << bit % 8
    assert mld(bytes(packet)) is None


def test_mld_from_beyond_the_link() -> None:
    report = ICMPv6MLReport(mladdr=GROUP6)
    assert mld(mld_packet(report, src="::")) is not None
    for fields in ({"hlim": 2}, {"hlim": 255}, {"src": "2001:db8::1"}):
        assert mld(mld_packet(report, **fields)) is None


@pytest.mark.parametrize(
    "options",
    [b"\1\4\0\0\0\0", b"\5\2\0\1\1\0", b"\1\0\5\2\0", b"\0\0\0\0\5\2", b"\1\377\5\2\0\0",
     b"\0\0\0\0\0\5"],
)  # fmt: skip
def test_mld_without_router_alert(options: bytes) -> None:
    packet = bytearray(mld_packet(ICMPv6MLReport(mladdr=GROUP6)))
    packet[42:48] = options
    assert mld(bytes(packet)) is None
    without = bytes(IPv6(src=GUEST_LL, dst=GROUP6, hlim=1) / ICMPv6MLReport(mladdr=GROUP6))
    assert mld(without, 40) is None


def test_router_alert_behind_other_options() -> None:
    packet = bytearray(mld_packet(ICMPv6MLReport(mladdr=GROUP6)))
    packet[42:48] = b"\0\0\5\2\0\0"
    assert mld(bytes(packet)) is not None
    packet[42:48] = b"\1\0\5\2\0\0"
    assert mld(bytes(packet)) is not None


def test_bounds() -> None:
    """What is beyond them is not looked at; sources are still skipped rightly."""
    sources = [f"10.0.{i >> 8}.{i & 255}" for i in range(membership.MAX_SOURCES + 5)]
    message = v3(record(1, GROUP4, *sources) + record(2, GROUP4), 2)
    kept = tuple(map(packed, sources[: membership.MAX_SOURCES]))
    assert igmp(message) == [(1, packed(GROUP4), kept), (2, packed(GROUP4), ())]
    many = v3(record(2, GROUP4) * 7000)
    found = igmp(many)
    assert found is not None
    assert len(found) == membership.MAX_RECORDS
    assert igmp(v3(record(2, GROUP4, claimed=65535))) is None
    assert igmp(v3(b"", 65535)) is None


@given(st.binary(max_size=100))
def test_anything(raw: bytes) -> None:
    """Nothing is an error, and nothing but groups comes out."""
    for kind, group, sources in igmp(summed(raw)) or ():
        assert 1 <= kind <= 6
        assert 224 <= group[0] < 240
        assert all(len(source) == 4 for source in sources)
    head = mld_packet(ICMPv6MLReport(mladdr=GROUP6))[:48]
    for kind, group, sources in mld(summed6(head + raw)) or ():
        assert 1 <= kind <= 6
        assert group[0] == 0xFF
        assert all(len(source) == 16 for source in sources)


def test_general_query_over_ipv4() -> None:
    frame = Ether(membership.query4(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", packed("192.0.2.1")))
    assert (frame.src, frame.dst) == ("02:00:00:00:00:02", "02:00:00:00:00:01")
    ip = frame[IP]
    assert (ip.src, ip.dst, ip.ttl, ip.proto, ip.tos) == ("192.0.2.1", "224.0.0.1", 1, 2, 0xC0)
    assert isinstance(ip.options[0], IPOption_Router_Alert)
    raw = bytes(ip)[: ip.len]
    assert checksum(raw[:24]) == checksum(raw[24:]) == 0
    assert (len(raw), raw[25]) == (24 + 12, 100)
    query = IGMPv3_MQ(raw[24:])
    assert (query.type, query.gaddr, query.qrv, query.qqic, query.numsrc) == (
        0x11,
        "0.0.0.0",
        2,
        125,
        0,
    )


def test_general_query_over_ipv6() -> None:
    frame = Ether(membership.query6(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", packed("fe80::1")))
    ip = frame[IPv6]
    assert (ip.src, ip.dst, ip.hlim) == ("fe80::1", "ff02::1", 1)
    assert isinstance(ip[IPv6ExtHdrHopByHop].options[0], RouterAlert)
    raw = bytes(ip)
    query = ip[ICMPv6MLQuery2]
    assert (query.mladdr, query.mrd, query.QRV, query.QQIC) == ("::", 10000, 2, 125)
    assert (query.sources_number, len(raw)) == (0, 40 + 8 + 28)
    stated = query.cksum
    again = IPv6(raw)
    del again[ICMPv6MLQuery2].cksum
    assert IPv6(bytes(again))[ICMPv6MLQuery2].cksum == stated
    # It would pass our own checks.
    assert mld(raw) == []
