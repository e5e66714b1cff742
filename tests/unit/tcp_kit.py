"""A TCP translator with a scripted guest on one side and real loopback sockets on the other.

Time is the test's own: :class:`Host` runs the real loop on a clock that only moves when it is
told to, so time-outs of hours pass at once.  Sockets on 127.0.0.1 deliver at once as well.
:class:`Guest` sends one segment at a time, exactly as asked; what it receives was verified by
:func:`parse`, lengths and checksums included.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from passt.userspace.config.model import Config
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.rules import Rule
from passt.userspace.flow.table import FlowTable
from passt.userspace.link.base import GSO_NONE, GSO_TCPV4, GSO_TCPV6
from passt.userspace.loop import Loop
from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from passt.userspace.tcp.accept import Acceptors
from passt.userspace.tcp.const import ACK, ESTABLISHED, FIN, PSH, RST, SYN
from passt.userspace.tcp.context import Context, Features
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.tcp.tcp import Tcp
from passt.userspace.wire import ethernet, ipv4, ipv6
from passt.userspace.wire.checksum import checksum, complete, pseudo_sum
from passt.userspace.wire.tcp_options import TcpOptions, parse_options, syn_options
from tests.unit import fakes
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, FakeLink, Prefix

MASK = 0xFFFFFFFF

#: Probed once: the probes cost some milliseconds.
FEATURES = Features(v4=True, v6=True)

_HEADER = struct.Struct("!HHIIBBHHH")


class Segment(NamedTuple):
    """A TCP segment, or superframe, that the guest receives."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    options: TcpOptions
    payload: bytes
    #: Payload per segment that the link is asked to cut this into, 0 for one segment.
    gso_size: int
    label: int
    raw_options: bytes

    @property
    def next_seq(self) -> int:
        """The sequence number behind this segment."""
        size = len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)
        return (self.seq + size) & MASK

    def cut(self) -> Iterator[Segment]:
        """The segments of a superframe, as segmentation offload makes them."""
        size = self.gso_size
        if not size:
            yield self
            return
        for at in range(0, len(self.payload), size):
            last = at + size >= len(self.payload)
            yield self._replace(
                seq=(self.seq + at) & MASK,
                flags=self.flags if last else self.flags & ~(PSH | FIN),
                payload=self.payload[at : at + size],
                gso_size=0,
            )


def parse(prefix: Prefix, frame: bytes) -> Segment | None:
    """Take a frame with TCP apart; None for other protocols, AssertionError if it is wrong."""
    data = bytearray(frame)
    assert len(data) >= 60, "not padded"
    dst_mac, src_mac, ethertype = ethernet.HEADER.unpack_from(data)
    if ethertype == ethernet.ETH_P_ARP:
        return None
    assert (dst_mac, src_mac) == (fakes.GUEST_MAC, fakes.OUR_MAC)
    label = 0
    if ethertype == ethernet.ETH_P_IP:
        assert checksum(data[14:34]) == 0, "IPv4 header checksum"
        version, tos, total, ident, fragment, ttl, protocol, _, src, dst = ipv4.HEADER.unpack_from(
            data, 14
        )
        assert (version, tos, ident, fragment, ttl) == (0x45, 0, 0, ipv4.DONT_FRAGMENT, 255)
        start, end = 34, 14 + total
    else:
        word, length, protocol, ttl, src, dst = ipv6.HEADER.unpack_from(data, 14)
        assert (word >> 20, ttl) == (0x600, 255)
        label = word & 0xFFFFF
        start, end = 54, 54 + length
    if protocol != socket.IPPROTO_TCP:
        return None
    assert end <= len(data), "truncated"
    assert not any(data[end:]), "padding is not zero"
    assert end == len(data) or len(data) == 60, "bytes behind the packet"
    pseudo = pseudo_sum(src, dst, protocol, end - start)
    if prefix.csum_start:
        assert (prefix.csum_start, prefix.csum_offset) == (start, 16)
        assert int.from_bytes(data[start + 16 : start + 18], "big") % 65535 == pseudo % 65535
        complete(memoryview(data)[:end], start, 16)
    assert checksum(data[start:end], pseudo) == 0, "TCP checksum"
    sport, dport, seq, ack, offset, flags, window, _, urgent = _HEADER.unpack_from(data, start)
    assert (offset & 15, urgent) == (0, 0)
    body = start + (offset >> 4 << 2)
    assert body <= end
    payload = bytes(data[body:end])
    if prefix.gso_type != GSO_NONE:
        assert prefix.gso_type == (GSO_TCPV4 if start == 34 else GSO_TCPV6)
        assert prefix.hdr_len == body == start + 20
        assert prefix.csum_start, "superframe without checksum"
        assert 0 < prefix.gso_size < len(payload), "superframe of one segment"
    return Segment(
        src, dst, sport, dport, seq, ack, flags, window,
        parse_options(data, start + 20, body), payload,
        prefix.gso_size if prefix.gso_type else 0, label, bytes(data[start + 20 : body]),
    )  # fmt: skip


