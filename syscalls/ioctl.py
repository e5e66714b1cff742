"""ioctl request numbers, as the C macros _IO, _IOR, _IOW and _IOWR make them.

A request is direction, argument size, type and number packed into 32 bits.  Most
architectures follow include/uapi/asm-generic/ioctl.h (14 bits of size, direction none 0,
write 1, read 2); PowerPC, MIPS and SPARC have 13 bits of size and other direction codes.
"""

from __future__ import annotations

import os

_machine = os.uname().machine
if _machine.startswith(("ppc", "mips", "sparc")):
    _DIRECTION_SHIFT, _NONE, _READ, _WRITE = 29, 1, 2, 4
else:
    _DIRECTION_SHIFT, _NONE, _READ, _WRITE = 30, 0, 2, 1


def io(kind: int, number: int) -> int:
    """Request without argument structure: _IO(kind, number)."""
    return _NONE << _DIRECTION_SHIFT | kind << 8 | number


def ior(kind: int, number: int, size: int) -> int:
    """Request that reads `size` bytes from the kernel: _IOR(kind, number, type)."""
    return _READ << _DIRECTION_SHIFT | size << 16 | kind << 8 | number


def iow(kind: int, number: int, size: int) -> int:
    """Request that gives `size` bytes to the kernel: _IOW(kind, number, type)."""
    return _WRITE << _DIRECTION_SHIFT | size << 16 | kind << 8 | number
