"""Sets of maps that root has made for a user who could not: kept by name in a bpffs.

Only loading the program and making the maps takes privilege.  Who has permission for a map's file
in a bpffs may open it and put sockets into it, and the program stays attached to it::

    /run/passt/bpf/<uid>/<number>-<source>/ends, grants, …, deaf

One folder is one set, for one instance at a time: it locks the folder, with flock(2), which ends
by itself however the process ends, and removes what a former one may have left.  *source* is
the start of the digest of the program's source: a set of another version is none.

Nothing is shared between users: folders belong to the user, with mode 0700, files have 0600, and
an instance takes no set of somebody else.  What a user can do with the maps concerns the user's
own sockets, those in the maps.

This is a bpffs of its own: that in /sys/fs/bpf is closed to users where systemd mounts it.  It is
gone after a reboot; the systemd unit in docs/ makes the sets anew.

Source: bpf(2), flock(2), Documentation/bpf/ of the kernel.
"""

from __future__ import annotations

import fcntl
import os
import stat

from passt.kernel.ebpf import bytecode
from passt.kernel.ebpf.layout import DEAF, SHAPES
from passt.kernel.ebpf.maps import OBJECTS, MapSet
from passt.syscalls import bpf
from passt.syscalls.ns import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from passt.syscalls.statfs import BPF_FS_MAGIC, fs_type

ROOT = "/run/passt/bpf"

_DIGITS = 16
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class NoSetError(Exception):
    """There is no set to be had; the text is a reason."""


class PinnedSet:
    """What there is: number, whether it fits this version, whether somebody uses it."""

    __slots__ = ("current", "number", "path", "used")

    def __init__(self, path: str) -> None:
        """Look at ``path``, whose name is as above; OSError."""
        self.path = path
        number, _, source = os.path.basename(path).partition("-")
        self.number = int(number) if number.isdigit() else -1
        self.current = source == _version()
        self.used = False
        fd = os.open(path, _DIRECTORY)
        try:
            self.used = not _lock(fd)
        finally:
            os.close(fd)


def folder(uid: int) -> str:
    """Where the sets of a user are."""
    return f"{ROOT}/{uid}"


def sets(uid: int) -> list[PinnedSet]:
    """The sets of a user, by number; OSError if there is a folder, but not for us."""
    try:
        names = os.listdir(folder(uid))
    except FileNotFoundError:
        return []
    found = [PinnedSet(f"{folder(uid)}/{name}") for name in names]
    return sorted(found, key=lambda each: each.number)


def pin(fds: list[int], uid: int, gid: int, number: int) -> None:
    """Give a user the maps ``fds`` as set ``number``; OSError.  Takes root."""
    base = folder(uid)
    path = f"{base}/{number}-{_version()}"
    _mount()
    _make_directory(base, uid, gid)
    _make_directory(path, uid, gid)
    for name, fd in zip(OBJECTS, fds, strict=True):
        file = f"{path}/{name}"
        bpf.obj_pin(fd, file)
        os.chown(file, uid, gid)
        os.chmod(file, 0o600)


def _mount() -> None:
    """Make sure that there is a bpffs."""
    os.makedirs(ROOT, 0o755, exist_ok=True)
    fd = os.open(ROOT, _DIRECTORY)
    try:
        mounted = fs_type(fd) == BPF_FS_MAGIC
    finally:
        os.close(fd)
    if not mounted:
        mount("bpf", ROOT, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755")


def _make_directory(path: str, uid: int, gid: int) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    os.chown(path, uid, gid)
    os.chmod(path, 0o700)


def unpin(uid: int) -> int:
    """Remove a user's sets, and return how many; whoever uses one keeps it to the end."""
    found = sets(uid)
    for each in found:
        remove(each)
    if os.path.isdir(folder(uid)):
        os.rmdir(folder(uid))
    return len(found)


def remove(each: PinnedSet) -> None:
    """Remove a set; OSError."""
    for name in os.listdir(each.path):
        os.unlink(f"{each.path}/{name}")
    os.rmdir(each.path)


def users() -> list[int]:
    """The users who have sets."""
    try:
        names = os.listdir(ROOT)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def take(uid: int) -> MapSet:
    """A set of the user ``uid`` that nobody uses, to be ours until we end.

    Raises NoSetError; OSError if the kernel refuses the maps.
    """
    base, names = _folder_of(uid)
    if not base:
        raise NoSetError(f"no maps are prepared for user {uid}")
    current = [name for name in names if name.endswith(f"-{_version()}")]
    if not current:
        raise NoSetError("the prepared maps are of another version")
    for name in current:
        fd = os.open(f"{base}/{name}", _DIRECTORY)
        if _ours(fd, uid) and _lock(fd):
            # The descriptor stays open, and so the set is locked, until the process ends.
            return _open(f"{base}/{name}")
        os.close(fd)
    raise NoSetError("all prepared maps are in use")


def describe(uid: int) -> str:
    """What is prepared for the user ``uid``, for people."""
    base, names = _folder_of(uid)
    found = [PinnedSet(f"{base}/{name}") for name in names]
    if not found:
        return f"none for user {uid}"
    free = sum(each.current and not each.used for each in found)
    others = sum(not each.current for each in found)
    return f"{len(found)} for user {uid}, {free} free, {others} of another version"


def _folder_of(uid: int) -> tuple[str, list[str]]:
    """The folder that belongs to ``uid``, and what is in it; empty if there is none.

    Its name is a number of the initial user namespace, and we may be in another: the owner tells.
    """
    try:
        for name in os.listdir(ROOT):
            path = f"{ROOT}/{name}"
            if os.stat(path).st_uid == uid and os.access(path, os.R_OK | os.X_OK):
                return path, sorted(os.listdir(path))
    except OSError:
        pass
    return "", []


def _ours(fd: int, uid: int) -> bool:
    """Whether nobody else has a say in the folder behind ``fd``."""
    status = os.fstat(fd)
    return status.st_uid == uid and not stat.S_IMODE(status.st_mode) & 0o077


def _open(path: str) -> MapSet:
    """Open the maps of a set, which must be as we know them."""
    fds: list[int] = []
    try:
        for shape in SHAPES:
            fd = bpf.obj_get(f"{path}/{shape.name}")
            fds.append(fd)
            info = bpf.map_info(fd)
            if (info.kind, info.key_size, info.value_size, info.entries) != (
                shape.kind,
                shape.key_size,
                shape.value_size,
                shape.entries,
            ):
                raise NoSetError("prepared maps are damaged")
        fds.append(bpf.obj_get(f"{path}/{DEAF}"))
        maps = MapSet(fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    maps.clean()
    return maps


def _lock(fd: int) -> bool:
    """Lock a folder, if nobody else has."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _version() -> str:
    return bytecode.digest().hex()[:_DIGITS]
