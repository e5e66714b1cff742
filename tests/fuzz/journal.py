"""What the product says while a harness runs: nothing on the terminal, no flood, sound formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from time import monotonic

from passt.userspace import log

#: Messages of one place per window of two seconds: :data:`passt.userspace.log.BURST`, and one
#: each about those suppressed, now and before.
LIMITED = log.BURST + 2


class Journal:
    """Stands for the log while it is entered.

    A message that its arguments do not fit raises, as does one that is repeated more often
    than :func:`passt.userspace.log.limited` lets it, or if it is not limited, than ``repeats``
    in two seconds.  With ``debug`` everything is said, and only that it can be formatted is
    checked of what is below the usual level.
    """

    def __init__(self, *, debug: bool = False, repeats: int = 10) -> None:
        self._debug = debug
        self._repeats = repeats
        #: By key, or what there is instead of one, the format.
        self.said: Counter[Hashable] = Counter()
        self._key: Hashable = None
        self._saved: tuple[object, ...] = ()
        self._original = log.limited
        self._started = monotonic()

    def __enter__(self) -> Journal:
        self._saved = log.emit, log.limited, log._threshold, log.debug_on, log.trace_on
        log._windows.clear()
        log.emit = self._emit
        log.limited = self._limited
        log._threshold = log.TRACE if self._debug else log.INFO
        log.debug_on = log.trace_on = self._debug
        return self

    def __exit__(self, *_: object) -> None:
        log.emit, log.limited, log._threshold, log.debug_on, log.trace_on = self._saved  # type: ignore[assignment]

    def _limited(self, key: Hashable, level: int, msg: str, *args: object) -> None:
        self._key = key
        try:
            self._original(key, level, msg, *args)
        finally:
            self._key = None

    def _emit(self, level: int, msg: str, *args: object) -> None:
        text = msg % args if args else msg
        assert isinstance(text, str)
        if level <= log.INFO and level <= log._threshold:
            key = self._key or msg
            self.said[key] += 1
            windows = 1 + int((monotonic() - self._started) / 2)
            most = LIMITED if self._key else self._repeats
            assert self.said[key] <= most * windows, f"flood of {msg!r}"
