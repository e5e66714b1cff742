"""The follower's own sandbox: a few directories to read, one capability, few system calls.

The root becomes an empty file system with read-only mounts of the directories in which the host's
resolv.conf lies, or with nothing.  Changes there are seen; nothing else of the system is.  What may
be opened there is what anybody may: there is no capability that would override modes.

Who has no id in the user namespace, as root who became nobody and joined somebody's, can make no
directories, not even there.  Then the directory of the file, without those of links to it, is the
root itself.

CAP_NET_ADMIN stays, in the user namespace that owns the network namespace, as each request to the
kernel is checked against who sends it.  The system calls are listed in
:data:`passt.kernel.seccomp.follower.FOLLOWER`.

Sources: pivot_root(2), mount(2), mount_namespaces(7), netlink(7), capabilities(7).
"""

from __future__ import annotations

import os
import resource
from errno import EOVERFLOW

from passt.kernel import capabilities
from passt.kernel.seccomp.follower import FOLLOWER
from passt.kernel.seccomp.profile import confine
from passt.syscalls import caps, prctl
from passt.syscalls.ns import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    UMOUNT_NOFOLLOW,
    mount,
    pivot_root,
    umount,
    unshare,
)

#: Where the new root is mounted first.
_PLACE = "/tmp"
_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
_ROOM = "nr_inodes=64,size=64k,mode=755"

NET_ADMIN = caps.mask(caps.CAP_NET_ADMIN)


def enter_root(folders: list[str], sole: str = "", *, chroot_fallback: bool = False) -> bool:
    """Leave the system's namespaces, but for a read-only view of ``folders``; OSError.

    False if the folder ``sole`` has become the root in place of that.  Takes CAP_SYS_ADMIN, and
    CAP_SYS_CHROOT for the fallback where a root cannot be pivoted.
    """
    unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS)
    # What the host mounts over the file later on is to be seen, nothing is to be seen there.
    mount(None, "/", flags=MS_SLAVE | MS_REC)
    mount("tmpfs", _PLACE, "tmpfs", _SAFE, _ROOM)
    complete = True
    try:
        for folder in folders:
            if folder != _PLACE and not folder.startswith(_PLACE + "/"):
                os.makedirs(_PLACE + folder, 0o755, exist_ok=True)
                _show(folder, _PLACE + folder)
    except OSError as error:
        if error.errno != EOVERFLOW:
            raise
        complete = False
        _show(sole, _PLACE)
    mount(None, _PLACE, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | _SAFE)
    os.chdir(_PLACE)
    try:
        pivot_root(".", ".")
    except OSError:
        if not chroot_fallback:
            raise
        os.chroot(".")
    else:
        umount(".", MNT_DETACH | UMOUNT_NOFOLLOW)
    os.chdir("/")
    return complete


def _show(folder: str, place: str) -> None:
    """Mount ``folder`` at ``place``, for reading."""
    mount(folder, place, flags=MS_BIND | MS_REC)
    mount(None, place, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | _SAFE)


def give_up() -> None:
    """Keep CAP_NET_ADMIN and the system calls of a follower, nothing else, for good; OSError."""
    capabilities.empty_other_sets()
    capabilities.keep(NET_ADMIN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl.set_dumpable(False)
    prctl.set_no_new_privs()
    confine(FOLLOWER)
