"""The names in a directory, by an open descriptor and nothing else: getdents64(2).

:func:`os.listdir` of a descriptor would duplicate it and ask for its status and flags, calls
that a confined process need not have.
"""

from __future__ import annotations

import ctypes
import os
import struct

from passt.syscalls.libc import check, proto

_SIGNATURE = (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

try:
    _getdents64 = proto("getdents64", *_SIGNATURE)
except AttributeError:
    # musl: the plain name always stands for the newer call.
    _getdents64 = proto("getdents", *_SIGNATURE)

_BUFFER_SIZE = 32768
# struct linux_dirent64: inode, offset, length of the record, type; then the name.
_LENGTH = struct.Struct("=16xH")
_NAME = 19


def contains(fd: int, name: bytes) -> bool:
    """Whether directory ``fd``, open for reading, has an entry ``name``.

    Raises OSError: ENOENT if the directory itself is gone, or, in procfs, its process; EBADF if
    it was opened with O_PATH.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
    address = ctypes.addressof(buffer)
    while size := check(_getdents64(fd, address, _BUFFER_SIZE), "getdents64"):
        data = buffer.raw[:size]
        at = 0
        while at < size:
            (length,) = _LENGTH.unpack_from(data, at)
            if data[at + _NAME : at + length].split(b"\0", 1)[0] == name:
                return True
            at += length
    return False
