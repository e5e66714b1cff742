"""ICMP (RFC 792) and ICMPv6 (RFC 4443): echo messages, and frames around any message.

The two differ in type numbers and in the checksum: ICMPv6 includes a pseudo-header.
Checksums of received messages are not verified; those of what we send are always complete.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops, ipv4, ipv6
from passt.userspace.wire.checksum import checksum, pseudo_sum

#: Type, code, checksum, identifier, sequence number: an echo message without its data.
ECHO_HEADER = struct.Struct("!BBHHH")

#: Every message that we understand has at least this many bytes.
HEADER_LEN = 8

CHECKSUM_OFFSET = 2

ECHO_REPLY = 0
UNREACHABLE = 3
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12

#: Code of UNREACHABLE.
FRAGMENTATION_NEEDED = 4

UNREACHABLE6 = 1
PACKET_TOO_BIG6 = 2
TIME_EXCEEDED6 = 3
PARAMETER_PROBLEM6 = 4
ECHO_REQUEST6 = 128
ECHO_REPLY6 = 129

_SHORT = (-drops.ICMP_SHORT, 0, 0, 0)


def parse(buf: Octets, off: int, end: int) -> tuple[int, int, int, int]:
    """``(type, code, identifier, sequence)`` of the message ``buf[off:end]``.

    The last two mean something in echo messages only, whose data start at ``off + 8``.  A
    message of less than 8 bytes gives a negative reason as type.
    """
    if end - off < HEADER_LEN:
        return _SHORT
    kind, code, _, identifier, sequence = ECHO_HEADER.unpack_from(buf, off)
    return kind, code, identifier, sequence


def frame4(dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, message: bytearray) -> bytes:
    """An Ethernet frame with an ICMP message, whose checksum field (0 so far) is filled in."""
    message[2:4] = checksum(message).to_bytes(2, "big")
    return ipv4.frame(dst_mac, src_mac, src, dst, ipv4.IPPROTO_ICMP, message)


def frame6(
    dst_mac: bytes, src_mac: bytes, src: bytes, dst: bytes, message: bytearray, label: int = 0
) -> bytes:
    """An Ethernet frame with an ICMPv6 message, whose checksum field (0 so far) is filled in."""
    pseudo = pseudo_sum(src, dst, ipv6.IPPROTO_ICMPV6, len(message))
    message[2:4] = checksum(message, pseudo).to_bytes(2, "big")
    return ipv6.frame(dst_mac, src_mac, src, dst, ipv6.IPPROTO_ICMPV6, message, label=label)


def echo_reply(
    dst_mac: bytes,
    src_mac: bytes,
    src: bytes,
    dst: bytes,
    identifier: int,
    sequence: int,
    data: Octets,
) -> bytes:
    """The frame of an echo reply, of the version that the addresses belong to."""
    kind = ECHO_REPLY if len(src) == 4 else ECHO_REPLY6
    message = bytearray(ECHO_HEADER.pack(kind, 0, 0, identifier, sequence))
    message += data
    frame = frame4 if len(src) == 4 else frame6
    return frame(dst_mac, src_mac, src, dst, message)
