"""Option scanning: the forms that getopt_long(3) accepts, and its words when it does not."""

from __future__ import annotations

import getopt as reference

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.config.actions import flag
from passt.userspace.config.errors import UsageError
from passt.userspace.config.getopt import Scanner
from passt.userspace.config.table import Option


def option(long: str, short: str = "", arg: str = "") -> Option:
    return Option(long, short, arg, flag("unused"), help="")


TABLE = [
    option("debug", "d"),
    option("foreground", "f"),
    option("mtu", "m", "MTU"),
    option("netns", "", "PATH"),
    option("netns-only"),
    option("no-copy-routes"),
    option("no-copy-addrs"),
]


def scan(*words: str) -> tuple[list[tuple[str, str]], list[str]]:
    scanner = Scanner("pasta", words, TABLE)
    found = [(option.long, value) for option, value in scanner]
    return found, scanner.operands


def failure(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        scan(*words)
    assert caught.value.show_usage
    return caught.value.message


@pytest.mark.parametrize(
    "words",
    [["--mtu=1500"], ["--mtu", "1500"], ["-m1500"], ["-m", "1500"], ["--mt", "1500"], ["--m=1500"]],
)
def test_all_forms_of_a_value(words: list[str]) -> None:
    assert scan(*words) == ([("mtu", "1500")], [])


def test_cluster_ends_with_a_value() -> None:
    assert scan("-dfm1500", "-fdm", "9") == (
        [
            ("debug", ""),
            ("foreground", ""),
            ("mtu", "1500"),
            ("foreground", ""),
            ("debug", ""),
            ("mtu", "9"),
        ],
        [],
    )


def test_values_may_look_like_options_or_be_empty() -> None:
    assert scan("-m", "-d", "--mtu", "--", "--mtu=") == (
        [("mtu", "-d"), ("mtu", "--"), ("mtu", "")],
        [],
    )


def test_scanning_stops_at_the_first_operand() -> None:
    assert scan("-d", "ip", "-6", "route") == ([("debug", "")], ["ip", "-6", "route"])


def test_scanning_stops_after_two_dashes() -> None:
    assert scan("-d", "--", "--bogus", "--") == ([("debug", "")], ["--bogus", "--"])


def test_a_lone_dash_is_an_operand() -> None:
    assert scan("-d", "-", "-f") == ([("debug", "")], ["-", "-f"])


def test_exact_name_wins_over_longer_ones() -> None:
    assert scan("--netns", "x", "--netns-") == ([("netns", "x"), ("netns-only", "")], [])


# The expected texts were printed by a program that uses glibc's getopt_long(3).
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "pasta: unrecognized option '--bogus'"),
        (["--bogus=3"], "pasta: unrecognized option '--bogus=3'"),
        (["-Z"], "pasta: invalid option -- 'Z'"),
        (["-dfZ"], "pasta: invalid option -- 'Z'"),
        (["--mtu"], "pasta: option '--mtu' requires an argument"),
        (["--mt"], "pasta: option '--mtu' requires an argument"),
        (["-m"], "pasta: option requires an argument -- 'm'"),
        (["-dm"], "pasta: option requires an argument -- 'm'"),
        (["--debug=1"], "pasta: option '--debug' doesn't allow an argument"),
        (["--deb=1"], "pasta: option '--debug' doesn't allow an argument"),
        (
            ["--no-copy"],
            (
                "pasta: option '--no-copy' is ambiguous; "
                "possibilities: '--no-copy-routes' '--no-copy-addrs'"
            ),
        ),
        (
            ["--no-copy=x"],
            (
                "pasta: option '--no-copy=x' is ambiguous; "
                "possibilities: '--no-copy-routes' '--no-copy-addrs'"
            ),
        ),
    ],
)
def test_messages(words: list[str], message: str) -> None:
    assert failure(*words) == message


@pytest.mark.parametrize("word", ["--sock", "--socket-p", "--socket-path", "--socket"])
def test_other_names_are_not_ambiguous(word: str) -> None:
    """As with getopt_long(3), if what they do is the same."""
    store = flag("unused")
    names = [
        Option("socket", "s", "PATH", store, help=""),
        Option("socket-path", "", "PATH", store, help="", hidden=True),
    ]
    ((found, value),) = Scanner("passt", [word, "/tmp/x"], names)
    assert found.store is store
    assert value == "/tmp/x"


def test_options_are_delivered_before_a_later_error() -> None:
    scanner = iter(Scanner("pasta", ["-d", "--bogus"], TABLE))
    assert next(scanner)[0].long == "debug"
    with pytest.raises(UsageError):
        next(scanner)


WORDS = st.lists(
    st.one_of(
        st.sampled_from(["-", "--", "-d", "--deb", "--netns", "--netns-", "--no-copy", "-dm", "x"]),
        st.text("-=dfmZnetso", max_size=8),
    ),
    max_size=5,
)


@given(WORDS)
def test_agrees_with_the_standard_library(words: list[str]) -> None:
    """Same options, values and operands as getopt.getopt(), and failure where it fails."""
    longs = [entry.long + ("=" if entry.arg else "") for entry in TABLE]
    try:
        pairs, operands = reference.getopt(words, "dfm:", longs)
    except reference.GetoptError:
        failure(*words)
        return
    names = {f"-{e.short}": e.long for e in TABLE if e.short} | {
        f"--{e.long}": e.long for e in TABLE
    }
    assert scan(*words) == ([(names[name], value) for name, value in pairs], operands)
