"""IPv6: the checks on received packets, extension headers, and headers that scapy accepts."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    MIP6MH_BRR,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.wire import drops, ipv6

GUEST = socket.inet_pton(socket.AF_INET6, "2001:db8::15")
PEER = socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")
DATAGRAM = UDP(sport=1000, dport=2000) / b"payload"


def packet(*layers: Packet, **fields: object) -> bytes:
    """A packet from the guest made of ``layers``."""
    values = {"src": "2001:db8::15", "dst": "2001:db8:1::1", "hlim": 61, **fields}
    whole = IPv6(**values)
    for layer in layers:
        whole = whole / layer
    return bytes(whole)


def chain(first: int, *headers: bytes) -> bytes:
    """A packet whose payload is ``headers``, the first of type ``first``."""
    payload = b"".join(headers)
    return ipv6.header(GUEST, PEER, first, len(payload)) + payload


def parse(data: bytes) -> ipv6.Packet:
    """The parser's verdict, with the packet in the middle of a buffer."""
    return ipv6.parse(memoryview(b"\xee" * 7 + data + b"\xee" * 300), 7, 7 + len(data))


def reason(data: bytes) -> int:
    """Why the packet is dropped; such a packet must not teach an address."""
    protocol, _, _, _, src, dst = parse(data)
    assert (src, dst) == (b"", b"")
    return -protocol


@pytest.mark.parametrize(
    ("layer", "protocol"),
    [(UDP(), 17), (TCP(), 6), (ICMPv6EchoRequest(), 58)],
    ids=["udp", "tcp", "icmpv6"],
)
def test_whole_packets(layer: Packet, protocol: int) -> None:
    data = packet(layer)
    assert parse(data) == (protocol, 47, 7 + len(data), 61, GUEST, PEER)


@pytest.mark.parametrize("length", range(40))
def test_truncated_header(length: int) -> None:
    assert reason(packet(DATAGRAM)[:length]) == drops.IP6_SHORT


@pytest.mark.parametrize("version", [0, 4, 5, 7, 15])
def test_other_versions(version: int) -> None:
    assert reason(packet(DATAGRAM, version=version)) == drops.IP6_VERSION


@pytest.mark.parametrize("length", [0, 1, 14, 16, 65535])
def test_payload_length(length: int) -> None:
    assert reason(packet(DATAGRAM, plen=length)) == drops.IP6_PAYLOAD_LEN


def test_padding_is_refused() -> None:
    assert reason(packet(DATAGRAM) + b"\0") == drops.IP6_PAYLOAD_LEN


@pytest.mark.parametrize("cut", range(1, 16))
def test_truncated_payload(cut: int) -> None:
    assert reason(packet(DATAGRAM)[:-cut]) == drops.IP6_PAYLOAD_LEN


@pytest.mark.parametrize("field", ["src", "dst"])
def test_refused_addresses(field: str) -> None:
    assert reason(packet(DATAGRAM, **{field: "::1"})) == drops.IP6_LOOPBACK
    for address in ("::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:192.0.2.1"):
        assert reason(packet(DATAGRAM, **{field: address})) == drops.IP6_V4_MAPPED


@pytest.mark.parametrize("address", ["ff02::1", "ff05::2", "ffff::"])
def test_groups_are_no_sources(address: str) -> None:
    assert reason(packet(DATAGRAM, src=address)) == drops.IP6_SOURCE
    assert parse(packet(DATAGRAM, dst=address))[0] == 17


@pytest.mark.parametrize("address", ["::", "::2", "::fffe:1.2.3.4", "::1:0:0:1", "fe80::1"])
def test_other_addresses(address: str) -> None:
    assert parse(packet(DATAGRAM, src=address))[0] == 17


PREFIXES: list[list[Packet]] = [
    [IPv6ExtHdrHopByHop()],
    [IPv6ExtHdrHopByHop(options=[PadN(optdata=b"x" * 30)])],
    [IPv6ExtHdrDestOpt()],
    [IPv6ExtHdrRouting()],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting()],
    [IPv6ExtHdrFragment()],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(id=7), IPv6ExtHdrDestOpt()],
]


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: "-".join(p.name for p in prefix))
@pytest.mark.parametrize("last", [DATAGRAM, TCP(), ICMPv6EchoRequest()], ids=["udp", "tcp", "echo"])
def test_extension_headers_are_skipped(prefix: list[Packet], last: Packet) -> None:
    bare = bytes(packet(last))[40:]
    protocol, l4, l4_end, _, src, dst = parse(packet(*prefix, last))
    assert protocol == {UDP: 17, TCP: 6, ICMPv6EchoRequest: 58}[type(last)]
    assert l4_end - l4 == len(bare)
    assert (src, dst) == (GUEST, PEER)


