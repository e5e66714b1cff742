"""A socket in the file system, bound early and listening late.

The path is taken while we are who our caller is, so that the socket belongs to the caller, and
long before we can serve anyone.  Until :meth:`~passt.userspace.control.server.ControlServer.start`
connecting to it fails with ECONNREFUSED, as if nobody was there: who retries until it works has
waited for readiness.

Nothing removes the socket when we end, which may be long after the path is out of reach.  So a
socket found at the path is replaced if nobody listens on it, as connecting tells; anything else
found there stays, and is an error.

Source: unix(7).  The mode of the new node is 0777 less the umask.
"""

from __future__ import annotations

import errno
import os
import stat

from passt.kernel.errors import SetupError, reason
from passt.syscalls import bare_socket as socket

#: Longest path in bytes: sun_path less the terminating NUL.
MAX_PATH = 107

_MODE_0600 = 0o177


def is_socket_path(path: str) -> bool:
    """Tell whether ``path`` can be the address of a socket at all: neither empty nor too long."""
    return 0 < len(os.fsencode(path)) <= MAX_PATH


def bind_socket(path: str) -> socket.socket:
    """Return a non-blocking stream socket bound to ``path``, mode 0600, not listening yet.

    Raises :class:`~passt.kernel.errors.SetupError`.  Changes the umask for a moment: not for
    processes that have other threads.
    """
    if not is_socket_path(path):
        raise SetupError(f'Invalid socket path "{path}"')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(_MODE_0600)
    try:
        _remove_dead(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise SetupError(f"Failed to bind UNIX domain socket: {reason(error)}") from None
    except SetupError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _remove_dead(path: str) -> None:
    """Remove the socket at ``path`` if it is one and nobody listens."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SetupError(f"{path} exists and is not a socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with socket.closing(probe):
        error = probe.connect_ex(path)
    if error == errno.ECONNREFUSED:
        os.unlink(path)
    elif error not in (errno.ENOENT, errno.EACCES):
        raise SetupError(f"Socket path {path} already in use")
