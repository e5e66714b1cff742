"""ICMP errors about what the guest sent, from the host's sockets back to the guest.

With IP_RECVERR and IPV6_RECVERR the kernel queues every ICMP error that concerns a socket
(ip(7), ipv6(7)).  The guest gets an error of the same type and code, about the datagram as
*it* sent it, from the node that reported it, so that *connection refused*, path MTU discovery
and UDP traceroute work in the guest as they do on the host.

The error queue makes a socket ready until it is empty, and so does a pending SO_ERROR without
an entry in the queue: both are always cleared, as the loop would spin otherwise.  For spliced
flows that is all that happens.
"""

from __future__ import annotations

import os

from passt.syscalls import bare_socket as socket
from passt.syscalls.errqueue import SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, ErrorQueue
from passt.syscalls.sockaddr import unpack
from passt.userspace import log
from passt.userspace.flow.nat import BROADCAST4, is_multicast, text, unmap
from passt.userspace.flow.unreachable import offender, refusal, router
from passt.userspace.udp.base import UdpBase
from passt.userspace.udp.flow import PORTS, split
from passt.userspace.udp.spliced import Half
from passt.userspace.wire.icmp_error import udp_error4, udp_error6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.syscalls.errqueue import Report
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.udp.flow import UdpFlow
    from passt.userspace.udp.side import Listener, Receiver

#: Entries of an error queue taken per event: one flow's errors must not stall the others.
MAX_ERRORS = 64

#: A broken socket reports an error without having one, again and again; one that lost a race
#: (the error was taken by a send in the same round) does so once.
MAX_PHANTOM_ERRORS = 8


class UdpErrors(UdpBase):
    """Reads error queues and builds ICMP errors."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        super().__init__(config, nat, loop, link, table)
        self._errors = ErrorQueue()

    def _flow_errors(self, flow: Receiver) -> None:
        """Serve an error event of a flow's own socket."""
        try:
            found = self._drain_errors(flow.fd, flow.sock, flow, None)
        except OSError as error:
            log.limited("udp-errqueue", log.ERR, "Couldn't read error queue: %s", error)
            flow.end()
            return
        if found:
            flow.phantom_errors = 0
            return
        flow.phantom_errors += 1
        if flow.phantom_errors >= MAX_PHANTOM_ERRORS:
            log.limited("udp-phantom", log.ERR, "Error event without error: %s", flow)
            flow.end()

    def _listener_errors(self, listener: Listener) -> None:
        """Serve an error event of a listening socket: only flows without own socket send by it."""
        try:
            self._drain_errors(listener.fd, listener.sock, None, listener)
        except OSError as error:
            log.limited("udp-errqueue", log.ERR, "Couldn't read error queue: %s", error)

    def _drain_errors(
        self, fd: int, sock: socket.socket, flow: Receiver | None, listener: Listener | None
    ) -> bool:
        """Take errors off a socket; False if there were none, OSError if it is broken."""
        found = False
        for _ in range(MAX_ERRORS):
            report = self._errors.read(fd)
            if report is None:
                break
            found = True
            self._propagate(report, fd, flow or self._reported_flow(report, listener))
        pending = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending and log.debug_on:
            log.debug(f"Unqueued error on UDP socket {fd}: {os.strerror(pending)}")
        return found or bool(pending)

    def _reported_flow(self, report: Report, listener: Listener | None) -> Receiver | None:
        """The flow without own socket whose datagram ``report`` is about."""
        if listener is None or report.local is None:
            return None
        peer, port, _ = unpack(report.destination)
        ports = PORTS.pack(port, listener.port)
        return listener.side.flows.get(unmap(peer) + unmap(report.local) + ports)

    def _propagate(self, report: Report, fd: int, flow: Receiver | None) -> None:
        """Pass one error on to the guest."""
        if log.debug_on:
            log.debug(f"ICMP error on UDP socket {fd}: {os.strerror(report.errno)}")
        if isinstance(flow, Half):
            # Nobody can send an error in the server's name by a socket.
            log.limited(
                "udp-icmp-splice",
                log.WARNING,
                "Can't propagate ICMP error from %s to %s: %s",
                flow.side.name,
                flow.other.side.name,
                flow,
            )
            return
        if flow is None or flow.multicast:
            return
        v4 = len(flow.host_key) == 12
        if report.origin != (SO_EE_ORIGIN_ICMP if v4 else SO_EE_ORIGIN_ICMP6):
            return
        guest, _, seen, _ = split(flow.guest_key)
        if is_multicast(guest) or guest == BROADCAST4:
            return
        node = unmap(unpack(report.offender)[0])
        source = offender(self._nat, node, split(flow.host_key)[0], seen)
        if source is None:
            log.limited(
                "udp-icmp",
                log.WARNING,
                "Can't propagate ICMP error from HOST %s to TAP: %s",
                text(node) if node else "?",
                flow,
            )
            return
        self._send_error(
            source, flow.guest_key, report.type, report.code, report.info, report.payload, flow
        )

    def _refused(self, guest_key: bytes, failure: OSError, payload: memoryview) -> None:
        """Tell the guest that there is no way to where it sent ``payload``."""
        seen = split(guest_key)[2]
        v4 = len(seen) == 4
        kind = refusal(failure, seen)
        node = router(self._config, v4=v4)
        if kind is None or node is None or is_multicast(seen) or seen == BROADCAST4:
            return
        self._send_error(node, guest_key, *kind, 0, bytes(payload), None)

    def _nobody_there(self, guest_key: bytes, payload: memoryview) -> None:
        """Tell the guest that nobody listens where it sent ``payload``."""
        seen = split(guest_key)[2]
        kind = (3, 3) if len(seen) == 4 else (1, 4)
        self._send_error(seen, guest_key, *kind, 0, bytes(payload), None)

    def _send_error(
        self,
        source: bytes,
        guest_key: bytes,
        kind: int,
        code: int,
        mtu: int,
        payload: bytes,
        flow: UdpFlow | None,
    ) -> None:
        """Send an ICMP error from ``source`` about ``payload``, sent as ``guest_key`` says."""
        guest, port, seen, seen_port = split(guest_key)
        link = self._link
        macs = link.guest_mac, self._nat.mac_for(source)
        ends = (guest, port), (seen, seen_port)
        if len(guest) == 4:
            frame = udp_error4(*macs, source, *ends, kind, code, mtu, payload)
        else:
            label = flow.index & 0xFFFFF if flow is not None else 0
            frame = udp_error6(*macs, source, *ends, kind, code, mtu, payload, label)
        link.send_frame(frame)
