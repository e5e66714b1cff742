"""Choosing the template: interface, gateway, address."""

from __future__ import annotations

import socket
from errno import EINVAL, ENODEV

import pytest

from passt.kernel.netlink import template
from passt.kernel.netlink.records import Address, parse_address
from passt.kernel.netlink.route_socket import NetlinkError
from passt.kernel.netlink.template import Source, Wish
from passt.syscalls import bare_socket
from tests.unit.netlink_bytes import LINK_SCOPE, SITE, address, hop, pack_ip, route

IPV4, IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
TEMPORARY, DADFAILED, DEPRECATED = 0x01, 0x08, 0x20


def addresses(*bodies: bytes) -> list[Address]:
    return [parse_address(body) for body in bodies]


def texts(notes: list[tuple[str, str]], level: str = "info") -> list[str]:
    return [text for each, text in notes if each == level]


# -- interface ------------------------------------------------------------------------------


def test_interface_of_the_default_route_wins_over_earlier_routes() -> None:
    routes = [route("10.0.0.0/8", 2, "192.0.2.1"), route("default", 3, "192.0.2.1")]
    assert template.choose_interface(routes, "IPv4") == (3, [])


def test_first_of_several_defaults_and_a_note() -> None:
    routes = [route("default", 4), route("default", 3)]
    assert template.choose_interface(routes, "IPv4") == (
        4,
        [("info", "Multiple default IPv4 routes, picked first")],
    )


def test_without_default_the_first_interface_with_routes() -> None:
    routes = [route("10.0.0.0/8", 3), route("192.0.2.0/24", 3)]
    assert template.choose_interface(routes, "IPv4") == (3, [])
    index, notes = template.choose_interface([*routes, route("198.51.100.0/24", 2)], "IPv4")
    assert index == 3
    assert texts(notes) == ["Multiple interfaces with IPv4 routes, picked first"]


def test_loopback_and_interfaceless_routes_are_no_candidates() -> None:
    routes = [route("192.0.2.0/24", 1), route("10.0.0.0/8"), route("default", 1)]
    index, notes = template.choose_interface(routes, "IPv4")
    assert index == 0
    assert texts(notes) == ["No interfaces with usable IPv4 routes"]


@pytest.mark.parametrize("dst", ["169.254.0.0/16", "169.254.7.0/24", "fe80::/64", "fe80::/10"])
def test_link_local_prefixes_tell_nothing(dst: str) -> None:
    name = "IPv6" if ":" in dst else "IPv4"
    assert template.choose_interface([route(dst, 2)], name)[0] == 0
    wide = route("2001:db8::/64" if ":" in dst else "192.0.2.0/24", 3)
    assert template.choose_interface([route(dst, 2), wide], name) == (3, [])


@pytest.mark.parametrize("dst", ["169.0.0.0/8", "169.253.0.0/16", "fe00::/9", "fec0::/10"])
def test_neighbouring_prefixes_are_not_link_local(dst: str) -> None:
    assert template.choose_interface([route(dst, 2)], "IPv4")[0] == 2


def test_multipath_counts_as_its_first_hop() -> None:
    routes = [route(hops=[hop(5, "192.0.2.1", 1), hop(3, "198.51.100.1", 9)])]
    assert template.choose_interface(routes, "IPv4") == (5, [])


def test_no_routes() -> None:
    index, notes = template.choose_interface([], "IPv6")
    assert index == 0
    assert texts(notes) == ["No interfaces with usable IPv6 routes"]
    assert texts(notes, "debug") == ["Failed to detect external interface for IPv6"]


# -- gateway --------------------------------------------------------------------------------


def test_gateway_of_the_first_default_on_the_interface() -> None:
    routes = [
        route("10.0.0.0/8", 3, "192.0.2.7"),
        route("default", 2, "198.51.100.1"),
        route("default", 3, "192.0.2.1"),
        route("default", 3, "192.0.2.2"),
    ]
    assert template.default_gateway(routes, 3) == (True, pack_ip("192.0.2.1"))


def test_default_without_gateway_and_no_default() -> None:
    assert template.default_gateway([route("default", 3)], 3) == (True, None)
    assert template.default_gateway([route("10.0.0.0/8", 3, "192.0.2.1")], 3) == (False, None)


def test_heaviest_hop_first_among_equals_never_of_another_interface() -> None:
    hops = [
        hop(3, "192.0.2.1", 1),
        hop(3, "192.0.2.2", 5),
        hop(3, "192.0.2.3", 5),
        hop(4, "192.0.2.4", 9),
    ]
    assert template.default_gateway([route(hops=hops)], 3) == (True, pack_ip("192.0.2.2"))


