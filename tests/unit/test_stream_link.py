"""Frames over a stream socket: where they begin and end, whatever the socket does."""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.syscalls import bare_socket
from passt.userspace import log
from passt.userspace.link import stream
from passt.userspace.link.base import GSO_TCPV4, MIN_FRAME
from passt.userspace.link.stream import BATCH, StreamLink
from passt.userspace.loop import Loop
from passt.userspace.wire.checksum import checksum, fold, pseudo_sum
from tests.unit.test_segment import TCP, frames_of, superframe

SHORTEST, LONGEST = 14, 65535


class Rig:
    """A link, the guest's end of its connection, and what came of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ends = 0
        self.link = StreamLink(self.loop, self.ended)
        self.frames: list[bytes] = []
        self.batches: list[int] = []
        self.link.receiver = self.receive
        self.link.batch_end = lambda: self.batches.append(len(self.frames))
        self.guest = self.connect()

    def connect(self) -> socket.socket:
        guest, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        guest.settimeout(5)
        self.link.attach(bare_socket.socket(fileno=ours.detach()))
        return guest

    def receive(self, buf: memoryview, off: int, end: int) -> bool:
        self.frames.append(bytes(buf[off:end]))
        return True

    def ended(self) -> None:
        self.ends += 1

    def turn(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.loop.round(0.0)

    def send(self, frame: bytes, start: int = 0, offset: int = 0) -> bool:
        whole = self.link.prefix(csum_start=start, csum_offset=offset) + frame
        self.link.tx[: len(whole)] = whole
        return self.link.send(len(whole))

    def received(self) -> bytes:
        """The next frame that the guest gets."""
        (size,) = struct.unpack("!I", self.exactly(4))
        return self.exactly(size)

    def received_slowly(self) -> bytes:
        """The same, of which a part may not have been sent yet."""
        (size,) = struct.unpack("!I", self.exactly(4))
        data = b""
        while len(data) < size:
            self.turn()
            data += self.guest.recv(min(10000, size - len(data)))
        return data

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.guest.recv(size - len(data))
            assert piece
            data += piece
        return bytes(data)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.guest.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def frame(size: int, fill: int = 7) -> bytes:
    return bytes([fill]) * size


@given(
    sizes=st.lists(st.integers(SHORTEST, 200), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 900), max_size=8),
)
def test_frames_may_be_cut_anywhere(sizes: list[int], cuts: list[int]) -> None:
    rig = Rig()
    frames = [frame(size, number) for number, size in enumerate(sizes)]
    data = framed(*frames)
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, stop in itertools.pairwise(borders):
        rig.guest.sendall(data[start:stop])
        rig.turn()
    assert rig.frames == frames
    assert rig.link.rx_frames == len(frames)
    assert rig.ends == 0
    rig.guest.close()


def test_the_largest_frame_in_small_pieces(rig: Rig) -> None:
    data = framed(frame(LONGEST, 1), frame(LONGEST, 2))
    for start in range(0, len(data), 10000):
        rig.guest.sendall(data[start : start + 10000])
        rig.turn()
    assert rig.frames == [frame(LONGEST, 1), frame(LONGEST, 2)]


@pytest.mark.parametrize("size", [0, 1, SHORTEST - 1, LONGEST + 1, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_connection(
    rig: Rig, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _key, _level, text, *_: told.append(text))
    rig.guest.sendall(framed(frame(60)) + struct.pack("!I", size) + framed(frame(60)))
    rig.turn(2)
    assert rig.frames == [frame(60)]
    assert rig.ends == 1
    assert not rig.link.connected
    assert rig.guest.recv(1) == b""
    assert told == ["Bad frame size from guest, resetting connection"]


def test_frames_before_the_end_arrive(rig: Rig) -> None:
    rig.guest.sendall(framed(frame(60, 1), frame(60, 2)) + b"\0\0")
    rig.guest.close()
    rig.turn(3)
    assert rig.frames == [frame(60, 1), frame(60, 2)]
    assert rig.ends == 1


def test_the_tail_of_a_connection_is_not_the_start_of_the_next(rig: Rig) -> None:
    rig.guest.sendall(framed(frame(60))[:30])
    rig.turn()
    rig.guest.close()
    rig.turn(2)
    rig.guest = rig.connect()
    rig.guest.sendall(framed(frame(60, 9)))
    rig.turn()
    assert rig.frames == [frame(60, 9)]
    assert rig.ends == 1


def test_many_frames_are_handled_in_batches(rig: Rig) -> None:
    rig.guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    frames = [frame(SHORTEST, number & 0xFF) for number in range(3 * BATCH + 1)]
    rig.guest.sendall(framed(*frames))
    rig.turn()
    assert rig.batches == [BATCH]
    rig.turn(3)
    assert rig.frames == frames
    assert rig.batches == [BATCH, 2 * BATCH, 3 * BATCH, len(frames)]


def test_data_that_come_meanwhile_stay_behind(rig: Rig) -> None:
    frames = [frame(SHORTEST, number & 0xFF) for number in range(BATCH + 5)]
    rig.guest.sendall(framed(*frames))
    rig.turn()
    rig.guest.sendall(framed(frame(70)))
    rig.turn(3)
    assert rig.frames == [*frames, frame(70)]


def test_an_end_that_was_not_reported_yet_is_found(rig: Rig) -> None:
    rig.guest.sendall(framed(frame(60)))
    rig.guest.close()
    rig.link.look()
    assert (rig.frames, rig.ends, rig.link.connected) == ([frame(60)], 1, False)
    # The event that was under way finds nothing.
    rig.turn(2)
    assert rig.ends == 1


def test_short_frames_are_padded(rig: Rig) -> None:
    rig.send(frame(1500))
    assert rig.send(frame(42))
    assert rig.received() == frame(1500)
    assert rig.received() == frame(42) + bytes(MIN_FRAME - 42)
    assert rig.link.tx_frames == 2


def test_checksums_are_completed(rig: Rig) -> None:
    source, destination = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 15))
    l4 = bytearray(frame(8 + 101, 5))
    pseudo = pseudo_sum(source, destination, 17, len(l4))
    l4[6:8] = fold(pseudo).to_bytes(2, "big")
    assert rig.send(bytes(34) + bytes(l4), start=34, offset=6)
    received = rig.received()
    assert received[:34] == bytes(34)
    assert checksum(received[34:], pseudo) == 0


def test_superframes_arrive_as_frames(rig: Rig) -> None:
    payload = bytes(range(200)) * 20
    made = superframe(4, TCP, payload)
    captured: list[bytes] = []
    rig.link.capture = lambda data: captured.append(bytes(data))
    prefix = rig.link.prefix(GSO_TCPV4, 1460, made.header, made.start, made.offset)
    assert rig.link.sendv((prefix, made.frame))
    received = [rig.received() for _ in range(3)]
    assert received == frames_of(made, 1460) == captured
    assert rig.link.tx_frames == 3


def test_superframes_of_crumbs_are_too_much(rig: Rig) -> None:
    made = superframe(4, TCP, bytes(60000))
    prefix = rig.link.prefix(GSO_TCPV4, 8, made.header, made.start, made.offset)
    assert not rig.link.sendv((prefix, made.frame))
    assert rig.link.tx_dropped == 1


def test_parts_are_gathered(rig: Rig) -> None:
    parts = (rig.link.prefix(), frame(50, 1), memoryview(frame(50, 2)))
    assert rig.link.sendv(parts)
    assert rig.received() == frame(50, 1) + frame(50, 2)
    assert rig.link.send_frame(frame(60, 3))
    assert rig.received() == frame(60, 3)


def test_parts_that_are_too_much(rig: Rig) -> None:
    assert not rig.link.sendv((rig.link.prefix(), bytes(65000), bytes(65000)))
    assert rig.link.tx_dropped == 1


def fill(rig: Rig, size: int = 60000) -> list[bytes]:
    """Send until there is no room, and return what was taken."""
    taken: list[bytes] = []
    while rig.send(frame(size, len(taken))):
        taken.append(frame(size, len(taken)))
        assert len(taken) < 1000
    return taken


def test_a_guest_that_does_not_read_costs_frames_not_order(rig: Rig) -> None:
    taken = fill(rig)
    assert taken
    dropped = rig.link.tx_dropped
    for _ in range(10):
        assert not rig.send(frame(3000))
        rig.turn()
    assert rig.link.tx_dropped == dropped + 10
    for expected in taken:
        if len(taken) > 1 and expected is taken[-1]:
            # The last one was cut, and goes on while the guest reads.
            rig.turn(5)
        (size,) = struct.unpack("!I", rig.exactly(4))
        data = b""
        while len(data) < size:
            rig.turn()
            data += rig.guest.recv(min(1000, size - len(data)))
        assert data == expected
    rig.turn()
    assert rig.send(frame(61, 8))
    assert rig.received() == frame(61, 8)


def test_small_frames_wait_behind(rig: Rig) -> None:
    """They are what other connections live on: acknowledgements, answers."""
    taken = fill(rig)
    waiting = [frame(60 + number, number) for number in range(100)]
    assert all(rig.send(each) for each in waiting)
    received = []
    while len(received) < len(taken) + len(waiting):
        rig.turn()
        received.append(rig.received_slowly())
    assert received == taken + waiting


def test_what_waits_is_bounded(rig: Rig) -> None:
    fill(rig)
    count = 0
    while rig.send(frame(1500)):
        count += 1
        assert count < 1000
    assert 100 < count < 200
    assert not rig.send(frame(60))


def test_room_is_used_before_it_is_told_of(rig: Rig) -> None:
    """The event comes when three quarters are free; that is megabytes on some machines."""
    taken = fill(rig)
    for expected in taken[:2]:
        assert rig.received_slowly() == expected
    assert rig.send(frame(3000, 9))


class Stubborn:
    """A socket that fails once."""

    def __init__(self, sock: bare_socket.socket, error: int) -> None:
        self._sock = sock
        self._error = error

    def send(self, data: bytes, flags: int) -> int:
        error, self._error = self._error, 0
        if error:
            raise OSError(error, "")
        return self._sock.send(data, flags)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_without_memory_a_frame_is_not_cut_short(rig: Rig) -> None:
    taken = fill(rig)
    assert rig.link._sock is not None
    rig.link._sock = Stubborn(rig.link._sock, errno.ENOBUFS)  # type: ignore[assignment]
    assert rig.send(frame(60, 5))
    received = []
    while len(received) < len(taken) + 1:
        rig.link._send_rest()
        received.append(rig.received_slowly())
    assert received == [*taken, frame(60, 5)]
    assert rig.ends == 0


def test_no_guest_no_frames(rig: Rig) -> None:
    rig.guest.close()
    rig.turn(2)
    assert rig.link.fileno() == -1
    assert not rig.send(frame(60))
    assert rig.link.tx_dropped == 1


def test_a_guest_that_left_unnoticed(rig: Rig) -> None:
    rig.guest.close()
    assert not rig.send(frame(60))
    assert rig.ends == 0
    rig.turn(2)
    assert rig.ends == 1


def test_a_rest_is_forgotten_with_its_connection(rig: Rig) -> None:
    fill(rig)
    rig.guest.close()
    rig.turn(3)
    rig.guest = rig.connect()
    assert rig.send(frame(60, 4))
    assert rig.received() == frame(60, 4)


def test_frames_are_captured_both_ways(rig: Rig) -> None:
    captured: list[bytes] = []
    rig.link.capture = lambda data: captured.append(bytes(data))
    rig.guest.sendall(framed(frame(60, 1)))
    rig.turn()
    rig.send(frame(42, 2))
    assert captured == [frame(60, 1), frame(42, 2) + bytes(18)]


def test_what_is_sent_from_within_the_receiver(rig: Rig) -> None:
    def answer(buf: memoryview, off: int, end: int) -> None:
        rig.link.send_frame(bytes(buf[off:end]))

    rig.link.receiver = answer
    rig.guest.sendall(framed(frame(60, 1), frame(60, 2)))
    rig.turn()
    assert [rig.received(), rig.received()] == [frame(60, 1), frame(60, 2)]


def test_the_buffer_holds_more_than_a_frame() -> None:
    assert stream._BUFFER > 2 * (LONGEST + 4)
