"""Bringing the namespace in step: the requests, in an order that harms as little as possible.

Routes that go come first, then addresses that go, then those that come, then routes.  With the
last IPv4 address of an interface the kernel removes all of its routes, and with a primary address
its secondaries; so what was there before and is still wanted is looked for afterwards, and made
again if it went along.  What was not there before (the namespace's root may have removed it) is
not.

A request that is refused is told, and the rest goes on: half of a configuration is better than
none, and the next change makes another attempt.

A route that is there already is not ours.  Those to the subnets of addresses are: the kernel makes
them itself, unless the address says otherwise, and takes them away with the address.  What was
found once is not made when it is missing later, as the namespace's root removed it then.
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EEXIST, EHOSTUNREACH, ENETUNREACH, ENODEV, ENOENT, ESRCH

from passt.kernel.follow.difference import (
    Wanted,
    address_steps,
    keys_of,
    same_route,
)
from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.records import parse_address, read_addresses, read_routes
from passt.kernel.netlink.route_socket import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.follow.difference import AddressKey, RouteKey
    from passt.kernel.netlink.route_socket import RouteSocket

_NO_WAY_YET = (ENETUNREACH, EHOSTUNREACH)
_GONE = (EADDRNOTAVAIL, ESRCH, ENOENT, ENODEV)
_NEW_ADDRESS = uapi.NLM_F_CREATE | uapi.NLM_F_EXCL
_CHANGED_ADDRESS = uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE
_NEW_ROUTE = uapi.NLM_F_CREATE | uapi.NLM_F_APPEND


class Own:
    """What of one IP version is ours in the namespace, each in order of creation.

    ``found``: routes that are to be there as well, and were without our doing.
    """

    __slots__ = ("addresses", "family", "found", "routes")

    def __init__(self, family: int) -> None:
        self.family = family
        self.addresses: dict[AddressKey, Wanted] = {}
        self.routes: dict[RouteKey, bytes] = {}
        self.found: set[RouteKey] = set()


def apply(
    sock: RouteSocket,
    index: int,
    own: Own,
    addresses: dict[AddressKey, Wanted],
    routes: dict[RouteKey, bytes],
) -> list[str]:
    """Make interface ``index`` have these of ours, and no others; ``own`` is updated.

    Returns what was refused, in words.  OSError if the namespace's kernel does not answer.
    """
    problems: list[str] = []
    removed, added = address_steps(own.family, own.addresses, addresses)
    old = [
        key
        for key, body in own.routes.items()
        if key not in routes or not same_route(routes[key], body)
    ]
    own.found &= routes.keys()
    if not (removed or added or old or routes.keys() - own.routes.keys() - own.found):
        return problems
    before = _Before(sock, index, own)
    _remove(sock, uapi.RTM_DELROUTE, [own.routes.pop(key) for key in old], problems)
    _change_addresses(sock, index, own, addresses, removed, added, before, problems)
    _make_routes(sock, index, own, routes, before, problems)
    return problems


class _Before:
    """What of ours was there at the beginning, and of routes that were found."""

    __slots__ = ("addresses", "routes")

    def __init__(self, sock: RouteSocket, index: int, own: Own) -> None:
        self.addresses = _addresses_there(sock, own.family, index)
        there = keys_of(read_routes(sock, own.family, index))
        self.routes = (own.routes.keys() | own.found) & there


def _addresses_there(sock: RouteSocket, family: int, index: int) -> set[AddressKey]:
    return {(a.local, a.prefix_len) for a in read_addresses(sock, family, index)}


def _change_addresses(
    sock: RouteSocket,
    index: int,
    own: Own,
    wanted: dict[AddressKey, Wanted],
    removed: list[AddressKey],
    added: list[AddressKey],
    before: _Before,
    problems: list[str],
) -> None:
    """Remove and make addresses, and make those again that went along with others."""
    # One that is to be made again, but was removed by the namespace's root, stays away.
    added = [key for key in added if key not in own.addresses or key in before.addresses]
    bodies = [own.addresses[key].body for key in removed]
    _remove(sock, uapi.RTM_DELADDR, bodies, problems)
    held = own.addresses
    own.addresses = {key: wanted[key] for key in wanted if key in held}
    _make_addresses(sock, own, wanted, added, held, problems)
    if removed:
        there = _addresses_there(sock, own.family, index)
        went_along = [
            key
            for key in wanted
            if key in own.addresses and key in before.addresses and key not in there
        ]
        _make_addresses(sock, own, wanted, went_along, held, problems)
    own.addresses = {key: own.addresses[key] for key in wanted if key in own.addresses}


def _make_addresses(
    sock: RouteSocket,
    own: Own,
    wanted: dict[AddressKey, Wanted],
    keys: list[AddressKey],
    held: dict[AddressKey, Wanted],
    problems: list[str],
) -> None:
    for key in keys:
        # Changing the lifetimes of one is changing one that is there.
        flags = _CHANGED_ADDRESS if key in held else _NEW_ADDRESS
        try:
            sock.request(uapi.RTM_NEWADDR, flags, wanted[key].body)
        except NetlinkError as error:
            if error.errno != EEXIST:
                problems.append(f"address: {error.strerror}")
            # Made by the namespace itself, it is not ours.
            continue
        own.addresses[key] = wanted[key]


def _make_routes(
    sock: RouteSocket,
    index: int,
    own: Own,
    wanted: dict[RouteKey, bytes],
    before: _Before,
    problems: list[str],
) -> None:
    """Make routes that are new, or went along with an address; in any order they depend on."""
    present = keys_of(read_routes(sock, own.family, index))
    own.found |= (wanted.keys() & present) - own.routes.keys()
    pending = [
        (key, body)
        for key, body in wanted.items()
        if key not in present
        and (key in before.routes or (key not in own.routes and key not in own.found))
    ]
    while pending:
        results = sock.batch(uapi.RTM_NEWROUTE, _NEW_ROUTE, [body for _, body in pending])
        again = []
        for (key, body), error in zip(pending, results, strict=True):
            if error is None:
                own.routes[key] = body
                own.found.discard(key)
            elif error.errno in _NO_WAY_YET:
                again.append((key, body))
            elif error.errno == EEXIST:
                own.found.add(key)
            else:
                problems.append(f"route: {error.strerror}")
        if len(again) == len(pending):
            # Their gateways are behind other interfaces of the host.
            break
        pending = again
    own.routes = {key: own.routes[key] for key in wanted if key in own.routes}


def _remove(sock: RouteSocket, kind: int, bodies: list[bytes], problems: list[str]) -> None:
    problems += [
        f"removal: {error.strerror}"
        for error in sock.batch(kind, 0, bodies)
        if error is not None and error.errno not in _GONE
    ]


def own_of(family: int, addresses: list[bytes], routes: list[bytes], found: list[bytes]) -> Own:
    """What start-up made, and what it found, from the bodies of its requests."""
    own = Own(family)
    for body in addresses:
        try:
            address = parse_address(body)
        except FormError:
            continue
        own.addresses[address.local, address.prefix_len] = Wanted(body)
    for key, body in zip(map(_key, routes), routes, strict=True):
        if key is not None:
            own.routes[key] = body
    own.found = keys_of(found)
    return own


def _key(body: bytes) -> RouteKey | None:
    return next(iter(keys_of((body,))), None)
