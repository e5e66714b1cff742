"""Port specifiers and the rules made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import IPPROTO_TCP, IPPROTO_UDP, Rule
from passt.userspace.config.ports import MAX_RULES, parse_spec, rule_text, rules_from

T = ("-t", IPPROTO_TCP)
U = ("-u", IPPROTO_UDP)


def rules(*specs: tuple[str, int, str], disabled: tuple[int, ...] = ()) -> list[str]:
    return [rule_text(rule, True, True) for rule in rules_from(specs, True, True, disabled)]


def refused(*specs: tuple[str, int, str], disabled: tuple[int, ...] = ()) -> list[str]:
    with pytest.raises(UsageError) as caught:
        rules(*specs, disabled=disabled)
    return caught.value.message.split("\n")


def test_specifiers() -> None:
    assert parse_spec("none") == []
    assert parse_spec("22") == [(22, 22)]
    assert parse_spec("22:2222,80") == [(22, 2222), (80, 80)]
    assert parse_spec("00022") == [(22, 22)]
    assert parse_spec("65535:1") == [(65535, 1)]


@pytest.mark.parametrize(
    "spec",
    [
        *("", ",", "22,", ",22", "22,none", "none,22", "foo", "22:", ":22", "22:80:81", "70000"),
        *("22:65536", "0x10", " 22", "+22", "-22", "22-80", "~22", "all", "auto", "*/22", "::1/22"),
        *("127.0.0.1/22", "%eth0/22", "9" * 30, "٢٢", "22:192.0.2.1/80"),
    ],
)
def test_other_forms_are_refused(spec: str) -> None:
    assert refused((*T, spec)) == [f"Invalid port specifier '{spec}'"]


def test_display_form() -> None:
    assert rules((*T, "8080,9090:90"), (*U, "5000")) == [
        "TCP [*]:8080  =>  8080 ",
        "TCP [*]:9090  =>  90 ",
        "UDP [*]:5000  =>  5000 ",
    ]
    rule = Rule(IPPROTO_UDP, 5000, 5010, 6000, bytes([192, 0, 2, 1]), "eth0")
    assert rule_text(rule, True, True) == "UDP [192.0.2.1]%eth0:5000-5010  =>  6000-6010 "
    wildcard = Rule(IPPROTO_TCP, 1, 1, 1)
    assert rule_text(wildcard, True, False) == "TCP [0.0.0.0]:1  =>  1 "
    assert rule_text(wildcard, False, True) == "TCP [::]:1  =>  1 "


def test_port_zero_fails_as_a_rule() -> None:
    assert refused((*T, "0")) == [
        "Forwarding rule attempts to map from port 0",
        "Unable to add rule TCP [*]:0  =>  0 ",
    ]
    assert refused((*T, "22:0")) == [
        "Forwarding rule attempts to map to port 0",
        "Unable to add rule TCP [*]:22  =>  0 ",
    ]


def test_form_is_checked_before_rules() -> None:
    assert refused((*T, "0,foo")) == ["Invalid port specifier '0,foo'"]


def test_conflicts() -> None:
    assert refused((*T, "3000"), (*T, "3000:3001")) == [
        "Forwarding configuration conflict: TCP [*]:3000  =>  3001  versus TCP [*]:3000  =>  3000 ",
        "Unable to add rule TCP [*]:3000  =>  3001 ",
    ]
    assert refused((*T, "3000,3000"))[1] == "Unable to add rule TCP [*]:3000  =>  3000 "
    assert len(rules((*T, "3000"), (*U, "3000"))) == 2


def test_none_before_and_after() -> None:
    assert rules((*T, "none"), (*T, "none"), (*T, "22")) == ["TCP [*]:22  =>  22 "]
    assert rules((*T, "22"), (*U, "none")) == ["TCP [*]:22  =>  22 "]
    assert refused((*T, "22"), (*T, "none")) == ["-t none conflicts with previous options"]
    assert refused((*U, "22"), (*U, "none")) == ["-u none conflicts with previous options"]


def test_disabled_protocols() -> None:
    assert refused((*U, "53"), disabled=(IPPROTO_UDP,)) == [
        "Can't add UDP forwarding rule, UDP not enabled",
        "Unable to add rule UDP [*]:53  =>  53 ",
    ]
    assert rules((*U, "none"), (*T, "53"), disabled=(IPPROTO_UDP,)) == ["TCP [*]:53  =>  53 "]


def test_room() -> None:
    full = ",".join(str(port) for port in range(1, MAX_RULES + 1))
    assert len(rules((*T, full))) == MAX_RULES
    assert refused((*T, full), (*U, "7")) == [
        "Too many rules (maximum 255)",
        "Unable to add rule UDP [*]:7  =>  7 ",
    ]


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), min_size=1, max_size=20))
def test_specifiers_round_trip(pairs: list[tuple[int, int]]) -> None:
    assert parse_spec(",".join(f"{listen}:{target}" for listen, target in pairs)) == pairs


@given(st.lists(st.text("0123456789,:none-~", max_size=12), max_size=4))
def test_rules_are_valid_or_refused(specs: list[str]) -> None:
    try:
        made = rules_from([(*T, spec) for spec in specs], True, True)
    except UsageError as error:
        assert error.message
        return
    assert all(1 <= rule.first <= 65535 and 1 <= rule.to <= 65535 for rule in made)
    assert len({rule.first for rule in made}) == len(made)
