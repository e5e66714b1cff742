"""Which host interface, address and gateway serve as template for an IP version.

Theory of operation
-------------------
The interface is the one the user named, else that of the first default route in the main table
(the kernel reports IPv4 routes of one prefix lowest metric first), else that of the first route
of any kind.  Loopback (index 1) and routes to link-local prefixes say nothing about where the
world is and are passed over.  A multipath route counts as its first hop that is in use.

If the main table has no default route, neither at all nor through the named interface, one that
the host's routing rules lead to counts instead (`policy`).

The gateway is that of the interface's first default route; with several hops the heaviest on
that interface, the first among equals.  The guest's address is the interface's address with the
longest prefix (a /128 from DHCPv6 wins over the /64 of autoconfiguration), not deprecated, and
wider than link scope for IPv6; for IPv4, where link scope is a mere annotation, wider scopes are
preferred, no more.  IPv6 further needs a link-local address to speak from: the interface's own,
or the gateway's if that is link-local.

Addresses that the host found in use elsewhere, by duplicate address detection, are none; its
temporary ones, for privacy, come last, since they are gone in a day.

A version whose requirements are not met has no template and runs in *local mode*, which the
caller fills with its own values: nothing found on the host is handed over in that case.

Everything but `survey` is a pure function of what was read, in dump order.
"""

from __future__ import annotations

from errno import ENODEV

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, parse
from passt.kernel.netlink.records import (
    ROUTE_DST_LEN,
    ROUTE_HEADER,
    address_length,
    hops,
    read_addresses,
    read_routes,
    read_rules,
)
from passt.kernel.netlink.route_socket import NetlinkError
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.kernel.netlink.records import Address
    from passt.kernel.netlink.route_socket import RouteSocket

WARNING, INFO, DEBUG = "warning", "info", "debug"
Note = tuple[str, str]
#: As many of both IP versions fit into one message to the program.
_MAX_OTHERS = 500
_UNUSABLE = uapi.IFA_F_DEPRECATED | uapi.IFA_F_DADFAILED

_NAMES = {uapi.AF_INET: "IPv4", uapi.AF_INET6: "IPv6"}


class Wish:
    """What the user said about one IP version.

    `interface`: name given for both versions (-i), must exist.  `outbound`: name given for this
    version (--outbound-ifN), None if none.  `has_address`: an address was given, so the host
    need not have one.  `has_link_local`: a link-local IPv6 gateway was given, to speak from.
    """

    __slots__ = ("family", "has_address", "has_link_local", "interface", "outbound")

    def __init__(
        self,
        family: int,
        interface: str | None = None,
        outbound: str | None = None,
        has_address: bool = False,
        has_link_local: bool = False,
    ) -> None:
        self.family = family
        self.interface = interface
        self.outbound = outbound
        self.has_address = has_address
        self.has_link_local = has_link_local


class Source:
    """The template of one IP version, with the lists to copy from, as the host had them.

    `address` and `gateway` are packed or None; `has_default` tells a default route without
    gateway from none; `link_local` is the host's own (IPv6).
    """

    __slots__ = (
        "address",
        "addresses",
        "gateway",
        "has_default",
        "index",
        "link_local",
        "name",
        "prefix_len",
        "routes",
    )

    def __init__(
        self, index: int, name: str, routes: list[bytes], addresses: list[Address]
    ) -> None:
        self.index = index
        self.name = name
        self.routes = routes
        self.addresses = addresses
        self.has_default, self.gateway = default_gateway(routes, index)
        chosen = choose_address(addresses)
        self.address = chosen.local if chosen else None
        self.prefix_len = chosen.prefix_len if chosen else 0
        self.link_local = link_local(addresses)

    def summary(
        self,
    ) -> tuple[int, str, bytes | None, int, bytes | None, bytes | None, list[bytes]]:
        """What the program gets to know, see `worker.FamilyTemplate`."""
        others = [a.local for a in copied_addresses(self.addresses) if a.local != self.address]
        found = (self.address, self.prefix_len, self.gateway, self.link_local)
        return (self.index, self.name, *found, others[:_MAX_OTHERS])


def survey(sock: RouteSocket, wish: Wish) -> tuple[Source | None, list[Note]]:
    """Find the template of one IP version; None means local mode.

    Errors as the user is to read them: NetlinkError ENODEV `Invalid interface name …`,
    `External interface not usable`.
    """
    notes: list[Note] = []
    family_name = _NAMES[wish.family]
    index = _named_index(wish)
    try:
        source, found = _find(sock, wish.family, index)
        notes += found
    except NetlinkError as e:
        notes.append((WARNING, f"Couldn't read {family_name} configuration: {e.strerror}"))
        source = None
    if source is None or not usable(source, wish):
        if wish.outbound is not None and wish.interface is None:
            raise NetlinkError(ENODEV, "External interface not usable")
        notes.append((INFO, f"{family_name}: no external interface as template, use local mode"))
        return None, notes
    return source, notes


