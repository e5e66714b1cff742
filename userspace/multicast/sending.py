"""Datagrams of the guest to groups, and the answers to them.

A flow to a group is an ordinary one on the guest's side: same lookup, same trains, same time-outs,
and the guest's TTL or hop limit, so that a datagram goes as far as the guest wants it to.  It
leaves by the interface that is the guest's template.  On the host's side its socket is not
connected, since nobody answers from a group's address: what arrives at its port, from whomever,
goes to the guest with its true source, as long as the flow lives.  That is how SSDP is answered,
and mDNS if it is asked from another port than 5353 (RFC 6762, 6.7).

**Echoes.**  The kernel gives a copy of what is sent to all members on this host, us among them
if the guest is one.  But the guest's own kernel has done the same in the guest.  So what comes
from the address and port of a flow to a group is dropped, unless others may send from there, too:
a socket that shares its port (:mod:`passt.userspace.multicast.sockets`) remembers what it sent.
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH, ENODEV

from passt.kernel.queues import deque
from passt.syscalls import bare_socket as socket
from passt.syscalls.cmsg import pktinfo
from passt.syscalls.sockaddr import unpack
from passt.userspace import log
from passt.userspace.flow.nat import is_unicast
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.multicast.policy import leaves_host
from passt.userspace.udp import Udp
from passt.userspace.udp.base import FROM_GUEST, open_failed
from passt.userspace.udp.flow import PORTS, Pair, UdpFlow, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.multicast.sockets import Place
    from passt.userspace.splice.pool import SocketMaker

#: Programs ask groups all the time, whether there is a network or not.
_NO_NETWORK = frozenset((ENETUNREACH, EHOSTUNREACH, ENODEV, EADDRNOTAVAIL))

#: Datagrams remembered, and for how many seconds: an echo comes at once.
_ECHOES = 256
_ECHO_TIME = 2.0


class Echoes:
    """What was sent by sockets that share their port, and has not come back yet."""

    __slots__ = ("_loop", "_sent")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sent: deque[tuple[float, int]] = deque(maxlen=_ECHOES)

    def note(self, key: bytes, payload: bytes) -> None:
        """Remember ``payload``, sent by the flow with this key of the host's side."""
        self._sent.append((self._loop.now, hash((key, payload))))

    def take(self, key: bytes, payload: bytes) -> bool:
        """Whether ``payload`` is an echo, which is forgotten then."""
        sent = self._sent
        oldest = self._loop.now - _ECHO_TIME
        while sent and sent[0][0] < oldest:
            sent.popleft()
        wanted = hash((key, payload))
        for entry in sent:
            if entry[1] == wanted:
                sent.remove(entry)
                return True
        return False


class SharedSocket(socket.socket):
    """A socket bound to a group, which has ``echoes`` remember what it sends."""

    __slots__ = ("echoes", "key")

    echoes: Echoes
    key: bytes

    def sendmsg(self, buffers: Iterable[Any], *rest: Any) -> int:
        """As of socket.socket."""
        parts = tuple(buffers)
        sent = super().sendmsg(parts, *rest)
        self.echoes.note(self.key, b"".join(parts))
        return sent


class GroupFlow(UdpFlow):
    """A flow from the guest to a group; ``shared`` if others may have its port."""

    __slots__ = ("_sending", "shared")

    def __init__(
        self,
        owner: Sending,
        sock: socket.socket,
        guest_key: bytes,
        host_key: bytes,
        *,
        shared: bool,
    ) -> None:
        super().__init__(owner, sock, guest_key, host_key, from_guest=True)
        self._sending = owner
        self.shared = shared
        self.multicast = True
        # Its socket is not drained for others: whatever arrives is for the guest.
        self.fresh = False

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self._sending.group_answers(self, events)


