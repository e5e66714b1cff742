"""Turning the host's address and route messages into the namespace's.

Theory of operation
-------------------
What a dump reports is nearly what a request to create the same thing looks like: the message
is copied attribute by attribute as bytes, the interface index is replaced, and what makes no
sense elsewhere is left out.

* Addresses: the label (it holds the interface's name) and the cache information go; without the
  latter, lifetimes are infinite.  IPv6 addresses skip duplicate address detection: on the only
  link they are used on, nobody else can have them.
* Routes: those through other interfaces as well are left out, but of default routes, which a
  host balances over its uplinks, the namespace gets its share.  The preferred source goes, as
  the address may not be there; so does the nexthop object's number, whose object exists on the
  host only (the hops it stands for are in the message as well), and what expires.  Of the flags
  only "onlink" is a wish, the others report state, and the kernel refuses a new route that
  claims to be dead.

Source: rtnetlink(7); fib and address flags in linux/rtnetlink.h, linux/if_addr.h.
"""

from __future__ import annotations

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, pack, pack_u32, walk
from passt.kernel.netlink.records import (
    ADDRESS_HEADER,
    HOP_HEADER,
    ROUTE_DST_LEN,
    ROUTE_HEADER,
    ROUTE_PROTOCOL,
    ROUTE_SCOPE,
    ROUTE_TABLE,
    ROUTE_TOS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.records import Address

_ADDRESS_DROPPED = frozenset(
    (uapi.IFA_LABEL, uapi.IFA_CACHEINFO, uapi.IFA_FLAGS, uapi.IFA_TARGET_NETNSID)
)
_ROUTE_DROPPED = frozenset((uapi.RTA_PREFSRC, uapi.RTA_NH_ID, uapi.RTA_CACHEINFO, uapi.RTA_EXPIRES))


def retarget_address(address: Address, index: int) -> bytes:
    """Body of a request that gives interface `index` the same address.

    FormError if the message is malformed.
    """
    body = address.body
    family, prefix_len, _, scope, _ = ADDRESS_HEADER.unpack_from(body)
    flags = address.flags
    if family == uapi.AF_INET6:
        flags |= uapi.IFA_F_NODAD
    parts = [ADDRESS_HEADER.pack(family, prefix_len, flags & 0xFF, scope, index)]
    parts += [
        pack(kind, body[start:end])
        for kind, start, end in walk(body, ADDRESS_HEADER.size, len(body))
        if kind not in _ADDRESS_DROPPED
    ]
    parts.append(pack_u32(uapi.IFA_FLAGS, flags))
    return b"".join(parts)


def in_main_table(body: bytes) -> bytes:
    """The same route, of the main table; FormError if it is malformed."""
    header = bytearray(body[: ROUTE_HEADER.size])
    header[ROUTE_TABLE] = uapi.RT_TABLE_MAIN
    parts = [bytes(header)]
    for kind, start, end in walk(body, ROUTE_HEADER.size, len(body)):
        if kind == uapi.RTA_TABLE:
            parts.append(pack_u32(uapi.RTA_TABLE, uapi.RT_TABLE_MAIN))
        else:
            parts.append(pack(kind, body[start:end]))
    return b"".join(parts)


def retarget_route(body: bytes, host_index: int, index: int) -> bytes | None:
    """Body of a request that creates the same route through interface `index`.

    None if it has no hop, or one through another interface than `host_index`, or is malformed.
    Of a default route over several interfaces, those hops remain that are through `host_index`.
    """
    oif = pack_u32(uapi.RTA_OIF, host_index)
    header = ROUTE_HEADER.unpack_from(body)
    parts = [ROUTE_HEADER.pack(*header[:8], header[8] & uapi.RTNH_F_ONLINK)]
    usable = False
    try:
        for kind, start, end in walk(body, ROUTE_HEADER.size, len(body)):
            if kind in _ROUTE_DROPPED:
                continue
            if kind == uapi.RTA_OIF:
                if body[start:end] != oif[4:]:
                    return None
                parts.append(pack_u32(uapi.RTA_OIF, index))
                usable = True
            elif kind == uapi.RTA_MULTIPATH:
                partly = body[ROUTE_DST_LEN] == 0
                nexthops = _retarget_hops(body[start:end], host_index, index, partly)
                if not nexthops:
                    return None
                parts.append(pack(uapi.RTA_MULTIPATH, nexthops))
                usable = True
            else:
                # With padding, which the next attribute's alignment has paid for already.
                parts.append(body[start - 4 : start + ((end - start + 3) & ~3)])
    except FormError:
        return None
    return b"".join(parts) if usable else None


def _retarget_hops(data: bytes, host_index: int, index: int, partly: bool) -> bytes | None:
    """The list of hops through `index` instead; None if one is not through `host_index`.

    `partly`: such a one is left out.
    """
    parts = []
    start = 0
    while len(data) - start >= HOP_HEADER.size:
        length, flags, weight, hop_index = HOP_HEADER.unpack_from(data, start)
        if length < HOP_HEADER.size or length > len(data) - start:
            raise FormError("hop exceeds its list")
        if hop_index == host_index:
            parts.append(HOP_HEADER.pack(length, flags & uapi.RTNH_F_ONLINK, weight, index))
            parts.append(data[start + HOP_HEADER.size : start + length])
            parts.append(bytes(-length % 4))
        elif not partly:
            return None
        start += (length + 3) & ~3
    return b"".join(parts)


def connected_key(body: bytes) -> tuple[object, ...] | None:
    """What identifies a route that the kernel makes for an address; None for other routes.

    Two bodies with the same key mean the same subnet on the link, with the same metric.
    """
    if body[ROUTE_PROTOCOL] != uapi.RTPROT_KERNEL or body[ROUTE_SCOPE] != uapi.RT_SCOPE_LINK:
        return None
    wanted = {uapi.RTA_DST: b"", uapi.RTA_PRIORITY: b""}
    try:
        for kind, start, end in walk(body, ROUTE_HEADER.size, len(body)):
            if kind in (uapi.RTA_GATEWAY, uapi.RTA_VIA, uapi.RTA_MULTIPATH):
                return None
            if kind in wanted:
                wanted[kind] = body[start:end]
    except FormError:
        return None
    fixed = (body[ROUTE_DST_LEN], body[ROUTE_TOS], body[ROUTE_TABLE])
    return (*fixed, wanted[uapi.RTA_DST], wanted[uapi.RTA_PRIORITY])
