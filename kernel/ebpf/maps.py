"""The maps of one instance: connections enter and leave, counters are read and written.

Counters live in memory that we share with the kernel, so that looking at them costs no system
call.  Sockets enter by two elements, their number in ``ends`` and themselves in ``socks``, which
are deleted when they leave; the kernel forgets a socket in ``socks`` when it is closed, but not
its number in ``ends``.

The set may have been made here, or come from where it is pinned; see :mod:`.acquire`.
"""

from __future__ import annotations

import os
import struct

from passt.kernel.ebpf import bytecode
from passt.kernel.ebpf.layout import DEAF, NAMES, RING, SHAPES, SLOTS, WORDS
from passt.kernel.ebpf.ring import Ring
from passt.syscalls import bare_socket as socket
from passt.syscalls import bpf
from passt.syscalls.sockopt import SO_ATTACH_BPF, SO_COOKIE, SO_DETACH_BPF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a set consists of.
OBJECTS = (*NAMES, DEAF)

#: Instructions: register 0, the result, is 0; exit.
_DEAF = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)

_SLOT = struct.Struct("=I")
_SOCKET = struct.Struct("=Q")
_COOKIE_SIZE = 8


class MapSet:
    """Maps with the program attached, and their memory."""

    __slots__ = (
        "_deaf",
        "_ends",
        "_fds",
        "_ring",
        "_socks",
        "counts",
        "grants",
    )

    def __init__(self, fds: Sequence[int]) -> None:
        """``fds`` are descriptors in the order of OBJECTS, ours from here on; OSError."""
        self._fds = tuple(fds)
        by_name = dict(zip(OBJECTS, fds, strict=True))
        self._deaf = by_name[DEAF]
        self._ends = by_name["ends"]
        self._socks = by_name["socks"]
        size = SLOTS * WORDS * 8
        #: 64-bit words; slot n begins at n * WORDS.
        self.grants = bpf.map_memory(by_name["grants"], size, writable=True)
        self.counts = bpf.map_memory(by_name["counts"], size, writable=False)
        self._ring = Ring(by_name["bell"], RING)

    def fileno(self) -> int:
        """Descriptor that is readable when :meth:`rung` has something to tell."""
        return self._fds[NAMES.index("bell")]

    def enter(self, sock: socket.socket, slot: int) -> None:
        """Let the program decide about what ``sock`` receives; OSError if the kernel refuses."""
        key = _SLOT.pack(slot)
        cookie = sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, _COOKIE_SIZE)
        # First the number: the program has to know the socket from its first segment on.
        bpf.map_update(self._ends, cookie, key)
        try:
            bpf.map_update(self._socks, key, _SOCKET.pack(sock.fileno()))
        except OSError:
            self.forget(cookie)
            raise

    def leave(self, sock: socket.socket, slot: int) -> None:
        """Undo :meth:`enter`; what the kernel holds for the socket is lost."""
        cookie = sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, _COOKIE_SIZE)
        try:
            bpf.map_delete(self._socks, _SLOT.pack(slot))
        except OSError:
            # The connection had ended, and the kernel was first.
            pass
        self.forget(cookie)

    def deafen(self, sock: socket.socket) -> None:
        """Have all that comes for ``sock`` be lost, as if on the wire, until :meth:`hear`."""
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, self._deaf)

    def hear(self, sock: socket.socket) -> None:
        """End what :meth:`deafen` began."""
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_BPF, 0)

    def forget(self, cookie: bytes) -> None:
        """Remove a number that may be there."""
        try:
            bpf.map_delete(self._ends, cookie)
        except OSError:
            pass

    def rung(self) -> list[int]:
        """The slots that the program has reported since the last time, in their order."""
        return self._ring.read()

    def clean(self) -> None:
        """Remove what a former user of the maps has left; there must be none now."""
        for cookie in bpf.map_keys(self._ends, _COOKIE_SIZE):
            self.forget(cookie)
        for key in bpf.map_keys(self._socks, _SLOT.size):
            try:
                bpf.map_delete(self._socks, key)
            except OSError:
                pass
        self._ring.skip()

    def close(self) -> None:
        """Give the maps up; those that are not pinned end with their sockets."""
        self.grants.release()
        self.counts.release()
        self._ring.close()
        for fd in self._fds:
            os.close(fd)


def make(token: int = -1) -> list[int]:
    """Make what a set consists of, in the order of OBJECTS; OSError."""
    fds: list[int] = []
    try:
        for shape in SHAPES:
            sizes = shape.key_size, shape.value_size, shape.entries
            fd = bpf.map_create(shape.kind, *sizes, flags=shape.flags, name=shape.name, token=token)
            fds.append(fd)
        fds.append(
            bpf.prog_load(bpf.PROG_TYPE_SOCKET_FILTER, _DEAF, name="passt_deaf", token=token)
        )
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def attach(fds: Sequence[int], code: bytes, token: int = -1) -> None:
    """Load the program ``code`` and attach it to the maps, with which it will stay; OSError."""
    program = bpf.prog_load(
        bpf.PROG_TYPE_SK_SKB,
        bytecode.bind(code, fds),
        attach_type=bpf.SK_SKB_VERDICT,
        name="passt_verdict",
        token=token,
    )
    try:
        bpf.prog_attach(program, fds[NAMES.index("socks")], bpf.SK_SKB_VERDICT)
    finally:
        os.close(program)
