"""Command lines as a whole: order, repetition, conflicts, and what is to be joined or run."""

from __future__ import annotations

import ipaddress
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passt.userspace.config import parse as parse_module
from passt.userspace.config import resolve
from passt.userspace.config.catalogue import TABLE
from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.config.options import COMMAND, MACHINE, NETNS, PID, SHELL, Options, Target
from passt.userspace.config.parse import parse, select_mode
from passt.version import VERSION


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def pasta(*words: str) -> Options:
    return parse("pasta", words)


def refused(*words: str, program: str = "pasta") -> str:
    with pytest.raises(UsageError) as caught:
        parse(program, words)
    return caught.value.message


def exits(*words: str) -> str:
    with pytest.raises(ImmediateExit) as caught:
        pasta(*words)
    return caught.value.text


def target(*words: str) -> Target:
    found = pasta(*words).target
    assert found is not None
    return found


# Mode


@pytest.mark.parametrize(
    ("argv0", "mode"),
    [
        ("pasta", "pasta"),
        ("/usr/bin/pasta.avx2", "pasta"),
        ("/opt/pasta/bin/passt", "passt"),
        ("passt-or-pasta", "pasta"),
    ],
)
def test_mode(argv0: str, mode: str) -> None:
    assert select_mode(argv0) == mode


def test_mode_unknown() -> None:
    message = 'Cannot determine mode, invoke as "passt" or "pasta"'
    assert refused(program="/pasta/main.py") == message


# Immediate actions


def test_version_acts_where_it_stands() -> None:
    assert exits("--version", "--bogus").startswith(f"pasta {VERSION}\n")
    assert exits("--config-net", "--version", "extra").startswith("pasta ")
    assert "'--bogus'" in refused("--bogus", "--version")
    assert refused("-m", "x", "--version") == "Invalid MTU: x"


def test_ports_are_read_after_all_options() -> None:
    assert exits("-t", "foo", "--version")
    assert refused("-t", "foo", "-m", "x") == "Invalid MTU: x"
    assert refused("-t", "22", "--no-tcp").startswith("Can't add TCP forwarding rule")
    assert refused("-4", "-t", "22,22").endswith("TCP [0.0.0.0]:22  =>  22 ")


def test_capabilities_are_hidden_but_there() -> None:
    assert exits("--print-capabilities") == '{\n  "type": "net"\n}\n'


def test_help() -> None:
    assert exits("-h").startswith("Usage: pasta ")


def test_unknown_option_shows_usage() -> None:
    with pytest.raises(UsageError) as caught:
        parse("/usr/bin/pasta", ["--map-guest-address", "x"])
    assert caught.value.show_usage
    expected = "/usr/bin/pasta: unrecognized option '--map-guest-address'"
    assert caught.value.message == expected


# Repetition


def test_verbosity_last_wins() -> None:
    def flags(*words: str) -> tuple[bool, bool, bool]:
        options = pasta(*words)
        return options.debug, options.trace, options.quiet

    assert flags("-q", "-d") == (True, False, False)
    assert flags("-d", "-q") == (False, False, True)
    assert flags("--trace", "-q") == (False, False, True)
    assert flags("-q", "--trace") == (True, True, False)
    assert flags("-d", "-d") == (True, False, False)


def test_one_value_per_version() -> None:
    options = pasta(
        *("-g", "192.0.2.1", "-g", "2001:db8::1", "-g", "192.0.2.2"),
        *("-o", "2001:db8::2", "-o", "192.0.2.3"),
    )
    assert options.gateway_v4 == packed("192.0.2.2")
    assert options.gateway_v6 == packed("2001:db8::1")
    assert options.outbound_v4 == packed("192.0.2.3")
    assert options.outbound_v6 == packed("2001:db8::2")


def test_single_version_last_wins() -> None:
    options = pasta("-4", "-6")
    assert (options.ipv4_only, options.ipv6_only) == (False, True)
    options = pasta("-6", "--ipv4-only")
    assert (options.ipv4_only, options.ipv6_only) == (True, False)


