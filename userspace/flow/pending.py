"""Flows that nobody has answered yet: under a limit of their own, so that floods stay small.

Whoever scans ports or addresses, or just sends SYNs as fast as it can, makes flows by the
thousand, each with a socket and the work of opening and closing it.  What tells them from flows
that matter is that nothing comes back: a connection being established, a datagram or an echo
request without answer, a connection offered to a guest that keeps silent.  A translator has a
:class:`Pending` for each direction, and asks it before it does anything for a new flow.

**Policy.**  At most ``limit`` flows are pending.  Each is sure of :data:`GRACE`, a second, for
its answer, whatever happens meanwhile.  Beyond the limit the oldest makes room if it has had that
second; if not even the oldest has, the new flow is refused.

* Refusing alone would let a few hundred SYNs into a black hole block all connections until the
  kernel gives up on them, after two minutes.
* Making room alone would mean that those who flood fast enough displace everybody within a
  round-trip time.  And it would cost a socket to open and another to close per frame of a
  flood, time that established flows need.
* So the limit is also a rate: no more than ``limit`` flows per second come to nothing.  For
  that to hold for those refused at once, by a closed port, a flow that ends without answer
  keeps its place for the rest of its second.
* Places that were taken at once would be free at once a second later, and hundreds of sockets
  be opened in one go, for tens of milliseconds in which nothing else is done.  So when half of
  the places are taken the others are given out at that rate, :data:`BURST` at a time at most.

**Fairness.**  A flow has parties, the address that began it and, for the guest's, that which it
goes to.  A party that has :data:`FAIR` times as many pending flows as there is room for others has
reached its limit, in the way of :mod:`passt.userspace.flow.table`: a scan of one host does not
keep others from being reached.

Nobody tells us when a flow is answered, as that would be work per packet: entries wait in a
queue, and what has been answered is found when somebody wants its place.  Those stuck behind an
entry that has to wait are looked for at most every :data:`SWEEP` seconds.
"""

from __future__ import annotations

from passt.kernel.queues import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.flow.table import Flow
    from passt.userspace.loop import Loop

    Entry = tuple[float, Flow | None, tuple[bytes, ...]]

#: Seconds that a flow may be pending even if others want its place.
GRACE = 1.0

#: A party may have this many times as many pending flows as there are places left.
FAIR = 3

#: Places given out at once when half of them are taken.
BURST = 16

#: Smallest limit there is.
LEAST = 16

#: Seconds between looks at the whole queue.
SWEEP = 0.1

#: Flows that are in use although nobody answers (streams of datagrams) passed over per request.
_TRIES = 64


class Pending:
    """A queue of at most ``limit`` pending flows, the oldest first."""

    __slots__ = ("_counts", "_entries", "_gap", "_limit", "_loop", "_not_before", "_sweep_at")

    def __init__(self, loop: Loop, limit: int) -> None:
        self._loop = loop
        self._limit = max(limit, LEAST)
        self._entries: deque[Entry] = deque()
        self._counts: dict[bytes, int] = {}
        self._sweep_at = 0.0
        #: Seconds per place, and when the next one may be given out.
        self._gap = GRACE / self._limit
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def admits(self, *parties: bytes) -> bool:
        """Whether there may be another pending flow of ``parties``, made room for if need be."""
        entries = self._entries
        while entries and self._over(entries[0]):
            self._forget(entries.popleft())
        now = self._loop.now
        if 2 * len(entries) <= self._limit:
            # No party can have more than its share then.
            return True
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            self._sweep()
            if 2 * len(entries) <= self._limit:
                return True
        if now < self._not_before:
            return False
        if not self._fits(parties) and not self._give_up_oldest():
            return False
        self._not_before = max(self._not_before, now - BURST * self._gap) + self._gap
        return True

    def add(self, flow: Flow | None, *parties: bytes) -> None:
        """Enter a flow that has just been made, or an attempt at one that failed (``None``)."""
        self._enter((self._loop.now, flow, parties))

    def _fits(self, parties: tuple[bytes, ...]) -> bool:
        """Whether there is a place that ``parties`` may have."""
        room = self._limit - len(self._entries)
        counts = self._counts
        return room > 0 and all(counts.get(party, 0) < FAIR * room for party in parties)

    def _enter(self, entry: Entry) -> None:
        self._entries.append(entry)
        counts = self._counts
        for party in entry[2]:
            counts[party] = counts.get(party, 0) + 1

    def _forget(self, entry: Entry) -> None:
        counts = self._counts
        for party in entry[2]:
            if counts[party] > 1:
                counts[party] -= 1
            else:
                del counts[party]

    def _over(self, entry: Entry) -> bool:
        """Whether ``entry`` is one only because nobody has looked."""
        since, flow, _ = entry
        if flow is not None and flow.answered:
            return True
        return (flow is None or flow.index < 0) and since + GRACE <= self._loop.now

    def _give_up_oldest(self) -> bool:
        """Have the oldest flow make room; False if none has had its time."""
        entries = self._entries
        for _ in range(_TRIES):
            if not entries or entries[0][0] + GRACE > self._loop.now:
                return False
            entry = entries.popleft()
            self._forget(entry)
            since, flow, parties = entry
            if flow is None or flow.index < 0 or flow.answered:
                return True
            if flow.idle_since(since):
                flow.give_up()
                return True
            self._enter((self._loop.now, flow, parties))
        return False

    def _sweep(self) -> None:
        """Drop all that is over."""
        entries = self._entries
        for _ in range(len(entries)):
            entry = entries.popleft()
            if self._over(entry):
                self._forget(entry)
            else:
                entries.append(entry)
