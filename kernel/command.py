"""Executing a command as our caller would have: environment, signals, limits, PATH.

What the interpreter or we changed for ourselves must not be inherited:

* LC_CTYPE, which CPython sets in the C locale (PEP 538): the environment is taken from
  /proc/self/environ, where it stands as we got it;
* SIGPIPE and SIGXFSZ, which CPython ignores;
* the soft limit of open files, raised for our sockets;
* descriptors: all of ours are close-on-exec.

The search is that of execvp(3): each directory of PATH, a file without ``#!`` line is given
to /bin/sh, and "permission denied" outlives later "not found".
"""

from __future__ import annotations

import errno
import os
import resource

from passt.kernel import interpreter, signals

_NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)
_DEFAULT_PATH = "/bin:/usr/bin"


class Command:
    """What to execute; made early, while everything can still be read."""

    __slots__ = ("_argv", "_environ", "_executable", "_nofile")

    def __init__(self, executable: str, argv: list[str], nofile: tuple[int, int]) -> None:
        """``executable`` is searched for in PATH if it has no slash; ``argv`` is complete.

        ``nofile``: soft and hard limit of open files for the command.
        """
        self._executable = executable
        self._argv = argv
        self._environ = original_environment()
        interpreter.restore(self._environ)
        self._nofile = nofile

    def execute(self) -> int:
        """Replace this process; on failure, say why on stderr and return the exit status."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._nofile)
        signals.reset_for_exec()
        error = self._try_all()
        _complain(f"Failed to start command or shell: {os.strerror(error)}\n")
        return 1

    def _try_all(self) -> int:
        """Try each candidate; the errno that tells best why none was executed."""
        name = os.fsencode(self._executable)
        if not name:
            return errno.ENOENT
        if b"/" in name:
            return self._try(name)
        denied = 0
        search = self._environ.get(b"PATH", os.fsencode(_DEFAULT_PATH))
        for directory in search.split(b":"):
            code = self._try(directory + b"/" + name if directory else name)
            if code == errno.EACCES:
                denied = code
            elif code not in _NOT_HERE:
                return code
        return denied or errno.ENOENT

    def _try(self, path: bytes) -> int:
        """Execute ``path``; returns only if that failed, with the errno."""
        try:
            os.execve(path, self._argv, self._environ)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                return error.errno or errno.ENOENT
        except ValueError:
            return errno.EINVAL
        script: list[str | bytes] = ["/bin/sh", path, *self._argv[1:]]
        try:
            os.execve("/bin/sh", script, self._environ)
        except OSError as error:
            return error.errno or errno.ENOEXEC


def original_environment() -> dict[bytes, bytes]:
    """The environment as it was when the interpreter started."""
    try:
        with open("/proc/self/environ", "rb") as file:
            block = file.read()
    except OSError:
        return dict(os.environb)
    pairs = (entry.partition(b"=") for entry in block.split(b"\0"))
    return {name: value for name, sign, value in pairs if name and sign}


def _complain(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "surrogateescape"))
    except OSError:
        pass