def test_remapping_none() -> None:
    options = pasta("--map-guest-addr", "none")
    assert options.map_guest_addr_v4 is None
    assert not options.no_map_gw
    options = pasta("--map-guest-addr", "192.0.2.9", "--map-guest-addr", "none")
    assert options.map_guest_addr_v4 is None
    options = pasta(
        *("--map-host-loopback", "192.0.2.9", "--map-host-loopback", "none"),
        *("--map-host-loopback", "fe80::5"),
    )
    assert options.no_map_gw
    assert options.map_host_loopback_v4 is None
    assert options.map_host_loopback_v6 == packed("fe80::5")


# Implications, conflicts


def test_implications() -> None:
    assert pasta("--no-icmp").no_ndp
    assert pasta("--config-net").no_ra
    assert not pasta("--no-ndp").no_icmp


def test_statistics_need_foreground_first() -> None:
    message = "Can't display statistics if not running in foreground"
    assert refused("--stats", "1", "-f") == message
    assert pasta("-f", "--stats", "2").stats == 2


def test_pasta_only_options() -> None:
    for words, name in (
        (("--config-net",), "--config-net"),
        (("--userns", "x"), "--userns"),
        (("--netns", "x"), "--netns"),
        (("--netns-only",), "--netns-only"),
        (("--no-netns-quit",), "--no-netns-quit"),
        (("--no-pidns",), "--no-pidns"),
        (("--ns-mac-addr", "bad"), "--ns-mac-addr"),
        (("--no-copy-routes",), "--no-copy-routes"),
        (("--no-copy-addrs",), "--no-copy-addrs"),
        (("-I", "x"), "-I"),
        (("--ns-ifname", "x"), "-I"),
    ):
        assert refused(*words, program="passt") == f"{name} is for pasta mode only"


def test_passt_takes_no_operand() -> None:
    assert refused("-f", "foo", "bar", program="passt") == "Extra non-option argument: foo"
    target = parse("passt", ["-f"]).target
    assert target is not None
    assert (target.kind, target.netns, target.userns, target.new_userns) == (MACHINE, "", "", True)


@pytest.mark.parametrize("name", ["--no-copy-routes", "--no-copy-addrs"])
def test_copy_options_need_config_net(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(name) == f"{name} needs --config-net"
    assert capfd.readouterr().err == f"{name} will be dropped soon\n"
    pasta(name, "--config-net")


@pytest.mark.parametrize(
    "other",
    [
        "--no-splice",
        "--outbound-if4=lo",
        "--outbound-if6=lo",
        "--ns-ifname=x",
        "--ns-mac-addr=02:00:00:00:00:01",
    ],
)
def test_splice_only_excludes_what_concerns_the_link(other: str) -> None:
    text = f"--splice-only is incompatible with {other.partition('=')[0]}"
    assert refused("--splice-only", other) == text
    assert refused(other, "--splice-only") == text


def test_following() -> None:
    """By default where the namespace is configured; of two options the last one counts."""
    assert pasta("--config-net").follows
    assert pasta("--follow").follows
    assert pasta("--no-follow", "--follow").follows
    assert pasta("--no-follow", "--config-net", "--follow").follows
    assert not pasta().follows
    assert not pasta("--config-net", "--no-follow").follows
    assert not pasta("--follow", "--no-follow").follows
    assert not pasta("--config-net", "--follow", "--no-follow").follows
    assert not pasta("--splice-only", "--no-follow").follows
    assert refused("--splice-only", "--follow") == "--splice-only is incompatible with --follow"
    assert refused("--follow", program="passt") == "--follow is for pasta mode only"
    assert refused("--no-follow", program="passt") == "--no-follow is for pasta mode only"


def test_splice_only_accepts_what_has_no_effect() -> None:
    words = ["-m", "1500", "-a", "192.0.2.1", "-g", "192.0.2.2", "--config-net"]
    options = pasta("--splice-only", *words)
    assert options.splice_only
    assert options.host_lo_to_ns_lo
    assert options.no_icmp
    assert options.no_ra


def test_no_splice_excludes_loopback_to_loopback() -> None:
    assert refused("--no-splice", "--host-lo-to-ns-lo") == (
        "--host-lo-to-ns-lo is incompatible with --no-splice"
    )
    assert parse("passt", ["--no-splice"]).no_splice


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("-T22", "-T"),
        ("--udp-ns=22", "-U"),
        ("--splice-only", "--splice-only"),
        ("--host-lo-to-ns-lo", "--host-lo-to-ns-lo"),
    ],
)
def test_outbound_rules_and_splicing_are_for_pasta(word: str, name: str) -> None:
    assert refused(word, program="passt") == f"{name} is for pasta mode only"


