"""Frames seen by somebody else: a second decoder, slow and plain, that shares no code.

:func:`incoming` says what a frame of the guest is, or that it has to be dropped, straight from
the RFCs and the documented rules.  :func:`outgoing` takes apart what the guest is sent,
completes what was left to the link, and raises AssertionError for anything that a guest's
stack would not like.
"""

from __future__ import annotations

import array
import sys
from typing import NamedTuple

from tests.unit.fakes import Prefix

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58

_SKIPPED = {0, 43, 60, 135, 139, 140}


class Incoming(NamedTuple):
    """A frame of the guest that is well-formed as far as its L4 header."""

    #: ``"arp"``, or a protocol number.
    kind: str | int
    src: bytes = b""
    dst: bytes = b""
    sport: int = 0
    dport: int = 0
    #: The L4 packet.
    l4: bytes = b""
    ttl: int = 0
    #: Sequence number, acknowledgement number and flags, of TCP.
    seq: int = 0
    ack: int = 0
    flags: int = 0

    @property
    def key(self) -> bytes:
        """Addresses and ports in the order of the packet."""
        return self.src + self.dst + self.l4[:4]


def number(data: bytes, at: int, size: int = 2) -> int:
    """The big-endian number of ``size`` bytes at ``at``."""
    return int.from_bytes(data[at : at + size], "big")


def incoming(frame: bytes) -> Incoming | None:
    """What ``frame`` is, ``None`` if it must be dropped whatever the configuration."""
    if len(frame) < 14:
        return None
    ethertype, packet = number(frame, 12), frame[14:]
    if ethertype == 0x0806:
        return _arp(packet)
    if ethertype == 0x0800:
        return _ipv4(packet)
    if ethertype == 0x86DD:
        return _ipv6(packet)
    return None


def _arp(packet: bytes) -> Incoming | None:
    if len(packet) < 28 or packet[:6] != b"\0\1\x08\0\6\4":
        return None
    return Incoming("arp", packet[14:18], packet[24:28], l4=packet[:28])


def _ipv4(packet: bytes) -> Incoming | None:
    payload = _payload4(packet)
    if payload is None or packet[9] not in (ICMP, TCP, UDP):
        return None
    return _l4(packet[9], packet[12:16], packet[16:20], payload, packet[8])


