"""The summary printed at start."""

from __future__ import annotations

import ipaddress

import pytest

from passt.userspace.config.model import IPPROTO_TCP, IPPROTO_UDP, Config, Rule
from passt.userspace.config.summary import print_summary, summary_lines, warn_mtu


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def dual_stack() -> Config:
    config = Config("pasta")
    config.ns_ifname = "eth0"
    config.v4.ifname = config.v6.ifname = "eth0"
    config.v4.addr = packed("192.0.2.10")
    config.v4.gateway = config.v4.map_host_loopback = packed("192.0.2.1")
    config.v6.addr = packed("2001:db8::10")
    config.v6.gateway = config.v6.map_host_loopback = packed("2001:db8::1")
    config.v6.our_ll = packed("fe80::1")
    config.rules = [
        Rule(IPPROTO_TCP, 8080, 8080, 80),
        Rule(IPPROTO_UDP, 5000, 5000, 5000),
    ]
    config.rules_ns = [Rule(IPPROTO_TCP, 22, 22, 22, ifname="lo")]
    config.v4.prefix_len = 27
    return config


def test_dual_stack() -> None:
    assert summary_lines(dual_stack()) == [
        "Template interface: eth0 (IPv4), eth0 (IPv6)",
        "Namespace interface: eth0",
        "MAC:",
        "    host: 9a:55:9a:55:9a:55",
        "    NAT to host 127.0.0.1: 192.0.2.1",
        "DHCP:",
        "    assign: 192.0.2.10",
        "    mask: 255.255.255.224",
        "    router: 192.0.2.1",
        "    NAT to host ::1: 2001:db8::1",
        "NDP/DHCPv6:",
        "    assign: 2001:db8::10",
        "    router: 2001:db8::1",
        "    our link-local: fe80::1",
        "Inbound forwarding rules (HOST):",
        "    TCP [*]:8080  =>  80 ",
        "    UDP [*]:5000  =>  5000 ",
        "Outbound forwarding rules (SPLICE):",
        "    TCP [*]%lo:22  =>  22 ",
    ]


def test_resolvers_and_search_list() -> None:
    config = dual_stack()
    config.v4.dns = [packed("192.0.2.1"), packed("192.0.2.2")]
    config.v6.dns = [packed("2001:db8::1")]
    config.search = ["a.example", "b.example"]
    config.dhcp = config.dhcpv6 = False
    search = ["DNS search list:", "    a.example", "    b.example"]
    lines = summary_lines(config)
    assert lines[4:-5] == [
        "    NAT to host 127.0.0.1: 192.0.2.1",
        "DNS:",
        "    192.0.2.1",
        "    192.0.2.2",
        *search,
        "    NAT to host ::1: 2001:db8::1",
        "NDP:",
        "    assign: 2001:db8::10",
        "    router: 2001:db8::1",
        "    our link-local: fe80::1",
        "DNS:",
        "    2001:db8::1",
        *search,
    ]
    config.v6.enabled = False
    assert summary_lines(config).count("DNS search list:") == 1


def test_local_mode() -> None:
    config = Config("pasta")
    config.ns_ifname = "tap0"
    config.v4.local = config.v6.local = True
    config.v6.gateway = config.v6.our_ll = packed("fe80::1")
    config.dhcp = config.dhcpv6 = False
    assert summary_lines(config) == [
        "Namespace interface: tap0",
        "MAC:",
        "    host: 9a:55:9a:55:9a:55",
        "NDP:",
        "    assign: ::",
        "    router: fe80::1",
        "    our link-local: fe80::1",
        "Inbound forwarding rules (HOST):",
        "Outbound forwarding rules (SPLICE):",
    ]


def test_single_version() -> None:
    config = dual_stack()
    config.v6.enabled = False
    lines = summary_lines(config)
    assert lines[0] == "Template interface: eth0 (IPv4)"
    assert "NDP/DHCPv6:" not in lines
    assert not any("::1" in line for line in lines)


def test_passt_has_no_outbound_rules() -> None:
    config = dual_stack()
    config.mode = "passt"
    assert summary_lines(config)[-1] == "    UDP [*]:5000  =>  5000 "


def test_control_socket_and_splice_only() -> None:
    config = dual_stack()
    config.conf_path = "/run/x"
    config.splice_only = True
    assert summary_lines(config)[:4] == [
        "Configuration socket: /run/x",
        "MAC:",
        "    host: 9a:55:9a:55:9a:55",
        "Inbound forwarding rules (HOST):",
    ]


def test_outbound_and_no_ndp() -> None:
    config = dual_stack()
    config.ndp = False
    config.v4.outbound_if = "eth1"
    config.v4.outbound_addr = packed("198.51.100.1")
    config.v6.outbound_addr = packed("2001:db8:2::1")
    config.v4.map_host_loopback = None
    lines = summary_lines(config)
    assert lines[1:5] == [
        "Outbound interface: eth1 (IPv4)",
        "Outbound IPv4 address: 198.51.100.1",
        "Outbound IPv6 address: 2001:db8:2::1",
        "Namespace interface: eth0",
    ]
    assert "DHCPv6:" in lines
    assert "NDP:" not in lines
    assert not any("127.0.0.1" in line for line in lines)


def test_passt_has_no_namespace_interface() -> None:
    config = dual_stack()
    config.mode = "passt"
    assert not any(line.startswith("Namespace") for line in summary_lines(config))


def test_printed_lines_are_not_formats(capfd: pytest.CaptureFixture[str]) -> None:
    config = dual_stack()
    config.v4.ifname = "e%d"
    print_summary(config)
    printed = capfd.readouterr().err.splitlines()
    assert printed == summary_lines(config)
    assert printed[0] == "Template interface: e%d (IPv4), eth0 (IPv6)"


@pytest.mark.parametrize(
    ("mtu", "v6", "warnings"),
    [
        (1280, True, []),
        (1279, True, ["MTU 1279 is too small for IPv6 (minimum 1280)"]),
        (1279, False, []),
        (0, True, []),
        (
            67,
            True,
            [
                "MTU 67 is too small for IPv4 (minimum 68)",
                "MTU 67 is too small for IPv6 (minimum 1280)",
            ],
        ),
    ],
)
def test_mtu_warnings(
    mtu: int, v6: bool, warnings: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config("pasta")
    config.mtu = mtu
    config.v6.enabled = v6
    warn_mtu(config)
    assert capfd.readouterr().err.splitlines() == warnings
