"""Capability sets of the calling thread: capget(2), capset(2), prctl(2), capabilities(7).

Sets are integers with bit n for capability n.  The raw system calls concern the calling
*thread* only: to change a whole process do it while there is one thread.
"""

from __future__ import annotations

import ctypes
import struct
from errno import EINVAL

from passt.syscalls.libc import check, proto
from passt.syscalls.prctl import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_IS_SET,
    PR_CAP_AMBIENT_LOWER,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    prctl,
)

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_LINUX_IMMUTABLE = 9
CAP_NET_BIND_SERVICE = 10
CAP_NET_BROADCAST = 11
CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
CAP_IPC_LOCK = 14
CAP_IPC_OWNER = 15
CAP_SYS_MODULE = 16
CAP_SYS_RAWIO = 17
CAP_SYS_CHROOT = 18
CAP_SYS_PTRACE = 19
CAP_SYS_PACCT = 20
CAP_SYS_ADMIN = 21
CAP_SYS_BOOT = 22
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24
CAP_SYS_TIME = 25
CAP_SYS_TTY_CONFIG = 26
CAP_MKNOD = 27
CAP_LEASE = 28
CAP_AUDIT_WRITE = 29
CAP_AUDIT_CONTROL = 30
CAP_SETFCAP = 31
CAP_MAC_OVERRIDE = 32
CAP_MAC_ADMIN = 33
CAP_SYSLOG = 34
CAP_WAKE_ALARM = 35
CAP_BLOCK_SUSPEND = 36
CAP_AUDIT_READ = 37
CAP_PERFMON = 38
CAP_BPF = 39
CAP_CHECKPOINT_RESTORE = 40

_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")
# Twice (low and high 32 bits): effective, permitted, inheritable.
_DATA = struct.Struct("=6I")
_LOW = 0xFFFFFFFF

_capget = proto("capget", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
_capset = proto("capset", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)


class Sets:
    """The five capability sets of a thread at one moment, as bit masks."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(
        self, effective: int, permitted: int, inheritable: int, bounding: int, ambient: int
    ) -> None:
        self.effective = effective
        self.permitted = permitted
        self.inheritable = inheritable
        self.bounding = bounding
        self.ambient = ambient


def mask(*capabilities: int) -> int:
    """Bit mask of the given capability numbers."""
    result = 0
    for capability in capabilities:
        result |= 1 << capability
    return result


def names(capabilities: int) -> list[str]:
    """Names as in capabilities(7) of a mask, lowest first; "cap_N" for unknown ones."""
    known = {
        value: name
        for name, value in globals().items()
        if name.startswith("CAP_") and isinstance(value, int)
    }
    return [
        known.get(i, f"cap_{i}") for i in range(capabilities.bit_length()) if capabilities >> i & 1
    ]


def get() -> tuple[int, int, int]:
    """Return the (effective, permitted, inheritable) masks."""
    data = ctypes.create_string_buffer(_DATA.size)
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0), _HEADER.size)
    check(_capget(header, data), "capget")
    e0, p0, i0, e1, p1, i1 = _DATA.unpack(data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def set_masks(effective: int, permitted: int, inheritable: int) -> None:
    """Replace the three masks.

    EPERM if permitted would grow, effective exceed permitted, or inheritable exceed what
    permitted, the bounding set and CAP_SETPCAP allow.
    """
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0), _HEADER.size)
    low = (effective & _LOW, permitted & _LOW, inheritable & _LOW)
    high = (effective >> 32, permitted >> 32, inheritable >> 32)
    check(_capset(header, _DATA.pack(*low, *high)), "capset")


def in_bounding(capability: int) -> bool | None:
    """Whether the bounding set has `capability`; None if the kernel does not know it."""
    try:
        return prctl(PR_CAPBSET_READ, "PR_CAPBSET_READ", capability) == 1
    except OSError as e:
        if e.errno == EINVAL:
            return None
        raise


def last() -> int:
    """The highest capability number this kernel knows."""
    number = CAP_AUDIT_READ
    while in_bounding(number + 1) is not None:
        number += 1
    return number


def bounding() -> int:
    """The bounding set."""
    return mask(*(i for i in range(last() + 1) if in_bounding(i)))


def drop_bounding(capability: int) -> None:
    """Take `capability` out of the bounding set for good; EPERM without CAP_SETPCAP."""
    prctl(PR_CAPBSET_DROP, "PR_CAPBSET_DROP", capability)


def limit_bounding(keep: int = 0) -> None:
    """Take everything but the mask `keep` out of the bounding set; EPERM as above."""
    for i in range(last() + 1):
        if not keep >> i & 1 and in_bounding(i):
            drop_bounding(i)


def ambient() -> int:
    """The ambient set, which survives execution of ordinary programs."""
    result = 0
    for i in range(last() + 1):
        if prctl(PR_CAP_AMBIENT, "PR_CAP_AMBIENT_IS_SET", PR_CAP_AMBIENT_IS_SET, i) == 1:
            result |= 1 << i
    return result


def raise_ambient(capability: int) -> None:
    """Add to the ambient set; EPERM unless both permitted and inheritable."""
    prctl(PR_CAP_AMBIENT, "PR_CAP_AMBIENT_RAISE", PR_CAP_AMBIENT_RAISE, capability)


def lower_ambient(capability: int) -> None:
    """Take `capability` out of the ambient set."""
    prctl(PR_CAP_AMBIENT, "PR_CAP_AMBIENT_LOWER", PR_CAP_AMBIENT_LOWER, capability)


def clear_ambient() -> None:
    """Empty the ambient set."""
    prctl(PR_CAP_AMBIENT, "PR_CAP_AMBIENT_CLEAR_ALL", PR_CAP_AMBIENT_CLEAR_ALL)


def current() -> Sets:
    """All five sets of the calling thread."""
    return Sets(*get(), bounding(), ambient())