class Host:
    """Everything but the guest: loop, link, translator, and peers on loopback."""

    def __init__(
        self,
        *,
        gso: bool = True,
        peek_off: bool = True,
        mtu: int = 1500,
        limit: int = 1000,
        tweak: Callable[[Config], None] | None = None,
    ) -> None:
        self.time = 1000.0
        self.loop = Loop(lambda: self.time)
        self.link = FakeLink()
        self.link.gso_tcp4 = self.link.gso_tcp6 = gso
        self.config = fakes.config()
        self.config.mtu = mtu
        if tweak is not None:
            tweak(self.config)
        self.nat = Nat(self.config)
        self.table = FlowTable(limit)
        features = Features.__new__(Features)
        for name in Features.__slots__:
            setattr(features, name, getattr(FEATURES, name))
        features.peek_off = FEATURES.peek_off and peek_off
        self.features = features
        self.ctx = Context(
            self.config, self.nat, self.loop, self.link, self.table, features=features
        )
        self.tcp = Tcp(self.ctx)
        self.acceptors = Acceptors(self.loop, self.tcp, None)
        services = Services(self.config, self.nat, self.link, self.loop)
        self.stack = Stack(self.config, self.nat, self.link, self.tcp, None, None, services)
        self._owned: list[socket.socket] = []

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        for flow in self.flows():
            flow.abort("test ends")
        self.turn()
        for sock in self._owned:
            sock.close()
        self.loop._epoll.close()

    def flows(self) -> list[TcpFlow]:
        """Flows in order of index."""
        return [flow for flow in self.table.flows() if isinstance(flow, TcpFlow)]

    @property
    def flow(self) -> TcpFlow:
        """The only flow."""
        (flow,) = self.flows()
        return flow

    # Time and events.

    def turn(self, rounds: int = 3) -> None:
        """Serve what is ready, without moving the clock."""
        for _ in range(rounds):
            self.loop.round(0.0)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, stopping at every timer."""
        target = self.time + seconds
        self.turn()
        while (due := self.next_deadline()) <= target:
            self.time = max(due, self.time)
            self.turn()
        self.time = target
        self.turn()

    def next_deadline(self) -> float:
        """When the loop's next timer is due, infinity if there is none."""
        timers = self.loop._timers
        return min((due for due, _, timer in timers if timer.callback), default=float("inf"))

    def until(self, done: Callable[[], object], seconds: float = 5.0) -> None:
        """Serve events until ``done()``, for what the kernel does not deliver at once."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "nothing happened"
            self.turn()

    # The link.

    def feed(self, *frames: bytes) -> None:
        """Frames from the guest, in one batch, each in a buffer that changes afterwards."""
        for frame in frames:
            buf = bytearray(10) + frame + bytes(70)
            view = memoryview(buf)
            self.stack.receive(view, 10, 10 + len(frame))
            view[:] = b"\xa5" * len(view)
        self.link.batch_end()
        self.turn()

    def take(self) -> list[Segment]:
        """Segments sent to the guest since the last call."""
        parsed = [parse(prefix, frame) for prefix, frame in self.link.sent]
        self.link.sent.clear()
        return [segment for segment in parsed if segment is not None]

    # Peers.

    def own(self, sock: socket.socket) -> socket.socket:
        """Close ``sock`` at the end."""
        self._owned.append(sock)
        return sock

    def listener(self, family: int = socket.AF_INET, *, rcvbuf: int = 0) -> socket.socket:
        """A listening socket of a server on loopback."""
        sock = self.own(socket.socket(family, socket.SOCK_STREAM))
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        sock.listen(64)
        sock.settimeout(5)
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        """The server's end of a connection."""
        sock = self.own(listener.accept()[0])
        sock.settimeout(5)
        return sock

    def forward(self, family: int = socket.AF_INET, guest_port: int = 80) -> tuple[str, int]:
        """Forward a loopback port to the guest; returns where clients connect to."""
        sock = self.own(socket.socket(family, socket.SOCK_STREAM))
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        host, port = sock.getsockname()[:2]
        self.acceptors.attach_listener(sock, Rule(socket.IPPROTO_TCP, port, port, guest_port), port)
        return host, port

    def connect(self, where: tuple[str, int]) -> socket.socket:
        """A client's connection to ``where``, accepted and offered to the guest."""
        sock = self.own(socket.create_connection(where, timeout=5))
        before = self.table.count
        self.until(lambda: self.table.count > before)
        return sock


