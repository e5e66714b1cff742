"""What all TCP flows share: the link, the loop, kernel features, budgets, scratch space."""

from __future__ import annotations

import mmap

from passt.syscalls import bare_socket as socket
from passt.syscalls import tcpinfo
from passt.syscalls.sockopt import probe_large_sndbuf, probe_peek_off
from passt.userspace import log
from passt.userspace.flow.pending import Pending
from passt.userspace.tcp.connects import Connects
from passt.userspace.tcp.const import (
    LAZY_DISCARD,
    LAZY_DISCARD_RCVBUF,
    MAX_RETRIES,
    MAX_SCALE,
    MAX_WINDOW,
    OFFERS,
    TAP_QUEUE_FRAMES,
    UPLOAD_COUNT_INTERVAL,
)
from passt.userspace.tcp.isn import initial_sequence
from passt.userspace.tcp.segments import Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.tcp.base import FlowBase
    from passt.userspace.tcp.flow import TcpFlow

#: Groups of flows in the flow table, by who begins them.
FROM_GUEST = "TCP connections of the guest"
FROM_HOST = "TCP connections to the guest"

#: TCP maximum segment sizes above a page are announced as a multiple of it.
_PAGE = 4096


class Features:
    """What the kernel offers to TCP sockets, found out once."""

    __slots__ = (
        "bytes_acked",
        "delivery_rate",
        "large_sndbuf",
        "lazy_discard",
        "min_rtt",
        "peek_off",
        "snd_wnd",
    )

    def __init__(self, *, v4: bool, v6: bool) -> None:
        families = [socket.AF_INET] * v4 + [socket.AF_INET6] * v6
        #: SO_PEEK_OFF for TCP, on every version in use.
        self.peek_off = all(probe_peek_off(family) for family in families)
        fields = tcpinfo.probe()
        self.bytes_acked = fields.bytes_acked
        self.delivery_rate = fields.delivery_rate
        self.min_rtt = fields.min_rtt
        self.snd_wnd = fields.snd_wnd
        self.large_sndbuf = probe_large_sndbuf()
        with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
            rcvbuf = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        #: Acknowledged bytes that may stay in a receive queue.
        self.lazy_discard = LAZY_DISCARD if rcvbuf >= LAZY_DISCARD_RCVBUF else 0


