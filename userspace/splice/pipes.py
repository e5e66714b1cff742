"""Pipes for splice(2), lent to connections while they move much data.

A pipe is expensive where connections are many: two descriptors, and its capacity counts
against the user's quota of pipe pages, whether it is used or not (pipe(7),
/proc/sys/fs/pipe-user-pages-soft).  So a direction of a connection has one only while its
data comes in bulk, and gives it back when the pipe is empty and the bulk is over.  What is
given back is kept for the next, up to a few.

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
#: Pipes kept for later.
SPARE = 16
_DEFAULT_SIZE = 1 << 16


class Pipe:
    """An empty pipe, non-blocking: descriptors to read from and to write to, capacity."""

    __slots__ = ("reader", "size", "writer")

    def __init__(self, reader: int, writer: int, size: int) -> None:
        self.reader = reader
        self.writer = writer
        self.size = size

    def close(self) -> None:
        """Release the descriptors, and what is in the pipe."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Lends pipes."""

    __slots__ = ("_size", "_spare")

    def __init__(self, size: int = PIPE_SIZE) -> None:
        self._size = size
        self._spare: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, the caller's until :meth:`give_back`; ``None`` if there is none."""
        if self._spare:
            return self._spare.pop()
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        return Pipe(reader, writer, self._enlarge(writer))

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back, which must be empty."""
        if len(self._spare) < SPARE:
            self._spare.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close the pipes that are not lent."""
        for pipe in self._spare:
            pipe.close()
        self._spare.clear()

    def _enlarge(self, fd: int) -> int:
        """Set the capacity as near to what is wanted as possible, and return it in bytes."""
        size = self._size
        while size > _DEFAULT_SIZE:
            try:
                return set_pipe_size(fd, size)
            except OSError:
                size >>= 1
        return get_pipe_size(fd)
