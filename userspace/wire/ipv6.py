"""IPv6 headers (RFC 8200): checks on what the guest sends, headers of what we send.

**From the guest.**  The payload length must match the frame exactly, as no Ethernet frame
with IPv6 and one of our protocols is short enough to be padded; jumbograms do not fit a
frame.  Extension headers that carry nothing for us are skipped, within bounds on their
number and size.  A fragment header is skipped if the packet is whole all the same (an
*atomic* fragment, RFC 6946); real fragments are not reassembled.

Loopback and v4-mapped addresses (::ffff:0:0/96) never appear on a link.  The latter must be
stopped here: a socket would take them for IPv4 and reach 127.0.0.1 with ::ffff:127.0.0.1.
Groups are no sources (RFC 4291, 2.7).

**To the guest.**  Traffic class 0, hop limit 255, no extension headers.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops, ethernet

#: Version, traffic class and flow label; payload length; next header; hop limit; source;
#: destination.
HEADER = struct.Struct("!IHBB16s16s")
HEADER_LEN = 40
DEFAULT_HOP_LIMIT = 255

#: Offset in the header of what is filled in per packet.
PAYLOAD_LEN_OFFSET = 4

IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_ICMPV6 = 58
_HANDLED = frozenset((IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6))

_FRAGMENT_HEADER = 44
_ESP = 50
_AUTHENTICATION = 51
_NO_NEXT_HEADER = 59

#: Hop-by-hop options, routing, destination options, mobility (RFC 6275), host identity
#: (RFC 7401), shim6 (RFC 5533): the second byte counts units of 8 bytes beyond the first.
_SKIPPED = frozenset((0, 43, 60, 135, 139, 140))

#: Bounds of a chain of extension headers; nothing legitimate comes near.
MAX_EXT_HEADERS = 16
MAX_EXT_BYTES = 256

UNSPECIFIED = b"\0" * 16
LOOPBACK = b"\0" * 15 + b"\1"
ALL_NODES = b"\xff\x02" + b"\0" * 13 + b"\1"
_V4_MAPPED = b"\0" * 10 + b"\xff\xff"

#: Next header, L4 offset, L4 end, hop limit, source, destination.
Packet = tuple[int, int, int, int, bytes, bytes]


def _drop(reason: int) -> Packet:
    return (-reason, 0, 0, 0, b"", b"")


_DROPS = {
    reason: _drop(reason)
    for reason in (
        drops.IP6_SHORT,
        drops.IP6_VERSION,
        drops.IP6_PAYLOAD_LEN,
        drops.IP6_LOOPBACK,
        drops.IP6_SOURCE,
        drops.IP6_V4_MAPPED,
        drops.IP6_EXT_BOUNDS,
        drops.IP6_EXT_LIMIT,
        drops.IP6_FRAGMENT,
    )
}


def parse(buf: Octets, off: int, end: int) -> Packet:
    """``(protocol, l4_off, l4_end, hop_limit, source, destination)`` of the packet at ``off``.

    ``protocol`` is TCP, UDP or ICMPv6, and ``buf[l4_off:l4_end]`` the L4 packet, possibly too
    short for its header.  Otherwise ``protocol`` is a negative reason.  The addresses are
    then empty, except for IP6_ESP, IP6_NO_NEXT and IP6_PROTOCOL of :mod:`drops`: such
    packets are well-formed and their source may be taken as an address of the guest.
    """
    if end - off < HEADER_LEN:
        return _DROPS[drops.IP6_SHORT]
    word, length, protocol, hop_limit, src, dst = HEADER.unpack_from(buf, off)
    if word >> 28 != 6:
        return _DROPS[drops.IP6_VERSION]
    l4 = off + HEADER_LEN
    if length != end - l4:
        return _DROPS[drops.IP6_PAYLOAD_LEN]
    # Both kinds of refused address start with a zero byte, which few others do.
    if not src[0] or not dst[0]:
        if LOOPBACK in (src, dst):
            return _DROPS[drops.IP6_LOOPBACK]
        if src.startswith(_V4_MAPPED) or dst.startswith(_V4_MAPPED):
            return _DROPS[drops.IP6_V4_MAPPED]
    if src[0] == 0xFF:
        return _DROPS[drops.IP6_SOURCE]
    if protocol not in _HANDLED:
        protocol, l4 = walk(buf, l4, end, protocol)
        if -protocol in _DROPS:
            return _DROPS[-protocol]
    return protocol, l4, end, hop_limit, src, dst


def walk(buf: Octets, off: int, end: int, next_header: int) -> tuple[int, int]:
    """Skip extension headers: ``(protocol, l4_off)``, the first of which is at ``off``.

    ``next_header`` is its type, from the header before.  ``protocol`` is TCP, UDP or ICMPv6, else
    a negative reason.
    """
    start = off
    for _ in range(MAX_EXT_HEADERS + 1):
        if next_header in _HANDLED:
            return next_header, off
        if next_header in _SKIPPED or next_header in (_AUTHENTICATION, _FRAGMENT_HEADER):
            if end - off < 8:
                return -drops.IP6_EXT_BOUNDS, off
            if next_header == _FRAGMENT_HEADER:
                # Offset (13 bits), two reserved bits, more fragments.
                if buf[off + 2] or buf[off + 3] & 0xF9:
                    return -drops.IP6_FRAGMENT, off
                size = 8
            elif next_header == _AUTHENTICATION:
                # RFC 4302, 2.2: in units of 4 bytes, minus 2.
                size = (buf[off + 1] + 2) * 4
            else:
                size = (buf[off + 1] + 1) * 8
            if off + size > end:
                return -drops.IP6_EXT_BOUNDS, off
            if off + size - start > MAX_EXT_BYTES:
                return -drops.IP6_EXT_LIMIT, off
            next_header = buf[off]
            off += size
        elif next_header == _ESP:
            return -drops.IP6_ESP, off
        elif next_header == _NO_NEXT_HEADER:
            return -drops.IP6_NO_NEXT, off
        else:
            return -drops.IP6_PROTOCOL, off
    return -drops.IP6_EXT_LIMIT, off


def flow_label(buf: Octets, off: int) -> int:
    """The 20-bit flow label of the header at ``off``, which must be whole."""
    return (buf[off + 1] & 0xF) << 16 | buf[off + 2] << 8 | buf[off + 3]


def header(src: bytes, dst: bytes, protocol: int, length: int, label: int = 0) -> bytes:
    """A header for ``length`` bytes of L4 packet, with a flow label of 20 bits.

    With ``length`` 0 it serves as a template: only the payload length differs per packet.
    """
    return HEADER.pack(0x60000000 | label & 0xFFFFF, length, protocol, DEFAULT_HOP_LIMIT, src, dst)


def frame(
    dst_mac: bytes,
    src_mac: bytes,
    src: bytes,
    dst: bytes,
    protocol: int,
    *l4: Octets,
    label: int = 0,
) -> bytes:
    """A complete Ethernet frame, padded to 60 bytes, around the L4 packet's parts."""
    length = sum(map(len, l4))
    return ethernet.frame(
        dst_mac, src_mac, ethernet.ETH_P_IPV6, header(src, dst, protocol, length, label), *l4
    )
