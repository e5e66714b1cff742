"""Which user and group we run as, and the switch to them.

We need no privileges while running, so root of the machine is never kept: such a start
goes on as ``nobody``.  Root of any *other* user namespace is somebody's ordinary user
seen from outside (rootless Podman, ``unshare -r``) and stays what it is, since every file
and namespace we were started for belongs to that user.

Sources: setgroups(2), setresuid(2), user_namespaces(7) (a map of all 4294967295 ids is the
initial one), prctl(2) (PR_SET_KEEPCAPS).
"""

from __future__ import annotations

import errno
import os

from passt.kernel.errors import SetupError, reason
from passt.syscalls.prctl import prctl

_PR_SET_KEEPCAPS = 8
_ALL_IDS = ["0", "0", "4294967295"]

#: The traditional ids of nobody, for systems whose password database lacks the name.
_NOBODY = 65534


class Identity:
    """A user and a group id, as numbers of the user namespace we were started in."""

    __slots__ = ("gid", "uid")

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid


def in_initial_userns() -> bool:
    """Whether /proc/self/uid_map is the identity map of everything.

    A namespace made with exactly this map passes for the initial one, harmlessly: its root
    is root.  False if the file cannot be read.
    """
    try:
        fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 128).decode("ascii", "replace").split() == _ALL_IDS
    finally:
        os.close(fd)


def nobody() -> Identity:
    """The ids of ``nobody`` in the password database, else the traditional ones."""
    import pwd

    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Identity(_NOBODY, _NOBODY)
    return Identity(entry.pw_uid, entry.pw_gid)


def chosen(runas: tuple[int, int] | None) -> tuple[Identity, str]:
    """Whom to run as, given the user's wish (UID, GID), and a warning, empty if none."""
    if runas is not None:
        return Identity(*runas), ""
    uid = os.geteuid()
    if uid == 0 and in_initial_userns():
        return nobody(), "Started as root, will change to nobody."
    return Identity(uid, os.getegid()), ""


def drop_groups() -> None:
    """Give up supplementary groups; without the privilege to do so, they stay."""
    try:
        os.setgroups([])
    except OSError as error:
        if error.errno != errno.EPERM:
            raise SetupError(f"Can't drop supplementary groups: {reason(error)}") from None


def become(identity: Identity) -> None:
    """Take on ``identity`` in the current user namespace; raises SetupError.

    Permitted capabilities stay, to be given up when nothing needs them any more; effective
    ones must be raised again if the user changed.
    """
    prctl(_PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS", 1)
    try:
        switch(identity.gid, identity.uid)
    finally:
        prctl(_PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS", 0)


def switch(gid: int, uid: int, where: str = "") -> None:
    """Set all group ids, then all user ids; raises SetupError.

    ``where`` ends the message (" in userns").  Unchanged ids are not set again: that would
    be refused to the owner of a namespace in which they are not mapped.
    """
    try:
        if os.getresgid() != (gid,) * 3:
            os.setresgid(gid, gid, gid)
    except OSError as error:
        raise SetupError(f"Can't set GID to {gid}{where}: {reason(error)}") from None
    try:
        if os.getresuid() != (uid,) * 3:
            os.setresuid(uid, uid, uid)
    except OSError as error:
        raise SetupError(f"Can't set UID to {uid}{where}: {reason(error)}") from None
