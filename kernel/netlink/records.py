"""Links, addresses and routes as the kernel reports them, read from the bytes.

Theory of operation
-------------------
A message body is a fixed header and a list of attributes.  Addresses and links are few, so they
become objects.  Routes may be many: they stay bytes in lists, chosen by their 12-byte header
alone, and are looked into one at a time with `hops` and `parse`.

The kernel's filters (strict checking) save work but are never relied on: older kernels ignore
them, and one without IPv6 answers an IPv6 dump with the other families' entries.

Sources: rtnetlink(7); struct ifinfomsg, ifaddrmsg, rtmsg, rtnexthop in linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from errno import EAFNOSUPPORT, ENOENT, EOPNOTSUPP

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, pack_u32, parse, u32
from passt.kernel.netlink.route_socket import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.route_socket import RouteSocket

LINK_HEADER = struct.Struct("=BxHiII")  # family, device type, index, flags, change mask
ADDRESS_HEADER = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
HOP_HEADER = struct.Struct("=HBBi")  # length, flags, weight - 1, index

#: Family, lengths of destination and source, TOS, table, two reserved, action, flags.
RULE_HEADER = struct.Struct("=BBBBBBBBI")

# Offsets in ROUTE_HEADER, and that of the table in RULE_HEADER.
ROUTE_FAMILY, ROUTE_DST_LEN, ROUTE_TOS, ROUTE_TABLE = 0, 1, 3, 4
RULE_TABLE = 4
ROUTE_PROTOCOL, ROUTE_SCOPE, ROUTE_TYPE, ROUTE_FLAGS = 5, 6, 7, 8


class Link:
    """An interface: index, name, hardware address (empty if it has none)."""

    __slots__ = ("index", "mac", "name")

    def __init__(self, index: int, name: str, mac: bytes) -> None:
        self.index = index
        self.name = name
        self.mac = mac


class Address:
    """An interface address.

    `local` is our end, packed in network byte order, also on point-to-point links; `flags` are
    the 32-bit IFA_F_ flags; `body` is the message it came in.
    """

    __slots__ = ("body", "family", "flags", "index", "local", "prefix_len", "scope")

    def __init__(
        self,
        family: int,
        index: int,
        local: bytes,
        prefix_len: int,
        scope: int,
        flags: int,
        body: bytes,
    ) -> None:
        self.family = family
        self.index = index
        self.local = local
        self.prefix_len = prefix_len
        self.scope = scope
        self.flags = flags
        self.body = body


class Hop:
    """One way a route goes: interface index, gateway (packed, or None), weight from 1.

    `dead`: the kernel does not use it, as its interface is down.
    """

    __slots__ = ("dead", "gateway", "index", "weight")

    def __init__(self, index: int, gateway: bytes | None, weight: int, flags: int) -> None:
        self.index = index
        self.gateway = gateway
        self.weight = weight
        self.dead = bool(flags & uapi.RTNH_F_DEAD)


def address_length(family: int) -> int:
    """Bytes in an address of `family`."""
    return 16 if family == uapi.AF_INET6 else 4


def parse_link(body: bytes) -> Link:
    """Read an RTM_NEWLINK body; FormError if it is malformed."""
    if len(body) < LINK_HEADER.size:
        raise FormError("short link message")
    found = parse(body, LINK_HEADER.size)
    name = found.get(uapi.IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
    return Link(LINK_HEADER.unpack_from(body)[2], name, found.get(uapi.IFLA_ADDRESS, b""))


def parse_address(body: bytes) -> Address:
    """Read an RTM_NEWADDR body; FormError if it is malformed or of another family."""
    if len(body) < ADDRESS_HEADER.size:
        raise FormError("short address message")
    family, prefix_len, flags, scope, index = ADDRESS_HEADER.unpack_from(body)
    found = parse(body, ADDRESS_HEADER.size)
    # On point-to-point links IFA_ADDRESS is the peer's; IPv6 without a peer has no IFA_LOCAL.
    local = found.get(uapi.IFA_LOCAL) or found.get(uapi.IFA_ADDRESS, b"")
    if family not in (uapi.AF_INET, uapi.AF_INET6) or len(local) != address_length(family):
        raise FormError("address message without address")
    if uapi.IFA_FLAGS in found:
        flags = u32(found[uapi.IFA_FLAGS])
    return Address(family, index, local, prefix_len, scope, flags, body)


def hops(body: bytes) -> list[Hop]:
    """The next hops of an RTM_NEWROUTE body with an interface, in order; none if malformed.

    A gateway of the other family (RTA_VIA) counts as no gateway.
    """
    try:
        found = parse(body, ROUTE_HEADER.size)
        multipath = found.get(uapi.RTA_MULTIPATH)
        if multipath is None:
            oif = found.get(uapi.RTA_OIF)
            flags = ROUTE_HEADER.unpack_from(body)[ROUTE_FLAGS]
            gateway = found.get(uapi.RTA_GATEWAY)
            nexthops = [] if oif is None else [Hop(u32(oif), gateway, 1, flags)]
        else:
            nexthops = _multipath_hops(multipath)
    except FormError:
        return []
    size = address_length(body[ROUTE_FAMILY])
    for hop in nexthops:
        if hop.gateway is not None and (len(hop.gateway) != size or not any(hop.gateway)):
            hop.gateway = None
    return [hop for hop in nexthops if hop.index > 0]


def _multipath_hops(data: bytes) -> list[Hop]:
    found = []
    start = 0
    while len(data) - start >= HOP_HEADER.size:
        length, flags, weight, index = HOP_HEADER.unpack_from(data, start)
        if length < HOP_HEADER.size or length > len(data) - start:
            raise FormError("hop exceeds its list")
        nested = parse(data, start + HOP_HEADER.size, start + length)
        found.append(Hop(index, nested.get(uapi.RTA_GATEWAY), weight + 1, flags))
        start += (length + 3) & ~3
    return found


def read_link(sock: RouteSocket, index: int) -> Link:
    """Ask for one interface; NetlinkError ENODEV if there is none with that index."""
    body = LINK_HEADER.pack(0, 0, index, 0, 0)
    body += pack_u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)
    return parse_link(sock.get(uapi.RTM_GETLINK, body))


def read_addresses(sock: RouteSocket, family: int, index: int) -> list[Address]:
    """All addresses of `family` on interface `index`, in the kernel's order.

    Empty if the kernel does not know the family.
    """
    found = []
    for body in _dump(sock, uapi.RTM_GETADDR, ADDRESS_HEADER.pack(family, 0, 0, 0, index)):
        try:
            address = parse_address(body)
        except FormError:
            continue
        if address.family == family and address.index == index:
            found.append(address)
    return found


def read_routes(
    sock: RouteSocket, family: int, index: int = 0, table: int = uapi.RT_TABLE_MAIN
) -> list[bytes]:
    """Bodies of a table's unicast routes of `family`, in the kernel's order.

    With `index`, those that use interface `index` (multipath routes may be left out by the
    kernel or not).  Cached entries are left out.  Empty if the kernel does not know the family
    or has no such table.
    """
    # The table byte is exact for numbers below 256.
    short = table if table < 256 else uapi.RT_TABLE_COMPAT
    request = ROUTE_HEADER.pack(family, 0, 0, 0, short, 0, 0, uapi.RTN_UNICAST, 0)
    request += pack_u32(uapi.RTA_TABLE, table)
    if index:
        request += pack_u32(uapi.RTA_OIF, index)
    wanted = bytes((family, short, uapi.RTN_UNICAST))
    minimum = ROUTE_HEADER.size
    found = [
        body
        for body in _dump(sock, uapi.RTM_GETROUTE, request)
        if len(body) >= minimum
        and body[ROUTE_FAMILY] == wanted[0]
        and body[ROUTE_TABLE] == wanted[1]
        and body[ROUTE_TYPE] == wanted[2]
        and not ROUTE_HEADER.unpack_from(body)[8] & uapi.RTM_F_CLONED
        and (table == short or _table(body) == table)
    ]
    if index:
        return [body for body in found if any(hop.index == index for hop in hops(body))]
    return found


def read_rules(sock: RouteSocket, family: int) -> list[bytes]:
    """Bodies of the routing rules of `family` that do not name the tables main or local, in order.

    Empty if the kernel has no policy routing.
    """
    found = _dump(sock, uapi.RTM_GETRULE, RULE_HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    usual = (uapi.RT_TABLE_MAIN, uapi.RT_TABLE_LOCAL)
    return [b for b in found if len(b) >= RULE_HEADER.size and b[RULE_TABLE] not in usual]


def _table(body: bytes) -> int:
    """The table that a route is in, 0 if the message is malformed."""
    try:
        return u32(parse(body, ROUTE_HEADER.size).get(uapi.RTA_TABLE, bytes(4)))
    except FormError:
        return 0


def _dump(sock: RouteSocket, kind: int, request: bytes) -> list[bytes]:
    try:
        return sock.dump(kind, request)
    except NetlinkError as e:
        # Family unknown, or (IPv4) a table that was never created.
        if e.errno in (EAFNOSUPPORT, EOPNOTSUPP, ENOENT):
            return []
        raise
