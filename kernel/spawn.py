"""The spawned command: a child in new namespaces, held until its network is ready.

::

    we                                   child
    clone(PID namespace)  ─────────────►  dies with us from here on (PDEATHSIG, and our end
                                          of the pair)
                                          unshare network, mount, IPC, UTS
                                          /proc, ping_group_range, host name
    tap, addresses, routes  ◄── netns ──  waits
    listening sockets, sandbox …
    "go"                    ───────────►  signals and limits as our caller had them, exec

The child is ours directly, so its exit status is; in a PID namespace of its own it is
process 1, and takes everything it started with it.

The namespace is handed over as a descriptor: once our user ids have changed, our /proc
entries belong to root, and /proc/CHILD/ns/net can no longer be opened.

Sources: namespaces(7), pid_namespaces(7), clone(2), unshare(2), prctl(2), proc(5), icmp(7)
(ping_group_range).
"""

from __future__ import annotations

import os

from passt.kernel.errors import SetupError, reason
from passt.kernel.netlink import channel
from passt.syscalls import bare_signal as signal
from passt.syscalls import bare_socket as socket
from passt.syscalls import clone, prctl
from passt.syscalls.closerange import close_from
from passt.syscalls.ns import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    mount,
    sethostname,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.command import Command

#: HOST_NAME_MAX (gethostname(2)).
_HOSTNAME_MAX = 64

_FAILED = "Couldn't start a command in new namespaces"
_PING_GROUP_RANGE = "/proc/sys/net/ipv4/ping_group_range"


class Child:
    """A forked command that waits for :meth:`release`."""

    __slots__ = ("_sock", "netns", "pid", "warnings")

    def __init__(self, pid: int, sock: socket.socket, netns: int, warnings: list[str]) -> None:
        self.pid = pid
        #: Descriptor of the child's network namespace, owned by the caller.
        self.netns = netns
        #: What went wrong without being fatal, in order.
        self.warnings = warnings
        self._sock = sock

    def release(self) -> None:
        """Let the command run.  If the child is gone already, its exit status tells."""
        try:
            self._sock.send(b"\n")
        except OSError:
            pass
        self._sock.close()

    def abandon(self) -> None:
        """End the child without letting it run, and wait until it is gone."""
        self._sock.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # reaped already


def spawn(command: Command, hostname: str, pidns: bool) -> Child:
    """Fork a child for ``command``, in new namespaces; returns when these are ready.

    ``hostname`` is the child's host name, empty for ``pasta-`` and ours.  Without ``pidns``
    it stays in our PID namespace and sees our /proc.  Raises SetupError; no process is left
    behind then.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Not unshare() and fork: that would deny us threads, see passt.syscalls.clone.
        pid = clone.fork(CLONE_NEWPID) if pidns else os.fork()
    except OSError as error:
        raise SetupError(f"{_FAILED}: {reason(error)}") from None
    if pid == 0:
        _run_child(command, hostname, pidns, theirs)
    theirs.close()
    why = "it ended"
    try:
        told, fds = channel.receive(ours)
        if fds:
            return Child(pid, ours, fds[0], told)
        why = told
    except channel.ChannelClosedError:
        pass
    except OSError as error:
        why = reason(error)
    ours.close()
    os.waitpid(pid, 0)
    raise SetupError(f"{_FAILED}: {why}")


def _run_child(command: Command, hostname: str, pidns: bool, theirs: socket.socket) -> None:
    """The child's life up to the exec; never returns."""
    status = 1
    try:
        # Others learn from the end of their connection to us that we are gone, or done.
        close_from(3, (theirs.fileno(),))
        prctl.set_pdeathsig(signal.SIGKILL)
        try:
            netns, warnings = _enter_namespaces(hostname, pidns)
        except OSError as error:
            channel.send(theirs, reason(error))
            return
        channel.send(theirs, warnings, [netns])
        if theirs.recv(1):
            prctl.set_pdeathsig(0)
            status = command.execute()
    finally:
        os._exit(status)


def _enter_namespaces(hostname: str, pidns: bool) -> tuple[int, list[str]]:
    """Make the namespaces; a descriptor of the network's, and warnings.

    OSError if a namespace is refused; everything else is worth a warning.
    """
    unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS)
    netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    warnings = []
    if pidns:
        try:
            _mount_proc()
        except OSError as error:
            warnings.append(f"Couldn't mount /proc: {reason(error)}")
    try:
        fd = os.open(_PING_GROUP_RANGE, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, b"0 0")
        finally:
            os.close(fd)
    except OSError:
        warnings.append("Cannot set ping_group_range, ICMP requests might fail")
    name = os.fsencode(hostname or f"pasta-{os.uname().nodename}")[:_HOSTNAME_MAX]
    try:
        sethostname(os.fsdecode(name))
    except OSError as error:
        warnings.append(f"Unable to set hostname: {reason(error)}")
    return netns, warnings


def _mount_proc() -> None:
    """Mount the proc file system of our PID namespace on /proc, for us alone.

    Mounts that belong to another user namespace came to us as slaves.  Without one of our
    own they are shared with the system still, and a mount on /proc would appear there too.
    """
    try:
        mount(None, "/", flags=MS_REC | MS_SLAVE)
    except OSError:
        # A changed root need not be a mount; then /proc itself must be one.
        mount(None, "/proc", flags=MS_REC | MS_SLAVE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
