"""The flows of UDP: how they are made, found, and ended.

A flow is made by the first datagram from either side.  Both sides are entered for lookup:
the guest's, because all its frames come through one link; the host's, because datagrams of
a flow may arrive on a listening socket, or on the new socket of another flow.

**Lifetime.**  A flow ends by silence, or if its socket is broken beyond repair; nobody is
told.  The time-outs are those of the host's connection tracking (``nf_conntrack``): the long
one for flows that look like a stream, the short one for a query and its answer.  ICMP errors
neither end nor refresh a flow.

**Shared sockets.**  A flow that came from the host needs a socket on the port it came to,
which the listening socket has, but which may be privileged, and our privileges are gone.
Such a flow is served through the listening socket instead.

The layers of the translator, each a class on top of the one before: this one,
:mod:`~passt.userspace.udp.errors`, :mod:`~passt.userspace.udp.toguest`,
:mod:`~passt.userspace.udp.fromguest`.
"""

from __future__ import annotations

import errno
import socket

from passt.syscalls.sockopt import IP_PKTINFO, IPV6_PKTINFO
from passt.userspace import log
from passt.userspace.flow.expiry import Expiry
from passt.userspace.flow.nat import (
    BROADCAST4,
    UNSPECIFIED4,
    UNSPECIFIED6,
    V4_MAPPED,
    is_loopback,
    is_multicast,
    is_unicast,
    is_unspecified,
)
from passt.userspace.flow.sockname import is_scoped, name, packed
from passt.userspace.loop import EPOLLIN
from passt.userspace.udp.flow import PORTS, FlowIndex, Pair, UdpFlow, split
from passt.userspace.udp.sockets import flow_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config, Rule
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop

_CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout"
_SHORT_TIMEOUT = 30
_STREAM_TIMEOUT = 120


def read_timeouts() -> tuple[int, int]:
    """Seconds until a query and a stream count as over, from this network namespace."""
    return (
        _read_seconds(_CONNTRACK, _SHORT_TIMEOUT),
        _read_seconds(_CONNTRACK + "_stream", _STREAM_TIMEOUT),
    )


def _read_seconds(path: str, fallback: int) -> int:
    """The number in ``path``; ``fallback`` if there is none."""
    try:
        with open(path, "rb", 0) as file:
            seconds = int(file.read(32))
    except (OSError, ValueError):
        return fallback
    return seconds if seconds > 0 else fallback


class Listener:
    """A listening socket, its port, and the rule that it was opened for."""

    __slots__ = ("fd", "owner", "port", "rule", "sock", "v4")

    def __init__(self, owner: UdpBase, sock: socket.socket, rule: Rule, port: int) -> None:
        self.owner = owner
        self.sock = sock
        self.fd = sock.fileno()
        self.rule = rule
        self.port = port
        self.v4 = sock.family == socket.AF_INET

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self.owner.listener_ready(self, events)


