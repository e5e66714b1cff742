"""Host messages turned into requests for the namespace."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink.attributes import parse
from passt.kernel.netlink.records import hops, parse_address
from passt.kernel.netlink.retarget import (
    connected_key,
    in_main_table,
    retarget_address,
    retarget_route,
)
from tests.unit.netlink_bytes import KERNEL, LINK_SCOPE, address, attr, hop, pack_ip, route, u32

HOST, TAP = 3, 2
DEAD, PERVASIVE, ONLINK, LINKDOWN = 1, 2, 4, 16
METRICS = attr(8, u32(2, 1400))


def retargeted(body: bytes) -> bytes:
    copy = retarget_route(body, HOST, TAP)
    assert copy is not None
    return copy


def header(body: bytes) -> tuple[int, ...]:
    return struct.unpack_from("=BBBBBBBBI", body)


def attributes(body: bytes) -> dict[int, bytes]:
    return parse(body, 12)


def test_route_keeps_all_but_the_interface() -> None:
    body = route("10.0.0.0/8", HOST, "192.0.2.1", protocol=9, metric=77, extra=METRICS)
    copy = retargeted(body)
    assert header(copy) == header(body)
    assert attributes(copy) == {**attributes(body), 4: struct.pack("=I", TAP)}


def test_unknown_attributes_survive_with_odd_lengths() -> None:
    body = route("10.0.0.0/8", HOST, extra=attr(0x3000, b"12345") + u32(20, 1))
    found = attributes(retargeted(body))
    assert found[0x3000] == b"12345"
    assert found[20] == b"\x01\0\0\0"


@pytest.mark.parametrize(("kind", "name"), [(7, "source"), (30, "nexthop"), (12, "cache")])
def test_what_means_nothing_elsewhere_goes(kind: int, name: str) -> None:
    copy = retargeted(route("10.0.0.0/8", HOST, extra=u32(kind, 5) + METRICS))
    found = attributes(copy)
    assert kind not in found, name
    assert found[8] == METRICS[4:]


def test_state_flags_go_onlink_stays() -> None:
    flags = DEAD | PERVASIVE | ONLINK | LINKDOWN | 0x4000
    assert header(retargeted(route("10.0.0.0/8", HOST, flags=flags)))[8] == ONLINK


def test_multipath_hops_are_redirected_one_by_one() -> None:
    nexthops = [
        hop(HOST, "192.0.2.1", 5, DEAD | LINKDOWN),
        hop(HOST, "192.0.2.2", 1, ONLINK),
        hop(HOST),
    ]
    copy = retargeted(route("10.0.0.0/8", hops=nexthops))
    assert [(h.index, h.gateway, h.weight) for h in hops(copy)] == [
        (TAP, pack_ip("192.0.2.1"), 5),
        (TAP, pack_ip("192.0.2.2"), 1),
        (TAP, None, 1),
    ]
    multipath = attributes(copy)[9]
    assert (multipath[2], multipath[18]) == (0, ONLINK)


def test_routes_through_another_interface_are_left_out() -> None:
    assert retarget_route(route("10.0.0.0/8", 4), HOST, TAP) is None
    mixed = route("10.0.0.0/8", hops=[hop(HOST, "192.0.2.1"), hop(4, "198.51.100.1")])
    assert retarget_route(mixed, HOST, TAP) is None


def test_default_route_over_several_interfaces_keeps_our_hops() -> None:
    """A host that balances over two uplinks has a default route, and so has the namespace."""
    nexthops = [hop(HOST, "192.0.2.1", 3), hop(4, "198.51.100.1"), hop(HOST, "192.0.2.5", flags=1)]
    body = route("default", hops=nexthops, metric=7)
    kept = [hop(TAP, "192.0.2.1", 3), hop(TAP, "192.0.2.5")]
    assert attributes(retargeted(body)) == attributes(route("default", hops=kept, metric=7))
    assert retarget_route(body, 9, TAP) is None


@pytest.mark.parametrize("table", [7, 51820])
def test_route_of_another_table_in_the_main_one(table: int) -> None:
    fields: dict[str, Any] = {"metric": 3, "extra": attr(99, b"abc")}
    body = route("10.0.0.0/8", HOST, "192.0.2.1", table=table, **fields)
    assert in_main_table(body) == route("10.0.0.0/8", HOST, "192.0.2.1", **fields)


def test_routes_without_hops_are_left_out() -> None:
    assert retarget_route(route("10.0.0.0/8"), HOST, TAP) is None
    assert retarget_route(route("10.0.0.0/8", extra=attr(9, b"")), HOST, TAP) is None


@given(st.binary(max_size=60))
def test_malformed_routes_are_left_out_quietly(data: bytes) -> None:
    copy = retarget_route(route("10.0.0.0/8", HOST)[:12] + data, HOST, TAP)
    assert copy is None or all(h.index == TAP for h in hops(copy))


def test_truncated_hop() -> None:
    broken = attr(9, struct.pack("=HBBi", 60, 0, 0, HOST))
    assert retarget_route(route("10.0.0.0/8", extra=broken), HOST, TAP) is None


def test_ipv4_address_without_label_and_lifetime() -> None:
    cache = attr(6, struct.pack("=IIII", 100, 200, 0, 0))
    body = address(
        "10.0.0.1", 24, peer="10.0.0.2", index=HOST, flags=0x201, label="eth0:1", extra=cache
    )
    copy = retarget_address(parse_address(body), TAP)
    assert struct.unpack_from("=BBBBI", copy) == (socket.AF_INET, 24, 0x01, 0, TAP)
    assert parse(copy, 8) == {
        1: pack_ip("10.0.0.2"),
        2: pack_ip("10.0.0.1"),
        8: struct.pack("=I", 0x201),
    }


def test_ipv6_address_is_copied_without_duplicate_detection() -> None:
    body = address("2001:db8::1", 64, index=HOST, flags=0x300, extra=attr(11, b"\x03"))
    copy = retarget_address(parse_address(body), TAP)
    assert parse(copy, 8) == {
        1: pack_ip("2001:db8::1"),
        8: struct.pack("=I", 0x302),
        11: b"\x03",
    }


def test_kernel_routes_to_the_same_subnet_are_recognised() -> None:
    def subnet(dst: str = "10.0.0.0/8", **rest: int) -> bytes:
        return route(dst, HOST, protocol=KERNEL, scope=LINK_SCOPE, **rest)

    source = attr(7, pack_ip("10.0.0.1"))
    same = route("10.0.0.0/8", TAP, protocol=KERNEL, scope=LINK_SCOPE, extra=source)
    assert connected_key(subnet()) == connected_key(same) is not None
    keys = {connected_key(b) for b in (subnet(), subnet("10.0.0.0/9"), subnet(metric=5))}
    assert len(keys) == 3
    assert connected_key(route("10.0.0.0/8", HOST, scope=LINK_SCOPE)) is None
    gateway = route("10.0.0.0/8", HOST, "10.0.0.9", protocol=KERNEL, scope=LINK_SCOPE)
    assert connected_key(gateway) is None
