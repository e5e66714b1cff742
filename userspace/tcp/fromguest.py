"""Guest to socket: payload goes out at once; what the socket does not take waits, bounded.

The guest is only offered what can be stored: the window is the least of the peer's window,
the room in the socket (:mod:`passt.userspace.tcp.window`) and a share of the guest's own
transmit queue, whose overflow is a loss like any other.  Its right edge never moves left.
In-order data that the socket refuses nevertheless goes to ``tail`` and is sent when the
socket becomes writable; nothing in order is dropped.  Segments beyond a gap are kept within
the window and answered with a duplicate ACK that names them (RFC 5681, RFC 2018).

**Which number is acknowledged.**  Towards the guest we should look like the real path, so
the wanted number is what the *peer* acknowledged (``tcpi_bytes_acked``).  For a peer on this
machine, for bulk transfer (the kernel grows its buffer only if it is kept full) and once
either side has finished, it is what the socket took.  It never moves back.

**When.**  Acknowledgements wait for the end of a batch of frames, and up to 10 ms for data
to ride on; two segments' worth, a guest close to its limit, and anything out of order are
answered at the end of the batch.
"""

from __future__ import annotations

import socket

from passt.syscalls import tcpinfo
from passt.userspace.tcp.const import (
    ACK,
    ACK_DELAY,
    BULK_FACTOR,
    ESTABLISHED,
    INITIAL_WINDOW,
    LOW_RTT_US,
    MAX_HELD_BYTES,
    MAX_OUT_OF_ORDER,
    MAX_WINDOW,
    RECHECK_MAX,
    RECHECK_MIN,
)
from passt.userspace.tcp.toguest import ToGuest
from passt.userspace.tcp.window import room, usable
from passt.userspace.wire.tcp_options import MAX_SACK_BLOCKS, sack_option

_NOSIGNAL = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_NEVER = float("inf")


