"""The tap device: frames of a network namespace through ``/dev/net/tun``.

With ``IFF_VNET_HDR`` every frame carries a 10-byte ``virtio_net_hdr`` in host byte order
(virtio 1.2, 5.1.6; Documentation/networking/tuntap.rst).  It lets the namespace's kernel
hand over TCP segments and UDP trains of up to 64 KiB in one read, without checksums, and
take the same from us: the cost of translation is per system call, so this is what makes it
fast.  A kernel without it still works: then headers of the same size are kept in front of
frames, and checksums are completed here.

The device is level-triggered and read in bounded batches.  A frame for which the loop has waited
asleep has come alone a moment ago, as in request/response traffic: reading again only to be told
EAGAIN would delay the answer, so the next wait for events settles that question.  What has come
while there was other work to do is read as a whole, acknowledgements above all: were they read
one by one, and each had a costly consequence, their queue would never become shorter.
"""

from __future__ import annotations

import errno
import os
import struct

from passt.syscalls.mmsg import anonymous
from passt.userspace.link.base import GSO_NONE, MAX_FRAME, Link
from passt.userspace.loop import EPOLLERR, EPOLLHUP
from passt.userspace.wire.checksum import complete

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Sleeper(Protocol):
        """What waits for events: :class:`passt.userspace.loop.Loop`, or a stand-in."""

        slept: float


#: Frames per batch; at 64 KiB each this bounds a batch to 4 MiB.
BATCH = 64

VNET_HDR_LEN = 10
_VNET = struct.Struct("=BBHHHH")
_GSO_SIZE = struct.Struct("=H")
_NEEDS_CSUM = 1

#: Read space of one frame: header, Ethernet header, a maximum IP packet, and room to spare.
#: All but the first are for frames that are held until the batch ends, and take no memory before.
_SLOT = 65536 + 128

#: Seconds of sleep after which a frame is taken to come alone; epoll_wait(2) takes some 2e-6 if
#: there is nothing to wait for.
_LULL = 10e-6

#: Errors of a write that cost this frame only: queue full, or interface down.
_TRANSIENT = frozenset(
    (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOSPC, errno.EIO, errno.ENOMEM)
)


class TapLink(Link):
    """A :class:`Link` over an open tap descriptor, whose events are those of ``loop``.

    ``vnet_hdr`` tells whether the device was attached with IFF_VNET_HDR; ``tso4``, ``tso6``
    and ``uso`` which superframes it takes from us.  ``on_dead(reason)`` is called once when
    the device fails for good (interface deleted, read error, end of file).
    """

    headroom = VNET_HDR_LEN

    def __init__(
        self,
        fd: int,
        loop: Sleeper,
        *,
        vnet_hdr: bool,
        gso_tcp4: bool,
        gso_tcp6: bool,
        gso_udp: bool,
        on_dead: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._fd = fd
        self._loop = loop
        self._vnet_hdr = vnet_hdr
        self._skip = 0 if vnet_hdr else VNET_HDR_LEN
        self.gso_tcp4 = vnet_hdr and gso_tcp4
        self.gso_tcp6 = vnet_hdr and gso_tcp6
        self.gso_udp = vnet_hdr and gso_udp
        self._on_dead: Callable[[str], None] | None = on_dead
        self.tx = memoryview(bytearray(VNET_HDR_LEN + MAX_FRAME + 64))
        memory = anonymous(BATCH * _SLOT).view
        slots = [memory[start : start + _SLOT] for start in range(0, BATCH * _SLOT, _SLOT)]
        self._slots = slots
        #: One single-element vector per slot, made once for readv().
        self._vectors = [[slot[self._skip :]] for slot in slots]

    def fileno(self) -> int:
        """The tap descriptor."""
        return self._fd

    def prefix(
        self,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
        hdr_len: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> bytes:
        """A ``virtio_net_hdr`` with these values; see :meth:`Link.prefix`."""
        flags = _NEEDS_CSUM if csum_start else 0
        return _VNET.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)

    def on_event(self, events: int) -> None:
        """Read one batch of frames and pass them on."""
        if events & (EPOLLERR | EPOLLHUP):
            self._dead("Disconnect event on /dev/net/tun device, exiting")
            return
        fd = self._fd
        readv = os.readv
        slots = self._slots
        vectors = self._vectors
        receiver = self.receiver
        skip = self._skip
        single = self._loop.slept > _LULL
        held = 0
        count = 0
        while count < BATCH:
            try:
                length = readv(fd, vectors[held]) + skip
            except BlockingIOError:
                break
            except InterruptedError:
                continue
            except OSError as error:
                self._dead(f"Read error on tap device, exiting: {error.strerror}")
                return
            if length == skip:
                self._dead("EOF on tap device, exiting")
                return
            count += 1
            buf = slots[held]
            # The header is only looked at where it exists; elsewhere it stays zero.
            self.rx_gso_size = _GSO_SIZE.unpack_from(buf, 4)[0] if buf[1] else 0
            if self.capture is not None and length > VNET_HDR_LEN:
                self._capture(buf[:length])
            if receiver(buf, VNET_HDR_LEN, length):
                held += 1
            if single and count == 1:
                break
        self.rx_frames += count
        self.batch_end()

    def send(self, length: int) -> bool:
        """Write ``tx[:length]``; False if the kernel did not take it."""
        frame = self.tx[:length]
        if not self._vnet_hdr:
            self._complete(frame)
        try:
            os.write(self._fd, frame[self._skip :] if self._skip else frame)
        except OSError as error:
            return self._write_error(error)
        self.tx_frames += 1
        if self.capture is not None:
            self._capture(frame)
        return True

    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Write one frame gathered from ``parts``; False if the kernel did not take it."""
        if not self._vnet_hdr:
            return self._send_gathered(parts)
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            return self._write_error(error)
        self.tx_frames += 1
        if self.capture is not None:
            self._capture(memoryview(b"".join(parts)))
        return True

    def _send_gathered(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Join ``parts`` in :attr:`tx`, where a missing checksum can be completed."""
        end = 0
        tx = self.tx
        for part in parts:
            start = end
            end += len(part)
            if end > len(tx):
                self.tx_dropped += 1
                return False
            tx[start:end] = part
        return self.send(end)

    def _complete(self, frame: memoryview) -> None:
        """Finish the checksum that the frame's prefix asks for, and clear the request."""
        flags, _, _, _, start, offset = _VNET.unpack_from(frame)
        if flags & _NEEDS_CSUM:
            complete(frame[VNET_HDR_LEN:], start, offset)
            frame[0] = 0

    def _capture(self, frame: memoryview) -> None:
        """Pass a copy with complete checksums to the capture."""
        if self.capture is not None:
            copy = memoryview(bytearray(frame))
            self._complete(copy)
            self.capture(copy[VNET_HDR_LEN:])

    def _write_error(self, error: OSError) -> bool:
        """Count a dropped frame, or give up on errors that will not pass."""
        self.tx_dropped += 1
        if error.errno not in _TRANSIENT and error.errno != errno.EINVAL:
            self._dead("Write error on tap device, exiting")
        return False

    def _dead(self, reason: str) -> None:
        """Report the end of the link, once."""
        if self._on_dead is not None:
            report, self._on_dead = self._on_dead, None
            report(reason)
