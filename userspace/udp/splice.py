"""The loopback bypass for UDP: from a socket here to a socket in the namespace, and back.

What a local process sends to a forwarded port need not become frames.  A flow that bypasses
the link has a socket on each side (:mod:`passt.userspace.udp.spliced`):

===========  =====================================  ======================================
received on  if                                     sent on to
===========  =====================================  ======================================
the host     source is loopback, the rule has no    the guest's address, as observed; with
             target, not ``--no-splice``            ``--host-lo-to-ns-lo`` the loopback
                                                    address that the client used; a group
                                                    address as it is, within the namespace
namespace    source and destination are loopback    the same loopback address on the host,
                                                    or the rule's target
===========  =====================================  ======================================

The far socket has the client's port, and on the host its address, too, if that can be.  Where
two clients would look the same to the server the later one gets another port, so that each
gets its own answers.

**Batches.**  One ``recvmmsg`` takes up to 64 datagrams.  Those of one size leave as one train,
which costs the kernel half as much, others by one ``sendmmsg`` out of the memory they were
received to.  Where there are many the socket is told to join them (UDP_GRO); the trains that
it then delivers leave as they came.  Boundaries are kept in any case.  Where datagrams come one
at a time, as queries and answers do, most are read by ``recv``, which is cheaper.

**Order.**  As in :mod:`passt.userspace.udp.toguest`: a flow exists, with both sockets, before
its first datagram is sent on, and new sockets are drained at the end of the round.

**Sockets in the namespace** come from a stock that a thread refills.  They are bound from
here, which works from any namespace, except to low ports: the thread has the privilege.

Source: pasta(1), "Handling of local traffic in pasta"; udp(7).
"""

from __future__ import annotations

import errno
import os

from passt.syscalls import bare_socket as socket
from passt.syscalls.cmsg import gro_size
from passt.syscalls.mmsg import Forward
from passt.userspace import log
from passt.userspace.flow.expiry import Expiry
from passt.userspace.flow.nat import (
    BROADCAST4,
    UNSPECIFIED4,
    UNSPECIFIED6,
    is_loopback,
    is_multicast,
)
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.flow.sockname import is_scoped, name, packed
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.splice.pool import SocketPool
from passt.userspace.udp.base import connect_failed, open_failed
from passt.userspace.udp.flow import PORTS, Pair, split
from passt.userspace.udp.frames import MAX_PAYLOAD4
from passt.userspace.udp.fromguest import FromGuest
from passt.userspace.udp.output import MAX_SEGMENTS, STALE, send, send_joined, send_train
from passt.userspace.udp.side import share
from passt.userspace.udp.sockets import PORT_TAKEN, enable_gro, flow_spec, keep_inside
from passt.userspace.udp.spliced import Half, SplicedFlow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.rules import Rule
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.splice.pool import SocketMaker
    from passt.userspace.udp.side import Listener, Side

#: From this many on, a train is cheaper than sendmmsg.
_MIN_TRAIN = 3

#: So many at once are a stream.
_MANY = 8

#: Groups of flows in the flow table, by pif.
_GROUPS = {
    HOST: "spliced UDP flows to the namespace",
    SPLICE: "spliced UDP flows of the namespace",
}


