"""What a process that obeys strangers' packets has left of the system: next to nothing.

Whoever takes over the running process, by a flaw of ours, of the interpreter or of the kernel's
interfaces, is to find nothing there.  Two steps, with the fork of the daemon between them:

**leave**, once everything has been opened that has a path.  New mount, IPC and UTS namespaces,
and for the background a PID namespace, whose process 1 the daemon will be.  The root becomes
an empty, read-only file system::

    mount  /         recursively unbindable     nothing spreads to, or is bound from, elsewhere
    mount  /tmp      tmpfs, read-only, nosuid, nodev, noexec, room for no file
    chdir  /tmp
    pivot_root . .   the old root now lies on top of the new one
    umount .         lazily: what descriptors refer to stays usable, by descriptor only

The kernel refuses to pivot where the root is not a mount of its own: in an initial RAM disk, or
after chroot(2).  Only if the user said so (``--chroot-fallback``) chroot(2) into the tmpfs does
then, with the old root still there, but out of reach for those who may not call chroot(2).

**harden**, last of all.  No core file, no attaching by processes of the same user, no privileges
by execution, and no system calls but those on a list (:mod:`passt.kernel.seccomp`).  That also
concerns the other thread, which is there by then.

The spawned command was forked before all this, and none of it concerns it; capabilities are
the subject of :mod:`passt.kernel.capabilities`.

Sources: pivot_root(2), mount(2), mount_namespaces(7), tmpfs(5), prctl(2), setrlimit(2).
"""

from __future__ import annotations

import os
import resource

from passt.kernel.errors import SetupError, reason
from passt.kernel.seccomp.profile import confine, profile
from passt.syscalls import prctl
from passt.syscalls.ns import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_UNBINDABLE,
    UMOUNT_NOFOLLOW,
    mount,
    pivot_root,
    umount,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Where the new root is mounted first: a directory that exists everywhere, and one that even
#: in a changed root is a mount.
_PLACE = "/tmp"
_OTHER_PLACE = "/proc"
_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
#: Inodes: the root, and one that the kernel wants to be there.
_ROOM = "nr_inodes=2,nr_blocks=0"

_FAILED = "Failed to sandbox process, exiting"


class SandboxError(SetupError):
    """A step of the sandbox failed; the last of the text's lines says so."""

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(f"{what}: {reason(error)}\n{_FAILED}")


def leave(*, pid: bool, chroot_fallback: bool) -> str:
    """Leave the system's namespaces and file systems; returns a message, mostly empty.

    With ``pid`` the next child forked will be process 1 of a PID namespace.  Takes
    CAP_SYS_ADMIN, and CAP_SYS_CHROOT for the fallback.  Raises SandboxError.
    """
    kinds = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | (CLONE_NEWPID if pid else 0)
    try:
        unshare(kinds)
    except OSError as error:
        raise SandboxError("Failed to detach isolating namespaces", error) from None
    return _empty_root(chroot_fallback)


def _empty_root(chroot_fallback: bool) -> str:
    """Exchange the root for an empty one; a message if that took the fallback."""
    place = _PLACE
    refused = _attempt(lambda: mount(None, "/", flags=MS_UNBINDABLE | MS_REC))
    if refused is not None:
        # The root is no mount, so it cannot be pivoted either, and what is mounted in it might
        # appear outside, unless on a mount of its own.
        if not chroot_fallback:
            raise SandboxError("Failed to remount /", refused)
        place = _OTHER_PLACE
    try:
        if refused is not None:
            mount(None, place, flags=MS_UNBINDABLE | MS_REC)
        mount("tmpfs", place, "tmpfs", _FLAGS, _ROOM)
        os.chdir(place)
    except OSError as error:
        raise SandboxError("Failed to mount empty tmpfs for pivot_root()", error) from None
    refused = refused or _attempt(lambda: pivot_root(".", "."))
    message = ""
    try:
        if refused is None:
            umount(".", MNT_DETACH | UMOUNT_NOFOLLOW)
        elif not chroot_fallback:
            raise SandboxError("Failed to pivot_root()", refused)
        else:
            message = "Failed to pivot_root(), fallback to chroot()..."
            os.chroot(".")
        os.chdir("/")
    except OSError as error:
        raise SandboxError("Failed to exchange the root", error) from None
    return message


def _attempt(call: Callable[[], None]) -> OSError | None:
    """The error of ``call``, if it met one."""
    try:
        call()
    except OSError as error:
        return error
    return None


def harden(mode: str, directory: int = -1, *, accelerated: bool = False) -> None:
    """Take away what can be taken from a process that has everything it needs.

    ``mode`` and the others as of :func:`passt.kernel.seccomp.profile.profile`.  Raises
    SandboxError.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        prctl.set_dumpable(False)
        prctl.set_no_new_privs()
    except OSError as error:
        raise SandboxError("Failed to give up privileges", error) from None
    try:
        confine(profile(mode, directory, accelerated=accelerated))
    except OSError as error:
        raise SandboxError("Failed to set up a system call filter", error) from None
