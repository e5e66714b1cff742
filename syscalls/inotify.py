"""File system events of directories: inotify(7).

A read returns any number of events, each a header and a name padded with zeros.  `Event`s are
plain tuples.
"""

from __future__ import annotations

import ctypes
import os
import struct

from passt.syscalls.libc import check, proto

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

IN_MODIFY = 0x00000002
IN_ATTRIB = 0x00000004
IN_CLOSE_WRITE = 0x00000008
IN_MOVED_FROM = 0x00000040
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
IN_UNMOUNT = 0x00002000
IN_Q_OVERFLOW = 0x00004000
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000
IN_DONT_FOLLOW = 0x02000000
IN_ISDIR = 0x40000000

IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

# struct inotify_event: watch, mask, cookie, length of the padded name.
_EVENT = struct.Struct("=iIII")
READ_SIZE = 65536
"""Room for many events; at least one always fits, as names have at most 255 bytes."""

_int = ctypes.c_int
_inotify_init1 = proto("inotify_init1", _int, _int)
_inotify_add_watch = proto("inotify_add_watch", _int, _int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = proto("inotify_rm_watch", _int, _int, _int)


def init(flags: int = IN_NONBLOCK | IN_CLOEXEC) -> int:
    """New inotify descriptor; OSError EMFILE at the user's limit of instances."""
    return check(_inotify_init1(flags), "inotify_init1")


def add_watch(fd: int, path: str, mask: int) -> int:
    """Watch `path` for the events in `mask`; returns the watch descriptor.

    OSError: ENOSPC at the user's limit of watches, ENOENT, EACCES, ENOTDIR with IN_ONLYDIR.
    /proc/self/fd/N is a path to an open directory.
    """
    return check(_inotify_add_watch(fd, os.fsencode(path), mask), "inotify_add_watch")


def rm_watch(fd: int, watch: int) -> None:
    """Remove a watch; an IN_IGNORED event follows."""
    check(_inotify_rm_watch(fd, watch), "inotify_rm_watch")


def parse(data: bytes) -> Iterator[tuple[int, int, int, str]]:
    """Yield (watch, mask, cookie, name) of each event in what read(2) returned.

    The name is empty for events of the watched object itself.  An event cut short, which the
    kernel does not produce, ends the iteration.
    """
    offset, end = 0, len(data)
    while offset + _EVENT.size <= end:
        watch, mask, cookie, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        if length > end - offset:
            return
        raw = data[offset : offset + length].split(b"\0", 1)[0]
        offset += length
        yield watch, mask, cookie, os.fsdecode(raw)


def read(fd: int) -> list[tuple[int, int, int, str]]:
    """Read and parse the events pending on non-blocking `fd`; empty if there are none."""
    try:
        return list(parse(os.read(fd, READ_SIZE)))
    except BlockingIOError:
        return []
