"""Forwarding rules, their forms, and what a table of them admits."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    CAP_AUTO,
    CAP_IFNAME,
    CAP_IPV4,
    CAP_IPV6,
    CAP_TCP,
    CAP_UDP,
    DUAL_STACK,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    MAX_RULES,
    SPLICE,
    WIRE_SIZE,
    Rule,
    RuleError,
    RuleFormatError,
    RuleTable,
)

ALL = CAP_IPV4 | CAP_IPV6 | CAP_TCP | CAP_UDP | CAP_AUTO | CAP_IFNAME
T, U = IPPROTO_TCP, IPPROTO_UDP
ANY4, ANY6 = bytes(4), bytes(16)


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def rule(
    first: int = 1000,
    last: int = 0,
    to: int = 0,
    address: str = "*",
    target: str = "",
    protocol: int = T,
    ifname: str = "",
    flags: int = 0,
) -> Rule:
    return Rule(
        protocol,
        first,
        last or first,
        to or first,
        None if address == "*" else packed(address),
        ifname,
        packed(target) if target else None,
        flags,
    )


def refusal(new: Rule, *old: Rule, caps: int = ALL) -> str:
    table = RuleTable(HOST, caps)
    table.extend(old)
    before = table.rules()
    with pytest.raises(RuleError) as caught:
        table.add(new)
    assert table.rules() == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("shown", "what"),
    [
        ("TCP [*]:8080  =>  80 ", rule(8080, to=80)),
        (
            "UDP [192.0.2.1]%eth0:5000-5010  =>  198.51.100.7:6000-6010  (best effort) (auto-scan)",
            rule(5000, 5010, 6000, "192.0.2.1", "198.51.100.7", U, "eth0", BEST_EFFORT | AUTO),
        ),
        ("TCP [0.0.0.0]:22  =>  80 ", rule(22, to=80, address="0.0.0.0", target="0.0.0.0")),
        ("TCP [::]:22  =>  fe80::1:22 ", rule(22, address="::", target="fe80::1")),
        ("TCP [*]:1  =>  1  (auto-scan)", rule(1, flags=AUTO)),
    ],
)
def test_display_form(shown: str, what: Rule) -> None:
    assert str(what) == shown


def test_wire_form_of_the_protocol() -> None:
    what = rule(3000, 3001, 4000, "0.0.0.0", "192.0.2.5", ifname="vh")
    wire = bytes.fromhex(
        "00000000000000000000ffff00000000"
        "00000000000000000000ffffc0000205"
        "76680000000000000000000000000000"
        "0bb80bb90fa00600"
    )
    assert what.pack() == wire
    assert Rule.unpack(wire) == what
    assert len(wire) == WIRE_SIZE


def test_unspecified_targets_mean_none_but_differ_on_the_wire() -> None:
    explicit, none = rule(target="0.0.0.0"), rule()
    assert explicit.target is none.target is None
    assert explicit != none
    assert rule(target="::") == none
    again = Rule.unpack(explicit.pack())
    assert again == explicit
    assert again.target is None


def test_wildcards_on_the_wire() -> None:
    dual, v6, v4 = rule(), rule(address="::"), rule(address="0.0.0.0")
    assert len({dual, v6, v4}) == 3
    assert [Rule.unpack(r.pack()).address for r in (dual, v6, v4)] == [None, ANY6, ANY4]
    assert dual.flags == DUAL_STACK
    assert v6.flags == v4.flags == 0


def test_unterminated_interface_name() -> None:
    wire = bytearray(rule(ifname="abcdefghijklmno").pack())
    assert Rule.unpack(bytes(wire)).ifname == "abcdefghijklmno"
    wire[47] = ord("p")
    with pytest.raises(RuleFormatError, match=r"^Interface name was not NULL terminated$"):
        Rule.unpack(bytes(wire))


@given(st.binary(min_size=WIRE_SIZE, max_size=WIRE_SIZE))
def test_any_bytes_are_refused_or_sound(wire: bytes) -> None:
    try:
        what = Rule.unpack(wire)
    except RuleFormatError:
        assert wire[47]
        return
    assert Rule.unpack(what.pack()) == what
    table = RuleTable(HOST, ALL)
    try:
        table.add(what)
    except RuleError as error:
        assert str(error)
        assert not len(table)
        return
    assert 1 <= what.first <= what.last <= 65535
    assert 1 <= what.to <= what.target_port(what.last) <= 65535
    assert "\n" not in str(what)


def test_target_ports() -> None:
    what = rule(3000, 3010, 4000)
    assert (what.target_port(3000), what.target_port(3010)) == (4000, 4010)
    assert what.sockets == 11


@pytest.mark.parametrize(
    ("address", "accepted", "refused"),
    [
        ("*", ["192.0.2.1", "::1"], []),
        ("0.0.0.0", ["192.0.2.1"], ["::1"]),
        ("::", ["::1"], ["192.0.2.1"]),
        ("192.0.2.1", ["192.0.2.1"], ["192.0.2.2", "::1"]),
    ],
)
def test_addresses_listened_on(address: str, accepted: list[str], refused: list[str]) -> None:
    what = rule(address=address)
    assert all(what.accepts(packed(a)) for a in accepted)
    assert not any(what.accepts(packed(a)) for a in refused)


# Texts and order as observed of passt 2026_10_02 over its control socket.
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Rule has invalid port range 5-4", rule(5, 4, protocol=U)),
        ("Forwarding rule attempts to map from port 0", Rule(T, 0, 4, 5, packed("::1"), flags=8)),
        ("Forwarding rule attempts to map to port 0", Rule(T, 1000, 1000, 0)),
        ("Forwarding rule attempts to map to port 0", rule(10, 20, 65530)),
        ("Rule has invalid flags 0x8", rule(flags=9)),
        ("Rule has invalid flags 0xf8", rule(flags=0xFF)),
        ("Dual stack rule has non-wildcard address 127.0.0.1", rule(address="127.0.0.1", flags=1)),
        ("Dual stack rule has non-wildcard address ::1", rule(address="::1", flags=1)),
        ("Dual stack rule has non-wildcard address 0.0.0.0", rule(address="0.0.0.0", flags=1)),
        ("Unsupported protocol 0x1 (ICMP) for forwarding rule", rule(protocol=1)),
        ("Unsupported protocol 0x3a (ICMPv6) for forwarding rule", rule(protocol=58)),
        ("Unsupported protocol 0x0 (<unknown protocol>) for forwarding rule", rule(protocol=0)),
        (
            "Unsupported protocol 0xff (<unknown protocol>) for forwarding rule",
            rule(protocol=255, address="::1", target="ff02::1"),
        ),
        (
            "Multicast target address ff02::1 for forwarding rule",
            rule(address="::1", target="ff02::1"),
        ),
        (
            "Multicast target address 255.255.255.255 for forwarding rule",
            rule(address="127.0.0.1", target="255.255.255.255"),
        ),
        ("Multicast target address 224.0.0.1 for forwarding rule", rule(target="224.0.0.1")),
        (
            (
                "Dual stack forward to IPv4 address 192.0.2.1 unsupported\n"
                "Did you mean 0.0.0.0/... instead?"
            ),
            rule(target="192.0.2.1"),
        ),
        (
            (
                "Dual stack forward to IPv6 address 2001:db8::1 unsupported\n"
                "Did you mean [::]/... instead?"
            ),
            rule(target="2001:db8::1"),
        ),
        (
            "Forward from IPv4 (127.0.0.1) to IPv6 (::1) unsupported",
            rule(address="127.0.0.1", target="::1"),
        ),
        (
            "Forward from IPv6 (::1) to IPv4 (127.0.0.1) unsupported",
            rule(address="::1", target="127.0.0.1"),
        ),
    ],
)
def test_refused_by_itself(text: str, what: Rule) -> None:
    assert refusal(what) == text


@pytest.mark.parametrize(
    ("text", "missing", "what"),
    [
        ("Dual stack forward, but IPv4 not enabled", CAP_IPV4, rule(protocol=1)),
        ("Dual stack forward, but IPv6 not enabled", CAP_IPV6, rule(target="192.0.2.1")),
        ("IPv4 forward, but IPv4 not enabled", CAP_IPV4, rule(address="127.0.0.1")),
        ("IPv6 forward, but IPv6 not enabled", CAP_IPV6, rule(address="::")),
        ("Can't add TCP forwarding rule, TCP not enabled", CAP_TCP, rule(target="224.0.0.1")),
        ("Can't add UDP forwarding rule, UDP not enabled", CAP_UDP, rule(protocol=U)),
        ("'auto' port forwarding is only allowed for pasta", CAP_AUTO, rule(flags=AUTO)),
        ("Device binding unsupported (requires kernel 5.7+)", CAP_IFNAME, rule(ifname="lo")),
    ],
)
def test_refused_without_capability(text: str, missing: int, what: Rule) -> None:
    assert refusal(what, caps=ALL & ~missing) == text


@pytest.mark.parametrize("name", ["a/b", "a b", "..", "a:b", "a\nb"])
def test_refused_interface_names(name: str) -> None:
    assert refusal(rule(ifname=name)) == f"Invalid interface name: {name!a}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rule(1000, 2000), rule(1500, 1600, 3, ifname="lo")),
        (rule(1000, ifname="lo"), rule(1000, ifname="eth0")),
        (rule(address="127.0.0.1"), rule()),
        (rule(), rule(address="::1")),
        (rule(address="127.0.0.1"), rule(address="0.0.0.0")),
        (rule(address="::"), rule(address="fe80::1")),
        (rule(1, 10, flags=AUTO), rule(10, 20)),
    ],
)
def test_conflicts(old: Rule, new: Rule) -> None:
    text = "Forwarding configuration conflict"
    assert refusal(new, old) == f"{text}: {new} versus {old}"
    assert refusal(old, new) == f"{text}: {old} versus {new}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rule(), rule(protocol=U)),
        (rule(1000, 1999), rule(2000)),
        (rule(address="127.0.0.1"), rule(address="127.0.0.2")),
        (rule(address="127.0.0.1"), rule(address="::1")),
        (rule(address="0.0.0.0"), rule(address="::")),
        (rule(address="0.0.0.0"), rule(address="::1")),
        (rule(1000, to=5), rule(1001, to=5)),
    ],
)
def test_no_conflicts(old: Rule, new: Rule) -> None:
    table = RuleTable(HOST, ALL)
    table.extend([old, new])
    assert table.rules() == [old, new]


def test_room_for_rules() -> None:
    full = [rule(port) for port in range(1, MAX_RULES + 1)]
    assert refusal(rule(9999), *full) == "Too many rules (maximum 255)"


def test_room_for_sockets() -> None:
    five = [rule(1, 65535, address=f"127.0.0.{n}") for n in range(1, 6)]
    text = "Rules require too many listening sockets (maximum 327680)"
    assert refusal(rule(1, 6, address="127.0.0.9"), *five) == text
    table = RuleTable(HOST, ALL)
    table.extend(five)
    table.add(rule(1, 5, address="127.0.0.9"))
    assert table.sockets == 327680
    table.delete(five[0])
    assert table.sockets == 327680 - 65535


def test_deletion() -> None:
    table = RuleTable(SPLICE, ALL)
    wide, other = rule(4000, 4010), rule(5000, ifname="lo")
    table.extend([wide, other])
    part = rule(4000)
    with pytest.raises(RuleError) as caught:
        table.delete(part)
    assert str(caught.value) == (
        f"Specifier {part} conflicts with rule {wide}, but doesn't match it, can't delete"
    )
    with pytest.raises(RuleError, match="but doesn't match it"):
        table.delete(rule(5000))
    with pytest.raises(RuleError) as caught:
        table.delete(rule(6000))
    assert str(caught.value) == f"Couldn't find forwarding rule to delete: {rule(6000)}"
    table.delete(rule(5000, ifname="lo"))
    assert table.rules() == [wide]
    table.delete(wide)
    assert table.sockets == len(table) == 0


def test_copies_are_apart() -> None:
    table = RuleTable(HOST, ALL)
    table.add(rule(1, 10))
    copy = table.copy()
    copy.clear()
    copy.add(rule(2))
    assert [str(r) for r in table] == ["TCP [*]:1-10  =>  1-10 "]
    assert (table.sockets, copy.sockets, copy.name) == (10, 1, "HOST")
