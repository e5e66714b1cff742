"""Which of the guest's SYNs are worth a socket, when there are more than can be.

Connections that nobody has answered are bounded by
:class:`passt.userspace.flow.pending.Pending`: so many at a time, and so many per second that come
to nothing.  Under a flood, of SYNs that all differ and none of which is ever repeated, that alone
would leave the others a small chance.  But a guest that means it sends its SYN again, after a
second (RFC 6298), then two, and so on.  So a SYN that finds no place is noted, and one that was
noted before may have a place among a few that are kept for such.  To a program in the guest that
makes the first second of a flood look like the loss of one packet, and nothing else; who floods
with repetitions does not get beyond those few.

What is noted are two bits per SYN in a bit map (a Bloom filter with two hash functions, the two
halves of Python's keyed hash of addresses and ports, so that nobody can aim at others' bits).
After :data:`AGE` seconds a new map is begun, and the one before it is still read: notes are kept
for between one and two times as long.  At 20000 SYNs a second one in a hundred passes by mistake.
The maps, 256 KiB, are made when the first SYN finds no place.
"""

from __future__ import annotations

from passt.userspace.flow.pending import Pending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.loop import Loop

#: Connections that are being opened at a time, first attempts and repeated ones.
LIMIT = 1024
REPEATED = 256

#: Seconds after which a new map of notes is begun: one that a guest repeats its SYN after.
AGE = 2.0

#: Bits of a map, a power of two.
BITS = 1 << 20


class Notes:
    """Remembers keys for :data:`AGE` seconds or up to twice as long."""

    __slots__ = ("_before", "_begun", "_loop", "_now")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._now = self._before = bytearray()
        self._begun = 0.0

    def seen(self, key: bytes) -> bool:
        """Note ``key``, and tell whether it has been noted before."""
        now = self._loop.now
        age = now - self._begun
        if age >= AGE or not self._now:
            self._before = self._now if age < 2 * AGE and self._now else bytearray(BITS >> 3)
            self._now = bytearray(BITS >> 3)
            self._begun = now
        number = hash(key)
        first, second = number & (BITS - 1), number >> 32 & (BITS - 1)
        known = any(
            bits[first >> 3] >> (first & 7) & bits[second >> 3] >> (second & 7) & 1
            for bits in (self._now, self._before)
        )
        self._now[first >> 3] |= 1 << (first & 7)
        self._now[second >> 3] |= 1 << (second & 7)
        return known


class Connects:
    """Decides on SYNs."""

    __slots__ = ("_first", "_notes", "_repeated")

    def __init__(self, loop: Loop, limit: int) -> None:
        """Of ``limit`` flows that there may be altogether, a quarter may be pending."""
        self._first = Pending(loop, min(LIMIT, limit // 4))
        self._repeated = Pending(loop, min(REPEATED, limit // 16))
        self._notes = Notes(loop)

    def admits(self, key: bytes, source: bytes, target: bytes) -> Pending | None:
        """Where to enter the connection of ``key`` from ``source`` to ``target``, if it may be.

        ``key`` is all that tells it from others, as in the guest's SYN.
        """
        if self._first.admits(source, target):
            return self._first
        if self._notes.seen(key) and self._repeated.admits(source, target):
            return self._repeated
        return None