def test_rules_depend_on_what_the_kernel_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def rules(*words: str) -> list[str]:
        options = pasta("-u", "none", "-U", "none", *words, "true")
        return [str(rule) for rule in options.rules + options.rules_ns]

    assert rules("-t", "22", "-T", "53") == ["TCP [*]:22  =>  22 ", "TCP [*]%lo:53  =>  53 "]
    monkeypatch.setattr(resolve, "_has_ipv6", lambda: False)
    assert rules("-t", "22", "-T", "none") == ["TCP [0.0.0.0]:22  =>  22 "]
    monkeypatch.setattr(parse_module, "can_bind_to_device", lambda: False)
    assert rules("-t", "none", "-T", "53") == ["TCP [127.0.0.1]:53  =>  53 "]


def test_capabilities_of_rule_tables() -> None:
    assert pasta("true").rule_caps == 0x3F
    assert pasta("-4", "--no-udp", "true").rule_caps == 0x35
    assert parse("passt", ["-6", "--no-tcp"]).rule_caps == 0x2A


def test_stderr_option_warns(capfd: pytest.CaptureFixture[str]) -> None:
    exits("-e", "--version")
    assert capfd.readouterr().err == "--stderr will be dropped soon\n"


# Prefix lengths


@pytest.mark.parametrize(
    ("words", "length"),
    [
        ("", None),
        ("-a 10.0.0.1", 8),
        ("-a 172.16.0.1", 16),
        ("-a 192.0.2.1", 24),
        ("-a 240.0.0.1", 32),
        ("-a 192.0.2.1/26", 26),
        ("-a 10.0.2.100 -n 24", 24),
        ("-n 255.255.255.0 -a 10.0.2.100", 24),
        ("-n 24", 24),
        ("-n 0", None),
        ("-n 0 -a 192.0.2.1", 24),
        ("-a 10.0.0.1/0", 8),
        ("-a 10.0.0.1/25 -a 192.0.2.1", 24),
        ("-n 25 -n 24", 24),
        ("-a 2001:db8::1/72", None),
    ],
)
def test_ipv4_prefix(words: str, length: int | None) -> None:
    assert pasta(*words.split()).prefix_v4 == length


def test_ipv6_prefix() -> None:
    assert pasta("-a", "2001:db8::1/72").prefix_v6 == 72
    assert pasta("-a", "2001:db8::1").prefix_v6 is None


def test_several_addresses_of_one_version() -> None:
    """The last one is the guest's, as if it were alone; the others are kept in their order."""
    words = "-a 192.0.2.1/25 -a 2001:db8::1 -a 10.0.0.1 -a 192.0.2.3 -a 2001:db8::2/56"
    options = pasta(*words.split())
    assert (options.address_v4, options.prefix_v4) == (packed("192.0.2.3"), 24)
    assert options.more_v4 == [(packed("192.0.2.1"), 25), (packed("10.0.0.1"), 8)]
    assert (options.address_v6, options.prefix_v6) == (packed("2001:db8::2"), 56)
    assert options.more_v6 == [(packed("2001:db8::1"), None)]
    options = pasta("-n", "20", *["-a", "10.0.0.1", "-a", "10.0.0.2"])
    assert (options.more_v4, options.prefix_v4) == ([(packed("10.0.0.1"), 20)], 20)


