"""A small TCP endpoint for the guest's side, and a wire that loses, repeats and reorders.

The endpoint is written for being obviously right rather than fast: it holds both streams
whole, retransmits by time-out, by three duplicates and by selective acknowledgement, keeps
what is out of order, and checks everything that the translator sends against what a sender
may do (:meth:`Model._check`).  It draws its habits, segment sizes, windows, delays, from a
``random.Random``, so every run can be repeated.
"""

from __future__ import annotations

import heapq
import itertools
import socket
import time
from collections.abc import Callable
from functools import partial
from random import Random

from passt.userspace.tcp.const import ACK, FIN, PSH, RST, SYN
from passt.userspace.wire.tcp_options import sack_option, syn_options
from tests.unit.tcp_kit import MASK, Guest, Host, Segment, parse


class Habits:
    """How the guest behaves and what the wire does to its segments."""

    def __init__(self, rnd: Random) -> None:
        self.mss = rnd.choice([88, 536, 1000, 1460, 8960, 65480])
        self.scale = rnd.choice([None, 0, 2, 7, 14])
        self.sack = rnd.random() < 0.6
        # At least a few units, or no window could ever be offered.
        self.rcvbuf = max(rnd.choice([200, 3000, 20000, 65535, 300000]), 4 << (self.scale or 0))
        self.loss = rnd.choice([0.0, 0.0, 0.02, 0.1])
        self.repeat = rnd.choice([0.0, 0.05])
        #: The link has no room for a frame.
        self.refused = rnd.choice([0.0, 0.0, 0.05])
        self.delay = rnd.choice([0.0, 0.001, 0.03])
        #: The guest's kernel hands over superframes.
        self.superframes = rnd.random() < 0.5
        self.delayed_ack = rnd.random() < 0.5
        self.guest_reads_slowly = rnd.random() < 0.3
        self.peer_reads_slowly = rnd.random() < 0.3
        self.cwnd = rnd.choice([1, 4, 50]) * self.mss

    def __repr__(self) -> str:
        return f"Habits({vars(self)})"


def largest_segment(host: Host, habits: Habits, address_len: int) -> int:
    """Bytes of payload that the guest gets in one segment: its MSS, within its MTU."""
    mtu = host.config.mtu
    return min(max(habits.mss, 88), mtu - 40 if address_len == 4 else max(mtu, 1280) - 60)


