"""The interpreter's own functions and constants for signals, without enumerations.

The standard ``signal`` module makes enumerations of its constants; with ``enum`` and what that
imports, it takes 5 of the 35 ms of a start.  Everybody writes
``from passt.syscalls import bare_signal as signal``; signals and handlers are plain numbers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import *  # noqa: F403
else:
    from _signal import *  # noqa: F403
