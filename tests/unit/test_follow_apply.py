"""Bringing a namespace in step, with a stand-in for its kernel that has the kernel's bad habits."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from errno import EADDRNOTAVAIL, EEXIST, ENETUNREACH, ESRCH
from typing import Any

import pytest

from passt.kernel.follow.apply import Own, apply, own_of
from passt.kernel.follow.difference import Wanted, address_key, route_key
from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import parse
from passt.kernel.netlink.route_socket import NetlinkError
from tests.unit.netlink_bytes import KERNEL, LINK_SCOPE, address, pack_ip, route

V4, TAP = socket.AF_INET, 2


def subnet(packed: bytes, prefix_len: int) -> int:
    return int.from_bytes(packed, "big") >> (32 - prefix_len)


class Kernel:
    """IPv4 of one interface: addresses in order, and routes."""

    def __init__(self) -> None:
        self.addresses: dict[tuple[bytes, int], bytes] = {}
        self.routes: dict[Any, bytes] = {}
        self.log: list[str] = []
        #: As if all addresses had IFA_F_NOPREFIXROUTE.
        self.without_subnets = False

    def request(self, kind: int, flags: int, body: bytes) -> None:
        error = self._execute(kind, flags, body)
        if error:
            raise NetlinkError(error, "refused")

    def batch(self, kind: int, flags: int, bodies: Sequence[bytes]) -> list[NetlinkError | None]:
        errors = [self._execute(kind, flags, body) for body in bodies]
        return [NetlinkError(error, "refused") if error else None for error in errors]

    def dump(self, kind: int, _body: bytes) -> list[bytes]:
        found = self.addresses if kind == uapi.RTM_GETADDR else self.routes
        return list(found.values())

    def _execute(self, kind: int, flags: int, body: bytes) -> int:
        if kind == uapi.RTM_NEWADDR:
            key = address_key(body)
            self.log.append(f"+{socket.inet_ntoa(key[0])}")
            if key in self.addresses and flags & uapi.NLM_F_EXCL:
                return EEXIST
            self.addresses[key] = body
            self._connect(*key)
            return 0
        if kind == uapi.RTM_DELADDR:
            return self._remove_address(address_key(body))
        key = route_key(body)
        if kind == uapi.RTM_DELROUTE:
            self.log.append(f"-{self._name(body)}")
            return 0 if self.routes.pop(key, None) else ESRCH
        if key in self.routes:
            return EEXIST
        gateway = parse(body, 12).get(uapi.RTA_GATEWAY)
        if gateway and not any(subnet(gateway, n) == subnet(a, n) for a, n in self.addresses):
            return ENETUNREACH
        self.log.append(f"+{self._name(body)}")
        self.routes[key] = body
        return 0

    def _remove_address(self, key: tuple[bytes, int]) -> int:
        self.log.append(f"-{socket.inet_ntoa(key[0])}")
        if key not in self.addresses:
            return EADDRNOTAVAIL
        same = [a for a in self.addresses if a[1] == key[1] and subnet(*a) == subnet(*key)]
        primary = same[0] == key
        for each in same if primary else [key]:
            del self.addresses[each]
        if primary:
            self._disconnect(*key)
        if not self.addresses:
            self.routes.clear()
        return 0

    def _connect(self, packed: bytes, length: int) -> None:
        if not self.without_subnets:
            body = self._subnet_route(packed, length)
            self.routes[route_key(body)] = body

    def _disconnect(self, packed: bytes, length: int) -> None:
        self.routes.pop(route_key(self._subnet_route(packed, length)), None)

    @staticmethod
    def _subnet_route(packed: bytes, length: int) -> bytes:
        base = (subnet(packed, length) << (32 - length)).to_bytes(4, "big")
        text = f"{socket.inet_ntoa(base)}/{length}"
        return route(text, TAP, protocol=KERNEL, scope=LINK_SCOPE)

    @staticmethod
    def _name(body: bytes) -> str:
        found = parse(body, 12)
        gateway = found.get(uapi.RTA_GATEWAY)
        return f"via {socket.inet_ntoa(gateway)}" if gateway else "route"


class World:
    """The kernel, and what is ours there."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.own = Own(V4)

    def apply(self, addresses: Sequence[str], routes: Sequence[bytes] = ()) -> list[str]:
        """Have these, given as ADDRESS/LENGTH; returns what the kernel was asked for."""
        bodies = [address(*_split(each), index=TAP) for each in addresses]
        self.kernel.log.clear()
        problems = apply(
            self.kernel,  # type: ignore[arg-type]
            TAP,
            self.own,
            {address_key(body): Wanted(body) for body in bodies},
            {route_key(body): body for body in routes},
        )
        assert problems == []
        return self.kernel.log

    def addresses(self) -> list[str]:
        return [f"{socket.inet_ntoa(a)}/{n}" for a, n in self.kernel.addresses]

    def has(self, body: bytes) -> bool:
        return route_key(body) in self.kernel.routes


