"""A log file that never exceeds its size, and always starts by telling whose it is.

The first line is a header: program, version, executable and PID.  When an entry does not fit
any more, about 30% of the file is cut from its start, rounded up to whole blocks: by
collapsing the range where the file system can (fallocate(2), no data is copied), else by
moving the rest down.  The cut falls within some line; the header, which then also says when
the log was truncated, is written over the new start and filled with blanks up to the end of
that line, so that the file consists of whole lines throughout.

Writing never raises and never blocks: a full disk costs the entry, not the process.  A path
that is not a regular file (a FIFO, a terminal) is simply written to.
"""

from __future__ import annotations

import os
from _thread import RLock
from stat import S_ISREG

from passt.syscalls.fallocate import collapse_range

#: Longest entry in bytes, newline included.
MAX_ENTRY = 8192

_BLOCK = 4096
_CHUNK = 1 << 18


class LogFile:
    """An open log file of at most ``limit`` bytes; see the module's text.

    Raises OSError if ``path`` cannot be created or truncated.  ``header`` is the first line,
    without newline.
    """

    __slots__ = ("_fd", "_header", "_limit", "_lock", "_regular", "_size")

    def __init__(self, path: str, limit: int, header: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        # Neither wait for the reader of a FIFO, nor acquire a controlling terminal.
        self._fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
        self._regular = S_ISREG(os.fstat(self._fd).st_mode)
        self._header = header[: MAX_ENTRY // 2]
        self._limit = limit
        self._size = 0
        self._lock = RLock()
        self.write("", self._header + b"\n")

    def write(self, stamp: str, entry: bytes) -> None:
        """Append ``entry``, one line with its newline, at time ``stamp`` (SECONDS.FFFF)."""
        if len(entry) > MAX_ENTRY:
            entry = entry[: MAX_ENTRY - 1] + b"\n"
        with self._lock:
            try:
                if not self._regular:
                    os.write(self._fd, entry)
                    return
                if self._size + len(entry) > self._limit:
                    self._cut(stamp)
                written = os.pwrite(self._fd, entry, self._size)
                if written < len(entry):
                    # Half a line would spoil the next one.
                    os.ftruncate(self._fd, self._size)
                else:
                    self._size += written
            except OSError:
                pass

    def close(self) -> None:
        """Flush to disk and close; further entries are lost."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                os.fsync(self._fd)
            except OSError:
                pass
            try:
                os.close(self._fd)
            except OSError:
                pass
            self._fd = -1

    def _cut(self, stamp: str) -> None:
        """Make room by dropping the oldest entries; raises OSError if there is no way."""
        cut = -(-self._limit * 3 // 10 // _BLOCK) * _BLOCK
        try:
            collapse_range(self._fd, 0, cut)
        except OSError:
            self._move_down(cut)
        self._size -= cut
        header = self._header + b" - log truncated at " + stamp.encode()
        # The longest entry is shorter than this, so the end of the line is within reach.
        newline = os.pread(self._fd, 2 * MAX_ENTRY, len(header)).find(b"\n")
        os.pwrite(self._fd, header + b" " * newline + b"\n", 0)

    def _move_down(self, cut: int) -> None:
        """Copy everything from offset ``cut`` to the start, and shorten the file by that."""
        source = cut
        while source < self._size:
            block = os.pread(self._fd, _CHUNK, source)
            if not block:
                break
            os.pwrite(self._fd, block, source - cut)
            source += len(block)
        os.ftruncate(self._fd, self._size - cut)
