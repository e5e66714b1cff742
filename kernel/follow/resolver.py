"""The host's resolv.conf, read again whenever it was changed.

The file is replaced by renaming another one over it as often as it is written in place; it may be
a link into a directory of some resolver's; and in containers it may be a mount of its own, which
no event of its directory tells of.  So directories are watched, for events of the names in
question, and the file that the path leads to at present is watched as well.

A file that is not there at the moment says nothing new.  The content is looked at elsewhere; what
leaves here is bytes.

Source: inotify(7), resolv.conf(5).
"""

from __future__ import annotations

import os

from passt.syscalls import inotify

PATH = "/etc/resolv.conf"

#: Where resolvers that are in use on Linux keep the file that PATH may become a link to.
_USUAL = ("/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman")

#: Bytes of the file that are looked at: those that fit into a message.
MAX_SIZE = 16 << 10

_DIRECTORY_EVENTS = (
    inotify.IN_CREATE
    | inotify.IN_CLOSE_WRITE
    | inotify.IN_MOVED_TO
    | inotify.IN_MOVED_FROM
    | inotify.IN_DELETE
)
_FILE_EVENTS = inotify.IN_MODIFY | inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB


def directories(path: str = PATH) -> list[str]:
    """The directories that have to be seen, by their real names; they exist."""
    found = [os.path.realpath(os.path.dirname(path))]
    target = os.path.dirname(os.path.realpath(path))
    for each in (target, *_USUAL):
        if os.path.realpath(each) == each and os.path.isdir(each) and each not in found:
            found.append(each)
    return found


class Resolver:
    """Watches and reads; made where ``path`` and ``folders`` mean what they are to mean."""

    __slots__ = ("_fd", "_folders", "_names", "_path", "_text")

    def __init__(self, folders: list[str], path: str = PATH) -> None:
        """``folders`` as of :func:`directories`.  OSError at the user's limits of inotify(7)."""
        self._path = path
        self._fd = inotify.init()
        self._folders = set()
        for folder in folders:
            try:
                self._folders.add(inotify.add_watch(self._fd, folder, _DIRECTORY_EVENTS))
            except FileNotFoundError:
                continue
        #: Names that such a file has in one of the folders.
        self._names = {os.path.basename(path), "stub-resolv.conf", "resolv.conf"}
        self._names.add(os.path.basename(os.path.realpath(path)))
        self._text: bytes | None = None
        self._watch_file()

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._fd

    def drain(self) -> bool:
        """Take the events that are there; whether any of them may be a change."""
        changed = False
        for watch, mask, _, name in inotify.read(self._fd):
            if watch not in self._folders or name in self._names:
                changed = True
            if mask & inotify.IN_Q_OVERFLOW:
                changed = True
        return changed

    def read(self) -> bytes | None:
        """What the file says now, ``None`` if that is what it said the last time."""
        self._watch_file()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            text = os.read(fd, MAX_SIZE)
        except OSError:
            return None
        finally:
            os.close(fd)
        if len(text) == MAX_SIZE:
            text = text[: text.rfind(b"\n") + 1]
        if text == self._text:
            return None
        self._text = text
        return text

    def _watch_file(self) -> None:
        """Watch the file that the path leads to; watching it twice is watching it once."""
        try:
            inotify.add_watch(self._fd, self._path, _FILE_EVENTS)
        except OSError:
            pass  # not there, or no watch left: its folder is watched
