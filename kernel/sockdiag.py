"""Local ports of sockets in a given state, asked of the kernel by netlink.

Theory of operation
-------------------
A request to sock_diag(7) names an IP version, a protocol and a set of TCP states; the answer
has a message per socket::

     0  length of the message        4  type         6  flags        8  sequence, port ID
    16  family, state, timer, retransmissions
    20  local port, big-endian      22  remote port, …

and ends with a message of type DONE, which may share a datagram with others.  Looking for
listening sockets, the kernel does not even look at established connections, where
/proc/net/tcp walks through a table of hundreds of thousands of buckets: 0.03 ms instead of
1 ms for a handful of sockets.

All messages of an answer have the same length, as a rule, so that ports are found by taking
every n-th byte of it, without a look at each message.

The namespace asked about is that in which the socket was made, whoever uses it.  No
privilege is needed.  Kernels without this interface, or containers that filter it, answer
with an error, and then there is proc_pid_net(5).

In that namespace somebody else may be root, and root may send netlink messages to any port,
answers that never end among them.  So the socket is connected to the kernel, whereupon nobody
else can reach it, and an answer has a limit.

Source: sock_diag(7), netlink(7), linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import struct

from passt.kernel.sockets import SocketSpec
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
#: NLM_F_REQUEST and NLM_F_DUMP.
_FLAGS = 0x301

#: struct nlmsghdr, then struct inet_diag_req_v2 up to the states; the rest is zero.
_REQUEST = struct.Struct("=IHHII BBxxI 48x")
_HEADER = struct.Struct("=IHHII")
#: Messages of type DONE and ERROR start with the header and an error number, negative or 0.
_END = struct.Struct("=IHHIIi")
_TYPE_END = 6
#: The kernel has none beyond (linux/err.h), and strerror(3) takes no more than an int.
_MAX_ERRNO = 4095
_PORT = 20
_MIN_MESSAGE = 24

#: More than the kernel puts into one datagram of an answer.
_BUFFER = 1 << 16

#: Bytes of an answer: twice what a listening socket on each port makes.
_LIMIT = 16 << 20

#: How to make the socket that :class:`SocketDiag` needs.
SPEC = SocketSpec(
    socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol=_NETLINK_SOCK_DIAG
)


class SocketDiag:
    """Asks over ``sock``, made according to :data:`SPEC`, which is ours from here on.

    OSError if it cannot be connected; it is closed then.
    """

    __slots__ = ("_answers", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        try:
            # What was sent before this is dropped ahead of the first question.
            sock.connect((0, 0))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        #: The last answer to each question, and what came of it.
        self._answers: dict[tuple[int, int, int], tuple[list[bytes], frozenset[int]]] = {}

    def ports(self, family: int, protocol: int, state: int) -> frozenset[int]:
        """Local ports of sockets of AF_INET or AF_INET6 and IPPROTO_TCP or _UDP in ``state``.

        The same object as the last time if nothing has changed.  Raises OSError if the
        kernel refuses, or if the answer makes no sense.
        """
        question = family, protocol, state
        chunks = self._ask(*question)
        last = self._answers.get(question)
        if last is not None and last[0] == chunks:
            return last[1]
        ports = frozenset(port for chunk in chunks for port in _ports_in(chunk))
        self._answers[question] = chunks, ports
        return ports

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _ask(self, family: int, protocol: int, state: int) -> list[bytes]:
        """Send a request; the datagrams of the answer, without the end."""
        sock = self._sock
        self._drain()
        sock.send(
            _REQUEST.pack(
                _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _FLAGS, 0, 0, family, protocol, 1 << state
            )
        )
        chunks = []
        left = _LIMIT
        while True:
            chunk = sock.recv(_BUFFER)
            left -= len(chunk)
            if len(chunk) < _END.size:
                raise _nonsense()
            if left < 0:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            kind = _END.unpack_from(chunk)[1]
            if kind == _NLMSG_ERROR:
                raise _failure(chunk, 0)
            end = len(chunk) - _END.size
            length, kind, *_ = _END.unpack_from(chunk, end)
            if length != _END.size or kind != _NLMSG_DONE:
                chunks.append(chunk)
                continue
            failure = _failure(chunk, end)
            if failure.errno:
                raise failure
            if end:
                chunks.append(chunk[:end])
            return chunks

    def _drain(self) -> None:
        """Drop what an earlier failure may have left behind."""
        try:
            while self._sock.recv(_BUFFER):
                pass
        except BlockingIOError:
            pass


def _ports_in(chunk: bytes) -> Iterable[int]:
    """Local ports in one datagram of messages; OSError if it is none."""
    if len(chunk) < _MIN_MESSAGE:
        raise _nonsense()
    stride, kind, *_ = _HEADER.unpack_from(chunk)
    fits = stride >= _MIN_MESSAGE and stride % 4 == 0 and len(chunk) % stride == 0
    if fits and kind == _SOCK_DIAG_BY_FAMILY:
        # Length and type of all messages, by column.
        alike = len(chunk) // stride
        if all(chunk[at::stride].count(chunk[at]) == alike for at in range(_TYPE_END)):
            pairs = set(zip(chunk[_PORT::stride], chunk[_PORT + 1 :: stride], strict=True))
            return [high << 8 | low for high, low in pairs]
    ports = []
    at = 0
    while at + _HEADER.size <= len(chunk):
        length, kind, *_ = _HEADER.unpack_from(chunk, at)
        if kind != _SOCK_DIAG_BY_FAMILY or not _MIN_MESSAGE <= length <= len(chunk) - at:
            raise _nonsense()
        ports.append(chunk[at + _PORT] << 8 | chunk[at + _PORT + 1])
        at += length + 3 & ~3
    if at != len(chunk):
        raise _nonsense()
    return ports


def _failure(chunk: bytes, at: int) -> OSError:
    """The error, or success, in the message of type ERROR or DONE at ``at``."""
    number = -_END.unpack_from(chunk, at)[5]
    if number > _MAX_ERRNO:
        return _nonsense()
    return OSError(number, os.strerror(number))


def _nonsense() -> OSError:
    return OSError(errno.EPROTO, os.strerror(errno.EPROTO))