def test_address_given_again() -> None:
    """Once more is not another one: its prefix is replaced, or its place."""
    options = pasta(*["-a", "192.0.2.1/25", "-a", "192.0.2.1/26"])
    assert (options.more_v4, options.prefix_v4) == ([], 26)
    options = pasta(*["-a", "192.0.2.1/25", "-a", "192.0.2.2", "-a", "192.0.2.1/27"])
    assert (options.address_v4, options.prefix_v4) == (packed("192.0.2.1"), 27)
    assert options.more_v4 == [(packed("192.0.2.2"), 24)]


@pytest.mark.parametrize("form", ["192.0.2.{}", "2001:db8::{}"])
def test_number_of_addresses_is_bounded(form: str) -> None:
    words = [word for number in range(1, 9) for word in ("-a", form.format(number))]
    assert pasta(*words).address_v4 or pasta(*words).address_v6
    one_more = form.format(9)
    assert refused(*words, "-a", one_more) == f"Too many addresses (maximum 8): {one_more}"


@pytest.mark.parametrize(
    "words",
    [
        "-a 192.0.2.1/24 -n 24",
        "-n 24 -a 192.0.2.1/24",
        "-n 24 -a 2001:db8::1/64",
        "-a 10.1.1.1/8 -n 0",
    ],
)
def test_prefix_given_twice(words: str) -> None:
    assert refused(*words.split()) == "Redundant prefix length specification"


# Targets


def test_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    found = target()
    assert (found.kind, found.executable, found.argv) == (SHELL, "/bin/zsh", ["-/bin/zsh"])
    assert found.spawns
    assert found.new_userns
    monkeypatch.setenv("SHELL", "")
    assert target().executable == "/bin/sh"
    monkeypatch.delenv("SHELL")
    assert target("--").executable == "/bin/sh"


def test_command_keeps_its_options() -> None:
    found = target("--config-net", "ip", "-6", "route")
    assert (found.kind, found.argv) == (COMMAND, ["ip", "-6", "route"])
    assert found.executable == "ip"


@pytest.mark.parametrize("words", [["./1234"], ["1234", "x"], ["+12"], [" 12"], ["١٢"], [""]])
def test_what_is_not_a_pid_is_a_command(words: list[str]) -> None:
    assert target(*words).kind == COMMAND


@pytest.mark.parametrize("words", [["1234"], ["--", "1234"], ["-d", "01234"]])
def test_pid(words: list[str]) -> None:
    found = target(*words)
    assert (found.kind, found.pid) == (PID, 1234)
    assert found.netns == "/proc/1234/ns/net"
    assert found.userns == "/proc/1234/ns/user"
    assert not found.new_userns
    assert not found.spawns


@pytest.mark.parametrize("word", ["0", "2147483648", "9" * 30, "9" * 5000])
def test_invalid_pid(word: str) -> None:
    assert refused(word) == f"Invalid PID {word}"


def test_largest_pid() -> None:
    assert target("2147483647").pid == 2147483647


@pytest.mark.parametrize(
    ("words", "userns", "new"),
    [
        ("true", "", True),
        ("--netns-only true", "", False),
        ("--userns /u true", "/u", False),
        ("--userns /u --netns-only true", "", False),
        ("--netns-only --userns /u true", "/u", False),
        ("--userns /u 12", "/u", False),
        ("--netns-only 12", "", False),
        ("--netns n", "", False),
        ("--netns n --userns /u", "/u", False),
        ("--netns n --netns-only", "", False),
    ],
)
def test_user_namespace(words: str, userns: str, new: bool) -> None:
    found = target(*words.split())
    assert (found.userns, found.new_userns) == (userns, new)


def test_netns() -> None:
    found = target("--netns", "demo")
    assert (found.kind, found.netns) == (NETNS, "/run/netns/demo")
    assert target("--netns", "./demo").netns == "./demo"
    message = "Both --netns and PID or command given"
    assert refused("--netns", "demo", "12") == message
    assert refused("--netns", "demo", "--", "ls") == message


def test_pid_namespace_is_for_commands() -> None:
    message = "--no-pidns is incompatible with PID or --netns"
    assert refused("--no-pidns", "12") == message
    assert refused("--no-pidns", "--netns", "x") == message
    assert pasta("--no-pidns", "true").no_pidns


