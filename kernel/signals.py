"""Signals as bytes: a handler only leaves its number in a pipe that the event loop watches.

Python runs handlers between two instructions of the main thread and then restarts the
system call that was interrupted (PEP 475), so a handler alone could not end a sleep in
epoll_wait(2).  The interpreter's wake-up descriptor can: its C-level handler writes the
signal's number there at once.

==================  =========================================================
SIGTERM, SIGQUIT    orderly end with status 0
SIGCHLD             a child ended: the caller reaps, or the kernel does
SIGPIPE             ignored; writing tells by EPIPE
SIGINT              the default action, not Python's exception
==================  =========================================================

Until the loop runs, SIGTERM and SIGQUIT end the process at once: children wait for us on
pipes and end with us.  Sources: signal(7), pipe(7).
"""

from __future__ import annotations

import os

from passt.syscalls import bare_signal as signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGQUIT)


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    """Nothing is in place yet, so there is nothing to put in order."""
    os._exit(0)


def _left_to_the_pipe(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has it already."""


def install_early() -> None:
    """Set the dispositions for the time of start-up.

    An interrupt that the caller had ignored (a shell's background job) stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in _ENDING:
        signal.signal(number, _end_at_once)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def reset_for_exec() -> None:
    """Give back the two dispositions that survive exec and that the interpreter changed."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


class SignalPipe:
    """Turns SIGTERM, SIGQUIT and SIGCHLD into a readable descriptor."""

    __slots__ = ("_read", "_write")

    def __init__(self, *, children: bool = True) -> None:
        """Take over the signals; OSError if no pipe can be had.

        Without ``children`` SIGCHLD is ignored, and the kernel does away with those that end, be
        they ours or orphans of a PID namespace (wait(2)).
        """
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGCHLD):
            signal.signal(number, _left_to_the_pipe)
        if not children:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def fileno(self) -> int:
        """Readable when :meth:`take` has something to tell."""
        return self._read

    def take(self) -> tuple[bool, bool]:
        """Drain the pipe: whether to end, and whether a child may have ended."""
        try:
            numbers = os.read(self._read, 4096)
        except BlockingIOError:
            return False, False
        return any(number in numbers for number in _ENDING), signal.SIGCHLD in numbers
