"""A second reader of netlink's tables, plain and slow, which says what must come of them.

Of :mod:`tests.fuzz.one_netlink`: an entry is understood whole or not at all, and what is copied
differs from the original in nothing but what must.
"""

from __future__ import annotations

import socket
import struct

from passt.kernel.follow import difference
from passt.kernel.netlink import policy, retarget, template, uapi
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.records import (
    Address,
    hops,
    parse_address,
    parse_link,
    read_routes,
)

#: Index of the interface in the namespace.
INSIDE = 77

Attributes = list[tuple[int, bytes]]


def attributes(data: bytes, mask: int = 0x3FFF) -> Attributes | None:
    """Types, less flags, and payloads of a list; ``None`` if a record exceeds it."""
    found = []
    while len(data) >= 4:
        size, kind = struct.unpack("=HH", data[:4])
        if not 4 <= size <= len(data):
            return None
        found.append((kind & mask, data[4:size]))
        data = data[(size + 3) // 4 * 4 :]
    return found


def check_link(body: bytes) -> None:
    """Index, name and MAC of a link."""
    expected = attributes(body[16:]) if len(body) >= 16 else None
    try:
        link = parse_link(body)
    except FormError:
        assert expected is None, "a link that is sound is refused"
        return
    assert expected is not None, "a link that is not sound is read"
    last = dict(expected)
    assert link.index == struct.unpack("=i", body[4:8])[0]
    assert link.mac == last.get(1, b"")
    assert link.name.encode("utf-8", "surrogateescape") == last.get(3, b"").rstrip(b"\0")


def check_address(body: bytes) -> Address | None:
    """An address, and the request that gives an interface inside the same."""
    listed = attributes(body[8:]) if len(body) >= 8 else None
    last = dict(listed or ())
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(body[0] if body else 0)
    local = last.get(2) or last.get(1, b"")
    sound = listed is not None and len(local) == size and len(last.get(8, bytes(4))) >= 4
    try:
        address = parse_address(body)
    except FormError:
        assert not sound, "an address that is sound is refused"
        return None
    assert sound and listed is not None, "an address that is not sound is read"
    flags = struct.unpack("=I", last[8][:4])[0] if 8 in last else body[2]
    assert (address.family, address.prefix_len, address.scope) == (body[0], body[1], body[3])
    assert (address.local, address.flags) == (local, flags)
    wish = retarget.retarget_address(address, INSIDE)
    again = parse_address(wish)
    assert (again.family, again.prefix_len, again.scope) == (body[0], body[1], body[3])
    assert (again.local, again.index) == (local, INSIDE)
    assert again.flags == flags | (2 if body[0] == socket.AF_INET6 else 0)
    kept = attributes(wish[8:])
    assert kept is not None
    assert kept[:-1] == [each for each in listed if each[0] not in (3, 6, 8, 10)]
    retained = difference._retained(wish).body
    for each in (wish, retained):
        assert difference.address_key(each) == (local, body[1])
    return address


Hops = list[tuple[int, bytes | None, int]]


def expected_hops(body: bytes) -> Hops:
    """Index, gateway and weight of each way that the route ``body`` goes, by the second reader."""
    listed = attributes(body[12:])
    if listed is None:
        return []
    last = dict(listed)
    found: Hops = []
    if 9 in last:
        rest = last[9]
        while len(rest) >= 8:
            size, _, weight, index = struct.unpack("=HBBi", rest[:8])
            nested = attributes(rest[8:size]) if 8 <= size <= len(rest) else None
            if nested is None:
                return []
            found.append((index, dict(nested).get(5), weight + 1))
            rest = rest[(size + 3) // 4 * 4 :]
    elif 4 in last:
        if len(last[4]) < 4:
            return []
        found.append((struct.unpack("=I", last[4][:4])[0], last.get(5), 1))
    size = 16 if body[0] == socket.AF_INET6 else 4
    return [
        (index, gateway if gateway and len(gateway) == size and any(gateway) else None, weight)
        for index, gateway, weight in found
        if index > 0
    ]


class Table:
    """Stands for a netlink socket over which there are these routes and rules."""

    def __init__(self, routes: list[bytes], rules: list[bytes] | None = None) -> None:
        self._routes = routes
        self._rules = rules or []

    def dump(self, kind: int, _request: bytes) -> list[bytes]:
        """What there is, filtered by nobody."""
        return self._rules if kind == uapi.RTM_GETRULE else self._routes


def check_routes(family: int, bodies: list[bytes], addresses: list[Address]) -> None:
    """A table of routes: which of them count, the template they make, and their copies."""
    routes = read_routes(Table(bodies), family)  # type: ignore[arg-type]
    assert routes == [
        body
        for body in bodies
        if len(body) >= 12
        and (body[0], body[4], body[7]) == (family, 254, 1)
        and not struct.unpack("=I", body[8:12])[0] & 0x200
    ]
    indexes = set()
    for body in routes:
        found = [(hop.index, hop.gateway, hop.weight) for hop in hops(body)]
        assert found == expected_hops(body)
        indexes |= {index for index, _, _ in found}
    chosen, notes = template.choose_interface(routes, "IPv4")
    assert chosen != uapi.LOOPBACK_INDEX
    assert chosen in indexes | {0}
    assert len(notes) == (2 if not chosen else len(notes)) <= 2
    host = chosen or min(indexes, default=2)
    source = template.Source(host, "eth0", routes, addresses)
    assert source.gateway is None or source.has_default
    assert source.address in {None} | {each.local for each in addresses}
    assert source.address not in source.summary()[-1]
    for body in routes:
        check_copy(body, host)
    by_index = read_routes(Table(bodies), family, host)  # type: ignore[arg-type]
    wanted = [body for body in routes if any(hop[0] == host for hop in expected_hops(body))]
    assert by_index == wanted


def check_rules(family: int, routes: list[bytes], rules: list[bytes], own: list[bytes]) -> None:
    """Routes of another table than main: as they are there, but for the table."""
    originals = [_without_table(body) for body in routes if len(body) >= 12]
    for index in (0, 2):
        sock = Table(routes, rules)
        for body in policy.default_routes(sock, family, index, own):  # type: ignore[arg-type]
            assert (body[0], body[4]) == (family, uapi.RT_TABLE_MAIN)
            assert expected_hops(body)
            assert _without_table(body) in originals, "a route that is nowhere"
            assert dict(attributes(body[12:]) or ()).get(15, MAIN) == MAIN


MAIN = struct.pack("=I", 254)


def _without_table(body: bytes) -> tuple[bytes, Attributes]:
    listed = attributes(body[12:]) or []
    return body[:4] + body[5:12], [each for each in listed if each[0] != 15]


def check_copy(body: bytes, host: int) -> None:
    """The request that makes the route ``body`` inside."""
    retarget.connected_key(body)
    copy = retarget.retarget_route(body, host, INSIDE)
    listed = attributes(body[12:])
    ways = [payload for kind, payload in listed or () if kind in (4, 9)]
    # A default route may have other ways as well.
    partly = not body[1]
    if copy is None:
        usable = bool(ways) and all(
            through(payload, host, multipath=kind == 9, partly=partly)
            for kind, payload in listed or ()
            if kind in (4, 9)
        )
        assert not usable, "a route that is sound is not copied"
        return
    assert listed is not None and ways, "a route that is not sound is copied"
    made = attributes(copy[12:])
    assert made is not None, "a copy that is not sound"
    assert copy[:8] == body[:8]
    flags = struct.unpack("=I", body[8:12])[0] & 4
    assert struct.unpack("=I", copy[8:12])[0] == flags
    kept = [each for each in listed if each[0] not in (7, 12, 23, 30)]
    assert [kind for kind, _ in made] == [kind for kind, _ in kept]
    for (kind, payload), (_, original) in zip(made, kept, strict=True):
        if kind == 4:
            assert payload == struct.pack("=I", INSIDE)
        elif kind != 9:
            assert payload == original
    assert difference.keys_of([copy, copy]) == {difference.route_key(copy)}
    assert difference.same_route(copy, copy)
    before, after = expected_hops(body), expected_hops(copy)
    # Attributes of hops are not looked into; the kernel will refuse what is wrong with them.
    assert not before or after == [
        (INSIDE, gateway, weight)
        for index, gateway, weight in before
        if index == host or not partly
    ]


def through(payload: bytes, host: int, *, multipath: bool, partly: bool) -> bool:
    """Whether this way, or each of these, or with ``partly`` one, is by the interface ``host``."""
    if not multipath:
        return payload == struct.pack("=I", host)
    count = 0
    while len(payload) >= 8:
        size, _, _, index = struct.unpack("=HBBi", payload[:8])
        if not 8 <= size <= len(payload) or (index != host and not partly):
            return False
        count += index == host
        payload = payload[(size + 3) // 4 * 4 :]
    return count > 0


# Transport.
