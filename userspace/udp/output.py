"""Sending by a UDP socket: single datagrams, and trains that the kernel cuts.

A *train* is several datagrams of one size, of which the last may be shorter, handed to the
kernel at once, with their size as UDP_SEGMENT (udp(7)).  It must have at most
:data:`MAX_SEGMENTS` datagrams, and no more bytes than one packet.  The datagrams must be within the
path MTU, while larger single ones are fragmented, and some paths do not have trains at all
(IPsec).  Whoever sends remembers which size was refused.

What the socket does not take is lost, as on any network.
"""

from __future__ import annotations

import errno
import struct

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import UDP_SEGMENT
from passt.userspace import log
from passt.userspace.udp.frames import MAX_PAYLOAD4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from passt.userspace.flow.sockname import SockName

    class Outlet(Protocol):
        """A socket to send by, and how.

        ``peer`` is ``None`` for a connected socket, and ``ancillary`` what goes along with
        each datagram if it is not.  Datagrams larger than ``gso_limit`` form no trains.
        """

        sock: socket.socket
        peer: SockName | None
        ancillary: list[tuple[int, int, bytes]]
        gso_limit: int


#: Datagrams per train, the bound of UDP_SEGMENT in older kernels.
MAX_SEGMENTS = 64

#: A train is refused: too large for the path (EMSGSIZE, formerly EINVAL), or the path cannot
#: cut it (EIO, EOPNOTSUPP).
_NO_TRAIN = frozenset((errno.EMSGSIZE, errno.EINVAL, errno.EIO, errno.EOPNOTSUPP))

#: Pending asynchronous errors, reported by and instead of a send: nothing is wrong with the
#: datagram, and another attempt sends it.
STALE = frozenset(
    (
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENOPROTOOPT,
        errno.EPROTO,
        errno.EACCES,
    )
)

_SEGMENT = struct.Struct("=H")


def send(out: Outlet, payload: memoryview) -> None:
    """Send one datagram."""
    for _ in (1, 2):
        try:
            if out.peer is None:
                out.sock.send(payload)
            else:
                out.sock.sendmsg((payload,), out.ancillary, 0, out.peer)
        except OSError as error:
            if error.errno in STALE:
                continue
            if log.debug_on:
                log.debug(f"{out}: send: {error.strerror}")
        return


def send_train(out: Outlet, parts: list[memoryview], segment: int) -> bool:
    """Send ``parts``, together a train of ``segment`` bytes each; False if it is refused.

    Then the datagrams have to be sent one by one, and ``gso_limit`` is smaller.
    """
    ancillary = [*out.ancillary, (socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))]
    for _ in (1, 2):
        try:
            if out.peer is None:
                out.sock.sendmsg(parts, ancillary)
            else:
                out.sock.sendmsg(parts, ancillary, 0, out.peer)
        except OSError as error:
            if error.errno in STALE:
                continue
            if error.errno in _NO_TRAIN:
                out.gso_limit = segment - 1
                return False
        return True
    return True


def send_joined(out: Outlet, payload: memoryview, segment: int) -> None:
    """Send datagrams of ``segment`` bytes, the last maybe shorter, that lie in one buffer."""
    length = len(payload)
    if length <= segment:
        send(out, payload)
        return
    step = min(MAX_PAYLOAD4 // segment, MAX_SEGMENTS) * segment or segment
    for start in range(0, length, step):
        part = payload[start : start + step]
        if len(part) > segment and segment <= out.gso_limit and send_train(out, [part], segment):
            continue
        for at in range(0, len(part), segment):
            send(out, part[at : at + segment])
