"""User namespaces: making one whose root is us, joining one that exists.

A process may write its own maps only after it entered the new namespace, and then only
those that an unprivileged user may have.  Written from outside, by a process that still has
its privileges there, they can name another user: ``nobody``, when root started us.  So a
child enters a new namespace and waits; we write its maps::

    setgroups   deny                   the condition for an unprivileged gid_map
    uid_map     0 UID 1
    gid_map     0 GID 1

then join it through the descriptor the child sent us, let the child go, and become 0:0
inside.  The descriptor is the child's own /proc/self/ns/user: ours to its /proc entry is
refused as soon as either of us is not dumpable.

The namespace belongs to whoever started us.  If that was root, other processes of
``nobody`` have no power over it.

Joining needs a process with a single thread.  Sources: user_namespaces(7), setns(2).
"""

from __future__ import annotations

import os

from passt.kernel.errors import SetupError, reason
from passt.kernel.netlink import channel
from passt.syscalls import bare_socket as socket
from passt.syscalls.ns import CLONE_NEWUSER, setns, unshare

_READ = os.O_RDONLY | os.O_CLOEXEC


def create(uid: int, gid: int) -> tuple[int, str]:
    """Make a user namespace that maps 0 to ``uid`` and ``gid``, and join it.

    Returns its descriptor and a warning, empty if all went well: without the maps the
    namespace exists, but the switch to 0:0 that must follow will fail.  The caller has all
    capabilities in there afterwards.  Raises SetupError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _hold(ours, theirs)
    theirs.close()
    try:
        fd = _received(ours)
        warning = ""
        try:
            _write_maps(child, uid, gid)
        except OSError as error:
            warning = f"Couldn't configure user mappings: {reason(error)}"
        join(fd, "new")
        return fd, warning
    finally:
        ours.close()
        os.waitpid(child, 0)


def join(fd: int, name: str) -> None:
    """Enter the user namespace behind ``fd``; ``name`` is for the message.

    Raises SetupError.  Entering the one that we are in is nothing to do.
    """
    if is_ours(fd):
        return
    try:
        setns(fd, CLONE_NEWUSER)
    except OSError as error:
        raise SetupError(f"Couldn't enter user namespace {name}: {reason(error)}") from None


def is_ours(fd: int) -> bool:
    """Whether ``fd`` is the user namespace of this process."""
    here = os.stat("/proc/self/ns/user")
    there = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _received(sock: socket.socket) -> int:
    """The namespace that the child entered."""
    why = "it ended"
    try:
        why, fds = channel.receive(sock)
        if fds:
            return fds[0]
    except channel.ChannelClosedError:
        pass
    except OSError as error:
        why = reason(error)
    raise SetupError(f"Couldn't create user namespace: {why}")


def _hold(ours: socket.socket, theirs: socket.socket) -> None:
    """The child: enter a new namespace, send it, and exist until the parent is done."""
    try:
        ours.close()
        try:
            unshare(CLONE_NEWUSER)
            channel.send(theirs, "", [os.open("/proc/self/ns/user", _READ)])
        except OSError as error:
            channel.send(theirs, reason(error))
        theirs.recv(1)
    finally:
        os._exit(0)


def _write_maps(pid: int, uid: int, gid: int) -> None:
    """Write the three files of ``pid``; OSError from the first that fails."""
    for name, text in (
        ("uid_map", f"0 {uid} 1\n"),
        ("setgroups", "deny\n"),
        ("gid_map", f"0 {gid} 1\n"),
    ):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
