"""Frames over a stream socket: how QEMU's ``-netdev stream`` carries those of a virtual machine.

Each frame, both ways, follows its length: 4 bytes, big endian, not counting themselves (net/stream
of QEMU; passt(1)).  There are no superframes on it, and no checksums left to others: what the guest
sends is complete, and what it gets is cut (:mod:`passt.userspace.link.segment`) and completed here.

**Receiving.**  Bytes are read into one buffer, which frames are handled in where they lie.  What is
left of the last one, be it in the middle of its length, stays for the next read.  A guest that
sends many small frames in one go is served in batches, others in between.  A length that no frame
has means that the two sides do not agree any more on where frames begin, and nothing can mend that:
the connection ends.  The next starts from nothing.

**Sending.**  A write that takes only a part of a frame must be continued, whatever happens, and no
other frame can come in between.  The rest is kept, and sent as soon as the socket has room.  Until
then small frames wait behind it, within bounds: acknowledgements and short answers, which others
would have to wait a second for if they were lost to one bulk transfer.  All others are dropped, as
by an interface whose queue is full.  Thus a guest that does not read costs a superframe of memory
and some more, and nobody's time.
"""

from __future__ import annotations

import struct

from passt.syscalls import bare_socket as socket
from passt.syscalls.mmsg import anonymous
from passt.userspace import log
from passt.userspace.link.base import GSO_NONE, MAX_FRAME, MIN_FRAME, Link
from passt.userspace.link.segment import cut, room
from passt.userspace.loop import EPOLLIN, EPOLLOUT
from passt.userspace.wire.checksum import complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from passt.userspace.loop import Loop

#: Frames handled before others get their turn.
BATCH = 256

#: Lengths that a frame from the guest can have.
_SHORTEST = 14
_LONGEST = 65535

#: Before each frame: where its checksum starts, and the field within, both 0 for none; bytes of
#: payload that it is to be cut into, 0 for an ordinary frame, and of all headers; its length.
_PREFIX = struct.Struct("=HHHH4x")
_LENGTH = struct.Struct("!I")
_HEADROOM = _PREFIX.size
_LENGTH_AT = _HEADROOM - _LENGTH.size

#: Read at once at most; memory that is not used is not taken.
_BUFFER = 1 << 20
#: Room for what a superframe is cut into.
_CUT = 1 << 18

#: Frames of up to so many bytes, headroom included, may wait, and about so many bytes of them.
_SMALL = 2048
_MAX_WAITING = 1 << 18
#: Reads that find the end of a connection, as its queue holds less than all but the last.
_READS = 4