@pytest.mark.parametrize("icv", [0, 4, 12, 16, 20, 64])
def test_authentication_header_counts_in_units_of_four(icv: int) -> None:
    header = AH(nh=17, payloadlen=(12 + icv) // 4 - 2, icv=b"i" * icv)
    data = packet(header, DATAGRAM)
    protocol, l4, l4_end, _, _, _ = ipv6.parse(data, 0, len(data))
    assert (protocol, l4, l4_end) == (17, 40 + 12 + icv, len(data))
    assert struct.unpack_from("!HH", data, l4) == (1000, 2000)


def test_ports_behind_hop_by_hop_and_destination_options() -> None:
    data = packet(IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), DATAGRAM)
    _, l4, l4_end, _, _, _ = ipv6.parse(data, 0, len(data))
    assert struct.unpack_from("!HH", data, l4) == (1000, 2000)
    assert data[l4 + 8 : l4_end] == b"payload"


@pytest.mark.parametrize("kind", [135, 139, 140])
@pytest.mark.parametrize("units", [0, 1, 5])
def test_mobility_host_identity_and_shim6(kind: int, units: int) -> None:
    header = bytes((17, units)) + b"\xff" * (6 + 8 * units)
    data = chain(kind, header, b"\0" * 8)
    assert parse(data)[:3] == (17, 47 + len(header), 7 + len(data))


def test_mobility_header_of_scapy_has_nothing_behind() -> None:
    assert reason_of_protocol(packet(MIP6MH_BRR())) == drops.IP6_NO_NEXT


def reason_of_protocol(data: bytes) -> int:
    """Why a well-formed packet is dropped; its source counts as an address of the guest."""
    protocol, _, _, _, src, dst = parse(data)
    assert (src, dst) == (GUEST, PEER)
    return -protocol


def test_protocols_that_are_not_handled() -> None:
    assert reason_of_protocol(chain(50, b"\0" * 32)) == drops.IP6_ESP
    assert reason_of_protocol(chain(59, b"")) == drops.IP6_NO_NEXT
    for protocol in (1, 2, 4, 41, 47, 132, 136, 253, 254, 255):
        assert reason_of_protocol(chain(protocol, b"\0" * 32)) == drops.IP6_PROTOCOL
        behind = chain(60, bytes((protocol, 0)) + b"\0" * 6, b"\0" * 32)
        assert reason_of_protocol(behind) == drops.IP6_PROTOCOL


@pytest.mark.parametrize("fields", [{"m": 1}, {"offset": 1}, {"offset": 8191}, {"offset": 32}])
def test_fragments(fields: dict[str, int]) -> None:
    assert reason(packet(IPv6ExtHdrFragment(**fields), DATAGRAM)) == drops.IP6_FRAGMENT
    behind = packet(IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(**fields), DATAGRAM)
    assert reason(behind) == drops.IP6_FRAGMENT


@pytest.mark.parametrize("bit", range(13 + 2 + 1))
def test_only_reserved_fragment_bits_are_ignored(bit: int) -> None:
    header = struct.pack("!BBHI", 17, 0xFF, 1 << bit, 1)
    protocol = parse(chain(44, header, b"\0" * 8))[0]
    assert protocol == (17 if bit in (1, 2) else -drops.IP6_FRAGMENT)


@pytest.mark.parametrize("kind", [0, 43, 44, 51, 60, 135, 139, 140])
def test_truncation_inside_an_extension_header(kind: int) -> None:
    size = 8 if kind == 44 else 24
    length = 4 if kind == 51 else 2
    header = bytes((17, length)) + b"\0" * 22
    for cut in range(size):
        assert reason(chain(kind, header[:cut])) == drops.IP6_EXT_BOUNDS
    # Nothing is left for UDP, but that is not for this layer to judge.
    assert parse(chain(kind, header[:size]))[:2] == (17, 47 + size)


