"""The guest's view of the host's neighbours: their true link-layer addresses.

What the guest sees on its link should be what the host sees on its own: programs, and people, tell
machines by their MAC addresses.  So the host's tables of neighbours on the interface that is the
guest's template are mirrored, and an address that is in them has its MAC in what ARP and Neighbour
Discovery tell the guest, and as source of frames from there.  Frames to us may have any
destination.

===============================  ==========================================================
Address                          MAC
===============================  ==========================================================
one that stands for the host     ours: nobody else can claim it (``--map-host-loopback``, by
                                 default the router's; ``--map-guest-addr``)
a neighbour of the host          the neighbour's
any other                        that of the router, if it is a neighbour, else ours
===============================  ==========================================================

A host that appears is announced to the guest, once its link carries frames, as it would announce
itself: by an ARP request for its own address, or an unsolicited advertisement.  A *change* of its
MAC is not, as it cannot be trusted; the guest finds out when it asks.  Flows keep the MAC that they
began with.

Where the host's network is followed (:mod:`passt.userspace.following`), all is read anew when the
template changes.  Later changes on an interface that was no template at start go unnoticed, as the
kernel's filter cannot be exchanged any more.

**Bounds.**  :data:`MAX_ENTRIES` neighbours; others look like unknown ones.  The kernel tells of
each change of state of each neighbour, of which only those of addresses matter.  So after a change
nothing is read for :data:`PERIOD`: a busy network wakes us once in this time, whatever happens
there, and a quiet one never.  If changes were lost all is read anew, but no more often than
every :data:`_REREAD` seconds.

Source: RFC 826, RFC 5227 (announcements), RFC 4861, 7.2.6; passt(1).
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.flow.nat import is_loopback, is_multicast, text
from passt.userspace.loop import EPOLLIN
from passt.userspace.wire import arp, icmp, ndp
from passt.userspace.wire.ethernet import BROADCAST, format_mac
from passt.userspace.wire.ipv6 import ALL_NODES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.neighbours import Entry, NeighbourSocket
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop

MAX_ENTRIES = 512

#: Seconds between two looks at what has changed.
PERIOD = 1.0
_REREAD = 3.0

_NO_MAC = bytes(6)


class Neighbours:
    """The table, kept up to date by ``source``."""

    def __init__(
        self, config: Config, nat: Nat, link: Link, loop: Loop, source: NeighbourSocket
    ) -> None:
        self._config = config
        self._nat = nat
        self._link = link
        self._loop = loop
        self._source = source
        #: MACs by address.
        self._macs: dict[bytes, bytes] = {}
        #: Addresses whose MAC is ours, whatever anybody says.
        self._blocked = self._mapped()
        #: The link carries frames.
        self._ready = False
        self._lost = True
        self._reread_at = loop.now

    def start(self) -> None:
        """Read what there is, and watch what changes."""
        self._update()
        self._watch()

    def renew(self) -> None:
        """The template changed: forget what there was, and read what there is on its interface."""
        config = self._config
        self._source.retarget(
            *(family.ifindex if family.enabled else 0 for family in (config.v4, config.v6))
        )
        self._blocked = self._mapped()
        self._macs.clear()
        self._lost = True
        self._reread_at = self._loop.now
        self._update()

    def _mapped(self) -> frozenset[bytes]:
        """Addresses that stand for the host."""
        return frozenset(
            addr
            for family in (self._config.v4, self._config.v6)
            for addr in (family.map_host_loopback, family.map_guest_addr)
            if addr is not None
        )

    def mac_for(self, addr: bytes) -> bytes:
        """The MAC of the packed address ``addr``, as the guest is to see it."""
        mac = self._macs.get(addr)
        if mac is not None:
            return mac
        config = self._config
        if addr not in self._blocked:
            router = (config.v4 if len(addr) == 4 else config.v6).gateway
            if router is not None:
                return self._macs.get(router, config.our_mac)
        return config.our_mac

    def has(self, mac: bytes) -> bool:
        """Whether a neighbour has this MAC."""
        return mac in self._macs.values()

    def announce(self) -> None:
        """Tell the guest who is there: its link carries frames from now on."""
        self._ready = True
        for addr, mac in self._macs.items():
            self._announce(addr, mac)

    # The kernel's word.

    def _watch(self) -> None:
        """Have changes reported."""
        try:
            self._loop.add(self._source.fileno(), EPOLLIN, self._on_event)
        except OSError:
            # epoll takes no more now.
            self._loop.call_at(self._loop.now + PERIOD, self._watch)

    def _on_event(self, _events: int) -> None:
        """Something has changed: take it in, and look away for a while."""
        self._loop.remove(self._source.fileno())
        self._loop.call_at(self._loop.now + PERIOD, self._watch)
        self._update()

    def _update(self) -> None:
        """Take in what has changed, or if something was lost, all there is."""
        try:
            # Always: what is not read, an overrun included, would be reported for ever.
            changed = self._source.changes()
            if changed is None:
                self._lost = True
            if not self._lost:
                self._take(changed or [])
            elif self._loop.now >= self._reread_at:
                self._reread_at = self._loop.now + _REREAD
                self._take_all(self._source.all())
                self._lost = False
            else:
                self._loop.call_at(self._reread_at, self._again)
        except OSError as error:
            self._lost = True
            log.limited("neighbours", log.WARNING, "Couldn't read neighbours: %s", error.strerror)

    def _again(self) -> None:
        """Read all anew, if that has not been done meanwhile."""
        if self._lost:
            self._update()

    def _take(self, entries: list[Entry]) -> None:
        for addr, mac, valid in entries:
            if valid:
                self._learn(addr, mac)
            elif self._macs.pop(addr, None) is not None and log.debug_on:
                log.debug(f"Neighbour {text(addr)} is gone")

    def _take_all(self, entries: list[Entry]) -> None:
        """Take in all there is, and forget the rest."""
        present = {addr for addr, _, valid in entries if valid}
        for addr in [addr for addr in self._macs if addr not in present]:
            del self._macs[addr]
        self._take(entries)

    def _learn(self, addr: bytes, mac: bytes) -> None:
        """There is a neighbour at ``addr``."""
        macs = self._macs
        known = macs.get(addr)
        if mac == known or addr in self._blocked or not self._is_visible(addr):
            return
        if len(mac) != 6 or mac == _NO_MAC or mac[0] & 1:
            # A tunnel, or something that only the kernel understands.
            return
        if known is None and len(macs) >= MAX_ENTRIES:
            log.limited(
                "neighbour-limit", log.DEBUG, "Too many neighbours, ignoring %s", text(addr)
            )
            return
        macs[addr] = mac
        if log.debug_on:
            log.debug(f"Neighbour {text(addr)} has {format_mac(mac)}")
        if known is None and self._ready:
            self._announce(addr, mac)

    def _is_visible(self, addr: bytes) -> bool:
        """Whether the guest sees the host's neighbour ``addr`` by this address."""
        if is_loopback(addr) or is_multicast(addr):
            return False
        return self._nat.inbound_source(addr) == addr

    # To the guest.

    def _announce(self, addr: bytes, mac: bytes) -> None:
        """Tell the guest of a neighbour."""
        config, link = self._config, self._link
        if mac == config.our_mac:
            return
        if len(addr) == 4:
            if config.v4.enabled:
                link.send_frame(arp.frame(BROADCAST, mac, arp.REQUEST, mac, addr, _NO_MAC, addr))
        elif config.v6.enabled and config.ndp and config.v6.our_ll is not None:
            message = ndp.neighbour_advertisement(addr, mac, solicited=False)
            link.send_frame(
                icmp.frame6(link.guest_mac, config.our_mac, config.v6.our_ll, ALL_NODES, message)
            )
