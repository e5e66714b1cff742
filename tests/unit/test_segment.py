"""Superframes are cut as a network card would do it."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passt.userspace.link.segment import cut, room
from passt.userspace.wire.checksum import checksum, fold, pseudo_sum

OURS = {4: bytes((192, 0, 2, 1)), 6: bytes.fromhex("20010db8000000000000000000000001")}
GUEST = {4: bytes((192, 0, 2, 15)), 6: bytes.fromhex("20010db800000000000000000000000f")}
TCP, UDP = 6, 17
PSH, FIN, ACK = 8, 1, 16


class Super(NamedTuple):
    """A superframe and what is known of it."""

    frame: bytes
    header: int
    start: int
    offset: int


def superframe(
    version: int, protocol: int, payload: bytes, seq: int = 0, flags: int = ACK
) -> Super:
    length = 20 if protocol == TCP else 8
    partial = fold(pseudo_sum(OURS[version], GUEST[version], protocol, length + len(payload)))
    ports = struct.pack("!HH", 80, 40000)
    if protocol == TCP:
        l4 = ports + struct.pack("!IIBBHHH", seq, 7, 0x50, flags, 512, partial, 0)
    else:
        l4 = ports + struct.pack("!HH", 8 + len(payload), partial)
    addresses = OURS[version] + GUEST[version]
    if version == 4:
        total = 20 + length + len(payload)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 255, protocol, 0x1234)
        ethertype = 0x0800
    else:
        ip = struct.pack("!IHBB", 0x60000005, length + len(payload), protocol, 255)
        ethertype = 0x86DD
    start = 14 + len(ip) + len(addresses)
    ethernet = bytes.fromhex("525400123456 9a559a559a55") + struct.pack("!H", ethertype)
    offset = 16 if protocol == TCP else 6
    return Super(ethernet + ip + addresses + l4 + payload, start + length, start, offset)


def frames_of(made: Super, size: int) -> list[bytes]:
    out = memoryview(bytearray(room(len(made.frame), size, made.header)))
    end = cut(memoryview(made.frame), size, made.header, made.start, made.offset, out)
    frames = []
    at = 0
    while at < end:
        (length,) = struct.unpack_from("!I", out, at)
        frames.append(bytes(out[at + 4 : at + 4 + length]))
        at += 4 + length
    assert at == end
    return frames


def payload_of(frame: bytes, version: int, made: Super) -> bytes:
    """The payload, once lengths and checksums have been verified."""
    ip_end = 14 + struct.unpack_from("!H", frame, 16)[0]
    if version == 4:
        assert checksum(memoryview(frame)[14:34]) == 0
    else:
        ip_end = 54 + struct.unpack_from("!H", frame, 18)[0]
    assert len(frame) == max(ip_end, 60)
    assert not any(frame[ip_end:])
    l4 = memoryview(frame)[made.start : ip_end]
    protocol = TCP if made.offset == 16 else UDP
    assert checksum(l4, pseudo_sum(OURS[version], GUEST[version], protocol, len(l4))) == 0
    if protocol == UDP:
        assert struct.unpack_from("!H", l4, 4)[0] == len(l4)
        assert l4[6:8] != b"\0\0"
    return frame[made.header : ip_end]


VERSIONS = st.sampled_from([4, 6])


@settings(deadline=None)
@given(
    version=VERSIONS,
    protocol=st.sampled_from([TCP, UDP]),
    payload=st.binary(min_size=1, max_size=9000),
    size=st.integers(1, 4000),
    seq=st.integers(0, 0xFFFFFFFF),
)
def test_frames_make_up_the_whole(
    version: int, protocol: int, payload: bytes, size: int, seq: int
) -> None:
    made = superframe(version, protocol, payload, seq, PSH | FIN | ACK)
    frames = frames_of(made, size)
    pieces = [payload_of(frame, version, made) for frame in frames]
    assert pieces == [payload[at : at + size] for at in range(0, len(payload), size)]
    for number, frame in enumerate(frames):
        assert frame[:14] == made.frame[:14]
        assert frame[made.start : made.start + 4] == made.frame[made.start : made.start + 4]
        if protocol == TCP:
            here, ack = struct.unpack_from("!II", frame, made.start + 4)
            assert (here, ack) == ((seq + number * size) & 0xFFFFFFFF, 7)
            last = number == len(frames) - 1
            assert frame[made.start + 12] == 0x50
            assert frame[made.start + 13] == (PSH | FIN | ACK if last else ACK)
            assert frame[made.start + 14 : made.start + 16] == b"\x02\x00"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [536, 1460, 8960])
def test_the_largest(version: int, size: int) -> None:
    payload = bytes(range(256)) * 255
    made = superframe(version, TCP, payload, 0xFFFFFF00)
    assert b"".join(payload_of(f, version, made) for f in frames_of(made, size)) == payload


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_sum_of_zero_is_written_as_its_other_form(protocol: int) -> None:
    """UDP takes 0 for no checksum at all."""
    for word in range(0x10000):
        payload = struct.pack("!H", word)
        made = superframe(4, protocol, payload)
        at = made.start + made.offset
        (frame,) = frames_of(made, 2)
        if frame[at : at + 2] == b"\xff\xff":
            break
        assert frame[at : at + 2] != b"\0\0"
    else:
        pytest.fail("no payload has that sum")
