"""A link without a guest, frames to put into it, and a translator's surroundings.

:class:`FakeLink` records what is sent, prefix included, so that tests see what was left to
the link.  :func:`udp_frame` and :func:`echo_frame` build what a guest would send;
:func:`parse` takes apart what it would receive, verifying lengths and checksums.
:func:`feed` drives a translator the way the stack does.
"""

from __future__ import annotations

import gc
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from passt.userspace.config.model import Config
from passt.userspace.link.base import GSO_NONE, GSO_UDP_L4, MAX_FRAME, Link
from passt.userspace.loop import Loop
from passt.userspace.wire import ethernet, ipv4, ipv6
from passt.userspace.wire.checksum import checksum, complete, pseudo_sum

_PREFIX = struct.Struct("=BBHHHH")

GUEST_MAC = bytes.fromhex("52540000aa01")
OUR_MAC = bytes.fromhex("9a559a559a55")

#: The usual addresses: the gateway stands for the host's loopback.
GUEST4 = bytes((192, 0, 2, 10))
GATEWAY4 = bytes((192, 0, 2, 1))
GUEST6 = bytes.fromhex("20010db8000000010000000000000010")
GATEWAY6 = bytes.fromhex("20010db8000000010000000000000001")
OUR_LL = bytes.fromhex("fe800000000000000000000000000001")


class Prefix(NamedTuple):
    """What the prefix of a frame asks of the link."""

    gso_type: int
    gso_size: int
    hdr_len: int
    csum_start: int
    csum_offset: int