def _split(text: str) -> tuple[str, int]:
    local, _, length = text.partition("/")
    return local, int(length)


GATEWAY = route(index=TAP, gateway="192.0.2.254")
SUBNET = route("192.0.2.0/24", TAP, protocol=KERNEL, scope=LINK_SCOPE)
OTHER_GATEWAY = route(index=TAP, gateway="10.0.0.254")


@pytest.fixture
def world() -> World:
    world = World()
    world.apply(["192.0.2.1/24"], [GATEWAY])
    assert world.addresses() == ["192.0.2.1/24"] and world.has(GATEWAY)
    return world


def test_nothing_to_do_is_nothing_asked(world: World) -> None:
    assert world.apply(["192.0.2.1/24"], [GATEWAY]) == []


def test_another_network(world: World) -> None:
    world.apply(["10.0.0.1/8"], [OTHER_GATEWAY])
    assert world.addresses() == ["10.0.0.1/8"]
    assert world.has(OTHER_GATEWAY) and not world.has(GATEWAY)
    assert list(world.own.routes) == [route_key(OTHER_GATEWAY)]


def test_another_address_of_the_same_network(world: World) -> None:
    """With the last address the kernel drops all routes; those still wanted come back."""
    world.apply(["192.0.2.2/24"], [GATEWAY])
    assert world.addresses() == ["192.0.2.2/24"]
    assert world.has(GATEWAY)


def test_one_more_in_front(world: World) -> None:
    world.apply(["10.0.0.1/32", "192.0.2.1/24"], [GATEWAY])
    assert world.addresses() == ["10.0.0.1/32", "192.0.2.1/24"]
    assert world.has(GATEWAY)
    world.apply(["192.0.2.1/24"], [GATEWAY])
    assert world.addresses() == ["192.0.2.1/24"] and world.has(GATEWAY)


def test_secondaries_survive_their_primary(world: World) -> None:
    world.apply(["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"], [GATEWAY])
    world.apply(["192.0.2.2/24", "192.0.2.3/24"], [GATEWAY])
    assert world.addresses() == ["192.0.2.2/24", "192.0.2.3/24"]
    assert world.has(GATEWAY)


def test_what_others_made_stays(world: World) -> None:
    theirs = address("192.0.2.77", 24, index=TAP)
    their_route = route("203.0.113.0/24", TAP)
    world.kernel.request(uapi.RTM_NEWADDR, uapi.NLM_F_EXCL, theirs)
    world.kernel.request(uapi.RTM_NEWROUTE, 0, their_route)
    world.apply(["192.0.2.1/24", "10.0.0.1/8"], [OTHER_GATEWAY])
    assert world.addresses() == ["192.0.2.1/24", "192.0.2.77/24", "10.0.0.1/8"]
    assert world.has(their_route)
    # What we wanted and they had made is theirs.
    world.apply(["192.0.2.1/24", "192.0.2.77/24"], [GATEWAY])
    assert (pack_ip("192.0.2.77"), 24) not in world.own.addresses
    world.apply(["192.0.2.1/24"], [GATEWAY])
    assert "192.0.2.77/24" in world.addresses()


