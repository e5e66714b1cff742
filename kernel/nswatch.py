"""Noticing that the namespace we serve has gone.

A namespace lives as long as anything refers to it, and our own sockets do, so its end never
shows by itself.  What goes is its *entry*: the file that a container manager bound it to and
now deletes, or the directory of a process that ends.

* Directories that tell about deletions are watched by inotify, for IN_DELETE alone.  One read
  may bring many events.  A lost one (queue overflow) means looking for ourselves.
* procfs, sysfs and devpts do not tell, nor do others once inotify's limits are reached: then
  the directory is listed every second.  It was opened with the caller's identity, and the
  listing needs no path, so that this works in a process that has neither privileges nor files.
  In procfs the directory belongs to the process that it is of, whatever becomes of its number.
* A directory that may be entered, but not read, can be neither watched nor listed.  Its entry
  is looked for by name; EACCES means that it is there.

A rename or an unmount is not noticed.
Sources: inotify(7), fstatfs(2), getdents64(2), open(2) (O_PATH).
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import getdents, inotify, statfs

#: Seconds between looks.
PERIOD = 1.0

_SILENT = (statfs.PROC_SUPER_MAGIC, statfs.SYSFS_MAGIC, statfs.DEVPTS_SUPER_MAGIC)
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: Failures to look that say nothing about the entry.
_NO_ANSWER = (errno.EACCES, errno.EPERM, errno.ENOMEM)


class NamespaceWatch:
    """Watches entry ``name`` of ``directory``, an open descriptor that it takes over.

    ``fd`` is to be polled for readability, after which :meth:`events_show_end` is to be asked;
    it is −1 if :meth:`looks_gone` is to be asked every :data:`PERIOD` seconds instead.
    """

    __slots__ = ("_directory", "_readable", "_wanted", "fd", "name", "warning")

    def __init__(self, directory: int, name: str) -> None:
        self.name = name
        self._wanted = os.fsencode(name)
        self._readable = True
        self._directory = directory
        try:
            self._directory = os.open(".", _READ, dir_fd=directory)
        except OSError:
            self._readable = False
        else:
            os.close(directory)
        #: Why there is a timer where inotify was expected, else empty.
        self.warning = ""
        self.fd = -1 if _is_silent(self._directory) else self._watch()

    @property
    def unlisted(self) -> int:
        """The directory's descriptor, if looking takes its entry's name; −1 if not."""
        return -1 if self._readable else self._directory

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
            if self._readable:
                return not getdents.contains(self._directory, self._wanted)
            os.stat(self.name, dir_fd=self._directory, follow_symlinks=False)
        except OSError as error:
            return error.errno not in _NO_ANSWER
        return False


def _is_silent(directory: int) -> bool:
    try:
        return statfs.fs_type(directory) in _SILENT
    except OSError:
        return True
