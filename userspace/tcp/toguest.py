"""Socket to guest: data are peeked, framed and sent, and stay in the socket until acknowledged.

There is no payload buffer of our own.  ``head`` is the sequence number of the first byte in
the socket's receive queue; ``snd_nxt − head`` is where to peek next, which SO_PEEK_OFF
(Linux 6.9 for TCP) keeps for us as data are peeked and discarded.  When the guest
acknowledges, that many bytes are discarded from the queue.  A guest that does not read so
fills the queue, and the kernel closes the window towards the peer: back-pressure for free.

Retransmission is peeking again.  Three duplicate ACKs, or selective acknowledgements beyond
a hole, start a recovery (RFC 6675 without the pipe: a guest is one hop away, and what limits
us is its window).  A time-out rewinds to ``snd_una`` and restarts slowly, as RFC 5681 does.

When the peer's FIN was read as end of file, a FIN takes the sequence number after the last
byte.  It goes out right behind the data, rather than once these were acknowledged, and is
retransmitted like them.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import SO_PEEK_OFF
from passt.syscalls.tcpinfo import inq
from passt.userspace.tcp.base import FlowBase
from passt.userspace.tcp.const import (
    ACK,
    ESTABLISHED,
    FIN,
    INITIAL_RTO,
    MAX_WINDOW,
    PSH,
    PUMP_BYTES,
    PUMP_FRAMES,
    RTO_AFTER_SYN_RETRY,
)

#: Plain numbers: socket's own are enumerations, whose conversion costs as much as a call.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_DISCARD = int(socket.MSG_TRUNC | socket.MSG_DONTWAIT)
_SOL_SOCKET = int(socket.SOL_SOCKET)
_NEVER = float("inf")
#: Instead of a sequence number: nobody asked yet.
_UNKNOWN = -2

#: Duplicate ACKs that signal a loss (RFC 5681, 3.2).
_DUP_ACKS = 3
#: Selective acknowledgements remembered per flow.
_MAX_SACKED = 128


class ToGuest(FlowBase):
    """The half of a flow that sends to the guest."""

    __slots__ = ()

    def pump(self) -> None:
        """Send what the socket has and the guest's window admits, bounded per call."""
        self.pump_queued = False
        if self.state != ESTABLISHED or not self.readable:
            return
        if 0 <= self.fin_seq < self.snd_nxt:
            self.readable = False
            return
        if self.told_ack != self.rcv_nxt:
            self.carry_ack()
            if self.state != ESTABLISHED:
                return
        ctx = self.ctx
        template = self.template
        tx = ctx.link.tx
        header = template.header
        mss = template.mss
        largest = template.max_payload
        recv_into = self.sock.recv_into
        simple = ctx.features.peek_off
        start = nxt = self.snd_nxt
        una = self.snd_una
        window = self.guest_window
        if window > self.cwnd:
            window = self.cwnd
        limit = una + window
        budget = min(PUMP_FRAMES, PUMP_BYTES // largest)
        last = -1 if largest > mss else _UNKNOWN
        while nxt != self.fin_seq:
            room = limit - nxt
            want = largest
            if want > room:
                if room < mss:
                    # Rather wait than cut a small piece off (RFC 9293, 3.8.6.2.1), unless it
                    # is the last one, half of the window, or nothing else is under way.
                    if room <= 0 or (
                        nxt > una and room < window >> 1 and room < self._waiting(nxt)
                    ):
                        break
                    want = room
                else:
                    want = room // mss * mss
            try:
                if simple:
                    count = recv_into(tx[header : header + want], want, _PEEK)
                else:
                    count = self._peek_behind(nxt, want)
            except BlockingIOError:
                # Urgent data may have to wait until what lies before is discarded.
                self.readable = self.drain and not simple and nxt > una
                break
            except OSError as error:
                self.snd_nxt = nxt
                self.reset(f"peek: {error.strerror}")
                return
            if count <= 0:
                self.fin_seq = nxt
                self.eof = True
                break
            short = count < want
            budget -= 1
            if last == _UNKNOWN and not short:
                # Without superframes a full frame does not tell that it is the last one.
                last = nxt + self._waiting(nxt)
            # The push flag ends what is handed over at once: some guests wait for it.
            push = short or count > mss or not budget or nxt + count in (limit, last)
            if not template.data(
                count, nxt, self.ack, ACK | PSH if push else ACK, self.window_field
            ):
                # Not sent, so not counted: peeked again with the next segment from the guest,
                # or when the retransmission timer says so.
                self._seek(nxt)
                break
            nxt += count
            if short and not self.drain:
                self.readable = False
                break
            if not budget:
                self.pump_queued = True
                ctx.loop.again(self.pump)
                break
        if nxt == self.fin_seq:
            self._send_fin(nxt)
            return
        if nxt != start:
            self.snd_nxt = nxt
            if nxt > self.snd_max:
                self.snd_max = nxt
            self.carried()
            if self.rto_deadline == _NEVER:
                self.arm_rto()
        elif self.rto_deadline == _NEVER and (nxt > una or self.readable):
            # Outstanding data, or data kept back by a closed window: probe it in time.
            self.arm_rto()

    def _waiting(self, seq: int) -> int:
        """How many bytes wait in the socket, counted from ``seq``."""
        try:
            return inq(self.fd) - (seq - self.head)
        except OSError:
            # Whatever happened, reading will tell.
            return 0

    def last_words(self) -> None:
        """Send what arrived before the peer's reset, once, as far as the guest takes it now.

        Linux lets it be read after the reset, and so it would be on a direct connection.
        """
        waiting = self._waiting(self.snd_nxt)
        if waiting > 0 and self.fin_seq < 0:
            # Not to the end of the queue, which would look like an end of file.
            window = self.snd_nxt - self.snd_una + waiting
            self.guest_window = min(self.guest_window, window)
            self.readable = True
            self.pump()

    def _send_fin(self, seq: int) -> None:
        """Send FIN at ``seq``: everything before it was sent."""
        self.readable = False
        self.snd_nxt = seq
        self.send_control(FIN | ACK)
        self.snd_nxt = seq + 1
        if self.snd_max < self.snd_nxt:
            self.snd_max = self.snd_nxt
        self.arm_rto()

    def _peek_behind(self, seq: int, want: int) -> int:
        """Peek at ``seq`` without SO_PEEK_OFF: what lies before is read and ignored.

        Such a read ends in front of urgent data, which then looks like an empty queue.
        """
        ctx = self.ctx
        skip = seq - self.head
        header = self.template.header
        target = ctx.link.tx[header : header + want]
        parts = [ctx.void[:skip], target] if skip else [target]
        count = self.sock.recvmsg_into(parts, 0, _PEEK)[0] - skip
        if count <= 0 and skip and (not self.eof or self._waiting(seq) > 0):
            raise BlockingIOError
        return count

    def _seek(self, seq: int) -> None:
        """Continue peeking at ``seq``."""
        if self.ctx.features.peek_off:
            try:
                self.sock.setsockopt(_SOL_SOCKET, SO_PEEK_OFF, max(seq - self.head, 0))
            except OSError as error:
                self.reset(f"SO_PEEK_OFF: {error.strerror}")

    def discard(self) -> bool:
        """Drop acknowledged data from the socket; False if the flow ended instead."""
        end = self.snd_una
        if 0 <= self.fin_seq < end:
            end = self.fin_seq
            self.fin_acked = True
        count = end - self.head
        self.lazy_discards = 0
        while count > 0:
            try:
                done = self.sock.recv_into(self.ctx.void, count, _DISCARD)
            except OSError as error:
                self.reset(f"discard: {error.strerror}")
                return False
            if not done:
                self.reset("acknowledged data vanished from the socket")
                return False
            # Less than asked for in front of urgent data.
            self.head += done
            count -= done
        return True

    def progress(self, advance: int, now: float) -> None:
        """The guest acknowledged ``advance`` new bytes."""
        self.snd_una = una = self.snd_una + advance
        self.dup_acks = 0
        self.retries = 0
        self.rto = RTO_AFTER_SYN_RETRY if self.syn_retried else INITIAL_RTO
        if self.snd_nxt < una:
            # Sent before a rewind, and arrived after all.
            self.snd_nxt = una
            self.readable = True
            if not self.discard():
                return
            self._seek(una)
        if self.cwnd != MAX_WINDOW:
            self.cwnd = min(self.cwnd + advance, MAX_WINDOW)
        if self.sacked:
            self.sacked = tuple((max(a, una), b) for a, b in self.sacked if b > una)
        if self.recover:
            if una >= self.recover:
                self.recover = 0
            else:
                self._recover(partial=True)
        if una < self.snd_max:
            self.rto_deadline = deadline = now + self.rto
            if deadline < self._rto_timer_at:
                self.arm_rto()
        else:
            self.rto_deadline = _NEVER

    def duplicate(self) -> None:
        """The guest repeated an acknowledgement while data are outstanding."""
        self.dup_acks += 1
        if self.recover:
            self._recover(partial=False)
        elif self.dup_acks >= _DUP_ACKS or self._sacked_bytes() >= _DUP_ACKS * self.template.mss:
            self.recover = self.snd_max
            self.retransmit_next = self.snd_una
            self._recover(partial=True)

    def _sacked_bytes(self) -> int:
        return sum(b - a for a, b in self.sacked)

    def _recover(self, *, partial: bool) -> None:
        """Retransmit the next holes; without SACK one segment per partial acknowledgement."""
        una = self.snd_una
        if not self.sacked:
            if partial:
                self._retransmit(una, min(una + self.template.mss, self.snd_nxt))
            return
        at = max(una, self.retransmit_next)
        for start, end in self.sacked:
            if at < start and not self._retransmit(at, start):
                return
            at = max(at, end)
        self.retransmit_next = max(self.retransmit_next, at)

    def _retransmit(self, start: int, end: int) -> bool:
        """Send ``start`` … ``end`` again, a FIN at its end included; False if that failed."""
        if not self.discard():
            return False
        data_end = end if self.fin_seq < 0 else min(end, self.fin_seq)
        template = self.template
        header = template.header
        tx = self.ctx.link.tx
        self._seek(start)
        while start < data_end:
            want = min(template.max_payload, data_end - start)
            try:
                if self.ctx.features.peek_off:
                    count = self.sock.recv_into(tx[header : header + want], want, _PEEK)
                else:
                    count = self._peek_behind(start, want)
            except OSError:
                break
            if count <= 0 or not template.data(
                count, start, self.ack, ACK | PSH, self.window_field
            ):
                break
            self.ctx.retransmissions += 1
            start += count
        self._seek(self.snd_nxt)
        if start < data_end or self.state != ESTABLISHED:
            return False
        if end > self.fin_seq >= 0:
            self.ctx.retransmissions += 1
            return template.control(start, self.ack, FIN | ACK, self.window_field)
        return True

    def selective(self, blocks: tuple[tuple[int, int], ...]) -> None:
        """Take note of SACK ``blocks``: (left, right) edges as on the wire (RFC 2018)."""
        una = self.snd_una
        ranges = list(self.sacked)
        for left, right in blocks:
            start = una + ((left - una) & 0xFFFFFFFF)
            length = (right - left) & 0xFFFFFFFF
            if length and start + length <= self.snd_max:
                ranges.append((start, start + length))
        ranges.sort()
        merged: list[tuple[int, int]] = []
        for start, end in ranges:
            if merged and start <= merged[-1][1]:
                if end > merged[-1][1]:
                    merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self.sacked = tuple(merged[:_MAX_SACKED])

    def rewind(self) -> None:
        """Send everything from ``snd_una`` again: forget what may have arrived."""
        self.snd_nxt = self.snd_una
        self.recover = 0
        self.sacked = ()
        self.dup_acks = 0
        self.readable = True
        if self.discard():
            self._seek(self.snd_una)

    def resend(self) -> None:
        """The retransmission timer ran out on an established connection."""
        if self.snd_una == self.snd_max and not self.readable:
            return
        self.ctx.retransmissions += 1
        self.rewind()
        self.cwnd = 2 * self.template.max_payload
        if self.guest_window:
            self.pump()
        else:
            self._probe()

    def _probe(self) -> None:
        """Send one byte, or a FIN, beyond a closed window (RFC 9293, 3.8.6.1)."""
        window = self.guest_window
        self.guest_window = 1
        self.pump()
        self.guest_window = window
        if self.state == ESTABLISHED and self.rto_deadline == _NEVER and self.readable:
            self.arm_rto()

    def carry_ack(self) -> None:
        """Bring ``ack`` and ``window_field`` up to date; the other half knows how."""
