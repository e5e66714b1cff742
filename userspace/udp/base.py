"""The flows of UDP: how they are made, found, and ended.

A flow is made by the first datagram from either side.  Both sides are entered for lookup:
the guest's, because all its frames come through one link; the host's, because datagrams of
a flow may arrive on a listening socket, or on the new socket of another flow.

**Lifetime.**  A flow ends by silence, or if its socket is broken beyond repair; nobody is
told.  The time-outs are those of the host's connection tracking (``nf_conntrack``): the long
one for flows that look like a stream, the short one for a query and its answer.  ICMP errors
neither end nor refresh a flow.

**Floods.**  Flows that nobody has answered are bounded, per side that began them, see
:mod:`passt.userspace.flow.pending`.  So a scan of ports costs at most :data:`UNANSWERED`
sockets at a time, and as many attempts per second.

**Shared sockets.**  A flow that came from the host needs a socket on the port it came to,
which the listening socket has, but which may be privileged, and our privileges are gone.
Such a flow is served through the listening socket instead.

The layers of the translator, each a class on top of the one before: this one,
:mod:`~passt.userspace.udp.errors`, :mod:`~passt.userspace.udp.toguest`,
:mod:`~passt.userspace.udp.fromguest`, :mod:`~passt.userspace.udp.splice`.
"""

from __future__ import annotations

import errno

from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.flow.expiry import Expiry
from passt.userspace.flow.nat import (
    BROADCAST4,
    UNSPECIFIED4,
    UNSPECIFIED6,
    is_loopback,
    is_multicast,
    is_unicast,
    is_unspecified,
)
from passt.userspace.flow.pending import Pending
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.flow.sockname import is_scoped, name, packed
from passt.userspace.loop import EPOLLIN
from passt.userspace.udp.flow import PORTS, FlowIndex, Pair, UdpFlow, split
from passt.userspace.udp.side import Listener, Side, share
from passt.userspace.udp.sockets import enable_gro, flow_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.rules import Rule
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.udp.side import Receiver
    from passt.userspace.udp.spliced import Half

_CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout"
_SHORT_TIMEOUT = 30
_STREAM_TIMEOUT = 120


#: Flows without answer, by side that they come from.
UNANSWERED = 4096

#: Groups of flows in the flow table.
FROM_GUEST = "UDP flows of the guest"
FROM_HOST = "UDP flows to the guest"


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


