"""Options and template to configuration: addresses, local mode, mappings, names."""

from __future__ import annotations

import socket

import pytest

from passt.kernel.netlink.worker import FamilyTemplate, TemplateInfo
from passt.userspace.config import resolve as module
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import Config
from passt.userspace.config.parse import parse
from passt.userspace.config.resolvconf import ResolvConf
from passt.userspace.config.resolve import enabled_versions, resolve

BOTH = (True, True)
NOTHING = TemplateInfo(None, None, [])


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def template(**changes: bytes | None) -> TemplateInfo:
    """A dual-stack host; ``gateway4`` and so on replace single values."""
    return TemplateInfo(
        FamilyTemplate(
            3, "eth3", ip("192.0.2.2"), 24, changes.get("gateway4", ip("192.0.2.1")), None
        ),
        FamilyTemplate(
            4,
            "eth4",
            ip("2001:db8::2"),
            128,
            changes.get("gateway6", ip("2001:db8::1")),
            ip("fe80::2"),
        ),
        [],
    )


def resolved(
    *words: str, found: TemplateInfo | None = None, versions: tuple[bool, bool] = BOTH
) -> Config:
    resolvers = ResolvConf([], [])
    return resolve(parse("pasta", [*words, "true"]), versions, found or template(), resolvers)


def test_template_gives_everything() -> None:
    config = resolved()
    v4, v6 = config.v4, config.v6
    assert (v4.ifindex, v4.ifname, v4.addr, v4.prefix_len) == (3, "eth3", ip("192.0.2.2"), 24)
    assert v4.gateway == v4.map_host_loopback == ip("192.0.2.1")
    assert (v6.ifindex, v6.addr, v6.gateway) == (4, ip("2001:db8::2"), ip("2001:db8::1"))
    assert v6.our_ll == ip("fe80::2")
    assert v4.copy_addrs and v4.copy_routes and v6.copy_addrs and v6.copy_routes
    assert not (v4.local or v6.local or v4.addr_fixed or v6.addr_fixed)
    assert config.ns_ifname == "eth3"


def test_single_ipv6_address_gets_a_subnet_prefix() -> None:
    """The /128 of a template is for copying only."""
    assert resolved().v6.prefix_len == 64
    assert resolved("--config-net", "-a", "2001:db8::9/80").v6.prefix_len == 80


def test_several_addresses() -> None:
    """One is the guest's, the others are further ones; none of the host's comes along."""
    words = "-a 192.0.2.8/25 -a 192.0.2.9 -a 2001:db8::8 -a 2001:db8::9/80"
    config = resolved("--config-net", *words.split(), found=several())
    v4, v6 = config.v4, config.v6
    assert (v4.addr, v4.more) == (ip("192.0.2.9"), [(ip("192.0.2.8"), 25)])
    assert (v6.addr, v6.more) == (ip("2001:db8::9"), [(ip("2001:db8::8"), 64)])
    assert v4.own == {ip("192.0.2.8"), ip("192.0.2.9")}
    assert v6.own == {ip("2001:db8::8"), ip("2001:db8::9")}


def several() -> TemplateInfo:
    """A host with further addresses on its template interfaces."""
    found = template()
    assert found.ipv4 is not None and found.ipv6 is not None
    found.ipv4.others = [ip("192.0.2.3")]
    found.ipv6.others = [ip("fd00::2"), ip("2001:db8::3")]
    return found


def test_addresses_that_are_copied_are_the_guests_too() -> None:
    config = resolved("--config-net", found=several())
    assert config.v4.own == {ip("192.0.2.2"), ip("192.0.2.3")}
    assert config.v6.own == {ip("2001:db8::2"), ip("2001:db8::3"), ip("fd00::2")}
    assert config.v4.more == config.v6.more == []
    for words in ((), ("--config-net", "--no-copy-addrs")):
        config = resolved(*words, found=several())
        assert config.v4.own == {ip("192.0.2.2")}
    assert resolved("--config-net", found=NOTHING).v6.own == frozenset()


