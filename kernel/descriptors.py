"""Descriptors at the ends of our life: what we inherit, and what a daemon lets go of.

Callers leak descriptors (a container manager's lock files, the write end of a pipe that
somebody reads to its end), so everything above the standard three is closed before
anything else is opened.  A missing standard descriptor is worse: the next socket would
take its number, and the first message would be sent to a guest.  Both are put right here,
with next to nothing imported, because they come first of all.

Sources: close_range(2), proc_pid_fd(5), daemon(3).
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Upper end of a blind sweep where /proc does not tell which descriptors are open.
_SWEEP = 65536


def close_inherited(spare: str = "", choose: Callable[[], int] | None = None) -> int:
    """Close every descriptor from 3 on, before any module of ours can have opened one.

    Except that of the file whose path is ``spare``, and the one that ``choose()`` returns, −1 for
    none, which may be of the standard three, too.  That one is moved: returns its new number, from
    3 on, −1 if there is none.  What ``choose`` opens stays.

    Not with close_range(2), which would take ctypes, whose libffi keeps a descriptor of its
    own from then on.  The process has one thread, so the list in /proc/self/fd is complete.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(_SWEEP))
    kept = -1
    if choose is not None:
        # Without the one that listed the directory, whose number is free again.
        numbers = list(filter(_is_open, numbers))
        chosen = choose()
        if chosen in numbers:
            numbers.remove(chosen)
            kept = _move(chosen)
    for fd in numbers:
        if fd > 2:
            try:
                if not spare or os.readlink(f"/proc/self/fd/{fd}") != spare:
                    os.close(fd)
            except OSError:
                pass  # the descriptor that listed the directory
    return kept


def _move(fd: int) -> int:
    """Give ``fd``, which is open, a number from 3 on, and close the old one."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def fill_standard() -> None:
    """Open /dev/null on each of the descriptors 0-2 that is closed (OSError if impossible)."""
    for fd in (0, 1, 2):
        if not _is_open(fd):
            # The lowest free number is taken, and those below ``fd`` are in use by now.
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)


def silence_standard(null: int) -> None:
    """Put descriptor ``null``, an open /dev/null, onto 0-2.

    Whoever reads our output to its end is released by this.
    """
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def count_open() -> int:
    """Number of descriptors in use, 0 if /proc does not tell.

    From Linux 6.2 on that is the size of the directory; to list it takes 2 µs for each.
    """
    try:
        size = os.stat("/proc/self/fd").st_size
        if size:
            return size
        # Less the one that lists the directory.
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return 0
