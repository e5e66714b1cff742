"""The error queue of a datagram socket: recvmsg(MSG_ERRQUEUE).

Source: ip(7) IP_RECVERR, ipv6(7) IPV6_RECVERR, recv(2), linux/errqueue.h.

With IP_RECVERR or IPV6_RECVERR set, an ICMP error or a local one queues an entry: the payload
of the datagram that caused it (as much as was quoted), its original destination as message
name, and in the control data a `sock_extended_err` followed by the address of the node that
reported the error, the offender.  Packet info, if wanted on the socket, comes *before* it and
holds our local address.  A pending entry makes the socket ready with EPOLLERR until read.
"""

from __future__ import annotations

import struct
from errno import EAGAIN

from passt.syscalls import bare_socket as socket
from passt.syscalls.cmsg import cmsg_iter, pktinfo
from passt.syscalls.libc import error
from passt.syscalls.mmsg import RecvBatch
from passt.syscalls.sockaddr import SOCKADDR_IN6_LEN, SOCKADDR_IN_LEN
from passt.syscalls.sockopt import IP_RECVERR, IPV6_RECVERR

# ee_origin.
SO_EE_ORIGIN_NONE = 0
SO_EE_ORIGIN_LOCAL = 1
SO_EE_ORIGIN_ICMP = 2
SO_EE_ORIGIN_ICMP6 = 3
SO_EE_ORIGIN_TXSTATUS = 4
SO_EE_ORIGIN_ZEROCOPY = 5

# struct sock_extended_err: errno, origin, type, code, padding, info, data.
_EXTENDED = struct.Struct("=IBBBxII")
_FAMILY = struct.Struct("=H")
_RECVERR = (
    (int(socket.IPPROTO_IP), IP_RECVERR),
    (int(socket.IPPROTO_IPV6), IPV6_RECVERR),
)
_OFFENDER_LEN = {int(socket.AF_INET): SOCKADDR_IN_LEN, int(socket.AF_INET6): SOCKADDR_IN6_LEN}
_FLAGS = int(socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
_CONTROL_LEN = 512
_PAYLOAD_LEN = 2048


class Report:
    """One entry of the error queue; addresses are raw, see `sockaddr.unpack`."""

    __slots__ = (
        "code",
        "data",
        "destination",
        "errno",
        "ifindex",
        "info",
        "local",
        "offender",
        "origin",
        "payload",
        "type",
    )

    def __init__(self, destination: bytes, payload: bytes) -> None:
        self.destination = destination
        """Raw address the datagram had been sent to."""
        self.payload = payload
        """Its payload, as far as known, at most 2048 bytes."""
        self.errno = 0
        self.origin = SO_EE_ORIGIN_NONE
        self.type = 0
        """ICMP or ICMPv6 type, by origin."""
        self.code = 0
        """ICMP or ICMPv6 code."""
        self.info = 0
        """Path MTU in bytes, for errors about size."""
        self.data = 0
        self.offender = b""
        """Raw address of the reporting node, port 0; empty if the error is local."""
        self.local: bytes | None = None
        """Packed address the error was sent to, that is, ours; None without packet info."""
        self.ifindex = 0
        """Interface the error came in by, 0 without packet info."""


class ErrorQueue:
    """Reader with buffers of its own; one serves any number of sockets."""

    __slots__ = ("_batch",)

    def __init__(self) -> None:
        self._batch = RecvBatch(1, _PAYLOAD_LEN, _CONTROL_LEN)

    def read(self, fd: int) -> Report | None:
        """Take the oldest entry off the error queue of `fd`; None if the queue is empty.

        An entry without extended error (a timestamp) has errno 0.  OSError if the descriptor
        is not a socket or closed.
        """
        batch = self._batch
        count = batch.recv(fd, _FLAGS)
        if count == -EAGAIN:
            return None
        if count < 0:
            raise error(-count, "recvmsg MSG_ERRQUEUE")
        report = Report(batch.name(0), bytes(batch.view(0, batch.length(0))))
        control = batch.control(0)
        for level, kind, data in cmsg_iter(control):
            if (level, kind) in _RECVERR and len(data) >= _EXTENDED.size:
                (
                    report.errno,
                    report.origin,
                    report.type,
                    report.code,
                    report.info,
                    report.data,
                ) = _EXTENDED.unpack_from(data)
                report.offender = _offender(data[_EXTENDED.size :])
        info = pktinfo(control)
        if info is not None:
            report.local, report.ifindex, _ = info
        return report


def _offender(data: memoryview) -> bytes:
    if len(data) < _FAMILY.size:
        return b""
    length = _OFFENDER_LEN.get(_FAMILY.unpack_from(data)[0], 0)
    return bytes(data[:length]) if length <= len(data) else b""
