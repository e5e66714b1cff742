"""Domain names on the wire (RFC 1035, 3.1 and 4.1.4): labels, lists, compression.

A name is a sequence of labels, each a length byte and up to 63 bytes, and a length of 0 at
the end; altogether at most 255 bytes.  Lists of names come in two forms: plainly one after
the other (DHCPv6, Neighbour Discovery), and with pointers, where the rest of a name that
occurred before is replaced by its position (DHCP).  Names are text as users write it, in
bytes, with or without a dot at the end; the root and empty labels are no names here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LABEL = 63
MAX_NAME = 255

#: The two upper bits of a length byte that make it the first of a pointer.
_POINTER = 0xC000


def labels(name: bytes) -> list[bytes] | None:
    """The labels of ``name``, ``None`` if it is not a name."""
    parts = name.removesuffix(b".").split(b".")
    if not all(0 < len(part) <= MAX_LABEL for part in parts):
        return None
    return parts if sum(len(part) + 1 for part in parts) < MAX_NAME else None


def encode(name: bytes) -> bytes | None:
    """``name`` in wire format with its terminating zero, ``None`` if it is not a name."""
    parts = labels(name)
    if parts is None:
        return None
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def encode_list(names: Sequence[bytes], limit: int) -> bytes:
    """``names`` one after the other, as many as fit into ``limit`` bytes."""
    encoded = b""
    for name in names:
        wire = encode(name) or b""
        if len(encoded) + len(wire) > limit:
            break
        encoded += wire
    return encoded


def compress_list(names: Sequence[bytes], limit: int) -> bytes:
    """``names`` with pointers relative to the start, as many as fit into ``limit`` bytes.

    A pointer only ever replaces the whole rest of a name (RFC 3397, section 2).
    """
    encoded = b""
    #: Where each rest of a name begins.
    known: dict[tuple[bytes, ...], int] = {}
    for name in names:
        rest = tuple(labels(name) or ())
        if not rest:
            continue
        wire = b""
        seen: dict[tuple[bytes, ...], int] = {}
        while rest and rest not in known:
            seen[rest] = len(encoded) + len(wire)
            wire += bytes((len(rest[0]),)) + rest[0]
            rest = rest[1:]
        wire += (_POINTER | known[rest]).to_bytes(2, "big") if rest else b"\0"
        if len(encoded) + len(wire) > limit:
            break
        encoded += wire
        # Positions a pointer cannot hold do not occur in options.
        known.update(seen)
    return encoded
