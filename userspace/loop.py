"""The event loop: one thread, one epoll instance, one source of timers.

A round waits for at most :data:`MAX_EVENTS` events, reads the monotonic clock once, calls
the handler of each ready descriptor, then the deferred work that handlers asked for, then
expired timers, and last closes the sockets given up during the round.

Closing is what makes descriptor numbers safe as keys: a number cannot come back within the
round that released it, so an event collected before cannot reach a newcomer.  Handlers
bound their own work per call; one that leaves work behind asks for another turn with
:meth:`Loop.again` and the next round does not sleep.

Timers are a heap of deadlines.  Cancelling marks the entry; what moves often (retransmission
deadlines) should keep its own deadline and let an early expiry re-arm, which costs nothing
per packet.
"""

from __future__ import annotations

import select
from time import monotonic

from passt.kernel.queues import heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Closable(Protocol):
        """A socket or other object that owns a descriptor."""

        def close(self) -> None:
            """Release the descriptor."""


EPOLLIN = select.EPOLLIN
EPOLLPRI = select.EPOLLPRI
EPOLLOUT = select.EPOLLOUT
EPOLLERR = select.EPOLLERR
EPOLLHUP = select.EPOLLHUP
EPOLLRDHUP = select.EPOLLRDHUP
EPOLLET = select.EPOLLET

#: Events taken per round: enough to amortise the call, few enough to stay fair.
MAX_EVENTS = 64


class Timer:
    """One scheduled call; :meth:`cancel` may be called at any time, also after it fired."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make sure that the callback does not run any more."""
        self.callback = None


class Loop:
    """Dispatches readiness, deferred work and timers until :meth:`stop`."""

    __slots__ = (
        "_again",
        "_clock",
        "_closing",
        "_deferred",
        "_ending",
        "_epoll",
        "_every_round",
        "_exit_status",
        "_handlers",
        "_sequence",
        "_timers",
        "load",
        "now",
        "slept",
    )

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """``clock`` tells monotonic seconds."""
        self._clock = clock
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._deferred: list[Callable[[], None]] = []
        self._again: list[Callable[[], None]] = []
        self._closing: list[Closable] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._exit_status: int | None = None
        #: Called once at the end of each round, in order of registration.
        self._every_round: list[Callable[[], None]] = []
        #: There is something to do when this round ends.
        self._ending = False
        #: Monotonic seconds at the start of this round.
        self.now = clock()
        #: Descriptors that were ready in this round: how long others have to wait for theirs.
        self.load = 0
        #: Seconds for which this round waited for them, a system call's time included.
        self.slept = 0.0

    def fileno(self) -> int:
        """Descriptor of the epoll instance."""
        return self._epoll.fileno()

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(events)`` whenever ``fd`` reports any of ``events``.

        Errors and hang-ups are always reported.  Raises OSError if epoll refuses (limits,
        or a descriptor that cannot be polled).
        """
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Change the events that ``fd`` is watched for."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``; events already collected for it are dropped."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, sock: Closable, fd: int) -> None:
        """Stop watching ``fd`` and close ``sock`` at the end of the round."""
        self.remove(fd)
        self._closing.append(sock)
        self._ending = True

    def defer(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` once at the end of this round, after all events."""
        self._deferred.append(callback)
        self._ending = True

    def again(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the next round, which will not sleep."""
        self._again.append(callback)

    def every_round(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` at the end of every round that had events or timers."""
        self._every_round.append(callback)
        self._ending = True

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` once :attr:`now` has reached ``deadline`` (monotonic seconds)."""
        timer = Timer(deadline, callback)
        self._sequence += 1
        heappush(self._timers, (deadline, self._sequence, timer))
        return timer

    def stop(self, status: int) -> None:
        """Leave :meth:`run` with ``status`` after this round."""
        if self._exit_status is None:
            self._exit_status = status

    def run(self) -> int:
        """Dispatch until :meth:`stop`; returns the exit status given there."""
        while self._exit_status is None:
            self.round()
        return self._exit_status

    def round(self, longest: float = -1.0) -> None:
        """Wait for events (at most ``longest`` seconds if not negative), then serve them."""
        timers = self._timers
        timeout = longest
        before = self._clock()
        if self._again:
            timeout = 0.0
        elif timers:
            timeout = timers[0][0] - before
            if timeout < 0.0:
                timeout = 0.0
            if 0.0 <= longest < timeout:
                timeout = longest
        ready = self._epoll.poll(timeout, MAX_EVENTS)
        self.load = len(ready)
        self.now = now = self._clock()
        self.slept = now - before
        if self._again:
            waiting = self._again
            self._again = []
            for callback in waiting:
                callback()
        handlers = self._handlers
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)
        if timers and timers[0][0] <= now:
            self._expire(now)
        if self._ending:
            self._end_round()

    def _expire(self, now: float) -> None:
        """Call back the timers that are due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            due = heappop(timers)[2].callback
            if due is not None:
                due()

    def _end_round(self) -> None:
        """Do what was put off until all events of the round were served."""
        # Deferred work may defer more; it still belongs to this round.
        for callback in self._deferred:
            callback()
        self._deferred.clear()
        for callback in self._every_round:
            callback()
        for sock in self._closing:
            sock.close()
        self._closing.clear()
        self._ending = bool(self._every_round)
