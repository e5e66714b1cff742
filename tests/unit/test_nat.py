"""Addresses as the guest sees them, and as the host does."""

from __future__ import annotations

import socket

import pytest

from passt.userspace.config.model import Config
from passt.userspace.flow import nat
from passt.userspace.flow.nat import LOOPBACK4, LOOPBACK6, Nat
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, OUR_LL, config


def ip(text: str) -> bytes:
    """``text`` packed."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


HOST4, HOST6, GUEST_LL = ip("198.51.100.7"), ip("2001:db8:7::7"), ip("fe80::77")


@pytest.fixture
def settings() -> Config:
    made = config()
    made.v4.map_guest_addr = ip("192.0.2.99")
    made.v6.map_guest_addr = ip("2001:db8:0:1::99")
    return made


@pytest.mark.parametrize(
    ("seen", "real"),
    [
        (GATEWAY4, LOOPBACK4),
        (GATEWAY6, LOOPBACK6),
        (ip("192.0.2.99"), GUEST4),
        (ip("2001:db8:0:1::99"), GUEST6),
        (HOST4, HOST4),
        (HOST6, HOST6),
        (GUEST4, GUEST4),
    ],
)
def test_destinations_of_the_guest(settings: Config, seen: bytes, real: bytes) -> None:
    assert Nat(settings).outbound(seen) == real


@pytest.mark.parametrize(
    ("real", "seen"),
    [
        (LOOPBACK4, GATEWAY4),
        (LOOPBACK6, GATEWAY6),
        (ip("127.0.0.9"), GATEWAY4),
        (GUEST4, ip("192.0.2.99")),
        (GUEST6, ip("2001:db8:0:1::99")),
        (HOST4, HOST4),
        (HOST6, HOST6),
        (ip("0.0.0.0"), GATEWAY4),
        (ip("::"), GATEWAY6),
    ],
)
def test_sources_of_the_host(settings: Config, real: bytes, seen: bytes) -> None:
    assert Nat(settings).inbound_source(real) == seen


@pytest.mark.parametrize("version", [4, 6])
def test_queries_to_the_match_address_go_to_the_hosts_resolver(
    settings: Config, version: int
) -> None:
    family, gateway, resolver, other = {
        4: (settings.v4, GATEWAY4, ip("127.0.0.53"), HOST4),
        6: (settings.v6, GATEWAY6, ip("::2"), HOST6),
    }[version]
    loopback = LOOPBACK4 if version == 4 else LOOPBACK6
    translator = Nat(settings)
    assert translator.outbound_port(gateway, 53) == loopback
    # The gateway is mapped to loopback, but a resolver comes first.
    family.dns_match = gateway
    assert translator.outbound_port(gateway, 53) is None
    family.dns_host = resolver
    assert [translator.outbound_port(gateway, port) for port in (53, 853)] == [resolver] * 2
    assert [translator.outbound_port(gateway, port) for port in (0, 54, 5353)] == [loopback] * 3
    assert translator.outbound_port(other, 53) == other
    assert translator.outbound(gateway) == loopback


def test_sources_without_mappings() -> None:
    made = config()
    made.v4.map_host_loopback = made.v6.map_host_loopback = None
    translator = Nat(made)
    assert translator.inbound_source(LOOPBACK4) == GATEWAY4
    assert translator.inbound_source(GUEST4) == GATEWAY4
    assert translator.inbound_source(LOOPBACK6) == GATEWAY6
    # A target on the link wants a source on the link.
    assert translator.inbound_source(LOOPBACK6, GUEST_LL) == OUR_LL
    made.v6.gateway = ip("fe80::99")
    assert translator.inbound_source(LOOPBACK6) == OUR_LL
    made.v6.gateway = made.v6.our_ll = made.v4.gateway = None
    assert translator.inbound_source(LOOPBACK6) is None
    assert translator.inbound_source(LOOPBACK4) is None


def test_observed_addresses(settings: Config) -> None:
    translator = Nat(settings)
    assert translator.inbound_target(GATEWAY4) == GUEST4
    translator.observe4(HOST4)
    translator.observe4(bytes(4))
    assert translator.inbound_target(GATEWAY4) == HOST4
    assert translator.inbound_source(HOST4) == GATEWAY4
    assert translator.inbound_target(OUR_LL) is None
    translator.observe6(GUEST_LL)
    translator.observe6(bytes(16))
    assert translator.inbound_target(OUR_LL) == GUEST_LL
    assert translator.inbound_target(GATEWAY6) == GUEST6
    translator.observe6(HOST6)
    assert translator.inbound_target(GATEWAY6) == HOST6


def test_what_cannot_be_the_guest_is_not_observed(settings: Config) -> None:
    """Groups, and what is ours on the link: a bridge may return our own frames."""
    translator = Nat(settings)
    for source in (GATEWAY4, ip("192.0.2.99"), ip("224.0.0.1"), ip("255.255.255.255")):
        translator.observe4(source)
    for source in (GATEWAY6, OUR_LL, ip("2001:db8:0:1::99"), ip("ff02::1")):
        translator.observe6(source)
    assert translator.observed4 == GUEST4
    assert translator.observed6 == GUEST6
    assert translator.observed_ll is None


def test_fixed_addresses_are_not_observed(settings: Config) -> None:
    settings.v4.addr_fixed = settings.v6.addr_fixed = True
    translator = Nat(settings)
    translator.observe4(HOST4)
    translator.observe6(HOST6)
    translator.observe6(GUEST_LL)
    assert translator.inbound_target(GATEWAY4) == GUEST4
    assert translator.inbound_target(GATEWAY6) == GUEST6
    assert translator.observed_ll == GUEST_LL


def test_local_mode_learns_the_link_local_address() -> None:
    made = config()
    made.v6.addr = None
    translator = Nat(made)
    translator.observe6(GUEST_LL)
    assert {made.v6.addr, translator.observed6} == {GUEST_LL}


def test_devices_and_sources(settings: Config) -> None:
    settings.v4.outbound_if, settings.v4.outbound_addr = "eth0", HOST4
    settings.v6.ifindex = 7
    translator = Nat(settings)
    assert translator.bind_device(HOST4) == "eth0"
    assert translator.bind_device(LOOPBACK4) == ""
    assert translator.bind_device(HOST6) == ""
    assert translator.outbound_source(HOST4) == HOST4
    assert translator.outbound_source(LOOPBACK4) is None
    assert translator.outbound_source(HOST6) is None
    assert translator.scope_id(GUEST_LL) == 7
    assert translator.scope_id(HOST6) == 0


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("127.3.2.1", "loopback unicast"),
        ("::1", "loopback unicast"),
        ("fe80::1", "link_local unicast"),
        ("febf::1", "link_local unicast"),
        ("fec0::1", "unicast"),
        ("169.254.1.1", "unicast"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "unicast"),
        ("255.255.255.255", ""),
        ("ff02::1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("2001:db8::1", "unicast"),
    ],
)
def test_kinds(text: str, kinds: str) -> None:
    addr = ip(text)
    names = ("loopback", "link_local", "multicast", "unspecified", "unicast")
    assert {name for name in names if getattr(nat, f"is_{name}")(addr)} == set(kinds.split())


def test_text_and_mapped_forms() -> None:
    assert nat.unmap(ip("::ffff:192.0.2.1")) == ip("192.0.2.1")
    assert nat.unmap(ip("::fffe:c000:201")) == ip("::fffe:c000:201")
    assert nat.unmap(HOST4) == HOST4
    assert nat.endpoint(HOST6, 80) == "[2001:db8:7::7]:80"
    assert nat.endpoint(HOST4, 80) == "[198.51.100.7]:80"


def test_hosts_further_addresses_that_the_guest_has_too(settings: Config) -> None:
    """It would take packets from them for its own, and not answer; so they come from elsewhere."""
    more4, more6 = ip("10.9.9.9"), ip("fd00::9")
    made = config()
    made.v4.own, made.v6.own = frozenset((GUEST4, more4)), frozenset((GUEST6, more6))
    nat_ = Nat(made)
    assert nat_.inbound_source(more4) == GATEWAY4
    assert nat_.inbound_source(more6) == GATEWAY6
    settings.v4.own = made.v4.own
    assert Nat(settings).inbound_source(more4) == settings.v4.map_guest_addr
    # It may use them.
    nat_.observe4(more4)
    nat_.observe6(more6)
    assert (nat_.observed4, nat_.observed6) == (more4, more6)


def test_scope_of_link_local_destinations(settings: Config) -> None:
    settings.v6.ifindex = 3
    assert Nat(settings).scope_id(ip("fe80::9")) == 3
    assert Nat(settings).scope_id(ip("2001:db8::9")) == 0
    settings.v4.ifindex = 7
    settings.v6.outbound_index = 5
    assert Nat(settings).scope_id(ip("fe80::9")) == 5
    # In local mode the neighbours are those on the one interface that the host has at all.
    settings.v6.outbound_index = settings.v6.ifindex = 0
    assert Nat(settings).scope_id(ip("fe80::9")) == 7
