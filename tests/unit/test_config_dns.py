"""Resolvers and search domains: options, resolv.conf, and what comes of both."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink.worker import FamilyTemplate, TemplateInfo
from passt.userspace.config import dns, resolvconf, values
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import Config
from passt.userspace.config.options import Options
from passt.userspace.config.parse import parse
from passt.userspace.config.resolve import read_resolv_conf, resolve

NO_RESOLVER = "Couldn't get any nameserver address"


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def ips(text: str) -> list[bytes]:
    return [ip(word) for word in text.split()]


def options(*words: str, mode: str = "pasta") -> Options:
    return parse(mode, [*words, "true"] if mode == "pasta" else words)


TEMPLATE = TemplateInfo(
    FamilyTemplate(3, "eth3", ip("192.0.2.2"), 24, ip("192.0.2.1"), None),
    FamilyTemplate(3, "eth3", ip("2001:db8::2"), 64, ip("2001:db8::1"), ip("fe80::2")),
    [],
)


def settled(
    *words: str, file: str = "", mode: str = "pasta", template: TemplateInfo = TEMPLATE
) -> Config:
    content = resolvconf.parse(file.encode())
    given_options = options(*words, mode=mode)
    if not dns.needs_file(given_options):
        content = resolvconf.parse(b"")
    versions = (not given_options.ipv6_only, not given_options.ipv4_only)
    return resolve(given_options, versions, template, content)


def lines(*nameservers: str) -> str:
    return "".join(f"nameserver {address}\n" for address in nameservers)


# resolv.conf


@pytest.mark.parametrize(
    ("content", "nameservers", "search"),
    [
        ("", "", ""),
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1", "192.0.2.1 2001:db8::1", ""),
        ("nameserver\t192.0.2.1  \r\n", "192.0.2.1", ""),
        ("nameserver 192.0.2.1 # the old one\n", "192.0.2.1", ""),
        ("nameserver 192.0.2.1;x\nnameserver 192.0.2.2 ;x\n", "192.0.2.2", ""),
        ("#nameserver 192.0.2.1\n;nameserver 192.0.2.1\n nameserver 192.0.2.1\n", "", ""),
        ("nameserver # 192.0.2.1\nnameserver\nnameserverx 192.0.2.1\n", "", ""),
        ("nameserver fe80::1%eth0\n", "fe80::1", ""),
        ("nameserver ::ffff:192.0.2.1\n", "192.0.2.1", ""),
        ("nameserver 0.0.0.0\nnameserver ::\nnameserver ::ffff:0.0.0.0\n", "", ""),
        ("nameserver 192.0.2\nnameserver x\nnameserver 1.2.3.4.5\n", "", ""),
        ("search a.example b.example\tc.example # d\n", "", "a.example b.example c.example"),
        ("search a\nsearch b c\n", "", "b c"),
        ("search a\nsearch\n", "", "a"),
        ("search a b c d e f g h\n", "", "a b c d e f"),
        ("domain a\noptions ndots:1\n", "", ""),
    ],
)
def test_parse(content: str, nameservers: str, search: str) -> None:
    parsed = resolvconf.parse(content.encode())
    assert parsed.nameservers == ips(nameservers)
    assert parsed.search == search.split()


@given(st.lists(st.sampled_from([b"nameserver", b"search", b"#", b" ", b"\n", b"\xff\0", b"1::"])))
def test_any_content(pieces: list[bytes]) -> None:
    parsed = resolvconf.parse(b"".join(pieces))
    assert all(len(address) == 16 for address in parsed.nameservers)


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert resolvconf.read(str(path)).nameservers == []
    path.write_bytes(b"nameserver 192.0.2.7\n" + b"#" * resolvconf.MAX_SIZE + b"\nsearch x\n")
    found = resolvconf.read(str(path))
    assert (found.nameservers, found.search) == ([ip("192.0.2.7")], [])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert resolvconf.read(str(fifo)).nameservers == []
    assert resolvconf.read(str(tmp_path)).nameservers == []


def test_the_file_is_read_only_if_it_matters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.7\n")
    monkeypatch.setattr(resolvconf, "read", lambda: resolvconf.parse(path.read_bytes()))
    assert read_resolv_conf(options()).nameservers == [ip("192.0.2.7")]
    assert read_resolv_conf(options("-D", "none")).nameservers  # for the search list
    for words in (["-D", "none", "-S", "none"], ["-D", "::2", "-D", "1.2.3.4", "-S", "x"]):
        assert not read_resolv_conf(options(*words)).nameservers
    assert not read_resolv_conf(options("--splice-only")).nameservers


# Options


def test_resolvers_accumulate() -> None:
    words = [word for number in range(1, 6) for word in ("-D", f"192.0.2.{number}")]
    found = options(*words, "--dns", "2001:db8::1", "-D", "::ffff:192.0.2.9", "-t", "8080")
    assert found.dns_v4 == ips("192.0.2.1 192.0.2.2 192.0.2.3")
    assert found.dns_v6 == ips("2001:db8::1")
    assert len(found.port_specs) == 1


def test_none_forgets_resolvers() -> None:
    before = ("-D", "192.0.2.1", "--dns-forward", "192.0.2.2", "--dns-host", "::1")
    found = options(*before, "-D", "none")
    assert found.no_dns
    assert (found.dns_v4, found.dns_forward_v4, found.dns_host_v6) == ([], None, None)
    found = options(*before, "-D", "none", "-D", "192.0.2.3", "--dns-host", "127.0.0.9")
    assert not found.no_dns
    assert (found.dns_v4, found.dns_host_v4) == (ips("192.0.2.3"), ip("127.0.0.9"))


def test_search_lists() -> None:
    assert options().search is None
    assert options("-S", "a b\tc", "--search", "d").search == ["a", "b", "c", "d"]
    assert options("-S", "a", "-S", "none").search == []
    assert options("-S", "none", "-S", "a").search == ["a"]
    for words in (["-S", "a b c d e f g"], ["-S", "a b c d e f", "-S", "g"]):
        with pytest.raises(UsageError, match=r"^Cannot use DNS search domain g$"):
            options(*words)
    with pytest.raises(UsageError, match=r"^Cannot use DNS search domain  $"):
        options("-S", " ")


@pytest.mark.parametrize(
    "text", ["", "x", "0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1"]
)
def test_refused_addresses(text: str) -> None:
    for read, complaint in (
        (values.resolver, f"Cannot use DNS address {text}"),
        (values.dns_forward, f"Invalid DNS forwarding address: {text}"),
        (values.dns_host, f"Invalid host nameserver address: {text}"),
    ):
        with pytest.raises(UsageError) as caught:
            read(text)
        assert caught.value.message == complaint


@pytest.mark.parametrize("text", ["127.0.0.53", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_a_resolver_but_no_address_to_forward(text: str) -> None:
    assert values.resolver(text) == values.dns_host(text)
    with pytest.raises(UsageError, match=r"^Invalid DNS forwarding address"):
        values.dns_forward(text)


# What comes of both


def test_ordinary_resolvers_are_offered() -> None:
    config = settled(file=lines("192.0.2.53", "2001:db8::53", "192.0.2.54"))
    assert config.v4.dns == ips("192.0.2.53 192.0.2.54")
    assert config.v6.dns == ips("2001:db8::53")
    assert (config.v4.dns_host, config.v6.dns_host) == (ip("192.0.2.53"), ip("2001:db8::53"))
    assert config.v4.dns_match is None and config.v6.dns_match is None


def test_three_resolvers_at_most() -> None:
    config = settled(file=lines(*(f"192.0.2.{n}" for n in range(50, 54))))
    assert config.v4.dns == ips("192.0.2.50 192.0.2.51 192.0.2.52")


def test_loopback_resolvers_are_replaced_once() -> None:
    """systemd-resolved's, with a second one: the router's address stands for the first."""
    config = settled(file=lines("127.0.0.53", "127.0.0.54", "192.0.2.9", "::1"))
    assert config.v4.dns == ips("192.0.2.1 192.0.2.9")
    assert (config.v4.dns_match, config.v4.dns_host) == (ip("192.0.2.1"), ip("127.0.0.53"))
    assert config.v6.dns == ips("2001:db8::1")
    assert (config.v6.dns_match, config.v6.dns_host) == (ip("2001:db8::1"), ip("::1"))


def test_router_that_is_the_resolver() -> None:
    config = settled(file=lines("192.0.2.1"))
    assert config.v4.dns == [config.v4.dns_match] == [config.v4.dns_host] == ips("192.0.2.1")


def test_without_mapping_a_loopback_resolver_is_skipped(capfd: pytest.CaptureFixture[str]) -> None:
    config = settled("--no-map-gw", file=lines("127.0.0.53"))
    assert config.v4.dns == [] and config.v4.dns_match is None
    assert config.v4.dns_host == ip("127.0.0.53")
    assert capfd.readouterr().err == f"{NO_RESOLVER}\n"


def test_podman(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--config-net", "--dns-forward", "169.254.1.1", "--no-map-gw", "--quiet"]
    config = settled(*words, "--map-guest-addr", "169.254.1.2", file=lines("127.0.0.53"))
    assert config.v4.dns == [config.v4.dns_match] == ips("169.254.1.1")
    assert config.v4.dns_host == ip("127.0.0.53")
    assert capfd.readouterr().err == ""


def test_options_win_over_the_file() -> None:
    words = ["-D", "127.0.0.1", "--dns-host", "127.0.0.9", "--dns-host", "::2"]
    config = settled(*words, "-S", "x.example", file=lines("192.0.2.53", "::1") + "search y\n")
    assert config.v4.dns == ips("127.0.0.1")
    assert config.v4.dns_host == ip("127.0.0.9")
    assert (config.v6.dns, config.v6.dns_host) == (ips("2001:db8::1"), ip("::2"))
    assert config.search == ["x.example"]
    # The file is not consulted for a version with an address given.
    assert settled("-D", "9.9.9.9", file=lines("192.0.2.53")).v4.dns_host is None


def test_no_resolvers_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    config = settled("-D", "none", file=lines("192.0.2.53") + "search a\n")
    assert config.v4.dns == [] and config.v4.dns_host is None
    assert config.search == ["a"]
    assert capfd.readouterr().err == ""


def test_splice_only_has_no_use_for_resolvers(capfd: pytest.CaptureFixture[str]) -> None:
    config = settled("--splice-only", "-D", "192.0.2.53", "-S", "x")
    assert config.v4.dns == [] and config.search == []
    assert capfd.readouterr().err == ""


def test_search_domains_that_are_none_are_left_out() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    config = settled("-S", f"a.example. . x..y {'a' * 64} {longest} {longest}b")
    assert config.search == ["a.example", longest]


def test_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    def warnings(*words: str, file: str = "") -> list[str]:
        settled(*words, file=file)
        return capfd.readouterr().err.splitlines()

    assert warnings() == [NO_RESOLVER]
    assert warnings(file=lines("192.0.2.53")) == []
    assert warnings("-6", file=lines("192.0.2.53")) == [NO_RESOLVER]
    assert warnings("-D", "::5") == []
