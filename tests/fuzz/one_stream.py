"""The socket of a virtual machine: frames with their lengths, in pieces, on one connection or more.

The input is a program (:mod:`tests.fuzz.program`): what the guest writes, when it hangs up and
connects anew, when it reads, and frames that we send it.  A second reader of the same bytes says
which frames there are and where a connection must end; what the guest reads must be the frames that
the link says it has taken, whole and in order, padded, with checksums complete, save for those that
were lost with their connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from passt.syscalls import bare_socket
from passt.userspace.link.base import MIN_FRAME
from passt.userspace.link.stream import StreamLink
from passt.userspace.loop import Loop
from tests.fuzz import program
from tests.fuzz.journal import Journal
from tests.fuzz.mutate import havoc
from tests.fuzz.program import Step

MAX_LEN = 8000
DICTIONARY = (
    bytes(4), struct.pack("!I", 14), struct.pack("!I", 13), struct.pack("!I", 60),
    struct.pack("!I", 65535), struct.pack("!I", 65536), b"\xff" * 4,
)  # fmt: skip

WRITE, LONG, HANG_UP, READ, SEND = range(5)
OPERATIONS = 5

_LENGTH = struct.Struct("!I")


class _Guest:
    """The link, the guest, and what is to be expected of them."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ends = 0
        self.link = StreamLink(self.loop, self._ended)
        self.link.receiver = self._receive
        self.frames: list[bytes] = []
        self.expected: list[bytes] = []
        #: What was written and is no frame yet; what was read likewise.
        self.written = bytearray()
        self.read = bytearray()
        self.taken: list[bytes] = []
        self.sock: socket.socket
        self.connect()

    def _ended(self) -> None:
        self.ends += 1

    def _receive(self, buf: memoryview, off: int, end: int) -> None:
        self.frames.append(bytes(buf[off:end]))

    def connect(self) -> None:
        guest, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        guest.setblocking(False)
        self.link.attach(bare_socket.socket(fileno=ours.detach()))
        self.sock = guest
        self.written.clear()
        self.read.clear()
        self.taken.clear()

    def hang_up(self) -> None:
        """Close, and connect again once that was noticed."""
        ends = self.ends
        self.sock.close()
        self.settle()
        assert self.ends == ends + 1, "the end of a connection was not noticed once"
        assert not self.link.connected
        self.connect()

    def write(self, data: bytes) -> None:
        """Write what fits, let the link read it, and compare."""
        while data:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                self.settle()
                continue
            self.written += data[:sent]
            data = data[sent:]
            broken = not self._expect()
            ends = self.ends
            self.settle()
            assert self.frames == self.expected, "frames differ"
            self.frames.clear()
            self.expected.clear()
            assert self.ends == ends + broken, "connection ended, or did not"
            if broken:
                self.sock.close()
                self.connect()
                return

    def _expect(self) -> bool:
        """Note which frames are complete; False if a length is impossible."""
        while len(self.written) >= 4:
            (size,) = _LENGTH.unpack_from(self.written)
            if not 14 <= size <= 65535:
                return False
            if len(self.written) < 4 + size:
                break
            self.expected.append(bytes(self.written[4 : 4 + size]))
            del self.written[: 4 + size]
        return True

    def send(self, frame: bytes) -> None:
        """Send a frame to the guest."""
        if self.link.send_frame(frame):
            self.taken.append(frame.ljust(MIN_FRAME, b"\0"))

    def take(self, limit: int) -> None:
        """Read up to ``limit`` bytes, and see that they are what was sent."""
        try:
            self.read += self.sock.recv(limit)
        except BlockingIOError:
            pass
        while len(self.read) >= 4:
            (size,) = _LENGTH.unpack_from(self.read)
            assert self.taken, "a frame that nobody sent"
            assert size == len(self.taken[0]), "a frame of another size"
            if len(self.read) < 4 + size:
                break
            assert self.read[4 : 4 + size] == self.taken.pop(0), "another frame"
            del self.read[: 4 + size]
        self.settle()

    def settle(self) -> None:
        """Let the link do what it can."""
        for _ in range(8):
            self.loop.round(0.0)

    def finish(self) -> None:
        """Read everything: what was taken must be there."""
        for _ in range(2000):
            if not self.taken:
                break
            self.take(1 << 16)
        assert not self.taken, "frames were lost"
        assert not self.read, "more than frames"


@contextmanager
def _guest() -> Iterator[_Guest]:
    guest = _Guest()
    try:
        yield guest
    finally:
        guest.sock.close()
        guest.settle()


def one(data: bytes) -> None:
    """Be the guest of a link."""
    with Journal(), _guest() as guest:
        for operation, operand in program.decode(data, OPERATIONS):
            if operation == WRITE:
                guest.write(operand)
            elif operation == LONG:
                # A frame of any size, for which the input has just two bytes.
                size = int.from_bytes(operand[:2], "big")
                guest.write(_LENGTH.pack(size) + bytes(size) + operand[2:])
            elif operation == HANG_UP:
                guest.hang_up()
            elif operation == READ:
                guest.take(1 + int.from_bytes(operand[:2], "big"))
            else:
                size = int.from_bytes(operand[:2], "big")
                guest.send(operand[2:] + bytes(size))
        guest.finish()


def _frame(size: int, fill: int = 7) -> bytes:
    return _LENGTH.pack(size) + bytes([fill]) * size


def seeds() -> Iterator[tuple[str, bytes]]:
    """Frames whole and in pieces, lengths that are none, a guest that does not read."""
    whole = _frame(60) + _frame(14) + _frame(1514)
    yield "whole", program.encode([(WRITE, whole), (WRITE, whole)])
    yield "pieces", program.encode([(WRITE, whole[at : at + 97]) for at in range(0, 1600, 97)])
    yield "bytes", program.encode([(WRITE, bytes([byte])) for byte in _frame(20) * 3])
    yield "short", program.encode([(WRITE, _frame(60) + _frame(13)), (WRITE, _frame(60))])
    yield "long", program.encode([(LONG, b"\xff\xff"), (LONG, b"\xff\xff" + _frame(60))])
    yield "huge", program.encode([(WRITE, b"\0\1\0\0"), (WRITE, _frame(60))])
    yield "anew", program.encode([(WRITE, whole[:70]), (HANG_UP, b""), (WRITE, whole)])
    yield "many", program.encode([(WRITE, _frame(14) * 300)])
    sent = [(SEND, b"\xff\0"), (SEND, b"\0\1x")] * 6
    yield "unread", program.encode([*sent, (READ, b"\xff\xff"), (WRITE, whole), *sent])
    yield "lost", program.encode([*sent, (READ, b"\0\x20"), (HANG_UP, b""), *sent])


def mutate(data: bytes, rnd: Random) -> bytes:
    """Other steps."""
    return program.mutate(data, rnd, OPERATIONS, _change, _fresh)


def _change(step: Step, rnd: Random) -> Step:
    operation, operand = step
    return operation, havoc(operand, rnd, limit=2000, dictionary=DICTIONARY)


def _fresh(rnd: Random) -> Step:
    operation = rnd.randrange(OPERATIONS)
    if operation == WRITE:
        return operation, _frame(rnd.choice((13, 14, 60, 61, 1514)), rnd.randrange(256))
    return operation, rnd.randbytes(2)
