"""How many bytes flows may hold in user space, and who is told no when there are too many.

Two kinds of things are counted.  *Flows* count by what one of their kind costs, measured
(:attr:`passt.userspace.flow.table.Flow.cost`).  *Data* are payload that could not go where it
belongs yet: what a full socket did not take from the guest, segments beyond a gap, what one side
of a spliced connection read and the other did not take.  Everything else is of fixed size, or
bounded per batch.

**Flows** may not use the last sixteenth, so those which exist always have room for data.

**Data** are bounded by a quarter of the budget and :data:`MAX_DATA`.  What a flow holds may not
exceed what is left for all others (*dynamic threshold*): a single one gets half of it, two get a
third each, and however many take all they can get, the next still gets something.

**Tight** is the state in which windows shrink: :attr:`Budget.tight` is kept up to date where
bytes are counted, so that the hot path, which reads it, computes nothing.

Nothing here is enforced by the kernel.  With RLIMIT_DATA or RLIMIT_AS allocations fail anywhere,
in the middle of any change of state, and all flows would end for one that asked for too much.
Who wants a hard limit, one that includes what the kernel holds, sets that of a control group
(cgroups(7), ``memory.max``) well above this one.
"""

from __future__ import annotations

import mmap

#: Data of all flows together, in bytes; each TCP flow's are bounded by its window.
MAX_DATA = 64 << 20

#: The process's own memory, in bytes, that is not there yet when it starts to serve: buffers
#: of sockets and link that have not been touched, and what allocation wastes.
OVERHEAD = 12 << 20

_UNLIMITED = 1 << 62


def of_process(ceiling: int) -> Budget:
    """The budget of a process that may take ``ceiling`` bytes, and has what it needs itself."""
    return Budget(max(ceiling - resident() - OVERHEAD, 0))


def resident() -> int:
    """Bytes of memory that the process has now (proc_pid_statm(5)); 0 if /proc does not tell."""
    # Not getrusage(2): its maximum includes what this process was before execve(2).
    try:
        with open("/proc/self/statm", "rb", 0) as file:
            return int(file.read(64).split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


class Budget:
    """Counts bytes; ``limit`` is for flows and data together."""

    __slots__ = ("_flow_limit", "_tight_data", "_tight_flows", "data", "data_limit", "flows",
                 "tight")  # fmt: skip

    def __init__(self, limit: int = _UNLIMITED) -> None:
        self._flow_limit = limit - limit // 16
        #: Bytes of data that there may be.
        self.data_limit = min(limit // 4, MAX_DATA)
        self._tight_flows = limit - limit // 8
        self._tight_data = self.data_limit // 2
        #: What flows cost, and the data they hold, in bytes.
        self.flows = 0
        self.data = 0
        #: There is little left: windows should be small.
        self.tight = False

    def room(self, cost: int) -> int:
        """How many more flows that cost ``cost`` bytes each there may be."""
        return (self._flow_limit - self.flows - self.data) // cost

    def open(self, cost: int) -> None:
        """A flow was made."""
        self.flows += cost
        self._look()

    def end(self, cost: int) -> None:
        """A flow has ended."""
        self.flows -= cost
        self._look()

    def allows(self, size: int, has: int) -> bool:
        """Whether a flow that holds ``has`` bytes of data may hold ``size`` more."""
        return size + has <= self.data_limit - self.data

    def hold(self, size: int) -> None:
        """``size`` more bytes of data are held, or −``size`` fewer."""
        self.data += size
        self._look()

    def _look(self) -> None:
        data = self.data
        self.tight = data > self._tight_data or self.flows + data > self._tight_flows
