"""Capture file of every frame on the link, in the classic pcap format (pcap-savefile(5)).

Native byte order, microseconds (truncated: a rounded value could be 1000000), link type
Ethernet.  The snapshot length is above anything a link carries, so that no frame is cut.

A capture grows with the traffic, which guest and network decide on, so unless told otherwise it
takes no more than half of the space that was free when it began.  (The original has no limit, and
leaves it to the user to look after the disk.)

A write per frame would cost more than handling the frame.  Records are collected in a buffer
of fixed size, and written when it is full, at the end of each batch (:meth:`Pcap.flush`) and
at exit.  A capture must never disturb the traffic: the first error is reported, and ends the
capture.  All methods do nothing from then on, and none ever raises.
"""

from __future__ import annotations

import os
import struct
from errno import EINVAL, ENOTSUP, EROFS
from stat import S_ISREG
from time import time_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.wire import Octets

#: Longest part of a frame that is recorded.
SNAPLEN = 262144

#: Magic, version 2.4, zone, accuracy, snapshot length, link type.
_FILE_HEADER = struct.Struct("=IHHiIII")
_MAGIC = 0xA1B2C3D4
_LINKTYPE_ETHERNET = 1

#: Seconds, microseconds, captured length, original length.
_RECORD = struct.Struct("=IIII")
_RECORD_LEN = 16

#: One record of the largest size always fits.
_BUFFER = SNAPLEN + _RECORD_LEN


class Pcap:
    """A capture written to a descriptor, which it owns.

    ``report(text)`` is called once when the capture ends early: on a write error, or when a
    record would take the file beyond ``limit`` bytes (0: no limit).
    """

    __slots__ = ("_buffer", "_fd", "_limit", "_report", "_size", "_used")

    def __init__(self, fd: int, report: Callable[[str], None], limit: int = 0) -> None:
        self._fd = fd
        self._report = report
        self._limit = limit
        self._buffer = memoryview(bytearray(_BUFFER))
        _FILE_HEADER.pack_into(self._buffer, 0, _MAGIC, 2, 4, 0, 0, SNAPLEN, _LINKTYPE_ETHERNET)
        self._used = _FILE_HEADER.size
        #: Bytes of the file, including those still in the buffer.
        self._size = _FILE_HEADER.size
        self.flush()

    @classmethod
    def open(cls, path: str, report: Callable[[str], None], limit: int | None = 0) -> Pcap:
        """A capture to the file ``path``: created with mode 0600, or truncated.

        With ``limit`` ``None`` it depends on the file system.  Raises OSError if the file cannot
        be opened.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        return cls(fd, report, _half_of_free_space(fd) if limit is None else limit)

    def frame(self, *parts: Octets) -> None:
        """Record one frame, given as one or several parts, as of now."""
        if self._fd < 0:
            return
        original = sum(map(len, parts))
        captured = min(original, SNAPLEN)
        if self._limit and self._size + _RECORD_LEN + captured > self._limit:
            self._end("Capture file has reached its size limit")
            return
        self._size += _RECORD_LEN + captured
        if self._used + _RECORD_LEN + captured > _BUFFER:
            self.flush()
            if self._fd < 0:
                return
        seconds, rest = divmod(time_ns(), 1_000_000_000)
        buffer = self._buffer
        used = self._used
        _RECORD.pack_into(buffer, used, seconds & 0xFFFFFFFF, rest // 1000, captured, original)
        used += _RECORD_LEN
        for part in parts:
            size = min(len(part), captured)
            buffer[used : used + size] = part[:size]
            used += size
            captured -= size
        self._used = used

    def flush(self) -> None:
        """Write what was collected."""
        if self._fd >= 0 and self._used:
            self._write()

    def close(self) -> None:
        """Write what was collected and bring the file to disk."""
        if self._fd >= 0:
            self._end("")

    def _write(self) -> None:
        """Write the buffer, continuing after short writes."""
        done = 0
        used = self._used
        self._used = 0
        try:
            while done < used:
                done += os.write(self._fd, self._buffer[done:used])
        except OSError as error:
            self._release(f"Cannot write to capture file: {error.strerror}")

    def _end(self, reason: str) -> None:
        """Finish the file; ``reason`` is reported if there is one."""
        self.flush()
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            # Pipes and devices cannot be synchronised.
            if error.errno not in (EINVAL, EROFS, ENOTSUP):
                reason = f"Cannot write to capture file: {error.strerror}"
        self._release(reason)

    def _release(self, reason: str) -> None:
        """Give up the descriptor; ``reason`` is reported if there is one."""
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as error:
            reason = reason or f"Cannot write to capture file: {error.strerror}"
        if reason:
            self._report(reason)


def _half_of_free_space(fd: int) -> int:
    """Half of what is free on the file system of ``fd``, in bytes; 0 if it is no regular file."""
    if not S_ISREG(os.fstat(fd).st_mode):
        return 0
    system = os.fstatvfs(fd)
    # A full file system is no reason for no limit.
    return max(system.f_bavail * system.f_frsize // 2, 1)
