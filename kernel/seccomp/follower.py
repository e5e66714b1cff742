"""What the process that follows the host's network may call (:mod:`passt.kernel.follow`).

It waits, asks two kernels by netlink sockets that are open, reads one file of a directory it can
see, and tells the program.  It makes no sockets, writes to no file, and gets nothing from a guest.
"""

from __future__ import annotations

import os

from passt.kernel.seccomp.groups import INTERPRETER, Call, Group
from passt.syscalls.seccomp import Argument

_AT_FDCWD = 0xFFFFFF9C
_READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_DIRECTORY | os.O_PATH

FOLLOWING = Group(
    "following",
    "Only of the process that follows the host's network (`--follow`), which has a list of its "
    "own: this group and that of the interpreter.",
    Call("poll", "sleep until something happens; x86-64"),
    Call("ppoll", "the same on other machines, or with another C library"),
    Call("clock_gettime", "read the clock where the vDSO cannot, as with some hypervisors"),
    Call("recvfrom", "events and answers of both kernels; the end of the program"),
    Call("sendto", "requests to both kernels"),
    Call("sendmsg", "what has become of the network, to the program"),
    Call("read", "the host's resolv.conf, and events of its directory"),
    Call(
        "openat",
        "resolv.conf anew, in a root that has its directories only",
        "for reading, by path",
        ((Argument(0, (_AT_FDCWD,)), Argument(2, (0,), _READ_ONLY)),),
    ),
    Call("inotify_add_watch", "the file that is resolv.conf now"),
    Call("close", "resolv.conf, once read"),
)

FOLLOWER = (FOLLOWING, INTERPRETER)