class Model:
    """One connection between the model and a socket ``peer``, from SYN to the last ACK."""

    def __init__(
        self,
        host: Host,
        guest: Guest,
        rnd: Random,
        habits: Habits,
        upload: bytes,
        download: bytes,
    ) -> None:
        self.host = host
        self.guest = guest
        self.rnd = rnd
        self.habits = habits
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._batch: list[bytes] = []

        # Sending: positions count payload bytes, the FIN one more.
        self.upload = upload
        self.isn = rnd.choice([0, MASK - 5, 0x7FFFFFF0, rnd.getrandbits(32)])
        self.una = 0
        self.nxt = 0
        self.top = 0
        self.edge = 0
        self.dups = 0
        self.rto = 0.2
        self.rto_at = float("inf")
        self.host_scale = 0
        #: The host acknowledged our SYN.
        self.synchronized = False

        # Receiving.
        self.largest = largest_segment(host, habits, len(guest.src))
        self.download = download
        self.host_isn = -1
        self.received = 0
        self.unread = 0
        self.pieces: dict[int, int] = {}
        self.fin_at = -1
        self.got_fin = False
        self.offered = 0
        self.offered_to_host = 0
        self.owed = 0
        self.ack_at = float("inf")
        self.last_ack = -1
        self.last_edge = -1

        # The peer.
        self.peer: socket.socket | None = None
        self.peer_sent = 0
        self.peer_got = bytearray()
        self.peer_eof = False
        self.peer_shut = False
        self._peer_wait = 0.001
        self.reset = False
        if habits.guest_reads_slowly:
            self.at(0.1, self._read_some)

    # Simulated time.

    def at(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.host.time + delay, next(self._order), what))

    def run(self, done: Callable[[], bool], *, limit: float = 3000.0) -> None:
        """Let time pass until ``done()``; AssertionError if it takes ``limit`` seconds of it."""
        end = self.host.time + limit
        steps = 0
        while not done():
            steps += 1
            assert steps < 60000, "no end"
            due = min(
                self._events[0][0] if self._events else float("inf"),
                self.host.next_deadline(),
                self.rto_at,
                self.ack_at,
            )
            if due > self.host.time + 0.5 and self._kernel_moves(1.5 if due >= end else 0.003):
                end = self.host.time + limit
                continue
            assert due < end, f"stalled: {self}"
            self.host.time = max(self.host.time, due)
            self.host.link.accept = self.rnd.random() >= self.habits.refused
            while self._events and self._events[0][0] <= self.host.time:
                heapq.heappop(self._events)[2]()
            if self._batch:
                batch, self._batch = self._batch, []
                self.host.feed(*batch)
            if self.rto_at <= self.host.time:
                self._timed_out()
            if self.ack_at <= self.host.time:
                self._send_ack()
            self.host.turn(1)
            self._collect()

    def _kernel_moves(self, seconds: float) -> bool:
        """Whether something happens on real sockets, whose time is not ours, in ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.host.link.sent:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.host.loop.round(min(left, 0.02))
        self._collect()
        return True

    def __repr__(self) -> str:
        return (
            f"una {self.una} nxt {self.nxt} edge {self.edge} of {len(self.upload)}; received "
            f"{self.received} of {len(self.download)}, fin {self.got_fin}; peer sent "
            f"{self.peer_sent} got {len(self.peer_got)} eof {self.peer_eof}; {self.habits}; "
            f"{[str(flow) for flow in self.host.flows()]}"
        )

    # The wire.

    def _to_host(self, frame: bytes, edge: int) -> None:
        """Pass a frame on, if it survives; ``edge`` is the window that it tells of."""
        rnd, habits = self.rnd, self.habits
        for _ in range(1 + (rnd.random() < habits.repeat)):
            if rnd.random() >= habits.loss:
                self.at(rnd.random() * habits.delay, partial(self._deliver, frame, edge))

    def _deliver(self, frame: bytes, edge: int) -> None:
        self.offered_to_host = max(self.offered_to_host, edge)
        self._batch.append(frame)

    def _collect(self) -> None:
        """Take what the translator sent, check it, and pass it on if it survives."""
        rnd, habits = self.rnd, self.habits
        sent = self.host.link.sent[:]
        self.host.link.sent.clear()
        for prefix, frame in sent:
            whole = parse(prefix, frame)
            if whole is None:
                continue
            self._check(whole)
            for segment in whole.cut():
                for _ in range(1 + (rnd.random() < habits.repeat)):
                    if rnd.random() >= habits.loss:
                        self.at(rnd.random() * habits.delay, partial(self._receive, segment))

    def _check(self, segment: Segment) -> None:
        """What no sender may do, whatever happens on the wire."""
        if segment.flags & (SYN | RST):
            assert not segment.flags & PSH
            assert not segment.payload
            return
        assert segment.flags & ACK
        assert segment.gso_size in (0, self.largest)
        assert segment.gso_size or len(segment.payload) <= self.largest
        start = (segment.seq - self.host_isn - 1) & MASK
        if start == MASK or (start >> 31):
            assert not segment.payload, "below the first byte"
        else:
            end = start + len(segment.payload)
            assert segment.payload == self.download[start:end], "another stream"
            probe = 1 if len(segment.payload) <= 1 else 0
            assert end <= self.offered_to_host + probe, "beyond the window"
            if segment.flags & FIN:
                assert end == len(self.download)
                assert self.peer_shut
        ack = (segment.ack - self.isn - 1) & MASK
        assert ack <= self.top, "acknowledges what was never sent"
        assert ack >= self.last_ack, "acknowledgement moved back"
        self.last_ack = ack
        edge = ack + (segment.window << self.host_scale)
        assert edge >= self.last_edge, "right edge moved back"
        self.last_edge = edge
        for left, right in segment.options.sack:
            low, high = (left - self.isn - 1) & MASK, (right - self.isn - 1) & MASK
            assert ack < low < high <= self.top, "SACK of nothing"

    # Receiving.

    def _receive(self, segment: Segment) -> None:
        if segment.flags & RST:
            self.reset = True
            return
        if segment.flags & SYN:
            if segment.flags & ACK:
                self._established(segment)
            else:
                self._answer(segment)
            return
        if self.host_isn < 0:
            return
        self.synchronized = True
        self._acknowledged(segment)
        start = (segment.seq - self.host_isn - 1) & MASK
        end = start + len(segment.payload)
        if start >> 31:
            # A keep-alive: answered at once.
            self._send_ack()
            return
        if segment.flags & FIN:
            self.fin_at = end
        if not segment.payload and not segment.flags & FIN:
            return
        if start > self.offered or (start == self.offered and segment.payload):
            self._send_ack()
            return
        end = min(end, self.offered)
        in_order = start <= self.received < end
        if end > start:
            self.pieces[start] = max(self.pieces.get(start, 0), end)
        while True:
            ends = [e for s, e in self.pieces.items() if s <= self.received < e]
            if not ends:
                break
            self.unread += max(ends) - self.received
            self.received = max(ends)
        for s in [s for s, e in self.pieces.items() if e <= self.received]:
            del self.pieces[s]
        if self.received == self.fin_at:
            self.got_fin = True
        self.owed += 1
        if not self.habits.guest_reads_slowly:
            self.unread = 0
        if (
            not in_order or self.pieces or self.got_fin or self.owed >= 2
            or not self.habits.delayed_ack
        ):  # fmt: skip
            self._send_ack()
        else:
            self.ack_at = min(self.ack_at, self.host.time + 0.04)

    def _read_some(self) -> None:
        """The guest's application reads, now and then."""
        if self.unread:
            self.unread -= self.rnd.randint(1, self.unread)
            if self._window() > self.offered:
                self._send_ack()
        if not self.got_fin:
            self.at(self.rnd.random() * 0.5, self._read_some)

    def _window(self) -> int:
        """Where the window that we could offer ends; it never shrinks, and wide steps only."""
        scale = self.habits.scale or 0
        space = self.habits.rcvbuf - self.unread
        if space < min(self.habits.mss, self.habits.rcvbuf // 2):
            space = 0
        field = min(space >> scale, 0xFFFF)
        return max(self.received + (field << scale), self.offered)

    def _fields(self) -> tuple[int, int]:
        """Acknowledgement number and window field for a segment that goes out now."""
        scale = self.habits.scale or 0
        self.offered = self._window()
        self.owed = 0
        self.ack_at = float("inf")
        ack = self.host_isn + 1 + self.received + self.got_fin
        # Rounding down may take a little away, as real stacks do.
        field = min(max(self.offered - self.received, 0) >> scale, 0xFFFF)
        return ack & MASK, field

    def _send_ack(self) -> None:
        ack, field = self._fields()
        options = b""
        if self.habits.sack and self.pieces:
            base = self.host_isn + 1
            blocks = [((base + s) & MASK, (base + e) & MASK) for s, e in self.pieces.items()]
            self.rnd.shuffle(blocks)
            options = sack_option(blocks[:4])
        frame = self.guest.frame(
            ACK, seq=self.isn + 1 + self.nxt, ack=ack, window=field, options=options
        )
        self._to_host(frame, self.offered)

    # Sending.

    def open(self) -> None:
        """The guest connects."""
        self._send_syn(SYN, 0)

    def _send_syn(self, flags: int, ack: int) -> None:
        """SYN or SYN|ACK, again and again until the host acknowledges it."""
        habits = self.habits
        self.offered = min(habits.rcvbuf, 65535)
        options = syn_options(habits.mss, habits.scale, habits.sack)
        frame = self.guest.frame(flags, seq=self.isn, ack=ack, window=self.offered, options=options)

        def again() -> None:
            if not self.synchronized:
                self._to_host(frame, min(habits.rcvbuf, 65535))
                self.at(1.0, again)

        again()

    def _established(self, segment: Segment) -> None:
        if self.host_isn < 0:
            self.host_isn = segment.seq
            if segment.options.window_scale >= 0:
                assert self.habits.scale is not None, "scale without an offer"
                self.host_scale = segment.options.window_scale
            assert self.habits.sack or not segment.options.sack_permitted
            self.edge = segment.window
            self.last_edge = segment.window
        assert segment.seq == self.host_isn, "another initial sequence number"
        self.synchronized = True
        self._send_ack()
        self._send()

    def _answer(self, segment: Segment) -> None:
        """The host connects: answer its SYN."""
        if self.host_isn < 0:
            self.host_isn = segment.seq
            self.edge = self.last_edge = segment.window
            if self.habits.scale is not None:
                self.host_scale = segment.options.window_scale
            self._send_syn(SYN | ACK, segment.next_seq)
        assert segment.seq == self.host_isn, "another initial sequence number"

    def _acknowledged(self, segment: Segment) -> None:
        ack = (segment.ack - self.isn - 1) & MASK
        edge = ack + (segment.window << self.host_scale)
        if ack > self.una:
            self.una = ack
            self.nxt = max(self.nxt, ack)
            self.dups = 0
            self.rto = 0.2
            self.rto_at = self.host.time + self.rto if self.una < self.top else float("inf")
        elif ack == self.una < self.top and edge == self.edge and not segment.payload:
            self.dups += 1
            if self.dups == 3:
                self._segment(self.una)
        self.edge = max(self.edge, edge)
        self._send()

    def _send(self) -> None:
        """Everything that windows admit."""
        total = len(self.upload)
        while self.nxt <= total and self.host_isn >= 0:
            limit = min(self.edge, self.una + self.habits.cwnd)
            if self.nxt >= limit and not (self.nxt == total < self.edge):
                break
            if not self._segment(self.nxt):
                break
        if self.rto_at == float("inf") and self.una <= total and self.host_isn >= 0:
            self.rto_at = self.host.time + self.rto

    def _segment(self, at: int) -> bool:
        """One segment from position ``at``; False if there is nothing to send."""
        total = len(self.upload)
        if at > total:
            return False
        largest = self.habits.mss * (40 if self.habits.superframes else 1)
        largest = min(largest, 60000)
        size = largest if self.rnd.random() < 0.7 else self.rnd.randint(1, largest)
        size = min(size, total - at, max(self.edge - at, 1))
        flags = ACK | PSH
        if at + size == total and (size == 0 or at + size < self.edge):
            flags |= FIN
        ack, field = self._fields()
        self._to_host(
            self.guest.frame(
                flags, self.upload[at : at + size],
                seq=self.isn + 1 + at, ack=ack, window=field,
            ),
            self.offered,
        )  # fmt: skip
        self.nxt = max(self.nxt, at + size + bool(flags & FIN))
        self.top = max(self.top, self.nxt)
        return True

    def _timed_out(self) -> None:
        self.rto = min(self.rto * 2, 8.0)
        self.rto_at = self.host.time + self.rto
        total = len(self.upload)
        if self.una > total:
            self.rto_at = float("inf")
        elif self.una < self.top:
            if not self.habits.sack:
                self.nxt = self.una
            self._segment(self.una)
        elif self.edge <= self.una and self.rnd.random() < 0.5:
            # A probe of the closed window that carries nothing, as Linux sends them.
            ack, field = self._fields()
            self._to_host(
                self.guest.frame(ACK, seq=self.isn + self.una, ack=ack, window=field), self.offered
            )
        else:
            self._segment(self.una)

    # The peer.

    def peer_acts(self) -> None:
        """The peer writes and reads, in steps of any size."""
        peer, rnd = self.peer, self.rnd
        assert peer is not None
        before = self.peer_sent, len(self.peer_got)
        if self.peer_sent < len(self.download):
            size = rnd.choice([1, 100, 5000, 200000])
            try:
                self.peer_sent += peer.send(self.download[self.peer_sent :][:size])
            except BlockingIOError:
                pass
        elif not self.peer_shut:
            peer.shutdown(socket.SHUT_WR)
            self.peer_shut = True
        if not self.habits.peer_reads_slowly or rnd.random() < 0.2:
            try:
                while not self.peer_eof:
                    data = peer.recv(rnd.choice([1000, 65536]))
                    self.peer_got += data
                    self.peer_eof = not data
                    if self.habits.peer_reads_slowly:
                        break
            except BlockingIOError:
                pass
        if not (self.peer_shut and self.peer_eof):
            idle = before == (self.peer_sent, len(self.peer_got))
            self._peer_wait = min(self._peer_wait * 2, 1.0) if idle else 0.01
            self.at(rnd.random() * self._peer_wait, self.peer_acts)

    # The end.

    def complete(self) -> bool:
        """Both streams arrived, and both ends know."""
        return (
            self.peer_eof
            and self.got_fin
            and (self.reset or self.una == len(self.upload) + 1)
            and not self.host.flows()
        )
