"""The TCP translator: new connections from both sides, strays, and upkeep.

What belongs to one connection is in :mod:`passt.userspace.tcp.flow`; here are the guest's
SYNs, connections accepted on the host, segments without a flow (RFC 9293, 3.10.7.1), and
the periodic scans for connections that one side forgot.
"""

from __future__ import annotations

import errno
import struct

from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.flow import nat as addresses
from passt.userspace.flow.rules import HOST
from passt.userspace.flow.sockname import name
from passt.userspace.tcp import unreachable
from passt.userspace.tcp.accept import refuse, refuse_without_rule
from passt.userspace.tcp.const import (
    ACK,
    CLOSED,
    FIN,
    FLOW_EVENTS,
    INACTIVITY_INTERVAL,
    KEEPALIVE_INTERVAL,
    RST,
    SCAN_BATCH,
    SYN,
)
from passt.userspace.tcp.context import FROM_GUEST, Context
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.wire import drops, ipv4, ipv6, tcp
from passt.userspace.wire.checksum import pseudo_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Rule

_PORTS = struct.Struct("!HH")
_SO_BINDTODEVICE = 25


class Tcp:
    """Translates between TCP segments on the link and sockets on the host."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        ctx.on_opened = self._keep_up
        self._scans = 0
        self._scanning = False
        self._to_scan: list[TcpFlow] = []

    # From the guest.

    def input(self, buf: memoryview, off: int, l4: int, end: int, version: int) -> bool:
        """Handle the segment ``buf[l4:end]`` of the frame that starts at ``off``.

        Nothing of ``buf`` is kept.
        """
        sport, dport, seq, ack, flags, window, start = tcp.parse(buf, l4, end)
        if sport < 0:
            drops.bump(-sport)
            return False
        if version == 4:
            src, dst = bytes(buf[off + 26 : off + 30]), bytes(buf[off + 30 : off + 34])
            flows = self.ctx.flows4
        else:
            src, dst = bytes(buf[off + 22 : off + 38]), bytes(buf[off + 38 : off + 54])
            flows = self.ctx.flows6
        key = src + dst + _PORTS.pack(sport, dport)
        flow = flows.get(key)
        if flow is not None:
            flow.segment(buf, seq, ack, flags, window, l4 + 20, start, end)
        elif flags & SYN and not flags & (ACK | RST):
            self._connect(buf, key, src, sport, dst, dport, seq, window, l4 + 20, start)
        elif flags & RST:
            drops.bump(drops.TCP_STRAY_RESET)
        else:
            size = end - start + bool(flags & SYN) + bool(flags & FIN)
            label = ipv6.flow_label(buf, off + 14) if version == 6 else 0
            self._refuse(src, sport, dst, dport, seq + size, ack, flags, label)
        return False

    def batch_end(self) -> None:
        """Settle the flows that got segments in the batch that ends here."""
        touched = self.ctx.touched
        if touched:
            # Settling may touch no flow but its own, which is not in the list any more.
            for flow in touched:
                flow.settle()
            touched.clear()

    def _connect(
        self,
        buf: memoryview,
        key: bytes,
        src: bytes,
        sport: int,
        dst: bytes,
        dport: int,
        seq: int,
        window: int,
        options: int,
        start: int,
    ) -> None:
        """The guest wants a new connection."""
        ctx = self.ctx
        if not (addresses.is_unicast(src) and addresses.is_unicast(dst) and sport and dport):
            log.limited(
                "tcp-endpoint", log.WARNING, "Invalid endpoint in TCP SYN: %s -> %s",
                addresses.endpoint(src, sport), addresses.endpoint(dst, dport),
            )  # fmt: skip
            drops.bump(drops.NO_FLOW)
            return
        host = ctx.nat.outbound_port(dst, dport)
        if host is None:
            self._refuse(src, sport, dst, dport, seq + 1, 0, SYN, 0)
            return
        pending = ctx.connects.admits(key, src, dst)
        if pending is None:
            log.limited("tcp-pending", log.WARNING, "Too many TCP connections without answer")
            drops.bump(drops.NO_FLOW)
            return
        if not ctx.table.admits(TcpFlow, FROM_GUEST, src):
            drops.bump(drops.NO_FLOW)
            return
        family = socket.AF_INET if len(host) == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            log.limited("tcp-socket", log.ERR, "TCP socket: %s", error.strerror)
            drops.bump(drops.NO_FLOW)
            return
        flow = TcpFlow(ctx, key, dst, dport, src, sport, sock, inbound=False)
        flow.learn_options(buf, options, start)
        flow.guest_window = window
        flow.rcv_nxt = flow.ack = flow.told_ack = flow.rcv_edge = seq + 1
        # The kernel counts our SYN in its bytes acknowledged.
        flow.ack_base = seq
        flow.peer_local = addresses.is_loopback(host)
        if not ctx.add(flow):
            sock.close()
            drops.bump(drops.NO_FLOW)
            return
        pending.add(flow, src, dst)
        number = self._open(sock, host, dport)
        if number in (0, errno.EINPROGRESS):
            try:
                ctx.loop.add(flow.fd, FLOW_EVENTS, flow.on_event)
            except OSError as error:
                number = error.errno or errno.EIO
        if number == 0:
            flow.connected()
        elif number != errno.EINPROGRESS:
            unreachable.report(flow, number)
            flow.reset(errno.errorcode.get(number, str(number)))
        if log.debug_on:
            log.debug("%s: new, to %s", flow, addresses.endpoint(host, dport))

    def _open(self, sock: socket.socket, host: bytes, port: int) -> int:
        """Prepare ``sock`` and start to connect it; returns an errno."""
        nat = self.ctx.nat
        family = "IPv4" if len(host) == 4 else "IPv6"
        try:
            prepare(sock)
        except OSError as error:
            log.debug("TCP socket options: %s", error.strerror)
        source = nat.outbound_source(host)
        if source is not None:
            try:
                sock.bind(name(source, 0, nat.scope_id(source)))
            except OSError as error:
                log.limited(
                    "tcp-bind", log.WARNING, "Can't bind TCP outbound socket to %s: %s",
                    addresses.endpoint(source, 0), error.strerror,
                )  # fmt: skip
        device = nat.bind_device(host)
        if device:
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode())
            except OSError as error:
                log.limited(
                    "tcp-device", log.WARNING, "Can't bind %s TCP socket to interface %s: %s",
                    family, device, error.strerror,
                )  # fmt: skip
        try:
            return sock.connect_ex(name(host, port, nat.scope_id(host)))
        except OSError as error:
            return error.errno or errno.EIO

    def _refuse(
        self,
        src: bytes,
        sport: int,
        dst: bytes,
        dport: int,
        next_seq: int,
        ack: int,
        flags: int,
        label: int,
    ) -> None:
        """Answer a segment that belongs to no connection with a reset.

        Not if it was meant for a group, or has no source to be answered to (RFC 1122, 4.2.3.10).
        """
        if not (addresses.is_unicast(src) and addresses.is_unicast(dst)):
            drops.bump(drops.TCP_STRAY_GROUP)
            return
        if flags & ACK:
            seq, our_ack, our_flags = ack, 0, RST
        else:
            seq, our_ack, our_flags = 0, next_seq & 0xFFFFFFFF, RST | ACK
        pseudo = pseudo_sum(dst, src, tcp.IPPROTO_TCP, 0)
        segment = tcp.segment(dport, sport, seq, our_ack, our_flags, 0, pseudo)
        ctx = self.ctx
        mac, ours = ctx.link.guest_mac, ctx.nat.mac_for(dst)
        if len(src) == 4:
            frame = ipv4.frame(mac, ours, dst, src, tcp.IPPROTO_TCP, segment)
        else:
            frame = ipv6.frame(mac, ours, dst, src, tcp.IPPROTO_TCP, segment, label=label)
        ctx.link.send_frame(frame)

    # From the host.

    def accepted(self, sock: socket.socket, peer: tuple[bytes, int], rule: Rule, port: int) -> bool:
        """Offer a connection from ``peer`` to the guest; False if no more can be served now."""
        ctx = self.ctx
        source, source_port = peer
        target = rule.target
        seen = ctx.nat.inbound_source(source, target) if addresses.is_unicast(source) else None
        if target is None and seen is not None:
            target = ctx.nat.inbound_target(seen)
        guest_port = rule.to + port - rule.first
        if seen is None or target is None or len(target) != len(seen) or not source_port:
            refuse_without_rule(sock, peer, HOST)
            return True
        if not ctx.offers.admits(source):
            log.limited("tcp-offers", log.WARNING, "Too many TCP connections that the guest has "
                        "not answered, refusing that from %s",
                        addresses.endpoint(source, source_port))  # fmt: skip
            refuse(sock)
            return False
        key = target + seen + _PORTS.pack(guest_port, source_port)
        if key in (ctx.flows4 if len(seen) == 4 else ctx.flows6):
            # Two host addresses that look the same to the guest, from the same port.
            log.limited("tcp-clash", log.WARNING, "TCP connection from %s clashes with another",
                        addresses.endpoint(source, source_port))  # fmt: skip
            refuse(sock)
            return True
        flow = TcpFlow(ctx, key, seen, source_port, target, guest_port, sock, inbound=True)
        flow.peer_local = addresses.is_loopback(source)
        if not ctx.add(flow):
            refuse(sock)
            return False
        ctx.offers.add(flow, source)
        try:
            prepare(sock)
            ctx.loop.add(flow.fd, FLOW_EVENTS, flow.on_event)
        except OSError as error:
            flow.abort(f"accepted socket: {error.strerror}")
            return True
        if log.debug_on:
            log.debug("%s: new, from %s", flow, addresses.endpoint(source, source_port))
        flow.offer(source)
        return True

    # Upkeep.

    def _keep_up(self) -> None:
        """Scan as long as there are flows."""
        if not self._scanning:
            self._scanning = True
            self.ctx.loop.call_at(self.ctx.loop.now + KEEPALIVE_INTERVAL, self._scan)

    def _scan(self) -> None:
        """Look for connections that are idle on the link, or altogether."""
        self._scans += 1
        self._to_scan = [*self.ctx.flows4.values(), *self.ctx.flows6.values()]
        self._scan_some()

    def _scan_some(self) -> None:
        """Look at a bounded number of flows per round, as traffic has to go on."""
        ctx = self.ctx
        both = self._scans % int(INACTIVITY_INTERVAL / KEEPALIVE_INTERVAL) == 0
        batch = self._to_scan[-SCAN_BATCH:]
        del self._to_scan[-SCAN_BATCH:]
        for flow in batch:
            if flow.state == CLOSED:
                continue
            if both:
                if not flow.active:
                    flow.reset("inactive")
                    continue
                flow.active = False
            if not flow.tap_active:
                flow.keepalive()
            flow.tap_active = False
        if self._to_scan:
            ctx.loop.again(self._scan_some)
            return
        self._scanning = False
        if ctx.flows4 or ctx.flows6:
            self._keep_up()


def prepare(sock: socket.socket) -> None:
    """Options of every TCP socket that carries a guest's connection.

    No delay, as we cannot know what is interactive; urgent data in line, as the guest gets
    it that way and a byte missing from the queue would shift everything behind it.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