class Sending(Udp):
    """The UDP translator with flows to groups.

    ``places`` are the interfaces that groups are reached by, by length of addresses, 4 or 16;
    there is no multicast of a version without.
    """

    def __init__(
        self,
        config: Config,
        nat: Nat,
        loop: Loop,
        link: Link,
        table: FlowTable,
        maker: SocketMaker | None,
        ns_ifindex: int,
        places: dict[int, Place],
    ) -> None:
        super().__init__(config, nat, loop, link, table, maker, ns_ifindex)
        self._places = places
        self._echoes = Echoes(loop)
        #: Flows by group, source address and ports of what they send.
        self._senders: dict[bytes, list[GroupFlow]] = {}

    def _to_group(self, key: bytes) -> UdpFlow | None:
        """Make the flow of a datagram to a group; ``None`` if it has to be dropped."""
        guest, port, group, group_port = split(key)
        place = self._places.get(len(group))
        if place is None or not leaves_host(group):
            return None
        sock: socket.socket | None = None
        try:
            local = self._nat.outbound_source(group)
            source = local or place.source(group, group_port)
            sock, shared = place.sender(group, group_port, source, port, fixed=local is not None)
            own_port = sock.getsockname()[1]
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno not in _NO_NETWORK:
                open_failed(error, "TAP", key)
            elif log.debug_on:
                log.debug(f"Couldn't send to group: {error.strerror}: TAP {Pair(key)}")
            self._unanswered["TAP"].add(None, guest, group)
            return None
        host_key = group + source + PORTS.pack(group_port, own_port)
        if shared:
            sock = self._noting(sock, host_key)
        flow = GroupFlow(self, sock, key, host_key, shared=shared)
        flow.peer = place.name(group, group_port)
        if shared:
            # Each datagram is sent, and remembered, by itself.
            flow.gso_limit = 0
        if self._adopt(flow, FROM_GUEST, guest) is None:
            return None
        self._senders.setdefault(host_key, []).append(flow)
        self._unanswered["TAP"].add(flow, guest, group)
        return flow

    def _noting(self, sock: socket.socket, key: bytes) -> SharedSocket:
        kind = sock.type | socket.SOCK_NONBLOCK
        shared = SharedSocket(sock.family, kind, sock.proto, fileno=sock.detach())
        shared.echoes = self._echoes
        shared.key = key
        return shared

    def end(self, flow: UdpFlow) -> None:
        """Remove ``flow`` at once; its socket is closed at the end of the round."""
        senders = self._senders.get(flow.host_key)
        if senders and flow in senders:
            senders.remove(flow)
            if not senders:
                del self._senders[flow.host_key]
        super().end(flow)

    def _is_echo(self, key: bytes, senders: Sequence[GroupFlow], payload: memoryview) -> bool:
        """Whether what came from where ``senders`` send from, under their key, is theirs."""
        for flow in senders:
            if not flow.shared:
                return True
        return self._echoes.take(key, bytes(payload))

    # Answers.

    def group_answers(self, flow: GroupFlow, events: int) -> None:
        """Serve the events of the socket of a flow to a group."""
        if events & EPOLLERR:
            self._flow_errors(flow)
        if not events & EPOLLIN or flow.index < 0:
            return
        batch = self._batch
        if batch.recv(flow.fd) <= 0:
            return
        flow.phantom_errors = 0
        found: dict[bytes, list[int]] = {}
        for i, raw in enumerate(batch.names()):
            info = pktinfo(batch.control(i))
            # What everybody gets is no answer; for a broadcast, the addresses differ.
            if info is not None and info[0] == info[2] and is_unicast(info[0]):
                found.setdefault(raw, []).append(i)
        guest, port, _, _ = split(flow.guest_key)
        for raw, indices in found.items():
            peer, peer_port, _ = unpack(raw)
            if not peer_port or not is_unicast(peer):
                continue
            seen = self._nat.inbound_source(peer)
            if seen is None:
                continue
            flow.last = self._loop.now
            flow.host_active += 1
            headers = self._headers(guest + seen + PORTS.pack(port, peer_port))
            self._send_batch(headers, indices, len(guest) == 4)