def test_neighbours_of_the_outbound_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Link-local addresses mean those: sockets bound to it could reach no others."""
    monkeypatch.setattr(module.socket, "if_nametoindex", {"uplink": 9}.__getitem__)
    assert resolved().v6.scope == 4
    assert resolved("--outbound-if6", "uplink").v6.scope == 9
    assert resolved("--outbound-if4", "uplink").v6.scope == 4

    def absent(_name: str) -> int:
        raise OSError

    monkeypatch.setattr(module.socket, "if_nametoindex", absent)
    assert resolved("--outbound-if6", "uplink").v6.scope == 4


def test_link_local_gateway_becomes_our_own() -> None:
    config = resolved(found=template(gateway6=ip("fe80::7")))
    assert config.v6.our_ll == config.v6.gateway == config.v6.map_host_loopback == ip("fe80::7")


def test_options_win_for_their_own_version_only() -> None:
    config = resolved("--config-net", "-a", "198.51.100.7/25", "-g", "198.51.100.1")
    assert config.v4.addr == ip("198.51.100.7")
    assert config.v4.prefix_len == 25
    assert config.v4.addr_fixed
    assert not config.v4.copy_addrs and not config.v4.copy_routes
    assert config.v4.gateway == config.v4.map_host_loopback == ip("198.51.100.1")
    assert config.v6.copy_addrs and config.v6.copy_routes and not config.v6.addr_fixed


def test_netmask_replaces_the_hosts() -> None:
    assert resolved("-n", "255.255.0.0").v4.prefix_len == 16


def test_local_mode() -> None:
    config = resolved(found=NOTHING)
    v4, v6 = config.v4, config.v6
    assert (v4.addr, v4.prefix_len, v4.gateway) == (ip("169.254.2.1"), 16, ip("169.254.2.2"))
    assert (v6.addr, v6.gateway, v6.our_ll) == (None, ip("fe80::1"), ip("fe80::1"))
    assert v4.local and v6.local
    assert not (v4.copy_addrs or v4.copy_routes or v6.copy_addrs or v6.copy_routes)
    assert v4.map_host_loopback == ip("169.254.2.2")
    assert v6.map_host_loopback == ip("fe80::1")
    assert config.ns_ifname == "tap0"


def test_local_mode_keeps_what_the_user_gave() -> None:
    config = resolved("-a", "192.0.2.9", "-n", "28", "-g", "fe80::9", found=NOTHING)
    assert (config.v4.addr, config.v4.prefix_len) == (ip("192.0.2.9"), 28)
    assert config.v4.gateway == ip("169.254.2.2")
    assert config.v6.gateway == config.v6.our_ll == ip("fe80::9")


def test_local_mode_of_one_version_names_the_tap_after_the_other() -> None:
    config = resolved(found=TemplateInfo(None, template().ipv6, []))
    assert config.v4.local and not config.v6.local
    assert config.ns_ifname == "eth4"


def test_tap_name_option() -> None:
    assert resolved("-I", "guest0").ns_ifname == "guest0"


@pytest.mark.parametrize("words", [("--no-map-gw",), ("--map-host-loopback", "none")])
def test_gateway_not_mapped(words: tuple[str, ...]) -> None:
    config = resolved(*words)
    assert config.v4.map_host_loopback is None
    assert config.v6.map_host_loopback is None


def test_explicit_mapping_survives_no_map_gw() -> None:
    config = resolved("--map-host-loopback", "192.0.2.77", "--no-map-gw")
    assert config.v4.map_host_loopback == ip("192.0.2.77")
    assert config.v6.map_host_loopback is None


def test_no_gateway_nothing_mapped() -> None:
    config = resolved(found=template(gateway4=None))
    assert config.v4.gateway is None
    assert config.v4.map_host_loopback is None


def test_map_guest_addr() -> None:
    config = resolved("--map-guest-addr", "192.0.2.78")
    assert config.v4.map_guest_addr == ip("192.0.2.78")
    assert config.v6.map_guest_addr is None
    assert resolved("--map-guest-addr", "none").v4.map_guest_addr is None


def test_services() -> None:
    assert resolved().ra and resolved().ndp and resolved().icmp
    assert not resolved("--config-net").ra
    assert resolved("--config-net").ndp
    assert not resolved("--no-ra").ra
    config = resolved("--no-icmp")
    assert not (config.icmp or config.ndp or config.ra)


def test_dhcp_needs_a_router_and_dhcpv6_an_address() -> None:
    config = resolved()
    assert config.dhcp and config.dhcpv6
    assert resolved("--config-net").dhcp and resolved("--config-net").dhcpv6
    assert not resolved(found=template(gateway4=None)).dhcp
    assert resolved("-g", "192.0.2.3", found=template(gateway4=None)).dhcp
    assert not resolved("--no-dhcp").dhcp and not resolved("--no-dhcpv6").dhcpv6
    local = resolved(found=NOTHING)
    assert local.dhcp and not local.dhcpv6
    assert resolved("-a", "2001:db8::9", found=NOTHING).dhcpv6
    single = resolved(versions=(False, True))
    assert not single.dhcp and single.dhcpv6
    assert not resolved(versions=(True, False)).dhcpv6
    splice = resolved("--splice-only", found=NOTHING)
    assert not (splice.dhcp or splice.dhcpv6 or splice.ra)


def test_what_is_told_of_resolvers() -> None:
    def told(mode: str, *words: str) -> tuple[bool, bool]:
        options = parse(mode, [*words, "true"] if mode == "pasta" else words)
        config = resolve(options, BOTH, template(), ResolvConf([ip("192.0.2.53")], ["a"]))
        return config.dhcp_dns, config.dhcp_search

    assert told("pasta") == (False, False)
    assert told("pasta", "--dhcp-dns") == (True, False)
    assert told("pasta", "--dhcp-search") == (False, True)
    assert told("passt") == (True, True)
    assert told("passt", "--no-dhcp-dns") == (False, True)
    assert told("passt", "--no-dhcp-search") == (True, False)
    for mode, words in (
        ("passt", ["--dhcp-dns", "--dhcp-search"]),
        ("pasta", ["--no-dhcp-dns", "--no-dhcp-search"]),
    ):
        for word in words:
            with pytest.raises(UsageError, match=f"{word} is for pas(st|ta) mode only"):
                told(mode, word)


def test_names() -> None:
    config = resolved("-H", "guest", "--fqdn", "guest.example.")
    assert (config.hostname, config.fqdn) == ("guest", "guest.example")
    for wrong in ("a..b", ".", "a" * 64, "a." * 127):
        with pytest.raises(UsageError, match="Invalid FQDN: "):
            resolved("--fqdn", wrong)


def test_outbound() -> None:
    config = resolved("-o", "192.0.2.2", "--outbound-if6", "lo")
    assert config.v4.outbound_addr == ip("192.0.2.2")
    assert (config.v4.outbound_if, config.v6.outbound_if) == ("", "lo")
    assert config.v6.outbound_addr is None


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def versions(*words: str) -> tuple[bool, bool]:
        return enabled_versions(parse("pasta", [*words, "true"]))

    monkeypatch.setattr(module, "_has_ipv6", lambda: True)
    assert versions() == (True, True)
    assert versions("-4") == (True, False)
    assert versions("-6") == (False, True)
    monkeypatch.setattr(module, "_has_ipv6", lambda: False)
    assert versions() == (True, False)
    with pytest.raises(UsageError, match="IPv6 not available but --ipv6-only given"):
        versions("-6")


def test_disabled_version() -> None:
    config = resolved("-4", versions=(True, False), found=TemplateInfo(template().ipv4, None, []))
    assert config.v4.enabled and not config.v6.enabled