class FromGuest(ToGuest):
    """The half of a flow that receives from the guest."""

    __slots__ = ()

    def payload(self, buf: memoryview, seq: int, start: int, end: int, *, fin: bool) -> None:
        """Take payload ``buf[start:end]``, which starts at ``seq``, and perhaps a FIN after it."""
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
                self._gap(buf, nxt + distance, start, end, fin=fin)
                return
        size = end - start
        space = self.rcv_edge + (1 << self.our_scale) - nxt
        if size > space:
            size = max(space, 0)
            end = start + size
            fin = False
            self.ack_now = True
        self.touch()
        if self.shut or self.fin_from_guest():
            # Payload after a FIN: the guest contradicts itself.
            self.ack_now = True
            return
        if size:
            if self.tail:
                self.tail += buf[start:end]
            else:
                try:
                    sent = self.sock.send(buf[start:end], _NOSIGNAL)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.reset(f"send: {error.strerror}")
                    return
                if sent < size:
                    self.tail += buf[start + sent : end]
            self.rcv_nxt = nxt + size
            self.unacked += size
        if fin:
            self.fin_at = self.rcv_nxt
        if self.out_of_order:
            self._fill()
        if self.rcv_nxt == self.fin_at:
            self._finish()

    def fin_from_guest(self) -> bool:
        """The guest's FIN is next, or was passed: no more payload can follow."""
        return 0 <= self.fin_at <= self.rcv_nxt

    def _gap(self, buf: memoryview, seq: int, start: int, end: int, *, fin: bool) -> None:
        """Keep a segment that lies beyond a gap, and ask for what is missing."""
        self.ack_now = True
        self.touch()
        size = end - start
        ctx = self.ctx
        if seq + size > self.rcv_edge + (1 << self.our_scale):
            return
        if fin and self.fin_at < 0:
            self.fin_at = seq + size
        if size and len(self.out_of_order) < MAX_OUT_OF_ORDER and ctx.held + size <= MAX_HELD_BYTES:
            pieces = self.out_of_order
            unordered = bool(pieces) and pieces[-1][0] > seq
            pieces.append((seq, bytes(buf[start:end])))
            if unordered:
                pieces.sort(key=_start)
            ctx.held += size
        # One duplicate per segment is what lets the guest count three of them.
        self.ack = self._acceptable()
        self.send_ack()

    def _fill(self) -> None:
        """Move pieces that are in order now to the tail, and from there to the socket."""
        pieces = self.out_of_order
        ctx = self.ctx
        done = 0
        nxt = self.rcv_nxt
        for seq, data in pieces:
            if seq > nxt:
                break
            done += 1
            ctx.held -= len(data)
            new = seq + len(data) - nxt
            if new > 0:
                self.tail += data[-new:]
                nxt += new
        if done:
            del pieces[:done]
            self.unacked += nxt - self.rcv_nxt
            self.rcv_nxt = nxt
            self.ack_now = True
            self.flush_tail()

    def flush_tail(self) -> None:
        """Give the socket what it did not take before; then a FIN, if that was the end."""
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
            self.touch()
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
        self.touch()

    # Acknowledging.

    def _acceptable(self) -> int:
        """The highest number that may be acknowledged: all that is in the socket."""
        return self.rcv_nxt - len(self.tail) if self.ack_all else self.ack

    def carry_ack(self) -> None:
        """Bring ``ack`` and ``window_field`` up to date for a segment with data.

        Without system calls where the last :meth:`refresh` still tells enough.
        """
        if self.ack_all:
            self.ack = ack = self.rcv_nxt - len(self.tail)
            self.window_field = self._field(ack, self.rcv_edge)
        else:
            self.refresh()

    def carried(self) -> None:
        """A segment with the current acknowledgement went out: nothing is owed any more."""
        self.told_ack = self.ack
        self.told_field = self.window_field
        if self.ack == self.rcv_nxt and self.window_field:
            self.unacked = 0
            self.ack_now = False
            self.ack_deadline = _NEVER

    def refresh(self) -> None:
        """Ask the kernel what the peer has, and compute acknowledgement and window."""
        sock = self.sock
        ctx = self.ctx
        features = ctx.features
        try:
            (
                _, _, _, _, last_sent_ms, rtt, acked, min_rtt, rate, peer_window,
            ) = tcpinfo.read(sock)  # fmt: skip
            memory = tcpinfo.meminfo(sock)
            outstanding = tcpinfo.outq(self.fd)
        except OSError as error:
            self.reset(f"TCP_INFO: {error.strerror}")
            return
        if memory is None:
            sndbuf = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            space = max(usable(sndbuf) - outstanding, 0)
        else:
            sndbuf, queued = memory
            space = room(sndbuf, queued, outstanding, self.segment_size)
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
            edge = ack + peer_window
        if ack + MAX_WINDOW < edge:
            edge = ack + MAX_WINDOW
        share = ctx.upload_share(size)
        if taken + share < edge:
            edge = taken + share
        if self.state != ESTABLISHED:
            edge = max(edge, ack + INITIAL_WINDOW)
        self.window_field = self._field(ack, edge)

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
        # The edge stands still; rounding up keeps it from moving left.
        return min((offered - ack + (1 << scale) - 1) >> scale, 0xFFFF)

    def send_ack(self) -> None:
        """Send the current acknowledgement, with SACK blocks if there are gaps."""
        options = b""
        if self.out_of_order and self.sack_ok:
            options = sack_option(self._ranges())
        self.send_control(ACK, options)

    def _ranges(self) -> list[tuple[int, int]]:
        """What lies beyond gaps, most recent first as far as known (RFC 2018, 4)."""
        ranges: list[tuple[int, int]] = []
        for seq, data in self.out_of_order:
            end = seq + len(data)
            if ranges and seq <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
            else:
                ranges.append((seq, end))
        ranges = ranges[-MAX_SACK_BLOCKS:]
        ranges.reverse()
        return [(a & 0xFFFFFFFF, b & 0xFFFFFFFF) for a, b in ranges]

    def settle_received(self) -> None:
        """End of a batch: acknowledge now, or later, what came in it."""
        if not self.unacked and not self.ack_now:
            return
        size = 2 * self.segment_size
        if self.ack_now or self.unacked >= size or self.rcv_edge - self.rcv_nxt < size:
            forced = self.ack_now
            self.refresh()
            if self.state != ESTABLISHED:
                return
            if forced or self.ack != self.told_ack or self.window_field != self.told_field:
                self.send_ack()
            self.unacked = 0
            self._recheck_later()
        elif self.rcv_nxt != self.told_ack:
            self.arm_ack(self.ctx.loop.now + ACK_DELAY)

    def ack_expired(self) -> None:
        """Nothing carried the acknowledgement: look at the peer and send what changed."""
        self.refresh()
        if self.state != ESTABLISHED:
            return
        if self.ack != self.told_ack or self.window_field != self.told_field or self.ack_now:
            self.send_ack()
            self.ack_wait = RECHECK_MIN
        self._recheck_later()

    def _recheck_later(self) -> None:
        """Look again while the peer lags behind or the guest has (almost) no window."""
        if self.told_ack != self.rcv_nxt or self.rcv_edge - self.rcv_nxt < self.segment_size:
            self.arm_ack(self.ctx.loop.now + self.ack_wait)
            self.ack_wait = min(self.ack_wait * 2, RECHECK_MAX)
        else:
            self.ack_wait = RECHECK_MIN


def _start(piece: tuple[int, bytes]) -> int:
    return piece[0]
