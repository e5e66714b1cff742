"""A TCP endpoint driven by hand, on the guest's side of the tap (rawguest.py).

It sends exactly the segments a test asks for, and keeps the two numbers needed to do so: ``seq``,
the next sequence number of ours, and ``ack``, what we acknowledge by default. Nothing is answered,
repeated or acknowledged by itself.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Sequence

from scapy.layers.inet import TCP
from scapy.packet import Packet

from .rawguest import RawGuest

MODULUS = 1 << 32
Option = tuple[str, object]
DEFAULT_OPTIONS: tuple[Option, ...] = (("MSS", 1460), ("NOP", None), ("WScale", 7))


class Segment:
    """A segment from pasta: its header fields, :attr:`payload`, and :attr:`time` of arrival."""

    def __init__(self, packet: Packet, when: float) -> None:
        tcp = packet[TCP]
        self.packet = packet
        self.time = when
        self.flags = str(tcp.flags)
        self.seq = tcp.seq
        self.ack = tcp.ack
        self.window = tcp.window
        self.options = dict(tcp.options)
        self.payload = payload_of(packet)

    def __repr__(self) -> str:
        return f"<{self.flags} seq {self.seq} ack {self.ack} len {len(self.payload)}>"


def payload_of(packet: Packet) -> bytes:
    """Return the TCP payload by the lengths in the headers, without Ethernet padding."""
    raw = bytes(packet)[14:]
    if raw[0] >> 4 == 4:
        start = (raw[0] & 15) * 4
        end = struct.unpack_from("!H", raw, 2)[0]
    else:
        start = 40
        end = 40 + struct.unpack_from("!H", raw, 4)[0]
    return raw[start + (raw[start + 12] >> 4) * 4 : end]


class RawTcp:
    """One connection between *sport* of the guest and *dport* of *peer*."""

    def __init__(
        self,
        guest: RawGuest,
        version: int,
        peer: str,
        dport: int,
        sport: int = 0,
        *,
        isn: int | None = None,
        window: int = 65535,
    ) -> None:
        self.guest = guest
        self.version = version
        self.peer = peer
        self.dport = dport
        self.sport = sport or random.randrange(20000, 60000)
        self.isn = random.randrange(MODULUS) if isn is None else isn
        self.seq = self.isn
        self.ack = 0
        self.window = window
        self.since = guest.position()

    # -- sending ---------------------------------------------------------------------------------

    def segment(
        self,
        flags: str = "A",
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        options: Sequence[Option] = (),
        **fields: object,
    ) -> Packet:
        """Return a segment of this connection as an IP packet, not sent."""
        header = TCP(
            sport=self.sport,
            dport=self.dport,
            flags=flags,
            seq=(self.seq if seq is None else seq) % MODULUS,
            ack=(self.ack if ack is None else ack) % MODULUS if "A" in flags else 0,
            window=self.window if window is None else window,
            options=list(options),
            **fields,
        )
        return self.guest.ip(self.version, self.peer) / header / payload

    def send(
        self,
        flags: str = "A",
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        options: Sequence[Option] = (),
    ) -> None:
        """Send a segment. Without *seq*, it is the next one and ``seq`` advances."""
        packet = self.segment(flags, payload, seq=seq, ack=ack, window=window, options=options)
        if seq is None:
            self.seq = (self.seq + len(payload) + ("S" in flags) + ("F" in flags)) % MODULUS
        self.guest.send(packet)

    def connect(self, options: Sequence[Option] = DEFAULT_OPTIONS, timeout: float = 3.0) -> Segment:
        """Shake hands as the client; return the SYN|ACK."""
        self.send("S", options=options)
        answer = self.expect(lambda s: s.flags == "SA", timeout)
        self.ack = (answer.seq + 1) % MODULUS
        self.send("A")
        return answer

    def reset(self) -> None:
        """Abort the connection, to leave nothing behind."""
        self.send("RA")

    # -- receiving -------------------------------------------------------------------------------

    def _mine(self, packet: Packet) -> bool:
        if TCP not in packet:
            return False
        tcp = packet[TCP]
        ip = packet.payload
        return (
            (tcp.sport, tcp.dport) == (self.dport, self.sport)
            and ip.src == self.peer
            and ip.dst == self.guest.address[self.version]
        )

    def segments(self, since: int | None = None) -> list[Segment]:
        """Return all segments of the connection received so far (after frame *since*)."""
        found = self.guest.matching(self._mine, self.since if since is None else since)
        return [Segment(frame.packet, frame.time) for frame in found]

    def expect(
        self,
        predicate: Callable[[Segment], object] = lambda _: True,
        timeout: float = 3.0,
        since: int | None = None,
    ) -> Segment:
        """Return the first segment that satisfies *predicate*."""
        frames = self.guest.expect(
            lambda p: self._mine(p) and predicate(Segment(p, 0.0)),
            timeout,
            self.since if since is None else since,
        )
        return Segment(frames[0].packet, frames[0].time)

    def expect_none(
        self,
        predicate: Callable[[Segment], object] = lambda _: True,
        timeout: float = 0.3,
        since: int | None = None,
    ) -> None:
        """AssertionError if a segment that satisfies *predicate* arrives within *timeout*."""
        time.sleep(timeout)
        found = [s for s in self.segments(since) if predicate(s)]
        assert not found, found

    def mark(self) -> int:
        """Return the present end of what was received, for *since*."""
        return self.guest.position()

    def read(self, size: int, timeout: float = 5.0, *, acknowledge: bool = True) -> bytes:
        """Return *size* bytes of the stream from ``ack`` on, whatever the order of the segments.

        With *acknowledge*, ``ack`` advances and an ACK is sent after each look.
        """
        first = self.ack
        deadline = time.monotonic() + timeout
        while True:
            data = self._assembled(first, size)
            if acknowledge and (first + len(data)) % MODULUS != self.ack:
                self.ack = (first + len(data)) % MODULUS
                self.send("A")
            if len(data) == size:
                return data
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(data)} of {size} bytes in {timeout:g} s")
            time.sleep(0.005)

    def _assembled(self, first: int, size: int) -> bytes:
        data = bytearray()
        pieces = sorted(
            (((s.seq - first + (1 << 31)) % MODULUS) - (1 << 31), s.payload)
            for s in self.segments()
            if s.payload and "S" not in s.flags
        )
        for offset, payload in pieces:
            if offset <= len(data) < offset + len(payload):
                data += payload[len(data) - offset :]
        return bytes(data[:size])


def accept(
    guest: RawGuest,
    version: int,
    port: int,
    *,
    since: int,
    timeout: float = 3.0,
    options: Sequence[Option] = DEFAULT_OPTIONS,
    window: int = 65535,
    peer_port: int = 0,
    answer: bool = True,
) -> tuple[RawTcp, Segment]:
    """Wait for a SYN to *port* after frame *since*; answer it; return connection and SYN."""

    def wanted(packet: Packet) -> bool:
        if TCP not in packet or packet[TCP].dport != port or packet[TCP].flags != "S":
            return False
        return packet.payload.version == version and peer_port in (0, packet[TCP].sport)

    frame = guest.expect(wanted, timeout, since)[0]
    syn = Segment(frame.packet, frame.time)
    source = frame.packet.payload.src
    connection = RawTcp(guest, version, source, frame.packet[TCP].sport, port, window=window)
    connection.since = since
    connection.ack = (syn.seq + 1) % MODULUS
    if answer:
        connection.send("SA", options=options)
    return connection, syn