def test_commands_run_in_foreground() -> None:
    assert pasta("true").foreground
    assert not pasta("12").foreground
    assert pasta("-f", "12").foreground


def test_when_the_summary_is_shown() -> None:
    assert pasta("12").show_summary
    assert not pasta("-q", "12").show_summary
    assert not pasta("true").show_summary
    assert pasta("-d", "true").show_summary


# The table and the attributes agree


def test_names_are_unique() -> None:
    longs = [option.long for option in TABLE]
    shorts = [option.short for option in TABLE if option.short]
    assert len(set(longs)) == len(longs)
    assert len(set(shorts)) == len(shorts)


SAMPLE = {
    "accel": "ebpf",
    "accel-credit": "128K",
    "accel-budget": "8M",
    "stats": "3",
    "log-size": "65536",
    "pcap-size": "8K",
    "max-memory": "1G",
    "runas": "7",
    "mtu": "1400",
    "address": "10.1.2.3/9",
    "netmask": "13",
    "mac-addr": "02:00:00:00:00:01",
    "gateway": "10.1.2.4",
    "interface": "lo",
    "outbound": "10.1.2.5",
    "map-host-loopback": "10.1.2.6",
    "map-guest-addr": "10.1.2.7",
    "dns": "10.1.2.8",
    "dns-forward": "10.1.2.9",
    "dns-host": "127.0.0.53",
    "dhcp-opt": "42:10.1.2.10",
    "dhcpv6-opt": "31:2001:db8::1",
    "ra-opt": "37:https://portal.example/",
    "tcp-ports": "22",
    "udp-ports": "53",
    "tcp-ns": "22",
    "udp-ns": "53",
    "ns-mac-addr": "02:00:00:00:00:02",
    "fd": "3",
}


@pytest.mark.parametrize("long", [option.long for option in TABLE])
def test_every_option_has_an_effect(long: str, capfd: pytest.CaptureFixture[str]) -> None:
    option = next(option for option in TABLE if option.long == long)
    words = ["-f", "--config-net"] if long in ("stats", "no-copy-routes", "no-copy-addrs") else []
    words += ["--accel=ebpf"] if long.startswith("accel-") else []
    # A network namespace is joined in the foreground only if asked to.
    operands = [] if long in ("netns", "no-pidns") or option.modes == ("passt",) else ["1"]
    mode = "pasta" if "pasta" in option.modes else "passt"
    before = parse(mode, (*words, *operands))
    words.append(f"--{long}={SAMPLE.get(long, 'x')}" if option.arg else f"--{long}")
    try:
        after = parse(mode, (*words, *operands))
    except ImmediateExit as outcome:
        assert outcome.text
        return
    if long == "stderr":
        assert "dropped soon" in capfd.readouterr().err
        return
    changed = [
        name
        for name in Options.__slots__
        if name not in ("target", "rules") and getattr(before, name) != getattr(after, name)
    ]
    assert changed


#: Any word that execve(2) can pass, and words that get far.
WORD = st.one_of(
    st.sampled_from(
        [f"--{option.long}" for option in TABLE if option.long not in ("help", "version")]
        + [f"-{option.short}" for option in TABLE if option.short not in ("", "h")]
        + [
            "none",
            "lo",
            "192.0.2.1",
            "192.0.2.1/24",
            "2001:db8::1",
            "1500",
            "22:23",
            "--",
            "x",
            "12",
        ]
    ),
    st.text("-=abcdefghtunmo0123456789:./", max_size=12),
    st.binary(max_size=12).filter(lambda raw: b"\0" not in raw).map(os.fsdecode),
)


@settings(max_examples=300)
@given(st.sampled_from(["pasta", "passt", "other"]), st.lists(WORD, max_size=8))
def test_nothing_but_the_two_outcomes(program: str, words: list[str]) -> None:
    try:
        options = parse(program, words)
    except UsageError as error:
        assert error.message
    except ImmediateExit as outcome:
        assert outcome.text
    else:
        assert options.mode == program
        assert options.target is not None
        assert (options.target.kind == MACHINE) == (program == "passt")
