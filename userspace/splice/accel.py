"""Acceleration of spliced connections: who gets it, how much credit, and who needs attention.

**Who.**  A connection that lives for a moment, :data:`PROBATION`, is worth it if it carries
messages rather than bulk: entering and leaving takes some fifty system calls, and short
connections should not pay for what they do not use.  Bulk goes no faster through the kernel
alone, see docs/acceleration.md, so who is in the middle of some is asked again later, and who
uses up credit again and again at high speed leaves.  Connections also leave (:mod:`.fast`) when
one of their directions ends, or is not read.

**Credit.**  Each direction begins with :data:`FIRST_CREDIT` and gets twice as much whenever it
has used that up, to at most ``--accel-credit``.  All credits together are at most
``--accel-budget``; when that is used up, directions at rest are cut down to :data:`LEAST_CREDIT`,
and whoever still gets nothing is forwarded as usual.

**When.**  As long as credit lasts nobody here runs.  A bell says that some direction has used
it up; from then on those directions that move are looked at regularly and refilled, the more
often the faster they move, until they have been at rest for a while.
"""

from __future__ import annotations

from passt.kernel.ebpf.layout import BROKEN, BYTES, PASSED, SLOTS
from passt.syscalls.sockopt import linger_not
from passt.syscalls.tcpinfo import inq
from passt.userspace import log
from passt.userspace.loop import EPOLLIN
from passt.userspace.splice.fast import FastFlow, Lane, receive_buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.maps import MapSet
    from passt.userspace.loop import Loop, Timer
    from passt.userspace.splice.flow import SplicedTcp

#: Seconds: connections younger than this, or up to twice that, are left alone.
PROBATION = 0.02
#: Seconds until one that was busy is looked at again, at first and at most.
BUSY, VERY_BUSY = 0.005, 5.12

#: Bytes of a receive buffer that has grown for bulk.  All of it may be ours to keep when a
#: connection leaves, so those that have one are spliced for good.
LARGE_BUFFER = 1 << 20

#: Bytes of credit of a direction: at first, and at least.
FIRST_CREDIT = 1 << 18
LEAST_CREDIT = 1 << 15

#: Seconds between looks at directions that move.
OFTEN, SELDOM = 0.002, 0.064
#: Looks without anything new until a direction is at rest.
QUIET = 4
#: Attempts without a pause while the kernel is about to finish something.
HASTY = 3

#: Slots of connections; the last ones are for the probe.
_SLOTS = range(0, SLOTS - 2, 2)


