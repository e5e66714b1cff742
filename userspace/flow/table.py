"""The flow table: every forwarded conversation, whatever its protocol, under one limit.

A flow takes the lowest free index, which names it in messages and serves as label where
the wire wants a stable number.  Lookup by address belongs to the protocols: each keeps a
dict from the packed tuple as it stands in the guest's frames, a slice of the header, to
the flow.  Python's keyed hash of ``bytes`` makes collision attacks pointless.


"""

from __future__ import annotations

from heapq import heappop, heappush

#: Entries of all protocols together.
MAX_FLOWS = 131071


class Flow:
    """Base of all flows; ``index`` is −1 while the flow is not in the table."""

    __slots__ = ("index",)

    #: Name of the type in messages.
    kind = "flow"

    def __init__(self) -> None:
        self.index = -1

    def describe(self) -> str:
        """Endpoints of the flow for messages, without its index."""
        return ""

    def __str__(self) -> str:
        return f"Flow {self.index} ({self.kind}): {self.describe()}"


class FlowTable:
    """Allocates indices up to ``limit`` and counts what it had to refuse."""

    __slots__ = ("_free", "_slots", "count", "limit", "refused")

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self.limit = limit
        self.count = 0
        self.refused = 0
        self._slots: list[Flow | None] = []
        self._free: list[int] = []

    def add(self, flow: Flow) -> bool:
        """Give ``flow`` the lowest free index; False if the table is full."""
        if self._free:
            index = heappop(self._free)
            self._slots[index] = flow
        elif len(self._slots) < self.limit:
            index = len(self._slots)
            self._slots.append(flow)
        else:
            self.refused += 1
            return False
        flow.index = index
        self.count += 1
        return True

    def remove(self, flow: Flow) -> None:
        """Release the index of ``flow``; harmless if it was not in the table."""
        index = flow.index
        if index < 0:
            return
        self._slots[index] = None
        heappush(self._free, index)
        flow.index = -1
        self.count -= 1

    def flows(self) -> list[Flow]:
        """All flows in order of index, safe against changes while it is walked."""
        return [flow for flow in self._slots if flow is not None]