class UdpBase:
    """Makes, finds and ends flows."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        self._config = config
        self._nat = nat
        self._loop = loop
        self._link = link
        self._table = table
        self._guest_flows = FlowIndex()
        self._host = Side(HOST)
        self._namespace = Side(SPLICE)
        #: Made in this round, to be drained at its end: with the side the socket is on, and
        #: the key of the datagrams that are to arrive there.
        self._fresh: list[tuple[Receiver, Side, bytes]] = []
        self._expiry = Expiry(loop, self._review)
        limit = min(UNANSWERED, table.limit // 4)
        self._unanswered = {side: Pending(loop, limit) for side in ("TAP", "HOST", "SPLICE")}
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

    def _nobody_there(self, guest_key: bytes, payload: memoryview) -> None:
        """Tell the guest that nobody listens where it sent ``payload``."""
        raise NotImplementedError

    def deliver(self, flow: UdpFlow, indices: Sequence[int]) -> None:
        """Send datagrams just received to the guest."""
        raise NotImplementedError

    def _bypasses(self, side: Side, rule: Rule, peer: bytes) -> bool:
        """Whether a datagram from ``peer`` on ``side`` is not for the link."""
        raise NotImplementedError

    def _splice(self, key: bytes, ifindex: int, peer_scope: int, via: Listener) -> Half | None:
        """Make the flow of a datagram that bypasses the link, see :meth:`from_socket`."""
        raise NotImplementedError

    def _to_group(self, _key: bytes) -> UdpFlow | None:
        """Make the flow of a datagram from the guest to a group, see :meth:`from_guest`.

        There is none here: :mod:`passt.userspace.multicast` has what it takes.
        """
        return None

    def _reaches_members(self, _group: bytes, _port: int, _ifindex: int) -> bool:
        """Whether the guest gets what comes by this interface for ``_group`` anyway."""
        return False

    # Listening sockets.

    def attach_listener(
        self, sock: socket.socket, rule: Rule, port: int, pif: int = HOST
    ) -> Listener:
        """Serve ``sock``, ours from here on, which is bound to ``port`` for ``rule``.

        It is on ``pif``, HOST or SPLICE, shares its port (SO_REUSEADDR), and has error queue
        and packet information of the IP versions it serves.  OSError if it cannot be watched.
        """
        if sock.getblocking():
            sock.setblocking(False)
        side = self._namespace if pif == SPLICE else self._host
        listener = Listener(self, side, sock, rule, port)
        self._loop.add(listener.fd, EPOLLIN, listener.ready)
        side.listeners.setdefault(port, []).append(listener)
        return listener

    def detach_listener(self, handle: object) -> None:
        """Close a listening socket at the end of the round; its flows live on.

        If there are some without a socket of their own it is closed with the last of them.
        """
        assert isinstance(handle, Listener)
        listeners = handle.side.listeners
        listeners[handle.port].remove(handle)
        if not listeners[handle.port]:
            del listeners[handle.port]
        if handle.users:
            handle.retired = True
        else:
            self._loop.close(handle.sock, handle.fd)

    def _release(self, listener: Listener, user: Receiver) -> None:
        """Note that ``user`` does not need the socket of ``listener`` any more."""
        listener.users.discard(user)
        if listener.retired and not listener.users:
            self._loop.close(listener.sock, listener.fd)

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
        if not self._admits(FROM_GUEST, "TAP", guest, seen):
            return None
        if is_multicast(seen):
            return self._to_group(key)
        nat = self._nat
        peer = nat.outbound_port(seen, seen_port)
        if peer is None:
            # A query for a resolver that the host does not have.
            self._nobody_there(key, payload)
            return None
        local = nat.outbound_source(peer) or (UNSPECIFIED4 if len(peer) == 4 else UNSPECIFIED6)
        if is_unspecified(peer) or len(local) != len(peer):
            return None
        scope = nat.neighbours
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
                open_failed(error, "TAP", key)
                self._unanswered["TAP"].add(None, guest, seen)
                return None
            try:
                sock.connect(name(peer, seen_port, scope if is_scoped(peer) else 0))
                own = sock.getsockname()
            except OSError as error:
                sock.close()
                connect_failed(error, "TAP", key)
                self._unanswered["TAP"].add(None, guest, seen)
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
        flow.multicast = peer == BROADCAST4
        if self._adopt(flow, FROM_GUEST, guest) is None:
            return None
        self._unanswered["TAP"].add(flow, guest, seen)
        return flow

    def from_socket(
        self, side: Side, key: bytes, ifindex: int, peer_scope: int, via: Listener | None
    ) -> Receiver | None:
        """Make the flow of a datagram that arrived on a listening or new socket.

        ``ifindex`` is the interface it came in by, ``peer_scope`` the scope of its source,
        ``via`` the listening socket, if it was one.  ``None`` if it has to be dropped.
        """
        peer, peer_port, local, port = split(key)
        if via is None or via.retired:
            via = side.listener(local, port)
        if via is None or not peer_port or not is_unicast(peer):
            _discard(side, key)
            return None
        rule = via.rule
        group = is_multicast(local) or local == BROADCAST4
        if group and (_reverse(key) in side.flows or self._reaches_members(local, port, ifindex)):
            # What the guest itself sent to the group, looped back to us by the kernel; or what
            # it gets without a rule, as it said that it listens to the group.
            return None
        if self._bypasses(side, rule, peer):
            return self._splice(key, ifindex, peer_scope, via)
        nat = self._nat
        seen = nat.inbound_source(peer, rule.target)
        target = rule.target
        if target is None and seen is not None:
            target = local if group else nat.inbound_target(seen)
        if seen is None or target is None:
            _discard(side, key)
            return None
        if not self._admits(FROM_HOST, side.name, peer):
            return None
        guest_key = target + seen + PORTS.pack(rule.target_port(port), peer_port)
        device = rule.ifname or self._reply_device(peer, local)
        sock = self._near_socket(key, ifindex, peer_scope, via, device)
        if sock is None:
            return None
        flow = UdpFlow(self, sock, guest_key, key, from_guest=False)
        if sock is via.sock:
            share(flow, via, key, peer_scope)
        if self._adopt(flow, FROM_HOST, peer) is None:
            return None
        self._unanswered[side.name].add(flow, peer)
        return flow

    def _admits(self, group: str, side: str, source: bytes, *parties: bytes) -> bool:
        """Whether there may be another flow from ``source`` on ``side``, see the flow table."""
        if not self._unanswered[side].admits(source, *parties):
            log.limited("udp-unanswered", log.WARNING, "Too many %s without answer", group)
            return False
        return self._table.admits(UdpFlow, group, source)

    def _near_socket(
        self, key: bytes, ifindex: int, peer_scope: int, via: Listener, device: str
    ) -> socket.socket | None:
        """A socket connected to who sent a datagram of ``key``, bound to what it was sent to.

        It is that of the listener ``via``, unconnected, if the port is refused to us, and
        ``None`` if there is none at all.
        """
        peer, peer_port, local, port = split(key)
        side = via.side
        scope = ifindex if is_scoped(local) else 0
        try:
            sock = self._bound_socket(side, local, port, scope, device, any_port=False)
        except OSError as error:
            if error.errno == errno.EACCES:
                return via.sock
            open_failed(error, side.name, key)
            return None
        try:
            sock.connect(name(peer, peer_port, peer_scope))
        except OSError as error:
            sock.close()
            connect_failed(error, side.name, key)
            return None
        return sock

    def _bound_socket(
        self, side: Side, local: bytes, port: int, scope: int, device: str, *, any_port: bool
    ) -> socket.socket:
        """A socket on ``side``, see :func:`~passt.userspace.udp.sockets.flow_socket`."""
        return flow_socket(
            local,
            port,
            scope=scope,
            device=device,
            any_port=any_port,
            freebind=self._config.freebind,
        )

    def _reply_device(self, peer: bytes, local: bytes) -> str:
        """Device for answers to ``peer``, none if that is this very host."""
        return "" if is_loopback(local) or peer == local else self._nat.bind_device(peer)

    def _adopt(self, flow: UdpFlow, group: str, source: bytes) -> UdpFlow | None:
        """Enter a flow everywhere; ``None``, with its socket closed, if that is impossible."""
        table = self._table
        if not table.add(flow, group, source, flow.fd if flow.via is None else -1):
            if flow.via is None:
                flow.sock.close()
            return None
        if not self._watch(flow, self._host, flow.host_key):
            table.remove(flow)
            flow.sock.close()
            return None
        if flow.via is None:
            enable_gro(flow.sock)
        flow.last = self._loop.now
        self._guest_flows.add(flow)
        self._host.flows.setdefault(flow.host_key, flow)
        self._expiry.add(flow, flow.last + self.timeout_short)
        if log.debug_on:
            log.debug(f"{flow}: new")
        return flow

    def _watch(self, receiver: Receiver, side: Side, key: bytes) -> bool:
        """Have what arrives at ``receiver`` served; False if its socket cannot be watched."""
        if receiver.via is not None:
            receiver.via.users.add(receiver)
            return True
        try:
            self._loop.add(receiver.fd, EPOLLIN, receiver.ready)
        except OSError as error:
            open_failed(error, side.name, key)
            return False
        if not receiver.fresh:
            return True
        if not self._fresh:
            self._loop.defer(self._drain_fresh)
        self._fresh.append((receiver, side, key))
        return True

    # Ending flows.

    def end(self, flow: UdpFlow) -> None:
        """Remove ``flow`` at once; its socket is closed at the end of the round."""
        if flow.index < 0:
            return
        if log.debug_on:
            log.debug(f"{flow}: end")
        self._guest_flows.remove(flow)
        if self._host.flows.get(flow.host_key) is flow:
            del self._host.flows[flow.host_key]
        self._table.remove(flow)
        self._expiry.forget(flow)
        flow.parts.clear()
        flow.room = 0
        if flow.via is None:
            self._loop.close(flow.sock, flow.fd)
        else:
            self._release(flow.via, flow)

    def _review(self, flow: UdpFlow) -> float:
        """End ``flow`` if it was idle for too long, else when to look again."""
        target_active = flow.host_active if flow.from_guest else flow.guest_active
        stream = target_active and (flow.guest_active > 1 or flow.host_active > 1)
        deadline = flow.last + (self.timeout_stream if stream else self.timeout_short)
        if self._loop.now > deadline:
            self.end(flow)
            return 0.0
        return deadline


def open_failed(error: OSError, side: str, key: bytes) -> None:
    log.limited(
        "udp-open",
        log.ERR,
        "Couldn't open flow specific socket: %s: %s %s",
        error.strerror,
        side,
        Pair(key),
    )


def connect_failed(error: OSError, side: str, key: bytes) -> None:
    log.limited(
        "udp-connect",
        log.WARNING,
        "Couldn't connect flow socket: %s: %s %s",
        error.strerror,
        side,
        Pair(key),
    )


def _discard(side: Side, key: bytes) -> None:
    log.limited(
        "udp-discard",
        log.WARNING,
        "Discarding datagram without flow: %s %s",
        side.name,
        Pair(key),
    )


def _reverse(key: bytes) -> bytes:
    """``key`` of a datagram that goes the opposite way."""
    source, source_port, destination, destination_port = split(key)
    return destination + source + PORTS.pack(destination_port, source_port)
