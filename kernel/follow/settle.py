"""Whether what the host's network has become counts at once.

Something better than before, or as good, counts at once: a network that appears, a new default
route, another address.  Something worse may be the middle of a change, or a wireless link that
comes back in a moment: the host's own connections survive that, and so are the guest's to.  Only
if it stays that way for :data:`GRACE` seconds is it taken for the new state.

An interface with an address and a default route is better than one without such a route, and that
better than none.  Each IP version settles by itself.
"""

from __future__ import annotations

from passt.kernel.follow.start import LOCAL, NOTHING, WORLD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.template import Source

#: Seconds for which the namespace keeps what the host has lost.
GRACE = 5.0


def quality(source: Source | None) -> int:
    """How good an interface is as a template; ``None`` stands for none."""
    if source is None:
        return NOTHING
    return WORLD if source.has_default else LOCAL


class Settler:
    """What counts for one IP version.

    ``source`` is the interface in force, as last read, ``None`` for local mode or if it is that
    of the start, which was not read here; ``grade`` is its quality.
    """

    __slots__ = ("_worse_since", "grade", "source")

    def __init__(self, grade: int) -> None:
        self.source: Source | None = None
        self.grade = grade
        self._worse_since: float | None = None

    def consider(self, now: float, found: Source | None) -> bool:
        """Take note of what was ``found`` at ``now`` (monotonic seconds); True if it counts."""
        grade = quality(found)
        if grade < self.grade:
            if self._worse_since is None:
                self._worse_since = now
            if now < self._worse_since + GRACE:
                return False
        self._worse_since = None
        self.source = found
        self.grade = grade
        return True

    def due(self) -> float | None:
        """When to look again if nothing happens meanwhile; ``None`` for never."""
        return None if self._worse_since is None else self._worse_since + GRACE
