"""TCP headers (RFC 9293, 3.1) and the flags; options are in :mod:`~.tcp_options`.

Checksum, urgent pointer and reserved bits of received segments are not looked at.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops
from passt.userspace.wire.checksum import checksum

#: Source port, destination port, sequence number, acknowledgement number, data offset,
#: flags, window, checksum, urgent pointer.
HEADER = struct.Struct("!HHIIBBHHH")
HEADER_LEN = 20

#: Largest header: the data offset has four bits.
MAX_HEADER_LEN = 60

CHECKSUM_OFFSET = 16

IPPROTO_TCP = 6

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20
ECE = 0x40
CWR = 0x80

#: Source port, destination port, sequence, acknowledgement, flags, window, payload offset.
Segment = tuple[int, int, int, int, int, int, int]

_SHORT: Segment = (-drops.TCP_SHORT, 0, 0, 0, 0, 0, 0)
_HEADER_LEN: Segment = (-drops.TCP_HEADER_LEN, 0, 0, 0, 0, 0, 0)


def parse(buf: Octets, off: int, end: int) -> Segment:
    """``(sport, dport, seq, ack, flags, window, payload_off)`` of the segment ``buf[off:end]``.

    The window is the plain field, unscaled.  Options, if any, are in
    ``buf[off + 20:payload_off]``; the payload ends at ``end``.  A truncated header or a data
    offset outside the segment gives a negative reason as source port.
    """
    if end - off < HEADER_LEN:
        return _SHORT
    sport, dport, seq, ack, offset, flags, window, _, _ = HEADER.unpack_from(buf, off)
    size = offset >> 4 << 2
    if size < HEADER_LEN or off + size > end:
        return _HEADER_LEN
    return sport, dport, seq, ack, flags, window, off + size


def segment(
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    pseudo: int,
    options: bytes = b"",
    payload: Octets = b"",
) -> bytes:
    """A complete segment with checksum, for the rare ones: handshake and resets.

    ``pseudo`` is the pseudo-header's sum *without length*; ``options`` must be a multiple of
    4 and at most 40 bytes long (ValueError).
    """
    size = HEADER_LEN + len(options)
    if size & 3 or size > MAX_HEADER_LEN:
        raise ValueError("TCP options must be padded and at most 40 bytes")
    parts = [
        HEADER.pack(sport, dport, seq, ack, size << 2, flags, window, 0, 0),
        options,
        payload,
    ]
    bare = bytearray().join(parts)
    field = checksum(bare, pseudo + len(bare))
    bare[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = field.to_bytes(2, "big")
    return bytes(bare)
