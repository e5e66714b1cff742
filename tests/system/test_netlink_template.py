"""Reading real hosts: which interface, gateway and address serve as template."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from passt.kernel.netlink.worker import FamilyTemplate, TemplateInfo, WorkerError
from tests.system.netlink_lab import Lab

pytestmark = pytest.mark.system


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


def text(packed: bytes | None) -> str | None:
    if packed is None:
        return None
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def shown(found: FamilyTemplate | None) -> tuple[object, ...] | None:
    """Interface, address with length, gateway."""
    if found is None:
        return None
    return found.ifname, f"{text(found.address)}/{found.prefix_len}", text(found.gateway)


def info_texts(info: TemplateInfo) -> list[str]:
    return [note for level, note in info.notes if level == "info"]


def test_dual_stack(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth1 nodad; ip route add default via 2001:db8::1\n"
    )
    info = lab.template()
    assert shown(info.ipv4) == ("eth0", "192.0.2.2/24", "192.0.2.1")
    assert shown(info.ipv6) == ("eth1", "2001:db8::2/64", "2001:db8::1")
    assert info.ipv6 is not None and info.ipv4 is not None
    index = lab.host.ip("link show eth1")[0]["ifindex"]
    own = lab.host.link_local("eth1")[0]["local"]
    assert (info.ipv6.ifindex, text(info.ipv6.link_local)) == (index, own)
    assert info.ipv4.link_local is None
    assert info.notes == []


def test_one_version_only_if_asked(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 2001:db8::2/64 dev eth0 nodad; ip route add default via 2001:db8::1\n"
    )
    only4, only6 = lab.template(ipv6=False), lab.template(ipv4=False)
    assert only4.ipv4 is not None and only4.ipv6 is None
    assert only6.ipv6 is not None and only6.ipv4 is None
    assert only4.notes == only6.notes == []


def test_several_defaults_lowest_metric_first(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1 metric 200\n"
        "ip addr add 198.51.100.2/24 dev eth1; ip route add default via 198.51.100.1 metric 100\n"
    )
    info = lab.template(ipv6=False)
    assert shown(info.ipv4) == ("eth1", "198.51.100.2/24", "198.51.100.1")
    assert info_texts(info) == ["Multiple default IPv4 routes, picked first"]


def test_no_default_route_takes_the_first_interface(lab: Lab) -> None:
    lab.host.run("ip addr add 198.51.100.2/24 dev eth1; ip addr add 192.0.2.2/24 dev eth0")
    info = lab.template(ipv6=False)
    assert shown(info.ipv4) == ("eth0", "192.0.2.2/24", None)
    assert info_texts(info) == ["Multiple interfaces with IPv4 routes, picked first"]


def test_default_without_gateway(lab: Lab) -> None:
    lab.host.run("ip addr add 192.0.2.2/24 dev eth0; ip route add default dev eth0")
    assert shown(lab.template(ipv6=False).ipv4) == ("eth0", "192.0.2.2/24", None)


def test_any_address_route_on_loopback_is_no_template(lab: Lab) -> None:
    lab.host.run("ip route add 192.0.2.0/24 dev lo; ip -6 route add 2001:db8::/64 dev lo")
    info = lab.template()
    assert info.ipv4 is None and info.ipv6 is None
    assert "No interfaces with usable IPv6 routes" in info_texts(info)


def test_link_local_routes_elsewhere_are_not_ambiguous(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 2001:db8::2/64 dev eth1 nodad; ip addr add 169.254.3.3/16 dev eth0\n"
        "ip addr add 192.0.2.2/24 dev eth1\n"
    )
    info = lab.template()
    assert shown(info.ipv6) == ("eth1", "2001:db8::2/64", None)
    assert shown(info.ipv4) == ("eth1", "192.0.2.2/24", None)
    assert info.notes == []


def test_heaviest_hop_and_the_first_among_equals(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 198.51.100.2/24 dev eth1\n"
        "ip route add default nexthop via 192.0.2.1 weight 1 nexthop via 192.0.2.3 weight 4"
        " nexthop via 192.0.2.5 weight 4 nexthop via 198.51.100.1 weight 9\n"
    )
    assert shown(lab.template(ipv6=False).ipv4) == ("eth0", "192.0.2.2/24", "192.0.2.3")


def test_hops_of_interfaces_that_are_down_do_not_count(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip addr add 198.51.100.2/24 dev eth1\n"
        "ip route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1\n"
        "ip link set eth0 down\n"
    )
    assert "dead" in lab.host.run("ip route show default")
    assert shown(lab.template(ipv6=False).ipv4) == ("eth1", "198.51.100.2/24", "198.51.100.1")


def test_point_to_point_address_is_ours_not_the_peers(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 10.0.0.1 peer 10.0.0.2/32 dev eth0; ip route add default via 10.0.0.2\n"
    )
    assert shown(lab.template(ipv6=False).ipv4) == ("eth0", "10.0.0.1/32", "10.0.0.2")


def test_longest_prefix_not_deprecated(lab: Lab) -> None:
    lab.host.run(
        "ip -6 route add default dev eth0 metric 1\n"
        "ip addr add 2001:db8::64/64 dev eth0 nodad; ip addr add 2001:db8::128/128 dev eth0 nodad\n"
        "ip addr add 2001:db8::bad/128 dev eth0 nodad preferred_lft 0\n"
    )
    assert shown(lab.template(ipv4=False).ipv6) == ("eth0", "2001:db8::128/128", None)


def test_site_local_is_accepted(lab: Lab) -> None:
    lab.host.run("ip addr add fec0::2/64 dev eth0 nodad")
    assert shown(lab.template(ipv4=False).ipv6) == ("eth0", "fec0::2/64", None)


def test_named_interfaces(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "ip addr add 198.51.100.2/24 dev eth1\n"
    )
    assert shown(lab.template("eth1", ipv6=False).ipv4) == ("eth1", "198.51.100.2/24", None)
    assert shown(lab.template(None, "eth1", ipv6=False).ipv4) == ("eth1", "198.51.100.2/24", None)
    assert shown(lab.template(None, "gone", ipv6=False).ipv4) == (
        "eth0",
        "192.0.2.2/24",
        "192.0.2.1",
    )
    with pytest.raises(WorkerError, match=r"^Invalid interface name gone: No such device$"):
        lab.template("gone")
    with pytest.raises(WorkerError, match=r"^External interface not usable$"):
        lab.template(None, None, "eth1")


def test_user_given_address_replaces_the_missing_one(lab: Lab) -> None:
    lab.host.run("ip route add default dev eth0")
    assert lab.template(ipv6=False).ipv4 is None
    assert shown(lab.template(ipv6=False, has_address4=True).ipv4) == ("eth0", "None/0", None)


def test_link_local_only_host_is_local_mode(lab: Lab) -> None:
    lab.host.run("ip -6 route add default via fe80::99 dev eth0")
    info = lab.template(ipv4=False)
    assert info.ipv6 is None
    assert info_texts(info) == ["IPv6: no external interface as template, use local mode"]


def test_ipv6_disabled_on_the_host(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1\n"
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1\n"
    )
    info = lab.template()
    assert shown(info.ipv4) == ("eth0", "192.0.2.2/24", "192.0.2.1")
    assert info.ipv6 is None


def test_host_with_nothing(lab: Lab) -> None:
    lab.host.run("ip link del eth0; ip link del eth1; ip link set lo down")
    info = lab.template()
    assert info.ipv4 is None and info.ipv6 is None
    assert info_texts(info) == [
        "No interfaces with usable IPv4 routes",
        "IPv4: no external interface as template, use local mode",
        "No interfaces with usable IPv6 routes",
        "IPv6: no external interface as template, use local mode",
    ]


def test_many_routes_and_no_default_leave_nothing_behind(lab: Lab) -> None:
    lab.host.run(
        "ip addr add 10.0.0.2/8 dev eth0; ip addr add 198.51.100.2/24 dev eth1\n"
        "i=0; while [ $i -lt 3000 ]; do"
        " echo route add 172.16.$((i / 256)).$((i % 256))/32 via 10.0.0.1; i=$((i + 1)); done"
        " | ip -batch -\n"
    )
    for _ in range(3):
        info = lab.template(ipv6=False)
        assert shown(info.ipv4) == ("eth0", "10.0.0.2/8", None)
        assert info_texts(info) == ["Multiple interfaces with IPv4 routes, picked first"]
