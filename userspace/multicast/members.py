"""The host's sockets for groups that the guest listens to, and the datagrams that arrive there.

**Ports.**  A report does not say at which port the guest listens.  A socket is opened for each
port that

* belongs to the group by its protocol (:mod:`passt.userspace.multicast.policy`),
* the guest has sent something to, in this group, or
* is forwarded to the guest, by a rule whose address the group can be under: with ``-u auto``,
  these are the ports that the guest has sockets at.

**Datagrams** that arrive go to the guest as they are, source and group unchanged, unless it has
excluded the source.  They make no flow: where the guest answers, it begins an ordinary one.

**Bounds**: :data:`MAX_SOCKETS` sockets, which count in the flow table as flows do, and
:data:`MAX_PORTS` ports of each kind per group.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockaddr import unpack
from passt.userspace import log
from passt.userspace.flow.nat import is_multicast, is_unicast, text
from passt.userspace.flow.rules import HOST
from passt.userspace.flow.table import Flow
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.multicast.filters import Filter
from passt.userspace.multicast.policy import known_ports
from passt.userspace.multicast.sending import Sending
from passt.userspace.udp.flow import PORTS, split
from passt.userspace.udp.sockets import enable_gro, set_pktinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.rules import Rule
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.multicast.sockets import Place
    from passt.userspace.splice.pool import SocketMaker
    from passt.userspace.udp.flow import UdpFlow
    from passt.userspace.udp.frames import Headers
    from passt.userspace.udp.side import Listener

#: Sockets altogether.
MAX_SOCKETS = 256
#: Ports per group that the guest sent to, and that are forwarded.
MAX_PORTS = 32

#: Sources per socket whose frame headers are kept.
_STREAMS = 16

#: Name in the flow table.
_GROUP = "group memberships of the guest"

#: What the guest hears of a group that it has not joined.
NOTHING = Filter()


class Member(Flow):
    """A socket of the host that receives what is sent to one port of a group."""

    __slots__ = ("_owner", "fd", "filter", "group_addr", "guest_port", "port", "sock", "streams")

    kind = "group membership"
    cost = 16384

    def __init__(
        self,
        owner: Members,
        sock: socket.socket,
        group: bytes,
        port: int,
        guest_port: int,
    ) -> None:
        super().__init__()
        self._owner = owner
        self.sock = sock
        self.fd = sock.fileno()
        self.group_addr = group
        self.port = port
        self.guest_port = guest_port
        self.filter = NOTHING
        #: By raw source address: key of what we ourselves send from there, frame headers, and the
        #: address that the guest sees.
        self.streams: dict[bytes, tuple[bytes, Headers, bytes]] = {}

    def describe(self) -> str:
        """The group and the port."""
        return f"HOST [{text(self.group_addr)}]:{self.port}"

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self._owner.group_datagrams(self, events)


class Membership:
    """A group that the guest listens to."""

    __slots__ = ("filter", "members", "reported", "sent")

    def __init__(self) -> None:
        self.filter = NOTHING
        #: By port on the host.
        self.members: dict[int, Member] = {}
        #: Ports that the guest has sent to.
        self.sent: set[int] = set()
        #: Monotonic seconds of the last report.
        self.reported = 0.0


class Members(Sending):
    """The UDP translator with flows to groups, and members of groups."""

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
        """As of :class:`Sending`."""
        super().__init__(config, nat, loop, link, table, maker, ns_ifindex, places)
        #: What the guest listens to, by group.
        self._groups: dict[bytes, Membership] = {}
        self._members = 0
        self._reviewing = False
        #: Ports that rules forward, as far as they are looked at; ``None`` if they changed.
        self._lowest: list[int] | None = None
        #: Flows that began with what a listening socket got for a group.
        self._called: dict[bytes, set[UdpFlow]] = {}

    # Sockets.

    def _to_group(self, key: bytes) -> UdpFlow | None:
        flow = super()._to_group(key)
        if flow is not None:
            _, _, group, port = split(key)
            known = self._groups.get(group)
            if known is not None and port not in known.sent and len(known.sent) < MAX_PORTS:
                known.sent.add(port)
                self._settle(group, known, self._forwarded())
        return flow

    def _adopt(self, flow: UdpFlow, group: str, source: bytes) -> UdpFlow | None:
        adopted = super()._adopt(flow, group, source)
        if adopted is not None and not flow.from_guest:
            addr = split(flow.host_key)[2]
            if is_multicast(addr):
                self._called.setdefault(addr, set()).add(flow)
        return adopted

    def end(self, flow: UdpFlow) -> None:
        """Remove ``flow`` at once; its socket is closed at the end of the round."""
        if self._called and not flow.from_guest:
            addr = split(flow.host_key)[2]
            called = self._called.get(addr)
            if called is not None:
                called.discard(flow)
                if not called:
                    del self._called[addr]
        super().end(flow)

    def attach_listener(
        self, sock: socket.socket, rule: Rule, port: int, pif: int = HOST
    ) -> Listener:
        """Serve ``sock``, see :meth:`passt.userspace.udp.base.UdpBase.attach_listener`."""
        listener = super().attach_listener(sock, rule, port, pif)
        self._review_ports()
        return listener

    def detach_listener(self, handle: object) -> None:
        """Close a listening socket at the end of the round; its flows live on."""
        super().detach_listener(handle)
        self._review_ports()

    def _review_ports(self) -> None:
        """See, once at the end of the round, which ports are forwarded now."""
        self._lowest = None
        if self._groups and not self._reviewing:
            self._reviewing = True
            self._loop.defer(self._settle_all)

    def _settle_all(self) -> None:
        self._reviewing = False
        forwarded = self._forwarded()
        for group, known in self._groups.items():
            self._settle(group, known, forwarded)

    def _forwarded(self) -> list[int]:
        """Ports that rules forward: the lowest, if there are many."""
        lowest = self._lowest
        if lowest is None:
            lowest = self._lowest = sorted(self._host.listeners)[:MAX_PORTS]
        return lowest

    def _ports(self, group: bytes, known: Membership, forwarded: list[int]) -> dict[int, int]:
        """Ports of the host at which ``group`` is received, and the guest's for each."""
        ports = {}
        place = self._places[len(group)]
        for port in forwarded:
            listener = self._host.listener(group, port)
            if listener is None or listener.rule.target is not None:
                continue
            if listener.rule.ifname in ("", place.ifname):
                ports[port] = listener.rule.target_port(port)
        for port in (*known_ports(group), *known.sent):
            ports.setdefault(port, port)
        return ports

    def _settle(self, group: bytes, known: Membership, forwarded: list[int]) -> None:
        """Have a socket for each port of ``group``, and no others."""
        wanted = self._ports(group, known, forwarded)
        for port, member in list(known.members.items()):
            if wanted.get(port) != member.guest_port:
                del known.members[port]
                self._close(member)
        for port, guest_port in wanted.items():
            if port not in known.members:
                made = self._open(group, port, guest_port, known.filter)
                if made is not None:
                    known.members[port] = made

    def _open(self, group: bytes, port: int, guest_port: int, heard: Filter) -> Member | None:
        """Receive what is sent to ``port`` of ``group``; ``None`` if that is impossible."""
        table = self._table
        if self._members >= MAX_SOCKETS or not table.admits(Member, _GROUP, group):
            log.limited("group-sockets", log.WARNING, "Too many sockets for groups of the guest")
            return None
        try:
            sock = self._places[len(group)].receiver(group, port)
        except OSError as error:
            _failed("join", error, group, port)
            return None
        member = Member(self, sock, group, port, guest_port)
        if not table.add(member, _GROUP, group, member.fd):
            sock.close()
            return None
        try:
            set_pktinfo(sock, False, v4=len(group) == 4)
            self._loop.add(member.fd, EPOLLIN, member.ready)
        except OSError as error:
            _failed("watch", error, group, port)
            table.remove(member)
            sock.close()
            return None
        enable_gro(sock)
        self._members += 1
        self._restrict(member, heard)
        if port in self._host.listeners:
            # From here on, what a listening socket gets of this comes twice.
            for flow in tuple(self._called.get(group, ())):
                flow.end()
        return member

    def _close(self, member: Member) -> None:
        self._members -= 1
        self._table.remove(member)
        self._loop.close(member.sock, member.fd)

    def _restrict(self, member: Member, heard: Filter) -> None:
        """Receive from these sources only, in the kernel if it can, and here in any case."""
        member.filter, before = heard, member.filter
        if not (heard.sources or before.sources):
            return
        # Of those that are translated, only we know what the guest means.
        sources = tuple(map(self._nat.outbound, heard.sources))
        exclude, sources = (heard.exclude, sources) if sources == heard.sources else (True, ())
        try:
            self._places[len(member.group_addr)].restrict(
                member.sock, member.group_addr, exclude, sources
            )
        except OSError as error:
            if log.debug_on:
                log.debug(f"{member}: source filter: {error.strerror}")

    # Datagrams.

    def _reaches_members(self, group: bytes, port: int, ifindex: int) -> bool:
        known = self._groups.get(group)
        if known is None or port not in known.members:
            return False
        return ifindex == self._places[len(group)].ifindex

    def group_datagrams(self, member: Member, events: int) -> None:
        """Serve the events of a socket that receives from a group."""
        if events & EPOLLERR:
            # It never sends, so this is nobody's; but it has to be cleared.
            member.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not events & EPOLLIN or member.index < 0:
            return
        batch = self._batch
        if batch.recv(member.fd) <= 0:
            return
        found: dict[bytes, list[int]] = {}
        for i, raw in enumerate(batch.names()):
            found.setdefault(raw, []).append(i)
        for raw, indices in found.items():
            stream = self._stream(member, raw)
            if stream is None:
                continue
            key, headers, seen = stream
            senders = self._senders.get(key)
            if senders:
                indices = [
                    i
                    for i in indices
                    if not self._is_echo(key, senders, batch.view(i, batch.length(i)))
                ]
            if indices and member.filter.hears(seen):
                self._send_batch(headers, indices, len(seen) == 4)

    def _stream(self, member: Member, raw: bytes) -> tuple[bytes, Headers, bytes] | None:
        """What :class:`Member` keeps of the source ``raw``; ``None`` if it has no address here."""
        stream = member.streams.get(raw)
        if stream is not None and stream[1].mac == self._link.guest_mac:
            return stream
        peer, peer_port, _ = unpack(raw)
        if not peer_port or not is_unicast(peer):
            return None
        seen = self._nat.inbound_source(peer)
        if seen is None:
            return None
        group = member.group_addr
        if len(member.streams) >= _STREAMS:
            member.streams.clear()
        headers = self._headers(group + seen + PORTS.pack(member.guest_port, peer_port))
        key = group + peer + PORTS.pack(member.port, peer_port)
        member.streams[raw] = stream = key, headers, seen
        return stream


def _failed(what: str, error: OSError, group: bytes, port: int) -> None:
    log.limited(
        "group-socket",
        log.WARNING,
        "Couldn't %s group: %s: [%s]:%d",
        what,
        error.strerror,
        text(group),
        port,
    )
