"""State of one TCP flow, and what both of its halves need: segments, timers, the end.

A :class:`TcpFlow` is built up in layers, one file each: this one, then
:mod:`~passt.userspace.tcp.toguest` (socket to guest), :mod:`~passt.userspace.tcp.fromguest`
(guest to socket), and :mod:`~passt.userspace.tcp.flow` (handshakes, segments, events).

**Sequence numbers** are kept unwrapped: they start with the ISN and only grow, so ordinary
comparison works; they are cut to 32 bits when they meet the wire.

**Timers.**  Two deadlines per flow, acknowledgement and retransmission.  Moving a deadline
later, the usual case, is an assignment: the one pending entry of the loop fires early, finds
that, and is set again.
"""

from __future__ import annotations

from passt.syscalls.sockopt import linger_reset
from passt.userspace.flow.nat import endpoint, unmap
from passt.userspace.flow.sockname import packed
from passt.userspace.flow.table import Flow
from passt.userspace.tcp.const import (
    ACK,
    CLOSED,
    CONNECTING,
    DEFAULT_MSS,
    INITIAL_RTO,
    INITIAL_WINDOW,
    MAX_WINDOW,
    RECHECK_MIN,
    RST,
    STATE_NAMES,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from passt.syscalls import bare_socket as socket
    from passt.userspace.loop import Timer
    from passt.userspace.tcp.context import Context
    from passt.userspace.tcp.reassembly import Reassembly
    from passt.userspace.tcp.segments import Template

_NEVER = float("inf")


class FlowBase(Flow):
    """Everything a TCP flow remembers; methods that belong to neither half."""

    __slots__ = (
        "_ack_timer",
        "_ack_timer_at",
        "_rto_timer",
        "_rto_timer_at",
        "ack",
        "ack_all",
        "ack_base",
        "ack_deadline",
        "ack_now",
        "ack_wait",
        "active",
        "answered",
        "ctx",
        "cwnd",
        "drain",
        "dup_acks",
        "enough",
        "eof",
        "fd",
        "fin_acked",
        "fin_at",
        "fin_seq",
        "guest_addr",
        "guest_mss",
        "guest_port",
        "guest_scale",
        "guest_window",
        "head",
        "inbound",
        "keeps_alive",
        "key",
        "lazy_discards",
        "low_water",
        "our_addr",
        "our_port",
        "our_scale",
        "out_of_order",
        "peer_local",
        "pump_queued",
        "rcv_edge",
        "rcv_nxt",
        "readable",
        "recover",
        "retransmit_next",
        "retries",
        "rto",
        "rto_deadline",
        "sack_ok",
        "sacked",
        "scaling",
        "segment_size",
        "shut",
        "snd_max",
        "snd_nxt",
        "snd_una",
        "sock",
        "state",
        "syn_retried",
        "tail",
        "tap_active",
        "template",
        "told_ack",
        "told_field",
        "touched",
        "unacked",
        "watching",
        "window_field",
        "wl1",
    )

    kind = "TCP connection"
    cost = 2560

    def __init__(
        self,
        ctx: Context,
        key: bytes,
        our_addr: bytes,
        our_port: int,
        guest_addr: bytes,
        guest_port: int,
        sock: socket.socket,
        *,
        inbound: bool,
    ) -> None:
        super().__init__()
        self.ctx = ctx
        #: Source and destination as in the guest's frames: the lookup key.
        self.key = key
        self.our_addr = our_addr
        self.our_port = our_port
        self.guest_addr = guest_addr
        self.guest_port = guest_port
        self.sock = sock
        self.fd = sock.fileno()
        #: True if accepted on the host, False if the guest connects.
        self.inbound = inbound
        self.state = CONNECTING
        #: It was established once.
        self.answered = False
        self.template: Template = ctx.template(self)

        # Towards the guest.
        self.snd_una = self.snd_nxt = self.snd_max = ctx.isn(key)
        #: Sequence of the first byte in the socket's receive queue: peeking starts there.
        self.head = 0
        self.guest_window = INITIAL_WINDOW
        #: Sequence of the segment that last updated the window (RFC 9293, SND.WL1).
        self.wl1 = 0
        self.guest_scale = 0
        self.guest_mss = DEFAULT_MSS
        self.sack_ok = False
        #: How often discarding acknowledged data may be put off.
        self.lazy_discards = 0
        #: The socket may have more data, or an end of file, for us.
        self.readable = False
        #: The peer finished: look for the end of file.
        self.eof = False
        #: A short read does not mean that the queue is empty: an end of file or, as reads
        #: stop in front of it, urgent data may follow.
        self.drain = False
        #: Sequence of our FIN, once the end of file was read; −1 before.
        self.fin_seq = -1
        self.fin_acked = False
        self.pump_queued = False
        # … and its repair.
        self.dup_acks = 0
        #: While recovering: everything below was sent before the loss was noticed.
        self.recover = 0
        self.retransmit_next = 0
        #: Bytes that may be in flight, fewer than the maximum only after a time-out.
        self.cwnd = MAX_WINDOW
        #: What the guest selectively acknowledged: disjoint, ascending (start, end).
        self.sacked: tuple[tuple[int, int], ...] = ()
        self.rto = INITIAL_RTO
        self.retries = 0
        self.syn_retried = False

        # From the guest.
        self.rcv_nxt = 0
        #: Acknowledgement number and window field for the next segment to the guest …
        self.ack = 0
        self.window_field = 0
        #: … and those that it was last sent.
        self.told_ack = 0
        self.told_field = 0
        #: Right edge of the window that the guest was offered.
        self.rcv_edge = 0
        #: With less than this of the window left it is time to look at it again.
        self.low_water = 0
        #: Below this a sender that avoids silly windows may wait for more: its segment, or
        #: half of the largest window that it was offered (RFC 9293, 3.8.6.2.1).
        self.enough = 1
        self.our_scale = 0
        #: The guest offered window scaling.
        self.scaling = False
        #: Bytes that the peer acknowledged count from here.
        self.ack_base = 0
        #: Acknowledge what the socket took, rather than what the peer acknowledged.
        self.ack_all = False
        #: An acknowledgement is owed whether or not anything changed.
        self.ack_now = False
        #: Bytes taken from the guest since the last acknowledgement.
        self.unacked = 0
        #: Interval at which a closed window or the peer's progress is looked at again.
        self.ack_wait = RECHECK_MIN
        #: What the guest puts in one segment: the MSS it was offered, or its own limit.
        self.segment_size = DEFAULT_MSS
        #: In order but not taken by the socket yet.
        self.tail = bytearray()
        #: What lies beyond gaps, once there was one.
        self.out_of_order: Reassembly | None = None
        #: Sequence of the guest's FIN once seen, −1 before.
        self.fin_at = -1
        #: That FIN was passed on: the socket is shut for writing.
        self.shut = False
        self.peer_local = False
        #: The kernel was asked to report when the full socket has room again.
        self.watching = False
        #: The guest sends keep-alives, so our socket does, too.
        self.keeps_alive = False

        self.touched = False
        #: A segment came from the guest since the last keep-alive scan …
        self.tap_active = True
        #: … and anything at all from either side since the last inactivity scan.
        self.active = True
        self.ack_deadline = _NEVER
        self.rto_deadline = _NEVER
        self._ack_timer: Timer | None = None
        self._ack_timer_at = _NEVER
        self._rto_timer: Timer | None = None
        self._rto_timer_at = _NEVER

    def describe(self) -> str:
        """Both ends as the guest sees them, and the state."""
        ours = endpoint(self.our_addr, self.our_port)
        guest = endpoint(self.guest_addr, self.guest_port)
        pair = f"HOST {ours} => TAP {guest}" if self.inbound else f"TAP {guest} => HOST {ours}"
        return f"{pair} {STATE_NAMES[self.state]}"

    def holds(self) -> int:
        """Bytes of payload kept in user space, with what it takes to keep them."""
        pieces = self.out_of_order
        return len(self.tail) + (pieces.cost if pieces is not None else 0)

    # Timers.

    def arm_ack(self, deadline: float) -> None:
        """Have :meth:`ack_expired` called at ``deadline``, unless it is due earlier."""
        if deadline < self.ack_deadline:
            self.ack_deadline = deadline
            if deadline < self._ack_timer_at:
                if self._ack_timer is not None:
                    self._ack_timer.cancel()
                self._ack_timer_at = deadline
                self._ack_timer = self.ctx.loop.call_at(deadline, self._on_ack_timer)

    def _on_ack_timer(self) -> None:
        self._ack_timer = None
        self._ack_timer_at = _NEVER
        deadline = self.ack_deadline
        if self.state == CLOSED or deadline == _NEVER:
            return
        if deadline <= self.ctx.loop.now:
            self.ack_deadline = _NEVER
            self.ack_expired()
        else:
            self._ack_timer_at = deadline
            self._ack_timer = self.ctx.loop.call_at(deadline, self._on_ack_timer)

    def arm_rto(self) -> None:
        """(Re)start the retransmission timer with the current time-out."""
        self.rto_deadline = deadline = self.ctx.loop.now + self.rto
        if deadline < self._rto_timer_at:
            if self._rto_timer is not None:
                self._rto_timer.cancel()
            self._rto_timer_at = deadline
            self._rto_timer = self.ctx.loop.call_at(deadline, self._on_rto_timer)

    def disarm_rto(self) -> None:
        """Nothing is outstanding any more."""
        self.rto_deadline = _NEVER

    def _on_rto_timer(self) -> None:
        self._rto_timer = None
        self._rto_timer_at = _NEVER
        deadline = self.rto_deadline
        if self.state == CLOSED or deadline == _NEVER:
            return
        if deadline <= self.ctx.loop.now:
            self.rto_deadline = _NEVER
            self.rto_expired()
        else:
            self._rto_timer_at = deadline
            self._rto_timer = self.ctx.loop.call_at(deadline, self._on_rto_timer)

    def ack_expired(self) -> None:
        """The acknowledgement timer ran out; see :mod:`~passt.userspace.tcp.fromguest`."""

    def rto_expired(self) -> None:
        """The retransmission timer ran out; see :mod:`~passt.userspace.tcp.flow`."""

    # Segments without payload.

    def send_control(self, flags: int, options: bytes = b"") -> bool:
        """Send a segment without payload that carries the current acknowledgement."""
        self.carried()
        return self.template.control(self.snd_nxt, self.ack, flags, self.window_field, options)

    def carried(self) -> None:
        """A segment with the current ``ack`` and ``window_field`` goes to the guest.

        The timer is disarmed if nothing is left to tell: neither a peer that lags behind nor
        a window too small for the guest to use.
        """
        self.told_ack = self.ack
        self.told_field = self.window_field
        self.unacked = 0
        self.ack_now = False
        if self.ack == self.rcv_nxt and self.rcv_edge - self.rcv_nxt >= self.enough:
            self.ack_deadline = _NEVER

    def touch(self) -> None:
        """Have :meth:`settle` called when the current batch of frames ends."""
        if not self.touched:
            self.touched = True
            self.ctx.touched.append(self)

    def settle(self) -> None:
        """The batch is over; see :mod:`~passt.userspace.tcp.flow`."""

    # The end.

    def reset(self, reason: str) -> None:
        """Abort both sides: RST to the guest, RST to the peer."""
        if self.state == CLOSED:
            return
        self.template.control(self.snd_nxt, self.ack, RST | ACK, self.window_field)
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """Abort towards the peer only: the guest reset the connection, or knows nothing."""
        if self.state == CLOSED:
            return
        try:
            linger_reset(self.sock)
        except OSError:
            # Already disconnected: close() has nothing left to say to the peer.
            pass
        self.close(reason)

    def strand(self, lost: Container[bytes], withdrawn: Container[bytes]) -> None:
        """Reset both sides if the address of the guest, or that of the host, is not there any more.

        The kernel would keep a connection from an address that is gone, and wait for it to return.
        """
        gone = self.guest_addr in withdrawn
        if not gone and lost:
            try:
                gone = unmap(packed(self.sock.getsockname())) in lost
            except OSError:
                # Ended meanwhile.
                return
        if gone:
            self.reset("address gone")

    def give_up(self) -> None:
        """Make room for another flow, during the handshake.

        The guest is not told if it is the one who connects: to it a SYN was lost, and it will
        try again.  If it has been answered already, what it sends next is answered by a reset.
        """
        if self.inbound:
            self.reset("not answered, and others want its place")
        else:
            self.abort("not answered, and others want its place")

    def close(self, reason: str) -> None:
        """Leave lookup, epoll and timers; the socket is closed at the end of the round."""
        if self.state == CLOSED:
            return
        self.ctx.closed(self, reason)
        self.state = CLOSED
        for timer in (self._ack_timer, self._rto_timer):
            if timer is not None:
                timer.cancel()
        self._ack_timer = self._rto_timer = None
        self.ctx.loop.close(self.sock, self.fd)
        # Another, not cleared: the error that ends the flow may still hold a view of this one.
        self.tail = bytearray()
        self.out_of_order = None