def test_what_others_removed_stays_away(world: World) -> None:
    second = route("203.0.113.0/24", TAP, "192.0.2.253")
    world.apply(["192.0.2.1/24", "10.0.0.1/8"], [GATEWAY, second])
    world.kernel.request(uapi.RTM_DELROUTE, 0, second)
    world.kernel.request(uapi.RTM_DELADDR, 0, address("10.0.0.1", 8))
    world.apply(["192.0.2.9/24", "10.0.0.1/8"], [GATEWAY, second])
    assert world.addresses() == ["192.0.2.9/24"]
    assert world.has(GATEWAY) and not world.has(second)


def test_subnet_of_what_others_removed_stays_away(world: World) -> None:
    """The kernel made the route at start, so it is in no list of what we made."""
    world.own.found = {route_key(SUBNET)}
    world.kernel.addresses.clear()
    world.kernel.routes.clear()
    assert world.apply(["192.0.2.1/24"], [SUBNET, GATEWAY]) == []
    assert world.apply(["192.0.2.1/24", "10.0.0.1/8"], [SUBNET, GATEWAY]) == ["+10.0.0.1"]
    assert not world.has(SUBNET)


def test_subnet_that_the_kernel_made_is_looked_for_once(world: World) -> None:
    assert world.apply(["192.0.2.1/24", "192.0.2.2/24"], [SUBNET, GATEWAY]) == ["+192.0.2.2"]
    world.kernel.routes.pop(route_key(SUBNET))
    assert world.apply(["192.0.2.1/24", "192.0.2.2/24"], [SUBNET, GATEWAY]) == []
    assert not world.has(SUBNET)


def test_found_routes_that_go_along_with_an_address_are_made_again(world: World) -> None:
    """As the default route of a namespace that had one already."""
    world.own.found, world.own.routes = {route_key(GATEWAY)}, {}
    assert world.apply(["192.0.2.2/24"], [GATEWAY]) == [
        "-192.0.2.1", "+192.0.2.2", "+via 192.0.2.254",
    ]  # fmt: skip
    assert list(world.own.routes.values()) == [GATEWAY] and not world.own.found


def test_address_without_a_route_to_its_subnet(world: World) -> None:
    world.own.found = {route_key(SUBNET)}
    world.kernel.without_subnets = True
    log = world.apply(["192.0.2.2/24"], [SUBNET, GATEWAY])
    assert log == ["-192.0.2.1", "+192.0.2.2", "+route", "+via 192.0.2.254"]


def test_routes_in_any_order_of_dependence() -> None:
    world = World()
    first = route("203.0.113.0/24", TAP, "192.0.2.254")
    world.apply(["192.0.2.1/24"], [OTHER_GATEWAY, first])
    assert world.has(first) and not world.has(OTHER_GATEWAY)
    assert list(world.own.routes) == [route_key(first)]


def test_changed_route_is_replaced(world: World) -> None:
    changed = route(index=TAP, gateway="192.0.2.254", protocol=4)
    assert world.apply(["192.0.2.1/24"], [changed]) == ["-via 192.0.2.254", "+via 192.0.2.254"]


def test_refusals_are_told_and_the_rest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = route("203.0.113.0/24", TAP)
    fine = route("198.51.100.0/24", TAP)
    execute = world.kernel._execute

    def fail(kind: int, flags: int, body: bytes) -> int:
        return 1 if body == refused else execute(kind, flags, body)

    monkeypatch.setattr(world.kernel, "_execute", fail)
    wanted = {route_key(body): body for body in (GATEWAY, refused, fine)}
    problems = apply(world.kernel, TAP, world.own, world.own.addresses, wanted)  # type: ignore[arg-type]
    assert problems == ["route: refused"]
    assert world.has(fine)


def test_record_of_the_start() -> None:
    body = address("192.0.2.1", 24, index=TAP)
    own = own_of(V4, [body, b"short"], [GATEWAY, b"short"], [SUBNET, b"short"])
    assert list(own.addresses) == [(pack_ip("192.0.2.1"), 24)]
    assert list(own.routes.values()) == [GATEWAY]
    assert own.found == {route_key(SUBNET)}
