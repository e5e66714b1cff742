"""Group membership on the link: IGMP for IPv4, MLD for IPv6, which say the same things.

**From the guest** come reports of what it listens to.  Whatever the version of the protocol,
a report is read as a list of *records*: kind, group, sources (RFC 3376, 4.2.12)::

    IS_INCLUDE   TO_INCLUDE    it listens to these sources and no others; to none: it has left
    IS_EXCLUDE   TO_EXCLUDE    it listens to all sources but these
    ALLOW        BLOCK         it listens to these as well, or no longer

Older versions know no sources: a report is TO_EXCLUDE, and a message of leaving TO_INCLUDE,
with none.

===========  =============================  ============================
             IPv4 (protocol 2)              IPv6 (types of ICMPv6)
===========  =============================  ============================
query        0x11  RFC 1112, 2236, 3376     130   RFC 2710, 3810
report       0x12, 0x16, version 3: 0x22    131, version 2: 143
leaving      0x17                           132
===========  =============================  ============================

Lengths and checksums are verified, and for MLD that the message cannot come from beyond the
link: hop limit 1, a link-local source or none yet, the router alert option (RFC 3810, 6.2;
RFC 3590).  What a report has beyond :data:`MAX_RECORDS` and :data:`MAX_SOURCES` is not
looked at.

**To the guest** go general queries, in the latest version, which makes it report everything.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, ethernet, ipv6
from passt.userspace.wire.checksum import checksum, pseudo_sum

IS_INCLUDE = 1
IS_EXCLUDE = 2
TO_INCLUDE = 3
TO_EXCLUDE = 4
ALLOW = 5
BLOCK = 6

IPPROTO_IGMP = 2

#: Records of a report, and sources of a record, that are read.
MAX_RECORDS = 128
MAX_SOURCES = 64

#: Seconds between general queries, the default of all versions, and for the answer to one.
QUERY_INTERVAL = 125
RESPONSE_TIME = 10
#: How often a host says what may get lost.
ROBUSTNESS = 2

_IGMP_QUERY = 0x11
_IGMP_OLD_REPORTS = frozenset((0x12, 0x16))
_IGMP_LEAVE = 0x17
_IGMP_REPORT = 0x22
_IGMP_LEN = 8

_MLD_QUERY = 130
_MLD_OLD_REPORT = 131
_MLD_DONE = 132
_MLD_REPORT = 143
_MLD_TYPES = frozenset((_MLD_QUERY, _MLD_OLD_REPORT, _MLD_DONE, _MLD_REPORT))
_MLD_LEN = 24

#: Where the group is in messages of older versions, and the number of records in others.
_IGMP_GROUP = 4
_MLD_GROUP = 8
_COUNT = 6
_RECORDS = 8

#: Kind, length of auxiliary data in units of 4 bytes, number of sources; then the group.
_RECORD = struct.Struct("!BBH")

#: Type, response time in tenths of a second, checksum, no group, robustness, interval, no source.
_QUERY4 = struct.Struct("!BBH4xBBH")
#: Type, code, checksum, response time in milliseconds, reserved, no group, the same.
_QUERY6 = struct.Struct("!BBHHH16xBBH")

#: IPv4: routers look at the packet (RFC 2113).
_ALERT4 = b"\x94\x04\0\0"
_HEADER4 = struct.Struct("!BBHHHBBH4s4s")
_INTERNETWORK_CONTROL = 0xC0
_ALL_HOSTS = b"\xe0\0\0\1"
#: The same for IPv6 (RFC 2711), of MLD: in hop-by-hop options, before ICMPv6, filled up.
_ALERT6 = b"\x05\x02\0\0"
_HOP_BY_HOP = bytes((ipv6.IPPROTO_ICMPV6, 0)) + _ALERT6 + b"\x01\0"

_HOP_LIMIT_OFFSET = 7
_NEXT_HEADER_OFFSET = 6
_SOURCE_OFFSET = 8

#: Kind, group, sources.
Record = tuple[int, bytes, tuple[bytes, ...]]


def is_mld(kind: int) -> bool:
    """The ICMPv6 type belongs to MLD."""
    return kind in _MLD_TYPES


def parse_igmp(buf: Octets, off: int, end: int) -> list[Record] | None:
    """What the IGMP message ``buf[off:end]`` of the guest reports, ``None`` if it is malformed.

    Empty for queries, and for types that do not exist.
    """
    if end - off < _IGMP_LEN or checksum(buf[off:end]):
        return None
    kind = buf[off]
    if kind == _IGMP_REPORT:
        return _records(buf, off, end, 4)
    group = bytes(buf[off + _IGMP_GROUP : off + _IGMP_GROUP + 4])
    if kind in _IGMP_OLD_REPORTS:
        return _valid(TO_EXCLUDE, group)
    return _valid(TO_INCLUDE, group) if kind == _IGMP_LEAVE else []


def parse_mld(buf: Octets, ip: int, off: int, end: int) -> list[Record] | None:
    """What the MLD message ``buf[off:end]`` of the guest reports, ``None`` if it is malformed.

    Its IPv6 header is at ``ip``, and all headers up to ``off`` are whole.  Empty for queries.
    """
    source = bytes(buf[ip + _SOURCE_OFFSET : ip + _SOURCE_OFFSET + 16])
    near = source == ipv6.UNSPECIFIED or (source[0] == 0xFE and source[1] & 0xC0 == 0x80)
    if not near or buf[ip + _HOP_LIMIT_OFFSET] != 1 or not _alerts_routers(buf, ip, off):
        return None
    if end - off < _RECORDS:
        return None
    destination = bytes(buf[ip + _SOURCE_OFFSET + 16 : ip + ipv6.HEADER_LEN])
    pseudo = pseudo_sum(source, destination, ipv6.IPPROTO_ICMPV6, end - off)
    if checksum(buf[off:end], pseudo):
        return None
    kind = buf[off]
    if kind == _MLD_REPORT:
        return _records(buf, off, end, 16)
    if end - off < _MLD_LEN:
        return None
    group = bytes(buf[off + _MLD_GROUP : off + _MLD_GROUP + 16])
    if kind == _MLD_OLD_REPORT:
        return _valid(TO_EXCLUDE, group)
    return _valid(TO_INCLUDE, group) if kind == _MLD_DONE else []


def _records(buf: Octets, off: int, end: int, size: int) -> list[Record] | None:
    """The records of a report with addresses of ``size`` bytes, ``None`` if one is cut off."""
    count = buf[off + _COUNT] << 8 | buf[off + _COUNT + 1]
    at = off + _RECORDS
    records: list[Record] = []
    for _ in range(min(count, MAX_RECORDS)):
        start = at + _RECORD.size + size
        if start > end:
            return None
        kind, auxiliary, sources = _RECORD.unpack_from(buf, at)
        stop = start + sources * size
        at = stop + auxiliary * 4
        if at > end:
            return None
        group = bytes(buf[start - size : start])
        # Kinds that are unknown are ignored (RFC 3376, 4.2.12; RFC 3810, 5.2.12).
        if IS_INCLUDE <= kind <= BLOCK and _is_group(group):
            stop = min(stop, start + MAX_SOURCES * size)
            named = tuple(bytes(buf[i : i + size]) for i in range(start, stop, size))
            records.append((kind, group, named))
    return records


def _valid(kind: int, group: bytes) -> list[Record]:
    """A message of an older version as records; none if ``group`` is no group."""
    return [(kind, group, ())] if _is_group(group) else []


def _is_group(addr: bytes) -> bool:
    return addr[0] & 0xF0 == 0xE0 if len(addr) == 4 else addr[0] == 0xFF


def _alerts_routers(buf: Octets, ip: int, l4: int) -> bool:
    """Whether hop-by-hop options come first, and among them the router alert of MLD."""
    if buf[ip + _NEXT_HEADER_OFFSET] != 0:
        return False
    at = ip + ipv6.HEADER_LEN
    end = min(at + (buf[at + 1] + 1) * 8, l4)
    at += 2
    while at < end:
        if buf[at] == 0:
            # One byte of padding.
            at += 1
            continue
        if at + 2 > end or at + 2 + buf[at + 1] > end:
            return False
        if bytes(buf[at : at + 4]) == _ALERT6:
            return True
        at += 2 + buf[at + 1]
    return False


def query4(dst_mac: bytes, src_mac: bytes, src: bytes) -> bytes:
    """The frame of a general query over IPv4 from ``src``."""
    message = bytearray(
        _QUERY4.pack(_IGMP_QUERY, RESPONSE_TIME * 10, 0, ROBUSTNESS, QUERY_INTERVAL, 0)
    )
    message[2:4] = checksum(message).to_bytes(2, "big")
    total = _HEADER4.size + len(_ALERT4) + len(message)
    words = (_HEADER4.size + len(_ALERT4)) // 4
    header = bytearray(
        _HEADER4.pack(
            *(0x40 | words, _INTERNETWORK_CONTROL, total, 0, 0x4000),
            *(1, IPPROTO_IGMP, 0, src, _ALL_HOSTS),
        )
    )
    header += _ALERT4
    header[10:12] = checksum(header).to_bytes(2, "big")
    return ethernet.frame(dst_mac, src_mac, ethernet.ETH_P_IP, header, message)


def query6(dst_mac: bytes, src_mac: bytes, src: bytes) -> bytes:
    """The frame of a general query over IPv6 from the link-local address ``src``."""
    fields = (RESPONSE_TIME * 1000, 0, ROBUSTNESS, QUERY_INTERVAL, 0)
    message = bytearray(_QUERY6.pack(_MLD_QUERY, 0, 0, *fields))
    pseudo = pseudo_sum(src, ipv6.ALL_NODES, ipv6.IPPROTO_ICMPV6, len(message))
    message[2:4] = checksum(message, pseudo).to_bytes(2, "big")
    length = len(_HOP_BY_HOP) + len(message)
    header = ipv6.HEADER.pack(0x60000000, length, 0, 1, src, ipv6.ALL_NODES)
    return ethernet.frame(dst_mac, src_mac, ethernet.ETH_P_IPV6, header, _HOP_BY_HOP, message)
