"""When to look at the host's network after it said that something happened.

A change comes as a handful of events within milliseconds, and looking in between would show half
of it.  So one waits until there was quiet for a moment, but not for ever where there never is.
After a look there is a rest in proportion to how long it took: a router whose hundred thousand
routes never stand still must not take a processor for itself.
"""

from __future__ import annotations

#: Seconds without an event that are taken for the end of a change.
QUIET = 0.05
#: Seconds after its first event at which a change is looked at anyway.
LONGEST = 0.5
#: Rest after a look, as a multiple of its length.
REST = 9.0


class Pace:
    """Collects events, says when it is time; times are monotonic seconds."""

    __slots__ = ("_first", "_last", "_rested")

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0
        self._rested = 0.0

    def event(self, now: float) -> None:
        """Something happened."""
        if self._first is None:
            self._first = now
        self._last = now

    def due(self) -> float | None:
        """When to look, ``None`` if nothing happened since the last look."""
        if self._first is None:
            return None
        return max(min(self._last + QUIET, self._first + LONGEST), self._rested)

    def looked(self, began: float, ended: float) -> None:
        """There was a look; what happens from now on is for the next one."""
        self._first = None
        self._rested = ended + REST * (ended - began)
