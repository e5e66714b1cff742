"""Segments that were sent again with other bounds: what they have in common arrives once.

The kernel's own readers skip what they have read before; that which feeds programs of maps does not
(tcp_read_skb(), seen on 6.18), and a loopback that had to drop something sends such segments.  Here
they come from a peer made by hand, at a tap device.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from passt.kernel.ebpf.acquire import acquire
from passt.kernel.ebpf.layout import BROKEN
from passt.syscalls.ns import CLONE_NEWNET, setns, unshare
from passt.userspace.splice.pool import TCP_OPTIONS
from passt.userspace.wire.checksum import checksum
from tests.system.kit.accel import Rig, connection

pytestmark = pytest.mark.system

OURS, PEER = (bytes((192, 0, 2, number)) for number in (1, 2))
PORT, PEER_PORT = 7000, 40000
FIN, SYN, ACK, PUSH = 1, 2, 16, 8
TUNSETIFF, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
MTU = 65535
PATIENCE = 10.0


class Peer:
    """Another host, behind a tap device, and one connection from there to :attr:`sock`."""

    def __init__(self) -> None:
        """To be called in a network namespace without anything."""
        self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH14x", b"peer0", TUN_WITHOUT_HEADER))
        for words in (
            "link set lo up",
            f"link set peer0 mtu {MTU} up",
            f"address add {socket.inet_ntoa(OURS)}/24 dev peer0",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        with socket.create_server((socket.inet_ntoa(OURS), PORT)) as listener:
            self._seq, self._ack = 0xFFFFFF00, 0
            self._send(SYN, self._seq)
            self._ack = self._answer() + 1
            self._seq += 1
            self._send(ACK, self._seq)
            listener.settimeout(PATIENCE)
            self.sock, _ = listener.accept()
        for option in TCP_OPTIONS:
            self.sock.setsockopt(*option)

    def send(self, data: bytes, first: int, end: int, flags: int = 0) -> None:
        """Send a segment with a part of ``data``, which is all there is in the stream."""
        self._send(ACK | PUSH | flags, self._seq + first, data[first:end])

    def close(self) -> None:
        os.close(self._tun)

    def _answer(self) -> int:
        """The sequence number of the next segment from the other side."""
        while select.select([self._tun], [], [], PATIENCE)[0]:
            packet = os.read(self._tun, MTU)
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                number: int = struct.unpack_from("!I", packet, 24)[0]
                return number
        raise AssertionError("no answer")

    def _send(self, flags: int, seq: int, data: bytes = b"") -> None:
        ports = struct.pack("!HH", PEER_PORT, PORT)
        numbers = struct.pack("!II", seq & 0xFFFFFFFF, self._ack & 0xFFFFFFFF)
        segment = bytearray(ports + numbers + struct.pack("!BBHHH", 80, flags, 65535, 0, 0) + data)
        pseudo = PEER + OURS + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
        struct.pack_into("!H", segment, 16, checksum(pseudo + segment))
        header = bytearray(
            struct.pack("!BBHHHBBH", 69, 0, 20 + len(segment), 1, 0, 64, socket.IPPROTO_TCP, 0)
            + PEER
            + OURS
        )
        struct.pack_into("!H", header, 10, checksum(header))
        os.write(self._tun, header + segment)


@pytest.fixture(scope="module")
def peer_namespace() -> Iterator[None]:
    """The thread of the tests is in a network namespace of its own, with nothing in it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    unshare(CLONE_NEWNET)
    yield
    setns(before, CLONE_NEWNET)
    os.close(before)


@pytest.fixture
def peer(peer_namespace: None) -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@pytest.fixture
def rig(peer: Peer) -> Iterator[Rig]:
    maps, _ = acquire(compile_first=False)
    made = Rig(maps)
    yield made
    made.close()
    maps.close()


#: First and last byte of segments; each begins with bytes that came before.
OVERLAPS = {
    "little": [(0, 100), (50, 150), (149, 151)],
    "much": [(0, 30_000), (5_000, 40_000), (10, 40_001)],
    "all": [(0, 100), (0, 100), (20, 60), (0, 200)],
    "numbers wrap": [(0, 0xF0), (0x80, 0x180), (0xFF, 0x1000)],
}


@pytest.mark.parametrize("how", ["redirected", "passed"])
@pytest.mark.parametrize("segments", OVERLAPS.values(), ids=OVERLAPS)
def test_overlapping_segments(
    rig: Rig, peer: Peer, segments: list[tuple[int, int]], how: str
) -> None:
    theirs, server = connection()
    peer.sock.setblocking(False)
    flow = rig.splice(peer.sock, theirs)
    rig.until(lambda: flow.fast is not None, "acceleration")
    assert flow.fast is not None
    lane = flow.fast.lanes[0]
    if how == "passed":
        lane.stop()
    data = random.randbytes(segments[-1][1])
    for first, end in segments:
        peer.send(data, first, end)
        time.sleep(0.01)
    rig.expect(server, data)
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(1)
    by_kernel = rig.accelerator.bytes()[0]
    assert (by_kernel, lane.sent) == ((len(data), 0) if how == "redirected" else (0, len(data)))
    server.close()


@pytest.mark.parametrize("first", [0, 20, 100])
def test_end_of_file_behind_old_data(rig: Rig, peer: Peer, first: int) -> None:
    theirs, server = connection()
    peer.sock.setblocking(False)
    flow = rig.splice(peer.sock, theirs)
    rig.until(lambda: flow.fast is not None, "acceleration")
    data = random.randbytes(100)
    peer.send(data, 0, 100)
    peer.send(data, first, 100, FIN)
    rig.expect(server, data)
    rig.until(lambda: flow.client.done, "end of file")
    assert server.recv(1) == b""
    assert flow.fast is None
    server.close()


def test_segment_that_cannot_be_cut(rig: Rig, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there had been no memory: data are missing, so the connection has no future."""
    theirs, server = connection()
    peer.sock.setblocking(False)
    flow = rig.splice(peer.sock, theirs)
    rig.until(lambda: flow.fast is not None, "acceleration")
    monkeypatch.setattr(type(rig.maps), "rung", lambda _maps: [0 | BROKEN, 4711 | BROKEN])
    rig.accelerator._on_bell(0)
    assert flow.index < 0
    rig.loop.round(0)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def test_first_segment_overlaps(rig: Rig, peer: Peer) -> None:
    """The program cannot know, but that is noticed, and the connection reset in the end."""
    theirs, server = connection()
    peer.sock.setblocking(False)
    flow = rig.splice(peer.sock, theirs)
    data = random.randbytes(150)
    peer.send(data, 0, 100)
    rig.expect(server, data[:100])
    rig.until(lambda: flow.fast is not None, "acceleration")
    peer.send(data, 50, 150)
    rig.expect(server, data[50:])
    assert flow.fast is not None
    flow.fast.leave("test")
    rig.until(lambda: flow.index < 0, "reset")
    rig.loop.round(0)
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()
