"""From what we gave the namespace, and what is to be there, to what has to be done.

Only what is *ours* is ever taken away: addresses and routes that we made, at start or later.  What
the namespace's own programs add stays, and what they removed of ours is not made again unless the
host changes it.

Addresses have a fourth state beside absent, present and new: *retained*.  When the template becomes
another interface (a VPN's, say), the host goes on having the addresses of the former one, and
connections from there live as long as the host's own do.  So the namespace keeps such an address
too, behind those of the template: the first IPv4 address is the source of new connections, and of
IPv6 addresses those that are not deprecated are.

The order of IPv4 addresses is that of their creation, so one that has to come earlier means that
those behind it are removed and made again.  The namespace's connections do not notice: they
look for their address when they send.

Everything here is a pure function of message bodies.  Source: rtnetlink(7), ip-address(8).
"""

from __future__ import annotations

import struct

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, pack, pack_u32, parse, walk
from passt.kernel.netlink.namespace import reachable
from passt.kernel.netlink.records import (
    ADDRESS_HEADER,
    HOP_HEADER,
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    parse_address,
)
from passt.kernel.netlink.retarget import retarget_address, retarget_route
from passt.kernel.netlink.template import copied_addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from passt.kernel.netlink.template import Source
    from passt.kernel.netlink.worker import FamilyPlan

    #: Our end and prefix length.
    AddressKey = tuple[bytes, int]
    #: Bytes, as there may be a hundred thousand of them.
    RouteKey = bytes

#: struct ifa_cacheinfo: preferred and valid lifetime in seconds, two timestamps.
_CACHEINFO = struct.Struct("=IIII")
_FOREVER = 0xFFFFFFFF

#: What tells routes apart, beside numbers of their header.
_ROUTE_ATTRIBUTES = (uapi.RTA_DST, uapi.RTA_PRIORITY, uapi.RTA_GATEWAY, uapi.RTA_VIA)


def address_key(body: bytes) -> AddressKey:
    """What identifies an address on its interface; FormError."""
    address = parse_address(body)
    return address.local, address.prefix_len


def route_key(body: bytes) -> RouteKey:
    """What identifies a route, in a request as in a dump; FormError if it is malformed."""
    if len(body) < ROUTE_HEADER.size:
        raise FormError("short route message")
    found = parse(body, ROUTE_HEADER.size)
    parts = [body[:ROUTE_PROTOCOL]]
    for kind in _ROUTE_ATTRIBUTES:
        value = found.get(kind, b"")
        parts.append(len(value).to_bytes(2, "big"))
        parts.append(value)
    # The state of a hop, and that of a route, are no part of its identity.
    parts.append(_hops_key(found.get(uapi.RTA_MULTIPATH)))
    return b"".join(parts)


def _hops_key(data: bytes | None) -> bytes:
    """A list of hops without their flags."""
    if data is None:
        return b""
    plain = bytearray(data)
    start = 0
    while len(plain) - start >= HOP_HEADER.size:
        length = HOP_HEADER.unpack_from(plain, start)[0]
        if length < HOP_HEADER.size:
            break
        plain[start + 2] = 0
        start += (length + 3) & ~3
    return bytes(plain)


class Wanted:
    """An address that is to be there: the request that makes it, and whether it is deprecated."""

    __slots__ = ("body", "deprecated")

    def __init__(self, body: bytes, deprecated: bool = False) -> None:
        self.body = body
        self.deprecated = deprecated


def wanted_addresses(
    plan: FamilyPlan | None,
    family: int,
    source: Source | None,
    index: int,
    own: dict[AddressKey, Wanted],
    host: Container[bytes],
) -> dict[AddressKey, Wanted]:
    """The addresses that interface ``index`` is to have of ours, in order.

    ``own`` are those it has; ``host`` all that the host has.
    """
    if plan is None:
        return {}
    bodies: list[bytes] = []
    if plan.copy_addresses and source is not None:
        for address in copied_addresses(source.addresses):
            try:
                bodies.append(retarget_address(address, index))
            except FormError:
                continue
    if not bodies and plan.address is not None:
        bodies = [
            address_request(family, index, address, prefix_len)
            for address, prefix_len in ((plan.address, plan.prefix_len), *plan.more)
        ]
    wanted = {address_key(body): Wanted(body) for body in bodies}
    if plan.copy_addresses:
        for key, held in own.items():
            if key not in wanted and key[0] in host:
                wanted[key] = _retained(held.body)
    return wanted


