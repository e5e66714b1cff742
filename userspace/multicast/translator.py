"""What the guest listens to: groups that it reports, to be joined on the host.

**Reports** (IGMP, MLD) make and end memberships.  There is one host behind the link, so the last
to leave has left.  A membership also ends if it is not confirmed: while there are any, the
guest is asked every :data:`~passt.userspace.wire.membership.QUERY_INTERVAL` seconds what it
listens to, as a router would.  Without members there is no timer.

**Bounds**: :data:`MAX_GROUPS` groups.  Reports, and the joining and leaving that they cause, are
limited in number; what was refused is asked for again later.
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.flow.nat import UNSPECIFIED4, text
from passt.userspace.multicast.members import MAX_PORTS, NOTHING, Members, Membership
from passt.userspace.multicast.policy import is_joined
from passt.userspace.multicast.sockets import places
from passt.userspace.udp.flow import split
from passt.userspace.wire import drops, membership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.multicast.sockets import Place
    from passt.userspace.splice.pool import SocketMaker
    from passt.userspace.wire.membership import Record

#: Groups that the guest can be a member of, of both IP versions.
MAX_GROUPS = 64

#: Reports and changes at once, and in each second thereafter.
BURST = 512
RATE = 128.0
#: Seconds after which the guest is asked again for what was refused.
_RETRY = 5.0

#: Seconds that a membership lives without being confirmed (RFC 3376, 8.4; RFC 3810, 9.4).
LIFETIME = membership.ROBUSTNESS * membership.QUERY_INTERVAL + membership.RESPONSE_TIME


class Multicast(Members):
    """The UDP translator with all that there is of multicast."""

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
        """As of :class:`~passt.userspace.multicast.sending.Sending`."""
        super().__init__(config, nat, loop, link, table, maker, ns_ifindex, places)
        self._allowance = float(BURST)
        self._counted = loop.now
        #: When the guest is to be asked, 0 for never.
        self._ask_at = 0.0

    # Reports.

    def igmp(self, buf: memoryview, l4: int, end: int) -> None:
        """Take the IGMP message ``buf[l4:end]`` of the guest."""
        if self._spends(1):
            self._take(4, membership.parse_igmp(buf, l4, end))

    def mld(self, buf: memoryview, ip: int, l4: int, end: int) -> bool:
        """Take the ICMPv6 message ``buf[l4:end]`` if it is of MLD; its IPv6 header is at ``ip``."""
        if not membership.is_mld(buf[l4]):
            return False
        if self._spends(1):
            self._take(16, membership.parse_mld(buf, ip, l4, end))
        return True

    def _take(self, size: int, records: list[Record] | None) -> None:
        """Carry out a report about groups with addresses of ``size`` bytes."""
        if records is None:
            drops.bump(drops.MEMBERSHIP_FORMAT)
            return
        if size not in self._places:
            drops.bump(drops.PROTOCOL_DISABLED)
            return
        refused = False
        for kind, group, sources in records:
            if is_joined(group):
                refused |= not self._record(kind, group, sources)
        if refused:
            drops.bump(drops.MEMBERSHIP_LIMIT)

    def _record(self, kind: int, group: bytes, sources: tuple[bytes, ...]) -> bool:
        """Carry out one record; False if there is no room for what it wants."""
        known = self._groups.get(group)
        before = known.filter if known is not None else NOTHING
        after = before.apply(kind, sources)
        if known is not None:
            known.reported = self._loop.now
        if after == before:
            return True
        if after.is_empty:
            self._leave(group)
            return True
        if not self._can_spend():
            return False
        if known is None:
            if len(self._groups) >= MAX_GROUPS:
                log.limited("group-limit", log.WARNING, "Too many groups joined by the guest")
                return False
            known = self._groups[group] = Membership()
            known.reported = self._loop.now
            for key in self._senders:
                if key.startswith(group) and len(known.sent) < MAX_PORTS:
                    known.sent.add(split(key)[1])
            self._ask_within(membership.QUERY_INTERVAL)
            if log.debug_on:
                log.debug(f"Guest joins [{text(group)}]")
        known.filter = after
        for member in known.members.values():
            self._restrict(member, after)
        self._settle(group, known, self._forwarded())
        return True

    def _leave(self, group: bytes) -> None:
        """The guest does not listen to ``group`` any more."""
        known = self._groups.pop(group)
        if log.debug_on:
            log.debug(f"Guest leaves [{text(group)}]")
        for member in known.members.values():
            self._close(member)

    def _spends(self, count: int) -> bool:
        """Count a report; False, counted as dropped, if there were too many lately."""
        if self._can_spend(count):
            return True
        drops.bump(drops.MEMBERSHIP_LIMIT)
        return False

    def _can_spend(self, count: int = 1) -> bool:
        """Count a report or a change; False if there were too many lately."""
        now = self._loop.now
        self._allowance = min(BURST, self._allowance + (now - self._counted) * RATE)
        self._counted = now
        if self._allowance < count:
            self._ask_within(_RETRY)
            return False
        self._allowance -= count
        return True

    # Questions.

    def _ask_within(self, seconds: float) -> None:
        """Ask the guest what it listens to, at the latest in this time."""
        when = self._loop.now + seconds
        if not self._ask_at or when < self._ask_at:
            self._ask_at = when
            self._loop.call_at(when, self._ask)

    def _ask(self) -> None:
        """Forget what was not confirmed, and have the rest confirmed."""
        now = self._loop.now
        if not self._ask_at or now < self._ask_at:
            return
        self._ask_at = 0.0
        for group, known in list(self._groups.items()):
            if now - known.reported > LIFETIME:
                self._leave(group)
        config, link = self._config, self._link
        macs = link.guest_mac, config.our_mac
        if 4 in self._places:
            link.send_frame(membership.query4(*macs, config.v4.gateway or UNSPECIFIED4))
        if 16 in self._places and config.v6.our_ll is not None:
            link.send_frame(membership.query6(*macs, config.v6.our_ll))
        if self._groups:
            self._ask_within(membership.QUERY_INTERVAL)

    def renew(self) -> None:
        """The configuration changed: be where the guest's link is now.

        Flows to groups begin anew, as they would leave from a former address, or interface.
        """
        for senders in list(self._senders.values()):
            for flow in senders[:]:
                flow.end()
        before, self._places = self._places, places(self._config)
        forwarded = self._forwarded()
        for group, known in list(self._groups.items()):
            place = self._places.get(len(group))
            if place == before[len(group)]:
                continue
            for member in known.members.values():
                self._close(member)
            known.members.clear()
            if place is None:
                del self._groups[group]
            else:
                self._settle(group, known, forwarded)
        if self._places.keys() - before.keys():
            # What the guest has reported meanwhile was of no use.
            self._ask_within(_RETRY)
