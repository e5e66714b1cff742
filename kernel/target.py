"""Existing namespaces that we are to serve or to join, opened with the caller's identity.

An entry is opened relative to its directory, which is opened first and, for the network
namespace, watched from then on (:mod:`passt.kernel.nswatch`): an entry that is deleted at any
later moment is noticed.  Entries beside each other are opened through the same directory, so
a process id that is used again meanwhile cannot mix the namespaces of two processes.
O_NONBLOCK is for paths that turn out to be a FIFO.

Whether a descriptor is a namespace of the right kind is found out by entering it.
Sources: namespaces(7), openat(2), proc_pid_ns(5).
"""

from __future__ import annotations

import os

from passt.kernel.errors import SetupError, reason

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Entry:
    """An open namespace: its descriptor, and its place as ``name`` in an open ``directory``."""

    __slots__ = ("directory", "fd", "folder", "name")

    def __init__(self, fd: int, directory: int, folder: str, name: str) -> None:
        self.fd = fd
        self.directory = directory
        self.folder = folder
        self.name = name


def open_namespace(kind: str, path: str, beside: Entry | None = None) -> Entry:
    """Open the namespace at ``path``; ``kind`` ("network", "user") is for the message.

    ``beside`` is one opened before; if both have the same folder, they share its descriptor.
    Raises SetupError.
    """
    folder, _, name = path.rpartition("/")
    try:
        if beside is not None and beside.folder == folder:
            directory = beside.directory
        else:
            # Without a slash it is in the current directory, with just one in the root.
            directory = os.open((folder or "/") if "/" in path else ".", _DIRECTORY)
        return Entry(os.open(name, _READ, dir_fd=directory), directory, folder, name)
    except OSError as error:
        raise SetupError(f"Couldn't open {kind} namespace {path}: {reason(error)}") from None
