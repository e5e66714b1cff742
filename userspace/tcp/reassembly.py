"""Segments beyond a gap, kept until the gap closes (RFC 9293, 3.10.7.4; RFC 2018).

What arrived is held as ranges: ascending, disjoint, with a gap between any two.  A segment
that touches a range extends it, so an ordinary loss, a hole with a growing run behind it,
costs one range and one copy of the data.  Of bytes that arrive twice the first are kept.

Memory is bounded by who calls, see :mod:`passt.userspace.flow.budget`: :attr:`Reassembly.cost`
counts ranges as well as bytes, as a guest that sends every other byte has us keep a hundred times
as much.

Sequence numbers are unwrapped.
"""

from __future__ import annotations

#: Ranges kept per flow, as they are searched one by one.  Beyond that a segment that touches
#: none is dropped.
MAX_RANGES = 512

#: Bytes that a range takes besides its data: its object, buffer, numbers, and place in the list.
RANGE_COST = 208


class _Range:
    """Contiguous ``data`` from ``start``; ``recent`` grows with each segment for any range."""

    __slots__ = ("data", "recent", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()
        self.recent = 0


class Reassembly:
    """The ranges of one flow; ``size`` counts their bytes."""

    __slots__ = ("_count", "_ranges", "size")

    def __init__(self) -> None:
        self._ranges: list[_Range] = []
        self._count = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def cost(self) -> int:
        """Bytes of memory in use."""
        return self.size + RANGE_COST * len(self._ranges)

    def insert(self, seq: int, data: memoryview) -> int:
        """Keep ``data``, which starts at ``seq``; returns the number of bytes that were new."""
        ranges = self._ranges
        end = seq + len(data)
        at = len(ranges)
        while at and ranges[at - 1].start > seq:
            at -= 1
        if at and ranges[at - 1].start + len(ranges[at - 1].data) >= seq:
            at -= 1
            into = ranges[at]
        else:
            if len(ranges) >= MAX_RANGES:
                return 0
            into = _Range(seq)
            ranges.insert(at, into)
        self._count += 1
        into.recent = self._count
        nxt = into.start + len(into.data)
        new = 0
        behind = at + 1
        while behind < len(ranges) and ranges[behind].start <= end:
            later = ranges[behind]
            into.data += data[nxt - seq : later.start - seq]
            new += later.start - nxt
            into.data += later.data
            nxt = later.start + len(later.data)
            behind += 1
        if nxt < end:
            into.data += data[nxt - seq :]
            new += end - nxt
        del ranges[at + 1 : behind]
        self.size += new
        return new

    def take(self, nxt: int) -> tuple[memoryview | None, int]:
        """What continues the stream at ``nxt``, if anything, and how many bytes were let go.

        Ranges that end before ``nxt`` have arrived by other segments and are let go as well.
        """
        ranges = self._ranges
        let_go = 0
        found: memoryview | None = None
        while ranges and ranges[0].start <= nxt:
            first = ranges.pop(0)
            let_go += len(first.data)
            if first.start + len(first.data) > nxt:
                found = memoryview(first.data)[nxt - first.start :]
                break
        self.size -= let_go
        return found, let_go

    def blocks(self, count: int) -> list[tuple[int, int]]:
        """At most ``count`` ranges as SACK blocks, 32 bits wide, the most recent first."""
        recent = sorted(self._ranges, key=_recency)[:count]
        return [
            (item.start & 0xFFFFFFFF, (item.start + len(item.data)) & 0xFFFFFFFF) for item in recent
        ]


def _recency(item: _Range) -> int:
    return -item.recent