class Accelerator:
    """Keeps spliced connections on the fast path, within limits."""

    __slots__ = (
        "_budget",
        "_credit",
        "_finished",
        "_free",
        "_interval",
        "_lanes",
        "_loop",
        "_moving",
        "_old",
        "_probation",
        "_retries",
        "_retrying",
        "_tick",
        "_tries",
        "_young",
        "active",
        "entered",
        "exhausted",
        "maps",
        "refusals",
        "returns",
    )

    def __init__(self, loop: Loop, maps: MapSet, credit: int, budget: int) -> None:
        """``credit`` for each direction and ``budget`` for all, in bytes."""
        self._loop = loop
        self.maps = maps
        self._credit = credit
        #: What is left of it.
        self._budget = budget
        self._free = list(reversed(_SLOTS))
        #: By slot.
        self._lanes: dict[int, Lane] = {}
        #: New connections, and those that have been new for a while.
        self._young: dict[SplicedTcp, None] = {}
        self._old: dict[SplicedTcp, None] = {}
        self._probation: Timer | None = None
        #: Directions that are refilled regularly.
        self._moving: dict[Lane, None] = {}
        self._tick: Timer | None = None
        self._interval = OFTEN
        #: Who waits for the kernel, and for how many rounds somebody has.
        self._retries: dict[Lane | FastFlow, None] = {}
        self._retrying = False
        self._tries = 0
        #: Bytes that the kernel has forwarded for connections that are not here any more: from
        #: clients, from servers.
        self._finished = [0, 0]
        #: Connections on the fast path: now, and ever.
        self.active = 0
        self.entered = 0
        #: How often connections were not let in, and went back while they lived, by reason.
        self.refusals: dict[str, int] = {}
        self.returns: dict[str, int] = {}
        #: How often credit was used up.
        self.exhausted = 0
        loop.add(maps.fileno(), EPOLLIN, self._on_bell)

    def bytes(self) -> tuple[int, int]:
        """Bytes that the kernel has forwarded by itself: from clients, from servers."""
        sums = list(self._finished)
        for lane in self._lanes.values():
            sums[lane.slot & 1] += lane.redirected()
        return sums[0], sums[1]

    def close(self) -> None:
        """The process is about to end: connections without unread data end in good order."""
        for lane in self._lanes.values():
            if not lane.unread():
                try:
                    linger_not(lane.source)
                except OSError:
                    # It is closed already.
                    pass

    def summary(self) -> str:
        """The counters, for people."""
        there, back = self.bytes()
        return (
            f"{self.entered} connections accelerated, {self.active} now; {there} bytes from "
            f"clients and {back} from servers by the kernel; credit used up {self.exhausted} "
            f"times; {_told(self.returns)} returned to splicing; {_told(self.refusals)} not "
            "accelerated"
        )

    # Who.

    def consider(self, flow: SplicedTcp) -> None:
        """There is a new connection."""
        self._young[flow] = None
        if self._probation is None:
            self._probation = self._loop.call_at(self._loop.now + PROBATION, self._on_probation)

    def forget(self, flow: SplicedTcp) -> None:
        """A connection is no more: nothing is to keep it in memory."""
        if flow in self._young:
            del self._young[flow]
        elif flow in self._old:
            del self._old[flow]

    def _on_probation(self) -> None:
        """Those that were there the last time already may enter."""
        old = self._old
        self._old, self._young = self._young, {}
        self._probation = None
        if self._old:
            self._probation = self._loop.call_at(self._loop.now + PROBATION, self._on_probation)
        for flow in old:
            self._admit(flow, BUSY)

    def _admit(self, flow: SplicedTcp, pause: float) -> None:
        """Have a connection enter, or ask again after ``pause`` seconds if it is busy."""
        if flow.index < 0 or flow.fast is not None or flow.client.eof or flow.server.eof:
            return
        try:
            if flow.connecting or _busy(flow):
                self._later(flow, pause)
                return
            objection = self._objection(flow)
            if objection:
                _count(self.refusals, objection)
                return
            self._enter(flow)
        except OSError as error:
            _count(self.refusals, "error")
            log.limited("accel-enter", log.WARNING, "%s: %s", flow, error.strerror)

    def _objection(self, flow: SplicedTcp) -> str:
        """Why a connection that is fit to enter may not, empty if it may; OSError."""
        if any(receive_buffer(end.sock) > LARGE_BUFFER for end in (flow.client, flow.server)):
            return "large buffer"
        if not self._free:
            return "no slot"
        return "" if self._afford(2 * FIRST_CREDIT) else "no credit"

    def _later(self, flow: SplicedTcp, pause: float) -> None:
        following = min(pause * 2, VERY_BUSY)
        self._loop.call_at(self._loop.now + pause, lambda: self._admit(flow, following))

    def _enter(self, flow: SplicedTcp) -> None:
        """Put a connection on the fast path."""
        credit = min(FIRST_CREDIT, self._credit)
        slot = self._free.pop()
        try:
            fast = FastFlow(self, flow, slot, credit)
        except OSError:
            self._free.append(slot)
            flow.settle()
            raise
        flow.fast = fast
        for lane in fast.lanes:
            self._lanes[lane.slot] = lane
            self._budget -= lane.credit
        self.active += 1
        self.entered += 1
        if log.debug_on:
            log.debug("%s: enters the fast path", flow)
        fast.begin()

    def left(self, fast: FastFlow) -> None:
        """A connection is not on the fast path any more."""
        for lane in fast.lanes:
            self._finished[lane.slot & 1] += lane.redirected()
            self._budget += lane.credit
            del self._lanes[lane.slot]
            self._moving.pop(lane, None)
        self._free.append(fast.slot)
        self.active -= 1
        flow = fast.flow
        if flow.index >= 0 and fast.leaving:
            _count(self.returns, fast.reason)
            self._later(flow, VERY_BUSY)

    def _afford(self, size: int) -> bool:
        """Whether ``size`` bytes are left of the budget, perhaps after asking around."""
        if self._budget < size:
            for lane in self._lanes.values():
                if lane not in self._moving and lane.credit > LEAST_CREDIT:
                    self._budget += lane.credit - LEAST_CREDIT
                    lane.credit = LEAST_CREDIT
                    if not lane.fast.leaving:
                        lane.refill()
        return self._budget >= size

    # When.

    def _on_bell(self, _events: int) -> None:
        """Directions have used up their credit."""
        for number in self.maps.rung():
            lane = self._lanes.get(number & ~BROKEN)
            if lane is not None and number & BROKEN:
                lane.fast.flow.reset("a segment that could not be cut")
                continue
            if lane is None or lane.fast.leaving or not lane.unread():
                continue
            self.exhausted += 1
            if lane.rings_for_bulk(self._loop.now):
                lane.fast.leave("bulk")
                continue
            more = min(lane.credit, self._credit - lane.credit)
            if more > 0 and self._afford(more):
                lane.credit += more
                self._budget -= more
            lane.quiet = 0
            lane.seen = -1
            self._interval = OFTEN
            self._moving[lane] = None
            if lane.again():
                self.retry(lane)
        if self._moving and self._tick is None:
            self._tick = self._loop.call_at(self._loop.now + self._interval, self._on_tick)

    def _on_tick(self) -> None:
        """Refill directions that have moved."""
        counts = self.maps.counts
        fastest = 0.0
        for lane in list(self._moving):
            if lane.fast.leaving:
                del self._moving[lane]
                continue
            seen = counts[lane.at + BYTES] + counts[lane.at + PASSED]
            if seen == lane.seen:
                lane.quiet += 1
                if lane.quiet < QUIET:
                    continue
                del self._moving[lane]
            else:
                lane.quiet = 0
            fastest = max(fastest, lane.spent())
            lane.seen = seen
            try:
                lane.refill()
            except OSError as error:
                lane.fast.flow.reset(error.strerror)
        if fastest > 0.5:
            self._interval = max(self._interval / 2, OFTEN)
        elif fastest < 0.25:
            self._interval = min(self._interval * 2, SELDOM)
        self._tick = None
        if self._moving:
            self._tick = self._loop.call_at(self._loop.now + self._interval, self._on_tick)

    # Waiting.

    def retry(self, who: Lane | FastFlow) -> None:
        """Call ``who.again()`` before long, until it is False."""
        self._retries[who] = None
        self._tries = 0
        if not self._retrying:
            self._retrying = True
            self._loop.again(self._on_retry)

    def hurry(self) -> None:
        """Somebody gets on: do not wait longer each time."""
        self._tries = 0

    def _on_retry(self) -> None:
        waiting = self._retries
        self._retries = {}
        for who in waiting:
            if who.again():
                self._retries[who] = None
        self._retrying = bool(self._retries)
        if not self._retries:
            return
        self._tries += 1
        if self._tries <= HASTY:
            self._loop.again(self._on_retry)
        else:
            pause = min(0.001 * (self._tries - HASTY), SELDOM)
            self._loop.call_at(self._loop.now + pause, self._on_retry)


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def _told(counts: dict[str, int]) -> str:
    """A sum, and what it consists of: ``3 (2 bulk, 1 end)``."""
    parts = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{sum(counts.values())} ({parts})" if parts else "0"


def _busy(flow: SplicedTcp) -> bool:
    """Whether data are on their way between the two sockets, or about to be; OSError."""
    return flow.client.bulk or flow.server.bulk or _holds(flow)


def _holds(flow: SplicedTcp) -> bool:
    """Whether there are data that we have, or have not read; OSError.

    The first would come too late.  Of the others, we may have read the beginning of a segment, of
    which the kernel would let the program have all.
    """
    return any(
        end.pipe is not None or end.held is not None or inq(end.fd) != 0
        for end in (flow.client, flow.server)
    )
