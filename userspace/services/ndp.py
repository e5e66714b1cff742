"""Neighbour Discovery: we are the only router, and everybody's neighbour (RFC 4861).

**Neighbour solicitations** are answered for every unicast target, on-link or not, since all
traffic of the guest comes to us; the reasons are those of :mod:`~passt.userspace.services.arp`.
Those from the unspecified address are duplicate detection and never answered: the host may
well have the address that the guest is about to use.

**Router solicitations** are answered at once with one advertisement: the /64 of each of the
guest's global addresses, our MAC, the MTU, resolvers and search list (RFC 8106).  The lifetimes
of all of these are infinite, except that of the router itself, for which 65535 s are the most
(RFC 8319).  Thus from the first solicitation on, an advertisement is sent to all nodes now and then
(:meth:`NdpService.on_solicited`).  Advertisements by the guest are swallowed.

Answers come from our link-local address; guests ignore a router that uses any other.  All
frames go to the guest's MAC, also those to multicast groups: it is alone on its link.  Hop
limit, checksum and options of requests are not verified.
"""

from __future__ import annotations

import os

from passt.userspace.wire import Octets, drops, icmp, names, ndp
from passt.userspace.wire.ipv6 import ALL_NODES, LOOPBACK, UNSPECIFIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from passt.userspace.config.model import Config

NOTE_ADVERTISED = "NDP: received NS, sending NA"

#: Bytes that the search list may take, so that the whole message fits a packet of 1280 bytes with
#: headers (56), prefix, MAC and MTU (48), three resolvers (56), and options of the user's.
_MAX_SEARCH = 1280 - 56 - 48 - 56 - 8 - ndp.MAX_USER_OPTIONS


def offers(config: Config) -> bytes:
    """The options that ``config`` has to tell in advertisements, beside prefix and MAC."""
    told: dict[int, bytes] = {}
    room = _MAX_SEARCH - ndp.PREFIX_LEN * len(config.v6.more)
    if config.mtu:
        told[ndp.MTU] = ndp.mtu_body(config.mtu)
    if config.dhcp_dns and config.v6.dns:
        told[ndp.RESOLVERS] = ndp.dns_body(b"".join(config.v6.dns))
        # A list without resolvers confuses clients.
        if config.dhcp_search:
            search = names.encode_list(list(map(os.fsencode, config.search)), room)
            if search:
                told[ndp.SEARCH_LIST] = ndp.dns_body(search)
    for kind, body in config.ra_opts.items():
        if body is None:
            told.pop(kind, None)
        else:
            told[kind] = body
    return b"".join(ndp.option(kind, body) for kind, body in sorted(told.items()))


