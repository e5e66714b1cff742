"""One spliced TCP connection: two sockets, and data on its way between them.

**Ends.**  Each socket is an :class:`End`.  An end also keeps what belongs to the direction
*starting* there: data read from it and not yet written to the other end, whether it has
reached its end of file, and whether that has been passed on.

**Moving data.**  Two ways, chosen anew as data comes.  Small amounts are read into a buffer
that all connections share, and sent: two system calls, no resources, and for up to some 30 KiB
faster than anything else.  When a read fills the buffer there is more where that came from, and
the direction goes over to *bulk*: splice(2) through a pipe, also two calls, but the kernel
passes pages on instead of copying them, up to a megabyte at a time.  When little comes it
returns to the buffer.  A pipe is borrowed for each transfer and given back when it is empty;
where none is to be had, data is copied.

What the destination does not take stays in the pipe, or is kept aside as ``held`` (at most
a buffer's worth); then the source is not read until that is gone.  That is all the
back-pressure there is: the source's receive queue fills and the kernel closes its window.  What
is kept aside counts (:mod:`passt.userspace.flow.budget`), and when there is too much of it the
buffer is used in small parts, so that each connection adds next to nothing.

**Events** are level-triggered, so reading may stop at any time and nothing is missed:

==================================  =============================================
the end may be read                 IN, RDHUP
the other end has data for it       OUT, in addition
neither: blocked, or at its end     none, edge-triggered
==================================  =============================================

The last because hang-up is reported whether asked for or not, and for as long as it lasts
if level-triggered.  Hang-up without error just says that both directions of a socket are
finished; what has arrived on it can still be read.

**The end.**  End of file is passed on with shutdown(2) once all data before it has been
written, each direction for itself, so connections stay half-closed for as long as their
owners like.  Both directions finished: both sockets are closed.  Everything else that ends a
connection (an error on either socket, or of any call) is passed on as what it was: both sockets
are closed with SO_LINGER 0 and both peers see a reset, behind what had arrived before it.  So the
answer of a server that refuses a request without reading it all reaches its client.

Source: pasta(1); tcp(7), splice(2), epoll(7).
"""

from __future__ import annotations

import os
from errno import EAGAIN

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import linger_reset
from passt.syscalls.splice import splice
from passt.userspace import log
from passt.userspace.flow.nat import endpoint
from passt.userspace.flow.rules import HOST, PIF_NAMES, SPLICE
from passt.userspace.flow.table import Flow
from passt.userspace.loop import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.loop import Loop
    from passt.userspace.splice.accel import Accelerator
    from passt.userspace.splice.fast import FastFlow
    from passt.userspace.splice.pipes import Pipe, PipePool

#: Size of the shared buffer: a read that fills it begins bulk.
BUFFER_SIZE = 1 << 15
#: A splice() that brings less than this ends bulk.
BULK_END = 1 << 14
#: Reads per direction and event: in bulk that is about two milliseconds.
TURNS = 4

#: Buffers that are passed on when there is an error behind: up to a megabyte.
LAST_WORDS = 32

_READABLE = EPOLLIN | EPOLLRDHUP
_MSG_MORE = int(socket.MSG_MORE)
_RARE = EPOLLOUT | EPOLLERR | EPOLLHUP

#: Bytes read at a time when memory is short.
SMALL_SIZE = 1 << 10

_whole = memoryview(bytearray(BUFFER_SIZE))
#: The part of it that is in use.
_buffer = _whole


class Splicing:
    """What all spliced connections share: the loop, the flow table, pipes, acceleration."""

    __slots__ = ("accelerator", "budget", "loop", "pipes", "table")

    def __init__(self, loop: Loop, table: FlowTable, pipes: PipePool) -> None:
        self.loop = loop
        self.table = table
        self.pipes = pipes
        self.budget = table.budget
        #: ``None`` if all data go through our hands.
        self.accelerator: Accelerator | None = None

    def hold(self, size: int) -> None:
        """``size`` more bytes are kept aside, or −``size`` fewer."""
        self.budget.hold(size)
        self.fit_buffer()

    def fit_buffer(self) -> None:
        """Use as much of the buffer as memory allows to keep aside."""
        global _buffer
        _buffer = _whole[:SMALL_SIZE] if self.budget.tight else _whole