class Guest:
    """One end of a connection, driven segment by segment."""

    def __init__(
        self,
        host: Host,
        dport: int,
        *,
        version: int = 4,
        port: int = 40000,
        isn: int = 0xFFFFF000,
        mss: int = 1460,
        scale: int | None = 7,
        sack: bool = True,
        window: int = 0x4000,
    ) -> None:
        self.host = host
        self.port = port
        self.dport = dport
        self.src, self.dst = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
        self.isn = isn
        self.seq = isn
        self.ack = 0
        self.window = window
        self.scale = scale
        self.options = syn_options(mss, scale, sack)
        #: Scale of the windows that we are offered.
        self.our_scale = 0

    def frame(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        options: bytes = b"",
    ) -> bytes:
        """A frame with these values, or else the current ones, which it moves on."""
        if seq is None:
            seq = self.seq
            size = len(payload) + bool(flags & SYN) + bool(flags & FIN)
            self.seq = (seq + size) & MASK
        header = _HEADER.pack(
            self.port, self.dport, seq & MASK,
            (self.ack if ack is None else ack) & MASK if flags & ACK else 0,
            (20 + len(options)) << 2, flags, self.window if window is None else window, 0, 0,
        )  # fmt: skip
        return fakes.ip_frame(self.src, self.dst, socket.IPPROTO_TCP, header + options + payload)

    def send(
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        options: bytes = b"",
    ) -> list[Segment]:
        """Send one segment; returns what comes back at once."""
        self.host.feed(self.frame(flags, payload, seq=seq, ack=ack, window=window, options=options))
        return self.take()

    def ask(self, flags: int, payload: bytes = b"", *, options: bytes = b"") -> list[Segment]:
        """Send one segment; returns what comes back, sooner or later."""
        replies = self.send(flags, payload, options=options)
        deadline = time.monotonic() + 5
        while not replies:
            assert time.monotonic() < deadline, "no answer"
            self.host.turn()
            replies = self.take()
        return replies

    def take(self) -> list[Segment]:
        """Segments for this connection since the last call."""
        taken = self.host.take()
        for segment in taken:
            assert (segment.sport, segment.dport) == (self.dport, self.port)
            assert (segment.src, segment.dst) == (self.dst, self.src)
        return taken

    def data(self, *payloads: bytes) -> list[Segment]:
        """Send payload in order, one segment each, in one batch."""
        self.host.feed(*(self.frame(ACK | PSH, payload) for payload in payloads))
        return self.take()

    def acknowledge(self, segments: list[Segment]) -> list[Segment]:
        """Acknowledge the last of ``segments``, at once."""
        self.ack = segments[-1].next_seq
        return self.send(ACK)


class Connection(NamedTuple):
    """An established connection: the translator's flow between guest and peer."""

    guest: Guest
    peer: socket.socket
    flow: TcpFlow


def outbound(host: Host, *, version: int = 4, rcvbuf: int = 0, **values: int | None) -> Connection:
    """The guest connects to a server."""
    listener = host.listener(socket.AF_INET if version == 4 else socket.AF_INET6, rcvbuf=rcvbuf)
    guest = Guest(host, listener.getsockname()[1], version=version, **values)  # type: ignore[arg-type]
    (reply,) = guest.ask(SYN, options=guest.options)
    assert reply.flags == SYN | ACK
    guest.ack = reply.next_seq
    guest.our_scale = max(reply.options.window_scale, 0)
    assert guest.send(ACK) == []
    (flow,) = [flow for flow in host.flows() if flow.guest_port == guest.port]
    assert flow.state == ESTABLISHED
    return Connection(guest, host.accept(listener), flow)


def inbound(host: Host, *, version: int = 4, **values: int | None) -> Connection:
    """A client connects to the guest."""
    peer = host.connect(host.forward(socket.AF_INET if version == 4 else socket.AF_INET6))
    guest = Guest(host, peer.getsockname()[1], version=version, port=80, **values)  # type: ignore[arg-type]
    (syn,) = guest.take()
    assert syn.flags == SYN
    guest.ack = syn.next_seq
    (reply,) = guest.send(SYN | ACK, options=guest.options)
    assert (reply.flags, reply.payload) == (ACK, b"")
    guest.our_scale = max(syn.options.window_scale, 0) if guest.scale is not None else 0
    (flow,) = [flow for flow in host.flows() if flow.our_port == guest.dport]
    assert flow.state == ESTABLISHED
    return Connection(guest, peer, flow)


def stream_of(segments: list[Segment]) -> bytes:
    """Payload of segments, which must follow each other."""
    expected = segments[0].seq if segments else 0
    for segment in segments:
        assert segment.seq == expected
        expected = segment.next_seq
    return b"".join(segment.payload for segment in segments)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, all of which must be there or be coming."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "end of file"
        data += piece
    return bytes(data)


def readable(sock: socket.socket) -> bool:
    """Whether ``sock`` has data, an end of file, or an error."""
    return bool(select.select([sock], [], [], 0)[0])


def was_reset(sock: socket.socket) -> bool:
    """Whether reading from ``sock`` ends in ECONNRESET (data and waiting aside)."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


__all__ = [
    "ACK", "FIN", "PSH", "RST", "SYN", "Connection", "Guest", "Host", "Segment", "inbound",
    "outbound", "parse", "readable", "receive", "stream_of", "was_reset",
]  # fmt: skip
