"""ICMP errors about echo requests of the guest (RFC 792, RFC 4443).

The host's kernel quotes the request as *we* sent it; the guest gets the quote as *it* sent
it: its own address and identifier, and the destination that it used.  Ping programs find
their request by the identifier and sequence number in the quoted header.

The quote is as long as the kernel's, within the bounds of the standards, and its lengths and
checksums are those of what is quoted.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import icmp, ipv4, ipv6
from passt.userspace.wire.checksum import checksum, pseudo_sum

#: Type, code, checksum, the rest of the header.
_HEADER = struct.Struct("!BBHI")

#: An ICMP error has at most 576 bytes (RFC 1812, 4.3.2.3), one of ICMPv6 at most 1280 (RFC
#: 4443, 2.4c).  What two IP headers and that of the error leave for the quoted message:
MAX_QUOTE4 = 576 - 2 * ipv4.HEADER_LEN - icmp.HEADER_LEN
MAX_QUOTE6 = 1280 - 2 * ipv6.HEADER_LEN - icmp.HEADER_LEN


def echo_error(
    dst_mac: bytes,
    src_mac: bytes,
    offender: bytes,
    guest: bytes,
    seen: bytes,
    identifier: int,
    kind: int,
    code: int,
    mtu: int,
    request: bytes,
) -> bytes:
    """The frame of an error from ``offender`` about an echo request from ``guest`` to ``seen``.

    ``request`` is the ICMP message from its type on, at least 8 bytes, whose identifier is
    replaced by the guest's.  ``mtu`` (bytes) is used for *fragmentation needed* and *packet
    too big* only.
    """
    v4 = len(guest) == 4
    quote = bytearray(request[: MAX_QUOTE4 if v4 else MAX_QUOTE6])
    quote[2:6] = b"\0\0" + identifier.to_bytes(2, "big")
    rest = 0
    if v4:
        quote[2:4] = checksum(quote).to_bytes(2, "big")
        if kind == icmp.UNREACHABLE and code == icmp.FRAGMENTATION_NEEDED:
            rest = mtu & 0xFFFF
        message = bytearray(_HEADER.pack(kind, code, 0, rest))
        message += ipv4.header(guest, seen, ipv4.IPPROTO_ICMP, len(quote))
        message += quote
        return icmp.frame4(dst_mac, src_mac, offender, guest, message)
    pseudo = pseudo_sum(guest, seen, ipv6.IPPROTO_ICMPV6, len(quote))
    quote[2:4] = checksum(quote, pseudo).to_bytes(2, "big")
    if kind == icmp.PACKET_TOO_BIG6:
        rest = mtu & 0xFFFFFFFF
    message = bytearray(_HEADER.pack(kind, code, 0, rest))
    message += ipv6.header(guest, seen, ipv6.IPPROTO_ICMPV6, len(quote))
    message += quote
    return icmp.frame6(dst_mac, src_mac, offender, guest, message)
