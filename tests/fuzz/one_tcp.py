"""One TCP connection, in steps of eight bytes relative to its state, so that they lead far.

The guest's stream is known: byte *o* of it is ``STREAM[o]``, or the complement if the guest
lies, which it may do about bytes that it sends again.  The peer must get a prefix of it and
nothing else, an end of file only where the guest said FIN, and the guest must get what the
peer sent.  The window that the guest is offered never shrinks.

====  =========================================================================
0–8   a segment: flags, sequence and acknowledgement relative to the right ones
9     the peer sends          12    the link takes frames, or not
10    the peer reads          13    a call fails
11    the peer shuts, …       14    time passes       15    the batch ends
====  =========================================================================
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator
from random import Random

from passt.userspace.flow.rules import Rule
from passt.userspace.tcp.const import ACK, FIN, PSH, RST, SYN
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.wire.tcp_options import parse_options, sack_option, syn_options
from tests.fuzz import oracle
from tests.fuzz.confined import LOOPBACK, Confined, abandon
from tests.fuzz.frames import FAR4, FAR6, segment
from tests.fuzz.run import Run
from tests.fuzz.standins import MAX_SENT, STREAM, Peer
from tests.fuzz.world import MASK, World
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, ip_frame

MAX_LEN = 4 + 8 * 60

_ISN = 0xFFFFF000
_FLAGS = (ACK, ACK, ACK, ACK | PSH, ACK | PSH, ACK | FIN, FIN, SYN, SYN | ACK, RST, RST | ACK, 0,
          0xFF, ACK | 0x20, ACK, ACK)  # fmt: skip
_DELTAS = (0, 0, 0, 0, 1, -1, -5, 5, 1460, -1460, 2920, 65536, -65536, 1 << 24, 1 << 31, 30000)
_SIZES = (0, 0, 1, 2, 5, 100, 536, 1460, 1460, 4000, 16000, 30000)
_WINDOWS = (0, 1, 50, 1000, 0x4000, 0xFFFF)
_MSS = (1460, 536, 88, 0, 65535, 9000)
_STEP = struct.Struct("!BBBbBbBB")

Prepared = tuple[World, TcpFlow, Peer]


class Talk:
    """The guest's end of the connection."""

    def __init__(self, world: World, first: int, scale: int, mss: int) -> None:
        self.world = world
        v4 = not first & 1
        self.inbound = bool(first & 2)
        self.src = GUEST4 if v4 else GUEST6
        self.dst = (FAR4 if v4 else FAR6) if self.inbound else GATEWAY4 if v4 else GATEWAY6
        self.ports = (80, 7) if self.inbound else (40000, 80)
        self.key = self.src + self.dst + struct.pack("!HH", *self.ports)
        self.host_isn = zlib.crc32(self.key)
        self.scale = scale % 16
        self.options = syn_options(
            _MSS[mss % len(_MSS)], self.scale if self.scale < 15 else None, bool(first & 16)
        )
        #: What was sent: end of the furthest byte, whether any was a lie, ends with a FIN.
        self.sent = 0
        self.lied = False
        self.fins: set[int] = set()
        #: The peer met the end of file, or an error, which is told once: from then on it looks
        #: like an end of file.
        self.over = False

    @property
    def flow(self) -> TcpFlow | None:
        """The connection, as long as there is one."""
        flows = self.world.ctx.flows4 if len(self.src) == 4 else self.world.ctx.flows6
        return flows.get(self.key)

    @property
    def peer(self) -> Peer | None:
        """Its far end."""
        peers = self.world.peers.get(self.key)
        return peers[0] if peers else None

    def send(self, flags: int, seq: int, ack: int, payload: bytes = b"", window: int = 0x4000,
             options: bytes = b"") -> None:  # fmt: skip
        """One segment, at any sequence number."""
        l4 = segment(
            *self.ports, seq & MASK, ack & MASK, flags, payload, window=window, options=options
        )
        self.world.feed(ip_frame(self.src, self.dst, socket.IPPROTO_TCP, l4))

    def open(self) -> None:
        """Shake hands."""
        world = self.world
        if self.inbound:
            family = socket.AF_INET if len(self.src) == 4 else socket.AF_INET6
            sock = Confined(world.net, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex((LOOPBACK[family], 1))
            (far,) = world.net.accept()
            rule = Rule(socket.IPPROTO_TCP, 8000, 8000, 80)
            assert world.tcp is not None
            assert world.tcp.accepted(sock, (self.dst, 7), rule, 8000)
            world.introduce(self.key, far)
            self.send(SYN | ACK, _ISN, self.host_isn + 1, options=self.options)
        else:
            self.send(SYN, _ISN, 0, options=self.options)
            world.settle()
            self.send(ACK, _ISN + 1, self.host_isn + 1)
        world.settle()

    def segment(self, flow: TcpFlow, kind: int, which: int, seq: int, near: int, ack: int,
                close: int, size: int, extra: int) -> None:  # fmt: skip
        """A segment relative to what ``flow`` expects."""
        flags = _FLAGS[which % len(_FLAGS)]
        start = flow.rcv_nxt + _DELTAS[seq % len(_DELTAS)] + near
        offset = start - _ISN - 1
        length = _SIZES[size % len(_SIZES)]
        end = offset + length
        # Nothing in front of the stream, nor far behind it, is ever taken.
        payload = bytes(min(max(-offset, 0), length)) + STREAM[max(offset, 0) : max(end, 0)]
        payload = payload.ljust(length, b"\0")
        if kind == 8 and 0 <= offset < self.sent:
            payload = bytes(byte ^ 0xFF for byte in payload)
            self.lied = self.lied or bool(payload)
        options = b""
        if extra & 0xC0 == 0xC0:
            left = flow.snd_una + _DELTAS[extra & 15]
            options = sack_option([(left & MASK, (left + 1000 * (extra >> 4 & 3)) & MASK)])
        if not flags & (SYN | RST):
            if offset < 1 << 20:
                self.sent = max(self.sent, end)
            if flags & FIN:
                self.fins.add(end)
        number = flow.snd_nxt + _DELTAS[ack % len(_DELTAS)] + close
        window = _WINDOWS[(extra & 0x3F) % len(_WINDOWS)]
        self.send(flags, start, number, payload, window, options)

    def read(self, size: int) -> None:
        """The peer reads, and what it reads is right."""
        peer = self.peer
        if peer is None or self.over:
            return
        try:
            data = peer.sock.recv(size + 1)
        except BlockingIOError:
            return
        except OSError:
            self.over = True
            return
        if not data:
            self.over = True
            assert len(peer.got) in self.fins, "end of file where the guest said nothing of it"
            return
        start = len(peer.got)
        peer.got += data
        assert start + len(data) <= self.sent, "more than the guest sent"
        truth = STREAM[start : start + len(data)]
        if not self.lied:
            assert data == truth, f"not what the guest sent, at {start}"
        else:
            assert all(a in (b, b ^ 0xFF) for a, b in zip(data, truth, strict=True)), "foreign"


class _Watched(World):
    """Keeps an eye on the window that the guest of ``talk`` is offered."""

    talk: Talk | None = None
    _scale = 0
    _edge = -1

    def _check_frame(self, frame: oracle.Outgoing) -> None:
        super()._check_frame(frame)
        talk = self.talk
        if talk is None or frame.kind != oracle.TCP:
            return
        flags, ack, window = (
            frame.l4[13],
            oracle.number(frame.l4, 8, 4),
            oracle.number(frame.l4, 14),
        )
        acked = (ack - _ISN - 1) & MASK
        if flags & SYN:
            options = parse_options(frame.l4, 20, (frame.l4[12] >> 4) * 4)
            self._scale = max(options.window_scale, 0) if talk.scale < 15 else 0
            assert talk.scale < 15 or talk.inbound or options.window_scale < 0, "scale not offered"
            if flags & ACK:
                self._edge = window
            return
        if flags & RST or not flags & ACK or acked > 1 << 25:
            return
        assert acked <= talk.sent + 1, "acknowledges what was not sent"
        edge = acked + (window << self._scale)
        # A FIN is acknowledged beyond the last byte offered.
        assert edge >= self._edge or acked > self._edge, "the window shrinks"
        self._edge = max(self._edge, edge)


def one(data: bytes) -> None:
    """Carry out the steps."""
    first, scale, mss, _ = data[:4].ljust(4, b"\0")
    with _Watched(gso=not first & 4, peek_off=not first & 8, debug=bool(first & 32)) as world:
        talk = world.talk = Talk(world, first, scale, mss)
        talk.open()
        run = Run(world)
        for at in range(4, len(data) - _STEP.size + 1, _STEP.size):
            kind, *values = _STEP.unpack_from(data, at)
            step(world, talk, run, kind % 16, values)
        world.settle()
        talk.read(1 << 20)


def step(world: World, talk: Talk, run: Run, kind: int, values: list[int]) -> None:
    """One step; some are those of :mod:`tests.fuzz.run`."""
    operand = bytes(value & 0xFF for value in values)
    peer = talk.peer
    if kind <= 8:
        flow = talk.flow
        if flow is not None:
            talk.segment(flow, kind, *values)
    elif kind == 9 and peer is not None and peer.sent < MAX_SENT:
        try:
            peer.sent += peer.sock.send(peer.stream(peer.sent, operand[0] << (operand[1] & 7)))
        except BlockingIOError:
            pass
        except OSError:
            talk.over = True
    elif kind == 10:
        talk.read(operand[0] << (operand[1] & 15))
    elif kind == 11 and peer is not None:
        try:
            if operand[0] & 7 == 7:
                abandon(peer.sock)
            elif operand[0] & 7 == 6:
                peer.sock.close()
            elif operand[0] & 7 == 5 and peer.sent < MAX_SENT:
                peer.sent += peer.sock.send(peer.stream(peer.sent, 1), socket.MSG_OOB)
            else:
                peer.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            talk.over = True
    elif kind == 12:
        run.link(operand)
    elif kind == 13:
        run.fault(operand)
    elif kind == 14:
        run.clock(operand)
    elif kind == 15:
        world.settle()


def seeds() -> Iterator[tuple[str, bytes]]:
    """Transfers both ways, with losses, and ends of all kinds."""

    def steps(*each: tuple[int, ...]) -> bytes:
        return b"".join(_STEP.pack(*(*one, *(0,) * 7)[:8]) for one in each)

    end, data, fin, ack = (15,), (0, 3, 0, 0, 0, 0, 7), (0, 5), (0, 0)
    send, read, shut = (9, 255, 5), (10, 255, 15), (11,)
    gap, lie = (0, 3, 8, 0, 0, 0, 7), (8, 3, 6, 0, 0, 0, 5)
    wait = (14, 0, 4)
    for first in (0, 1, 2, 3, 4 | 16, 8 | 16, 2 | 16):
        head = bytes((first, 7, 0, 0))
        yield f"upload-{first}", head + steps(data, data, end, read, gap, gap, end, data, end, read,
                                              fin, end, read, shut, end, ack, end)  # fmt: skip
        yield f"download-{first}", head + steps(send, end, ack, ack, ack, end, wait, ack, end, shut,
                                                end, wait, ack, fin, end)  # fmt: skip
    yield "lies", b"\x10\7\0\0" + steps(data, end, lie, gap, lie, end, data, end, read)
    yield "reset", b"\0\17\3\0" + steps(data, (0, 9), end, (0, 7), end)
    closed, opened = (0, 0), (0, 0, 0, 0, 0, 0, 0, 4)
    yield "window", b"\0\0\0\0" + steps(closed, end, send, end, wait, wait, opened, end, wait)
    yield "faults", b"\4\7\0\0" + steps((13, 8, 0, 0, 2), data, data, end, wait, (13, 8, 0, 11, 1),
                                        data, end, read, (13, 9, 0, 1, 0), send, end)  # fmt: skip


def mutate(data: bytes, rnd: Random) -> bytes:
    """Steps changed, exchanged, repeated, left out."""
    head = bytearray(data[:4].ljust(4, b"\0"))
    if rnd.random() < 0.2:
        head[rnd.randrange(4)] = rnd.randrange(256)
    steps = [data[at : at + 8].ljust(8, b"\0") for at in range(4, len(data), 8)]
    for _ in range(1 << rnd.randrange(3)):
        kind = rnd.randrange(6)
        if not steps or kind == 0:
            steps.insert(rnd.randint(0, len(steps)), bytes((rnd.randrange(16),)) + rnd.randbytes(7))
            continue
        at = rnd.randrange(len(steps))
        if kind == 1:
            del steps[at]
        elif kind == 2:
            steps.insert(rnd.randint(0, len(steps)), steps[at])
        elif kind == 3:
            other = rnd.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        else:
            changed = bytearray(steps[at])
            changed[rnd.randrange(8)] = rnd.randrange(256)
            steps[at] = bytes(changed)
    return bytes(head) + b"".join(steps)
