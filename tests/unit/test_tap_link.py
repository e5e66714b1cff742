"""The tap link over a packet socket pair in place of the device."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from passt.userspace.link import tap
from passt.userspace.link.base import GSO_TCPV4, Link
from passt.userspace.link.tap import BATCH, VNET_HDR_LEN, TapLink
from passt.userspace.loop import EPOLLHUP, EPOLLIN
from passt.userspace.wire import tcp
from passt.userspace.wire.checksum import checksum, fold, pseudo_sum

GUEST4, PEER4 = bytes((192, 0, 2, 15)), bytes((192, 0, 2, 1))


class Rig:
    """A link, the other end of its descriptor, and what the link reported."""

    def __init__(self, *, vnet_hdr: bool) -> None:
        self.guest, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.guest.settimeout(5)
        self.deaths: list[str] = []
        self.link = TapLink(
            self._ours.fileno(),
            self,
            vnet_hdr=vnet_hdr,
            gso_tcp4=True,
            gso_tcp6=True,
            gso_udp=True,
            on_dead=self.deaths.append,
        )
        #: As of the loop: for how long it has waited.
        self.slept = 0.0
        self.header = VNET_HDR_LEN if vnet_hdr else 0
        self.frames: list[bytes] = []
        self.batches: list[int] = []
        self.link.receiver = self.receive
        self.link.batch_end = lambda: self.batches.append(len(self.frames))

    def receive(self, buf: memoryview, off: int, end: int) -> bool:
        self.frames.append(bytes(buf[off:end]))
        return False

    def put(self, frame: bytes, header: bytes = bytes(VNET_HDR_LEN)) -> None:
        """The guest sends ``frame``."""
        self.guest.send(header[: self.header] + frame)

    def close(self) -> None:
        self.guest.close()
        self._ours.close()


@pytest.fixture(params=[True, False], ids=["vnet", "plain"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(vnet_hdr=request.param)
    yield made
    made.close()


def test_frames_come_in_batches(rig: Rig) -> None:
    rig.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sent = [bytes([n]) * (60 + n) for n in range(BATCH + 5)]
    for frame in sent:
        rig.put(frame)
    rig.link.on_event(EPOLLIN)
    assert rig.batches == [BATCH]
    rig.link.on_event(EPOLLIN)
    rig.link.on_event(EPOLLIN)
    assert rig.batches == [BATCH, BATCH + 5, BATCH + 5]
    assert rig.frames == sent
    assert rig.link.rx_frames == BATCH + 5


def test_lone_frame_is_handled_at_once(rig: Rig) -> None:
    rig.put(b"a" * 60)
    rig.put(b"b" * 60)
    rig.slept = 1e-3
    rig.link.on_event(EPOLLIN)
    assert rig.frames == [b"a" * 60]
    assert rig.batches == [1]


def test_queue_behind_other_work_is_read_as_a_whole(rig: Rig) -> None:
    """However long ago the last frame was read: acknowledgements may wait in it by the hundred."""
    for text in (b"a", b"b", b"c"):
        rig.put(text * 60)
    rig.slept = 2e-6
    rig.link.on_event(EPOLLIN)
    assert rig.batches == [3]


def test_held_frames_keep_their_place(rig: Rig) -> None:
    held: list[memoryview] = []

    def keep(buf: memoryview, off: int, end: int) -> bool:
        held.append(buf[off:end])
        return bytes(buf[off : off + 1]) != b"x"

    rig.link.receiver = keep
    for text in (b"one", b"x", b"two", b"three"):
        rig.put(text * 20)
    rig.link.on_event(EPOLLIN)
    assert [bytes(held[at]) for at in (0, 2, 3)] == [b"one" * 20, b"two" * 20, b"three" * 20]


def test_superframes_say_so() -> None:
    rig = Rig(vnet_hdr=True)
    sizes: list[int] = []
    rig.link.receiver = lambda *_: sizes.append(rig.link.rx_gso_size)
    rig.put(b"x" * 3000, struct.pack("=BBHHHH", 1, GSO_TCPV4, 54, 1460, 34, 16))
    rig.link.on_event(EPOLLIN)
    rig.put(b"x" * 60, struct.pack("=BBHHHH", 0, 0, 54, 1460, 0, 0))
    rig.link.on_event(EPOLLIN)
    assert sizes == [1460, 0]
    rig.close()


def build(link: Link) -> tuple[int, bytes]:
    """A TCP segment in ``link.tx`` without checksum; its length, and the frame without it."""
    prefix = link.prefix(hdr_len=54, csum_start=34, csum_offset=16)
    frame = bytearray(b"\2" * 12 + b"\x08\x00" + bytes(12) + GUEST4 + PEER4)
    frame += tcp.HEADER.pack(1, 2, 3, 4, 0x50, 0x10, 5, 0, 0) + b"payload"
    frame[50:52] = fold(pseudo_sum(GUEST4, PEER4, 6, 27)).to_bytes(2, "big")
    data = prefix + bytes(frame)
    link.tx[: len(data)] = data
    return len(data), bytes(frame)


def test_sending(rig: Rig) -> None:
    """With a virtio header the checksum is left to the kernel, without it is completed."""
    length, frame = build(rig.link)
    captured: list[bytes] = []
    rig.link.capture = lambda view: captured.append(bytes(view))
    assert rig.link.send(length)
    got = rig.guest.recv(70000)
    if rig.header:
        assert got[:10] == struct.pack("=BBHHHH", 1, 0, 54, 0, 34, 16)
        assert got[10:] == frame
    else:
        assert checksum(got[34:], pseudo_sum(GUEST4, PEER4, 6, 27)) == 0
        assert got[:50] + got[52:] == frame[:50] + frame[52:]
    assert checksum(captured[0][34:], pseudo_sum(GUEST4, PEER4, 6, 27)) == 0
    assert rig.link.tx_frames == 1


def test_gathered_frames(rig: Rig) -> None:
    length, frame = build(rig.link)
    data = bytes(rig.link.tx[:length])
    captured: list[bytes] = []
    rig.link.capture = lambda view: captured.append(bytes(view))
    assert rig.link.sendv((data[:20], memoryview(data)[20:40], data[40:]))
    got = rig.guest.recv(70000)[rig.header :]
    assert got[:50] + got[52:] == frame[:50] + frame[52:]
    assert len(captured) == 1
    assert rig.link.send_frame(b"s" * 60)
    assert rig.guest.recv(70000)[rig.header :] == b"s" * 60


def test_gathered_frame_too_large_for_the_buffer() -> None:
    rig = Rig(vnet_hdr=False)
    assert not rig.link.sendv((rig.link.prefix(), bytes(70000)))
    assert rig.link.tx_dropped == 1
    rig.close()


@pytest.mark.parametrize(
    ("number", "dead"),
    [
        (errno.EAGAIN, False),
        (errno.ENOBUFS, False),
        (errno.EIO, False),
        (errno.EINVAL, False),
        (errno.EBADFD, True),
    ],
)
def test_write_errors(rig: Rig, number: int, dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tap, "os", SimpleNamespace(write=failing, writev=failing))
    length, _ = build(rig.link)
    assert not rig.link.send(length)
    assert not rig.link.send_frame(b"x" * 60)
    assert (rig.link.tx_dropped, rig.link.tx_frames) == (2, 0)
    assert len(rig.deaths) == int(dead)


def test_end_of_the_device(rig: Rig) -> None:
    rig.guest.close()
    rig.link.on_event(EPOLLIN)
    rig.link.on_event(EPOLLHUP)
    assert rig.deaths == ["EOF on tap device, exiting"]


def test_hang_up(rig: Rig) -> None:
    rig.link.on_event(EPOLLHUP)
    assert rig.deaths == ["Disconnect event on /dev/net/tun device, exiting"]


def test_read_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([InterruptedError(), OSError(errno.EBADFD, "File descriptor in bad state")])

    def failing(*_: object) -> int:
        raise next(calls)

    monkeypatch.setattr(tap, "os", SimpleNamespace(readv=failing))
    rig.link.on_event(EPOLLIN)
    assert rig.deaths == ["Read error on tap device, exiting: File descriptor in bad state"]


def test_offloads_need_the_header() -> None:
    for vnet_hdr in (True, False):
        rig = Rig(vnet_hdr=vnet_hdr)
        assert (rig.link.gso_tcp4, rig.link.gso_tcp6, rig.link.gso_udp) == (vnet_hdr,) * 3
        rig.close()