class UdpBase:
    """Makes, finds and ends flows."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        self._config = config
        self._nat = nat
        self._loop = loop
        self._link = link
        self._table = table
        self._guest_flows = FlowIndex()
        #: Flows by host-side key, the earliest where several share one.
        self._host_flows: dict[bytes, UdpFlow] = {}
        #: Listening sockets by port.
        self._listeners: dict[int, list[Listener]] = {}
        #: Flows made in this round whose sockets have to be drained at its end.
        self._fresh: list[UdpFlow] = []
        self._expiry = Expiry(loop, self._review)
        self.timeout_short, self.timeout_stream = read_timeouts()
        if log.debug_on:
            log.debug(f"UDP timeouts: {self.timeout_short}s, {self.timeout_stream}s for streams")

    def ready(self, flow: UdpFlow, events: int) -> None:
        """Serve the events of a flow's socket."""
        raise NotImplementedError

    def listener_ready(self, listener: Listener, events: int) -> None:
        """Serve the events of a listening socket."""
        raise NotImplementedError

    def _drain_fresh(self) -> None:
        """Serve what arrived on new sockets before they were connected."""
        raise NotImplementedError

    def _refused(self, guest_key: bytes, failure: OSError, payload: memoryview) -> None:
        """Tell the guest that there is no way to where it sent ``payload``."""
        raise NotImplementedError

    def attach_listener(self, sock: socket.socket, rule: Rule, port: int) -> None:
        """Serve ``sock``, one that :func:`passt.userspace.udp.open_listeners` made."""
        listener = Listener(self, sock, rule, port)
        self._listeners.setdefault(port, []).append(listener)
        self._loop.add(listener.fd, EPOLLIN, listener.ready)

    # Making flows.

    def from_guest(self, key: bytes, payload: memoryview) -> UdpFlow | None:
        """Make the flow of a datagram from the guest; ``None`` if it has to be dropped."""
        guest, port, seen, seen_port = split(key)
        if not port or not seen_port or not is_unicast(guest) or is_unspecified(seen):
            log.limited(
                "udp-guest-endpoint",
                log.WARNING,
                "Dropping datagram with no flow TAP %s",
                Pair(key),
            )
            return None
        nat = self._nat
        peer = nat.outbound(seen)
        local = nat.outbound_source(peer) or (UNSPECIFIED4 if len(peer) == 4 else UNSPECIFIED6)
        if is_unspecified(peer) or len(local) != len(peer):
            return None
        scope = self._config.v6.ifindex
        device = nat.bind_device(peer)
        while True:
            try:
                sock = flow_socket(
                    local,
                    port,
                    scope=scope if is_scoped(local) else 0,
                    device=device,
                    any_port=True,
                )
            except OSError as error:
                _open_failed(error, "TAP", key)
                return None
            try:
                sock.connect(name(peer, seen_port, scope if is_scoped(peer) else 0))
                own = sock.getsockname()
            except OSError as error:
                sock.close()
                _connect_failed(error, "TAP", key)
                self._refused(key, error, payload)
                return None
            if own[1] != seen_port or packed(own) != peer or not port:
                break
            # Connected to itself: the guest would get back what it sends, and never reach
            # the service that holds this port on another address of the host.
            sock.close()
            port = 0
        host_key = peer + packed(own) + PORTS.pack(seen_port, own[1])
        flow = UdpFlow(self, sock, key, host_key, from_guest=True)
        flow.multicast = is_multicast(peer) or peer == BROADCAST4
        return self._adopt(flow)

    def from_host(
        self, host_key: bytes, ifindex: int, peer_scope: int, via: Listener | None
    ) -> UdpFlow | None:
        """Make the flow of a datagram that arrived on a listening or new socket.

        ``ifindex`` is the interface it came in by, ``peer_scope`` the scope of its source,
        ``via`` the listening socket, if it was one.  ``None`` if it has to be dropped.
        """
        peer, peer_port, local, port = split(host_key)
        rule = via.rule if via is not None else self._rule(local, port)
        if rule is None or not peer_port or not is_unicast(peer):
            _discard(host_key)
            return None
        group = is_multicast(local) or local == BROADCAST4
        if group and _reverse(host_key) in self._host_flows:
            # What the guest itself sent to the group, looped back to us by the kernel.
            return None
        nat = self._nat
        seen = nat.inbound_source(peer)
        target = None
        if seen is not None:
            target = local if group else nat.inbound_target(seen)
        if seen is None or target is None:
            _discard(host_key)
            return None
        target_port = rule.to + port - rule.first
        guest_key = target + seen + PORTS.pack(target_port, peer_port)
        try:
            sock = flow_socket(
                local,
                port,
                scope=ifindex if is_scoped(local) else 0,
                device=rule.ifname or self._reply_device(peer, local),
                any_port=False,
            )
        except OSError as error:
            if error.errno == errno.EACCES and via is not None:
                return self._adopt(_shared_flow(self, via, guest_key, host_key, peer_scope))
            _open_failed(error, "HOST", host_key)
            return None
        try:
            sock.connect(name(peer, peer_port, peer_scope))
        except OSError as error:
            sock.close()
            _connect_failed(error, "HOST", host_key)
            return None
        return self._adopt(UdpFlow(self, sock, guest_key, host_key, from_guest=False))

    def _reply_device(self, peer: bytes, local: bytes) -> str:
        """Device for answers to ``peer``, none if that is this very host."""
        return "" if is_loopback(local) or peer == local else self._nat.bind_device(peer)

    def _rule(self, local: bytes, port: int) -> Rule | None:
        """The rule that forwards datagrams to ``local`` and ``port``, if there is one."""
        for listener in self._listeners.get(port, ()):
            address = listener.rule.address
            if address is None or address == local:
                return listener.rule
            if is_unspecified(address) and len(address) == len(local):
                return listener.rule
        return None

    def _adopt(self, flow: UdpFlow) -> UdpFlow | None:
        """Enter a flow everywhere; ``None``, with its socket closed, if that is impossible."""
        table = self._table
        if not table.add(flow):
            log.limited("udp-table", log.ERR, "Flow table full, dropping new %s", flow)
            if not flow.shared:
                flow.sock.close()
            return None
        if not flow.shared:
            try:
                self._loop.add(flow.fd, EPOLLIN, flow.ready)
            except OSError as error:
                table.remove(flow)
                flow.sock.close()
                _open_failed(error, "HOST", flow.host_key)
                return None
            if not self._fresh:
                self._loop.defer(self._drain_fresh)
            self._fresh.append(flow)
        flow.last = self._loop.now
        self._guest_flows.add(flow)
        self._host_flows.setdefault(flow.host_key, flow)
        self._expiry.add(flow, flow.last + self.timeout_short)
        if log.debug_on:
            log.debug(f"{flow}: new")
        return flow

    # Ending flows.

    def end(self, flow: UdpFlow) -> None:
        """Remove ``flow`` at once; its socket is closed at the end of the round."""
        if flow.index < 0:
            return
        if log.debug_on:
            log.debug(f"{flow}: end")
        self._guest_flows.remove(flow)
        if self._host_flows.get(flow.host_key) is flow:
            del self._host_flows[flow.host_key]
        self._table.remove(flow)
        flow.parts.clear()
        flow.room = 0
        if not flow.shared:
            self._loop.close(flow.sock, flow.fd)

    def _review(self, flow: UdpFlow) -> float:
        """End ``flow`` if it was idle for too long, else when to look again."""
        target_active = flow.host_active if flow.from_guest else flow.guest_active
        stream = target_active and (flow.guest_active > 1 or flow.host_active > 1)
        deadline = flow.last + (self.timeout_stream if stream else self.timeout_short)
        if self._loop.now > deadline:
            self.end(flow)
            return 0.0
        return deadline


