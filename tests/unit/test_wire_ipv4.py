"""IPv4: the checks on received packets one by one, and headers that scapy accepts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.wire import drops, ipv4
from passt.userspace.wire.checksum import checksum

GUEST = bytes((192, 0, 2, 15))
PEER = bytes((198, 51, 100, 1))


def datagram(size: int = 12, **fields: object) -> bytes:
    """A UDP datagram from the guest with ``size`` bytes of payload."""
    values = {"src": "192.0.2.15", "dst": "198.51.100.1", "ttl": 61, **fields}
    return bytes(IP(**values) / UDP(sport=1000, dport=2000) / (b"x" * size))


def parse(packet: bytes) -> ipv4.Packet:
    """The parser's verdict, with the packet in the middle of a buffer."""
    return ipv4.parse(memoryview(b"\xee" * 7 + packet), 7, 7 + len(packet))


def reason(packet: bytes) -> int:
    """Why the packet is dropped; such a packet must not teach an address."""
    protocol, _, _, _, src, dst = parse(packet)
    assert (src, dst) == (b"", b"") or protocol == -drops.IP4_PROTOCOL
    return -protocol


@pytest.mark.parametrize(
    ("layer", "protocol"), [(UDP(), 17), (TCP(), 6), (ICMP(), 1)], ids=["udp", "tcp", "icmp"]
)
def test_whole_packets(layer: Packet, protocol: int) -> None:
    packet = bytes(IP(src="192.0.2.15", dst="198.51.100.1", ttl=61) / layer)
    assert parse(packet) == (protocol, 27, 7 + len(packet), 61, GUEST, PEER)


@pytest.mark.parametrize("padding", [1, 18, 160])
def test_padding_is_cut_off(padding: int) -> None:
    packet = datagram()
    assert parse(packet + b"\xff" * padding) == parse(packet)


def test_empty_datagram_with_data_behind() -> None:
    assert parse(datagram(0) + b"y" * 20)[1:3] == (27, 35)


def test_options_are_skipped() -> None:
    packet = datagram(options=[IPOption_NOP()] * 40)
    assert packet[0] == 0x4F
    assert parse(packet)[:3] == (17, 67, 7 + len(packet))


def test_wrong_checksum_is_accepted() -> None:
    assert parse(datagram(chksum=0x1234))[0] == 17


def test_largest_packet() -> None:
    assert parse(datagram(65507))[1:3] == (27, 7 + 65535)


@pytest.mark.parametrize("version", [0, 3, 5, 6, 15])
def test_other_versions(version: int) -> None:
    assert reason(datagram(version=version)) == drops.IP4_VERSION


@pytest.mark.parametrize("length", range(20))
def test_truncated_header(length: int) -> None:
    assert reason(datagram()[:length]) == drops.IP4_SHORT


@pytest.mark.parametrize("ihl", [0, 1, 4, 15])
def test_header_length(ihl: int) -> None:
    assert reason(datagram(ihl=ihl)) == drops.IP4_HEADER_LEN


@pytest.mark.parametrize("total", [0, 1, 19, 41, 65535])
def test_total_length(total: int) -> None:
    assert reason(datagram(len=total)) == drops.IP4_TOTAL_LEN


def test_total_length_below_a_header_with_options() -> None:
    assert reason(datagram(options=[IPOption_NOP()] * 4, len=23)) == drops.IP4_TOTAL_LEN


@pytest.mark.parametrize("fields", [{"flags": "MF"}, {"frag": 1}, {"frag": 8191}, {"flags": 4}])
def test_fragments(fields: dict[str, object]) -> None:
    assert reason(datagram(**fields)) == drops.IP4_FRAGMENT


def test_dont_fragment_is_no_fragment() -> None:
    assert parse(datagram(flags="DF"))[0] == 17


