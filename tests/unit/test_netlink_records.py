"""Reading links, addresses and routes."""

from __future__ import annotations

import socket
import struct
from errno import EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink import records
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.route_socket import NetlinkError
from tests.unit.netlink_bytes import address, attr, hop, pack_ip, route, u32

IPV4, IPV6 = int(socket.AF_INET), int(socket.AF_INET6)


class Tables:
    """Answers dumps with what it is given."""

    def __init__(self, *bodies: bytes, error: int = 0) -> None:
        self.bodies = bodies
        self.error = error

    def dump(self, _kind: int, _body: bytes) -> list[bytes]:
        if self.error:
            raise NetlinkError(self.error, "no")
        return list(self.bodies)


def test_point_to_point_address_is_the_local_one() -> None:
    found = records.parse_address(address("10.0.0.1", 32, peer="10.0.0.2"))
    assert found.local == pack_ip("10.0.0.1")
    assert found.prefix_len == 32


def test_ipv6_address_without_local_attribute() -> None:
    assert records.parse_address(address("2001:db8::1", 64)).local == pack_ip("2001:db8::1")


def test_flags_beyond_eight_bits() -> None:
    assert records.parse_address(address("2001:db8::1", 64, flags=0x302)).flags == 0x302


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02\x18\0\0",
        struct.pack("=BBBBI", IPV4, 24, 0, 0, 2),
        struct.pack("=BBBBI", IPV4, 24, 0, 0, 2) + attr(2, bytes(16)),
        struct.pack("=BBBBI", 17, 24, 0, 0, 2) + attr(2, bytes(4)),
        address("10.0.0.1", 24)[:-2],
    ],
)
def test_malformed_addresses(body: bytes) -> None:
    with pytest.raises(FormError):
        records.parse_address(body)


def test_link() -> None:
    body = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + attr(3, b"eth0\0") + attr(1, b"\x02MAC..")
    link = records.parse_link(body)
    assert (link.index, link.name, link.mac) == (7, "eth0", b"\x02MAC..")
    with pytest.raises(FormError):
        records.parse_link(body[:12])


def test_single_hop() -> None:
    (found,) = records.hops(route("default", 3, "192.0.2.1"))
    assert (found.index, found.gateway, found.weight) == (3, pack_ip("192.0.2.1"), 1)


def test_multipath_hops_in_order_with_weights() -> None:
    body = route(hops=[hop(3, "192.0.2.1", 5), hop(4), hop(5, "192.0.2.9", 256)])
    assert [(h.index, h.gateway, h.weight) for h in records.hops(body)] == [
        (3, pack_ip("192.0.2.1"), 5),
        (4, None, 1),
        (5, pack_ip("192.0.2.9"), 256),
    ]


def test_gateway_of_the_other_family_is_none() -> None:
    via = attr(18, struct.pack("=H", IPV6) + pack_ip("fe80::1"))
    (found,) = records.hops(route("default", 3, extra=via))
    assert found.gateway is None
    (found,) = records.hops(route("default", 3, "2001:db8::1")[:0] + route("default", 3, "::"))
    assert found.gateway is None


def test_route_without_interface_has_no_hops() -> None:
    assert records.hops(route("192.0.2.0/24", kind=7)) == []
    assert records.hops(route("192.0.2.0/24", 0)) == []


@pytest.mark.parametrize(
    "multipath", [struct.pack("=HBBi", 40, 0, 0, 3), struct.pack("=HBBi", 0, 0, 0, 3), b"\x08"]
)
def test_malformed_multipath(multipath: bytes) -> None:
    assert records.hops(route(extra=attr(9, multipath))) == []


@given(st.binary(max_size=80))
def test_arbitrary_routes_do_no_harm(data: bytes) -> None:
    body = route("192.0.2.0/24", 3)[:12] + data
    assert all(h.index > 0 for h in records.hops(body))


def test_only_unicast_routes_of_the_main_table_and_family_are_kept() -> None:
    good = route("192.0.2.0/24", 3)
    others = [
        route("192.0.2.0/24", 3, table=255),
        route("192.0.2.0/24", 3, kind=7),
        route("192.0.2.0/24", 3, flags=0x200),
        route("2001:db8::/32", 3),
        b"\x02",
    ]
    assert records.read_routes(Tables(*others, good), IPV4) == [good]  # type: ignore[arg-type]


def test_routes_of_one_interface_though_the_kernel_did_not_filter() -> None:
    mine = [route("192.0.2.0/24", 3), route(hops=[hop(4), hop(3)])]
    tables = Tables(route("198.51.100.0/24", 4), *mine)
    assert records.read_routes(tables, IPV4, 3) == mine  # type: ignore[arg-type]


def test_addresses_of_other_interfaces_and_families_are_skipped() -> None:
    tables = Tables(
        address("10.0.0.1", 24, index=3),
        address("2001:db8::1", 64, index=2),
        b"\x02\x18\0\0",
        address("10.0.0.2", 24, index=2),
    )
    found = records.read_addresses(tables, IPV4, 2)  # type: ignore[arg-type]
    assert [a.local for a in found] == [pack_ip("10.0.0.2")]


@pytest.mark.parametrize("error", [EAFNOSUPPORT, EOPNOTSUPP, ENOENT])
def test_kernel_without_the_family_or_table_has_nothing(error: int) -> None:
    tables = Tables(error=error)
    assert records.read_routes(tables, IPV6) == []  # type: ignore[arg-type]
    assert records.read_addresses(tables, IPV6, 2) == []  # type: ignore[arg-type]


def test_other_errors_are_errors() -> None:
    with pytest.raises(NetlinkError):
        records.read_routes(Tables(error=EINVAL), IPV4)  # type: ignore[arg-type]


def test_number_attribute_too_short() -> None:
    assert records.hops(route("default", extra=attr(4, b"\x03"))) == []
    assert u32(4, 3)[4:] == b"\x03\0\0\0"
