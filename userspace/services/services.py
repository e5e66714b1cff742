"""All services of one guest: made from the configuration, fed by the stack.

A frame for a service goes no further, also if the service is off: nobody on the host wants
the DHCP requests of a guest.  Answers about configuration are limited in number, those to ARP
and neighbour solicitations are not, as their number follows from the guest's traffic.
"""

from __future__ import annotations

import time

from passt.userspace import log
from passt.userspace.services.arp import ArpService
from passt.userspace.services.ndp import NOTE_ADVERTISED, NdpService
from passt.userspace.services.ndp import offers as ra_offers
from passt.userspace.wire import drops
from passt.userspace.wire.ipv6 import ALL_NODES
from passt.userspace.wire.ndp import ROUTER_SOLICITATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.services.dhcp import DhcpService
    from passt.userspace.services.dhcpv6 import Dhcp6Service
    from passt.userspace.services.neighbours import Neighbours

#: UDP ports of servers; the codecs are not imported where the services are off.
_DHCP = 67
_DHCP6 = 547

#: Requests for configuration that are answered at once, and in each second thereafter.
BURST = 50
RATE = 20.0

#: Seconds that an address is assigned for.
INFINITE = 0xFFFFFFFF
#: The same where the host's network is followed, and the guest configures itself.
LEASE = 300

#: Replaced addresses that are remembered: whoever has an older one has not asked for long.
MAX_FORMER = 64


