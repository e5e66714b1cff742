"""IPv4 headers (RFC 791): checks on what the guest sends, headers of what we send.

**From the guest.**  Accepted are whole packets with any options (skipped) and any padding
behind the total length (cut off).  The header checksum is not verified: a packet that comes
through a tap device or a virtual machine's queue was not exposed to line noise.  Fragments
are not reassembled.  Loopback addresses have no business on a link, and neither groups nor
everybody can be the source of a packet (RFC 1122, 3.2.1.3); 0.0.0.0 can, for want of a better
one.

**To the guest.**  Type of service 0, identification 0, don't fragment, TTL 255, no options.
As only the total length differs between the packets of a flow, the header's sum without it
is computed once (:func:`template_sum`) and each packet costs one addition.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops, ethernet
from passt.userspace.wire.checksum import checksum, fold, raw_sum

#: Version and header length, type of service, total length, identification, flags and
#: fragment offset, TTL, protocol, checksum, source, destination.
HEADER = struct.Struct("!BBHHHBBH4s4s")
HEADER_LEN = 20

IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_UDP = 17
_HANDLED = frozenset((IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP))

#: Flags and fragment offset of everything we send: don't fragment.
DONT_FRAGMENT = 0x4000
DEFAULT_TTL = 255

#: Offsets in the header of what is filled in per packet.
TOTAL_LEN_OFFSET = 2
CHECKSUM_OFFSET = 10

#: Protocol, L4 offset, L4 end, TTL, source, destination.
Packet = tuple[int, int, int, int, bytes, bytes]


def _drop(reason: int) -> Packet:
    return (-reason, 0, 0, 0, b"", b"")


_SHORT = _drop(drops.IP4_SHORT)
_VERSION = _drop(drops.IP4_VERSION)
_HEADER_LEN = _drop(drops.IP4_HEADER_LEN)
_TOTAL_LEN = _drop(drops.IP4_TOTAL_LEN)
_FRAGMENT = _drop(drops.IP4_FRAGMENT)
_LOOPBACK = _drop(drops.IP4_LOOPBACK)
_SOURCE = _drop(drops.IP4_SOURCE)

_BROADCAST = b"\xff" * 4


def parse(buf: Octets, off: int, end: int) -> Packet:
    """``(protocol, l4_off, l4_end, ttl, source, destination)`` of the packet at ``off``.

    ``protocol`` is TCP, UDP or ICMP, and ``buf[l4_off:l4_end]`` the L4 packet, possibly too
    short for its header.  Otherwise ``protocol`` is a negative reason.  The addresses are
    then empty, except for :data:`drops.IP4_PROTOCOL`: such a packet is well-formed and its
    source may be taken as an address of the guest.
    """
    if end - off < HEADER_LEN:
        return _SHORT
    version, _, total, _, fragment, ttl, protocol, _, src, dst = HEADER.unpack_from(buf, off)
    if version >> 4 != 4:
        return _VERSION
    header = (version & 0xF) << 2
    if header < HEADER_LEN or off + header > end:
        return _HEADER_LEN
    if total < header or off + total > end:
        return _TOTAL_LEN
    # All but DF: more fragments, a fragment offset, and the reserved bit.
    if fragment & 0xBFFF:
        return _FRAGMENT
    if src[0] == 127 or dst[0] == 127:
        return _LOOPBACK
    if src[0] >= 224 and (src[0] < 240 or src == _BROADCAST):
        return _SOURCE
    if protocol not in _HANDLED:
        protocol = -drops.IP4_PROTOCOL
    return protocol, off + header, off + total, ttl, src, dst


def template(src: bytes, dst: bytes, protocol: int) -> bytes:
    """A header with total length and checksum 0, to be filled in per packet."""
    return HEADER.pack(0x45, 0, 0, 0, DONT_FRAGMENT, DEFAULT_TTL, protocol, 0, src, dst)


def template_sum(header: bytes) -> int:
    """The folded sum of a :func:`template`, for :func:`header_checksum`."""
    return raw_sum(header)


def header_checksum(base: int, total: int) -> int:
    """Checksum of the header with template sum ``base`` and a total length of ``total``."""
    return ~fold(base + total) & 0xFFFF


def header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """A complete header for ``length`` bytes of L4 packet."""
    total = HEADER_LEN + length
    bare = HEADER.pack(0x45, 0, total, 0, DONT_FRAGMENT, DEFAULT_TTL, protocol, 0, src, dst)
    return b"".join((bare[:10], checksum(bare).to_bytes(2, "big"), bare[12:]))


def frame(
    dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, protocol: int, *l4: Octets
) -> bytes:
    """A complete Ethernet frame, padded to 60 bytes, around the L4 packet's parts."""
    length = sum(map(len, l4))
    return ethernet.frame(
        dst_mac, src_mac, ethernet.ETH_P_IP, header(src, dst, protocol, length), *l4
    )
