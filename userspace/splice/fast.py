"""One spliced connection on the fast path: the kernel forwards, we watch that it stays bounded.

Each direction is a :class:`Lane`.  The program in the kernel (``verdict.bpf.c``) redirects what
arrives at the lane's source to its sink, as long as that was granted, and passes the rest, to
wait in the source.  Nothing of that wakes us; what does is the *bell* that goes with the first
data passed, the end of a direction, and, while much moves, a timer.

**Credit.**  A redirect has no back-pressure, so the bytes on their way are bounded by grants::

    in flight = redirected + consumed - acknowledged to the sink, all since the lane began
    granted   = redirected + credit - in flight

Credit is at most half of the sink's send buffer.  So what was redirected always fits into it, even
if the peer never reads, and the kernel's queue in front of it runs empty by itself.  That matters
twice: what is passed waits behind what was redirected *to the same socket* by the other
direction, so it must not wait for long; and a socket that leaves takes that queue with it.

**Passed data** are moved by hand (:meth:`Lane.catch_up`): first all that was redirected has to
be in the sink (acknowledged + SIOCOUTQ is what has ever been written there), then data are
*peeked* and sent, then ``consumed`` is raised, then they are discarded.  In this order: discarding
opens the window of a sender who waits for just that, and what it then sends would be passed
as well, for ever, while ``consumed`` lags behind.

**Leaving.**  A direction's end, a sink that blocks: whatever is not plain forwarding is the
business of the usual way, :mod:`.flow`, which knows how.  Nothing may be lost on the way back.
Grants go; all that was redirected is waited for; then each socket is deaf for a moment, by a
socket filter, while what waits in it is read and it leaves the maps.  A segment that comes in
this moment is sent again, as if lost on a wire.  This also has to happen before our side of
a connection is shut down: the kernel drops a closed socket's unread data if it is in a map.

**Death.**  A socket that is closed with unread data resets the connection, but the kernel does not
count those that were passed; a sender whose window they have closed would be left alone for a
minute.  So sockets linger (SO_LINGER, 0 s) while they are here, and reset theirs if the process is
killed.

Source: Documentation/bpf/map_sockmap.rst of the kernel; socket(7), tcp(7), packet(7).
"""

from __future__ import annotations

import struct
from errno import EAGAIN, EIO

from passt.kernel.ebpf.layout import (
    BYTES,
    CONSUMED,
    GENERATION,
    GRANT_BYTES,
    GRANT_PACKETS,
    PACKETS,
    PASSED,
    WORDS,
)
from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import SO_BUF_LOCK, linger_not, linger_reset
from passt.syscalls.tcpinfo import inq, outq
from passt.userspace import log
from passt.userspace.loop import EPOLLERR, EPOLLET, EPOLLRDHUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.splice.accel import Accelerator
    from passt.userspace.splice.flow import End, SplicedTcp

#: Bytes of credit for each packet on its way, which takes room in the kernel beside its data.
PACKET_COST = 1024
#: Bytes of payload that a socket on the fast path may receive unread; the kernel takes twice as
#: much for it, or as net.core.rmem_max allows.
RECEIVE_BUFFER = 1 << 18
#: This many bells in a row, with so many bytes per second from one to the next, are bulk; bells are
#: not taken to be closer to each other than this, in seconds.
BULK_BELLS = 3
BULK_RATE = 50e6
SHORTEST = 0.001
#: Peeks in a row.
TURNS = 4

#: Attempts to catch up in a row that end with more to move: then the sender is faster than that.
MOST_BEHIND = 4

#: What :meth:`Lane.catch_up` has come to: all is forwarded; the kernel is not done yet; much was
#: moved, and there is more; the sink does not take more; there is an end of file; the connection
#: is no more.
DONE, WAIT, MORE, BLOCKED, ENDED, GONE = range(6)

#: Why connections leave, by that.
_REASONS = {MORE: "bulk", BLOCKED: "full", ENDED: "end"}

_RCVBUF_LOCK = 2
_MSG_PEEK = int(socket.MSG_PEEK)
_IPPROTO_TCP = socket.IPPROTO_TCP
_TCP_INFO = socket.TCP_INFO
_ACKED = struct.Struct("=120xQ")
_RECEIVED = struct.Struct("=128xQ")

_buffer = memoryview(bytearray(1 << 18))


