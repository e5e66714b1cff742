"""Signals that a process ignores because whoever started the tests did (nohup(1), a script's &)."""

from __future__ import annotations

import signal

#: Python ignores these itself, and gives them back to its children; 32 and 33 belong to the C
#: library, and cannot be asked about.
_OTHERS = {signal.SIGPIPE, signal.SIGXFSZ}
_LIBRARY = 3 << 31


def foreign(mask: str) -> int:
    """Of a mask as in /proc/PID/status those that were not inherited by the tests."""
    inherited = sum(
        1 << (number - 1)
        for number in signal.valid_signals() - _OTHERS
        if signal.getsignal(number) is signal.SIG_IGN
    )
    return int(mask, 16) & ~(inherited | _LIBRARY)
