"""A socket in the file system, bound early and listening late.

The path is taken while we are who our caller is, so that the socket belongs to the caller, and
long before we can serve anyone.  Until somebody listens on it, connecting fails with ECONNREFUSED,
as if nobody was there: who retries until it works has waited for readiness.

Nothing removes the socket when we end, which may be long after the path is out of reach.  So a
socket found at the path is replaced if nobody has it any more; anything else found there stays,
and is an error.  A datagram socket asks: one of a living program, be it listening yet or not,
answers that it is of another type, and its program does not get a connection to nobody.

Source: unix(7).  The mode of the new node is 0777 less the umask.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from passt.kernel.errors import SetupError, reason
from passt.syscalls import bare_socket as socket
from passt.userspace.config.model import MAX_SOCKET_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MODE_0600 = 0o177

_UCRED = struct.Struct("=iII")


def is_socket_path(path: str) -> bool:
    """Tell whether ``path`` can be the address of a socket at all: neither empty nor too long."""
    return 0 < len(os.fsencode(path)) <= MAX_SOCKET_PATH


def bind_private(path: str) -> socket.socket:
    """As :func:`bind_socket`, mode 0600.

    Changes the umask for a moment: not for processes that have other threads.
    """
    mask = os.umask(_MODE_0600)
    try:
        return bind_socket(path)
    finally:
        os.umask(mask)


def bind_socket(path: str) -> socket.socket:
    """Return a non-blocking stream socket bound to ``path``, not listening yet.

    Raises :class:`~passt.kernel.errors.SetupError`.
    """
    if not is_socket_path(path):
        raise SetupError(f'Invalid socket path "{path}"')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_dead(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise SetupError(f"Failed to bind UNIX domain socket: {reason(error)}") from None
    except SetupError:
        sock.close()
        raise
    return sock


def bind_first(paths: Iterable[str]) -> tuple[socket.socket, str]:
    """Bind to the first of ``paths`` that is free: the socket, and which one it was.

    Raises :class:`~passt.kernel.errors.SetupError`, for the last of them.
    """
    failure = SetupError("No socket path")
    for path in paths:
        try:
            return bind_socket(path), path
        except SetupError as error:
            failure = error
    raise failure


def peer_pid(sock: socket.socket) -> int:
    """PID of the client when it connected; 0 if it is invisible from our PID namespace."""
    try:
        cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return 0
    pid: int = _UCRED.unpack(cred)[0]
    return pid


def _remove_dead(path: str) -> None:
    """Remove the socket at ``path`` if it is one and nobody has it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SetupError(f"{path} exists and is not a socket")
    with socket.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as probe:
        error = probe.connect_ex(path)
    if error == errno.ECONNREFUSED:
        os.unlink(path)
    elif error not in (errno.ENOENT, errno.EACCES):
        raise SetupError(f"Socket path {path} already in use")
