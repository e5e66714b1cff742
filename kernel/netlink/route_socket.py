"""A NETLINK_ROUTE socket: requests, dumps and batches, with what can go wrong in each.

Theory of operation
-------------------
Every request carries its own sequence number, and an answer with another one is dropped: it
belongs to a request that was given up.  In a namespace whose root is somebody else, that root may
send to our port, and so keep us waiting for the kernel for ever: therefore the socket is
connected to the kernel (port 0), which nobody else's messages get past.  Those that came in the
instant before are dropped.

*Dump*: the answer is many messages in many datagrams, ended by NLMSG_DONE, which may sit in the
last datagram with data or in one of its own, and carries an error number.  If the table changed
meanwhile the kernel marks messages with NLM_F_DUMP_INTR; then, and if the receive queue
overflowed (ENOBUFS), the dump is read to its end and asked for again, a bounded number of times.

*Batch*: many requests in one datagram.  The kernel executes them in order and answers each
failure; only the last asks for an acknowledgement, which tells that all are done.  Answers hold
the header of the request alone (NETLINK_CAP_ACK), so that those of a whole batch fit the queue.

Options that older kernels lack are done without: strict checking (filters in dumps, Linux
4.20), so callers must filter again; extended acknowledgement (error texts, 4.12).

Source: netlink(7), Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import os
import struct
from errno import EMSGSIZE, ENOBUFS, EPROTO, ETIMEDOUT

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, parse
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEADER = struct.Struct("=IHHII")
_ERRNO = struct.Struct("=i")
_BUFFER_SIZE = 64 << 10
_BUFFER_LIMIT = 4 << 20
_DUMP_LIMIT = 512 << 20
_DUMP_ATTEMPTS = 5
_BATCH_MESSAGES = 64
_BATCH_BYTES = 32 << 10
_TIMEOUT_SECONDS = 10
# The kernel has none beyond (linux/err.h), and strerror(3) takes no more than an int.
_MAX_ERRNO = 4095


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` has its reason, with its own words if it had any."""