def _find(sock: RouteSocket, family: int, index: int) -> tuple[Source | None, list[Note]]:
    routes = read_routes(sock, family)
    addresses = read_addresses(sock, family, index) if index else []
    notes: list[Note] = []
    if not has_default(routes, index) and read_rules(sock, family):
        # What rules take to be understood is not loaded otherwise.
        from passt.kernel.netlink.policy import default_routes

        elsewhere = default_routes(sock, family, index, [a.local for a in addresses])
        if elsewhere:
            notes.append((INFO, f"{_NAMES[family]}: default route by routing rules"))
            routes = elsewhere + routes
    if not index:
        index, told = choose_interface(routes, _NAMES[family])
        notes += told
        if not index:
            return None, notes
        addresses = read_addresses(sock, family, index)
    try:
        name = socket.if_indextoname(index)
    except OSError:
        return None, [*notes, (WARNING, f"Interface with index {index} disappeared")]
    return Source(index, name, routes, addresses), notes


def has_default(routes: Sequence[bytes], index: int) -> bool:
    """Whether there is a default route through interface `index`, for 0 through any."""
    defaults = [body for body in routes if body[ROUTE_DST_LEN] == 0]
    if index:
        return default_gateway(defaults, index)[0]
    return any(map(_route_interface, defaults))


def _named_index(wish: Wish) -> int:
    """Index of the interface the user named, 0 if none; an absent outbound interface is none."""
    name = wish.outbound if wish.interface is None else wish.interface
    if name is None:
        return 0
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError):
        if wish.interface is None:
            return 0
        raise NetlinkError(ENODEV, f"Invalid interface name {name}: No such device") from None


def usable(source: Source, wish: Wish) -> bool:
    """Whether an interface has what its IP version needs; see the module's text."""
    if source.address is None and not wish.has_address:
        return False
    if wish.family == uapi.AF_INET or source.link_local or wish.has_link_local:
        return True
    return source.gateway is not None and is_link_local(source.gateway)


def choose_interface(routes: Sequence[bytes], family_name: str) -> tuple[int, list[Note]]:
    """Index of the template interface by routes, 0 if there is none, and what to tell of it."""
    defaults = [body for body in routes if body[ROUTE_DST_LEN] == 0]
    index, several = _first_interface(defaults)
    if index:
        text = f"Multiple default {family_name} routes, picked first"
        return index, [(INFO, text)] if several else []
    index, _ = _first_interface(routes)
    if not index:
        return 0, [
            (INFO, f"No interfaces with usable {family_name} routes"),
            (DEBUG, f"Failed to detect external interface for {family_name}"),
        ]
    for body in routes:
        if _route_interface(body) not in (0, index):
            return index, [(INFO, f"Multiple interfaces with {family_name} routes, picked first")]
    return index, []


def _first_interface(routes: Sequence[bytes]) -> tuple[int, bool]:
    """Interface of the first usable route, and whether another one follows."""
    index = 0
    for body in routes:
        candidate = _route_interface(body)
        if candidate and index:
            return index, True
        index = index or candidate
    return index, False


def _route_interface(body: bytes) -> int:
    """Index of a route's first hop in use; 0 if it does not make its interface a candidate."""
    first = [hop for hop in hops(body) if not hop.dead][:1]
    if not first or first[0].index == uapi.LOOPBACK_INDEX or _is_link_local_route(body):
        return 0
    return first[0].index


def _is_link_local_route(body: bytes) -> bool:
    length = body[ROUTE_DST_LEN]
    if length < 10:
        return False
    try:
        destination = parse(body, ROUTE_HEADER.size).get(uapi.RTA_DST, b"")
    except FormError:
        return True
    if len(destination) == address_length(uapi.AF_INET):
        return length >= 16 and destination[:2] == b"\xa9\xfe"
    return is_link_local(destination)


def is_link_local(address: bytes) -> bool:
    """Whether a packed IPv6 address is within fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def default_gateway(routes: Sequence[bytes], index: int) -> tuple[bool, bytes | None]:
    """Whether a default route uses interface `index`, and the gateway of the first that does."""
    for body in routes:
        if body[ROUTE_DST_LEN] != 0:
            continue
        ours = [hop for hop in hops(body) if hop.index == index]
        if ours:
            return True, max(ours, key=lambda hop: (not hop.dead, hop.weight)).gateway
    return False, None


def choose_address(addresses: Sequence[Address]) -> Address | None:
    """The address that becomes the guest's; None if none qualifies."""
    candidates = [a for a in addresses if not a.flags & _UNUSABLE]
    wide = [a for a in candidates if a.scope < uapi.RT_SCOPE_LINK]
    if not wide and candidates and candidates[0].family == uapi.AF_INET:
        wide = candidates
    # max() keeps the first among equals.
    return max(wide, key=lambda a: (not _is_temporary(a), a.prefix_len), default=None)


def _is_temporary(address: Address) -> bool:
    """Whether an address is one that the kernel exchanges for privacy (RFC 8981)."""
    return address.family == uapi.AF_INET6 and bool(address.flags & uapi.IFA_F_TEMPORARY)


def link_local(addresses: Sequence[Address]) -> bytes | None:
    """The first IPv6 link-local address, deprecated or not; None if there is none."""
    for address in addresses:
        if is_link_local(address.local):
            return address.local
    return None


def copied_addresses(addresses: Sequence[Address]) -> list[Address]:
    """Those addresses that the namespace gets too: in use, wider than link scope."""
    return [a for a in addresses if a.scope < uapi.RT_SCOPE_LINK and not a.flags & _UNUSABLE]
