"""A user namespace to which BPF is delegated, as a manager of containers or services sets one up.

The bpffs has to be opened by somebody inside, so that it belongs to that user namespace, but what
it delegates can only be said by root of the initial one. So a child opens it, sends the descriptor
here, gets the mount back, puts it at /sys/fs/bpf in a mount namespace of its own, and becomes the
program to run.

Sources: fsopen(2), fsconfig(2), fsmount(2), move_mount(2); linux/mount.h; BPF tokens: linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading

from tests.system.kit.users import User

#: All that pasta wants.
ENOUGH = {
    "delegate_cmds": "map_create:prog_load",
    "delegate_maps": "hash:array:sockhash:ringbuf",
    "delegate_progs": "sk_skb:socket_filter",
    "delegate_attachs": "sk_skb_verdict:cgroup_inet_ingress",
}

_FSCONFIG, _FSMOUNT = 431, 432
_SET_STRING, _CREATE = 1, 6

_CHILD = """
import ctypes, os, socket, sys
path, uid, gid = sys.argv[1], os.getuid(), os.getgid()
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *words):
    if (result := libc.syscall(number, *words)) < 0:
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")
    return result
if libc.unshare(0x10020000):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
socket.send_fds(sock, [b"bpffs"], [call("fsopen", 430, b"bpf", 1)])
_, fds, _, _ = socket.recv_fds(sock, 1, 1)
call("move_mount", 429, fds[0], b"", -100, b"/sys/fs/bpf", 4)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Delegated(User):
    """The user *user*, but as root of such a namespace; :attr:`prefix` makes one each time."""

    def __init__(self, user: User, python: str, folder: str, options: dict[str, str]) -> None:
        """*python* is an interpreter that the user can run, *folder* one it can read."""
        super().__init__(user.name)
        self._options = options
        #: What went wrong here.
        self.errors: list[str] = []
        path = os.path.join(folder, "delegation")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        os.chown(path, user.uid, user.gid)
        self._listener.listen()
        self._path = path
        self.prefix = [*user.prefix, python, "-c", _CHILD, path]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with sock:
                try:
                    self._answer(sock)
                except OSError as error:
                    self.errors.append(str(error))

    def _answer(self, sock: socket.socket) -> None:
        """Configure the file system that is opened at the other end, and return a mount of it."""
        _, fds, _, _ = socket.recv_fds(sock, 8, 1)
        fs = fds[0]
        for name, text in self._options.items():
            _call(_FSCONFIG, fs, _SET_STRING, name.encode(), text.encode(), 0)
        _call(_FSCONFIG, fs, _CREATE, None, None, 0)
        mounted = _call(_FSMOUNT, fs, 1, 0)
        socket.send_fds(sock, [b"m"], [mounted])
        os.close(mounted)
        os.close(fs)

    def close(self) -> None:
        """End the thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.unlink(self._path)


def _call(number: int, *words: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
