"""A TCP flow: handshakes with the guest, its segments, events of its socket, and its end.

States, and what moves them::

    guest connects                         host connects
    CONNECTING   socket connecting         SYN_SENT   SYN sent to the guest
        | writable, no error                   | SYN|ACK
    SYN_RCVD     SYN|ACK sent                  |
        | ACK                                  |
        +------------> ESTABLISHED <-----------+
                           | both FINs passed on and acknowledged, or a reset
                         CLOSED

Half-closed connections stay ESTABLISHED: ``shut`` says that the guest's FIN was passed on,
``fin_seq`` that the peer's was read, ``fin_acked`` that the guest acknowledged it.

The socket is registered edge-triggered, once; ``readable`` remembers what an edge said.
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import bare_socket as socket
from passt.syscalls import tcpinfo
from passt.userspace.flow.nat import unmap
from passt.userspace.flow.sockname import packed
from passt.userspace.loop import (
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
)
from passt.userspace.tcp import unreachable
from passt.userspace.tcp.const import (
    ACK,
    CLOSED,
    CONNECTING,
    DEFAULT_MSS,
    ESTABLISHED,
    FIN,
    INITIAL_RTO,
    LAZY_DISCARDS,
    MASK,
    MAX_RETRIES,
    MIN_MSS,
    RST,
    RTO_AFTER_SYN_RETRY,
    SYN,
    SYN_RCVD,
    SYN_SENT,
)
from passt.userspace.tcp.context import peer_scale
from passt.userspace.tcp.fromguest import FromGuest
from passt.userspace.wire.tcp_options import parse_options, syn_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.syscalls.tcpinfo import Info

_NEVER = float("inf")


class TcpFlow(FromGuest):
    """One connection between the guest and a socket."""

    __slots__ = ()

    # Handshakes.

    def learn_options(self, buf: memoryview, start: int, end: int) -> None:
        """Take MSS, scale and SACK-permitted from the guest's SYN or SYN|ACK."""
        options = parse_options(buf, start, end)
        self.guest_mss = max(options.mss, MIN_MSS) if options.mss >= 0 else DEFAULT_MSS
        self.sack_ok = options.sack_permitted
        if 0 <= options.window_scale <= 14:
            self.guest_scale = options.window_scale
            self.scaling = True
        self.template.set_mss(min(self.guest_mss, self.ctx.largest_segment(self)))

    def connected(self) -> None:
        """The socket is connected: answer the guest's SYN."""
        try:
            if not self.peer_local:
                self.peer_local = self.sock.getsockname()[0] == self.sock.getpeername()[0]
            info = tcpinfo.read(self.sock)
            mss = self.ctx.announced_mss(self)
        except OSError as error:
            self.reset(f"connected: {error.strerror}")
            return
        if self.scaling:
            self.our_scale = peer_scale(info)
        self.segment_size = min(mss, max(self.guest_mss, MIN_MSS))
        self.state = SYN_RCVD
        self._send_syn(info)

    def offer(self, peer: bytes) -> None:
        """A connection of ``peer`` was accepted on the host: send the guest a SYN."""
        self.state = SYN_SENT
        try:
            if not self.peer_local:
                self.peer_local = unmap(packed(self.sock.getsockname())) == peer
            info = tcpinfo.read(self.sock)
        except OSError as error:
            self.reset(f"accepted: {error.strerror}")
            return
        self.our_scale = peer_scale(info)
        self._send_syn(info)

    def _send_syn(self, info: Info | None = None) -> None:
        """Send our SYN or SYN|ACK, the same each time, and wait for the answer.

        ``info`` is what the kernel just said of the socket, if it was asked.
        """
        scale: int | None = self.our_scale
        sack = True
        if self.state == SYN_RCVD:
            # Only what the guest offered (RFC 7323, 2.2; RFC 2018, 2).
            scale = self.our_scale if self.scaling else None
            sack = self.sack_ok
        try:
            mss = self.ctx.announced_mss(self)
        except OSError as error:
            self.reset(f"handshake: {error.strerror}")
            return
        self.snd_nxt = isn = self.snd_una
        self._handshake_window(info)
        if self.state == CLOSED:
            return
        flags = SYN | ACK if self.state == SYN_RCVD else SYN
        self.send_control(flags, syn_options(mss, scale, sack))
        self.snd_nxt = self.snd_max = isn + 1
        self.head = isn + 1
        self.arm_handshake()

    def _handshake_window(self, info: Info | None) -> None:
        """Offer an initial window: unscaled in a SYN (RFC 7323, 2.2)."""
        scale, self.our_scale = self.our_scale, 0
        self.refresh(info)
        self.our_scale = scale
        self.ack_all = self.peer_local

    def arm_handshake(self) -> None:
        """Time-out of the handshake's current try: linear first, then doubling."""
        self.rto = self.ctx.syn_timeout(self.retries)
        self.arm_rto()

    def establish(self) -> None:
        """The handshake with the guest is complete."""
        self.state = ESTABLISHED
        self.answered = True
        self.syn_retried = self.retries > 0
        self.retries = 0
        self.rto = RTO_AFTER_SYN_RETRY if self.syn_retried else INITIAL_RTO
        self.disarm_rto()
        # What a SYN said was not scaled; from now on the field is.
        self.window_field = self._field(self.ack, self.rcv_edge)
        self._seek(self.head)
        self.touch()

    # Segments.

    def segment(
        self,
        buf: memoryview,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        options: int,
        start: int,
        end: int,
    ) -> None:
        """Handle a segment of the guest: options at ``options``, payload ``buf[start:end]``."""
        self.tap_active = self.active = True
        if self.state != ESTABLISHED:
            self._handshake(buf, seq, ack, flags, window, options, start, end)
            return
        if flags & (RST | SYN):
            self._exception(seq, flags)
            return
        if not flags & ACK:
            return
        before = (seq - self.rcv_nxt) & MASK >= 0x80000000
        if before and end - start <= 1 and not flags & FIN:
            self._keepalive(seq, ack, window)
        advance = (ack - self.snd_una) & MASK
        outstanding = self.snd_max - self.snd_una
        if advance > outstanding:
            if advance < 0x80000000:
                # Acknowledges what was never sent (RFC 9293, 3.10.7.4).
                self.ack_now = True
                self.touch()
                return
        else:
            if start != options:
                self._sack(buf, options, start)
            offered = window << self.guest_scale
            same_window = offered == self.guest_window
            if advance or (seq - self.wl1) & MASK < 0x80000000:
                self.wl1 = seq
                if not same_window:
                    self._window(offered)
            if advance:
                self.progress(advance, self.ctx.loop.now)
                self.touch()
            elif outstanding:
                if window == 0:
                    self._window_closed()
                elif end == start and same_window and not flags & FIN and not before:
                    self.duplicate()
            if self.state != ESTABLISHED:
                return
        if end > start or flags & FIN:
            self.payload(buf, seq, start, end, flags & FIN)

    def _sack(self, buf: memoryview, options: int, end: int) -> None:
        blocks = parse_options(buf, options, end).sack
        if blocks and self.sack_ok:
            self.selective(blocks)

    def _window(self, offered: int) -> None:
        """The guest offers another window than before: there may be something to send."""
        if not self.guest_window:
            # What was a probe's interval is none for data.
            self.rto = RTO_AFTER_SYN_RETRY if self.syn_retried else INITIAL_RTO
            self.rto_deadline = _NEVER
        self.guest_window = offered
        self.touch()

    def _window_closed(self) -> None:
        """The guest closed its window on data in flight: they were not taken, probe later."""
        self.retries = 0
        if self.snd_nxt > self.snd_una:
            self.rewind()
            if self.rto_deadline == _NEVER:
                self.arm_rto()

    def _keepalive(self, seq: int, ack: int, window: int) -> None:
        """A segment with an old sequence number and next to nothing in it asks for an ACK.

        One in front of what we expect is a keep-alive (RFC 9293, 3.8.4), whose window counts:
        it may be the only one to tell of it.
        """
        self.ack_now = True
        self.touch()
        if (seq + 1 - self.rcv_nxt) & MASK or (ack - self.snd_una) & MASK:
            return
        offered = window << self.guest_scale
        if offered != self.guest_window:
            self._window(offered)
        if not self.keeps_alive:
            self.keeps_alive = True
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            except OSError:
                # Reset meanwhile; the event will say so.
                pass

    def _exception(self, seq: int, flags: int) -> None:
        """RST or SYN on an established connection (RFC 9293, 3.10.7.4; RFC 5961)."""
        if flags & RST:
            # From what the guest knows to be acknowledged to the end of what it was offered.
            if (seq - self.told_ack) & MASK <= max(self.rcv_edge, self.rcv_nxt) - self.told_ack:
                self.abort("reset by guest")
            return
        # A restarted guest answers this with a reset, and then tries again.
        self.ack_now = True
        self.touch()

    def _handshake(
        self,
        buf: memoryview,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        options: int,
        start: int,
        end: int,
    ) -> None:
        """A segment before the connection is established."""
        if self.state == CONNECTING:
            if flags & RST:
                self.abort("reset by guest")
            return
        answered = flags & ACK and (ack - self.snd_nxt) & MASK == 0
        if flags & RST:
            if self.state == SYN_RCVD or answered:
                self.abort("reset by guest")
            return
        if self.state == SYN_RCVD:
            if flags & SYN and not flags & ACK:
                self._send_syn()
                return
            if not answered:
                self.reset("unexpected segment in handshake")
                return
            self.guest_window = window << self.guest_scale
        else:
            if not answered or not flags & SYN:
                self.reset("unexpected answer to SYN")
                return
            self._accepted_by_guest(buf, seq, window, options, start)
            if self.state == CLOSED:
                return
            # The SYN takes one sequence number; what follows it starts behind.
            seq = (seq + 1) & MASK
        self.snd_una = self.snd_nxt
        self.wl1 = seq
        self.establish()
        if not self.inbound:
            self.segment(buf, seq, ack, flags, window, options, start, end)
        else:
            # First of all an empty ACK, even with data to send: some servers wait for it.
            self.refresh()
            self.send_ack()
            if end > start or flags & FIN:
                self.payload(buf, seq, start, end, flags & FIN)

    def _accepted_by_guest(
        self, buf: memoryview, seq: int, window: int, options: int, start: int
    ) -> None:
        """The guest's SYN|ACK to a connection from the host."""
        self.learn_options(buf, options, start)
        if not self.scaling:
            self.our_scale = 0
        self.guest_window = window
        self.rcv_nxt = self.ack = self.told_ack = self.ack_base = seq + 1
        # What the SYN offered holds, counted from its acknowledgement.
        self.rcv_edge = seq + 1 + self.told_field
        try:
            self.segment_size = min(self.ctx.announced_mss(self), self.guest_mss)
        except OSError as error:
            self.reset(f"handshake: {error.strerror}")

    # Events.

    def on_event(self, events: int) -> None:
        """The socket reported ``events``."""
        self.active = True
        if events & EPOLLERR:
            self._socket_error()
            if self.state == CLOSED:
                return
        if self.state != ESTABLISHED:
            self._handshake_event(events)
            return
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLPRI):
            self.drain = True
            if events & (EPOLLRDHUP | EPOLLHUP):
                self.eof = self.ack_all = True
        if events & EPOLLOUT and (self.tail or self.watching):
            self.room_again()
            if self.shut and self.fin_acked and self.state == ESTABLISHED:
                self.close("finished")
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP):
            self.readable = True
            self.pump()

    def _handshake_event(self, events: int) -> None:
        if events & EPOLLHUP:
            self.reset("hang-up in handshake")
            return
        if events & EPOLLRDHUP:
            self.eof = self.drain = True
        if events & (EPOLLIN | EPOLLRDHUP):
            # For later: there will be no other event for it.
            self.readable = True
        if self.state == CONNECTING and events & EPOLLOUT:
            self.connected()

    def _socket_error(self) -> None:
        try:
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as error:
            number = error.errno or errno.EIO
        if number:
            if self.state == CONNECTING:
                unreachable.report(self, number)
            elif self.state == ESTABLISHED:
                self.last_words()
            self.reset(os.strerror(number))

    def settle(self) -> None:
        """The batch that brought segments for this flow is over."""
        self.touched = False
        if self.state != ESTABLISHED:
            return
        if self.snd_una != self.head and not self._acknowledged():
            return
        if self.readable and not self.pump_queued:
            self.pump()
            if self.state != ESTABLISHED:
                return
        self.settle_received()
        if self.shut and self.fin_acked and self.state == ESTABLISHED:
            self.close("finished")

    def _acknowledged(self) -> bool:
        """Discard what the guest acknowledged, now or later; False if the flow ended instead.

        Little data may stay for a few exchanges, which saves a system call in each, if nothing
        else is in the queue: the end of a large buffer would keep all of its memory in use,
        and so the window towards the peer closed.  The guest must have answered, too: discards
        make the kernel acknowledge, and a peer with Nagle's algorithm may wait for that.
        """
        done = self.snd_una == self.snd_max
        if (
            done
            and self.unacked
            and self.lazy_discards
            and not self.eof
            and self.snd_una - self.head <= self.ctx.features.lazy_discard
        ):
            self.lazy_discards -= 1
            return True
        if not self.discard():
            return False
        if done and not self.readable:
            self.lazy_discards = LAZY_DISCARDS
        return True

    def rto_expired(self) -> None:
        """Nothing was acknowledged in time."""
        established = self.state == ESTABLISHED
        if self.retries >= (MAX_RETRIES if established else self.ctx.syn_retries):
            self.reset("timed out" if established else "no answer from guest")
            return
        self.retries += 1
        if established:
            self.rto = min(self.rto * 2, self.ctx.rto_max)
            self.resend()
        else:
            self._send_syn()

    def keepalive(self) -> None:
        """Ask an idle guest for a sign of life (RFC 9293, 3.8.4): it may have forgotten us.

        Outstanding data and unanswered handshakes ask by themselves.
        """
        if self.state == ESTABLISHED and self.snd_una == self.snd_max:
            self.template.control(self.snd_nxt - 1, self.ack, ACK, self.window_field)
