"""Pipes for splice(2), lent for single transfers.

A pipe is expensive where connections are many: two descriptors, and its capacity counts
against the user's quota of pipe pages, whether it is used or not (pipe(7),
/proc/sys/fs/pipe-user-pages-soft).  So connections have none of their own.  They borrow one
for a transfer and return it when it is empty, which it is at once unless the destination is
slow; then the pipe is part of the data's way, and stays with the connection.

A few are kept for the next.  Altogether there are no more than :data:`LIMIT`: each slow reader
could have a megabyte of the kernel's memory filled otherwise.

Capacity is asked for generously and accepted as it comes: once the quota is used up the
kernel refuses to enlarge pipes, and makes new ones with two pages.  Where no pipe is to be
had at all connections do without.

Source: pipe(7), fcntl(2) F_SETPIPE_SZ.
"""

from __future__ import annotations

import os

from passt.syscalls.splice import get_pipe_size, set_pipe_size

#: What one splice() can move at most, and the default limit for the unprivileged
#: (/proc/sys/fs/pipe-max-size).
PIPE_SIZE = 1 << 20
#: Pipes that there may be, and those of them that are kept for later.
LIMIT = 256
SPARE = 16
_DEFAULT_SIZE = 1 << 16


class Pipe:
    """An empty pipe, non-blocking: descriptors to read from and to write to, capacity."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self, reader: int, writer: int, size: int) -> None:
        self.reader = reader
        self.writer = writer
        self.size = size


class PipePool:
    """Lends pipes."""

    __slots__ = ("_count", "_size", "_spare")

    def __init__(self, size: int = PIPE_SIZE) -> None:
        self._size = size
        self._spare: list[Pipe] = []
        #: Pipes in existence.
        self._count = 0

    def take(self) -> Pipe | None:
        """An empty pipe, to be given back or discarded; ``None`` if there is none."""
        if self._spare:
            return self._spare.pop()
        if self._count >= LIMIT:
            return None
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        self._count += 1
        return Pipe(reader, writer, self._enlarge(writer))

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back, which must be empty."""
        if len(self._spare) < SPARE:
            self._spare.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a lent pipe, and lose what is in it."""
        self._count -= 1
        os.close(pipe.reader)
        os.close(pipe.writer)

    def close(self) -> None:
        """Close the pipes that are not lent."""
        while self._spare:
            self.discard(self._spare.pop())

    def _enlarge(self, fd: int) -> int:
        """Set the capacity as near to what is wanted as possible, and return it in bytes."""
        size = self._size
        while size > _DEFAULT_SIZE:
            try:
                return set_pipe_size(fd, size)
            except OSError:
                size >>= 1
        return get_pipe_size(fd)