def _payload4(packet: bytes) -> bytes | None:
    """What is behind the header of an IPv4 packet that is sound, of whichever protocol."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header, total = (packet[0] & 15) * 4, number(packet, 2)
    if header < 20 or header > len(packet) or total < header or total > len(packet):
        return None
    if number(packet, 6) not in (0, 0x4000):
        return None
    src, dst = packet[12:16], packet[16:20]
    if 127 in (src[0], dst[0]) or 224 <= src[0] < 240 or src == b"\xff" * 4:
        return None
    return packet[header:total]


def _ipv6(packet: bytes) -> Incoming | None:
    if len(packet) < 40 or packet[0] >> 4 != 6 or number(packet, 4) != len(packet) - 40:
        return None
    src, dst = packet[8:24], packet[24:40]
    if bytes(15) + b"\1" in (src, dst) or src[0] == 0xFF:
        return None
    if bytes(10) + b"\xff\xff" in (src[:12], dst[:12]):
        return None
    kind, at = packet[6], 40
    headers = 0
    while kind not in (TCP, UDP, ICMPV6):
        if len(packet) - at < 8 or headers == 16:
            return None
        headers += 1
        if kind == 44:
            if packet[at + 2] or packet[at + 3] & 0xF9:
                return None
            size = 8
        elif kind == 51:
            size = packet[at + 1] * 4 + 8
        elif kind in _SKIPPED:
            size = packet[at + 1] * 8 + 8
        else:
            return None
        kind, at = packet[at], at + size
        if at > len(packet) or at - 40 > 256:
            return None
    return _l4(kind, src, dst, packet[at:], packet[7])


def _l4(kind: int, src: bytes, dst: bytes, l4: bytes, ttl: int) -> Incoming | None:
    if len(l4) < 8:
        return None
    if kind in (ICMP, ICMPV6):
        return Incoming(kind, src, dst, l4=l4, ttl=ttl)
    ports = number(l4, 0), number(l4, 2)
    if kind == UDP:
        return Incoming(kind, src, dst, *ports, l4, ttl)
    if len(l4) < 20 or not 20 <= (l4[12] >> 4) * 4 <= len(l4):
        return None
    return Incoming(kind, src, dst, *ports, l4, ttl, number(l4, 4, 4), number(l4, 8, 4), l4[13])


# What the guest listens to.

#: Kind, group, sources.
Record = tuple[int, bytes, tuple[bytes, ...]]


class Membership(NamedTuple):
    """A message of IGMP or MLD: bytes of an address, and what it reports."""

    size: int
    #: ``None`` if it is malformed.
    records: list[Record] | None


def membership(frame: bytes) -> Membership | None:
    """The message of IGMP or MLD that ``frame`` is, ``None`` for all others."""
    packet = frame[14:]
    if number(frame, 12) == 0x0800:
        payload = _payload4(packet)
        return None if payload is None or packet[9] != 2 else Membership(4, _igmp(payload))
    found = _ipv6(packet) if number(frame, 12) == 0x86DD else None
    if found is None or found.kind != ICMPV6 or found.l4[0] not in (130, 131, 132, 143):
        return None
    return Membership(16, _mld(packet, found))


def _igmp(message: bytes) -> list[Record] | None:
    if len(message) < 8 or ones_sum(message) != 0xFFFF:
        return None
    if message[0] == 0x22:
        return _records(message, 4)
    kind = {0x12: 4, 0x16: 4, 0x17: 3}.get(message[0], 0)
    return [(kind, message[4:8], ())] if kind and message[4] >> 4 == 14 else []


def _mld(packet: bytes, found: Incoming) -> list[Record] | None:
    near = not any(found.src) or found.src[0] << 2 | found.src[1] >> 6 == 0xFE << 2 | 2
    if not near or found.ttl != 1 or packet[6] != 0:
        return None
    options = packet[42 : min(48 + packet[41] * 8, len(packet) - len(found.l4))]
    while options[:4] != b"\5\2\0\0":
        size = 1 if options[:1] == b"\0" else 2 + (options[1] if len(options) > 1 else 255)
        if not options or size > len(options):
            return None
        options = options[size:]
    message = found.l4
    pseudo = ones_sum(found.src + found.dst) + 58 + len(message)
    if fold(ones_sum(message) + pseudo) != 0xFFFF:
        return None
    if message[0] == 143:
        return _records(message, 16)
    if len(message) < 24:
        return None
    kind = {131: 4, 132: 3}.get(message[0], 0)
    return [(kind, message[8:24], ())] if kind and message[8] == 0xFF else []


def _records(message: bytes, size: int) -> list[Record] | None:
    records: list[Record] = []
    rest = message[8:]
    for _ in range(min(number(message, 6), 128)):
        if len(rest) < 4 + size:
            return None
        behind = 4 + size + number(rest, 2) * size
        if len(rest) < behind + rest[1] * 4:
            return None
        group = rest[4 : 4 + size]
        if 1 <= rest[0] <= 6 and (group[0] >> 4 == 14 if size == 4 else group[0] == 0xFF):
            named = [rest[at : at + size] for at in range(4 + size, behind, size)]
            records.append((rest[0], group, tuple(named[:64])))
        rest = rest[behind + rest[1] * 4 :]
    return records


# What we send.


class Outgoing(NamedTuple):
    """A frame to the guest, found to be sound."""

    kind: str | int
    src: bytes
    dst: bytes
    dst_mac: bytes
    #: The L4 packet, checksums complete; the message of ARP.
    l4: bytes
    #: Bytes from the IP header to the end; of a superframe, those of its largest piece.
    size: int
    label: int = 0

    @property
    def payload(self) -> bytes:
        """What follows the header of TCP, or eight bytes of anything else."""
        return self.l4[(self.l4[12] >> 4) * 4 if self.kind == TCP else 8 :]


def outgoing(prefix: Prefix, frame: bytes, our_mac: bytes) -> Outgoing:
    """Decode what the guest is sent; AssertionError says what is wrong with it."""
    assert len(frame) >= 60, "shorter than the Ethernet minimum"
    assert frame[6:12] == our_mac, "source MAC is not ours"
    ethertype, packet = number(frame, 12), frame[14:]
    if ethertype == 0x0806:
        assert len(frame) == 60, "ARP of odd size"
        assert packet[:8] == b"\0\1\x08\0\6\4\0" + packet[7:8], "ARP header"
        assert packet[7] in (1, 2), "ARP operation"
        assert not any(packet[28:]), "padding is not zero"
        return Outgoing("arp", packet[14:18], packet[24:28], frame[:6], packet[:28], 28)
    if packet[:1] == b"\x46" or (ethertype == 0x86DD and packet[6] == 0):
        return _query(frame, packet)
    if ethertype == 0x0800:
        assert packet[0] == 0x45, "IPv4 version or header length"
        assert ones_sum(packet[:20]) == 0xFFFF, "IPv4 header checksum"
        assert packet[4:8] == b"\0\0\x40\0", "IPv4 identification, fragment"
        header, total, kind = 20, number(packet, 2), packet[9]
        src, dst = packet[12:16], packet[16:20]
        label, ttl = 0, packet[8]
    else:
        assert ethertype == 0x86DD, "EtherType"
        assert number(packet, 0) >> 4 == 0x600, "IPv6 version, traffic class"
        header, kind, ttl = 40, packet[6], packet[7]
        total = number(packet, 4) + 40
        src, dst = packet[8:24], packet[24:40]
        label = number(packet, 0, 4) & 0xFFFFF
    assert ttl == 255, "TTL"
    assert total <= len(packet), "truncated"
    assert not any(packet[total:]), "padding is not zero"
    assert total == len(packet) or len(frame) == 60, "bytes behind the packet"
    l4 = bytearray(packet[header:total])
    pseudo = 0
    if kind != ICMP:
        pseudo = ones_sum(src + dst) + kind + len(l4)
    size = total
    if prefix.gso_type:
        head = (l4[12] >> 4) * 4 if kind == TCP else 8
        assert prefix.hdr_len == 14 + header + head, "header length of a superframe"
        assert 0 < prefix.gso_size < len(l4) - head, "superframe of one piece"
        assert prefix.gso_type == (5 if kind == UDP else 1 if header == 20 else 4), "kind of it"
        size = header + head + prefix.gso_size
    if prefix.csum_start:
        _complete(l4, prefix, 14 + header, 16 if kind == TCP else 6, pseudo)
    _checked(kind, bytes(l4), pseudo, v4=header == 20)
    return Outgoing(kind, src, dst, frame[:6], bytes(l4), size, label)


def _query(frame: bytes, packet: bytes) -> Outgoing:
    """A general query of IGMP or MLD, which has options for routers before it."""
    if number(frame, 12) == 0x0800:
        size, src, dst = 36, packet[12:16], packet[16:20]
        assert packet[:10] == b"\x46\xc0\0\x24\0\0\x40\0\1\2", "IPv4 header of a query"
        assert ones_sum(packet[:24]) == ones_sum(packet[24:36]) == 0xFFFF, "checksums of a query"
        assert packet[20:26] == b"\x94\4\0\0\x11\x64", "router alert, kind, time"
        assert dst == b"\xe0\0\0\1", "not to all"
    else:
        size, src, dst = 76, packet[8:24], packet[24:40]
        assert packet[:8] == b"\x60\0\0\0\0\x24\0\1", "IPv6 header of a query"
        assert packet[40:50] == b"\x3a\0\5\2\0\0\1\0\x82\0", "router alert, kind"
        pseudo = ones_sum(src + dst) + 58 + 28
        assert fold(ones_sum(packet[48:76]) + pseudo) == 0xFFFF, "checksum of a query"
        assert src[:8] == b"\xfe\x80" + bytes(6), "not from the link"
        assert dst == b"\xff\2" + bytes(13) + b"\1", "not to all"
    assert not any(packet[size - 4 - len(src) : size - 4]), "about one group"
    assert not any(packet[size:]), "padding is not zero"
    return Outgoing("query", src, dst, frame[:6], packet[:size], size)


def _complete(l4: bytearray, prefix: Prefix, start: int, field: int, pseudo: int) -> None:
    """Do what the receiver of a partial checksum does."""
    assert (prefix.csum_start, prefix.csum_offset) == (start, field), "place of the checksum"
    assert number(l4, field) % 65535 == pseudo % 65535, "partial checksum"
    l4[field : field + 2] = ((~ones_sum(l4) & 0xFFFF) or 0xFFFF).to_bytes(2, "big")


def _checked(kind: int, l4: bytes, pseudo: int, *, v4: bool) -> None:
    if kind == UDP:
        assert number(l4, 4) == len(l4), "UDP length"
        if v4 and not number(l4, 6):
            return
    elif kind == TCP:
        assert len(l4) >= 20, "TCP header"
        assert 20 <= (l4[12] >> 4) * 4 <= len(l4), "TCP data offset"
        assert not l4[12] & 15, "TCP reserved bits"
        assert not number(l4, 18), "urgent pointer"
    else:
        assert kind == (ICMP if v4 else ICMPV6), "protocol"
        assert len(l4) >= 8, "ICMP header"
    assert fold(ones_sum(l4) + pseudo) == 0xFFFF, "L4 checksum"


def check_quote(error: Outgoing) -> None:
    """What an ICMP error quotes: a packet that its receiver sent, with lengths that are true."""
    quote = error.l4[8:]
    if error.kind == ICMP:
        assert quote[0] == 0x45, "quoted IPv4 header"
        assert number(quote, 2) == len(quote), "quoted total length"
        assert ones_sum(quote[:20]) == 0xFFFF, "quoted header checksum"
        kind, src, l4 = quote[9], quote[12:16], quote[20:]
    else:
        assert quote[0] >> 4 == 6, "quoted IPv6 header"
        assert number(quote, 4) == len(quote) - 40, "quoted payload length"
        kind, src, l4 = quote[6], quote[8:24], quote[40:]
    assert src == error.dst, "about a packet of somebody else"
    assert len(l4) >= 8, "quotes too little"
    assert kind in (TCP, UDP, error.kind), "quoted protocol"
    if kind == UDP:
        assert number(l4, 4) == len(l4), "quoted UDP length"


def fold(total: int) -> int:
    """Fold carries into 16 bits."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sum(data: bytes | bytearray) -> int:
    """The ones' complement sum of the 16-bit words of ``data``, an odd byte padded with zero."""
    words = array.array("H", bytes(data) + b"\0" * (len(data) & 1))
    if sys.byteorder == "little":
        words.byteswap()
    return fold(sum(words))


def is_unicast(address: bytes) -> bool:
    """Whether ``address`` is one node's: not a group's, nobody's or everybody's."""
    if len(address) == 4:
        return not 224 <= address[0] < 240 and address not in (bytes(4), b"\xff" * 4)
    return address[0] != 0xFF and any(address)


def is_loopback(address: bytes) -> bool:
    """Whether ``address`` must not be seen on any link: loopback, or IPv4 in disguise."""
    if len(address) == 4:
        return address[0] == 127
    return address == bytes(15) + b"\1" or address[:12] == bytes(10) + b"\xff\xff"
