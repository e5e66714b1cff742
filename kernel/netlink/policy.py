"""Where the host's routing rules lead when its main table has no default route.

Theory of operation
-------------------
Hosts with several uplinks, or behind a tunnel, may keep default routes in tables of their own and
have rules (ip-rule(8)) send packets there.  Our sockets follow these rules by themselves, as any
program's do; but a namespace copied from the main table alone would have no default route, and
reach nothing.  So the first other table that has one stands in.

Which tables count: those of rules that apply to any packet which a program of this host sends
from a socket without mark, device or address, as ours are.  In terms of ip-rule(8)::

    from all lookup 100              applies
    not from all fwmark 7 lookup 9   applies, as packets without mark are not marked 7
    from 192.0.2.1 lookup 101        applies to a socket that is bound to this address only
    … iif, oif, tos, l3mdev          does not apply
    … to, ipproto, sport, uidrange   depends, and is left alone
    … suppress_prefixlength 0        applies to routes that are no default routes

If the user named the interface, as somebody with a table per uplink does, rules for one of its
addresses count as well.

Rules come in order of priority.  Sources: ip-rule(8), linux/fib_rules.h, fib_rule_match() of the
kernel's net/core/fib_rules.c as to what is compared.
"""

from __future__ import annotations

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, parse, u32
from passt.kernel.netlink.records import (
    ROUTE_DST_LEN,
    RULE_HEADER,
    hops,
    read_routes,
    read_rules,
)
from passt.kernel.netlink.retarget import in_main_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from passt.kernel.netlink.route_socket import RouteSocket

#: Selectors that a plain packet never satisfies, and those of which that cannot be said.
_NEVER = (
    uapi.FRA_OIFNAME,
    uapi.FRA_FWMARK,
    uapi.FRA_TUN_ID,
    uapi.FRA_L3MDEV,
    uapi.FRA_DSCP,
)
_PERHAPS = (
    uapi.FRA_DST,
    uapi.FRA_IP_PROTO,
    uapi.FRA_SPORT_RANGE,
    uapi.FRA_DPORT_RANGE,
    uapi.FRA_UID_RANGE,
)
_NO_SUPPRESSION = 0xFFFFFFFF


def default_routes(
    sock: RouteSocket, family: int, index: int, own: Collection[bytes]
) -> list[bytes]:
    """The routes of the first table besides main with a default route, as if they were in main.

    `index`: only those through this interface, 0 for that of the table's first default route;
    `own`: packed addresses that sockets may be bound to.  Bodies of RTM_NEWROUTE, or an empty list.
    """
    for table in _tables(sock, family, own):
        routes = read_routes(sock, family, index, table)
        for body in routes:
            ways = hops(body)[:1] if body[ROUTE_DST_LEN] == 0 else []
            if ways and ways[0].index != uapi.LOOPBACK_INDEX:
                return [in_main_table(each) for each in routes if hops(each)]
    return []


def _tables(sock: RouteSocket, family: int, own: Collection[bytes]) -> list[int]:
    """Tables other than main and local that may route a packet of ours to the world."""
    found: list[int] = []
    for body in read_rules(sock, family):
        try:
            table = _table(body, family, own)
        except FormError:
            continue
        if table not in (0, uapi.RT_TABLE_MAIN, uapi.RT_TABLE_LOCAL, *found):
            found.append(table)
    return found


def _table(body: bytes, family: int, own: Collection[bytes]) -> int:
    """The table that a rule has packets of ours routed by, 0 if it does not concern them."""
    header = RULE_HEADER.unpack_from(body)
    if header[0] != family or header[7] != uapi.FR_ACT_TO_TBL:
        return 0
    found = parse(body, RULE_HEADER.size)
    suppressed = found.get(uapi.FRA_SUPPRESS_PREFIXLEN)
    if suppressed is not None and u32(suppressed) != _NO_SUPPRESSION:
        return 0
    never = any(kind in found for kind in _NEVER) or header[3] != 0
    never = never or found.get(uapi.FRA_IIFNAME, b"lo").rstrip(b"\0") != b"lo"
    if uapi.FRA_SRC in found:
        never = never or not any(_covers(found[uapi.FRA_SRC], header[2], addr) for addr in own)
    perhaps = any(kind in found for kind in _PERHAPS)
    # Inverted, a rule applies if any one selector fails; otherwise, if none does.
    if not (never if header[8] & uapi.FIB_RULE_INVERT else not never and not perhaps):
        return 0
    return u32(found[uapi.FRA_TABLE]) if uapi.FRA_TABLE in found else int(header[4])


def _covers(prefix: bytes, length: int, addr: bytes) -> bool:
    """Whether an address is within a prefix of `length` bits."""
    shift = 8 * len(addr) - length
    if len(prefix) != len(addr) or shift < 0:
        return False
    return int.from_bytes(prefix, "big") >> shift == int.from_bytes(addr, "big") >> shift
