"""Messages between the program and a process forked from it, such as the netlink worker.

Theory of operation
-------------------
A SOCK_SEQPACKET pair keeps message boundaries and tells by an empty read that the other end is
gone.  A message is one value of plain types (None, bool, int, str, bytes, tuple, list) encoded
with `marshal`, which costs no import and a few microseconds; its format may change between
Python versions, but here both ends are one process, forked.  It must not be fed with foreign
data, and is not: the other end is our own code, and nobody else has the socket.  Messages are
bounded; what is long (route lists) stays in the worker.

Descriptors are attached as SCM_RIGHTS.

Sources: unix(7), cmsg(3).
"""

from __future__ import annotations

import errno
import marshal
import os
import struct

from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_LIMIT = 32 << 10
#: Below what the kernel takes, which is 253 (SCM_MAX_FD).
_MAX_FDS = 100
_INT = struct.Struct("@i")


class ChannelClosedError(Exception):
    """The other end is gone."""


def send(sock: socket.socket, value: Any, fds: Sequence[int] = ()) -> None:
    """Send one value, with up to 100 descriptors; the caller keeps its own copies of these.

    ChannelClosedError if nobody is there to read; ValueError if it is too long.
    """
    data = marshal.dumps(value)
    if len(data) > _LIMIT or len(fds) > _MAX_FDS:
        raise ValueError(f"message of {len(data)} bytes, {len(fds)} descriptors")
    rights = b"".join(map(_INT.pack, fds))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    try:
        sock.sendmsg([data], ancillary)
    except (BrokenPipeError, ConnectionResetError):
        raise ChannelClosedError from None


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """Wait for one value and its descriptors (close-on-exec, the caller's to close).

    ChannelClosedError when the other end is gone and everything it sent has been read; OSError
    (EMFILE) if this process can have no more descriptors, and the message is lost.
    """
    space = socket.CMSG_SPACE(_MAX_FDS * _INT.size)
    try:
        data, ancillary, flags, _ = sock.recvmsg(_LIMIT, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        raise ChannelClosedError from None
    fds = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % _INT.size
            fds += [fd for (fd,) in _INT.iter_unpack(payload[:whole])]
    if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        if flags & socket.MSG_CTRUNC:
            # There is room for as many as may be sent, so it is the kernel that could not add all.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise ChannelClosedError
    return marshal.loads(data), fds