class Lane:
    """One direction of a connection on the fast path."""

    __slots__ = (
        "arrived",
        "at",
        "base",
        "behind",
        "bells",
        "credit",
        "end",
        "fast",
        "gone",
        "kept",
        "marked_packets",
        "marked_target",
        "quiet",
        "rung_at",
        "rung_bytes",
        "seen",
        "sent",
        "sink",
        "slot",
        "source",
        "start",
    )

    def __init__(self, fast: FastFlow, slot: int, end: End, credit: int) -> None:
        """The direction that starts at ``end``, with ``slot`` in the maps."""
        self.fast = fast
        self.end = end
        self.source = end.sock
        self.sink = end.other.sock
        self.slot = slot
        #: The slot's first word in the maps' memory.
        self.at = slot * WORDS
        self.credit = credit
        maps = fast.accelerator.maps
        self.start = maps.counts[self.at + BYTES]
        #: Bytes that TCP has received and the program will not see, less those it has seen before.
        self.arrived = self._ever_read() - self._seen()
        #: Bytes we have moved by hand.
        self.sent = 0
        #: What had been written to the sink before.
        self.base = self._ever_written()
        #: What will have been written when all packets up to this number are through.
        self.marked_target = self.base
        self.marked_packets = maps.counts[self.at + PACKETS]
        #: Redirected bytes when last looked at, and how often there was nothing new.
        self.seen = self.start
        self.quiet = 0
        #: The last bell, bytes redirected by then, and how many in a row were for bulk.
        self.rung_at = 0.0
        self.rung_bytes = 0
        self.bells = 0
        #: Times in a row that there was more to move by hand.
        self.behind = 0
        #: Taken from the source on the way back; and that this is over.
        self.kept: list[bytes] = []
        self.gone = False

    def on_event(self, events: int) -> None:
        """The direction that starts at the source has ended, or the connection has."""
        fast = self.fast
        if events & EPOLLERR:
            fast.flow.failed(self.end)
        elif not fast.leaving:
            fast.leave("end")

    def redirected(self) -> int:
        """Bytes that the kernel has forwarded, or is about to."""
        return self.fast.accelerator.maps.counts[self.at + BYTES] - self.start

    def acked(self) -> int:
        """Bytes that the sink's peer has acknowledged."""
        acked: int = _ACKED.unpack(self.sink.getsockopt(_IPPROTO_TCP, _TCP_INFO, _ACKED.size))[0]
        return acked

    def written(self) -> int:
        """Bytes that have ever been written to the sink, or fewer: never more."""
        return self.acked() + outq(self.sink.fileno())

    def _ever_written(self) -> int:
        """Bytes that have been written to the sink, exactly, as nobody writes now."""
        while True:
            acked = self.acked()
            written = acked + outq(self.sink.fileno())
            if acked == self.acked():
                return written

    def _ever_read(self) -> int:
        """Bytes that have been read from the source, exactly, as nobody reads now."""
        while True:
            received = self._received()
            read = received - inq(self.source.fileno())
            if received == self._received():
                return read

    def _received(self) -> int:
        """Bytes that TCP has received at the source; an end of file counts as one."""
        size = _RECEIVED.size
        number: int = _RECEIVED.unpack(self.source.getsockopt(_IPPROTO_TCP, _TCP_INFO, size))[0]
        return number

    def _seen(self) -> int:
        """Bytes that the program has ever seen in this slot."""
        counts = self.fast.accelerator.maps.counts
        return counts[self.at + BYTES] + counts[self.at + PASSED]

    def target(self) -> int:
        """What :meth:`written` will be once all that was redirected is."""
        return self.base + self.redirected() + self.sent

    def refill(self) -> int:
        """Grant what credit allows, and return the bytes in flight."""
        maps = self.fast.accelerator.maps
        grants, at = maps.grants, self.at
        # In this order: so each is at most what belongs to the next.
        acked = self.acked()
        packets = maps.counts[at + PACKETS]
        redirected = self.redirected()
        target = self.base + redirected + self.sent
        if acked >= self.marked_target:
            through = packets if acked >= target else self.marked_packets
            self.marked_target, self.marked_packets = target, packets
            grants[at + GRANT_PACKETS] = through + self.credit // PACKET_COST
        in_flight = target - acked
        grants[at + GRANT_BYTES] = self.start + redirected + max(self.credit - in_flight, 0)
        return in_flight

    def spent(self) -> float:
        """The part of its credit that the direction has used since it was refilled last."""
        maps = self.fast.accelerator.maps
        left = maps.grants[self.at + GRANT_BYTES] - maps.counts[self.at + BYTES]
        packets = maps.grants[self.at + GRANT_PACKETS] - maps.counts[self.at + PACKETS]
        return 1 - min(left, packets * PACKET_COST) / self.credit

    def rings_for_bulk(self, now: float) -> bool:
        """Whether the direction uses up its credit so often and fast that this is bulk.

        To be called for each bell, with the time.
        """
        redirected = self.redirected()
        fast = redirected - self.rung_bytes > BULK_RATE * max(now - self.rung_at, SHORTEST)
        self.bells = self.bells + 1 if fast else 0
        self.rung_at, self.rung_bytes = now, redirected
        return self.bells >= BULK_BELLS

    def stop(self) -> None:
        """Have everything passed from now on."""
        self.fast.accelerator.maps.grants[self.at + GRANT_BYTES] = 0

    def unread(self) -> int:
        """Bytes that were passed and not moved."""
        maps = self.fast.accelerator.maps
        return maps.counts[self.at + PASSED] - maps.grants[self.at + CONSUMED]

    def catch_up(self) -> int:
        """Move what was passed; the result is one of DONE … GONE."""
        grants = self.fast.accelerator.maps.grants
        source, sink = self.source, self.sink
        try:
            for _ in range(TURNS):
                try:
                    count = source.recv_into(_buffer, 0, _MSG_PEEK)
                except BlockingIOError:
                    if self.unread():
                        # A worker of the kernel has it.
                        return WAIT
                    self.refill()
                    return DONE
                if not count:
                    return ENDED
                if self.written() < self.target():
                    return WAIT
                try:
                    sent = sink.send(_buffer[:count])
                except BlockingIOError:
                    return BLOCKED
                self.sent += sent
                self.refill()
                grants[self.at + CONSUMED] += sent
                left = sent
                while left:
                    left -= source.recv_into(_buffer, left)
                if sent < count:
                    return BLOCKED
                if not self.unread():
                    return DONE
        except OSError as error:
            self.fast.flow.reset(error.strerror)
            return GONE
        return MORE

    def again(self) -> bool:
        """Try once more to catch up; False if there is nothing to wait for any more."""
        fast = self.fast
        return not fast.leaving and fast.flow.fast is fast and fast.serve(self)

    def withdraw(self) -> bool:
        """Take the source out of the maps, and what waits in it; False if that is too early."""
        maps = self.fast.accelerator.maps
        source = self.source
        maps.deafen(source)
        try:
            while True:
                try:
                    count = source.recv_into(_buffer)
                except OSError as error:
                    if error.errno != EAGAIN:
                        raise
                    break
                if not count:
                    break
                self.kept.append(bytes(_buffer[:count]))
                maps.grants[self.at + CONSUMED] += count
            seen = self._seen()
            received = self._received() - self.arrived
            if self.unread() or seen != self._seen():
                return False
            if received - seen not in (0, 1):
                raise OSError(EIO, "the kernel gave out other data than it had received")
            maps.leave(source, self.slot)
            if self.unread():
                # A processor that had looked for a filter just before there was one.
                raise OSError(EIO, "data came too late")
        finally:
            maps.hear(source)
        _as_usual(source)
        self.gone = True
        return True

    def restore(self) -> None:
        """Leave what waited in the source to the usual way."""
        if self.kept:
            self.end.keep(b"".join(self.kept))