_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class StreamLink(Link):
    """A :class:`Link` over one connection at a time; without one, frames are dropped.

    ``on_closed()`` is called when a connection has ended, by whoever's doing.
    """

    headroom = _HEADROOM

    def __init__(self, loop: Loop, on_closed: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._on_closed = on_closed
        self._sock: socket.socket | None = None
        self._fd = -1
        self.tx = memoryview(bytearray(_HEADROOM + MAX_FRAME + 64))
        self.gso_tcp4 = self.gso_tcp6 = self.gso_udp = True
        self._buffer = anonymous(_BUFFER).view
        self._frames = anonymous(_CUT).view
        #: What was read and is not handled yet is ``_buffer[_at:_end]``.
        self._at = self._end = 0
        #: It is more than the beginning of a frame, and will be handled in the next round.
        self._behind = False
        #: What is to follow of a frame that was sent in part, and small frames behind it.
        self._rest = bytearray()
        #: We are told when there is room for it.
        self._awaits_room = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._sock is not None

    def fileno(self) -> int:
        """The descriptor of the connection, −1 if there is none."""
        return self._fd

    def attach(self, sock: socket.socket) -> None:
        """Carry frames over ``sock``, ours from here on; there must be no connection.

        OSError if it cannot be watched.
        """
        self._loop.add(sock.fileno(), EPOLLIN, self._on_event)
        self._sock = sock
        self._fd = sock.fileno()
        self._at = self._end = 0

    def prefix(
        self,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
        hdr_len: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> bytes:
        """What is to be known of the frame when it is sent; see :meth:`Link.prefix`."""
        return _PREFIX.pack(csum_start, csum_offset, gso_size, hdr_len)

    # From the guest.

    def look(self) -> None:
        """See whether the connection has ended, as its event may still be on its way."""
        sock = self._sock
        if sock is None:
            return
        try:
            # Nothing is sent, but whether anything could be is told (unix_stream_sendmsg).
            sock.send(b"", _FLAGS)
            return
        except BlockingIOError:
            return
        except OSError:
            pass
        # What was sent before is handled first, as much as the connection's queue holds.
        for _ in range(_READS):
            while self._behind:
                self._continue()
            if not self._read():
                break

    def _on_event(self, events: int) -> None:
        if events & EPOLLOUT:
            self._send_rest()
        # Whatever else happened, reading will tell; a connection that has ended may hold data.
        if events & ~EPOLLOUT and not self._behind:
            self._read()

    def _read(self) -> bool:
        """Read what there is, once, and handle the frames in it; False if there was nothing.

        Not while there are frames to be handled: the buffer may be full of them.
        """
        sock = self._sock
        if sock is None:
            return False
        self._make_room()
        try:
            count = sock.recv_into(self._buffer[self._end :], 0, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            count = 0
        if not count:
            self._close()
            return False
        self._end += count
        self._handle()
        return True

    def _make_room(self) -> None:
        """Move the beginning of a frame to that of the buffer."""
        left = self._end - self._at
        if left and self._at:
            self._buffer[:left] = self._buffer[self._at : self._end]
        self._at = 0
        self._end = left

    def _continue(self) -> None:
        """Handle what was left for this round."""
        self._behind = False
        if self._sock is not None:
            self._handle()

    def _handle(self) -> None:
        """Handle the frames that were read, as many as one batch has."""
        buffer = self._buffer
        receiver = self.receiver
        at, end = self._at, self._end
        count = 0
        sound = True
        while end - at >= 4:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if not _SHORTEST <= size <= _LONGEST:
                sound = False
                break
            start = at + 4
            stop = start + size
            if stop > end:
                break
            if count == BATCH:
                self._behind = True
                self._loop.again(self._continue)
                break
            if self.capture is not None:
                self.capture(buffer[start:stop])
            receiver(buffer, start, stop)
            count += 1
            at = stop
        self._at = at
        self.rx_frames += count
        self.batch_end()
        if not sound:
            log.limited(
                "frame-size", log.WARNING, "Bad frame size from guest, resetting connection"
            )
            self._close()

    def _close(self) -> None:
        """End the connection."""
        sock = self._sock
        if sock is None:
            return
        self._loop.close(sock, self._fd)
        self._sock = None
        self._fd = -1
        self._rest.clear()
        self._awaits_room = False
        self._on_closed()

    # To the guest.

    def send(self, length: int) -> bool:
        """Send ``tx[:length]``; False if there is nobody, or no room."""
        if self._rest:
            # There may be room again long before there is an event, which takes three quarters.
            self._send_rest()
        waiting = len(self._rest)
        if self._sock is None or (waiting and (length > _SMALL or waiting >= _MAX_WAITING)):
            # Before any work is done for it.
            self.tx_dropped += 1
            return False
        tx = self.tx
        start, offset, size, header = _PREFIX.unpack_from(tx)
        if size:
            return self._send_cut(tx[_HEADROOM:length], size, header, start, offset)
        if start:
            complete(tx[_HEADROOM:length], start, offset)
        least = _HEADROOM + MIN_FRAME
        if length < least:
            tx[length:least] = bytes(least - length)
            length = least
        _LENGTH.pack_into(tx, _LENGTH_AT, length - _HEADROOM)
        return self._write(tx[_LENGTH_AT:length], 1, length <= _SMALL)

    def _send_cut(self, frame: memoryview, size: int, header: int, start: int, offset: int) -> bool:
        """Send the superframe ``frame`` as frames with ``size`` bytes of payload each."""
        if room(len(frame), size, header) > _CUT:
            self.tx_dropped += 1
            return False
        end = cut(frame, size, header, start, offset, self._frames)
        count = -(-(len(frame) - header) // size)
        return self._write(self._frames[:end], count, end <= _SMALL)

    def _write(self, whole: memoryview, count: int, may_wait: bool) -> bool:
        """Write ``count`` frames with their lengths; False if none of them was taken.

        If there is no room for any of them they are taken nevertheless if they ``may_wait``.
        """
        assert self._sock is not None
        sent = 0
        if not self._rest:
            try:
                sent = self._sock.send(whole, _FLAGS)
            except BlockingIOError:
                pass
            except OSError:
                # Nobody any more, as reading will tell; or no memory.
                may_wait = False
        if sent < len(whole):
            if not (sent or may_wait):
                self.tx_dropped += count
                return False
            self._rest += whole[sent:]
            self._await_room(True)
        self.tx_frames += count
        if self.capture is not None:
            self._capture_all(whole)
        return True

    def _capture_all(self, whole: memoryview) -> None:
        """Pass frames that were sent, with their lengths, to the capture."""
        at = 0
        while at < len(whole) and self.capture is not None:
            (size,) = _LENGTH.unpack_from(whole, at)
            self.capture(whole[at + 4 : at + 4 + size])
            at += 4 + size

    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Send one frame gathered from ``parts``; False if there is nobody, or no room."""
        tx = self.tx
        end = 0
        for part in parts:
            start = end
            end += len(part)
            if end > _HEADROOM + MAX_FRAME:
                self.tx_dropped += 1
                return False
            tx[start:end] = part
        return self.send(end)

    def _send_rest(self) -> None:
        """Go on with what waits: the rest of a frame that was sent in part, others behind it."""
        sock = self._sock
        if sock is None:
            return
        try:
            sent = sock.send(self._rest, _FLAGS)
        except BlockingIOError:
            self._await_room(True)
            return
        except OSError:
            # Nobody any more, as reading will tell.  Or no memory: with the next frame it is
            # tried again, rather than all the time.
            self._await_room(False)
            return
        del self._rest[:sent]
        self._await_room(bool(self._rest))

    def _await_room(self, wanted: bool) -> None:
        """Be told when the socket has room, or not any more."""
        if wanted != self._awaits_room:
            self._awaits_room = wanted
            self._loop.modify(self._fd, EPOLLIN | EPOLLOUT if wanted else EPOLLIN)
