"""Segments beyond a gap, kept until the gap closes (RFC 9293, 3.10.7.4; RFC 2018).

What arrived is held as *pieces*: ascending and disjoint.  A segment that touches a piece extends
it, and pieces that come to touch are joined, so an ordinary loss, a hole with a growing run
behind it, costs few pieces and one copy of the data.  Of bytes that arrive twice the first are
kept.

A piece of :data:`CHUNK` bytes is neither extended nor joined any more, and its neighbours may
touch it.  Otherwise a guest that fills a gap backwards, byte by byte, would have all that lies
behind it copied for each of them: milliseconds per frame.  Of two pieces that touch one is that
large, so there are never many.

Memory is bounded by who calls, see :mod:`passt.userspace.flow.budget`: :attr:`Reassembly.cost`
counts pieces as well as bytes, as a guest that sends every other byte has us keep a hundred times
as much.

Sequence numbers are unwrapped.
"""

from __future__ import annotations

#: Pieces kept per flow, twice what the largest window can have without gaps.  Beyond that what
#: extends none is dropped.
MAX_PIECES = 512

#: Bytes of a piece that is large enough.
CHUNK = 128 << 10

#: Bytes that a piece takes besides its data: its object, buffer, numbers, and place in the list.
PIECE_COST = 208


class _Piece:
    """Contiguous ``data`` from ``start``; ``recent`` grows with each segment for any piece."""

    __slots__ = ("data", "recent", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.data = bytearray()
        self.recent = 0


class Reassembly:
    """The pieces of one flow; ``size`` counts their bytes."""

    __slots__ = ("_count", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._count = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def cost(self) -> int:
        """Bytes of memory in use."""
        return self.size + PIECE_COST * len(self._pieces)

    def insert(self, seq: int, data: memoryview) -> int:
        """Keep ``data``, which starts at ``seq``; returns the number of bytes that were new."""
        pieces = self._pieces
        end = seq + len(data)
        self._count += 1
        nxt = seq
        new = 0
        while nxt < end:
            at = self._after(nxt)
            piece = pieces[at - 1] if at else None
            known = piece.start + len(piece.data) if piece is not None else -1
            if piece is not None and known > nxt:
                piece.recent = self._count
                nxt = known
                continue
            if piece is None or known < nxt or len(piece.data) >= CHUNK:
                if len(pieces) >= MAX_PIECES:
                    break
                piece = _Piece(nxt)
                pieces.insert(at, piece)
                at += 1
            piece.recent = self._count
            later = pieces[at] if at < len(pieces) else None
            upto = end if later is None else min(end, later.start)
            piece.data += data[nxt - seq : upto - seq]
            new += upto - nxt
            nxt = upto
            if later is None or later.start > nxt:
                continue
            if max(len(piece.data), len(later.data)) < CHUNK:
                piece.data += later.data
                del pieces[at]
        self.size += new
        return new

    def take(self, nxt: int) -> tuple[list[memoryview], int]:
        """What continues the stream at ``nxt``, and how many bytes were let go.

        Pieces that end before ``nxt`` have arrived by other segments and are let go as well.
        """
        found: list[memoryview] = []
        let_go = count = 0
        for piece in self._pieces:
            if piece.start > nxt:
                break
            count += 1
            let_go += len(piece.data)
            end = piece.start + len(piece.data)
            if end > nxt:
                found.append(memoryview(piece.data)[nxt - piece.start :])
                nxt = end
        del self._pieces[:count]
        self.size -= let_go
        return found, let_go

    def blocks(self, count: int) -> list[tuple[int, int]]:
        """At most ``count`` runs without gaps as SACK blocks, 32 bits wide, the latest first."""
        runs: list[tuple[int, int]] = []
        for piece in sorted(self._pieces, key=_recency):
            if len(runs) == count:
                break
            if not any(start <= piece.start < end for start, end in runs):
                runs.append(self._run(piece.start))
        return [(start & 0xFFFFFFFF, end & 0xFFFFFFFF) for start, end in runs]

    def _after(self, seq: int) -> int:
        """The place of the first piece that starts behind ``seq``."""
        pieces = self._pieces
        high = len(pieces)
        if not high or pieces[-1].start <= seq:
            # What comes is mostly behind all that came before.
            return high
        low = 0
        while low < high:
            middle = (low + high) >> 1
            if pieces[middle].start <= seq:
                low = middle + 1
            else:
                high = middle
        return low

    def _run(self, start: int) -> tuple[int, int]:
        """First and next number of the run without gaps that has a piece at ``start``."""
        pieces = self._pieces
        at = self._after(start)
        end = start + len(pieces[at - 1].data)
        for piece in pieces[at:]:
            if piece.start != end:
                break
            end += len(piece.data)
        for piece in pieces[at - 2 :: -1] if at > 1 else ():
            if piece.start + len(piece.data) != start:
                break
            start = piece.start
        return start, end


def _recency(piece: _Piece) -> int:
    return -piece.recent
