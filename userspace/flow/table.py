"""The flow table: every forwarded conversation, whatever its protocol, under common limits.

A flow takes the lowest free index, which names it in messages and serves as label where
the wire wants a stable number.  Lookup by address belongs to the protocols: each keeps a
dict from the packed tuple as it stands in the guest's frames, a slice of the header, to
the flow.  Python's keyed hash of ``bytes`` makes collision attacks pointless.

**Three things can run out**: entries (:data:`MAX_FLOWS`), descriptors (RLIMIT_NOFILE less a
reserve) and memory (:mod:`passt.userspace.flow.budget`).  Flows are refused before that, and
flows alone: the reserve is for what serves those that exist, pipes and stocks of sockets, for
listeners, for the control socket.  Descriptors are counted, one for each socket of a flow, and
besides their numbers are looked at: as the kernel always gives out the lowest free one, a
number beyond the limit says that so many are in use, whoever by.

**Fairness.**  Nobody may take what is left of a nearly full table.  Each flow belongs to a
*group*, its protocol and the side that it came from, and has a *source*, the address that began
it (for IPv6 the /64 prefix, since a single host commands one).  A new flow is refused if its
group or its source already has :data:`FAIR` times as many as would still fit.  This is the
*dynamic threshold* known from switches with shared memory (Choudhury and Hahne, IEEE/ACM
Transactions on Networking 6(2), 1998).  A single greedy party gets eight ninths of the table and
leaves one ninth; a second one at first gets eight ninths of that, but as flows of the first
end, those of the second take their places, until both have 8/17 and 1/17 is free.  There is
always something left for the next, and while the table is not nearly full nobody notices.  It
takes two counters, touched when a flow is made and when it ends, never by a packet.

Flows that nobody has answered are under limits of their own, see
:mod:`passt.userspace.flow.pending`.
"""

from __future__ import annotations

from passt.kernel.queues import heappop, heappush
from passt.userspace import log
from passt.userspace.flow.budget import Budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

#: Entries of all protocols together.
MAX_FLOWS = 131071

#: A group or source may have this many times as many flows as still fit.
FAIR = 8

#: Descriptors kept from flows: pipes (2 × 256), stocks of sockets (4 × 32), listeners, clients
#: of the control socket; a quarter of all if there are few.
RESERVE = 1024

_UNLIMITED = 1 << 62


def reserve_of(nofile: int) -> int:
    """How many of ``nofile`` descriptors are kept from flows."""
    return min(RESERVE, nofile // 4)


class Flow:
    """Base of all flows; ``index`` is −1 while the flow is not in the table."""

    __slots__ = ("group", "index", "source")

    #: The side that began the flow, and the protocol: see the module's text; and the address.
    group: str
    source: bytes

    #: Name of the type in messages.
    kind = "flow"
    #: Bytes of memory that one takes, with its socket objects and entries everywhere; and its
    #: descriptors.
    cost = 1024
    sockets = 1
    #: Somebody on the other side has reacted to what began the flow.
    answered = True

    def __init__(self) -> None:
        self.index = -1
        self.group = ""
        self.source = b""

    def describe(self) -> str:
        """Endpoints of the flow for messages, without its index."""
        return ""

    def idle_since(self, _when: float) -> bool:
        """Whether nothing has come for the flow after ``_when`` (monotonic seconds)."""
        return True

    def give_up(self) -> None:
        """End the flow, which nobody has answered, in favour of another."""
        raise NotImplementedError

    def strand(self, _lost: Container[bytes], _withdrawn: Container[bytes]) -> None:
        """End the flow if it cannot go on: the host, or the guest, has lost these addresses.

        One that has both ends on loopback interfaces always can.
        """

    def __str__(self) -> str:
        return f"Flow {self.index} ({self.kind}): {self.describe()}"


class FlowTable:
    """Allocates indices within limits, and counts what it had to refuse."""

    __slots__ = (
        "_counts",
        "_free",
        "_slots",
        "budget",
        "count",
        "last_fd",
        "limit",
        "refused",
        "socket_limit",
        "sockets",
    )

    def __init__(self, limit: int = MAX_FLOWS, budget: Budget | None = None) -> None:
        self.limit = limit
        self.budget = budget or Budget()
        self.count = 0
        self.refused = 0
        #: Sockets that flows have, and may have.
        self.sockets = 0
        self.socket_limit = _UNLIMITED
        #: Highest number that the descriptor of a new flow may have.
        self.last_fd = _UNLIMITED
        self._slots: list[Flow | None] = []
        self._free: list[int] = []
        #: Flows by group, and by source.
        self._counts: dict[str | bytes, int] = {}

    def limit_descriptors(self, nofile: int, used: int) -> None:
        """Keep to ``nofile`` descriptors altogether, of which others have ``used`` so far."""
        reserve = reserve_of(nofile)
        self.last_fd = nofile - reserve - 1
        self.socket_limit = max(nofile - reserve - used, 1)

    def admits(self, kind: type[Flow], group: str, source: bytes) -> bool:
        """Whether there may be another flow: to be asked before anything is done for it.

        ``source`` is the packed address that begins it.  If not, that is counted and logged.
        """
        room = self.limit - self.count
        fitting = (self.socket_limit - self.sockets) // kind.sockets
        if fitting < room:
            room = fitting
        fitting = self.budget.room(kind.cost)
        if fitting < room:
            room = fitting
        share = FAIR * room
        counts = self._counts
        if counts.get(group, 0) < share and counts.get(source[:8], 0) < share:
            return True
        self._refuse(group)
        return False

    def add(self, flow: Flow, group: str = "", source: bytes = b"", fd: int = -1) -> bool:
        """Give ``flow`` the lowest free index; False if there may be no more of its kind.

        ``group`` and ``source`` are as for :meth:`admits`; ``fd`` is the highest of the
        descriptors made for the flow just now, if there are some.
        """
        if fd > self.last_fd:
            self._refuse(group)
            return False
        if not self.admits(type(flow), group, source):
            return False
        if self._free:
            index = heappop(self._free)
            self._slots[index] = flow
        else:
            index = len(self._slots)
            self._slots.append(flow)
        flow.index = index
        flow.group = group
        flow.source = source = source[:8]
        counts = self._counts
        counts[group] = counts.get(group, 0) + 1
        counts[source] = counts.get(source, 0) + 1
        self.count += 1
        self.sockets += flow.sockets
        self.budget.open(flow.cost)
        return True

    def remove(self, flow: Flow) -> None:
        """Release the index of ``flow``; harmless if it was not in the table."""
        index = flow.index
        if index < 0:
            return
        self._slots[index] = None
        heappush(self._free, index)
        flow.index = -1
        counts = self._counts
        for key in (flow.group, flow.source):
            if counts[key] > 1:
                counts[key] -= 1
            else:
                del counts[key]
        self.count -= 1
        self.sockets -= flow.sockets
        self.budget.end(flow.cost)

    def flows(self) -> list[Flow]:
        """All flows in order of index, safe against changes while it is walked."""
        return [flow for flow in self._slots if flow is not None]

    def _refuse(self, group: str) -> None:
        self.refused += 1
        log.limited(
            "flow-table", log.ERR, "Flow table full (%d flows), no new %s", self.count, group
        )
