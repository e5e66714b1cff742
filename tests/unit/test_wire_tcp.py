"""TCP headers and options against scapy, truncated and malformed in every place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from passt.userspace.wire import drops, tcp
from passt.userspace.wire.checksum import pseudo_sum
from passt.userspace.wire.tcp_options import TcpOptions, parse_options, sack_option, syn_options

SRC, DST = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)


def options_of(data: bytes) -> TcpOptions:
    """The parsed options, with other bytes around them."""
    return parse_options(memoryview(b"\2\4" + data + b"\4\2"), 2, 2 + len(data))


def fields(options: TcpOptions) -> tuple[object, ...]:
    """All fields, to compare."""
    return tuple(getattr(options, name) for name in TcpOptions.__slots__)


ABSENT = fields(TcpOptions())


@given(U16, U16, U32, U32, st.integers(0, 255), U16, st.integers(0, 10), st.binary(max_size=9))
def test_parse_what_scapy_builds(
    sport: int, dport: int, seq: int, ack: int, flags: int, window: int, nops: int, data: bytes
) -> None:
    segment = TCP(
        sport=sport,
        dport=dport,
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        options=[("NOP", None)] * 4 * nops,
    )
    raw = b"??" + bytes(segment / data)
    payload = 2 + 20 + 4 * nops
    expected = (sport, dport, seq, ack, flags, window, payload)
    assert tcp.parse(raw, 2, len(raw)) == expected
    assert raw[payload:] == data


def test_truncation() -> None:
    segment = bytes(TCP(options=[("MSS", 1460), ("NOP", None), ("WScale", 7)]))
    for length in range(20):
        assert tcp.parse(segment, 0, length)[0] == -drops.TCP_SHORT
    for length in range(20, 28):
        assert tcp.parse(segment, 0, length)[0] == -drops.TCP_HEADER_LEN
    assert tcp.parse(segment, 0, 28)[6] == 28


@pytest.mark.parametrize("offset", range(16))
def test_data_offset(offset: int) -> None:
    segment = bytes(TCP(sport=7, dataofs=offset)) + b"x" * 20
    sport, *_, payload = tcp.parse(segment, 0, len(segment))
    if 5 <= offset <= 10:
        assert (sport, payload) == (7, offset * 4)
    else:
        assert sport == -drops.TCP_HEADER_LEN


@given(
    U16,
    U16,
    U32,
    U32,
    st.integers(0, 255),
    U16,
    st.sampled_from((b"", syn_options(1460, 7), sack_option([(1, 2)]))),
    st.binary(max_size=71),
)
def test_segment_is_what_scapy_builds(
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes,
    payload: bytes,
) -> None:
    ours = tcp.segment(
        sport, dport, seq, ack, flags, window, pseudo_sum(SRC, DST, 6, 0), options, payload
    )
    layer = TCP(ours)
    assert (layer.sport, layer.dport, layer.seq, layer.ack) == (sport, dport, seq, ack)
    assert (int(layer.flags), layer.window) == (flags, window)
    assert ours.endswith(options + payload)
    claimed = layer.chksum
    del layer.chksum
    rebuilt = TCP(bytes(IP(src="192.0.2.1", dst="192.0.2.2") / layer)[20:])
    assert rebuilt.chksum == claimed


@pytest.mark.parametrize("options", [b"\1", b"\1" * 6, b"\1" * 44])
def test_segment_refuses_unpadded_or_oversize_options(options: bytes) -> None:
    with pytest.raises(ValueError, match="options"):
        tcp.segment(1, 2, 3, 4, tcp.SYN, 5, 0, options)


def test_options_of_a_linux_syn() -> None:
    layer = TCP(
        options=[
            ("MSS", 1460),
            ("SAckOK", b""),
            ("Timestamp", (123456, 654321)),
            ("NOP", None),
            ("WScale", 7),
        ]
    )
    options = options_of(bytes(layer)[20:])
    assert options.mss == 1460
    assert options.sack_permitted
    assert options.timestamps == (123456, 654321)
    assert options.window_scale == 7
    assert options.sack == ()


@given(st.lists(st.tuples(U32, U32), min_size=1, max_size=4))
def test_sack_blocks_of_scapy(blocks: list[tuple[int, int]]) -> None:
    flat = tuple(edge for block in blocks for edge in block)
    layer = TCP(options=[("NOP", None), ("NOP", None), ("SAck", flat)])
    raw = bytes(layer)[20:]
    assert options_of(raw).sack == tuple(blocks)
    assert sack_option(blocks) == raw


def test_at_most_four_sack_blocks_are_sent() -> None:
    blocks = [(at, at + 1) for at in range(9)]
    assert len(sack_option(blocks)) == 36
    assert options_of(sack_option(blocks)).sack == tuple(blocks[:4])
    assert sack_option([]) == b""


@pytest.mark.parametrize("sack", [False, True])
@pytest.mark.parametrize("scale", [None, 0, 8])
@pytest.mark.parametrize("mss", [0, 1460, 65535])
def test_syn_options(mss: int, scale: int | None, sack: bool) -> None:
    raw = syn_options(mss, scale, sack)
    assert len(raw) % 4 == 0
    assert len(raw) == 4 + 4 * sack + 4 * (scale is not None)
    parsed = {name: value for name, value in TCP(raw_header(raw)).options if name != "NOP"}
    assert parsed["MSS"] == mss
    assert parsed.get("WScale") == scale
    assert ("SAckOK" in parsed) is sack
    options = options_of(raw)
    assert (options.mss, options.sack_permitted) == (mss, sack)
    assert options.window_scale == (-1 if scale is None else scale)


def raw_header(options: bytes) -> bytes:
    """A TCP header followed by ``options``."""
    return tcp.HEADER.pack(1, 2, 0, 0, (20 + len(options)) << 2, 2, 0, 0, 0) + options


def test_mss_nop_scale_is_exactly_eight_bytes() -> None:
    assert syn_options(61440, 8) == bytes.fromhex("0204f000 01 030308")


@pytest.mark.parametrize("value", [0, 3, 535, 65535])
def test_mss_is_not_judged_here(value: int) -> None:
    assert options_of(syn_options(value)).mss == value


def test_window_scale_is_not_judged_here() -> None:
    assert options_of(b"\3\3\x0f").window_scale == 15
    assert options_of(b"\3\3\xff").window_scale == 255


def test_end_of_list_hides_the_rest() -> None:
    options = options_of(b"\2\4\5\xb4" + b"\0" + b"\3\3\7")
    assert (options.mss, options.window_scale) == (1460, -1)


@pytest.mark.parametrize("length", [0, 1])
def test_length_below_two_hides_the_rest(length: int) -> None:
    options = options_of(b"\2\4\5\xb4" + bytes((254, length)) + b"\3\3\7")
    assert (options.mss, options.window_scale) == (1460, -1)


@pytest.mark.parametrize("length", [7, 40, 255])
def test_length_beyond_the_header_hides_the_rest(length: int) -> None:
    assert fields(options_of(bytes((254, length)) + b"\3\3\7\0")) == ABSENT
    assert fields(options_of(bytes((2, length)) + b"\5\xb4")) == ABSENT


def test_kind_without_length() -> None:
    for kind in range(2, 256):
        assert fields(options_of(b"\1" + bytes((kind,)))) == ABSENT


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 8])
def test_known_option_of_other_length_is_skipped(kind: int) -> None:
    right = {2: {4}, 3: {3}, 4: {2}, 5: {10, 18, 26, 34}, 8: {10}}[kind]
    for length in set(range(2, 38)) - right:
        body = bytes((kind, length)) + b"\1" * (length - 2)
        assert fields(options_of(body)) == ABSENT, length
        assert options_of(body + b"\2\4\5\xb4").mss == 1460, length


def test_truncated_options_at_every_byte() -> None:
    whole = syn_options(1460, 7, True)
    seen = [fields(options_of(whole[:length])) for length in range(len(whole) + 1)]
    assert seen[:4] == [ABSENT] * 4
    for length, found in enumerate(seen):
        options = dict(zip(TcpOptions.__slots__, found, strict=True))
        assert options["mss"] == (1460 if length >= 4 else -1)
        assert options["sack_permitted"] is (length >= 8)
        assert options["window_scale"] == (7 if length >= 12 else -1)


def test_unknown_options_are_skipped() -> None:
    cookie = bytes((34, 10)) + b"\2\4\1\1\1\1\1\1"
    assert options_of(cookie + b"\2\4\5\xb4").mss == 1460


@given(st.binary(max_size=60))
def test_any_options(data: bytes) -> None:
    options = options_of(data)
    assert -1 <= options.mss <= 0xFFFF
    assert -1 <= options.window_scale <= 0xFF
    assert len(options.sack) <= len(data) // 8


@given(st.binary(max_size=70))
def test_any_segment(data: bytes) -> None:
    sport, *_, payload = tcp.parse(data, 0, len(data))
    if sport >= 0:
        assert 20 <= payload <= min(60, len(data))
    else:
        assert -sport in (drops.TCP_SHORT, drops.TCP_HEADER_LEN)
