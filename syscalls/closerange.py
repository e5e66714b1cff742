"""Closing descriptors by ranges: close_range(2), Linux 5.9.

`os.closerange` uses the system call only if Python was built against a C library that has it,
and otherwise tries every number up to a limit that may be a billion.
"""

from __future__ import annotations

import os
from errno import ENOSYS, EPERM

from passt.syscalls.libc import check, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLOSE_RANGE_UNSHARE = 2
CLOSE_RANGE_CLOEXEC = 4

LAST = 0xFFFFFFFF
"""Highest descriptor number there can be."""

_NR_CLOSE_RANGE = 436


def close_range(first: int, last: int = LAST, flags: int = 0) -> None:
    """Close, or with CLOSE_RANGE_CLOEXEC mark, descriptors `first` to `last` inclusive.

    Numbers without an open descriptor are skipped.  OSError: ENOSYS on kernels without the
    call, EPERM where a filter forbids it, EINVAL for unknown flags (CLOEXEC before 5.11).
    """
    if first <= last:
        check(syscall(_NR_CLOSE_RANGE, first, last, flags), "close_range")


def _close_listed(first: int, keep: set[int]) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= first and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory is gone by now


def close_from(first: int, keep: Iterable[int] = ()) -> bool:
    """Close all descriptors from `first` on except those in `keep`.

    Returns whether close_range could be used; if not, the descriptors listed in
    /proc/self/fd were closed, and OSError means that there is no such list either.
    """
    kept = {fd for fd in keep if fd >= first}
    start = first
    try:
        for fd in sorted(kept):
            close_range(start, fd - 1)
            start = fd + 1
        close_range(start)
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise
        _close_listed(first, kept)
        return False
    return True
