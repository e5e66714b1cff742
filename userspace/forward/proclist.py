"""Ports that programs listen on, as /proc/net tells them, line by line.

Theory of operation
-------------------
There is a file per protocol and IP version, with a line per socket::

      sl  local_address rem_address   st tx_queue rx_queue tr tm->when ...
       0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 ...

in which a TCP socket that listens is in state 0A, and a UDP socket that is not connected is
in state 07.  On whichever address or interface it is, its port counts.

The file shows the network namespace of the process that opened it, so that with its
descriptor we see into a namespace that we are not in, and need no path later.  It is read
anew from offset 0, a page at a time, which is how the kernel hands it out.

Listening sockets come first in the TCP files, so reading ends at the first other one: what
thousands of connections add costs nothing.  The text that matters is compared with that of
the last time, and mostly the same.  Otherwise it is not taken apart by lines: splitting it at
the remote port and the state wanted leaves pieces that end with the local port and the
remote address, which has a fixed length.  20,000 listening sockets take some 40 ms, most of
it spent by the kernel, which also needs a millisecond per file if there are none.

Sources: proc_pid_net(5); networking/proc_net_tcp.rst of the kernel's documentation.
"""

from __future__ import annotations

import errno
import os

from passt.userspace import log
from passt.userspace.forward.portset import portset

#: The files, in the order in which their descriptors are given.
PORT_LISTS = ("tcp", "tcp6", "udp", "udp6")

_TCP_LISTEN = b"0A"
_UDP_UNCONNECTED = b"07"

#: More than the kernel returns at once, which is a page.
_READ_SIZE = 8192

#: Bytes of a file that are read, which are some 100,000 sockets: there may be any number.
_LIMIT = 16 << 20


def open_port_lists() -> list[int | None]:
    """Open the lists of the calling thread's network namespace; ``None`` for missing ones."""
    fds: list[int | None] = []
    for name in PORT_LISTS:
        try:
            fds.append(os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if name in ("tcp", "udp"):
                log.warn(f"Couldn't open /proc/thread-self/net/{name}: {error.strerror}")
            fds.append(None)
    return fds


class PortList:
    """One of the files, behind ``fd``, which is ours from here on."""

    __slots__ = ("_fd", "_from", "_listening_first", "_ports", "_seen", "_separator", "_to")

    def __init__(self, fd: int, *, tcp: bool, v6: bool) -> None:
        self._fd = fd
        state = _TCP_LISTEN if tcp else _UDP_UNCONNECTED
        self._listening_first = tcp
        #: From the colon before the remote port to the blank after the state.
        self._separator = b":0000 " + state + b" "
        #: Where the local port is in what precedes: before a blank and the remote address.
        self._to = -33 if v6 else -9
        self._from = self._to - 4
        #: Text that the ports were last read from.
        self._seen = b""
        self._ports = 0

    def ports(self) -> int:
        """The set of ports listened on, as :mod:`~passt.userspace.forward.portset` has it.

        If the file cannot be read or understood, that is logged, and the set is the one of the
        last time.
        """
        try:
            text = self._read()
        except OSError as error:
            log.limited("port-list", log.ERR, "Couldn't read list of ports: %s", error.strerror)
            return self._ports
        # What follows the last socket that listens does not matter.
        text = text[: max(text.rfind(self._separator), 0)]
        if text != self._seen:
            start, stop = self._from, self._to
            found = {piece[start:stop] for piece in text.split(self._separator)} if text else ()
            self._seen = text
            try:
                # int() would take signs, blanks and underscores, too.
                if not all(map(bytes.isalnum, found)):
                    raise ValueError
                self._ports = portset([int(port, 16) for port in found])
            except ValueError:
                log.limited("port-list-form", log.ERR, "List of ports is not understood")
        return self._ports

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def _read(self) -> bytes:
        """The file, as far as it may tell of listening sockets; OSError if that is too much."""
        fd = self._fd
        chunks = []
        left = _LIMIT
        os.lseek(fd, 0, os.SEEK_SET)
        while chunk := os.read(fd, _READ_SIZE):
            left -= len(chunk)
            if left < 0:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            chunks.append(chunk)
            if self._listening_first and _last_state(chunk) not in (_TCP_LISTEN, b""):
                break
        return b"".join(chunks)


def _last_state(chunk: bytes) -> bytes:
    """State of the socket in the last line, empty if there is none."""
    line = chunk[chunk.rfind(b"\n", 0, -1) + 1 :]
    fields = line.split(None, 4)
    if len(fields) < 5 or not fields[0].endswith(b":"):
        return b""
    return fields[3]
