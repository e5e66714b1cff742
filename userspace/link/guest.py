"""Where passt waits for its guest: a socket in the file system, or a connection that is there.

One guest is served at a time.  Others are told that nobody is there, by closing.  When it has
gone, the next is waited for, and finds everything as it was: connections, listening ports, what
is known of the guest's addresses.  That is what a machine manager expects which restarts QEMU, or
which has QEMU connect again.  With ``--one-off``, and if the connection was passed by the caller
(``--fd``), the program ends with its guest.

Sources: passt(1), unix(7).
"""

from __future__ import annotations

import errno

from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.link.stream import StreamLink
from passt.userspace.loop import EPOLLIN
from passt.userspace.socketpath import peer_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.loop import Loop

#: As upstream: one caller may wait to be refused, further ones are held up in connect(2).
_BACKLOG = 0

#: Seconds without accepting after that failed for want of descriptors or memory.
_PAUSE = 1.0

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

#: Bytes of the socket's queues that we ask for; the kernel gives less (net.core.wmem_max).
_QUEUE = 1 << 30


class Guest:
    """Accepts guests, and lends each of them to :attr:`link`."""

    __slots__ = ("_loop", "_on_arrival", "_one_off", "_sock", "link")

    def __init__(self, loop: Loop, sock: socket.socket, *, one_off: bool) -> None:
        """``sock``, ours from here on, is bound, to wait for guests on, or connected to one."""
        self._loop = loop
        self._sock = sock
        self._one_off = one_off
        self._on_arrival: Callable[[], None] = _nothing
        self.link = StreamLink(loop, self._gone)

    def start(self, on_arrival: Callable[[], None]) -> None:
        """Serve the guest that is there, or listen; OSError.

        ``on_arrival()`` is called when frames can be sent.
        """
        self._on_arrival = on_arrival
        if is_connected(self._sock):
            self.link.attach(self._sock)
            on_arrival()
        else:
            self._sock.listen(_BACKLOG)
            self._loop.add(self._sock.fileno(), EPOLLIN, self._on_connection)

    def _resume(self) -> None:
        """Accept again, or later if there is no memory even for that."""
        try:
            self._loop.add(self._sock.fileno(), EPOLLIN, self._on_connection)
        except OSError as error:
            log.limited("guest-resume", log.WARNING, "Guest socket: %s", error.strerror)
            self._loop.call_at(self._loop.now + _PAUSE, self._resume)

    def _on_connection(self, _events: int) -> None:
        loop, listener = self._loop, self._sock
        try:
            sock, _ = socket.accept(listener)
        except OSError as error:
            log.limited("guest-accept", log.WARNING, "Guest socket: %s", error.strerror)
            if error.errno in _EXHAUSTED:
                # The event would come back at once, and so would the failure.
                loop.remove(listener.fileno())
                loop.call_at(loop.now + _PAUSE, self._resume)
            return
        pid = peer_pid(sock)
        self.link.look()
        if self.link.connected:
            log.limited(
                "guest-discarded", log.INFO,
                "UNIX socket connection from PID %d discarded: there is a guest", pid,
            )  # fmt: skip
            sock.close()
            return
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)
            self.link.attach(sock)
        except OSError as error:
            log.limited("guest-attach", log.WARNING, "Guest socket: %s", error.strerror)
            sock.close()
            return
        log.limited("guest", log.INFO, "Accepted UNIX socket connection from PID %d", pid)
        self._on_arrival()

    def _gone(self) -> None:
        """The guest's connection has ended."""
        if self._one_off:
            log.info("Client connection closed, exiting")
            self._loop.stop(0)
        else:
            log.limited("guest-gone", log.INFO, "Client connection closed")


def is_connected(sock: socket.socket) -> bool:
    """Whether ``sock`` has a peer."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _nothing() -> None:
    """On the arrival of a guest that nobody waits for yet."""
