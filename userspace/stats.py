"""Event statistics for the terminal (``--stats``): counters since the start, a line at a time.

A line is printed after an event, once the interval has passed since the last one, so an idle
program prints nothing.  Columns are eight characters wide; every 20 lines a staircase names
them::

    frames from the guest
    |       frames to the guest
    |       |       …
         12      10

Source: pasta(1), --stats.
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.wire import drops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.splice.accel import Accelerator

_NAMES = (
    "rounds of the event loop",
    "frames from the guest",
    "dropped frames from the guest",
    "frames to the guest",
    "dropped frames to the guest",
    "flows",
    "refused flows",
)
#: In addition with --accel=ebpf.
_ACCELERATED = (
    "connections forwarded by the kernel",
    "the same, ever",
    "MiB from clients forwarded by the kernel",
    "MiB from servers forwarded by the kernel",
    "credits used up",
    "connections returned to splicing",
    "connections not accelerated",
)
_WIDTH = 8
_LINES_PER_HEADER = 20


class Statistics:
    """Prints to standard error at most every ``interval`` seconds; register :meth:`tick`."""

    __slots__ = (
        "_accelerator",
        "_interval",
        "_lines",
        "_link",
        "_loop",
        "_next",
        "_rounds",
        "_table",
    )

    def __init__(
        self,
        interval: int,
        loop: Loop,
        link: Link,
        table: FlowTable,
        accelerator: Accelerator | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._interval = interval
        self._loop = loop
        self._link = link
        self._table = table
        self._next = loop.now + interval
        self._rounds = 0
        self._lines = 0

    def tick(self) -> None:
        """A round of the loop has ended."""
        self._rounds += 1
        now = self._loop.now
        if now < self._next:
            return
        self._next = now + self._interval
        text = self.line()
        if self._lines % _LINES_PER_HEADER == 0:
            text = header(self._names()) + text
        self._lines += 1
        log.to_stderr(text.encode())

    def _names(self) -> tuple[str, ...]:
        return _NAMES if self._accelerator is None else _NAMES + _ACCELERATED

    def line(self) -> str:
        """The counters as they are now, with newline."""
        link, table = self._link, self._table
        values: tuple[int, ...] = (
            self._rounds,
            link.rx_frames,
            sum(drops.counts),
            link.tx_frames,
            link.tx_dropped,
            table.count,
            table.refused,
        )
        accelerator = self._accelerator
        if accelerator is not None:
            there, back = accelerator.bytes()
            values += (
                accelerator.active,
                accelerator.entered,
                there >> 20,
                back >> 20,
                accelerator.exhausted,
                sum(accelerator.returns.values()),
                sum(accelerator.refusals.values()),
            )
        return "".join(f"{value:{_WIDTH}d}" for value in values) + "\n"


def header(names: tuple[str, ...] = _NAMES) -> str:
    """The staircase of column names, with newlines."""
    bar = "|".rjust(_WIDTH)
    lines = [bar * i + " " * (_WIDTH - 1) + name for i, name in enumerate(names)]
    return "\n".join(lines) + "\n"
