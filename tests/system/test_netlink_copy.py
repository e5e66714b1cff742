"""Addresses and routes of real hosts, copied into a namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.netlink_lab import Lab

pytestmark = pytest.mark.system


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


def by_destination(routes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {route["dst"]: route for route in routes}


def test_dual_stack(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 brd + dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad; ip route add default via 2001:db8::1\n"
    )
    done = lab.copy()
    assert (done.ipv4, done.ipv6, done.notes) == (True, True, [])
    addresses = lab.guest.addresses("tap0")
    assert list(addresses) == ["192.0.2.2/24", "2001:db8::2/64"]
    assert addresses["192.0.2.2/24"]["broadcast"] == "192.0.2.255"
    assert addresses["192.0.2.2/24"]["label"] == "tap0"
    assert [(r["dst"], r.get("gateway"), r.get("prefsrc")) for r in lab.guest.routes()] == [
        ("default", "192.0.2.1", None),
        ("192.0.2.0/24", None, "192.0.2.2"),
    ]
    assert [(r["dst"], r.get("gateway")) for r in lab.guest.routes(6)] == [
        ("2001:db8::/64", None),
        ("default", "2001:db8::1"),
    ]


def test_which_addresses_come_along(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0 label eth0:x valid_lft 600 preferred_lft 300\n"
        "ip addr add 192.0.2.3/24 dev eth0; ip addr add 192.0.2.4/24 dev eth0 preferred_lft 0\n"
        "ip addr add 192.0.2.5/25 dev eth0 scope link; ip addr add 203.0.113.7/24 dev eth1\n"
        "ip addr add 2001:db8::2/64 dev eth0 valid_lft 600 preferred_lft 300 mngtmpaddr\n"
        "ip addr add 2001:db8::3/64 dev eth0 preferred_lft 0; ip addr add fec0::4/64 dev eth0\n"
        "ip addr add 2001:db8::5/64 dev eth0 noprefixroute\n"
        "ip route add default dev eth0; ip -6 route add default dev eth0\n"
    )
    lab.copy()
    host, found = lab.host.addresses("eth0"), lab.guest.addresses("tap0")
    copied = ["192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64", "2001:db8::5/64", "fec0::4/64"]
    assert sorted(found) == sorted(copied)
    assert [a for a in found if a in copied] == [a for a in host if a in copied], "order"
    forever = 2**32 - 1
    for name in copied:
        assert (found[name]["valid_life_time"], found[name]["preferred_life_time"]) == (
            forever,
            forever,
        )
        assert found[name]["scope"] == host[name]["scope"]
        assert ("nodad" in found[name]) == (found[name]["family"] == "inet6")
        assert "tentative" not in found[name]
    assert found["192.0.2.3/24"]["secondary"] is True
    assert found["2001:db8::2/64"]["mngtmpaddr"] is True
    assert found["2001:db8::5/64"]["noprefixroute"] is True


def test_point_to_point_peer_is_reachable(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 10.0.0.1 peer 10.0.0.2/32 dev eth0; ip route add default via 10.0.0.2\n"
    )
    lab.copy()
    (found,) = lab.guest.ip("-4 addr show dev tap0")[0]["addr_info"]
    assert (found["local"], found["address"]) == ("10.0.0.1", "10.0.0.2")
    assert lab.guest.ip("route get 10.0.0.2")[0]["dev"] == "tap0"
    assert by_destination(lab.guest.routes())["default"]["gateway"] == "10.0.0.2"


def test_host_length_address_beside_the_subnet(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 2001:db8::64/64 dev eth0; ip addr add 2001:db8::128/128 dev eth0\n"
        "ip -6 route add default via 2001:db8::1 dev eth0\n"
    )
    lab.copy()
    assert set(lab.guest.addresses("tap0")) == {"2001:db8::64/64", "2001:db8::128/128"}
    assert "default" in by_destination(lab.guest.routes(6))


def test_route_attributes_are_kept_but_the_source(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 192.0.2.3/24 dev eth0\n"
        "ip route add default via 192.0.2.1 metric 100 src 192.0.2.3 mtu 1400 proto dhcp\n"
        "ip route add 203.0.113.0/24 via 10.9.9.9 dev eth0 onlink advmss 1000 tos 0x10\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad\n"
        "ip route add 2001:db8:5::/48 via 2001:db8::1 metric 55 mtu 1300 pref high proto ra\n"
    )
    lab.copy()
    four, six = by_destination(lab.guest.routes()), by_destination(lab.guest.routes(6))
    default = four["default"]
    assert (default["metric"], default["protocol"], default["metrics"]) == (
        100,
        "dhcp",
        [{"mtu": 1400}],
    )
    assert "prefsrc" not in default
    onlink = four["203.0.113.0/24"]
    assert (onlink["gateway"], onlink["flags"], onlink["tos"]) == ("10.9.9.9", ["onlink"], "0x10")
    assert onlink["metrics"] == [{"advmss": 1000}]
    assert six["2001:db8:5::/48"]["metric"] == 55
    assert six["2001:db8:5::/48"]["pref"] == "high"
    assert six["2001:db8:5::/48"]["protocol"] == "ra"
    assert six["2001:db8:5::/48"]["metrics"] == [{"mtu": 1300}]


def test_routes_that_depend_on_each_other_in_any_order(lab: Lab) -> None:
    # Kernel order is by prefix: the default comes first, what it needs last.
    lab.host.run(
        "ip addr add 192.0.2.2/32 dev eth0\n"
        "ip route add 192.0.2.1/32 dev eth0\n"
        "ip route add 10.0.0.0/8 via 192.0.2.1; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 noprefixroute nodad\n"
        "ip -6 route add 2001:db8:ffff::1/128 dev eth0\n"
        "ip -6 route add default via 2001:db8:ffff::1\n"
        "ip -6 route add 2001:db8::/64 dev eth0 metric 7\n"
    )
    done = lab.copy()
    assert {(r["dst"], r.get("gateway")) for r in lab.guest.routes()} == {
        ("default", "192.0.2.1"),
        ("10.0.0.0/8", "192.0.2.1"),
        ("192.0.2.1", None),
    }
    six = by_destination(lab.guest.routes(6))
    assert six["default"]["gateway"] == "2001:db8:ffff::1"
    assert six["2001:db8::/64"]["metric"] == 7
    assert "2001:db8:ffff::1" in six
    assert done.notes == []


def test_multipath(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 198.51.100.2/24 dev eth1\n"
        "ip route add default nexthop via 192.0.2.1 weight 3 nexthop via 192.0.2.5\n"
        "ip route add 10.0.0.0/8 nexthop via 192.0.2.1 nexthop via 198.51.100.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad\n"
        "ip -6 route add default nexthop via 2001:db8::1 weight 2 nexthop via 2001:db8::5\n"
    )
    lab.copy()
    for version in (4, 6):
        found = by_destination(lab.guest.routes(version))
        assert "10.0.0.0/8" not in found, "a hop on another interface"
        nexthops = found["default"]["nexthops"]
        assert {hop["dev"] for hop in nexthops} == {"tap0"}
        assert sorted(hop["weight"] for hop in nexthops) == ([1, 3] if version == 4 else [1, 2])


def test_equal_routes_stay_in_order(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0\n"
        "ip route add 10.0.0.0/8 via 192.0.2.7\n"
        "ip route append 10.0.0.0/8 via 192.0.2.8; ip route append 10.0.0.0/8 via 192.0.2.9\n"
    )
    lab.copy()
    gateways = [r["gateway"] for r in lab.guest.routes() if r["dst"] == "10.0.0.0/8"]
    assert gateways == ["192.0.2.7", "192.0.2.8", "192.0.2.9"]


def test_nexthop_objects_become_plain_hops(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad\n"
        "ip nexthop add id 10 via 192.0.2.1 dev eth0; ip nexthop add id 11 via 192.0.2.5 dev eth0\n"
        "ip nexthop add id 20 group 10/11; ip nexthop add id 30 via 2001:db8::1 dev eth0\n"
        "ip route add default nhid 10; ip route add 10.0.0.0/8 nhid 20\n"
        "ip -6 route add default nhid 30\n"
    )
    lab.copy()
    four, six = by_destination(lab.guest.routes()), by_destination(lab.guest.routes(6))
    assert four["default"]["gateway"] == "192.0.2.1" and "nhid" not in four["default"]
    assert [hop["gateway"] for hop in four["10.0.0.0/8"]["nexthops"]] == ["192.0.2.1", "192.0.2.5"]
    assert six["default"]["gateway"] == "2001:db8::1" and "nhid" not in six["default"]


def test_routes_marked_dead_or_linkdown(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad\n"
        "ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1\n"
        "ip route add 10.0.0.0/8 nexthop via 192.0.2.1 nexthop via 192.0.2.5\n"
        "ip link set far0 down\n"
    )
    assert "linkdown" in lab.host.run("ip route; ip -6 route")
    lab.copy("eth0")
    four = by_destination(lab.guest.routes())
    assert four["default"]["gateway"] == "192.0.2.1" and len(four["10.0.0.0/8"]["nexthops"]) == 2
    assert "linkdown" not in lab.guest.run("ip route; ip -6 route")


def test_gateway_of_the_other_version(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/32 dev eth0; ip -4 route add default via inet6 fe80::99 dev eth0\n"
    )
    lab.copy()
    assert by_destination(lab.guest.routes())["default"]["via"] == {
        "family": "inet6",
        "host": "fe80::99",
    }


def test_default_without_gateway(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/32 dev eth0; ip route add default dev eth0 scope link\n"
        "ip route add unreachable 203.0.113.0/24; ip route add blackhole 203.0.112.0/24\n"
    )
    lab.copy()
    assert [(r["dst"], r["scope"]) for r in lab.guest.routes()] == [("default", "link")]


def test_gateway_without_a_way_is_left_out_with_a_note(lab: Lab) -> None:
    # The kernel checks gateways only when a route is added, so what made it valid may be gone.
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip route add 203.0.113.9 dev eth0; ip route add 10.0.0.0/8 via 203.0.113.9\n"
        "ip route del 203.0.113.9 dev eth0\n"
    )
    assert "10.0.0.0/8" in by_destination(lab.host.routes())
    done = lab.copy()
    assert set(by_destination(lab.guest.routes())) == {"default", "192.0.2.0/24"}
    assert done.notes == [("debug", "1 IPv4 route(s) without way to gateway left out")]


def test_three_thousand_routes_of_each_version(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 10.0.0.2/8 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad\n"
        "ip route add default via 10.0.0.1; ip route add default via 2001:db8::1\n"
        "i=0; while [ $i -lt 3000 ]; do"
        " echo route add 172.16.$((i / 256)).$((i % 256))/32 via 10.0.0.1;"
        " echo -6 route add 2001:db8:1:$i::/64 via 2001:db8::1; i=$((i + 1)); done"
        " > /dev/shm/netlink-routes-$$\n"
        "sed -n 's/^-6 //p' /dev/shm/netlink-routes-$$ | ip -6 -batch -\n"
        "sed '/^-6/d' /dev/shm/netlink-routes-$$ | ip -batch -\n"
        "rm /dev/shm/netlink-routes-$$\n"
    )
    done = lab.copy()
    assert done.notes == []
    for version in (4, 6):
        ours = {(r["dst"], r.get("gateway")) for r in lab.guest.routes(version)}
        assert len(ours) == 3002
        assert ours == {(r["dst"], r.get("gateway")) for r in lab.host.routes(version)}


def test_ipv6_usable_at_once(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 2001:db8::2/64 dev eth0 nodad; ip route add default via 2001:db8::1\n"
    )
    lab.guest.run("sysctl -qw net.ipv6.conf.default.accept_dad=1")
    done = lab.copy()
    assert done.link_local is not None
    own = socket.inet_ntop(socket.AF_INET6, done.link_local)
    with lab.guest.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("2001:db8::2", 0))
    with lab.guest.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        assert lab.tap is not None
        # A tentative address cannot be bound to.
        sock.bind((own, 0, 0, lab.tap.ifindex))
    (address,) = lab.guest.link_local("tap0")
    assert address["local"] == own
    assert address["nodad"] is True and "tentative" not in address
    flags = lab.guest.ip("link show tap0")[0]["flags"]
    assert "NOARP" not in flags and "UP" in flags
