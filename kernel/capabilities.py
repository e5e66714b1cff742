"""Capabilities, given up in stages as start-up needs fewer of them.

=========  ==========================  ====================================================
Stage      When                        Kept, of what was there
=========  ==========================  ====================================================
EARLY      before options are read     all that later steps may need
SETUP      identity and user           SYS_ADMIN, SETPCAP, NET_ADMIN, NET_BIND_SERVICE, and
           namespace are final         SYS_CHROOT for the sandbox's fallback: namespaces,
                                       sandbox, the spawned command
SANDBOXED  the root is empty           SYS_ADMIN, to enter the namespace; NET_BIND_SERVICE
RUNNING    everything is in place      none; the thread in the namespace: NET_BIND_SERVICE
=========  ==========================  ====================================================

With SANDBOXED the other sets go as well, for good: bounding, inheritable and ambient.

The network namespace's own set-up (tap device, addresses, routes) is not done with these:
it belongs to the netlink process, which is gone when the loop starts.  Inbound ports are
bound before SETUP.  A spawned command is forked before RUNNING and gets a full set by
being root of its user namespace when it is executed.

Sources: capabilities(7), capget(2).
"""

from __future__ import annotations

import errno

from passt.syscalls import caps

#: EARLY: identity switches (SETUID, SETGID), user maps (SETFCAP: mapping 0 to 0, Linux 5.12),
#: other processes' namespaces (SYS_PTRACE), sockets and files in other users' directories
#: (DAC_OVERRIDE), low ports, namespaces and mounts; SETPCAP to empty the bounding set; programs
#: for the kernel (BPF), for acceleration.
EARLY = caps.mask(
    caps.CAP_DAC_OVERRIDE,
    caps.CAP_SETGID,
    caps.CAP_SETUID,
    caps.CAP_SETPCAP,
    caps.CAP_NET_BIND_SERVICE,
    caps.CAP_NET_ADMIN,
    caps.CAP_SYS_CHROOT,
    caps.CAP_SYS_PTRACE,
    caps.CAP_SYS_ADMIN,
    caps.CAP_SETFCAP,
    caps.CAP_BPF,
)
SETUP = caps.mask(
    caps.CAP_SETPCAP, caps.CAP_NET_BIND_SERVICE, caps.CAP_NET_ADMIN, caps.CAP_SYS_ADMIN
)
#: What the fallback of :mod:`passt.kernel.sandbox` takes, beside SETUP.
CHROOT = caps.mask(caps.CAP_SYS_CHROOT)
SANDBOXED = caps.mask(caps.CAP_NET_BIND_SERVICE, caps.CAP_SYS_ADMIN)
RUNNING = 0
#: Of the thread that makes sockets in the target namespace: low ports there (``-T 80``).
NAMESPACE = caps.mask(caps.CAP_NET_BIND_SERVICE)


def keep(wanted: int) -> None:
    """Give up all capabilities but the mask ``wanted``; those there become effective.

    Concerns the calling thread, so the process must have just one.  OSError is a fault of
    ours: giving up is never refused.
    """
    _, permitted, inheritable = caps.get()
    caps.set_masks(permitted & wanted, permitted & wanted, inheritable & wanted)


def empty_other_sets() -> None:
    """Empty the bounding, inheritable and ambient sets of the calling thread.

    The bounding set takes CAP_SETPCAP: where that was not there to begin with, as for a
    program that has just two or three capabilities by its file, it stays.  OSError.
    """
    effective, permitted, _ = caps.get()
    caps.clear_ambient()
    caps.set_masks(effective, permitted, 0)
    try:
        caps.limit_bounding()
    except OSError as error:
        if error.errno != errno.EPERM or permitted >> caps.CAP_SETPCAP & 1:
            raise
