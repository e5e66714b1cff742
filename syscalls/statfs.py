"""The type of the file system behind a descriptor: fstatfs(2), linux/magic.h."""

from __future__ import annotations

import ctypes
import os

from passt.syscalls.libc import check, proto

ANON_INODE_FS_MAGIC = 0x09041934
BPF_FS_MAGIC = 0xCAFE4A11
CGROUP2_SUPER_MAGIC = 0x63677270
DEVPTS_SUPER_MAGIC = 0x1CD1
NSFS_MAGIC = 0x6E736673
OVERLAYFS_SUPER_MAGIC = 0x794C7630
PROC_SUPER_MAGIC = 0x9FA0
RAMFS_MAGIC = 0x858458F6
SYSFS_MAGIC = 0x62656572
TMPFS_MAGIC = 0x01021994

# f_type comes first, as a long but for s390x, where it is an unsigned int; every magic number
# has 32 bits.  The whole structure is smaller than the buffer on all architectures.
_Type = ctypes.c_uint if os.uname().machine == "s390x" else ctypes.c_ulong
_BUFFER_SIZE = 256

_fstatfs = proto("fstatfs", ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


def fs_type(fd: int) -> int:
    """Magic number of the file system that open file `fd` is on; OSError as fstatfs(2)."""
    buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
    check(_fstatfs(fd, ctypes.addressof(buffer)), "fstatfs")
    return int(_Type.from_buffer(buffer).value) & 0xFFFFFFFF