class FastFlow:
    """A connection on the fast path; :attr:`flow` is the same as it was and will be."""

    __slots__ = ("accelerator", "flow", "lanes", "leaving", "reason", "slot")

    def __init__(self, accelerator: Accelerator, flow: SplicedTcp, slot: int, credit: int) -> None:
        """Enter the maps with both sockets, in ``slot`` and the next one.

        Everything is passed until :meth:`begin`.  OSError if the kernel refuses a socket; what has
        arrived meanwhile may then be held by the client's end.
        """
        self.accelerator = accelerator
        self.flow = flow
        self.slot = slot
        #: On the way back, and why.
        self.leaving = False
        self.reason = ""
        maps = accelerator.maps
        ends = (flow.client, flow.server)
        for end in ends:
            _fix_receive_buffer(end.sock)
            linger_reset(end.sock)
        most_each = [min(credit, _send_buffer(end.other.sock) // 2) for end in ends]
        self.lanes = [
            Lane(self, slot + number, end, most)
            for number, (end, most) in enumerate(zip(ends, most_each, strict=True))
        ]
        for lane in self.lanes:
            lane.stop()
            maps.grants[lane.at + CONSUMED] = maps.counts[lane.at + PASSED]
            maps.grants[lane.at + GENERATION] += 1
        first, second = self.lanes
        try:
            maps.enter(first.source, first.slot)
            try:
                maps.enter(second.source, second.slot)
            except OSError:
                while not first.withdraw():
                    pass
                first.restore()
                raise
        except OSError:
            # One has got its end of file in this moment, for instance.
            for end in ends:
                _as_usual(end.sock)
            raise

    def begin(self) -> None:
        """Take over the sockets' events; forward what has arrived meanwhile, then all."""
        loop = self.flow.shared.loop
        for lane in self.lanes:
            loop.remove(lane.end.fd)
            loop.add(lane.end.fd, EPOLLRDHUP, lane.on_event)
        for lane in self.lanes:
            if lane.again():
                self.accelerator.retry(lane)

    def serve(self, lane: Lane) -> bool:
        """Move what was passed on ``lane``; whether to try again later, for the rest."""
        outcome = lane.catch_up()
        if outcome == WAIT:
            return True
        lane.behind = lane.behind + 1 if outcome == MORE else 0
        if outcome == MORE and lane.behind < MOST_BEHIND:
            self.accelerator.hurry()
            return True
        if outcome in _REASONS:
            self.leave(_REASONS[outcome])
        return False

    def leave(self, why: str) -> None:
        """Begin to go back to the usual way, for ``why``: bulk, full (a send buffer), or end."""
        if log.debug_on:
            log.debug("%s: leaves the fast path: %s", self.flow, why)
        self.leaving = True
        self.reason = why
        loop = self.flow.shared.loop
        for lane in self.lanes:
            lane.stop()
            loop.modify(lane.end.fd, EPOLLET)
        if self.again():
            self.accelerator.retry(self)

    def again(self) -> bool:
        """Try to go back; whether to try once more, as the kernel has not finished."""
        flow = self.flow
        if flow.fast is not self:
            return False
        try:
            for lane in self.lanes:
                # Whoever saw an old grant is done once this had the socket's lock.
                lane.acked()
            if any(lane.written() < lane.target() for lane in self.lanes):
                return True
            for lane in self.lanes:
                if not lane.gone and not lane.withdraw():
                    return True
        except OSError as error:
            flow.reset(error.strerror)
            return False
        loop = flow.shared.loop
        flow.fast = None
        for lane in self.lanes:
            end = lane.end
            lane.restore()
            loop.remove(end.fd)
            end.mask = EPOLLET
            loop.add(end.fd, EPOLLET, end.on_event)
        self.accelerator.left(self)
        flow.settle()
        return False

    def ended(self) -> None:
        """The connection is over, and its sockets will be closed."""
        maps = self.accelerator.maps
        self.flow.fast = None
        for lane in self.lanes:
            maps.leave(lane.source, lane.slot)
        self.accelerator.left(self)


def receive_buffer(sock: socket.socket) -> int:
    """How much memory, in bytes, ``sock`` may use for data that are not read."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def _fix_receive_buffer(sock: socket.socket) -> None:
    """Have the receive buffer stay as it is, at a size that will do.

    What is passed waits there, and will be ours to keep.  It must hold several segments, as the
    window would close with less than one free, and those of loopback have 64 KiB.
    """
    if receive_buffer(sock) < 2 * RECEIVE_BUFFER:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        # The window has a limit of its own, which goes with automatic growth only.
        sock.setsockopt(_IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, RECEIVE_BUFFER)
    else:
        sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, _RCVBUF_LOCK)


def _as_usual(sock: socket.socket) -> None:
    """Have the buffer grow again, and an end be one in good order."""
    sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 0)
    linger_not(sock)


def _send_buffer(sock: socket.socket) -> int:
    """How much memory, in bytes, ``sock`` may use for data to be sent."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
