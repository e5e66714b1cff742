"""Guest to socket: payload goes out at once; what the socket does not take waits, bounded.

The guest is only offered what can be stored: the window is the least of the peer's window,
the room in the socket (:mod:`passt.userspace.tcp.window`) and a share of the guest's own
transmit queue, whose overflow is a loss like any other.  Its right edge never moves left.
In-order data that the socket refuses nevertheless goes to ``tail`` and is sent when the
socket becomes writable; nothing in order is dropped.  Segments beyond a gap are kept within
the window and answered with a duplicate ACK that names them (RFC 5681, RFC 2018).  Both count
(:mod:`passt.userspace.flow.budget`): when memory is short windows shrink to a segment, and when
none is left data are dropped without acknowledgement.

**Which number is acknowledged.**  Towards the guest we should look like the real path, so
the wanted number is what the *peer* acknowledged (``tcpi_bytes_acked``).  For a peer on this
machine, for bulk transfer (the kernel grows its buffer only if it is kept full) and once
either side has finished, it is what the socket took.  It never moves back.

**When.**  Acknowledgements wait for the end of a batch of frames, and up to 10 ms for data
to ride on; two segments' worth, a guest close to its limit, and anything out of order are
answered at the end of the batch.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.syscalls import tcpinfo
from passt.userspace.tcp.const import (
    ACK,
    ACK_DELAY,
    BULK_FACTOR,
    ESTABLISHED,
    FLOW_EVENTS,
    INITIAL_WINDOW,
    LOW_RTT_US,
    MAX_WINDOW,
    RECHECK_MAX,
    RECHECK_MIN,
)
from passt.userspace.tcp.reassembly import PIECE_COST, Reassembly
from passt.userspace.tcp.toguest import ToGuest
from passt.userspace.tcp.window import room, usable
from passt.userspace.wire.tcp_options import MAX_SACK_BLOCKS, sack_option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.syscalls.tcpinfo import Info

_NOSIGNAL = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_NEVER = float("inf")
#: Index of that field in what :func:`tcpinfo.read` returns.
_BYTES_ACKED = 6


class FromGuest(ToGuest):
    """The half of a flow that receives from the guest."""

    __slots__ = ()

    def payload(self, buf: memoryview, seq: int, start: int, end: int, fin: int) -> None:
        """Take payload ``buf[start:end]``, which starts at ``seq``, and a FIN after it if any."""
        nxt = self.rcv_nxt
        distance = (seq - nxt) & 0xFFFFFFFF
        if distance:
            if distance >= 0x80000000:
                # Starts before what we expect: only the new end counts, if there is one.
                old = 0x100000000 - distance
                if old > end - start or (old == end - start and not fin):
                    self.ack_now = True
                    self.touch()
                    return
                start += old
            else:
                self._gap(buf, nxt + distance, start, end, fin)
                return
        size = end - start
        space = self.rcv_edge - nxt
        if size > space:
            size = max(space, 0)
            end = start + size
            fin = 0
            self.ack_now = True
        self.touch()
        if 0 <= self.fin_at <= nxt:
            # Payload after a FIN: the guest contradicts itself.
            self.ack_now = True
            return
        if size:
            if self.tail:
                sent = 0
            else:
                try:
                    sent = self.sock.send(buf[start:end], _NOSIGNAL)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.reset(f"send: {error.strerror}")
                    return
            if sent < size and not self._keep(buf[start + sent : end]):
                # No memory for the rest: the guest has to send it again.
                size = sent
                fin = 0
                self.ack_now = True
            self.rcv_nxt = nxt + size
            self.unacked += size
        if fin:
            self.fin_at = self.rcv_nxt
        if self.out_of_order:
            self._fill()
        if self.rcv_nxt == self.fin_at:
            self._finish()

    def _keep(self, data: memoryview) -> bool:
        """Add ``data``, which are in order, to the tail, if there is memory for them."""
        budget = self.ctx.budget
        if not budget.allows(len(data), self.holds()):
            return False
        budget.hold(len(data))
        self.tail += data
        return True

    def _gap(self, buf: memoryview, seq: int, start: int, end: int, fin: int) -> None:
        """Keep a segment that lies beyond a gap, and ask for what is missing."""
        self.ack_now = True
        self.touch()
        size = end - start
        budget = self.ctx.budget
        if seq + size > self.rcv_edge:
            return
        if fin and self.fin_at < 0:
            self.fin_at = seq + size
        if size and budget.allows(size + PIECE_COST, self.holds()):
            pieces = self.out_of_order
            if pieces is None:
                pieces = self.out_of_order = Reassembly()
            before = pieces.cost
            pieces.insert(seq, buf[start:end])
            budget.hold(pieces.cost - before)
        # One duplicate per segment is what lets the guest count three of them.
        if self.ack_all:
            self.ack = self.rcv_nxt - len(self.tail)
            self.window_field = self._field(self.ack, self.rcv_edge)
        self.send_ack()

    def _fill(self) -> None:
        """Move what is in order now to the tail, and from there to the socket."""
        pieces = self.out_of_order
        if pieces is None:
            return
        before = pieces.cost
        found, _ = pieces.take(self.rcv_nxt)
        self.ctx.budget.hold(pieces.cost - before)
        self.ack_now = True
        for piece in found:
            # No more than has just been let go.
            self.ctx.budget.hold(len(piece))
            self.tail += piece
            self.rcv_nxt += len(piece)
        if found:
            self.flush_tail()

    def flush_tail(self) -> None:
        """Give the socket what it did not take before; then a FIN, if that was the end.

        The caller sees to the acknowledgement.
        """
        tail = self.tail
        if tail:
            try:
                sent = self.sock.send(tail, _NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                self.reset(f"send: {error.strerror}")
                return
            del tail[:sent]
            self.ctx.budget.hold(-sent)
        if not tail and self.rcv_nxt == self.fin_at:
            self._finish()

    def _finish(self) -> None:
        """Pass the guest's FIN on, once everything before it is in the socket."""
        if self.tail or self.shut:
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.reset(f"shutdown: {error.strerror}")
            return
        self.shut = True
        self.rcv_nxt += 1
        self.ack_all = True
        self.ack_now = True

    # Acknowledging.

    def carry_ack(self) -> None:
        """Bring ``ack`` and ``window_field`` up to date for a segment with data.

        The edge of the window stays where the last :meth:`refresh` put it.
        """
        ack = self.rcv_nxt - len(self.tail)
        if not self.ack_all:
            try:
                acked = tcpinfo.read(self.sock)[_BYTES_ACKED]
            except OSError as error:
                self.reset(f"TCP_INFO: {error.strerror}")
                return
            ack = max(self.ack, min(ack, self.ack_base + acked))
        self.ack = ack
        self.window_field = self._field(ack, self.rcv_edge)

    def refresh(self, info: Info | None = None) -> None:
        """Ask the kernel what the peer has, and compute acknowledgement and window.

        ``info`` is what it just said, of a connection on which nothing was sent yet.
        """
        sock = self.sock
        ctx = self.ctx
        features = ctx.features
        try:
            (
                _, _, _, _, last_sent_ms, rtt, acked, min_rtt, rate, peer_window,
            ) = info or tcpinfo.read(sock)  # fmt: skip
            memory = tcpinfo.meminfo(sock)
            outstanding = 0 if info else tcpinfo.outq(self.fd)
            if memory is None:
                sndbuf = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
                space = max(usable(sndbuf) - outstanding, 0)
            else:
                sndbuf, queued = memory
                space = room(sndbuf, queued, outstanding, self.segment_size)
        except OSError as error:
            self.reset(f"TCP_INFO: {error.strerror}")
            return
        backlog = len(self.tail)
        taken = self.rcv_nxt - backlog
        self.ack_all = all_of_it = (
            self.peer_local
            or self.shut
            or self.eof
            or not features.bytes_acked
            or not features.delivery_rate
            or min_rtt <= LOW_RTT_US
            or sndbuf * 1000000 <= BULK_FACTOR * rtt * rate
        )
        ack = taken if all_of_it else max(self.ack, min(taken, self.ack_base + acked))
        self.ack = ack
        size = self.segment_size
        space = max(space - backlog, 0)
        if space < size and outstanding and last_sent_ms < 10 * (rtt // 1000 + 1):
            # Rather nothing than a silly window: room will be made, and then announced.
            space = 0
        edge = taken + space
        if features.snd_wnd and ack + peer_window < edge:
            # One segment may wait in the socket for a peer with a small window: the guest would
            # hold it back for that window, and send it by its probe timer only, after 200 ms.
            # A unit more, as the field is rounded down.
            enough = self.enough
            waiting = enough + (1 << self.our_scale) if outstanding < enough else 0
            edge = min(edge, max(ack + peer_window, taken + waiting))
        if ack + MAX_WINDOW < edge:
            edge = ack + MAX_WINDOW
        share = ctx.upload_share(size)
        if taken + share < edge:
            edge = taken + share
        if self.state != ESTABLISHED:
            edge = max(edge, ack + INITIAL_WINDOW)
        self.window_field = self._field(ack, edge)
        self.low_water = half = (self.rcv_edge - self.rcv_nxt) >> 1
        if half > self.enough:
            self.enough = min(half, size)

    def _field(self, ack: int, edge: int) -> int:
        """The 16-bit window field for ``edge``; raises the offered edge if it grew."""
        scale = self.our_scale
        offered = self.rcv_edge
        if edge > offered:
            field = (edge - ack) >> scale
            if field > 0xFFFF:
                field = 0xFFFF
            if ack + (field << scale) >= offered:
                self.rcv_edge = ack + (field << scale)
                return field
        # The edge stands still, but for rounding, which may not move it left.  Only a FIN can
        # be acknowledged beyond it.
        field = min((offered - ack + (1 << scale) - 1) >> scale, 0xFFFF)
        if field <= 0:
            return 0
        edge = ack + (field << scale)
        if edge > offered:
            self.rcv_edge = edge
        return field

    def send_ack(self) -> None:
        """Send the current acknowledgement, with SACK blocks if there are gaps."""
        options = b""
        if self.out_of_order and self.sack_ok:
            options = sack_option(self.out_of_order.blocks(MAX_SACK_BLOCKS))
        self.send_control(ACK, options)

    def settle_received(self) -> None:
        """End of a batch: acknowledge now, or later, what came in it."""
        unacked = self.unacked
        left = self.rcv_edge - self.rcv_nxt
        if self.ack_now or (
            unacked and (unacked >= 2 * self.segment_size or left < self.low_water)
        ):
            if unacked >= 2 * self.segment_size and self not in self.ctx.uploading:
                self.ctx.uploads_on(self)
            self._tell(forced=self.ack_now)
        elif self.told_ack != self.rcv_nxt:
            self.arm_ack(self.ctx.loop.now + (ACK_DELAY if unacked else self.ack_wait))
        elif left < self.enough:
            self.arm_ack(self.ctx.loop.now + self.ack_wait)

    def ack_expired(self) -> None:
        """Nothing carried the acknowledgement, or there was none: look at the peer again."""
        self.watching = False
        self._tell(forced=self.ack_now)

    def room_again(self) -> None:
        """The kernel reports room in the socket, as it does along with every other event."""
        waiting = self.watching
        if self.tail:
            waiting = True
            self.flush_tail()
            if self.state != ESTABLISHED:
                return
        if waiting:
            self._tell(forced=self.ack_now)

    def _tell(self, *, forced: bool) -> None:
        """Send what changed; look again while the peer lags or the window is next to nothing."""
        if self.shut:
            self._tell_end(forced=forced)
            return
        self.refresh()
        if self.state != ESTABLISHED:
            return
        if forced or self.ack != self.told_ack or self.window_field != self.told_field:
            self.send_ack()
            self.ack_wait = RECHECK_MIN
        self.unacked = 0
        closed = self.rcv_edge - self.rcv_nxt < self.enough
        if not closed:
            self.watching = False
            if self.told_ack == self.rcv_nxt:
                self.ack_wait = RECHECK_MIN
                return
        elif not self.watching:
            # The kernel reports room only to those who were refused, or who ask while there is
            # none, and then not before a third of the buffer is free.  What comes earlier, and
            # what the peer's window does, is for the timer.  So this is asked once per timer.
            self.watching = True
            self.ctx.loop.modify(self.fd, FLOW_EVENTS)
        self.arm_ack(self.ctx.loop.now + self.ack_wait)
        self.ack_wait = min(self.ack_wait * 2, RECHECK_MAX)

    def _tell_end(self, *, forced: bool) -> None:
        """Acknowledge all that the guest had to send: no window matters any more."""
        self.watching = False
        self.ack = ack = self.rcv_nxt
        self.window_field = self._field(ack, self.rcv_edge)
        if forced or ack != self.told_ack:
            self.send_ack()
        self.unacked = 0
