"""Unsolicited Router Advertisements (RFC 4861, 6.2.4).

A router that is not heard of for its lifetime, 65535 s at most, is forgotten, and the guest's
default route with it.  So advertisements are repeated at random intervals, once there is
somebody who wants to hear them.

The intervals need not be unpredictable, they only keep routers that started together from
advertising together: a linear congruential generator, seeded at start, is enough, and takes no
system call while running.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.loop import Loop

#: Seconds between advertisements: the largest MaxRtrAdvInterval that was usual before RFC 8319,
#: and a third of it.
MAX_INTERVAL = 600.0
MIN_INTERVAL = 200.0

#: Multiplier and increment of the generator modulo 2^32 (Knuth and Lewis).
_FACTOR = 1664525
_INCREMENT = 1013904223
_MASK = 0xFFFFFFFF


class Advertiser:
    """Calls ``send`` again and again, from the first :meth:`start` on.

    ``note(text)`` is told each time.
    """

    __slots__ = ("_loop", "_note", "_send", "_state", "started")

    def __init__(self, loop: Loop, send: Callable[[], None], note: Callable[[str], None]) -> None:
        self._loop = loop
        self._send = send
        self._note = note
        #: Somebody wants to hear advertisements.
        self.started = False
        self._state = int.from_bytes(os.urandom(4), "big")

    def start(self) -> None:
        """Begin, the first time this is called, with an interval."""
        if not self.started:
            self.started = True
            self._wait()

    def _wait(self) -> float:
        """Arm the timer; returns the interval in seconds."""
        self._state = (self._state * _FACTOR + _INCREMENT) & _MASK
        interval = MIN_INTERVAL + self._state * (MAX_INTERVAL - MIN_INTERVAL) / (_MASK + 1)
        self._loop.call_at(self._loop.now + interval, self._advertise)
        return interval

    def _advertise(self) -> None:
        interval = self._wait()
        self._note(f"NDP: sending unsolicited RA, next in {interval:.0f}s")
        self._send()
