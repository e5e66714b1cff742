"""Noticing that the namespace we serve has gone.

A namespace lives as long as anything refers to it, and our own sockets do, so its end never
shows by itself.  What goes is its *entry*: the file that a container manager bound it to and
now deletes, or the directory of a process that ends.

* Directories that tell about deletions are watched by inotify, for IN_DELETE alone.  One read
  may bring many events.  A lost one (queue overflow) means looking for ourselves.
* procfs, sysfs and devpts do not tell, nor do others once inotify's limits are reached: then
  the entry is looked for every second, relative to the directory.  EACCES means that it is
  there: in procfs that is normal after giving up privileges.

A rename or an unmount is not noticed.  Everything is opened with the caller's identity.
Sources: inotify(7), fstatfs(2), open(2) (O_PATH).
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import inotify, statfs

#: Seconds between looks.
PERIOD = 1.0

_SILENT = (statfs.PROC_SUPER_MAGIC, statfs.SYSFS_MAGIC, statfs.DEVPTS_SUPER_MAGIC)
_LOOK = os.O_PATH | os.O_CLOEXEC

#: Failures to look that say nothing about the entry.
_NO_ANSWER = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class NamespaceWatch:
    """Watches entry ``name`` of ``directory``, an open descriptor that it takes over.

    ``fd`` is to be polled for readability, after which :meth:`events_show_end` is to be asked;
    it is −1 if :meth:`looks_gone` is to be asked every :data:`PERIOD` seconds instead.
    """

    __slots__ = ("_directory", "fd", "name", "warning")

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self.name = name
        #: Why there is a timer where inotify was expected, else empty.
        self.warning = ""
        self.fd = -1 if _is_silent(directory) else self._watch()

    def _watch(self) -> int:
        """An inotify descriptor, −1 if the limits are reached."""
        step = "init1"
        fd = -1
        try:
            fd = inotify.init()
            step = "add_watch"
            inotify.add_watch(fd, f"/proc/self/fd/{self._directory}", inotify.IN_DELETE)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            reason = os.strerror(error.errno or 0)
            self.warning = f"inotify_{step}: {reason}, use a timer"
            return -1
        return fd

    def events_show_end(self) -> bool:
        """Take the events that are there: whether the entry was deleted."""
        for _, mask, _, name in inotify.read(self.fd):
            if mask & inotify.IN_DELETE and name == self.name:
                return True
            if mask & inotify.IN_Q_OVERFLOW and self.looks_gone():
                return True
        return False

    def looks_gone(self) -> bool:
        """Look for the entry: true if it is not there."""
        try:
            os.close(os.open(self.name, _LOOK, dir_fd=self._directory))
        except OSError as error:
            return error.errno not in _NO_ANSWER
        return False


def _is_silent(directory: int) -> bool:
    try:
        return statfs.fs_type(directory) in _SILENT
    except OSError:
        return True
