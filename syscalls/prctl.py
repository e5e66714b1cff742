"""Attributes of the calling process and thread: prctl(2), linux/prctl.h.

Every function raises OSError naming the option.  Dumpable and the parent-death signal belong
to the process; the name, no_new_privs, securebits and capability sets to the *thread*.
"""

from __future__ import annotations

import ctypes

from passt.syscalls.libc import check, proto

PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_GET_KEEPCAPS = 7
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_GET_NAME = 16
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_IS_SET = 1
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_LOWER = 3
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECBIT_NOROOT = 1 << 0
SECBIT_NOROOT_LOCKED = 1 << 1
SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_NO_SETUID_FIXUP_LOCKED = 1 << 3
SECBIT_KEEP_CAPS = 1 << 4
SECBIT_KEEP_CAPS_LOCKED = 1 << 5
SECBIT_NO_CAP_AMBIENT_RAISE = 1 << 6
SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED = 1 << 7

_NAME_SIZE = 16

_ulong = ctypes.c_ulong
_prctl = proto("prctl", ctypes.c_int, ctypes.c_int, _ulong, _ulong, _ulong, _ulong)
_prctl_pointer = proto("prctl", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, _ulong, _ulong, _ulong)


def prctl(option: int, name: str, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """Call prctl with integer arguments; `name` is what an error message says."""
    return check(_prctl(option, a, b, c, d), f"prctl {name}")


def set_pdeathsig(signal: int) -> None:
    """Signal to get when the parent *thread* that forked us ends, 0 for none.

    Cleared by fork and by executing a set-user-ID program.  The parent may be gone before
    this is called: compare getppid afterwards.
    """
    prctl(PR_SET_PDEATHSIG, "PR_SET_PDEATHSIG", signal)


def get_pdeathsig() -> int:
    """The parent-death signal, 0 for none."""
    value = ctypes.c_int()
    check(
        _prctl_pointer(PR_GET_PDEATHSIG, ctypes.addressof(value), 0, 0, 0), "prctl PR_GET_PDEATHSIG"
    )
    return value.value


def set_dumpable(dumpable: bool) -> None:
    """Allow core dumps and attaching by others of the same user, or not.

    Not dumpable also makes the /proc entries of the process belong to root.
    """
    prctl(PR_SET_DUMPABLE, "PR_SET_DUMPABLE", int(dumpable))


def get_dumpable() -> int:
    """0 not dumpable, 1 dumpable, 2 readable by root only."""
    return prctl(PR_GET_DUMPABLE, "PR_GET_DUMPABLE")


def set_no_new_privs() -> None:
    """Never again gain privileges by executing a program; irrevocable, inherited."""
    prctl(PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS", 1)


def get_no_new_privs() -> bool:
    """Whether no_new_privs is set."""
    return prctl(PR_GET_NO_NEW_PRIVS, "PR_GET_NO_NEW_PRIVS") == 1


def set_keepcaps(keep: bool) -> None:
    """Keep the permitted set when all user IDs change from 0; cleared by executing a program."""
    prctl(PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS", int(keep))


def get_keepcaps() -> bool:
    """Whether the permitted set survives leaving user ID 0."""
    return prctl(PR_GET_KEEPCAPS, "PR_GET_KEEPCAPS") == 1


def set_securebits(bits: int) -> None:
    """Replace the SECBIT_ set; needs CAP_SETPCAP (EPERM)."""
    prctl(PR_SET_SECUREBITS, "PR_SET_SECUREBITS", bits)


def get_securebits() -> int:
    """The SECBIT_ set."""
    return prctl(PR_GET_SECUREBITS, "PR_GET_SECUREBITS")


def set_child_subreaper(subreaper: bool) -> None:
    """Become the parent of orphaned descendants, or not."""
    prctl(PR_SET_CHILD_SUBREAPER, "PR_SET_CHILD_SUBREAPER", int(subreaper))


def set_name(name: str) -> None:
    """Name of the thread as in /proc/PID/comm; the kernel keeps 15 bytes."""
    raw = name.encode("utf-8", "surrogateescape")[: _NAME_SIZE - 1]
    buffer = ctypes.create_string_buffer(raw, _NAME_SIZE)
    check(_prctl_pointer(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl PR_SET_NAME")


def get_name() -> str:
    """Name of the thread, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(_NAME_SIZE)
    check(_prctl_pointer(PR_GET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl PR_GET_NAME")
    return buffer.value.decode("utf-8", "surrogateescape")
