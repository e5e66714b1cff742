"""IGMP and MLD against a second decoder: both read the same reports, or both none.

The input is an IP packet, version 4 or 6 by its first byte.  Its lengths are what the header
before says, as the parsers for these have checked them by then, and checksums can be had right:
with a first byte of 0x4f or 0x6f, which is not that of any packet, the message's is filled in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from passt.userspace.wire import ipv4, ipv6, membership
from passt.userspace.wire.checksum import checksum, pseudo_sum
from tests.fuzz import oracle
from tests.fuzz.mutate import havoc

MAX_LEN = 1600
DICTIONARY = (
    b"\x05\x02\x00\x00",
    b"\xe0\x00\x00\xfb",
    b"\xef\xff\xff\xfa",
    b"\xff\x02" + bytes(13) + b"\xfb",
    *(bytes((kind,)) for kind in (0x12, 0x16, 0x17, 0x22, 130, 131, 132, 143)),
)

_JUNK = bytes(70), b"\xff" * 70

Records = list[tuple[int, bytes, tuple[bytes, ...]]]


def one(data: bytes) -> None:
    """Read the packet ``data`` in both ways."""
    if not data:
        return
    packet = _summed(data) if data[0] & 0xF == 0xF else data
    seen = [_decode(junk + packet + junk, len(junk), len(junk) + len(packet)) for junk in _JUNK]
    assert seen[0] == seen[1], "depends on what is not in the packet"
    expected = _expected(packet)
    assert seen[0] == expected, f"{seen[0]} but {expected}"


def _decode(buf: bytes, off: int, end: int) -> Records | None:
    """What the product reads, once it knows where the message is."""
    if buf[off] >> 4 == 4:
        if end - off < 28:
            return None
        return membership.parse_igmp(buf, off + ipv4.HEADER_LEN, end)
    if end - off < 56:
        return None
    protocol, l4 = ipv6.walk(buf, off + ipv6.HEADER_LEN, end, buf[off + 6])
    if protocol != ipv6.IPPROTO_ICMPV6 or l4 >= end or not membership.is_mld(buf[l4]):
        return None
    return membership.parse_mld(buf, off, l4, end)


def _expected(packet: bytes) -> Records | None:
    """The same, written another way."""
    if packet[0] >> 4 == 4:
        message, size = packet[20:], 4
        if len(message) < 8 or oracle.ones_sum(message) not in (0, 65535) or not any(message):
            return None
        report, joins, leaves, oldest = 0x22, (0x12, 0x16), 0x17, 8
    else:
        found = _icmpv6(packet)
        if found is None:
            return None
        message, size = found, 16
        head = packet[8:40] + struct.pack("!II", len(message), 58)
        if len(message) < 8 or oracle.ones_sum(head + message) != 65535:
            return None
        report, joins, leaves, oldest = 143, (131,), 132, 24
        if message[0] != report and len(message) < oldest:
            return None
    kind = message[0]
    if kind == report:
        return _read(message, size)
    group = message[oldest - size : oldest]
    if not _group(group) or (kind not in joins and kind != leaves):
        return []
    return [(4 if kind in joins else 3, group, ())]


def _read(message: bytes, size: int) -> Records | None:
    """Records, taken off the front one by one."""
    left = int.from_bytes(message[6:8], "big")
    rest = message[8:]
    found: Records = []
    for _ in range(min(left, 128)):
        if len(rest) < 4 + size:
            return None
        kind, words, count = rest[0], rest[1], rest[2] << 8 | rest[3]
        group, rest = rest[4 : 4 + size], rest[4 + size :]
        if len(rest) < count * size + words * 4:
            return None
        sources = [rest[i * size : (i + 1) * size] for i in range(min(count, 64))]
        rest = rest[count * size + words * 4 :]
        if kind in (1, 2, 3, 4, 5, 6) and _group(group):
            found.append((kind, group, tuple(sources)))
    return found


def _group(address: bytes) -> bool:
    return address[0] in range(224, 240) if len(address) == 4 else address[0] == 255


def _icmpv6(packet: bytes) -> bytes | None:
    """The MLD message of an IPv6 packet that came from this link and alerts routers."""
    if len(packet) < 56 or packet[7] != 1 or packet[6] != 0:
        return None
    if packet[8:24] != bytes(16) and int.from_bytes(packet[8:10], "big") >> 6 != 0x3FA:
        return None
    protocol, at = ipv6.walk(packet, 40, len(packet), 0)
    if protocol != 58 or at >= len(packet) or packet[at] not in (130, 131, 132, 143):
        return None
    options = packet[42 : 40 + (packet[41] + 1) * 8]
    while options:
        if options[0] == 0:
            options = options[1:]
        elif len(options) < 2 or len(options) < 2 + options[1]:
            return None
        elif options[:4] == b"\5\2\0\0":
            return packet[at:]
        else:
            options = options[2 + options[1] :]
    return None


def _summed(data: bytes) -> bytes:
    """``data`` as a packet of its version whose message has the right checksum."""
    raw = bytearray(data)
    raw[0] &= 0xF0
    if raw[0] == 0x40:
        at, pseudo = 20, 0
    else:
        if len(raw) < 48:
            return bytes(raw)
        at = ipv6.walk(bytes(raw), 40, len(raw), raw[6])[1]
        pseudo = pseudo_sum(bytes(raw[8:24]), bytes(raw[24:40]), 58, len(raw) - at)
    if at + 4 <= len(raw):
        raw[at + 2 : at + 4] = b"\0\0"
        raw[at + 2 : at + 4] = checksum(raw[at:], pseudo).to_bytes(2, "big")
    return bytes(raw)


_HEAD4 = b"\x4f\xc0" + bytes(6) + b"\x01\x02\0\0" + bytes((192, 0, 2, 10, 224, 0, 0, 22))
_HEAD6 = (
    b"\x6f\0\0\0\0\0\0\1\xfe\x80" + bytes(13) + b"\x15\xff\2" + bytes(13) + b"\x16"
    + b"\x3a\0\5\2\0\0\1\0"
)  # fmt: skip
_GROUP4 = bytes((239, 255, 255, 250))
_GROUP6 = b"\xff\5" + bytes(13) + b"\x0c"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Each kind of message, right and with what is wrong in real life."""
    for kind in (0x11, 0x12, 0x16, 0x17):
        yield f"igmp-{kind:02x}", _HEAD4 + bytes((kind, 0, 0, 0)) + _GROUP4
    for kind in (130, 131, 132):
        yield f"mld-{kind}", _HEAD6 + bytes((kind, 0, 0, 0, 0, 0, 0, 0)) + _GROUP6
    for name, head, group, report in (
        ("igmp", _HEAD4, _GROUP4, 0x22),
        ("mld", _HEAD6, _GROUP6, 143),
    ):
        start = head + bytes((report, 0, 0, 0, 0, 0, 0))
        plain = [bytes((kind, 0, 0, 0)) + group for kind in range(1, 7)]
        sourced = b"\1\0\0\2" + group + group * 2
        auxiliary = b"\2\1\0\1" + group + group + b"aux!"
        yield f"{name}-report", start + b"\6" + b"".join(plain)
        yield f"{name}-sources", start + b"\2" + sourced + auxiliary
        yield f"{name}-cut", start + b"\2" + sourced + auxiliary[:-1]
        yield f"{name}-claims", start + b"\1" + b"\1\0\xff\xff" + group
        yield f"{name}-unknown", start + b"\2" + b"\x07\0\0\0" + group + plain[1]
        yield f"{name}-no-group", start + b"\1" + b"\4\0\0\0" + bytes(len(group))
        yield f"{name}-wrong-sum", bytes((start[0] & 0xF0,)) + start[1:] + b"\1" + plain[0]
    yield "mld-padded", _HEAD6[:42] + b"\0\0\5\2\0\0" + bytes((131, *bytes(7))) + _GROUP6
    yield "mld-no-alert", _HEAD6[:42] + b"\1\4\0\0\0\0" + bytes((131, *bytes(7))) + _GROUP6
    yield "mld-far", _HEAD6[:7] + b"\x40" + _HEAD6[8:] + bytes((131, *bytes(7))) + _GROUP6


def mutate(data: bytes, rnd: Random) -> bytes:
    """Bytes of the message changed, headers seldom."""
    if len(data) > 48 and rnd.random() < 0.8:
        start = 20 if data[0] >> 4 == 4 else 48
        return data[:start] + havoc(data[start:], rnd, limit=MAX_LEN - start)
    return havoc(data, rnd, limit=MAX_LEN)
