"""Following the host: when to look, what counts, and what has to be done, without a kernel."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.follow import difference
from passt.kernel.follow.difference import Wanted, address_steps, wanted_addresses, wanted_routes
from passt.kernel.follow.monitor import Changes
from passt.kernel.follow.pace import LONGEST, QUIET, REST, Pace
from passt.kernel.follow.settle import GRACE, Settler, quality
from passt.kernel.follow.start import LOCAL, NOTHING, WORLD
from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import parse
from passt.kernel.netlink.records import parse_address
from passt.kernel.netlink.template import Source
from passt.kernel.netlink.worker import FamilyPlan
from tests.unit.netlink_bytes import address, attr, hop, pack_ip, route, u32

HOST, TAP = 3, 2
KINDS = (
    uapi.RTM_NEWLINK,
    uapi.RTM_NEWADDR,
    uapi.RTM_DELADDR,
    uapi.RTM_NEWROUTE,
    uapi.RTM_DELROUTE,
)
V4, V6 = socket.AF_INET, socket.AF_INET6
A, B, C = ((pack_ip(f"192.0.2.{n}"), 24) for n in (1, 2, 3))


def source(
    addresses: list[bytes] | None = None, routes: list[bytes] | None = None, index: int = HOST
) -> Source:
    return Source(index, "eth0", routes or [], [parse_address(body) for body in addresses or []])


WITH_DEFAULT = source(routes=[route(index=HOST, gateway="192.0.2.254")])
WITHOUT = source(routes=[route("192.0.2.0/24", HOST)])
COPY = FamilyPlan(None, 0, None, copy_addresses=True, copy_routes=True)


# Pace.


def test_pace_waits_for_quiet() -> None:
    pace = Pace()
    assert pace.due() is None
    pace.event(10.0)
    assert pace.due() == 10.0 + QUIET
    pace.event(10.0 + QUIET / 2)
    assert pace.due() == 10.0 + QUIET / 2 + QUIET
    pace.looked(10.1, 10.1)
    assert pace.due() is None


def test_pace_does_not_wait_for_ever() -> None:
    pace = Pace()
    for tenth in range(100):
        pace.event(10.0 + tenth * QUIET / 2)
    assert pace.due() == 10.0 + LONGEST


def test_pace_rests_in_proportion() -> None:
    pace = Pace()
    pace.event(10.0)
    pace.looked(11.0, 13.0)
    pace.event(13.0)
    assert pace.due() == 13.0 + REST * 2.0


# What counts.


def test_quality() -> None:
    assert [quality(each) for each in (None, WITHOUT, WITH_DEFAULT)] == [NOTHING, LOCAL, WORLD]


def test_better_counts_at_once() -> None:
    settler = Settler(NOTHING)
    assert settler.consider(0.0, WITHOUT)
    assert settler.consider(0.0, WITH_DEFAULT)
    other = source(routes=[route(index=9, gateway="192.0.2.254")], index=9)
    assert settler.consider(0.0, other)
    assert settler.source is other
    assert settler.due() is None


def test_worse_counts_when_it_lasts() -> None:
    settler = Settler(WORLD)
    assert not settler.consider(100.0, None)
    assert settler.due() == 100.0 + GRACE
    assert not settler.consider(100.0 + GRACE / 2, WITHOUT)
    assert settler.due() == 100.0 + GRACE
    assert settler.consider(100.0 + GRACE, None)
    assert (settler.source, settler.grade, settler.due()) == (None, NOTHING, None)


def test_what_comes_back_in_time_was_never_away() -> None:
    settler = Settler(WORLD)
    assert not settler.consider(100.0, None)
    assert settler.consider(101.0, WITH_DEFAULT)
    assert settler.due() is None
    assert not settler.consider(200.0, None)
    assert settler.due() == 200.0 + GRACE


# Addresses.


def own(*keys: tuple[bytes, int]) -> dict[tuple[bytes, int], Wanted]:
    return {key: Wanted(b"") for key in keys}


def test_ipv4_addresses_keep_the_order_of_the_template() -> None:
    assert address_steps(V4, own(A), own(A)) == ([], [])
    assert address_steps(V4, own(A), own(A, B)) == ([], [B])
    assert address_steps(V4, own(A), own(B)) == ([A], [B])
    # What must come earlier takes those behind it along.
    assert address_steps(V4, own(A), own(B, A)) == ([A], [B, A])
    assert address_steps(V4, own(A, B), own(B)) == ([A], [])
    assert address_steps(V4, own(A, B, C), own(A, C)) == ([B], [])
    assert address_steps(V4, own(A, B, C), own(A, C, B)) == ([B, C], [C, B])
    assert address_steps(V4, own(), own(A, B)) == ([], [A, B])


def test_ipv6_addresses_change_without_removing_what_stays() -> None:
    there = own(A, B)
    wanted = {B: Wanted(b""), A: Wanted(b"", deprecated=True)}
    assert address_steps(V6, there, wanted) == ([], [A])
    assert address_steps(V6, there, own(C, A)) == ([B], [C])
    # The kernel lists the latest first.
    assert address_steps(V6, own(), own(A, B)) == ([], [B, A])


def test_copied_addresses_are_for_the_tap_and_last_for_ever() -> None:
    host = source([address("192.0.2.1", 24, label="eth0:1"), address("198.51.100.1", 32)])
    wanted = wanted_addresses(COPY, V4, host, TAP, {}, set())
    assert list(wanted) == [(pack_ip("192.0.2.1"), 24), (pack_ip("198.51.100.1"), 32)]
    for target in wanted.values():
        made = parse_address(target.body)
        assert made.index == TAP
        assert uapi.IFA_LABEL not in parse(target.body, 8)


def test_address_that_the_host_still_has_is_retained() -> None:
    """It belongs to another interface now: connections from there go on."""
    before = wanted_addresses(COPY, V4, source([address("192.0.2.1", 24)]), TAP, {}, set())
    tunnel = source([address("10.0.0.5", 32, index=9)], index=9)
    both = {pack_ip("192.0.2.1"), pack_ip("10.0.0.5")}
    after = wanted_addresses(COPY, V4, tunnel, TAP, before, both)
    assert list(after) == [(pack_ip("10.0.0.5"), 32), (pack_ip("192.0.2.1"), 24)]
    gone = wanted_addresses(COPY, V4, tunnel, TAP, before, {pack_ip("10.0.0.5")})
    assert list(gone) == [(pack_ip("10.0.0.5"), 32)]


def test_retained_ipv6_address_is_deprecated() -> None:
    key = (pack_ip("2001:db8::1"), 64)
    before = wanted_addresses(COPY, V6, source([address("2001:db8::1", 64)]), TAP, {}, set())
    after = wanted_addresses(COPY, V6, source(), TAP, before, {key[0]})
    assert after[key].deprecated
    preferred, valid, _, _ = struct.unpack("=IIII", parse(after[key].body, 8)[uapi.IFA_CACHEINFO])
    assert (preferred, valid) == (0, 0xFFFFFFFF)
    # Once more, of one that was retained already.
    again = wanted_addresses(COPY, V6, source(), TAP, after, {key[0]})
    assert again[key].body == after[key].body
    assert address_steps(V6, before, after) == ([], [key])
    assert address_steps(V6, after, before) == ([], [key])


def test_address_of_the_users_is_the_only_one() -> None:
    plan = FamilyPlan(pack_ip("10.0.2.15"), 24, None)
    held = own((pack_ip("10.0.2.15"), 24))
    wanted = wanted_addresses(
        plan, V4, source([address("192.0.2.1", 24)]), TAP, held, {pack_ip("192.0.2.1")}
    )
    assert list(wanted) == [(pack_ip("10.0.2.15"), 24)]
    assert wanted_addresses(None, V4, None, TAP, held, set()) == {}


# Routes.


def test_copied_routes_go_through_the_tap() -> None:
    host = source(
        routes=[
            route(index=HOST, gateway="192.0.2.254", metric=100),
            route("10.0.0.0/8", 9, "192.0.2.253"),
            route("172.16.0.0/12", hops=[hop(HOST, "192.0.2.1"), hop(HOST, "192.0.2.2")]),
        ]
    )
    wanted = wanted_routes(COPY, V4, host, TAP)
    assert len(wanted) == 2
    for body in wanted.values():
        assert parse(body, 12).get(uapi.RTA_OIF) in (None, struct.pack("=I", TAP))


def test_a_default_route_alone() -> None:
    near = FamilyPlan(pack_ip("192.0.2.9"), 24, pack_ip("192.0.2.1"), local=True)
    far = FamilyPlan(pack_ip("10.0.0.9"), 24, pack_ip("192.0.2.1"), local=True)
    fixed = FamilyPlan(pack_ip("10.0.0.9"), 24, pack_ip("192.0.2.1"))
    flags = []
    for plan in (near, far, fixed):
        (body,) = wanted_routes(plan, V4, None, TAP).values()
        found = parse(body, 12)
        assert found == {4: struct.pack("=I", TAP), 5: pack_ip("192.0.2.1")}
        flags.append(struct.unpack_from("=BBBBBBBBI", body)[8])
    assert flags == [0, uapi.RTNH_F_ONLINK, 0]
    none = FamilyPlan(pack_ip("10.0.0.9"), 24, None)
    assert wanted_routes(none, V4, None, TAP) == {}
    (body,) = wanted_routes(none, V4, WITH_DEFAULT, TAP).values()
    assert parse(body, 12) == {4: struct.pack("=I", TAP)}


def test_routes_are_the_same_whatever_their_state() -> None:
    plain = route("10.0.0.0/8", TAP, "192.0.2.1", metric=5)
    dead = route("10.0.0.0/8", TAP, "192.0.2.1", metric=5, flags=1)
    other = route("10.0.0.0/8", TAP, "192.0.2.2", metric=5)
    key = difference.route_key
    assert key(plain) == key(dead) != key(other)
    one = route("10.0.0.0/8", hops=[hop(TAP, "192.0.2.1"), hop(TAP, "192.0.2.2")])
    down = route("10.0.0.0/8", hops=[hop(TAP, "192.0.2.1", flags=16), hop(TAP, "192.0.2.2")])
    assert key(one) == key(down)
    assert difference.keys_of([plain, b"short", plain + b"\x03\0\0\0"]) == {key(plain)}


def test_requests_are_compared_by_what_they_say() -> None:
    plain = route("10.0.0.0/8", TAP, metric=5)
    metrics = route("10.0.0.0/8", TAP, metric=5, extra=attr(8, u32(2, 1400)))
    shuffled = plain[:12] + plain[12:][-8:] + plain[12:-8]
    assert difference.same_route(plain, shuffled)
    assert not difference.same_route(plain, metrics)
    assert not difference.same_route(plain, plain + b"\x03\0\0\0")


# Events.


def link(index: int, name: str, flags: int = 1, extra: bytes = b"") -> bytes:
    header = struct.pack("=BxHiII", 0, 1, index, flags, 0xFFFFFFFF)
    return header + attr(uapi.IFLA_IFNAME, name.encode() + b"\0") + extra


def test_repetitions_are_no_changes() -> None:
    changes = Changes()
    new, gone = uapi.RTM_NEWLINK, uapi.RTM_DELLINK
    assert changes.matters(new, link(4, "wlan0"))
    assert not changes.matters(new, link(4, "wlan0", extra=attr(11, b"a scan")))
    assert changes.matters(new, link(4, "wlan1"))
    assert changes.matters(new, link(4, "wlan1", flags=0))
    assert changes.matters(gone, link(4, "wlan1", flags=0))
    assert changes.matters(new, link(4, "wlan1", flags=0))

    lifetimes = [attr(6, struct.pack("=IIII", seconds, seconds, 0, 0)) for seconds in (100, 200)]
    renewed = [address("2001:db8::1", 64, extra=each) for each in lifetimes]
    assert changes.matters(uapi.RTM_NEWADDR, renewed[0])
    assert not changes.matters(uapi.RTM_NEWADDR, renewed[1])
    assert changes.matters(uapi.RTM_NEWADDR, address("2001:db8::1", 64, flags=0xA0))
    assert changes.matters(uapi.RTM_DELADDR, renewed[0])
    assert changes.matters(uapi.RTM_NEWADDR, renewed[0])


def test_local_routes_and_caches_do_not_matter() -> None:
    changes = Changes()
    for kind in (uapi.RTM_NEWROUTE, uapi.RTM_DELROUTE):
        assert changes.matters(kind, route(index=3))
        # Rules may lead there.
        assert changes.matters(kind, route(index=3, table=100))
        assert not changes.matters(kind, route(index=3, table=255))
        assert not changes.matters(kind, route("2001:db8::1/128", 3, flags=0x200))
    assert not changes.matters(28, b"a neighbour")
    assert changes.matters(uapi.RTM_NEWRULE, b"a rule")


@given(st.binary(max_size=120), st.sampled_from(KINDS))
def test_any_bytes(body: bytes, kind: int) -> None:
    """Whatever a kernel of another age says: it is a change, or none."""
    assert Changes().matters(kind, body) in (True, False)
    keys = difference.keys_of([body, body])
    assert len(keys) <= 1
    assert difference.same_route(body, body) or not keys


def test_nonsense_is_a_change() -> None:
    changes = Changes()
    for kind in (uapi.RTM_NEWLINK, uapi.RTM_NEWADDR, uapi.RTM_NEWROUTE):
        assert changes.matters(kind, b"\x02")
    for index in range(20000):
        assert changes.matters(uapi.RTM_NEWLINK, link(index, "x"))
    assert len(changes._seen) <= 10000
