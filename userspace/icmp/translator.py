"""Echo requests of the guest through *ping sockets* of the host (icmp(7), RFC 792, RFC 4443).

A datagram socket of protocol ICMP sends echo requests and receives the replies to them,
without privileges where ``net.ipv4.ping_group_range`` permits.  The kernel chooses the
identifier: two programs may use one identifier at the same time, in the guest and on the
host, and each must get its own replies only.  Hence one socket for each combination of
guest address, destination and identifier; replies get the guest's identifier back.

The guest's TTL or hop limit is passed on, and errors that come back reach the guest (see
:mod:`~passt.userspace.icmp.errors`), so *unreachable* is reported and traceroute works.
Every reply is forwarded, duplicates included.

Sequences without a reply are bounded, see :mod:`passt.userspace.flow.pending`.

Other ICMP messages of the guest are ignored, and nothing outside can ping the guest.
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import bare_socket as socket
from passt.syscalls.errqueue import SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, ErrorQueue
from passt.syscalls.sockaddr import unpack
from passt.syscalls.sockopt import IP_RECVERR, IPV6_RECVERR
from passt.userspace import log
from passt.userspace.flow.expiry import Expiry
from passt.userspace.flow.nat import (
    BROADCAST4,
    UNSPECIFIED4,
    UNSPECIFIED6,
    is_multicast,
    is_unicast,
    text,
)
from passt.userspace.flow.pending import Pending
from passt.userspace.flow.sockname import is_scoped, name, packed
from passt.userspace.flow.unreachable import offender, refusal, router
from passt.userspace.icmp.errors import echo_error
from passt.userspace.icmp.flow import EchoFlow, EchoFlow6
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.wire import drops, icmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop

#: Seconds without a request after which a flow ends.
TIMEOUT = 60

#: Sequences without a reply.
UNANSWERED = 1024

#: Group of flows in the flow table.
FROM_GUEST = "ping sequences of the guest"

#: Replies and errors taken per event.
MAX_REPLIES = 16

#: See :data:`passt.userspace.udp.errors.MAX_PHANTOM_ERRORS`.
MAX_PHANTOM_ERRORS = 8

_TYPE = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

#: From the start of the Ethernet header: addresses, TTL, hop limit.
_ADDRESSES4 = slice(26, 34)
_ADDRESSES6 = slice(22, 54)
_TTL4 = 22
_TTL6 = 21
_IDENTIFIER = 4

#: Errors of an earlier request that a send reports instead of sending: see udp.fromguest.
_STALE = frozenset(
    (
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EMSGSIZE,
        errno.ENOPROTOOPT,
        errno.EPROTO,
        errno.EREMOTEIO,
        errno.EACCES,
    )
)


class Icmp:
    """Translates echo requests and their replies."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        self._config = config
        self._nat = nat
        self._loop = loop
        self._link = link
        self._table = table
        self._flows: dict[bytes, EchoFlow] = {}
        self._expiry = Expiry(loop, self._review)
        self._unanswered = Pending(loop, min(UNANSWERED, table.limit // 4))
        self._errors = ErrorQueue()
        self._buffer = memoryview(bytearray(65536))

    # From the guest.

    def input(self, buf: memoryview, off: int, l4: int, end: int, version: int) -> bool:
        """Take the ICMP message ``buf[l4:end]`` of at least 8 bytes; never keeps ``buf``.

        ``off`` is the start of the Ethernet frame; the IP header is valid.
        """
        if version == 4:
            if buf[l4] != icmp.ECHO_REQUEST:
                drops.bump(drops.ICMP_TYPE)
                return False
            addresses = buf[off:][_ADDRESSES4]
            ttl = buf[off + _TTL4]
        else:
            if buf[l4] != icmp.ECHO_REQUEST6:
                drops.bump(drops.ICMP_TYPE)
                return False
            addresses = buf[off:][_ADDRESSES6]
            ttl = buf[off + _TTL6]
        message = buf[l4:end]
        key = bytes(addresses) + bytes(message[_IDENTIFIER : _IDENTIFIER + 2])
        flow = self._flows.get(key)
        if flow is None:
            flow = self._new_flow(key)
            if flow is None:
                drops.bump(drops.NO_FLOW)
                return False
        flow.last = self._loop.now
        if ttl != flow.ttl:
            self._set_ttl(flow, ttl)
        self._send(flow, message)
        return False

    def _new_flow(self, key: bytes) -> EchoFlow | None:
        """Make a flow and its socket; ``None`` if the request has to be dropped."""
        size = (len(key) - 2) >> 1
        guest = key[:size]
        seen = key[size : 2 * size]
        unspecified = UNSPECIFIED4 if size == 4 else UNSPECIFIED6
        # An unspecified destination would be this host, even where the host is not mapped.
        if seen == unspecified or not is_unicast(guest):
            return None
        peer = self._nat.outbound(seen)
        if peer == unspecified:
            return None
        if not self._unanswered.admits(guest, seen):
            log.limited("icmp-unanswered", log.WARNING, "Too many %s without answer", FROM_GUEST)
            return None
        if not self._table.admits(EchoFlow, FROM_GUEST, guest):
            return None
        sock = self._open(peer)
        if sock is None:
            return None
        scope = self._nat.neighbours if is_scoped(peer) else 0
        make = EchoFlow if size == 4 else EchoFlow6
        flow = make(self, sock, key, peer, name(peer, 0, scope), multicast=is_multicast(seen))
        if not self._table.add(flow, FROM_GUEST, guest, flow.fd):
            sock.close()
            return None
        try:
            self._loop.add(flow.fd, EPOLLIN, flow.ready)
        except OSError as error:
            log.limited("icmp-epoll", log.ERR, "Couldn't watch ping socket: %s", error.strerror)
            self._table.remove(flow)
            sock.close()
            return None
        self._flows[key] = flow
        self._unanswered.add(flow, guest, seen)
        self._expiry.add(flow, self._loop.now + TIMEOUT)
        if log.debug_on:
            log.debug(f"{flow}: new")
        return flow

    def _open(self, peer: bytes) -> socket.socket | None:
        """A ping socket towards ``peer``; ``None``, with a warning, if that is impossible."""
        v4 = len(peer) == 4
        try:
            sock = (
                socket.socket(socket.AF_INET, _TYPE, socket.IPPROTO_ICMP)
                if v4
                else socket.socket(socket.AF_INET6, _TYPE, socket.IPPROTO_ICMPV6)
            )
        except OSError as error:
            log.limited(
                "icmp-open",
                log.WARNING,
                'Cannot open "ping" socket: %s. You might need to: '
                'sysctl -w net.ipv4.ping_group_range="0 2147483647"',
                error.strerror,
            )
            return None
        try:
            if v4:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            device = self._nat.bind_device(peer)
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            local = self._nat.outbound_source(peer)
            if local is not None:
                scope = self._nat.neighbours if is_scoped(local) else 0
                sock.bind(name(local, 0, scope))
        except OSError as error:
            # Then the kernel chooses source or device.
            log.limited("icmp-bind", log.WARNING, "Couldn't set up ping socket: %s", error.strerror)
        return sock

    def _set_ttl(self, flow: EchoFlow, ttl: int) -> None:
        """Have requests leave with the guest's TTL or hop limit."""
        flow.ttl = ttl
        if flow.v4:
            level = socket.IPPROTO_IP
            kind = socket.IP_MULTICAST_TTL if flow.multicast else socket.IP_TTL
        else:
            level = socket.IPPROTO_IPV6
            kind = socket.IPV6_MULTICAST_HOPS if flow.multicast else socket.IPV6_UNICAST_HOPS
        try:
            flow.sock.setsockopt(level, kind, ttl)
        except OSError as error:
            log.limited(
                "icmp-ttl", log.ERR, "Couldn't set TTL %d: %s: %s", ttl, error.strerror, flow
            )

    def _send(self, flow: EchoFlow, message: memoryview) -> None:
        """Send a request; identifier and checksum are the kernel's business."""
        failure: OSError | None = None
        for _ in (1, 2):
            try:
                flow.sock.sendto(message, flow.name)
                return
            except OSError as error:
                failure = error
                if error.errno not in _STALE:
                    break
        if failure is None:
            return
        log.limited(
            "icmp-send", log.WARNING, "Couldn't send echo request: %s: %s", failure.strerror, flow
        )
        kind = refusal(failure, flow.seen)
        if kind is not None and not flow.multicast and flow.seen != BROADCAST4:
            node = router(self._config, v4=flow.v4)
            if node is not None:
                self._send_error(flow, node, *kind, 0, bytes(message))

    # To the guest.

    def ready(self, flow: EchoFlow, events: int) -> None:
        """Serve the events of a flow's socket."""
        if events & EPOLLERR:
            self._drain_errors(flow)
        if not events & EPOLLIN or flow.index < 0:
            return
        try:
            length, address = flow.sock.recvfrom_into(self._buffer)
        except OSError as error:
            if log.debug_on and error.errno != errno.EAGAIN:
                log.debug(f"{flow}: receive: {error.strerror}")
            return
        flow.phantom_errors = 0
        flow.answered = True
        message = self._buffer[:length]
        kind, _, _, sequence = icmp.parse(message, 0, length)
        if kind != (icmp.ECHO_REPLY if flow.v4 else icmp.ECHO_REPLY6):
            log.limited("icmp-reply", log.ERR, "Invalid echo reply: %s", flow)
            return
        source = flow.seen
        if flow.multicast:
            # Nobody accepts a packet from a group: name whoever answered.
            answered = self._nat.inbound_source(packed(address))
            if answered is None:
                return
            source = answered
        link = self._link
        link.send_frame(
            icmp.echo_reply(
                link.guest_mac,
                self._nat.mac_for(source),
                source,
                flow.guest,
                flow.identifier,
                sequence,
                message[icmp.HEADER_LEN :],
            )
        )

    def _drain_errors(self, flow: EchoFlow) -> None:
        """Take errors off a socket, passing them on, so that it is not ready because of them."""
        found = False
        for _ in range(MAX_REPLIES):
            try:
                report = self._errors.read(flow.fd)
            except OSError as error:
                log.limited("icmp-errqueue", log.ERR, "Couldn't read error queue: %s", error)
                self.end(flow)
                return
            if report is None:
                break
            found = True
            if log.debug_on:
                log.debug(f"ICMP error on ping socket {flow.fd}: {os.strerror(report.errno)}")
            origin = SO_EE_ORIGIN_ICMP if flow.v4 else SO_EE_ORIGIN_ICMP6
            if report.origin != origin or flow.multicast:
                continue
            if len(report.payload) < icmp.HEADER_LEN:
                continue
            node = unpack(report.offender)[0]
            source = offender(self._nat, node, flow.peer, flow.seen)
            if source is None:
                log.limited(
                    "icmp-offender",
                    log.WARNING,
                    "Can't propagate ICMP error from HOST %s to TAP: %s",
                    text(node) if node else "?",
                    flow,
                )
                continue
            self._send_error(flow, source, report.type, report.code, report.info, report.payload)
        if flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or found:
            flow.phantom_errors = 0
            return
        flow.phantom_errors += 1
        if flow.phantom_errors >= MAX_PHANTOM_ERRORS:
            log.limited("icmp-phantom", log.ERR, "Error event without error: %s", flow)
            self.end(flow)

    def _send_error(
        self, flow: EchoFlow, source: bytes, kind: int, code: int, mtu: int, request: bytes
    ) -> None:
        """Tell the guest of an error about ``request``, an ICMP message."""
        link = self._link
        link.send_frame(
            echo_error(
                link.guest_mac,
                self._nat.mac_for(source),
                source,
                flow.guest,
                flow.seen,
                flow.identifier,
                kind,
                code,
                mtu,
                request,
            )
        )

    # Ending flows.

    def end(self, flow: EchoFlow) -> None:
        """Remove ``flow``; its socket is closed at the end of the round."""
        if flow.index < 0:
            return
        if log.debug_on:
            log.debug(f"{flow}: end")
        del self._flows[flow.key]
        self._table.remove(flow)
        self._expiry.forget(flow)
        self._loop.close(flow.sock, flow.fd)

    def _review(self, flow: EchoFlow) -> float:
        """End ``flow`` if it was idle for too long, else when to look again."""
        deadline = flow.last + TIMEOUT
        if self._loop.now > deadline:
            self.end(flow)
            return 0.0
        return deadline
