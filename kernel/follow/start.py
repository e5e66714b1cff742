"""The program's end of the follower: the fork, and the channel.

The fork comes while there is one thread and a file system, after identity and namespaces are
settled, and before most of the program is loaded: each page of memory that both go on to write to
costs a copy, and right after the fork of the command most of them do anyway.  What the follower
needs it takes along as a copy of this process's memory; its modules it loads itself, and not
before it is told to begin, so that a start of the program pays for the fork alone, and a command
that ends soon has nothing else running beside it.

Messages from the follower are :class:`Report`.  To it go what has become of the namespace, with
which it begins, and then nothing but a byte, to go on once flows have been reset whose addresses
are about to be taken from the namespace, as the guest could not hear of it afterwards.  It ends
when the channel does.

Source: unix(7), fork(2).
"""

from __future__ import annotations

import os
import select

from passt.kernel.descriptors import silence_standard
from passt.kernel.netlink import channel
from passt.syscalls import bare_socket as socket
from passt.syscalls.closerange import close_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.netlink.worker import FamilyPlan

    #: Arguments of passt.kernel.netlink.worker.FamilyTemplate.
    Summary = tuple[int, str, bytes | None, int, bytes | None, bytes | None, list[bytes]]


#: Milliseconds after the start of a command before there is anything to do: many end sooner.
_PATIENCE = 250

#: What the follower does has time, and connections go on meanwhile: see nice(2).
_NICE = 10

#: Quality of a template, see :mod:`passt.kernel.follow.settle`.
NOTHING, LOCAL, WORLD = range(3)


class Task:
    """What the follower is to do.

    ``wishes``: arguments of :class:`passt.kernel.netlink.template.Wish` per IP version.
    ``grades``: quality of the templates at start, by family; ``addresses``: those that they had.
    ``plan``: what the namespace is to get, by family, for templates by family (``None``: local
    mode); ``None`` if it configures itself.  ``netns``: descriptor of the namespace.
    ``resolvers``: follow resolv.conf.
    """

    __slots__ = (
        "addresses",
        "chroot_fallback",
        "grades",
        "netns",
        "plan",
        "resolvers",
        "wishes",
    )

    def __init__(
        self,
        wishes: list[tuple[int, str | None, str | None, bool, bool]],
        grades: dict[int, int],
        addresses: list[bytes],
        plan: Callable[[dict[int, Summary | None]], dict[int, FamilyPlan | None]] | None,
        netns: int,
        *,
        resolvers: bool,
        chroot_fallback: bool,
    ) -> None:
        self.wishes = wishes
        self.grades = grades
        self.addresses = addresses
        self.plan = plan
        self.netns = netns
        self.resolvers = resolvers
        self.chroot_fallback = chroot_fallback


class Report:
    """What has become of the host's network.

    ``templates``: by address family, ``None`` stands for local mode; all of them, or none if
    nothing changed.  ``lost``: addresses that the host has no more.  ``withdrawn``: addresses
    that are taken from the namespace; with ``waits``, as soon as :meth:`Follower.proceed` is
    called.  ``resolv_conf``: what the file says, ``None`` if nothing new.  ``notes``: level and
    text, as of :class:`passt.kernel.netlink.worker.TemplateInfo`.
    """

    __slots__ = ("lost", "notes", "resolv_conf", "templates", "waits", "withdrawn")

    def __init__(self) -> None:
        self.templates: dict[int, Summary | None] = {}
        self.lost: list[bytes] = []
        self.withdrawn: list[bytes] = []
        self.waits = False
        self.resolv_conf: bytes | None = None
        self.notes: list[tuple[str, str]] = []


class Follower:
    """A follower that was forked."""

    __slots__ = ("_socket", "pid")

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._socket = sock

    @classmethod
    def start(cls, task: Task, null: int) -> Follower:
        """Fork one for ``task``; ``null`` is an open /dev/null.  OSError as of fork(2)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _run(theirs, task, null)
        theirs.close()
        return cls(pid, ours)

    def fileno(self) -> int:
        """Readable when there is a report, or the follower has ended."""
        return self._socket.fileno()

    def begin(self, ifindex: int, families: list[int], record: int) -> None:
        """Let it begin; that it is not there any more shows later.

        ``ifindex`` is the tap's, ``families`` are those that the namespace has, ``record`` is the
        descriptor of a file that tells what was made there (−1 for none), which is closed.
        """
        fds = [record] if record >= 0 else []
        try:
            channel.send(self._socket, (ifindex, families), fds)
        except channel.ChannelClosedError:
            pass
        for fd in fds:
            os.close(fd)

    def proceed(self) -> None:
        """Let it go on."""
        try:
            self._socket.send(b"\n")
        except OSError:
            pass

    def receive(self) -> Report | None:
        """The report that is there; ``None`` if the follower has ended."""
        try:
            fields, _ = channel.receive(self._socket)
        except (channel.ChannelClosedError, OSError):
            return None
        report = Report()
        (
            report.templates,
            report.lost,
            report.withdrawn,
            report.waits,
            report.resolv_conf,
            report.notes,
        ) = fields
        return report

    def close(self) -> None:
        """Hang up; calling it again does nothing."""
        self._socket.close()

    def end(self) -> None:
        """Hang up, and wait for the end of the process if it is a child of this one."""
        self.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # in the background it is not, or it was collected


def send(sock: socket.socket, report: Report) -> None:
    """Send ``report`` to the program; ChannelClosedError if it has ended."""
    fields = (
        report.templates,
        report.lost,
        report.withdrawn,
        report.waits,
        report.resolv_conf,
        report.notes,
    )
    channel.send(sock, fields)


def readable(sock: socket.socket, milliseconds: int) -> bool:
    """Whether there is a message, or the end, within this time."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(milliseconds))


def _run(sock: socket.socket, task: Task, null: int) -> None:
    """Be the follower; never returns."""
    status = 1
    try:
        # Signals of the terminal are for the program; its end is ours.
        os.setsid()
        os.nice(_NICE)
        silence_standard(null)
        close_from(3, (sock.fileno(), task.netns))
        (ifindex, families), record = channel.receive(sock)
        if not readable(sock, _PATIENCE):
            from passt.kernel.follow.helper import follow

            follow(sock, task, ifindex, families, record)
        status = 0
    except channel.ChannelClosedError:
        status = 0
    except Exception as error:
        report = Report()
        report.notes.append(("warning", f"Following the host's network: {_describe(error)}"))
        send(sock, report)
    finally:
        # No exit handlers, no flushing of buffers that are the program's.
        os._exit(status)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"