def test_number_of_extension_headers() -> None:
    option = bytes((60, 0)) + b"\0" * 6
    last = bytes((17, 0)) + b"\0" * 6
    assert parse(chain(60, option * 15, last, b"\0" * 8))[0] == 17
    assert reason(chain(60, option * 16, last, b"\0" * 8)) == drops.IP6_EXT_LIMIT


def test_size_of_extension_headers() -> None:
    def options(size: int) -> bytes:
        return bytes((17, size // 8 - 1)) + b"\0" * (size - 2)

    assert parse(chain(60, options(256), b"\0" * 8))[0] == 17
    assert reason(chain(60, options(264), b"\0" * 8)) == drops.IP6_EXT_LIMIT
    first = bytes((60, 15)) + b"\0" * 126
    assert parse(chain(0, first, options(128), b"\0" * 8))[0] == 17
    assert reason(chain(0, first, options(136), b"\0" * 8)) == drops.IP6_EXT_LIMIT


def test_multicast_listener_report_is_icmpv6() -> None:
    data = packet(IPv6ExtHdrHopByHop(options=[RouterAlert()]), ICMPv6MLReport2(), src="fe80::5")
    protocol, l4, _, _, src, _ = parse(data)
    assert (protocol, data[l4 - 7]) == (58, 143)
    assert src == socket.inet_pton(socket.AF_INET6, "fe80::5")


@given(
    st.sampled_from((0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 139, 140, 253)),
    st.binary(max_size=400),
)
def test_any_chain(first: int, payload: bytes) -> None:
    data = chain(first, payload)
    protocol, l4, l4_end, _, src, _ = ipv6.parse(data, 0, len(data))
    if protocol > 0:
        assert protocol in (6, 17, 58)
        assert 40 <= l4 <= l4_end == len(data)
        assert l4 - 40 <= 256
        assert src == GUEST
    else:
        assert 0 < -protocol < len(drops.NAMES)


@given(
    st.lists(
        st.tuples(st.sampled_from((0, 43, 51, 60, 135, 139, 140)), st.integers(1, 6)), max_size=4
    )
)
def test_chains_end_where_their_lengths_say(headers: list[tuple[int, int]]) -> None:
    kinds = [kind for kind, _ in headers] + [17]
    built = []
    for (kind, units), following in zip(headers, kinds[1:], strict=True):
        size = (units + 2) * 4 if kind == 51 else (units + 1) * 8
        built.append(bytes((following, units)) + b"\x11" * (size - 2))
    data = chain(kinds[0], *built, b"\0" * 8)
    assert ipv6.parse(data, 0, len(data))[:2] == (17, len(data) - 8)


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    assert ipv6.parse(data, 0, len(data))[0] in {-code for code in range(11, 22)} | {6, 17, 58}


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 0xFFFFF),
)
def test_header_is_what_scapy_builds(
    src: bytes, dst: bytes, protocol: int, length: int, label: int
) -> None:
    ours = ipv6.header(src, dst, protocol, length, label)
    expected = IPv6(
        src=socket.inet_ntop(socket.AF_INET6, src),
        dst=socket.inet_ntop(socket.AF_INET6, dst),
        nh=protocol,
        plen=length,
        fl=label,
        hlim=255,
    )
    assert ours == bytes(expected)
    assert ipv6.flow_label(b"\xff" + ours, 1) == label


def test_flow_label_ignores_the_traffic_class() -> None:
    assert ipv6.flow_label(bytes(IPv6(tc=0xFF, fl=0x12345)), 0) == 0x12345


def test_frame() -> None:
    built = ipv6.frame(b"\1" * 6, b"\2" * 6, GUEST, PEER, 17, b"\0" * 8, b"abc", label=5)
    frame = Ether(built)
    assert (frame.src, frame.type) == ("02:02:02:02:02:02", 0x86DD)
    assert (frame[IPv6].src, frame[IPv6].plen, frame[IPv6].fl) == ("2001:db8::15", 11, 5)
    assert built.endswith(b"abc")
    assert len(ipv6.frame(b"\1" * 6, b"\2" * 6, GUEST, PEER, 59)) == 60