class Splice(FromGuest):
    """Makes, serves and ends spliced flows."""

    def __init__(
        self,
        config: Config,
        nat: Nat,
        loop: Loop,
        link: Link,
        table: FlowTable,
        maker: SocketMaker | None = None,
        ns_ifindex: int = 0,
    ) -> None:
        """``maker`` makes sockets in the namespace; without it nothing bypasses the link.

        ``ns_ifindex`` is the index of the link's interface there.
        """
        super().__init__(config, nat, loop, link, table)
        self._maker = maker
        self._ns_ifindex = ns_ifindex
        #: By length of the addresses.
        self._pools: dict[int, SocketPool] = {}
        if maker is not None:
            self._pools[4] = SocketPool(maker, flow_spec(socket.AF_INET))
            self._pools[16] = SocketPool(maker, flow_spec(socket.AF_INET6))
        self._forward = Forward(self._batch)
        self._spliced_expiry = Expiry(loop, self._review_spliced)

    def close(self) -> None:
        """Release what is held ready; flows are the loop's affair."""
        for pool in self._pools.values():
            pool.close()

    # Making flows.

    def _bypasses(self, side: Side, rule: Rule, peer: bytes) -> bool:
        config = self._config
        if side.pif == SPLICE or config.splice_only:
            return True
        return bool(self._pools) and config.splice and rule.target is None and is_loopback(peer)

    def _splice(self, key: bytes, ifindex: int, peer_scope: int, via: Listener) -> Half | None:
        side, rule = via.side, via.rule
        peer, _, local, port = split(key)
        target = self._target(side, rule, peer, local) if self._pools else None
        if target is None:
            log.limited(
                "udp-splice", log.ERR, "No rules to forward %s UDP %s", side.name, Pair(key)
            )
            return None
        group = _GROUPS[side.pif]
        if not self._admits(group, side.name, peer):
            return None
        flow = SplicedFlow(self, side, key)
        if not self._table.add(flow, group, peer):
            return None
        self._unanswered[side.name].add(flow, peer)
        far = flow.far = self._far_half(flow, target, rule.target_port(port))
        if far is None:
            self.end_spliced(flow)
            return None
        device = rule.ifname if side is self._host else ""
        sock = self._near_socket(key, ifindex, peer_scope, via, device)
        if sock is None:
            self.end_spliced(flow)
            return None
        near = flow.near = Half(flow, side, sock, key)
        # The one on the host was made now; a socket from the stock has a number of other times.
        made = near if side is self._host else far
        if made.fd > self._table.last_fd and made.sock is not via.sock:
            open_failed(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), side.name, key)
            self.end_spliced(flow)
            return None
        if sock is via.sock:
            share(near, via, key, peer_scope)
        near.pair(far, self._batch.slots[0], self._loop)
        for half in (near, far):
            half.side.flows[half.key] = half
            if not self._watch(half, half.side, half.key):
                self.end_spliced(flow)
                return None
        flow.last = self._loop.now
        self._spliced_expiry.add(flow, flow.last + self.timeout_short)
        if log.debug_on:
            log.debug(f"{flow}: new")
        return near

    def _target(self, side: Side, rule: Rule, peer: bytes, local: bytes) -> bytes | None:
        """Where a datagram from ``peer`` to ``local`` goes, ``None`` if it is refused."""
        if not is_loopback(peer):
            # Only here if nothing else may have it (--splice-only, or the namespace's own).
            return None
        if side.pif == SPLICE:
            return (rule.target or local) if is_loopback(local) else None
        if rule.target is not None:
            return None
        if is_multicast(local) or local == BROADCAST4:
            return local
        if self._config.host_lo_to_ns_lo and is_loopback(local):
            return local
        nat = self._nat
        if len(local) == 4:
            return nat.observed4
        return nat.observed6 or nat.observed_ll

    def _far_half(self, flow: SplicedFlow, target: bytes, target_port: int) -> Half | None:
        """The half that faces the server; ``None`` if it cannot be had."""
        peer, peer_port, _, _ = split(flow.key)
        nat = self._nat
        local = UNSPECIFIED4 if len(target) == 4 else UNSPECIFIED6
        device = ""
        scope = 0
        if flow.side is self._host:
            side = self._namespace
            if is_scoped(target):
                scope = self._ns_ifindex
        else:
            side = self._host
            if is_loopback(target):
                local = peer
            else:
                local = nat.outbound_source(target) or local
                device = nat.bind_device(target)
                scope = nat.scope_id(target)
        # Another port than the client's if its own would connect the socket to itself, or if
        # another client looks the same to the server.  That the kernel, asked to choose, hits
        # on such a port is possible, but not twice.
        for port in (peer_port, 0, 0):
            try:
                sock = self._bound_socket(side, local, port, 0, device, any_port=True)
            except OSError as error:
                open_failed(error, flow.side.name, flow.key)
                return None
            try:
                if is_multicast(target):
                    keep_inside(sock)
                sock.connect(name(target, target_port, scope))
                own = sock.getsockname()
            except OSError as error:
                sock.close()
                connect_failed(error, flow.side.name, flow.key)
                return None
            own_address = packed(own)
            key = target + own_address + PORTS.pack(target_port, own[1])
            if key not in side.flows and (own_address, own[1]) != (target, target_port):
                return Half(flow, side, sock, key)
            sock.close()
        open_failed(OSError(errno.EADDRINUSE, "No usable port"), flow.side.name, flow.key)
        return None

    def _bound_socket(
        self, side: Side, local: bytes, port: int, scope: int, device: str, *, any_port: bool
    ) -> socket.socket:
        maker = self._maker
        if side is self._host or maker is None:
            return super()._bound_socket(side, local, port, scope, device, any_port=any_port)
        sock = self._pools[len(local)].take()
        try:
            try:
                sock.bind(name(local, port, scope))
            except OSError as error:
                if error.errno == errno.EACCES:
                    spec = flow_spec(sock.family).at(name(local, port, scope))
                    made = maker.call([spec])[0]
                    if not isinstance(made, OSError):
                        sock.close()
                        return made
                if not any_port or error.errno not in PORT_TAKEN:
                    raise
                sock.bind(name(local, 0, scope))
        except OSError:
            sock.close()
            raise
        return sock

    # Events.

    def half_ready(self, half: Half, events: int) -> None:
        """Serve the events of a half's own socket."""
        if events & EPOLLERR:
            self._flow_errors(half)
            if not events & EPOLLIN or half.flow.index < 0:
                return
        if half.fresh:
            # The draining at the end of the round it was made in hit its bound.
            self._drain(half, half.side, half.key)
            return
        count = self._batch.recv(half.fd)
        if count <= 0:
            return
        half.phantom_errors = 0
        if not half.joins:
            if count == 1:
                half.read_singly()
            elif count >= _MANY:
                half.joins = True
                enable_gro(half.sock)
        self.relay(half, range(count))

    def relay(self, half: Half, indices: Sequence[int]) -> None:
        """Send datagrams of the batch, which came from the peer of ``half``, by the other half."""
        flow = half.flow
        if flow.index < 0:
            return
        flow.last = self._loop.now
        half.active += 1
        out = half.other
        batch = self._batch
        count = len(indices)
        if count > 1 and count == batch.used and not any(batch.control_lengths()):
            self._relay_all(out, batch.lengths())
            return
        for i in indices:
            payload = batch.slots[i][: batch.length(i)]
            control = batch.control(i)
            segment = gro_size(control) if control else 0
            if segment:
                send_joined(out, payload, segment)
            else:
                send(out, payload)

    def _relay_all(self, out: Half, lengths: list[int]) -> None:
        """Send all datagrams of the batch, none of them joined by the kernel."""
        count = len(lengths)
        length = lengths[0]
        step = min(MAX_SEGMENTS, MAX_PAYLOAD4 // length, count) if length else 0
        equal = lengths.count(length)
        if (
            step < _MIN_TRAIN
            or length > out.gso_limit
            or (equal < count and not (equal == count - 1 and 0 < lengths[-1] < length))
        ):
            self._send_each(out, 0, count)
            return
        slots = self._batch.slots
        for start in range(0, count, step):
            end = min(start + step, count)
            train = [slot[:length] for slot in slots[start:end]]
            if end == count:
                train[-1] = train[-1][: lengths[-1]]
            if len(train) == 1 or length > out.gso_limit or not send_train(out, train, length):
                self._send_each(out, start, end)

    def _send_each(self, out: Half, first: int, end: int) -> None:
        """Send datagrams ``first`` to ``end`` − 1 of the batch one by one."""
        if out.peer is not None:
            batch = self._batch
            for i in range(first, end):
                send(out, batch.slots[i][: batch.length(i)])
            return
        forward = self._forward
        retried = False
        while first < end:
            sent = forward.send(out.fd, first, end - first)
            if sent > 0:
                first += sent
                retried = False
            elif -sent == errno.EAGAIN:
                return
            elif -sent in STALE and not retried:
                retried = True
            else:
                # This one is lost.
                first += 1
                retried = False

    # Ending flows.

    def end_spliced(self, flow: SplicedFlow) -> None:
        """Remove ``flow`` at once; its sockets are closed at the end of the round."""
        if flow.index < 0:
            return
        if log.debug_on:
            log.debug(f"{flow}: end")
        self._table.remove(flow)
        self._spliced_expiry.forget(flow)
        for half in (flow.near, flow.far):
            if half is None:
                continue
            if half.side.flows.get(half.key) is half:
                del half.side.flows[half.key]
            if half.via is None:
                self._loop.close(half.sock, half.fd)
            else:
                self._release(half.via, half)

    def _review_spliced(self, flow: SplicedFlow) -> float:
        """End ``flow`` if it was idle for too long, else when to look again."""
        near, far = flow.near, flow.far
        stream = (
            near is not None
            and far is not None
            and far.active
            and (near.active > 1 or far.active > 1)
        )
        deadline = flow.last + (self.timeout_stream if stream else self.timeout_short)
        if self._loop.now > deadline:
            self.end_spliced(flow)
            return 0.0
        return deadline
