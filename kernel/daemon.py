"""Into the background, with an exit status that means something.

The parent ends with 0 only after the daemon said that its loop is about to run; until then
the daemon's failures are the parent's, which says what the daemon, silenced, cannot.  The PID
file is complete before that::

    parent                                daemon
    unshare(PID) earlier, fork ─────────►  setsid
    writes the PID file                    /dev/null onto 0-2
    waits                    ◄───── NUL ─ everything done
    exit 0

The daemon is process 1 of a PID namespace, so that signals without a handler (HUP, INT,
USR1) do nothing.  Parents read our output to its end: nothing keeps it open by then.

Sources: daemon(7), setsid(2), pid_namespaces(7).
"""

from __future__ import annotations

import os

from passt.kernel.descriptors import silence_standard
from passt.kernel.errors import reason
from passt.syscalls import bare_signal as signal

#: What no message is.
_READY = b"\0"
#: Bytes of a message that the parent passes on.
_LONGEST = 4096


class PidFile:
    """A file for our process id, opened with the caller's identity, written when known."""

    __slots__ = ("_fd",)

    def __init__(self, path: str) -> None:
        """Create or truncate ``path``, mode 0600; OSError."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, pid: int) -> None:
        """Write ``pid`` and a newline, and close; OSError."""
        try:
            os.write(self._fd, b"%d\n" % pid)
        finally:
            self.close()

    def close(self) -> None:
        """Close without writing; harmless if it is closed already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Readiness:
    """The daemon's end of the pipe that its parent waits on."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def announce(self) -> None:
        """Tell the parent that it can exit with status 0."""
        try:
            os.write(self._fd, _READY)
        except OSError:
            pass  # killed meanwhile: nobody is waiting
        os.close(self._fd)

    def fail(self, text: str) -> None:
        """Have the parent say ``text``, and exit with status 1."""
        try:
            os.write(self._fd, f"{text}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            pass


def daemonise(pid_file: PidFile | None, null: int) -> Readiness:
    """Fork; returns in the daemon only, whose parent writes ``pid_file`` and waits.

    ``null`` is an open /dev/null.  OSError if the fork is refused.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid != 0:
        os.close(write)
        _wait(read, pid, pid_file)
    os.close(read)
    if pid_file is not None:
        pid_file.close()
    os.setsid()
    silence_standard(null)
    return Readiness(write)


def _wait(read: int, pid: int, pid_file: PidFile | None) -> None:
    """The parent: never returns.  Without a PID file there must be no daemon either."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        if pid_file is not None:
            pid_file.write(pid)
        word = os.read(read, _LONGEST)
        if word == _READY:
            status = 0
        else:
            os.write(2, word)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.write(2, f"Couldn't write PID file: {reason(error)}\n".encode())
    finally:
        os._exit(status)