class SplicedTcp(Flow):
    """A connection between ``client``, which we accepted, and ``server``, which we connected."""

    __slots__ = ("_endpoints", "client", "connecting", "fast", "server", "shared")

    kind = "TCP connection (spliced)"
    cost = 4096
    sockets = 2

    def __init__(
        self,
        shared: Splicing,
        client: socket.socket,
        server: socket.socket,
        endpoints: tuple[int, bytes, int, bytes, int],
    ) -> None:
        """``endpoints``: pif, address and port of the client, address and port of the server."""
        super().__init__()
        self.shared = shared
        self.client = End(self, client)
        self.server = End(self, server)
        self.client.other = self.server
        self.server.other = self.client
        #: The server has not answered yet.
        self.connecting = True
        #: The kernel forwards, and this is who watches it.
        self.fast: FastFlow | None = None
        self._endpoints = endpoints

    def describe(self) -> str:
        """Which side, from where, to where on the other side."""
        pif, source, source_port, target, target_port = self._endpoints
        there = SPLICE if pif == HOST else HOST
        return (
            f"{PIF_NAMES[pif]} {endpoint(source, source_port)} -> "
            f"{PIF_NAMES[there]} {endpoint(target, target_port)}"
        )

    def start(self, *, connected: bool) -> None:
        """Begin, with a server that is ``connected``, or connecting.  OSError if that fails."""
        client, server = self.client, self.server
        self.shared.fit_buffer()
        if self.shared.accelerator is not None:
            self.shared.accelerator.consider(self)
        add = self.shared.loop.add
        if connected:
            self.connecting = False
            # Usually the client has sent something by now.
            client.copy(0)
            if self.index < 0:
                return
            blocked = client.held is not None
            client.mask = EPOLLET if blocked else _READABLE
            server.mask = _READABLE | EPOLLOUT if blocked else _READABLE
        else:
            # No data is read from the client before it can go anywhere.
            client.mask = EPOLLET
            server.mask = EPOLLOUT
        add(client.fd, client.mask, client.on_event)
        add(server.fd, server.mask, server.on_event)

    def server_reacted(self, events: int) -> None:
        """Something else than an error has come of connecting to the server."""
        if events & EPOLLHUP:
            self.reset("hang-up while connecting")
            return
        self.connecting = False
        self.settle()

    def settle(self) -> None:
        """Ask epoll for what the state of both directions makes interesting."""
        loop = self.shared.loop
        for end in (self.client, self.server):
            other = end.other
            mask = 0 if end.eof or end.pipe is not None or end.held is not None else _READABLE
            if other.pipe is not None or other.held is not None:
                mask |= EPOLLOUT
            mask = mask or EPOLLET
            if mask != end.mask:
                end.mask = mask
                try:
                    loop.modify(end.fd, mask)
                except OSError as error:
                    self.reset(error.strerror)
                    return

    def finish(self) -> None:
        """Both directions have ended as they should."""
        if log.debug_on:
            log.debug("%s: closed", self)
        self._close()

    def failed(self, end: End, reason: str | None = None) -> None:
        """There is an error on the socket of ``end``: ``reason`` if it has been told already."""
        if reason is None:
            try:
                number = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            except OSError as error:
                number = error.errno or 0
            reason = os.strerror(number)
        end.last_words()
        self.reset(reason)

    def reset(self, reason: str | None) -> None:
        """End the connection abnormally, as both peers shall see."""
        if log.debug_on:
            log.debug("%s: reset: %s", self, reason)
        for end in (self.client, self.server):
            try:
                linger_reset(end.sock)
            except OSError:
                # The socket has no connection any more.
                pass
        self._close()

    def _close(self) -> None:
        """Leave loop and table; the sockets are closed at the end of the round."""
        shared = self.shared
        if shared.accelerator is not None:
            shared.accelerator.forget(self)
        if self.fast is not None:
            self.fast.ended()
        for end in (self.client, self.server):
            if end.pipe is not None:
                # What is in it must not come out in another connection.
                shared.pipes.discard(end.pipe)
            if end.held is not None:
                end.release()
            shared.loop.close(end.sock, end.fd)
            # Without these references nothing has to wait for the garbage collector.
            del end.flow, end.other
        shared.table.remove(self)