class FakeLink(Link):
    """Records frames in :attr:`sent`; with :attr:`accept` off it drops them like a full queue."""

    headroom = _PREFIX.size

    def __init__(self, *, gso_udp: bool = True) -> None:
        super().__init__()
        self.gso_udp = gso_udp
        self.guest_mac = GUEST_MAC
        self.tx = memoryview(bytearray(self.headroom + MAX_FRAME + 64))
        self.sent: list[tuple[Prefix, bytes]] = []
        self.accept = True

    def fileno(self) -> int:
        return -1

    def prefix(
        self,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
        hdr_len: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> bytes:
        return _PREFIX.pack(0, gso_type, gso_size, hdr_len, csum_start, csum_offset)

    def send(self, length: int) -> bool:
        return self._record(bytes(self.tx[:length]))

    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        return self._record(b"".join(parts))

    def _record(self, data: bytes) -> bool:
        if not self.accept:
            self.tx_dropped += 1
            return False
        _, *fields = _PREFIX.unpack_from(data)
        self.sent.append((Prefix(*fields), data[_PREFIX.size :]))
        self.tx_frames += 1
        return True

    def take(self) -> list[Packet]:
        """Parse and forget what was sent, superframes cut into datagrams."""
        packets = [packet for prefix, frame in self.sent for packet in parse(prefix, frame)]
        self.sent.clear()
        return packets


class Packet(NamedTuple):
    """One packet that the guest would see."""

    src: bytes
    dst: bytes
    protocol: int
    #: The L4 packet, checksum completed and verified.
    l4: bytes
    ttl: int
    src_mac: bytes
    dst_mac: bytes

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port."""
        return struct.unpack_from("!HH", self.l4)

    @property
    def payload(self) -> bytes:
        """What follows the UDP header, or the header of an echo message."""
        return self.l4[8:]


def parse(prefix: Prefix, frame: bytes) -> list[Packet]:
    """Take a frame apart as its receiver would; AssertionError for anything wrong with it."""
    assert len(frame) >= 60, "frame not padded"
    data = bytearray(frame)
    dst_mac, src_mac, ethertype = ethernet.HEADER.unpack_from(data)
    if ethertype == ethernet.ETH_P_IP:
        assert checksum(data[14:34]) == 0, "IPv4 header checksum"
        version, _, total, ident, fragment, ttl, protocol, _, src, dst = ipv4.HEADER.unpack_from(
            data, 14
        )
        assert (version, ident, fragment) == (0x45, 0, ipv4.DONT_FRAGMENT)
        start, end = 34, 14 + total
    else:
        assert ethertype == ethernet.ETH_P_IPV6
        word, length, protocol, ttl, src, dst = ipv6.HEADER.unpack_from(data, 14)
        assert word >> 20 == 0x600
        start, end = 54, 54 + length
    assert end <= len(data), "truncated"
    assert not any(data[end:]), "padding is not zero"
    assert end == len(data) or len(data) == 60, "bytes behind the packet"
    macs = src_mac, dst_mac
    l4 = bytes(data[start:end])
    if protocol != 17:
        pseudo = pseudo_sum(src, dst, protocol, len(l4)) if len(src) == 16 else 0
        assert checksum(l4, pseudo) == 0, "ICMP checksum"
        return [Packet(src, dst, protocol, l4, ttl, *macs)]
    sport, dport, length, field = struct.unpack_from("!HHHH", l4)
    assert length == len(l4), "UDP length"
    if prefix.csum_start:
        assert (prefix.csum_start, prefix.csum_offset) == (start, 6)
        assert field == pseudo_sum(src, dst, 17, length) % 65535 or field == 65535
        complete(memoryview(data), start, 6)
        l4 = bytes(data[start:end])
    if len(src) == 16 or prefix.csum_start:
        assert l4[6:8] != b"\0\0"
        assert checksum(l4, pseudo_sum(src, dst, 17, length)) == 0, "UDP checksum"
    else:
        assert field == 0
    if prefix.gso_type == GSO_NONE:
        return [Packet(src, dst, protocol, l4, ttl, *macs)]
    assert prefix.gso_type == GSO_UDP_L4
    assert prefix.hdr_len == start + 8
    assert prefix.csum_start, "superframe without checksum"
    payload = l4[8:]
    size = prefix.gso_size
    assert 0 < size < len(payload), "superframe of one datagram"
    return [
        Packet(src, dst, protocol, _datagram(src, dst, sport, dport, part), ttl, *macs)
        for part in (payload[at : at + size] for at in range(0, len(payload), size))
    ]


def _datagram(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes) -> bytes:
    bare = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    field = checksum(bare, pseudo_sum(src, dst, 17, len(bare))) or 0xFFFF
    return bare[:6] + field.to_bytes(2, "big") + bare[8:]


def ip_frame(
    src: bytes, dst: bytes, protocol: int, l4: bytes, ttl: int = 64, options: bytes = b""
) -> bytes:
    """A frame from the guest; ``options`` are IPv4 options, in multiples of 4 bytes."""
    if len(src) == 4:
        ihl = 5 + len(options) // 4
        head = bytearray(
            ipv4.HEADER.pack(
                0x40 | ihl, 0, 4 * ihl + len(l4), 0, 0x4000, ttl, protocol, 0, src, dst
            )
            + options
        )
        head[10:12] = checksum(head).to_bytes(2, "big")
        ethertype = ethernet.ETH_P_IP
    else:
        head = bytearray(ipv6.HEADER.pack(0x60000000, len(l4), protocol, ttl, src, dst))
        ethertype = ethernet.ETH_P_IPV6
    return ethernet.HEADER.pack(OUR_MAC, GUEST_MAC, ethertype) + bytes(head) + l4


def udp_frame(
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    payload: bytes,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """A frame with one datagram from the guest."""
    return ip_frame(src, dst, 17, _datagram(src, dst, sport, dport, payload), ttl, options)


def echo_frame(
    src: bytes,
    dst: bytes,
    identifier: int,
    sequence: int,
    data: bytes = b"",
    *,
    kind: int | None = None,
    code: int = 0,
    ttl: int = 64,
) -> bytes:
    """A frame with an echo request (or another ``kind`` of message) from the guest."""
    v4 = len(src) == 4
    if kind is None:
        kind = 8 if v4 else 128
    message = bytearray(struct.pack("!BBHHH", kind, code, 0, identifier, sequence) + data)
    protocol = 1 if v4 else 58
    pseudo = 0 if v4 else pseudo_sum(src, dst, protocol, len(message))
    message[2:4] = checksum(message, pseudo).to_bytes(2, "big")
    return ip_frame(src, dst, protocol, bytes(message), ttl)


class Translator(Protocol):
    """What the stack calls."""

    def input(self, buf: memoryview, off: int, l4: int, end: int, version: int) -> bool: ...


def feed(
    translator: Translator,
    *frames: bytes,
    off: int = 10,
    batch_end: Callable[[], None] | None = None,
    link: Link | None = None,
    gso_size: int = 0,
) -> None:
    """Hand valid frames to ``translator`` as one batch, each in a buffer of its own.

    A buffer that was not asked to be kept is overwritten at once, as a link would.
    """
    if link is not None:
        link.rx_gso_size = gso_size
    for frame in frames:
        buf = bytearray(off) + frame + bytes(70)
        version = 4 if frame[12:14] == b"\x08\x00" else 6
        parser = ipv4.parse if version == 4 else ipv6.parse
        view = memoryview(buf)
        protocol, l4, end, *_ = parser(view, off + 14, off + len(frame))
        assert protocol > 0, "not a valid frame"
        if not translator.input(view, off, l4, end, version):
            view[:] = b"\xa5" * len(view)
    if batch_end is not None:
        batch_end()
    if link is not None:
        link.rx_gso_size = 0


def config() -> Config:
    """A dual-stack configuration whose gateway stands for the host's loopback."""
    made = Config("pasta")
    made.our_mac = OUR_MAC
    made.v4.addr = GUEST4
    made.v4.gateway = made.v4.map_host_loopback = GATEWAY4
    made.v6.addr = GUEST6
    made.v6.gateway = made.v6.map_host_loopback = GATEWAY6
    made.v6.our_ll = OUR_LL
    return made


def run_until(loop: Loop, done: Callable[[], object], seconds: float = 5.0) -> None:
    """Run rounds of ``loop`` until ``done()``; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        loop.round(0.02)


def settle(loop: Loop, rounds: int = 500) -> None:
    """Run ``loop`` until it has nothing to do; AssertionError if it never comes to rest."""
    for _ in range(rounds):
        started = time.monotonic()
        loop.round(0.02)
        if time.monotonic() - started >= 0.02:
            return
    raise AssertionError("the loop spins")


def open_descriptors() -> int:
    """Number of open descriptors, less what earlier tests left for the garbage collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
