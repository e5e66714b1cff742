"""Namespaces and mounts: setns, unshare, mount, umount2, pivot_root, sethostname, pidfd_open.

Source: the section 2 manual pages of the same names, namespaces(7), linux/sched.h,
linux/mount.h, ioctl_ns(2).  Python wraps setns and unshare only since 3.12.  All functions
raise OSError that names the call.
"""

from __future__ import annotations

import ctypes
import os
from fcntl import ioctl

from passt.syscalls.ioctl import io
from passt.syscalls.libc import check, error, proto

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_FORCE = 1
MNT_DETACH = 2
MNT_EXPIRE = 4
UMOUNT_NOFOLLOW = 8

_NS_GET_USERNS = io(0xB7, 1)
_NS_GET_PARENT = io(0xB7, 2)

_int, _str = ctypes.c_int, ctypes.c_char_p
_setns = proto("setns", _int, _int, _int)
_unshare = proto("unshare", _int, _int)
_mount = proto("mount", _int, _str, _str, _str, ctypes.c_ulong, _str)
_umount2 = proto("umount2", _int, _str, _int)
_pivot_root = proto("pivot_root", _int, _str, _str)
_sethostname = proto("sethostname", _int, _str, ctypes.c_size_t)


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling *thread* into the namespace behind `fd` (setns(2)).

    `kind` is one CLONE_NEW… flag that the descriptor must match, 0 for any, or, for a PID
    descriptor, a set of them.  EINVAL: wrong kind, or a user namespace from a process with
    more than one thread; EPERM: lacking capabilities in the target.  A PID namespace
    takes effect for children only.
    """
    check(_setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces for each CLONE_NEW… flag (unshare(2))."""
    check(_unshare(flags), "unshare")


def _optional(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(
    source: str | None,
    target: str,
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount, or change propagation of, or move a mount, as `flags` say (mount(2))."""
    ret = _mount(_optional(source), os.fsencode(target), _optional(fstype), flags, _optional(data))
    check(ret, "mount")


def umount(target: str, flags: int = 0) -> None:
    """Unmount `target`; `flags` from MNT_… and UMOUNT_NOFOLLOW (umount2(2))."""
    check(_umount2(os.fsencode(target), flags), "umount2")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make mount `new_root` the root, moving the old one to `put_old` (pivot_root(2)).

    Both may be ".": the old root then lies on top of the new one and is to be unmounted
    next.  EINVAL if the present root is not a mount that can be moved (initramfs).
    """
    check(_pivot_root(os.fsencode(new_root), os.fsencode(put_old)), "pivot_root")


def sethostname(name: str) -> None:
    """Set the host name of the UTS namespace, at most 64 bytes (sethostname(2))."""
    raw = os.fsencode(name)
    check(_sethostname(raw, len(raw)), "sethostname")


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Descriptor for process `pid`, close-on-exec, readable once it ended (pidfd_open(2))."""
    try:
        return os.pidfd_open(pid, flags)
    except OSError as e:
        raise error(e.errno or 0, "pidfd_open") from None


def owner(fd: int) -> int:
    """Descriptor of the user namespace that owns namespace `fd` (ioctl_ns(2)).

    EPERM if that is outside the caller's own user namespace and its descendants.
    """
    return _related(fd, _NS_GET_USERNS, "NS_GET_USERNS")


def parent(fd: int) -> int:
    """Descriptor of the parent of a user or PID namespace; EPERM as for `owner`."""
    return _related(fd, _NS_GET_PARENT, "NS_GET_PARENT")


def _related(fd: int, request: int, name: str) -> int:
    try:
        return ioctl(fd, request)
    except OSError as e:
        raise error(e.errno or 0, f"ioctl {name}") from None