class Context:
    """Shared by all flows of one translator; flows hold no reference to anything else."""

    def __init__(
        self,
        config: Config,
        nat: Nat,
        loop: Loop,
        link: Link,
        table: FlowTable,
        features: Features | None = None,
    ) -> None:
        self.config = config
        self.nat = nat
        self.loop = loop
        self.link = link
        self.table = table
        self.features = features or Features(v4=config.v4.enabled, v6=config.v6.enabled)
        #: Flows by source, destination and ports as in the guest's frames, per IP version.
        self.flows4: dict[bytes, TcpFlow] = {}
        self.flows6: dict[bytes, TcpFlow] = {}
        #: Flows that got a segment in the current batch.
        self.touched: list[FlowBase] = []
        #: Target of discards; the kernel never writes to it, so it takes no memory.
        self.void = memoryview(mmap.mmap(-1, MAX_WINDOW + 65536))
        #: What may be held for flows, in bytes.
        self.budget = table.budget
        #: Connections that the guest is opening, and those offered to it.
        self.connects = Connects(loop, table.limit)
        self.offers = Pending(loop, min(OFFERS, table.limit // 4))
        #: How many flows the guest sends bulk data on: they share its transmit queue.
        self.uploads = 1
        #: Those among them since the last count.
        self.uploading: set[FlowBase] = set()
        self._counting = False
        self.retransmissions = 0
        #: Called after a flow entered the table.
        self.on_opened: Callable[[], None] = _nothing
        linear = _sysctl("tcp_syn_linear_timeouts", 4)
        #: Handshake segments repeated at one-second intervals, and altogether.
        self._syn_linear = min(linear, 127)
        self.syn_retries = min(MAX_RETRIES, min(_sysctl("tcp_syn_retries", 6), 127) + linear)
        #: Cap of retransmission time-outs, in seconds.
        self.rto_max = float(-(-_sysctl("tcp_rto_max_ms", 120000) // 1000))

    def isn(self, key: bytes) -> int:
        """Initial sequence number for a new flow."""
        return initial_sequence(key)

    def syn_timeout(self, retries: int) -> float:
        """Seconds to wait for an answer to a handshake segment sent ``retries`` times before."""
        return min(float(1 << max(retries - self._syn_linear, 0)), self.rto_max)

    def template(self, flow: FlowBase) -> Template:
        """Frame template of ``flow``; its IPv6 label is stable and never 0."""
        return Template(
            self.link,
            self.nat.mac_for(flow.our_addr),
            flow.our_addr,
            flow.our_port,
            flow.guest_addr,
            flow.guest_port,
            flow.fd & 0xFFFFF or 1,
        )

    def largest_segment(self, flow: FlowBase) -> int:
        """Bytes that fit into the guest's MTU, however many it says it takes; if it is known."""
        mtu = self.config.mtu or MAX_WINDOW
        # No link is smaller (RFC 791, 3.1; RFC 8200, 5).
        return max(mtu, 68) - 40 if len(flow.our_addr) == 4 else max(mtu, 1280) - 60

    def announced_mss(self, flow: FlowBase) -> int:
        """The MSS that the guest is offered: what its MTU, and our reading, allow."""
        mtu = self.config.mtu
        overhead = 40 if len(flow.our_addr) == 4 else 60
        if not mtu:
            return flow.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        mss = max(mtu - overhead, 88)
        if mss > _PAGE:
            mss -= mss % _PAGE
            if not self.features.large_sndbuf and not flow.peer_local:
                # A segment must fit a small send buffer, or nothing is ever accepted whole.
                mss = _PAGE
        return mss

    def upload_share(self, mss: int) -> int:
        """Bytes that one flow may have in the guest's transmit queue, and then all at once here."""
        if self.budget.tight:
            return mss
        return max(2 * mss, TAP_QUEUE_FRAMES * mss // self.uploads)

    def uploads_on(self, flow: FlowBase) -> None:
        """The guest sends bulk data on ``flow``, now counted among those who share its queue."""
        self.uploading.add(flow)
        self.uploads = max(self.uploads, len(self.uploading))
        if not self._counting:
            self._counting = True
            self.loop.call_at(self.loop.now + UPLOAD_COUNT_INTERVAL, self._count_uploads)

    def _count_uploads(self) -> None:
        """Count anew once per interval, as long as there is something to count."""
        count = len(self.uploading)
        self.uploads = max(count, 1)
        self.uploading.clear()
        self._counting = count > 0
        if self._counting:
            self.loop.call_at(self.loop.now + UPLOAD_COUNT_INTERVAL, self._count_uploads)

    def add(self, flow: TcpFlow) -> bool:
        """Enter ``flow`` into table and lookup; False if the table is full."""
        group, source = (
            (FROM_HOST, flow.our_addr) if flow.inbound else (FROM_GUEST, flow.guest_addr)
        )
        if not self.table.add(flow, group, source, flow.fd):
            return False
        flows = self.flows4 if len(flow.our_addr) == 4 else self.flows6
        flows[flow.key] = flow
        self.on_opened()
        return True

    def closed(self, flow: FlowBase, reason: str) -> None:
        """Take ``flow`` out of table and lookup."""
        if log.debug_on:
            log.debug(f"{flow}: closed: {reason}")
        flows = self.flows4 if len(flow.our_addr) == 4 else self.flows6
        if flows.get(flow.key) is flow:
            del flows[flow.key]
        self.budget.hold(-flow.holds())
        self.uploading.discard(flow)
        self.table.remove(flow)


def peer_scale(info: tcpinfo.Info) -> int:
    """The window scale to use: the one that the peer announced, as far as we go along."""
    return min(MAX_SCALE, tcpinfo.split_scales(info[2])[0])


def _nothing() -> None:
    """Nobody wants to know of new flows."""


def _sysctl(name: str, default: int) -> int:
    """A non-negative number from /proc/sys/net/ipv4, ``default`` if there is none."""
    try:
        with open(f"/proc/sys/net/ipv4/{name}", "rb") as file:
            return max(int(file.read(32)), 0)
    except (OSError, ValueError):
        return default
