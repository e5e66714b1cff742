"""Datagrams from the guest to the host's sockets.

The link delivers frames in batches.  Datagrams are not sent one by one: those of a flow are
collected while they form a *train* (equal sizes, only the last may be shorter, one TTL) and
leave together, cut into datagrams again by the kernel (UDP_SEGMENT, udp(7)).  A train ends
when the next datagram does not fit, and at the end of the batch, so a datagram waits for
nothing but those read with it, and the order within a flow is kept.  A superframe of the
guest is such a train already; one of more datagrams than any kernel makes is dropped, as a single
frame could else be tens of thousands of them.

Sizes that differ from datagram to datagram leave in single calls: preparing a ``sendmmsg``
costs more than the calls it saves.

A train that is refused is sent datagram by datagram, and its size remembered as too large
for the flow: see :mod:`passt.userspace.udp.output`.

The guest's TTL or hop limit is set on the socket whenever it changes, so that traceroute
works; for groups it is the multicast TTL.
"""

from __future__ import annotations

import struct

from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.udp.flow import UdpFlow
from passt.userspace.udp.frames import MAX_PAYLOAD4
from passt.userspace.udp.output import MAX_SEGMENTS, send, send_joined, send_train
from passt.userspace.udp.toguest import ToGuest
from passt.userspace.wire import drops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop

#: From the start of the Ethernet header: L4 headers of packets without options or extension
#: headers, TTL and hop limit, and the keys.
_L4_4 = 34
_L4_6 = 54
_TTL4 = 22
_TTL6 = 21
_KEY4 = 26
_KEY6 = 22

#: Datagrams of a superframe: UDP_MAX_SEGMENTS of linux/udp.h, formerly half of it.
MAX_TRAIN = 128

_INT = struct.Struct("=i")


class FromGuest(ToGuest):
    """Takes frames from the link."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        super().__init__(config, nat, loop, link, table)
        #: Flows with datagrams in this batch, in order of their first one.
        self._touched: list[UdpFlow] = []
        #: Flows by addresses and ports as in the guest's packets (12 or 36 bytes).
        self.flows = self._guest_flows.first

    def input(self, buf: memoryview, off: int, l4: int, end: int, version: int) -> bool:
        """Take the datagram whose UDP header is at ``l4`` and whose payload ends at ``end``.

        ``off`` is the start of the Ethernet frame in ``buf``; the IP header is valid, and at
        least 8 bytes of UDP header are there.  True if ``buf`` must stay unchanged until
        :meth:`batch_end`.
        """
        if version == 4:
            if l4 - off == _L4_4:
                key = buf[off + _KEY4 : off + _KEY4 + 12].tobytes()
            else:
                key = bytes(buf[off + _KEY4 : off + _L4_4]) + bytes(buf[l4 : l4 + 4])
            ttl = buf[off + _TTL4]
        else:
            if l4 - off == _L4_6:
                key = buf[off + _KEY6 : off + _KEY6 + 36].tobytes()
            else:
                key = bytes(buf[off + _KEY6 : off + _L4_6]) + bytes(buf[l4 : l4 + 4])
            ttl = buf[off + _TTL6]
        flow = self.flows.get(key)
        if flow is None:
            segment = self._link.rx_gso_size
            if segment and end - l4 - 8 > MAX_TRAIN * segment:
                drops.bump(drops.UDP_TRAIN)
                return False
            flow = self.from_guest(key, buf[l4 + 8 : end])
            if flow is None:
                drops.bump(drops.NO_FLOW)
                return False
        return self.datagram(flow, buf, l4 + 8, end, ttl)

    def datagram(self, flow: UdpFlow, buf: memoryview, start: int, end: int, ttl: int) -> bool:
        """Take the payload ``buf[start:end]`` for ``flow``, from a packet with this TTL.

        For callers that looked the flow up themselves in ``flows``, by addresses and ports
        as in the packet.  True if ``buf`` must stay unchanged until :meth:`batch_end`.
        """
        length = end - start
        segment = self._link.rx_gso_size
        if flow.room and length == flow.segment and ttl == flow.train_ttl and not segment:
            # One more of the same: the usual case in a stream.
            flow.parts.append(buf[start:end])
            flow.room -= 1
            return True
        if segment and length > MAX_TRAIN * segment:
            drops.bump(drops.UDP_TRAIN)
            return False
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)
        payload = buf[start:end]
        if segment:
            self._flush(flow)
            flow.train_ttl = ttl
            if ttl != flow.ttl:
                self._set_ttl(flow)
            send_joined(flow, payload, segment)
            return False
        if flow.room and 0 < length < flow.segment and ttl == flow.train_ttl:
            # The last of a train may be shorter.
            flow.parts.append(payload)
            flow.room = 0
            return True
        self._flush(flow)
        flow.parts.append(payload)
        flow.segment = length
        flow.train_ttl = ttl
        if 0 < length <= flow.gso_limit:
            flow.room = min(MAX_SEGMENTS, MAX_PAYLOAD4 // length) - 1
        return True

    def batch_end(self) -> None:
        """Send what was collected."""
        touched = self._touched
        if not touched:
            return
        now = self._loop.now
        for flow in touched:
            if flow.parts:
                self._flush(flow)
            flow.last = now
            flow.guest_active += 1
            flow.touched = False
        touched.clear()

    def _flush(self, flow: UdpFlow) -> None:
        """Send the collected datagrams of ``flow``."""
        parts = flow.parts
        flow.room = 0
        count = len(parts)
        if not count:
            return
        if flow.train_ttl != flow.ttl:
            self._set_ttl(flow)
        if count == 1:
            send(flow, parts[0])
        elif not send_train(flow, parts, flow.segment):
            for part in parts:
                send(flow, part)
        parts.clear()

    def _set_ttl(self, flow: UdpFlow) -> None:
        """Have datagrams leave with the TTL or hop limit of the guest's."""
        ttl = flow.ttl = flow.train_ttl
        v4 = len(flow.host_key) == 12
        if flow.via is not None:
            # The socket serves others, too: the value goes along with each datagram.
            level, kind = (
                (socket.IPPROTO_IP, socket.IP_TTL)
                if v4
                else (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)
            )
            flow.ancillary[1:] = [(level, kind, _INT.pack(ttl))] if ttl else []
            return
        if v4:
            level = socket.IPPROTO_IP
            kind = socket.IP_MULTICAST_TTL if flow.multicast else socket.IP_TTL
        else:
            level = socket.IPPROTO_IPV6
            kind = socket.IPV6_MULTICAST_HOPS if flow.multicast else socket.IPV6_UNICAST_HOPS
        try:
            flow.sock.setsockopt(level, kind, ttl)
        except OSError as error:
            log.limited(
                "udp-ttl", log.ERR, "Couldn't set TTL %d: %s: %s", ttl, error.strerror, flow
            )
