"""The control socket of pasta and passt: tells forwarding rules, takes new ones.

One client at a time is served, from greeting to hang-up, while others wait in the backlog: what
a client sends replaces what it was told, so two at once would undo each other's changes.

Nothing here waits.  The connection is non-blocking, a call reads at most :data:`READ_SIZE`
bytes, which bounds the checking of rules as well, and a client has :data:`TIME_LIMIT` seconds
for everything.  Who stalls, or sends what is no request, loses the connection and nothing else.

A complete and sound request goes to ``replace``, which swaps the tables and has the sockets
opened, partly by another thread, and says when it is done.  Until then the client is kept:
the reply tells it of ports that could not be opened (:mod:`passt.userspace.control.protocol`).

Access is by the mode of the socket's node (:mod:`passt.userspace.socketpath`).
"""

from __future__ import annotations

import errno

from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.control.protocol import (
    INCOMPLETE,
    REFUSED,
    ProtocolError,
    RequestReader,
    pack_reply,
    pack_state,
)
from passt.userspace.flow.rules import RuleError, RuleFormatError
from passt.userspace.loop import EPOLLIN, EPOLLOUT
from passt.userspace.socketpath import peer_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from passt.userspace.flow.rules import RuleTable
    from passt.userspace.loop import Loop

    #: Takes what went wrong, a line each, nothing if all is well.
    Done = Callable[[Sequence[str]], None]
    Replace = Callable[[list[RuleTable], Done], None]

#: Bytes taken per event: some 70 rules, whose checks take a few milliseconds at worst.
READ_SIZE = 4096

#: Seconds that a client may take, from connecting to the end of its request.
TIME_LIMIT = 5.0

#: Seconds without accepting after that failed for want of descriptors or memory.
_PAUSE = 1.0

#: Seconds between two listings of rules in the log, which may have hundreds of lines.
_LISTING_PAUSE = 1.0

#: As upstream: one client may be waiting, further ones are held up in connect(2).
_BACKLOG = 0


class ControlServer:
    """Serves ``sock``, bound by :func:`~passt.userspace.socketpath.bind_private`.

    * ``tables_view()`` returns the tables in force, by ascending pif.
    * ``replace(tables, done)`` puts new tables in force.  It calls ``done(problems)`` once, at
      once or later, when all sockets that could be opened are; problems are lines for the
      user.  It is not called again before.
    """

    __slots__ = ("_announced", "_loop", "_session", "_sock", "replace", "tables_view")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        tables_view: Callable[[], Sequence[RuleTable]],
        replace: Replace,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._session: Session | None = None
        #: When rules were last listed in the log.
        self._announced = -_LISTING_PAUSE
        self.tables_view = tables_view
        self.replace = replace

    def start(self) -> None:
        """Listen: to be called when everything else is ready.  Raises OSError."""
        self._sock.listen(_BACKLOG)
        self._loop.add(self._sock.fileno(), EPOLLIN, self._on_connection)

    def resume(self) -> None:
        """Accept the next client, or later if there is no memory even for that."""
        self._session = None
        if self._sock.fileno() < 0:
            return
        try:
            self._loop.add(self._sock.fileno(), EPOLLIN, self._on_connection)
        except OSError as error:
            log.limited("control-resume", log.WARNING, "Control socket: %s", error.strerror)
            self._loop.call_at(self._loop.now + _PAUSE, self.resume)

    def announce(self, tables: Sequence[RuleTable]) -> None:
        """Say what the new rules are; only how many, if they change several times a second."""
        now = self._loop.now
        if now - self._announced < _LISTING_PAUSE:
            for table in tables:
                log.limited(
                    "control-rules",
                    log.INFO,
                    "New forwarding rules for %s: %d",
                    table.name,
                    len(table),
                )
            return
        self._announced = now
        for table in tables:
            log.info("New forwarding rules for %s:", table.name)
            for rule in table:
                log.info("    %s", rule)

    def close(self) -> None:
        """Drop the client, if any, and stop listening; the path remains."""
        fd = self._sock.fileno()
        if fd < 0:
            return
        self._loop.remove(fd)
        self._sock.close()
        if self._session is not None:
            self._session.close()

    def _on_connection(self, _events: int) -> None:
        loop = self._loop
        try:
            sock, _ = socket.accept(self._sock)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # The event would come back at once, and so would the failure.
                log.limited("control accept", log.WARNING, "Control socket: %s", error.strerror)
                loop.remove(self._sock.fileno())
                loop.call_at(loop.now + _PAUSE, self.resume)
            return
        sock.setblocking(False)
        loop.remove(self._sock.fileno())
        self._session = Session(self, loop, sock)
        self._session.begin()