class RouteSocket:
    """A socket in the network namespace the caller is in now; it stays there."""

    __slots__ = ("_buffer", "_sequence", "_socket")

    def __init__(self) -> None:
        """Open and connect to the kernel; OSError as socket(2)."""
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_ROUTE
        )
        options = (uapi.NETLINK_CAP_ACK, uapi.NETLINK_EXT_ACK, uapi.NETLINK_GET_STRICT_CHK)
        for option in options:
            try:
                sock.setsockopt(uapi.SOL_NETLINK, option, 1)
            except OSError:
                pass
        # The kernel answers at once or never: rather fail than hang in a start-up.
        sock.settimeout(_TIMEOUT_SECONDS)
        sock.connect((0, 0))
        self._socket = sock
        self._sequence = 0
        self._buffer = bytearray(_BUFFER_SIZE)

    def close(self) -> None:
        """Close the socket; calling it again does nothing."""
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies (without netlink header) of all messages in answer to dump request `kind`.

        `body` is the family header and possibly filter attributes.  After several attempts
        disturbed by changes the last result is returned as it is.  NetlinkError if the kernel
        refuses; OSError ETIMEDOUT if it stays silent.
        """
        for _ in range(_DUMP_ATTEMPTS):
            bodies, consistent = self._dump_once(kind, body)
            if consistent:
                break
        return bodies

    def get(self, kind: int, body: bytes) -> bytes:
        """Body of the one message that answers request `kind`; NetlinkError if refused."""
        sequence = self._send(kind, 0, body)
        while True:
            for number, flags, answer, payload in _messages(self._receive()):
                if answer != sequence:
                    continue
                if number != uapi.NLMSG_ERROR:
                    return payload
                error = _error(payload, flags)
                if error is not None:
                    raise error

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Have request `kind` executed; NetlinkError if it fails."""
        error = self.batch(kind, flags, [body])[0]
        if error is not None:
            raise error

    def batch(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[NetlinkError | None]:
        """Have one request `kind` per body executed, in order; the failure of each, or None.

        A failure does not stop those after it.
        """
        results: list[NetlinkError | None] = [None] * len(bodies)
        start = 0
        while start < len(bodies):
            end, size = start, 0
            while end < len(bodies) and end - start < _BATCH_MESSAGES:
                size += len(bodies[end]) + _HEADER.size
                if size > _BATCH_BYTES and end > start:
                    break
                end += 1
            self._batch_once(kind, flags, bodies, results, start, end)
            start = end
        return results

    def _batch_once(
        self,
        kind: int,
        flags: int,
        bodies: Sequence[bytes],
        results: list[NetlinkError | None],
        start: int,
        end: int,
    ) -> None:
        first = self._sequence + 1
        last = self._sequence = self._sequence + end - start
        datagram = bytearray()
        for index in range(start, end):
            sequence = first + index - start
            datagram += _pack(
                kind,
                flags | uapi.NLM_F_REQUEST | (uapi.NLM_F_ACK if sequence == last else 0),
                sequence,
                bodies[index],
            )
        self._socket.send(datagram)
        while True:
            for number, message_flags, answer, payload in _messages(self._receive()):
                if number != uapi.NLMSG_ERROR or not first <= answer <= last:
                    continue
                results[start + answer - first] = _error(payload, message_flags)
                if answer == last:
                    return

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        sequence = self._send(kind, uapi.NLM_F_DUMP, body)
        bodies: list[bytes] = []
        consistent = True
        total = 0
        while True:
            try:
                datagram = self._receive()
            except OSError as e:
                if e.errno != ENOBUFS:
                    raise
                consistent = False
                continue
            total += len(datagram)
            if total > _DUMP_LIMIT:
                raise NetlinkError(EMSGSIZE, "netlink dump without end")
            for number, flags, answer, payload in _messages(datagram):
                if answer != sequence:
                    continue
                if flags & uapi.NLM_F_DUMP_INTR:
                    consistent = False
                if number in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
                    error = _error(payload, flags if number == uapi.NLMSG_ERROR else 0)
                    if error is not None:
                        raise error
                    return bodies, consistent
                bodies.append(payload)

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence += 1
        self._socket.send(_pack(kind, flags | uapi.NLM_F_REQUEST, self._sequence, body))
        return self._sequence

    def _receive(self) -> bytes:
        """The next datagram from the kernel, whatever its length up to the limit."""
        while True:
            try:
                size = self._socket.recvfrom_into(
                    self._buffer, 1, socket.MSG_PEEK | socket.MSG_TRUNC
                )[0]
                if size > len(self._buffer):
                    if size > _BUFFER_LIMIT:
                        raise NetlinkError(EMSGSIZE, f"netlink message of {size} bytes")
                    self._buffer = bytearray(size)
                size, sender = self._socket.recvfrom_into(self._buffer)
            except TimeoutError:
                raise NetlinkError(ETIMEDOUT, "no answer over netlink") from None
            if sender[0] == 0:
                return bytes(memoryview(self._buffer)[:size])


def _pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    header = _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0)
    return header + body + bytes(-len(body) % 4)


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence number, body) of each whole message in a datagram."""
    start, end = 0, len(datagram)
    while end - start >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, start)
        if length < _HEADER.size or length > end - start:
            return
        yield kind, flags, sequence, datagram[start + _HEADER.size : start + length]
        start += (length + 3) & ~3


def _error(payload: bytes, flags: int) -> NetlinkError | None:
    """What NLMSG_ERROR or NLMSG_DONE with this payload says: None is success."""
    if len(payload) < _ERRNO.size:
        return None
    number: int = -_ERRNO.unpack_from(payload)[0]
    if number <= 0:
        return None
    if number > _MAX_ERRNO:
        number = EPROTO
    text = os.strerror(number)
    detail = _extended_text(payload, flags)
    return NetlinkError(number, f"{text} ({detail})" if detail else text)


def _extended_text(payload: bytes, flags: int) -> str:
    """The kernel's own words in an extended acknowledgement, or an empty string."""
    if not flags & uapi.NLM_F_ACK_TLVS or len(payload) < _ERRNO.size + _HEADER.size:
        return ""
    start = _ERRNO.size + _HEADER.size
    if not flags & uapi.NLM_F_CAPPED:
        # The request follows whole instead of by its header alone.
        start = _ERRNO.size + ((_HEADER.unpack_from(payload, _ERRNO.size)[0] + 3) & ~3)
    try:
        text = parse(payload, start).get(uapi.NLMSGERR_ATTR_MSG, b"")
    except FormError:
        return ""
    return text.rstrip(b"\0").decode("ascii", "replace")
