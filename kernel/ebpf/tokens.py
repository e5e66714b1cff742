"""BPF tokens: privileges for maps and programs that were delegated to a user namespace.

Whoever manages containers or services can mount a bpffs that belongs to the user namespace of
one, and say what may be done there: ``delegate_cmds`` and so on, see
Documentation/bpf/ of the kernel (Linux 6.9).  systemd does it with ``PrivateBPF=`` and
``BPFDelegateCommands=`` (version 258), Incus with ``security.bpffs.delegate_cmds``.  By
convention it is at /sys/fs/bpf.

Who has CAP_BPF in that namespace, as its root has, gets a token from the mount, and can make maps
and load programs with it.  What we need to be delegated:

=============  ==============================================
commands       map_create, prog_load
maps           hash, array, sockhash, ringbuf
programs       sk_skb, socket_filter
attachments    sk_skb_verdict, cgroup_inet_ingress
=============  ==============================================

(The last is what number 0 is called, which is that of a socket filter.)  CAP_NET_ADMIN in the
namespace is needed, too, for maps of sockets.  A user namespace that pasta makes itself has no
such mount: only a process with privileges can set one up.
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import bpf
from passt.syscalls.statfs import BPF_FS_MAGIC, fs_type

PATH = "/sys/fs/bpf"

_REASONS = {
    errno.ENOENT: "it delegates nothing",
    errno.EOPNOTSUPP: "it delegates nothing",
    errno.EPERM: "it belongs to another user namespace, or CAP_BPF is missing",
    errno.EINVAL: "the kernel has no tokens",
}


class NoTokenError(Exception):
    """There is no token to be had; the text is a reason."""


def take(path: str = PATH) -> int:
    """A descriptor of a token from the bpffs mounted at ``path``; NoTokenError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoTokenError(f"{path}: {error.strerror}") from None
    try:
        if fs_type(fd) != BPF_FS_MAGIC:
            raise NoTokenError(f"{path} is no bpffs")
        return bpf.token_create(fd)
    except OSError as error:
        why = _REASONS.get(error.errno or 0, error.strerror)
        raise NoTokenError(f"{path}: {why}") from None
    finally:
        os.close(fd)