def test_multipath_whose_first_hop_is_elsewhere_still_serves_a_named_interface() -> None:
    routes = [route(hops=[hop(4, "198.51.100.1"), hop(3, "192.0.2.1")])]
    assert template.default_gateway(routes, 3) == (True, pack_ip("192.0.2.1"))


# -- address --------------------------------------------------------------------------------


def test_longest_prefix_first_among_equals() -> None:
    found = template.choose_address(
        addresses(
            address("2001:db8::1", 64), address("2001:db8::2", 128), address("2001:db8::3", 128)
        )
    )
    assert found is not None
    assert (found.local, found.prefix_len) == (pack_ip("2001:db8::2"), 128)


def test_deprecated_and_link_local_ones_are_skipped() -> None:
    found = template.choose_address(
        addresses(
            address("2001:db8::1", 128, flags=DEPRECATED),
            address("fe80::1", 128, scope=LINK_SCOPE),
            address("fec0::1", 64, scope=SITE),
        )
    )
    assert found is not None and found.local == pack_ip("fec0::1")


def test_link_scope_is_a_last_resort_for_ipv4_only() -> None:
    four = addresses(address("192.0.2.1", 32, scope=LINK_SCOPE), address("192.0.2.2", 24))
    assert template.choose_address(four) is four[1]
    assert template.choose_address(four[:1]) is four[0]
    six = addresses(address("fe80::1", 64, scope=LINK_SCOPE))
    assert template.choose_address(six) is None


def test_nothing_to_choose_from() -> None:
    assert template.choose_address([]) is None
    assert template.link_local([]) is None


def test_temporary_addresses_come_last() -> None:
    """The newest is listed first; it is gone in a day."""
    temporary = address("2001:db8::a", 64, flags=TEMPORARY)
    stable = address("2001:db8::1", 64)
    assert chosen(temporary, stable) == pack_ip("2001:db8::1")
    assert chosen(temporary) == pack_ip("2001:db8::a")
    longer = address("2001:db8::b", 128, flags=TEMPORARY)
    assert chosen(longer, stable) == pack_ip("2001:db8::1")
    # The same bit marks a secondary address of IPv4, which is as good as any.
    secondary = address("192.0.2.3", 25, flags=TEMPORARY)
    assert chosen(address("192.0.2.2", 24), secondary) == pack_ip("192.0.2.3")


def test_duplicate_addresses_are_none() -> None:
    duplicate = address("2001:db8::a", 128, flags=DADFAILED)
    stable = address("2001:db8::1", 64)
    assert chosen(duplicate, stable) == pack_ip("2001:db8::1")
    assert chosen(duplicate) is None
    copied = template.copied_addresses(addresses(duplicate, stable))
    assert [each.local for each in copied] == [pack_ip("2001:db8::1")]


def chosen(*bodies: bytes) -> bytes | None:
    """The address that would be the guest's."""
    found = template.choose_address(addresses(*bodies))
    return found and found.local


def test_other_addresses_are_told() -> None:
    found = source(
        address("192.0.2.2", 24),
        address("192.0.2.3", 24),
        address("192.0.2.4", 24, flags=DEPRECATED),
    )
    assert found.summary()[2] == pack_ip("192.0.2.2")
    assert found.summary()[-1] == [pack_ip("192.0.2.3")]


def test_which_addresses_are_copied() -> None:
    kept = addresses(address("2001:db8::1", 64), address("fec0::1", 64, scope=SITE))
    left = addresses(
        address("fe80::1", 64, scope=LINK_SCOPE), address("2001:db8::2", 64, flags=DEPRECATED)
    )
    assert template.copied_addresses([left[0], kept[0], left[1], kept[1]]) == kept


# -- usable at all --------------------------------------------------------------------------


def source(*bodies: bytes, routes: list[bytes] | None = None) -> Source:
    return Source(2, "eth0", routes or [], addresses(*bodies))


def test_ipv4_needs_an_address() -> None:
    assert template.usable(source(address("192.0.2.1", 24)), Wish(IPV4))
    assert not template.usable(source(), Wish(IPV4))
    assert template.usable(source(), Wish(IPV4, has_address=True))


def test_ipv6_needs_a_wide_and_a_link_local_address() -> None:
    wide, own = address("2001:db8::1", 64), address("fe80::1", 64, scope=LINK_SCOPE)
    assert template.usable(source(wide, own), Wish(IPV6))
    assert not template.usable(source(wide), Wish(IPV6))
    assert not template.usable(source(own), Wish(IPV6))
    assert template.usable(source(own), Wish(IPV6, has_address=True))
    assert template.usable(source(wide), Wish(IPV6, has_link_local=True))


