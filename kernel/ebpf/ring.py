"""A ring buffer (BPF_MAP_TYPE_RINGBUF) read through the memory that we share with the kernel.

Records are one 32-bit word, padded to 8 bytes behind a header of 32-bit length and 32-bit offset.

Source: Documentation/bpf/ringbuf.rst of the kernel.
"""

from __future__ import annotations

import mmap

from passt.syscalls import bpf

_PAGE = mmap.PAGESIZE
_RECORD_WORDS = 2
#: Bytes that a record takes.
RECORD = 8 * _RECORD_WORDS
_BUSY = 1 << 31
_DISCARDED = 1 << 30


class Ring:
    """The ring behind descriptor ``fd``, of ``size`` bytes; OSError."""

    __slots__ = ("_consumer", "_producer", "_records", "_size")

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._consumer = bpf.map_memory(fd, _PAGE, writable=True)
        # The ring is there twice, so that records need no wrapping.
        memory = bpf.map_memory(fd, _PAGE + 2 * size, writable=False, offset=_PAGE)
        self._producer = memory[: _PAGE // 8]
        self._records = memory[_PAGE // 8 :]

    def read(self) -> list[int]:
        """The records since the last time, in their order."""
        consumer, producer, records, size = (
            self._consumer,
            self._producer,
            self._records,
            self._size,
        )
        position, end = consumer[0], producer[0]
        found = []
        while position < end:
            at = position % size >> 3
            header = records[at] & 0xFFFFFFFF
            if header & _BUSY:
                break
            if not header & _DISCARDED:
                found.append(records[at + 1] & 0xFFFFFFFF)
            position += RECORD
        consumer[0] = position
        return found

    def skip(self) -> None:
        """Forget what is there."""
        self._consumer[0] = self._producer[0]

    def close(self) -> None:
        """Give the memory up."""
        for memory in (self._consumer, self._producer, self._records):
            memory.release()