class NdpService:
    """Answers solicitations from the guest.

    ``our_mac`` and ``our_ll`` are our link-layer and link-local address; ``guest_addr`` is
    the address assigned to the guest, ``None`` as long as there is none (it may be changed
    later), ``more`` are further ones; ``told`` are the further options of advertisements.  With
    ``neighbours`` false nothing at all is answered (``--no-ndp``), with ``router`` false no
    router solicitation (``--no-ra``, ``--config-net``).  ``mac_for(address)`` gives the MAC to
    show for an address; without it that is ours.  ``note(text)`` is told of each answer, with a
    constant text.
    """

    __slots__ = (
        "_mac_for",
        "_more",
        "_neighbours",
        "_note",
        "_our_ll",
        "_our_mac",
        "_router",
        "_told",
        "guest_addr",
        "on_solicited",
    )

    def __init__(
        self,
        our_mac: bytes,
        our_ll: bytes,
        guest_addr: bytes | None,
        told: bytes,
        *,
        more: Sequence[bytes] = (),
        neighbours: bool = True,
        router: bool = True,
        mac_for: Callable[[bytes], bytes] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._our_mac = our_mac
        self._our_ll = our_ll
        self.guest_addr = guest_addr
        self._more = more
        self._told = told
        self._neighbours = neighbours
        self._router = router and neighbours
        self._mac_for = mac_for
        self._note = note
        #: Called when a router solicitation is answered.
        self.on_solicited: Callable[[], None] | None = None

    def handle(self, buf: Octets, off: int, end: int, src: bytes, guest_mac: bytes) -> bytes | None:
        """The answer to the ICMPv6 message ``buf[off:end]`` from ``src``, or ``None``.

        Meant for types 133-136 (:func:`passt.userspace.wire.ndp.is_ndp`), none of which goes
        any further.  ``guest_mac`` is where the answer goes to.
        """
        if off >= end:
            drops.bump(drops.NDP_SHORT)
            return None
        kind = buf[off]
        if kind == ndp.NEIGHBOUR_SOLICITATION:
            return self._neighbour(buf, off, end, src, guest_mac)
        if kind == ndp.ROUTER_SOLICITATION:
            if end - off < ndp.ROUTER_SOLICITATION_LEN:
                drops.bump(drops.NDP_SHORT)
                return None
            if self._router:
                if self._note is not None:
                    self._note("NDP: received RS, sending RA")
                if self.on_solicited is not None:
                    self.on_solicited()
                # A solicitor without address listens to all nodes (RFC 4861, 6.2.6).
                return self.router_advertisement(
                    ALL_NODES if src == UNSPECIFIED else src, guest_mac
                )
        return None

    def _neighbour(
        self, buf: Octets, off: int, end: int, src: bytes, guest_mac: bytes
    ) -> bytes | None:
        """The answer to a neighbour solicitation."""
        if end - off < ndp.NEIGHBOUR_SOLICITATION_LEN:
            drops.bump(drops.NDP_SHORT)
            return None
        start = off + ndp.TARGET_OFFSET
        target = bytes(buf[start : start + 16])
        if (
            not self._neighbours
            or src == UNSPECIFIED
            or target[0] == 0xFF
            or target in (UNSPECIFIED, LOOPBACK)
        ):
            return None
        if self._note is not None:
            self._note(NOTE_ADVERTISED)
        mac = self._our_mac if self._mac_for is None else self._mac_for(target)
        message = ndp.neighbour_advertisement(target, mac)
        return icmp.frame6(guest_mac, self._our_mac, self._our_ll, src, message)

    def router_advertisement(self, dst: bytes, guest_mac: bytes) -> bytes:
        """An advertisement to ``dst``: a solicitor, or all nodes if nobody asked."""
        message = ndp.router_advertisement(self._our_mac, self._prefixes(), self._told)
        return icmp.frame6(guest_mac, self._our_mac, self._our_ll, dst, message)

    def farewell(self, guest_mac: bytes) -> bytes | None:
        """An advertisement to all nodes that ends what earlier ones said, if there are any.

        It is for a router, or a prefix, that is about to be replaced.
        """
        if not self._router:
            return None
        message = ndp.router_advertisement(self._our_mac, self._prefixes(), b"", ending=True)
        return icmp.frame6(guest_mac, self._our_mac, self._our_ll, ALL_NODES, message)

    def _prefixes(self) -> Iterable[bytes]:
        """The first 8 bytes of each /64 that the guest has an address of."""
        return dict.fromkeys(
            addr[:8]
            for addr in (self.guest_addr, *self._more)
            # A link-local address is no reason to announce fe80::/64.
            if addr is not None and not (addr[0] == 0xFE and addr[1] & 0xC0 == 0x80)
        )

    def initial_solicitation(self, guest_mac: bytes) -> bytes | None:
        """A solicitation to the guest's address, to learn its MAC from the answer.

        Sent to that address itself rather than to its solicited-node group.  ``None`` if
        the address is unknown or solicitations are off.
        """
        if self.guest_addr is None or not self._neighbours:
            return None
        message = ndp.neighbour_solicitation(self.guest_addr)
        return icmp.frame6(guest_mac, self._our_mac, self._our_ll, self.guest_addr, message)
