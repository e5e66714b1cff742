"""An existing network namespace that we are to serve, opened with the caller's identity.

The namespace's entry is opened relative to its directory, which is opened first and watched
from then on (:mod:`passt.kernel.nswatch`): an entry that is deleted at any later moment is
noticed, and a process id that is used again cannot be mistaken for the process we were
asked to serve.  O_NONBLOCK is for paths that turn out to be a FIFO.

Whether a descriptor is a namespace of the right kind is found out by entering it.
Sources: namespaces(7), openat(2), proc_pid_ns(5).
"""

from __future__ import annotations

import os

from passt.kernel.errors import SetupError, reason

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_userns(path: str) -> int:
    """Descriptor of the user namespace at ``path``; SetupError."""
    try:
        return os.open(path, _READ)
    except OSError as error:
        raise SetupError(f"Couldn't open user namespace {path}: {reason(error)}") from None


def open_netns(path: str) -> tuple[int, int, str]:
    """Open the network namespace at ``path``.

    Returns its descriptor, an O_PATH descriptor of its directory, and its name in there.
    Raises SetupError.
    """
    head, _, name = path.rpartition("/")
    try:
        directory = os.open(head or "/", _DIRECTORY)
        try:
            return os.open(name, _READ, dir_fd=directory), directory, name
        except OSError:
            os.close(directory)
            raise
    except OSError as error:
        raise SetupError(f"Couldn't open network namespace {path}: {reason(error)}") from None
