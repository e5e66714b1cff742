"""Idle expiry of flows that have no end of their own (UDP, echo): a calendar of seconds.

Every flow is entered under the second at which it may have expired.  When that second comes
its protocol *reviews* it: the flow is ended, or entered again under a later second.  Traffic
does not touch the calendar, it only moves the flow's own timestamp, so a flow costs one
review per time-out and not one per second.  No timer is armed while the calendar is empty.

A flow that ends otherwise is taken out (:meth:`Expiry.forget`), so that a flood of short-lived
ones does not stay in memory until their time would have come.

A review that ends a flow closes descriptors.  So that thousands of flows which were created
together do not stall traffic when they end together, at most :data:`BATCH` are reviewed per
round of the loop.
"""

from __future__ import annotations

from passt.userspace.flow.table import Flow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from passt.userspace.loop import Loop, Timer

#: Flows reviewed per round.
BATCH = 512


class Expiring(Flow):
    """A flow that ends by silence: ``review_at`` is the second that it is entered under."""

    __slots__ = ("review_at",)

    def __init__(self) -> None:
        super().__init__()
        self.review_at = 0


class Expiry:
    """Calls ``review(flow)`` when ``flow`` may have been idle for long enough.

    ``review`` returns the monotonic second after which to ask again, or 0 once the flow has
    ended.
    """

    __slots__ = ("_calendar", "_loop", "_review", "_second", "_timer")

    def __init__(self, loop: Loop, review: Callable[[Any], float]) -> None:
        self._loop = loop
        self._review = review
        self._calendar: dict[int, set[Expiring]] = {}
        #: The second that the timer is set for, and the timer.
        self._second = 0
        self._timer: Timer | None = None

    def add(self, flow: Expiring, deadline: float) -> None:
        """Review ``flow`` in the first whole second after ``deadline`` (monotonic seconds)."""
        flow.review_at = second = int(deadline) + 1
        entries = self._calendar.get(second)
        if entries is not None:
            entries.add(flow)
            return
        self._calendar[second] = {flow}
        if self._timer is None or second < self._second:
            self._arm(second)

    def forget(self, flow: Expiring) -> None:
        """Never review ``flow``; harmless if it is not entered."""
        entries = self._calendar.get(flow.review_at)
        if entries is not None:
            entries.discard(flow)

    def _arm(self, second: int) -> None:
        """Have :meth:`run` called at ``second``, instead of any other time."""
        if self._timer is not None:
            self._timer.cancel()
        self._second = second
        self._timer = self._loop.call_at(float(second), self.run)

    def run(self) -> None:
        """Review what is due, and see to it that the rest will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.now
        calendar = self._calendar
        left = BATCH
        for second in sorted(second for second in calendar if second <= now):
            entries = calendar[second]
            while entries and left:
                flow = entries.pop()
                left -= 1
                deadline = self._review(flow)
                if deadline:
                    self.add(flow, max(deadline, now))
            if entries:
                self._loop.again(self.run)
                return
            del calendar[second]
        if calendar:
            self._arm(min(calendar))