def _open_failed(error: OSError, side: str, key: bytes) -> None:
    log.limited(
        "udp-open",
        log.ERR,
        "Couldn't open flow specific socket: %s: %s %s",
        error.strerror,
        side,
        Pair(key),
    )


def _connect_failed(error: OSError, side: str, key: bytes) -> None:
    log.limited(
        "udp-connect",
        log.WARNING,
        "Couldn't connect flow socket: %s: %s %s",
        error.strerror,
        side,
        Pair(key),
    )


def _discard(host_key: bytes) -> None:
    log.limited(
        "udp-discard",
        log.WARNING,
        "Discarding datagram without flow: HOST %s",
        Pair(host_key),
    )


def _reverse(key: bytes) -> bytes:
    """``key`` of a datagram that goes the opposite way."""
    source, source_port, destination, destination_port = split(key)
    return destination + source + PORTS.pack(destination_port, source_port)


def _shared_flow(
    owner: UdpBase, via: Listener, guest_key: bytes, host_key: bytes, peer_scope: int
) -> UdpFlow:
    """A flow over the listening socket ``via``, with what its datagrams need to go out."""
    flow = UdpFlow(owner, via.sock, guest_key, host_key, from_guest=False)
    peer, peer_port, local, _ = split(host_key)
    flow.shared = True
    flow.fresh = False
    if len(local) == 4 and not via.v4:
        # An IPv6 socket speaks IPv4 with addresses in mapped form.
        local = V4_MAPPED + local
        peer = V4_MAPPED + peer
    flow.peer = name(peer, peer_port, peer_scope)
    if via.v4:
        # struct in_pktinfo: interface index, source address, unused.
        flow.ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + local + bytes(4))]
    else:
        # struct in6_pktinfo: source address, interface index.
        flow.ancillary = [(socket.IPPROTO_IPV6, IPV6_PKTINFO, local + bytes(4))]
    return flow
