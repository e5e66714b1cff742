"""UDP headers (RFC 768).

The length of a datagram is taken from IP, so the guest's length field is not looked at, and
neither is its checksum.  Towards the guest the checksum may be absent over IPv4, where the
field is 0, but not over IPv6 (RFC 8200, 8.1).  A computed checksum of 0 is sent as 65535.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops
from passt.userspace.wire.checksum import checksum

#: Source port, destination port, length, checksum.
HEADER = struct.Struct("!HHHH")
HEADER_LEN = 8

#: Offsets in the header of what is filled in per datagram.
LENGTH_OFFSET = 4
CHECKSUM_OFFSET = 6

IPPROTO_UDP = 17

_SHORT = (-drops.UDP_SHORT, 0, 0)


def parse(buf: Octets, off: int, end: int) -> tuple[int, int, int]:
    """``(source port, destination port, payload_off)`` of the datagram ``buf[off:end]``.

    The payload ends at ``end``.  A truncated header gives a negative reason as source port.
    """
    if end - off < HEADER_LEN:
        return _SHORT
    sport, dport, _, _ = HEADER.unpack_from(buf, off)
    return sport, dport, off + HEADER_LEN


def header(sport: int, dport: int, payload: Octets, pseudo: int | None = None) -> bytes:
    """A header for ``payload``.

    ``pseudo`` is the pseudo-header's sum *without length*; ``None`` leaves the checksum out
    (IPv4 only).
    """
    length = HEADER_LEN + len(payload)
    field = 0
    if pseudo is not None:
        # The length is in the pseudo-header, too.
        field = checksum(payload, pseudo + sport + dport + 2 * length) or 0xFFFF
    return HEADER.pack(sport, dport, length, field)
