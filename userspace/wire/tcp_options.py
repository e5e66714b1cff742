"""TCP options: maximum segment size (RFC 9293, 3.2), window scale and timestamps (RFC 7323),
selective acknowledgements (RFC 2018).

Parsing stops at the end-of-list option, and at an option whose length byte is missing, less
than 2, or points beyond the header: options found until then count, later ones are absent.
A known option of unexpected length is skipped like an unknown one.  If an option repeats,
the last one wins.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets

_END = 0
_NOP = 1
_MSS = 2
_WINDOW_SCALE = 3
_SACK_PERMITTED = 4
_SACK = 5
_TIMESTAMPS = 8

_U16 = struct.Struct("!H")
_PAIR = struct.Struct("!II")

#: Blocks that fit into the 40 bytes of options.
MAX_SACK_BLOCKS = 4

#: (left edge, right edge): sequence numbers of the first byte of a block and of the byte
#: behind its last.
SackBlock = tuple[int, int]


class TcpOptions:
    """Options of one segment.

    ``mss`` (bytes) and ``window_scale`` (shift) hold the plain fields, whatever the guest
    put there, -1 if absent; ``timestamps`` is ``(value, echo reply)``.
    """

    __slots__ = ("mss", "sack", "sack_permitted", "timestamps", "window_scale")

    def __init__(self) -> None:
        self.mss = -1
        self.window_scale = -1
        self.sack_permitted = False
        self.sack: tuple[SackBlock, ...] = ()
        self.timestamps: tuple[int, int] | None = None


def parse_options(buf: Octets, off: int, end: int) -> TcpOptions:
    """All options in ``buf[off:end]``, the space between fixed header and payload."""
    options = TcpOptions()
    while off < end:
        kind = buf[off]
        if kind == _NOP:
            off += 1
            continue
        if kind == _END or off + 1 >= end:
            break
        size = buf[off + 1]
        if size < 2 or off + size > end:
            break
        if kind == _MSS:
            if size == 4:
                options.mss = _U16.unpack_from(buf, off + 2)[0]
        elif kind == _WINDOW_SCALE:
            if size == 3:
                options.window_scale = buf[off + 2]
        elif kind == _SACK_PERMITTED:
            if size == 2:
                options.sack_permitted = True
        elif kind == _SACK:
            if size > 2 and size % 8 == 2:
                options.sack = tuple(
                    _PAIR.unpack_from(buf, at) for at in range(off + 2, off + size, 8)
                )
        elif kind == _TIMESTAMPS and size == 10:
            options.timestamps = _PAIR.unpack_from(buf, off + 2)
        off += size
    return options


def syn_options(mss: int, window_scale: int | None = None, sack_permitted: bool = False) -> bytes:
    """Options of a SYN or SYN|ACK: MSS, [NOP, NOP, SACK-permitted], [NOP, window scale].

    4 to 12 bytes, a multiple of 4, in the order that Linux uses.
    """
    options = b"\x02\x04" + _U16.pack(mss)
    if sack_permitted:
        options += b"\x01\x01\x04\x02"
    if window_scale is not None:
        options += bytes((_NOP, _WINDOW_SCALE, 3, window_scale))
    return options


def sack_option(blocks: list[SackBlock] | tuple[SackBlock, ...]) -> bytes:
    """NOP, NOP and a SACK option with the first four of ``blocks``; empty if there are none.

    The first block must be the one that holds the segment which triggered the
    acknowledgement (RFC 2018, 4).
    """
    if not blocks:
        return b""
    parts = [_PAIR.pack(left, right) for left, right in blocks[:MAX_SACK_BLOCKS]]
    return bytes((_NOP, _NOP, _SACK, 2 + 8 * len(parts))) + b"".join(parts)