@pytest.mark.parametrize("field", ["src", "dst"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.255", "127.0.0.53"])
def test_loopback(field: str, address: str) -> None:
    assert reason(datagram(**{field: address})) == drops.IP4_LOOPBACK


@pytest.mark.parametrize("address", ["224.0.0.1", "239.255.255.255", "255.255.255.255"])
def test_groups_are_no_sources(address: str) -> None:
    assert reason(datagram(src=address)) == drops.IP4_SOURCE
    assert parse(datagram(dst=address))[0] == 17


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "126.0.0.1", "128.0.0.1", "169.254.2.1", "223.0.0.1", "240.0.0.1"]
)
def test_other_sources_are_accepted(address: str) -> None:
    assert parse(datagram(src=address))[0] == 17


@pytest.mark.parametrize("protocol", [0, 2, 41, 47, 50, 58, 132, 255])
def test_other_protocols_still_teach_the_source(protocol: int) -> None:
    packet = datagram(proto=protocol)
    assert parse(packet) == (-drops.IP4_PROTOCOL, 27, 7 + len(packet), 61, GUEST, PEER)


@given(st.binary(max_size=80), st.integers(0, 4), st.integers(0, 4))
def test_any_bytes(data: bytes, before: int, behind: int) -> None:
    end = max(before, len(data) - behind)
    if before <= len(data):
        protocol, l4, l4_end, _, src, dst = ipv4.parse(data, before, end)
        assert protocol < 0 or before + 20 <= l4 <= l4_end <= end
        assert len(src) == len(dst) == (4 if protocol > 0 or src else 0)


@given(st.integers(0x40, 0x4F), st.integers(0, 0xFFFF), st.sampled_from((0, 0x4000)), st.binary())
def test_plausible_headers(first: int, total: int, fragment: int, rest: bytes) -> None:
    data = ipv4.HEADER.pack(first, 0, total, 0, fragment, 1, 6, 0, GUEST, PEER) + rest
    protocol, l4, l4_end, _, _, _ = ipv4.parse(data, 0, len(data))
    size = (first & 15) * 4
    if protocol > 0:
        assert (l4, l4_end) == (size, total)
        assert 20 <= size <= total <= len(data)
    else:
        assert not 20 <= size <= total <= len(data)


@given(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 255),
    st.integers(0, 65515),
)
def test_header_is_what_scapy_builds(src: bytes, dst: bytes, protocol: int, length: int) -> None:
    expected = IP(
        src=".".join(map(str, src)),
        dst=".".join(map(str, dst)),
        proto=protocol,
        id=0,
        flags="DF",
        ttl=255,
        len=20 + length,
    )
    assert ipv4.header(src, dst, protocol, length) == bytes(expected)


@given(st.binary(min_size=4, max_size=4), st.integers(20, 65535))
def test_template_with_length_and_checksum_is_a_header(dst: bytes, total: int) -> None:
    template = bytearray(ipv4.template(GUEST, dst, 6))
    base = ipv4.template_sum(bytes(template))
    template[ipv4.TOTAL_LEN_OFFSET : ipv4.TOTAL_LEN_OFFSET + 2] = total.to_bytes(2, "big")
    field = ipv4.header_checksum(base, total)
    template[ipv4.CHECKSUM_OFFSET : ipv4.CHECKSUM_OFFSET + 2] = field.to_bytes(2, "big")
    assert template == ipv4.header(GUEST, dst, 6, total - 20)
    assert checksum(template) == 0


def test_frame() -> None:
    built = ipv4.frame(b"\1" * 6, b"\2" * 6, GUEST, PEER, 17, b"\0" * 8, b"abc")
    frame = Ether(built)
    assert (frame.src, frame.type) == ("02:02:02:02:02:02", 0x0800)
    assert (frame[IP].src, frame[IP].dst, frame[IP].len) == ("192.0.2.15", "198.51.100.1", 31)
    assert built[34:] == bytes(8) + b"abc" + bytes(15)
