"""Cuts superframes for a link that has no offloads: what a network card does with TSO and USO.

A superframe has the headers of one packet, with lengths of the whole, and payload for many.  Each
frame made of it has the same headers, with its own lengths, IPv4 header checksum, TCP sequence
number, and a complete checksum; PSH and FIN are those of the last (virtio 1.2, 5.1.6; RFC 9293).
Identification stays 0, as DF is set (RFC 6864).

It is cheaper to cut here than to have made the frames one by one: data is taken from its socket in
one call, and given to the guest in one.  What all frames have in common is summed once, so that
each takes one sum over its payload and one packing of its headers.
"""

from __future__ import annotations

import struct

from passt.userspace.link.base import MIN_FRAME
from passt.userspace.wire.checksum import raw_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ETHERNET = 14
_TCP, _UDP = 6, 17
#: Where the checksum is tells the protocol.
_TCP_CHECKSUM = 16
_PSH_FIN = 0x09

_LENGTH = struct.Struct("!I")
_SEQ = struct.Struct("!I")
_FIELD = struct.Struct("!H")

#: Payloads up to this size are summed in place (:mod:`passt.userspace.wire.checksum`).
_DIRECT = 2048


def room(frame: int, size: int, header: int) -> int:
    """The most that :func:`cut` writes for ``frame`` bytes with ``header`` bytes of headers."""
    count = -(-(frame - header) // size)
    return frame + count * (_LENGTH.size + max(header, MIN_FRAME))


def cut(frame: memoryview, size: int, header: int, start: int, offset: int, out: memoryview) -> int:
    """Write the frames that ``frame`` consists of to ``out``, each behind its length in 4 bytes.

    Each has ``size`` bytes of payload, the last perhaps fewer.  There are ``header`` bytes of
    headers; that of TCP or UDP is at ``start``, its checksum ``offset`` bytes further on.  ``out``
    must have :func:`room`.  Returns the number of bytes written.
    """
    total = len(frame) - header
    tcp = offset == _TCP_CHECKSUM
    v4 = frame[12] == 8
    addresses = raw_sum(frame[26:34] if v4 else frame[22:54])
    common = addresses + raw_sum(frame[start : start + 4]) + header - start
    first = seq = 0
    middle = b""
    if tcp:
        (first,) = _SEQ.unpack_from(frame, start + 4)
        last_middle = bytes(frame[start + 8 : start + 16])
        middle = last_middle[:5] + bytes([last_middle[5] & ~_PSH_FIN]) + last_middle[6:]
        common += _TCP
    else:
        common += _UDP
    pack = _packer(start, tcp)
    fixed = common + raw_sum(middle)
    count = min(size, total)
    head = _head(frame, count, header, start, v4)
    at = 0
    for begin in range(0, total, size):
        end = begin + size
        if end >= total:
            end = total
            count = end - begin
            head = _head(frame, count, header, start, v4)
            if tcp:
                middle = last_middle
                fixed = common + raw_sum(middle)
        payload = frame[header + begin : header + end]
        if count <= _DIRECT:
            word = int.from_bytes(payload, "little") % 65535
            word = (word & 0xFF) << 8 | word >> 8
        else:
            word = raw_sum(payload)
        length = header + count
        if tcp:
            seq = first + begin & 0xFFFFFFFF
            word += fixed + count + (seq >> 16) + (seq & 0xFFFF)
        else:
            # The length is in the header as well as in the pseudo-header.
            word += fixed + count + 8 + count
        word = (word & 0xFFFF) + (word >> 16)
        word = ~((word & 0xFFFF) + (word >> 16)) & 0xFFFF or 0xFFFF
        begin_payload = at + 4 + header
        after = begin_payload + count
        out[begin_payload:after] = payload
        if length < MIN_FRAME:
            out[after : after + MIN_FRAME - length] = bytes(MIN_FRAME - length)
            length = MIN_FRAME
        if tcp:
            pack(out, at, length, head, seq, middle, word)
        else:
            pack(out, at, length, head, 8 + count, word)
        at += 4 + length
    return at


#: Packing functions by where the L4 header is, and whether it is that of TCP.
_packers: dict[tuple[int, bool], Callable[..., None]] = {}


def _packer(start: int, tcp: bool) -> Callable[..., None]:
    """Writes a frame's length and its headers, from constant and varying parts."""
    pack = _packers.get((start, tcp))
    if pack is None:
        layout = f"!I{start + 4}sI8sH2x" if tcp else f"!I{start + 4}sHH"
        pack = _packers[start, tcp] = struct.Struct(layout).pack_into
    return pack


def _head(frame: memoryview, count: int, header: int, start: int, v4: bool) -> bytes:
    """Headers up to the ports, for ``count`` bytes of payload."""
    head = bytearray(frame[: start + 4])
    if v4:
        _FIELD.pack_into(head, 16, header - _ETHERNET + count)
        head[24:26] = b"\0\0"
        _FIELD.pack_into(head, 24, ~raw_sum(head[_ETHERNET:start]) & 0xFFFF)
    else:
        _FIELD.pack_into(head, 18, header - start + count)
    return bytes(head)