def _retained(body: bytes) -> Wanted:
    """The request that makes an address again as one that new connections do not come from."""
    if body[0] != uapi.AF_INET6:
        return Wanted(body)
    kept = b"".join(
        pack(kind, body[start:end])
        for kind, start, end in walk(body, ADDRESS_HEADER.size, len(body))
        if kind != uapi.IFA_CACHEINFO
    )
    lifetimes = pack(uapi.IFA_CACHEINFO, _CACHEINFO.pack(0, _FOREVER, 0, 0))
    return Wanted(body[: ADDRESS_HEADER.size] + kept + lifetimes, deprecated=True)


def address_request(family: int, index: int, address: bytes, prefix_len: int) -> bytes:
    """Body for RTM_NEWADDR: one permanent address of global scope."""
    flags = uapi.IFA_F_NODAD if family == uapi.AF_INET6 else 0
    header = ADDRESS_HEADER.pack(family, prefix_len, flags, uapi.RT_SCOPE_UNIVERSE, index)
    attributes = pack(uapi.IFA_LOCAL, address) + pack(uapi.IFA_ADDRESS, address)
    return header + attributes + pack_u32(uapi.IFA_FLAGS, flags)


def address_steps(
    family: int, own: dict[AddressKey, Wanted], wanted: dict[AddressKey, Wanted]
) -> tuple[list[AddressKey], list[AddressKey]]:
    """Which of ``own`` to remove first, and which of ``wanted`` to make then, in that order."""
    if family == uapi.AF_INET6:
        removed = [key for key in own if key not in wanted]
        # The kernel puts a new one before the others.
        added = [
            key
            for key, target in wanted.items()
            if key not in own or own[key].deprecated != target.deprecated
        ]
        return removed, added[::-1]
    order = list(wanted)
    kept = 0
    removed = []
    moved = False
    for key in own:
        if key not in wanted:
            removed.append(key)
        elif not moved and order[kept] == key:
            kept += 1
        else:
            moved = True
            removed.append(key)
    return removed, order[kept:]


def wanted_routes(
    plan: FamilyPlan | None, family: int, source: Source | None, index: int
) -> dict[RouteKey, bytes]:
    """The routes that are to go through interface ``index``, in order."""
    if plan is None:
        return {}
    bodies: list[bytes] = []
    if plan.copy_routes and source is not None:
        for body in source.routes:
            copy = retarget_route(body, source.index, index)
            if copy is not None:
                bodies.append(copy)
    elif plan.gateway is not None or (source is not None and source.has_default):
        # In local mode the gateway is ours to invent, so it may lie outside the subnet.
        far = plan.local and plan.gateway is not None and not reachable(plan.gateway, plan)
        bodies.append(default_route_request(family, index, plan.gateway, onlink=far))
    wanted = {}
    for body in bodies:
        try:
            wanted[route_key(body)] = body
        except FormError:
            continue
    return wanted


def default_route_request(
    family: int, index: int, gateway: bytes | None, *, onlink: bool = False
) -> bytes:
    """Body for RTM_NEWROUTE: main table, everything through ``index``, by ``gateway`` if any."""
    scope = uapi.RT_SCOPE_UNIVERSE
    if gateway is None and family == uapi.AF_INET:
        scope = uapi.RT_SCOPE_LINK
    flags = uapi.RTNH_F_ONLINK if onlink else 0
    numbers = (uapi.RT_TABLE_MAIN, uapi.RTPROT_BOOT, scope, uapi.RTN_UNICAST)
    body = ROUTE_HEADER.pack(family, 0, 0, 0, *numbers, flags)
    body += pack_u32(uapi.RTA_OIF, index)
    return body if gateway is None else body + pack(uapi.RTA_GATEWAY, gateway)


def same_route(one: bytes, other: bytes) -> bool:
    """Whether two requests make the same route, whatever the order of their attributes."""
    try:
        return _essence(one) == _essence(other)
    except FormError:
        return False


def _essence(body: bytes) -> tuple[bytes, dict[int, bytes]]:
    return body[: ROUTE_HEADER.size], parse(body, ROUTE_HEADER.size)


def keys_of(bodies: Iterable[bytes]) -> set[RouteKey]:
    """The keys of those routes among ``bodies`` that make sense."""
    keys = set()
    for body in bodies:
        try:
            keys.add(route_key(body))
        except FormError:
            continue
    return keys
