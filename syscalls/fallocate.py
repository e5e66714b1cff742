"""Removing a range from the middle or start of a file: fallocate(2).

The Python library has posix_fallocate(3) only, which allocates.
"""

from __future__ import annotations

import ctypes

from passt.syscalls.libc import check, proto

#: Remove the range and move what follows down: Linux 3.15, ext4, XFS and a few others.
FALLOC_FL_COLLAPSE_RANGE = 8

_SIGNATURE = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

try:
    # glibc: off_t of the plain name is 32 bits wide on 32-bit machines.
    _fallocate = proto("fallocate64", ctypes.c_int, *_SIGNATURE)
except AttributeError:
    # musl: off_t always has 64 bits.
    _fallocate = proto("fallocate", ctypes.c_int, *_SIGNATURE)


def collapse_range(fd: int, offset: int, length: int) -> None:
    """Remove ``length`` bytes at ``offset`` of the regular file ``fd``, shortening it.

    Both must be multiples of the file system's block size, and the range must end before the
    end of the file.  Raises OSError: EOPNOTSUPP if the file system cannot, EINVAL for other
    ranges.
    """
    check(_fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, offset, length), "fallocate")
