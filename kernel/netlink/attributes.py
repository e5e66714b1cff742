"""Netlink attributes: lists of type-length-value records, as bytes.

Theory of operation
-------------------
Each record is a 16-bit length (header included, padding not), a 16-bit type in the machine's
byte order, the payload, and padding to four bytes.  The two highest bits of the type are flags
(nested, network byte order).  Every length is checked against what is there: a record that
claims more than its list holds raises `FormError`, so a message is either understood whole or
dropped.

Source: Documentation/userspace-api/netlink/intro.rst, linux/netlink.h (struct nlattr).
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
U32 = struct.Struct("=I")


class FormError(ValueError):
    """A message or attribute list does not keep to its own lengths."""


def walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type without flag bits, start, end) of each record's payload in `data[start:end]`.

    Fewer than four bytes at the end are padding.  FormError if a record exceeds the list.
    """
    while end - start >= 4:
        length, kind = _HEADER.unpack_from(data, start)
        if length < 4 or length > end - start:
            raise FormError(f"attribute of {length} bytes in {end - start}")
        yield kind & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def parse(data: bytes, start: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Payloads of the records in `data[start:end]` by type; the last counts if one is repeated."""
    limit = len(data) if end is None else end
    return {kind: data[begin:stop] for kind, begin, stop in walk(data, start, limit)}


def pack(kind: int, payload: bytes) -> bytes:
    """One record, padded to four bytes."""
    return _HEADER.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def pack_u32(kind: int, value: int) -> bytes:
    """One record with a 32-bit number in the machine's byte order."""
    return _HEADER.pack(8, kind) + U32.pack(value)


def u32(payload: bytes) -> int:
    """The 32-bit number of a payload; FormError if it is shorter."""
    if len(payload) < 4:
        raise FormError(f"32-bit number in {len(payload)} bytes")
    value: int = U32.unpack_from(payload)[0]
    return value