class End:
    """A socket of a connection, and the direction that starts at it.

    Methods that move data may end the connection; whether they did shows in ``flow.index``.
    """

    __slots__ = (
        "bulk",
        "done",
        "eof",
        "fd",
        "flow",
        "held",
        "mask",
        "other",
        "pending",
        "pipe",
        "sock",
        "weight",
    )

    #: The other socket of the connection.
    other: End

    def __init__(self, flow: SplicedTcp, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.fd = sock.fileno()
        #: Events that epoll is asked for.
        self.mask = 0
        #: What comes next is worth a pipe.
        self.bulk = False
        #: Data that the other end did not take: a pipe and the bytes in it, or bytes from the
        #: buffer.
        self.pipe: Pipe | None = None
        self.pending = 0
        self.held: memoryview | None = None
        #: Bytes of memory that ``held`` takes.
        self.weight = 0
        #: Nothing more will be read; and the other end has been told.
        self.eof = False
        self.done = False

    def on_event(self, events: int) -> None:
        """The socket is ready for something."""
        if events == EPOLLIN and self.mask == _READABLE and not self.bulk:
            # The usual case: nothing has been waiting, and there is a message to pass on.
            if self.copy(0) or self.held is not None:
                self.forward(events)
            return
        if events & _RARE:
            flow = self.flow
            if events & EPOLLERR:
                flow.failed(self)
                return
            if flow.connecting:
                flow.server_reacted(events)
                return
            other = self.other
            if other.pipe is not None or other.held is not None:
                other.forward(0)
                if flow.index < 0:
                    return
            if not events & _READABLE:
                return
        if self.mask & EPOLLIN:
            self.forward(events)

    def forward(self, events: int) -> None:
        """Move data from this end to the other, until one blocks or it is others' turn.

        ``events`` are those of this end, 0 if it is the other one that is ready.
        """
        flow = self.flow
        for _ in range(TURNS):
            if (self.pipe is not None or self.held is not None) and not self._write_rest():
                break
            if not self.eof and not (self._splice(events) if self.bulk else self.copy(events)):
                break
            if self.eof:
                self._finish()
                return
        if flow.index < 0:
            return
        blocked = self.pipe is not None or self.held is not None
        if blocked == bool(self.mask & EPOLLIN):
            flow.settle()

    def copy(self, events: int) -> bool:
        """Move one buffer of data; False if there is nothing to do but wait."""
        try:
            count = self.sock.recv_into(_buffer)
        except OSError as error:
            if error.errno != EAGAIN:
                self.flow.reset(error.strerror)
            return False
        if not count:
            self.eof = True
            return True
        try:
            # The last data and the end of file leave together, in one segment.
            sent = self.other.sock.send(_buffer[:count], _MSG_MORE if events & EPOLLRDHUP else 0)
        except OSError as error:
            if error.errno != EAGAIN:
                self.flow.failed(self.other, error.strerror)
                return False
            sent = 0
        if sent < count:
            self.keep(bytes(_buffer[sent:count]))
            return False
        if count == len(_buffer):
            self.bulk = True
            return True
        # All there was is gone; if the peer has finished, what comes next is the end of file.
        return events & EPOLLRDHUP != 0

    def _splice(self, events: int) -> bool:
        """Move as much data as fits into a pipe; False if there is nothing to do but wait."""
        pipes = self.flow.shared.pipes
        pipe = pipes.take()
        if pipe is None:
            self.bulk = False
            return self.copy(events)
        count = splice(self.fd, pipe.writer, pipe.size)
        if count <= 0:
            pipes.give_back(pipe)
            self.bulk = False
            if count not in (0, -EAGAIN):
                self.flow.reset(os.strerror(-count))
                return False
            # Nothing is there, or urgent data in front, which splice() never takes: to that it
            # says 0 if the end of file is behind.  What it is recv() will tell.
            return count == 0
        self.bulk = count >= BULK_END
        self.pipe = pipe
        self.pending = count
        # Looking for more, or for the end of file, costs less than being told by epoll.
        return self._write_rest()

    def _write_rest(self) -> bool:
        """Write what has been read before; False if some is left, or after a reset."""
        other = self.other
        pipe = self.pipe
        if pipe is not None:
            moved = splice(pipe.reader, other.fd, self.pending)
            if moved < 0:
                if moved != -EAGAIN:
                    self.flow.failed(other, os.strerror(-moved))
                return False
            self.pending -= moved
            if self.pending:
                return False
            self.pipe = None
            self.flow.shared.pipes.give_back(pipe)
            return True
        held = self.held
        assert held is not None
        try:
            sent = other.sock.send(held)
        except OSError as error:
            if error.errno != EAGAIN:
                self.flow.failed(other, error.strerror)
            return False
        if sent < len(held):
            self.held = held[sent:]
            return False
        self.release()
        return True

    def keep(self, data: bytes) -> None:
        """Keep ``data`` aside, which the other end did not take yet."""
        self.held = memoryview(data)
        # All of it stays in memory to the end, however little is left.
        self.weight = len(data)
        self.flow.shared.hold(self.weight)

    def release(self) -> None:
        """Forget what was kept aside."""
        self.held = None
        self.flow.shared.hold(-self.weight)

    def last_words(self) -> None:
        """Pass on what arrived before an error, if it can be taken at once.

        Linux lets data in the queue of a socket be read after a reset, and so they would be on a
        direct connection.
        """
        if self.eof or self.pipe is not None or self.held is not None:
            return
        try:
            for _ in range(LAST_WORDS):
                count = self.sock.recv_into(_buffer)
                if not count or self.other.sock.send(_buffer[:count]) < count:
                    return
        except OSError:
            # Nothing more is there, or nobody takes it.
            return

    def _finish(self) -> None:
        """The end of file is all that is left to be passed on."""
        flow = self.flow
        self.done = True
        if self.other.done:
            flow.finish()
            return
        try:
            self.other.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            flow.failed(self.other, error.strerror)
            return
        flow.settle()
