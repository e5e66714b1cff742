"""Many datagrams per system call: recvmmsg(2) and sendmmsg(2).

All structures the kernel reads (mmsghdr, iovec, addresses, control buffers) are laid out once,
in flat buffers.  Between calls only the fields that change are touched, through memoryviews
cast to the word size: ctypes' attribute access is an order of magnitude slower.

* `RecvBatch` fills a ring of equal slots.  The ring is anonymous memory without huge pages, so
  slots and parts of slots never written to cost nothing.  The kernel overwrites the lengths of
  names and control data; those headers that were used are restored from a template by one copy.
* `SendBatch` sends datagrams gathered from anywhere in `Region`s.
* `Forward` sends datagrams straight out of a RecvBatch: its iovecs point into the ring for
  good, and the received lengths are carried over by one strided copy, whatever the count.

Calls return a count, or −errno: EAGAIN is ordinary and an exception would cost more than the
call.  Offsets and lengths are checked against the region they refer to, so that a wrong one
raises ValueError here instead of reading or writing foreign memory.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from ctypes import get_errno

from passt.syscalls import bare_socket as socket
from passt.syscalls.libc import hot

_recvmmsg = hot("recvmmsg")
_sendmmsg = hot("sendmmsg")

# struct mmsghdr: name, namelen, iov, iovlen, control, controllen, flags; then the length of
# the datagram, behind the padding of the embedded msghdr.
_MSGHDR = struct.Struct("@PIPNPNi0P")
_IOVEC = struct.Struct("@PN")
_POINTER = struct.calcsize("P")
_MMSGHDR_LEN = (_MSGHDR.size + 4 + _POINTER - 1) // _POINTER * _POINTER

# Field positions in 32-bit words and in pointer-sized words.
_STRIDE = _MMSGHDR_LEN // 4
_NAMELEN = _POINTER // 4
_FLAGS = struct.calcsize("@PIPNPN") // 4
_LENGTH = _MSGHDR.size // 4
_WIDE_STRIDE = _MMSGHDR_LEN // _POINTER
_IOVLEN = struct.calcsize("@PIP") // _POINTER
_CONTROLLEN = struct.calcsize("@PIPNP") // _POINTER
# The 32-bit word of iov_len that holds values below 2^32.
_IOV_STRIDE = _IOVEC.size // 4
_IOV_LENGTH = _IOV_STRIDE // 2
if _POINTER == 8 and struct.pack("=H", 1) != b"\1\0":
    _IOV_LENGTH += 1

_NAME_LEN = 32
"""Room for a raw address: the largest wanted, sockaddr_in6, has 28 bytes."""

_MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
_MSG_TRUNC = int(socket.MSG_TRUNC)
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Region:
    """A writable buffer pinned in memory, so that the kernel can be given addresses in it.

    While a Region lives its buffer can neither be resized nor closed.
    """

    __slots__ = ("_pin", "address", "size", "view")

    def __init__(self, buffer: bytearray | memoryview | mmap.mmap) -> None:
        self.view = memoryview(buffer).cast("B")
        self.size = len(self.view)
        self._pin = (ctypes.c_char * self.size).from_buffer(buffer)
        self.address = ctypes.addressof(self._pin)
        """Address of the first byte in this process."""


def anonymous(size: int) -> Region:
    """Zeroed memory of `size` bytes that occupies pages only where it is written to."""
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        area.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:
        pass  # a kernel without huge pages has nothing to be told
    return Region(area)


class _Headers:
    """Array of mmsghdr with its iovecs, names and control buffers, as `count` × one message."""

    __slots__ = ("at", "bytes", "control", "iovecs", "names", "wide", "words")

    def __init__(self, count: int, parts: int, names: bool, control: int) -> None:
        headers = Region(bytearray(count * _MMSGHDR_LEN))
        self.iovecs = Region(bytearray(count * parts * _IOVEC.size))
        self.names = Region(bytearray(count * _NAME_LEN if names else 0))
        self.control = Region(bytearray(count * control))
        for i in range(count):
            _MSGHDR.pack_into(
                headers.view,
                i * _MMSGHDR_LEN,
                self.names.address + i * _NAME_LEN if names else 0,
                _NAME_LEN if names else 0,
                self.iovecs.address + i * parts * _IOVEC.size,
                parts,
                self.control.address + i * control if control else 0,
                control,
                0,
            )
        self.bytes = headers.view
        self.words = headers.view.cast("I")
        self.wide = headers.view.cast("P")
        # ctypes passes an instance quickly; an int would be cut to 32 bits (see libc.hot).
        self.at = [ctypes.c_void_p(headers.address + i * _MMSGHDR_LEN) for i in range(count)]


class RecvBatch:
    """Receive up to `n` datagrams of up to `size` bytes per call.

    `control`: bytes of control data per datagram (`cmsg.space`); `names`: whether source
    addresses are wanted.  What the accessors return is valid until the next `recv`.

    `ring` is the Region of the slots, slot i starting at i × size; `slots` are views of them.
    """

    __slots__ = (
        "_control_size",
        "_headers",
        "_pointer",
        "_template",
        "n",
        "ring",
        "size",
        "slots",
        "used",
    )

    def __init__(self, n: int, size: int, control: int = 0, names: bool = True) -> None:
        self.n = n
        self.size = size
        self.used = 0
        """Datagrams received by the last call."""
        self.ring = anonymous(n * size)
        self.slots = [self.ring.view[i * size : (i + 1) * size] for i in range(n)]
        self._control_size = control
        headers = self._headers = _Headers(n, 1, names, control)
        for i in range(n):
            _IOVEC.pack_into(
                headers.iovecs.view, i * _IOVEC.size, self.ring.address + i * size, size
            )
        self._template = memoryview(bytes(headers.bytes))
        self._pointer = headers.at[0]

    def recv(self, fd: int, flags: int = _MSG_DONTWAIT, limit: int = 0) -> int:
        """Receive into the slots from 0 on; returns how many were filled, or −errno.

        `limit` (0: n) bounds the number.  A datagram longer than a slot is cut, and `flags`
        shows MSG_TRUNC for it; asking for real lengths by MSG_TRUNC is a ValueError.  On the
        hot path `flags` should be a plain int: socket's MSG_ constants are enumerations,
        whose operators cost more than the call.
        """
        if flags & _MSG_TRUNC or limit > self.n or limit < 0:
            raise ValueError("recv: MSG_TRUNC, or limit beyond the batch")
        headers = self._headers
        used = self.used
        if used:
            end = used * _MMSGHDR_LEN
            headers.bytes[:end] = self._template[:end]
        count = _recvmmsg(fd, self._pointer, limit or self.n, flags, None)
        if count < 0:
            self.used = 0
            return -get_errno()
        self.used = count
        return count

    def length(self, i: int) -> int:
        """Bytes of datagram `i`."""
        return self._headers.words[i * _STRIDE + _LENGTH]

    def lengths(self) -> list[int]:
        """Bytes of each datagram received, faster than one by one."""
        return self._headers.words[_LENGTH : self.used * _STRIDE : _STRIDE].tolist()

    def view(self, i: int, length: int) -> memoryview:
        """The first `length` bytes of slot `i`, not copied."""
        return self.slots[i][:length]

    def name(self, i: int) -> bytes:
        """Raw source address of datagram `i` (see `sockaddr.unpack`); empty if there is none."""
        start = i * _NAME_LEN
        length = self._headers.words[i * _STRIDE + _NAMELEN]
        return bytes(self._headers.names.view[start : start + min(length, _NAME_LEN)])

    def names(self) -> list[bytes]:
        """Raw source address of each datagram received, faster than one by one."""
        headers = self._headers
        used = self.used
        blob = headers.names.view[: used * _NAME_LEN].tobytes()
        lengths = headers.words[_NAMELEN : used * _STRIDE : _STRIDE].tolist()
        starts = range(0, used * _NAME_LEN, _NAME_LEN)
        return [blob[i : i + n] for i, n in zip(starts, lengths, strict=True)]

    def control(self, i: int) -> memoryview:
        """Control data received with datagram `i`, exactly as long as the kernel says."""
        start = i * self._control_size
        length = self._headers.wide[i * _WIDE_STRIDE + _CONTROLLEN]
        return self._headers.control.view[start : start + min(length, self._control_size)]

    def control_lengths(self) -> list[int]:
        """Bytes of control data received with each datagram: tells at once if there are any."""
        wide = self._headers.wide
        return wide[_CONTROLLEN : self.used * _WIDE_STRIDE : _WIDE_STRIDE].tolist()

    def flags(self, i: int) -> int:
        """MSG_TRUNC, MSG_CTRUNC, MSG_ERRQUEUE … of datagram `i`."""
        return self._headers.words[i * _STRIDE + _FLAGS]


class SendBatch:
    """Send up to `n` datagrams per call, each gathered from up to `parts` pieces.

    `control`: room for control data per datagram.  Pieces are not copied: they must stay as
    they are until `send`.  Their regions are kept alive by the batch.
    """

    __slots__ = ("_control_size", "_headers", "_iovecs", "_parts", "_plain", "_regions", "n")

    def __init__(self, n: int, parts: int = 1, control: int = 0) -> None:
        self.n = n
        self._parts = parts
        self._control_size = control
        self._headers = _Headers(n, parts, True, control)
        self._iovecs = self._headers.iovecs.view.cast("P")
        self._regions: list[Region | None] = [None] * (n * parts)
        # Whether the header says: one piece, no name, no control data.
        self._plain = [False] * n

    def set(
        self,
        i: int,
        region: Region,
        offset: int,
        length: int,
        name: bytes = b"",
        control: bytes = b"",
    ) -> None:
        """Make datagram `i` of one piece: `length` bytes at `offset` of `region`.

        `name` is the raw destination address, empty for connected sockets; `control` whole
        control messages, empty for none.
        """
        if offset < 0 or length < 0 or offset + length > region.size:
            raise ValueError("set: piece outside its region")
        k = i * self._parts
        self._regions[k] = region
        iovecs = self._iovecs
        k += k
        iovecs[k] = region.address + offset
        iovecs[k + 1] = length
        if name or control or not self._plain[i]:
            self._set_header(i, name, control)

    def _set_header(self, i: int, name: bytes, control: bytes) -> None:
        if len(name) > _NAME_LEN or len(control) > self._control_size:
            raise ValueError("set: name or control data too long")
        headers = self._headers
        headers.words[i * _STRIDE + _NAMELEN] = len(name)
        start = i * _NAME_LEN
        headers.names.view[start : start + len(name)] = name
        wide = headers.wide
        at = i * _WIDE_STRIDE
        wide[at + _IOVLEN] = 1
        wide[at + _CONTROLLEN] = len(control)
        start = i * self._control_size
        headers.control.view[start : start + len(control)] = control
        self._plain[i] = not name and not control

    def add(self, i: int, region: Region, offset: int, length: int) -> None:
        """Append a piece to datagram `i`, which `set` has begun."""
        if offset < 0 or length < 0 or offset + length > region.size:
            raise ValueError("add: piece outside its region")
        at = i * _WIDE_STRIDE + _IOVLEN
        used = self._headers.wide[at]
        if used >= self._parts:
            raise ValueError("add: too many pieces")
        self._headers.wide[at] = used + 1
        self._plain[i] = False
        k = i * self._parts + used
        self._regions[k] = region
        self._iovecs[2 * k] = region.address + offset
        self._iovecs[2 * k + 1] = length

    def send(self, fd: int, count: int, flags: int = _SEND_FLAGS, first: int = 0) -> int:
        """Send `count` datagrams from number `first` on; returns how many went, or −errno.

        Fewer than `count` means that the next one met an error, which the next call reports.
        """
        if count < 0 or first + count > self.n:
            raise ValueError("send: count beyond the batch")
        return _send(fd, self._headers.at[first], count, flags)


class Forward:
    """Send datagrams on, unchanged, from the slots that a RecvBatch has just filled.

    For connected sockets: no addresses, no control data.
    """

    __slots__ = ("_headers", "_iov_words", "_recv")

    def __init__(self, recv: RecvBatch) -> None:
        self._recv = recv
        self._headers = _Headers(recv.n, 1, False, 0)
        iovecs = self._headers.iovecs.view
        for i in range(recv.n):
            _IOVEC.pack_into(iovecs, i * _IOVEC.size, recv.ring.address + i * recv.size, 0)
        self._iov_words = iovecs.cast("I")

    def send(self, fd: int, first: int, count: int, flags: int = _SEND_FLAGS) -> int:
        """Send slots `first` to `first` + `count` − 1; returns how many went, or −errno."""
        recv = self._recv
        end = first + count
        if first < 0 or count <= 0 or end > recv.used:
            raise ValueError("send: slots that hold nothing")
        self._iov_words[first * _IOV_STRIDE + _IOV_LENGTH : end * _IOV_STRIDE : _IOV_STRIDE] = (
            recv._headers.words[first * _STRIDE + _LENGTH : end * _STRIDE : _STRIDE]
        )
        return _send(fd, self._headers.at[first], count, flags)


def _send(fd: int, headers: ctypes.c_void_p, count: int, flags: int) -> int:
    sent = _sendmmsg(fd, headers, count, flags)
    return sent if sent >= 0 else -get_errno()
