"""The Internet checksum (RFC 1071): sums in ones' complement arithmetic of 16 bits.

**Method.**  2^16 is congruent to 1 modulo 65535, so the sum of a buffer's 16-bit words is
the buffer itself, read as one big number, modulo 65535.  Python reads a buffer into a number
and divides it by a small one in C: no loop over words.  Above about 2 KiB it is cheaper to
fold first, adding the upper part of the number to the lower one (split at a multiple of 16
bits) until it is short.  The split is also a multiple of 30 bits, the size of CPython's
digits, which makes the shift a plain copy.  Large buffers are read in pieces that stay in
the first-level cache.

**Byte order.**  The ones' complement sum does not depend on it, except that the result comes
out in the order of the input (RFC 1071, 2B).  The buffer is read as a *little-endian* number
because this pads an odd last byte with zero on the right, as the checksum demands, whatever
the length; the result is swapped once.  All sums that functions here take and return are in
network order: the value of the field as ``struct`` packs it with ``!H``, so that plain
integers (lengths, protocol numbers, 32-bit sequence numbers) can be added as they are.

**Zero.**  Ones' complement has two zeroes.  A sum is 0 only if every byte is zero, else
65535; thus the checksum of data that sum to zero is 0.  UDP must not send that 0, see
:mod:`passt.userspace.wire.udp`.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets

_FIELD = struct.Struct("!H")

#: Buffers up to this many bytes are divided directly.
_DIRECT = 2048
_DIRECT_BITS = _DIRECT * 8

#: Bytes read at once; even, so that the pieces' words line up.
_PIECE = 8192

#: Splits are multiples of 16 (words) and 30 (CPython's digits) bits.
_ALIGN = 240


def fold(total: int) -> int:
    """Reduce a non-negative sum of any size to 16 bits; 0 only for 0."""
    return total % 65535 or (65535 if total else 0)


def raw_sum(view: Octets) -> int:
    """The 16-bit ones' complement sum of ``view``, not complemented.

    An odd last byte counts as the upper half of a word.  Position and alignment of the view
    do not matter, but when sums of parts are added all parts except the last must have an
    even length.
    """
    size = len(view)
    if size <= _DIRECT:
        number = int.from_bytes(view, "little")
    else:
        number = 0
        for at in range(0, size, _PIECE):
            number += int.from_bytes(view[at : at + _PIECE], "little")
        # 16 bits more hold the carries of 2^16 pieces, half a gigabyte.
        bits = min(size, _PIECE) * 8 + 16
        while bits > _DIRECT_BITS:
            split = (bits // (2 * _ALIGN) + 1) * _ALIGN
            number = (number >> split) + (number & ((1 << split) - 1))
            bits = split + 1
    swapped = number % 65535 or (65535 if number else 0)
    return (swapped & 0xFF) << 8 | swapped >> 8


def checksum(view: Octets, initial: int = 0) -> int:
    """The checksum field for ``view``, in which that field must be zero.

    ``initial`` is a sum, folded or not, to start from: usually that of a pseudo-header.
    Over data with a *valid* checksum in place the result is 0.
    """
    return ~fold(raw_sum(view) + initial) & 0xFFFF


def pseudo_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """The sum of a pseudo-header, **not folded**: add it to other sums, or fold it.

    Serves IPv4 (RFC 9293, 3.1) and IPv6 (RFC 8200, 8.1) alike, as they differ only in zero
    bytes.  ``length`` is that of the L4 header and payload.  It may be 0 in a sum kept per
    flow, and added for each packet.
    """
    return int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length


def complete(frame: memoryview, start: int, offset: int) -> None:
    """Finish a partial checksum in place (Linux's CHECKSUM_PARTIAL, virtio 1.2, 5.1.6.2).

    The field at ``start + offset`` holds the folded sum of the pseudo-header; it is replaced
    by the checksum over ``frame[start:]``.  Zero is written as 65535, its other form, which
    every protocol accepts and UDP demands.  A field outside the frame is left alone.
    """
    field = start + offset
    if start < 0 or offset < 0 or field + 2 > len(frame):
        return
    _FIELD.pack_into(frame, field, checksum(frame[start:]) or 0xFFFF)