class Services:
    """Takes what the guest asks, and sends what it is answered."""

    def __init__(
        self,
        config: Config,
        nat: Nat,
        link: Link,
        loop: Loop,
        neighbours: Neighbours | None = None,
    ) -> None:
        """``neighbours`` are to be announced, and are what ``nat`` knows MACs from."""
        self._config = config
        self._neighbours = neighbours
        self._nat = nat
        self._link = link
        self._loop = loop
        self._allowance = float(BURST)
        self._counted = loop.now
        self._started = time.time()
        #: Guests that configure themselves are to ask again soon, if there may be news.
        self._renewing = config.follow and not config.config_net
        #: IPv4 addresses that were assigned before.
        self._former: set[bytes] = set()
        self._server4 = self._server6 = self._advertiser = None
        if config.dhcp or self._renewing:
            from passt.userspace.services import dhcp

            self._server4 = dhcp
        if config.dhcpv6 or (self._renewing and config.v6.enabled):
            from passt.userspace.services import dhcpv6

            self._server6 = dhcpv6
        if config.ra and config.v6.enabled:
            from passt.userspace.services.advertiser import Advertiser

            self._advertiser = Advertiser(loop, self._advertise, _note_ndp)
        self._set_up()

    def _set_up(self) -> None:
        """Make the services that the configuration asks for now."""
        config, nat = self._config, self._nat
        v4, v6 = config.v4, config.v6
        self._arp = ArpService(config.our_mac, v4.gateway, v4.addr, nat.mac_for, more=v4.own)
        self._ndp: NdpService | None = None
        self._dhcp: DhcpService | None = None
        self._dhcp6: Dhcp6Service | None = None
        #: What DHCPv6 assigns.
        self._lease6 = v6.addr
        server, server6 = self._server4, self._server6
        lease = LEASE if self._renewing else INFINITE
        if server and config.dhcp and v4.gateway is not None and v4.addr is not None:
            told = server.offers(config, lease.to_bytes(4, "big"))
            self._dhcp = server.DhcpService(
                config.our_mac, v4.gateway, v4.addr, told, _note_dhcp, self._former
            )
        if not v6.enabled or v6.our_ll is None:
            return
        more6 = [addr for addr, _ in v6.more]
        self._ndp = NdpService(
            config.our_mac,
            v6.our_ll,
            v6.addr,
            ra_offers(config),
            more=more6,
            neighbours=config.ndp,
            router=config.ra,
            mac_for=nat.mac_for,
            note=_note_ndp,
        )
        if self._advertiser is not None:
            self._ndp.on_solicited = self._advertiser.start
        if server6 and config.dhcpv6 and v6.addr is not None:
            told6 = server6.offers(config)
            self._dhcp6 = server6.Dhcp6Service(
                config.our_mac,
                v6.our_ll,
                (v6.addr, *more6),
                told6,
                self._started,
                _note_dhcpv6,
                lease,
            )

    def renew(self, former4: bytes | None) -> None:
        """The configuration changed: say so where somebody listens, and tell it from now on.

        ``former4`` is the IPv4 address that was assigned before.
        """
        listening = self._advertiser is not None and self._advertiser.started
        if listening and self._ndp is not None:
            self._send(self._ndp.farewell(self._link.guest_mac))
        if former4 is not None:
            self._former.add(former4)
            if len(self._former) > MAX_FORMER:
                self._former.pop()
        if self._neighbours is not None:
            self._neighbours.renew()
        self._set_up()
        if listening:
            self._advertise()

    def shows(self, mac: bytes) -> bool:
        """Whether frames from ``mac`` are ours, in the name of a neighbour of the host."""
        return self._neighbours is not None and self._neighbours.has(mac)

    def arp(self, buf: memoryview, off: int, end: int) -> None:
        """Serve the ARP frame ``buf[off:end]``."""
        self._send(self._arp.handle(buf, off, end))

    def udp4(self, buf: memoryview, l4: int, end: int) -> bool:
        """Serve the datagram ``buf[l4:end]`` over IPv4; False if it is for no service."""
        if buf[l4 + 2] << 8 | buf[l4 + 3] != _DHCP:
            return False
        if self._dhcp is None:
            drops.bump(drops.PROTOCOL_DISABLED)
        elif self._admits():
            self._send(self._dhcp.handle(buf, l4, end, self._link.guest_mac))
        return True

    def udp6(self, buf: memoryview, l4: int, end: int, src: bytes, dst: bytes) -> bool:
        """Serve the datagram ``buf[l4:end]`` over IPv6; False if it is for no service."""
        if buf[l4 + 2] << 8 | buf[l4 + 3] != _DHCP6:
            return False
        if self._dhcp6 is None:
            drops.bump(drops.PROTOCOL_DISABLED)
        elif self._admits():
            reply = self._dhcp6.handle(buf, l4, end, src, dst, self._link.guest_mac)
            self._send(reply)
            if reply is not None and self._lease6 is not None:
                self._nat.observe6(self._lease6)
        return True

    def ndp(self, buf: memoryview, l4: int, end: int, src: bytes) -> None:
        """Serve the ICMPv6 message ``buf[l4:end]`` of a type that belongs to NDP."""
        service = self._ndp
        if service is None:
            drops.bump(drops.PROTOCOL_DISABLED)
            return
        if buf[l4] == ROUTER_SOLICITATION and not self._admits():
            return
        # In local mode the guest's address is learned from what it sends.
        service.guest_addr = self._config.v6.addr
        self._send(service.handle(buf, l4, end, src, self._link.guest_mac))

    def announce(self) -> None:
        """Introduce everybody, once the link can carry frames: ask the guest for its MAC first."""
        if self._config.v4.enabled:
            self._send(self._arp.initial_request())
        if self._ndp is not None:
            self._send(self._ndp.initial_solicitation(self._link.guest_mac))
        if self._neighbours is not None:
            self._neighbours.announce()

    def _advertise(self) -> None:
        if self._ndp is not None:
            self._send(self._ndp.router_advertisement(ALL_NODES, self._link.guest_mac))

    def _admits(self) -> bool:
        """Count a request for configuration; False if there were too many lately."""
        now = self._loop.now
        self._allowance = min(BURST, self._allowance + (now - self._counted) * RATE)
        self._counted = now
        if self._allowance < 1.0:
            drops.bump(drops.SERVICE_RATE)
            return False
        self._allowance -= 1.0
        return True

    def _send(self, frame: bytes | None) -> None:
        if frame is not None:
            self._link.send_frame(frame)


# Tell the user, but not as often as the guest would like.


def _note_dhcp(text: str) -> None:
    log.limited("dhcp", log.INFO, "%s", text)


def _note_dhcpv6(text: str) -> None:
    log.limited("dhcpv6", log.INFO, "%s", text)


def _note_ndp(text: str) -> None:
    if text == NOTE_ADVERTISED:
        # Kernels confirm their neighbours all the time.
        log.limited("ndp-neighbour", log.DEBUG, "%s", text)
    else:
        log.limited("ndp", log.INFO, "%s", text)
