"""Changing inputs: blindly, byte by byte, or with a hand from their format.

Every function takes its randomness from ``rnd`` and nowhere else, so that a campaign can be
repeated from its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_BYTES = (0, 1, 2, 4, 5, 6, 7, 8, 0x0F, 0x10, 0x11, 0x20, 0x3A, 0x40, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (0, 1, 2, 7, 8, 19, 20, 21, 39, 40, 41, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
_LONGS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def havoc(
    data: bytes,
    rnd: Random,
    *,
    limit: int,
    dictionary: Sequence[bytes] = (),
    others: Sequence[bytes] = (),
) -> bytes:
    """``data`` with one to eight changes, cut to ``limit`` bytes.

    ``dictionary`` are strings worth inserting, ``others`` inputs to take pieces from.
    """
    out = bytearray(data)
    for _ in range(1 << rnd.randrange(4)):
        _change(out, rnd, dictionary, others)
    return bytes(out[:limit])


def _change(
    out: bytearray, rnd: Random, dictionary: Sequence[bytes], others: Sequence[bytes]
) -> None:
    kind = rnd.randrange(12)
    size = len(out)
    if not size or kind == 0:
        at = rnd.randint(0, size)
        out[at:at] = rnd.randbytes(rnd.choice((1, 1, 2, 4, 8, 32)))
        return
    at = rnd.randrange(size)
    span = min(rnd.choice((1, 1, 2, 2, 4, 8, 16, 64)), size - at)
    if kind == 1:
        out[at] ^= 1 << rnd.randrange(8)
    elif kind == 2:
        out[at] = rnd.choice(_BYTES)
    elif kind == 3:
        out[at] = rnd.randrange(256)
    elif kind == 4:
        out[at] = (out[at] + rnd.randint(-16, 16)) & 0xFF
    elif kind == 5:
        out[at : at + 2] = _word(out, at, rnd)
    elif kind == 6:
        out[at : at + 4] = rnd.choice(_LONGS).to_bytes(4, "big")
    elif kind == 7:
        del out[at : at + span]
    elif kind == 8:
        out[at:at] = out[at : at + span] * rnd.choice((1, 1, 1, 2, 16))
    elif kind == 9:
        target = rnd.randrange(size)
        out[target : target + span] = out[at : at + span]
    elif kind == 10 and dictionary:
        word = rnd.choice(dictionary)
        if rnd.random() < 0.5:
            out[at:at] = word
        else:
            out[at : at + len(word)] = word
    elif others:
        other = rnd.choice(others)
        if other:
            start = rnd.randrange(len(other))
            out[at : at + span] = other[start : start + rnd.choice((span, len(other)))]


def _word(out: bytearray, at: int, rnd: Random) -> bytes:
    """A 16-bit number for position ``at``: a little more or less, or a telling one."""
    if rnd.random() < 0.5:
        value = int.from_bytes(out[at : at + 2], "big") + rnd.randint(-8, 8)
    else:
        value = rnd.choice(_WORDS)
    return (value & 0xFFFF).to_bytes(2, "big")
