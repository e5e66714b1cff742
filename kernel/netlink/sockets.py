"""Sockets and files of the namespace, opened by the worker for the program to keep.

Theory of operation
-------------------
Ready means ready: when the program reports that it runs, listening sockets in the target
namespace are to be there.  The thread that makes them later does not exist before the last
fork (:mod:`passt.kernel.nsthread`), but the worker has been in the namespace already, with
privileges for low ports, and hands over what it opened there.

The list of open ports is opened here too.  A file of /proc/net shows the namespace of the
process that *opened* it, to whoever reads it; it is to be read anew from offset 0.

A message holds a limited number of descriptors, so many sockets take many calls.

Sources: proc_pid_net(5), unix(7), network_namespaces(7).
"""

from __future__ import annotations

import os

from passt.kernel.sockets import open_sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.sockets import PlainSpec

#: Lists of sockets by port, of those protocols and IP versions that forwarding knows.
PORT_LISTS = ("tcp", "tcp6", "udp", "udp6")


def make(specs: tuple[PlainSpec, ...]) -> tuple[list[int], list[int]]:
    """Make sockets, as many as fit into a message; errno or 0 each, descriptors of those made."""
    errors: list[int] = []
    fds: list[int] = []
    for sock in open_sockets(specs):
        if isinstance(sock, OSError):
            errors.append(sock.errno or -1)
        else:
            errors.append(0)
            fds.append(sock.detach())
    return errors, fds


def open_port_lists() -> tuple[list[bool], list[int]]:
    """Open the files named in :data:`PORT_LISTS`; which exist, and their descriptors."""
    present: list[bool] = []
    fds: list[int] = []
    for name in PORT_LISTS:
        try:
            fds.append(os.open(f"/proc/self/net/{name}", os.O_RDONLY | os.O_CLOEXEC))
            present.append(True)
        except OSError:
            # IPv6 may be switched off; whoever needs a list will say that it is missing.
            present.append(False)
    return present, fds
