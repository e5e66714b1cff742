"""clone3(2) as a fork into new namespaces.

``unshare(CLONE_NEWPID)`` followed by fork(2) gives the child the same, but leaves a mark on
the parent: from then on it can have children only there, and no threads at all, as these
would have to be in a PID namespace other than the process (clone(2), EINVAL).

The call is made with the interpreter's lock held, between the same hooks as os.fork(), so
both processes go on as Python processes.  Source: clone(2), linux/sched.h (struct
clone_args); clone3 has the same number on every architecture but Alpha, since Linux 5.3.
"""

from __future__ import annotations

import ctypes
import os
import struct

from passt.syscalls import bare_signal as signal

_CLONE3 = 435

#: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
_ARGS = struct.Struct("=8Q")

_api = ctypes.PyDLL(None, use_errno=True)
_syscall = _api.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t)


def fork(flags: int) -> int:
    """Fork a child into new namespaces, ``flags`` being CLONE_NEW… of :mod:`.ns`.

    Returns 0 in the child and its PID in the parent, like os.fork().  The process must have
    one thread.  OSError as of clone(2).
    """
    args = _ARGS.pack(flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    _api.PyOS_BeforeFork()
    pid: int = _syscall(_CLONE3, args, len(args))
    number = ctypes.get_errno()
    if pid == 0:
        _api.PyOS_AfterFork_Child()
        return 0
    _api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return pid
