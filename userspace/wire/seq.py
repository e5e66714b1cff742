"""TCP sequence arithmetic: the only place where sequence numbers are compared.

Sequence numbers are 32-bit unsigned and wrap (RFC 9293, 3.4).  ``a`` is *before* ``b`` if
the signed 32-bit difference ``a - b`` is negative.  That order is meaningful only within a
distance: we never have more than :data:`MAX_DISTANCE` bytes, the largest window, under way,
so whatever is further away is neither before nor after, see :func:`near`.

Arguments must be in 0 … 2^32 - 1, results are.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF

#: Bytes: the largest window either way.
MAX_DISTANCE = 1 << 24


def seq_add(seq: int, count: int) -> int:
    """``seq`` advanced by ``count`` bytes, which may be negative."""
    return (seq + count) & MASK


def seq_diff(a: int, b: int) -> int:
    """``a - b`` as a signed 32-bit number: positive if ``a`` is after ``b``."""
    return ((a - b + 0x80000000) & MASK) - 0x80000000


def seq_lt(a: int, b: int) -> bool:
    """``a`` is before ``b``."""
    return (a - b) & 0x80000000 != 0


def seq_le(a: int, b: int) -> bool:
    """``a`` is before ``b``, or equal."""
    return not 0 < (a - b) & MASK < 0x80000000


def seq_gt(a: int, b: int) -> bool:
    """``a`` is after ``b``."""
    return 0 < (a - b) & MASK < 0x80000000


def seq_ge(a: int, b: int) -> bool:
    """``a`` is after ``b``, or equal."""
    return (a - b) & 0x80000000 == 0


def between(low: int, seq: int, high: int) -> bool:
    """``low <= seq <= high``, going upwards from ``low``."""
    return (seq - low) & MASK <= (high - low) & MASK


def near(a: int, b: int) -> bool:
    """``a`` and ``b`` are close enough to be ordered: at most 2^24 bytes apart."""
    return -MAX_DISTANCE <= seq_diff(a, b) <= MAX_DISTANCE