@pytest.mark.parametrize(("gateway", "enough"), [("fe80::99", True), ("2001:db8::99", False)])
def test_link_local_gateway_serves_as_link_local_address(gateway: str, enough: bool) -> None:
    found = source(address("2001:db8::1", 64), routes=[route("default", 2, gateway)])
    assert template.usable(found, Wish(IPV6)) is enough


# -- all together ---------------------------------------------------------------------------


class Host:
    """A host whose interfaces are numbered 1 lo, 2 eth0, 3 eth1."""

    NAMES = ("", "lo", "eth0", "eth1")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.routes: list[bytes] = []
        self.addresses: list[bytes] = []
        self.error: NetlinkError | None = None
        monkeypatch.setattr(bare_socket, "if_nametoindex", self._index)
        monkeypatch.setattr(bare_socket, "if_indextoname", self.NAMES.__getitem__)

    def _index(self, name: str) -> int:
        if name not in self.NAMES[1:]:
            raise OSError(ENODEV, "no such device")
        return self.NAMES.index(name)

    def dump(self, kind: int, _body: bytes) -> list[bytes]:
        if self.error is not None:
            raise self.error
        return list({26: self.routes, 22: self.addresses}.get(kind, []))

    def survey(self, wish: Wish) -> tuple[Source | None, list[tuple[str, str]]]:
        return template.survey(self, wish)  # type: ignore[arg-type]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(monkeypatch)
    host.routes = [route("default", 2, "192.0.2.1"), route("198.51.100.0/24", 3)]
    host.addresses = [
        address("192.0.2.2", 24, index=2),
        address("198.51.100.2", 24, index=3),
    ]
    return host


def test_detected_template(host: Host) -> None:
    found, notes = host.survey(Wish(IPV4))
    assert found is not None
    assert found.summary() == (2, "eth0", pack_ip("192.0.2.2"), 24, pack_ip("192.0.2.1"), None, [])
    assert notes == []


def test_named_interface_and_outbound_interface(host: Host) -> None:
    for wish in (
        Wish(IPV4, interface="eth1", outbound="eth0"),
        Wish(IPV4, outbound="eth1"),
    ):
        found, _ = host.survey(wish)
        assert found is not None and found.name == "eth1"
        assert found.gateway is None and not found.has_default


def test_unknown_interface_is_an_error(host: Host) -> None:
    with pytest.raises(NetlinkError) as caught:
        host.survey(Wish(IPV4, interface="nope"))
    assert caught.value.strerror == "Invalid interface name nope: No such device"


def test_unknown_outbound_interface_leaves_it_to_detection(host: Host) -> None:
    found, _ = host.survey(Wish(IPV4, outbound="nope"))
    assert found is not None and found.name == "eth0"


@pytest.mark.parametrize("name", ["eth1", "nope"])
def test_unusable_outbound_interface_is_an_error(host: Host, name: str) -> None:
    host.addresses = []
    with pytest.raises(NetlinkError) as caught:
        host.survey(Wish(IPV4, outbound=name))
    assert caught.value.strerror == "External interface not usable"


def test_named_interface_without_address_means_local_mode(host: Host) -> None:
    host.addresses = []
    found, notes = host.survey(Wish(IPV4, interface="eth0"))
    assert found is None
    assert texts(notes) == ["IPv4: no external interface as template, use local mode"]


def test_host_with_nothing(host: Host) -> None:
    host.routes = host.addresses = []
    found, notes = host.survey(Wish(IPV6))
    assert found is None
    assert texts(notes) == [
        "No interfaces with usable IPv6 routes",
        "IPv6: no external interface as template, use local mode",
    ]


def test_netlink_failure_means_local_mode(host: Host) -> None:
    host.error = NetlinkError(EINVAL, "Invalid argument")
    found, notes = host.survey(Wish(IPV4))
    assert found is None
    assert texts(notes, "warning") == ["Couldn't read IPv4 configuration: Invalid argument"]


def test_hops_that_are_not_in_use() -> None:
    """They choose no interface, and are gateways only where there is no other."""
    dead = hop(2, "192.0.2.1", 9, flags=1)
    body = route("default", hops=[dead, hop(3, "198.51.100.1"), hop(2, "192.0.2.9")])
    assert template.choose_interface([body], "IPv4")[0] == 3
    assert template.default_gateway([body], 2) == (True, pack_ip("192.0.2.9"))
    assert template.default_gateway([route("default", hops=[dead])], 2)[1] == pack_ip("192.0.2.1")
    lone = route("default", 2, "192.0.2.1", flags=1)
    assert template.choose_interface([lone, route("default", 3)], "IPv4")[0] == 3