class Session:
    """One client of a :class:`ControlServer`."""

    __slots__ = ("_fd", "_loop", "_output", "_reader", "_server", "_sock", "_timer")

    def __init__(self, server: ControlServer, loop: Loop, sock: socket.socket) -> None:
        self._server = server
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        tables = server.tables_view()
        self._reader = RequestReader(tables)
        self._output = memoryview(pack_state(tables))
        self._timer = loop.call_at(loop.now + TIME_LIMIT, self._on_time_limit)

    def begin(self) -> None:
        """Greet the client and wait for what it has to say."""
        log.limited(
            "control-client",
            log.INFO,
            "Accepted configuration client, PID %d",
            peer_pid(self._sock),
        )
        try:
            self._loop.add(self._fd, EPOLLIN, self._on_event)
        except OSError as error:
            log.limited("control-watch", log.WARNING, "Control socket: %s", error.strerror)
            self.close()
            return
        self._send()

    def close(self) -> None:
        """Close the connection and make room for the next; again is no harm."""
        if self._fd < 0:
            return
        self._timer.cancel()
        self._loop.close(self._sock, self._fd)
        self._fd = -1
        self._server.resume()

    def _on_event(self, events: int) -> None:
        if events & EPOLLOUT:
            self._send()
        if events & ~EPOLLOUT and self._fd >= 0:
            self._receive()

    def _send(self) -> None:
        """Send what is left of greeting and state."""
        try:
            sent = self._sock.send(self._output)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hang_up()
            return
        self._output = self._output[sent:]
        self._loop.modify(self._fd, EPOLLIN | EPOLLOUT if self._output else EPOLLIN)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        try:
            tables = self._reader.feed(data)
        except (ProtocolError, RuleFormatError, RuleError) as error:
            lines = str(error).split("\n")
            for line in lines:
                log.limited("control-refused", log.WARNING, "%s", line)
            self._reply(REFUSED, lines)
            return
        if tables is not None:
            self._apply(tables)

    def _apply(self, tables: list[RuleTable]) -> None:
        """Put ``tables`` in force; the client has no more say in it."""
        self._timer.cancel()
        # Its hanging up, which is to be expected, must not wake us all the time.
        self._loop.remove(self._fd)
        self._server.announce(tables)
        self._server.replace(tables, self._done)

    def _done(self, problems: Sequence[str]) -> None:
        """The rules are in force, with ``problems``."""
        if not problems:
            self.close()
            return
        log.limited("control-switch", log.WARNING, "Error switching to new forwarding rules")
        self._reply(INCOMPLETE, problems)

    def _reply(self, status: int, lines: Sequence[str]) -> None:
        """Say what went wrong, if the client is still there, and close."""
        if self._fd >= 0:
            try:
                self._sock.send(pack_reply(status, lines))
            except OSError:
                # The original client leaves as soon as it has sent its request.
                log.debug("Configuration client gone before the reply")
        self.close()

    def _hang_up(self) -> None:
        log.debug("Configuration client hangup")
        self.close()

    def _on_time_limit(self) -> None:
        log.limited("control-time-out", log.WARNING, "Configuration client timed out")
        self.close()
