"""pesto: what its options do to the tables of a server, and what it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from passt.userspace.cli import pesto
from passt.userspace.config import ports
from passt.userspace.control import manpage, protocol, server
from passt.userspace.control.options import TABLE, parse, usage_text
from passt.userspace.control.show import table_lines
from passt.userspace.flow.rules import IPPROTO_UDP, Rule, RuleError, RuleTable
from tests.unit.control_rig import PASTA, Journal, Service, tcp

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pesto.1"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ports everywhere, and a server that does not log to our standard error."""
    monkeypatch.setattr(ports, "ephemeral_ports", lambda: (32768, 60999))
    monkeypatch.setattr(server, "log", Journal())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control")


@pytest.fixture
def service(path: str) -> Iterator[Service]:
    service = Service(path)
    yield service
    service.close()


@pytest.fixture
def run(path: str, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run pesto with the words of a line, and the path of the server behind them."""

    def run(line: str) -> Outcome:
        status = pesto.run("pesto", [*line.split(), path])
        return Outcome(status, *capfd.readouterr())

    return run


def udp(port: int) -> Rule:
    return Rule(IPPROTO_UDP, port, port, port)


def lo(port: int) -> Rule:
    """A TCP rule as ``-T`` makes it."""
    return tcp(port, ifname="lo")


#: The tables that most tests begin with.
START = ([tcp(80, to=8080), udp(53), tcp(4000, 4010)], [lo(7)])


def start(service: Service) -> None:
    for table, rules in zip(service.tables, START, strict=True):
        table.extend(rules)


def shown(*tables: list[Rule]) -> list[list[str]]:
    return [[str(rule) for rule in table] for table in tables]


# Changes.


@pytest.mark.parametrize(
    ("line", "inbound", "outbound"),
    [
        ("-t 1", [tcp(1)], START[1]),
        ("-t 1 -u 2 -t 3", [tcp(1), udp(2), tcp(3)], START[1]),
        ("-T 1", START[0], [lo(1)]),
        ("-t 1 -U 2", [tcp(1)], [Rule(IPPROTO_UDP, 2, 2, 2, None, "lo")]),
        ("-t none", [], START[1]),
        ("-u none -t 77", [tcp(77)], START[1]),
        ("-A -t 1", [*START[0], tcp(1)], START[1]),
        ("-A -T 1 -t 2", [*START[0], tcp(2)], [*START[1], lo(1)]),
        ("-D -t 80:8080", START[0][1:], START[1]),
        ("-D -t 4000-4010 -u 53 -T 7", START[0][:1], []),
        ("-D -t 80:8080 -A -t 80:8081", [*START[0][1:], tcp(80, to=8081)], START[1]),
        ("-A -t 1 -D -t 1", START[0], START[1]),
        ("-C HOST", [], START[1]),
        ("-C SPLICE -C HOST", [], []),
        ("-C HOST -t 8 -C HOST -t 9", [tcp(9)], START[1]),
        ("-C HOST -t 8 -t 9", [tcp(8), tcp(9)], START[1]),
        ("-C SPLICE -t 8", [tcp(8)], []),
        ("-D -C HOST -A -t 9", [tcp(9)], START[1]),
        ("-t 1 -A -t 2 -T 3", [tcp(1), tcp(2)], [*START[1], lo(3)]),
        ("-A -t 2000 -C HOST -A -T 3000 -t 2001 -D -t 2001", [], [*START[1], lo(3000)]),
        ("-A", *START),
        ("-t 1-9,~5", [tcp(1, 4), tcp(6, 9)], START[1]),
        ("--add --tcp-ports=1", [*START[0], tcp(1)], START[1]),
        ("--clear HOST --delete --tcp-ns 7", [], []),
    ],
)
def test_changes(
    service: Service, run: Run, line: str, inbound: list[Rule], outbound: list[Rule]
) -> None:
    start(service)
    assert run(line) == (0, "", "")
    assert service.shown() == shown(inbound, outbound)
    assert service.replaced == 1


def test_rules_split_by_exclusion_are_deleted_by_the_same_words(service: Service, run: Run) -> None:
    words = "-t [::1]/100-200:300-400,~150,~160-170 -u ~9"
    assert run(words) == (0, "", "")
    assert len(service.tables[0]) == 6
    assert run(f"-D {words}") == (0, "", "")
    assert service.shown() == [[], []]


# Texts as observed of pesto 2026_10_02.
@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "-D -t 4000",
            (
                f"Specifier {tcp(4000)} conflicts with rule {tcp(4000, 4010)}, "
                f"but doesn't match it, can't delete\nUnable to delete rule {tcp(4000)}\n"
            ),
        ),
        (
            "-A -t 1 -D -t 9",
            f"Couldn't find forwarding rule to delete: {tcp(9)}\nUnable to delete rule {tcp(9)}\n",
        ),
        (
            "-A -t 80:8080",
            (
                f"Forwarding configuration conflict: {tcp(80, to=8080)} versus {tcp(80, to=8080)}\n"
                f"Unable to add rule {tcp(80, to=8080)}\n"
            ),
        ),
        (
            "-A -t 1 -t 4010",
            (
                f"Forwarding configuration conflict: {tcp(4010)} versus {tcp(4000, 4010)}\n"
                f"Unable to add rule {tcp(4010)}\n"
            ),
        ),
        ("-C HOST -C FOO", "Unsupported pif name FOO\n"),
        ("-C TAP", "Unsupported pif name TAP\n"),
        ("-C host", "Unsupported pif name host\n"),
        ("-t foo", "Invalid port specifier 'foo'\n"),
        ("-A -t none", "-t none conflicts with previous options\n"),
        ("-t 1 -t none", "-t none conflicts with previous options\n"),
        ("-T 127.0.0.1/80", "Listening address not allowed for -T 127.0.0.1/80\n"),
    ],
)
def test_impossible_changes_change_nothing(
    service: Service, run: Run, line: str, text: str
) -> None:
    start(service)
    assert run(line) == (1, "", text)
    assert service.shown() == shown(*START)
    assert service.replaced == 0


def test_passt_has_no_outbound_table(path: str, run: Run) -> None:
    service = Service(path, pasta=False)
    try:
        assert run("-A -T 1") == (1, "", "Can't use -T, no outbound interface\n")
        assert run("-C SPLICE") == (1, "", "Unsupported pif name SPLICE\n")
        text = "'auto' port forwarding is only allowed for pasta\n"
        assert run("-t auto") == (1, "", text)
        assert run("-s -t 1") == (
            0,
            (
                f"Previous configuration ({path})\n  HOST\n"
                f"Updated configuration ({path})\n  HOST\n    TCP [*]:1  =>  1 \n"
            ),
            "",
        )
    finally:
        service.close()


def test_ports_that_cannot_be_opened(service: Service, run: Run, path: str) -> None:
    service.problems = ["Listen failed for HOST TCP port */80: Address already in use"]
    assert run("-s -t 80") == (
        1,
        (
            f"Previous configuration ({path})\n  HOST\n  SPLICE\n"
            f"Updated configuration ({path})\n  HOST\n    TCP [*]:80  =>  80 \n  SPLICE\n"
        ),
        "Listen failed for HOST TCP port */80: Address already in use\n",
    )


def test_refusal_by_the_server(
    service: Service, run: Run, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may know better than we do."""

    class Strict(RuleTable):
        __slots__ = ()

        def add(self, rule: Rule) -> None:
            raise RuleError(f"Not this one\n{rule}")

    monkeypatch.setattr(protocol, "RuleTable", Strict)
    assert run("-s -A -t 1") == (
        1,
        f"Previous configuration ({path})\n  HOST\n  SPLICE\n",
        "Not this one\nTCP [*]:1  =>  1 \n",
    )
    assert service.replaced == 0


# Output.

TEXT = """\
passt/pasta configuration ({path})
  HOST
    TCP [*]:80  =>  8080 
    UDP [*]:53  =>  53 
    TCP [*]:4000-4010  =>  4000-4010 
  SPLICE
    TCP [*]%lo:7  =>  7 
"""  # noqa: W291 - one blank always follows the target


@pytest.mark.parametrize("line", ["", "-s", "--show"])
def test_tables_are_shown(service: Service, run: Run, path: str, line: str) -> None:
    start(service)
    assert run(line) == (0, TEXT.format(path=path), "")
    assert service.replaced == 0


def test_debug(service: Service, run: Run) -> None:
    start(service)
    assert run("-d").err == (
        "PIF 1: HOST, 3 rules, capabilities 0x3f: IPv4 IPv6 TCP UDP scan ifname\n"
        "PIF 3: SPLICE, 1 rules, capabilities 0x3f: IPv4 IPv6 TCP UDP scan ifname\n"
    )


def test_json(service: Service, run: Run, path: str) -> None:
    service.tables[0].extend(
        [
            Rule(17, 5, 9, 6, bytes((192, 0, 2, 1)), "eth0", bytes((198, 51, 100, 7)), 4),
            tcp(1, flags=2),
        ]
    )
    outcome = run("--json")
    assert (outcome.status, outcome.err) == (0, "")
    capabilities = ["ipv4", "ipv6", "tcp", "udp", "auto", "interface"]
    assert json.loads(outcome.out) == {
        "path": path,
        "tables": [
            {
                "pif": "HOST",
                "id": 1,
                "capabilities": capabilities,
                "rules": [
                    {
                        "protocol": "udp",
                        "address": "192.0.2.1",
                        "interface": "eth0",
                        "first": 5,
                        "last": 9,
                        "target_address": "198.51.100.7",
                        "target_first": 6,
                        "target_last": 10,
                        "best_effort": False,
                        "auto": True,
                    },
                    {
                        "protocol": "tcp",
                        "address": "*",
                        "interface": None,
                        "first": 1,
                        "last": 1,
                        "target_address": None,
                        "target_first": 1,
                        "target_last": 1,
                        "best_effort": True,
                        "auto": False,
                    },
                ],
            },
            {"pif": "SPLICE", "id": 3, "capabilities": capabilities, "rules": []},
        ],
    }


@pytest.mark.parametrize("line", ["--json", "--json -s"])
def test_json_of_changes(service: Service, run: Run, line: str) -> None:
    service.tables[0].add(tcp(1))
    seen = json.loads(run(f"{line} -A -t 2").out)
    assert [rule["first"] for rule in seen["tables"][0]["rules"]] == [1, 2]
    if "-s" in line:
        assert [rule["first"] for rule in seen["previous"][0]["rules"]] == [1]
    else:
        assert "previous" not in seen


def test_json_is_not_printed_for_changes_not_made(service: Service, run: Run) -> None:
    assert run("--json -D -t 1").out == ""


def test_terminals_are_safe_from_names() -> None:
    table = RuleTable(1, PASTA)
    table.add(tcp(1, ifname=os.fsdecode(b"\xff\xc2\x9b\x1b[2J")))
    assert table_lines([table]) == ["  HOST", r"    TCP [*]%\xff\xc2\x9b\x1b[2J:1  =>  1 "]


@pytest.mark.parametrize("line", ["", "--json", "-s -A", "--help", "--version"])
def test_output_that_nobody_reads(service: Service, path: str, line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        assert pesto.run("pesto", [*line.split(), path]) == 1
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)


# The command line.


@pytest.mark.parametrize(
    "line",
    [
        "P -A -t 1 -s",
        "-A P -t 1 -s",
        "-A -t 1 -s P",
        "-A -t 1 -s -- P",
        "-A -t1 -s P --",
        "-sAt1 P",
    ],
)
def test_options_may_follow_the_path(line: str) -> None:
    request = parse("pesto", line.split())
    assert (request.path, request.show) == ("P", True)
    assert request.steps == [("-A", ""), ("-t", "1")]


def test_words_after_dashes_are_no_options() -> None:
    assert parse("pesto", ["-s", "--", "-A"]).path == "-A"
    assert parse("pesto", ["-t", "--", "P"]).steps == [("-t", "--")]


@pytest.mark.parametrize("line", ["", "a b", "-s", "-- a b", "a -s b", "a -- -s"])
def test_there_is_one_path(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert pesto.run("pesto", line.split()) == 1
    assert capfd.readouterr() == ("", usage_text())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-Z P", "pesto: invalid option -- 'Z'"),
        ("--nope P", "pesto: unrecognized option '--nope'"),
        ("P -t", "pesto: option requires an argument -- 't'"),
        ("--tcp P", "pesto: option '--tcp' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns'"),
    ],
)
def test_options_that_do_not_exist(line: str, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert pesto.run("pesto", line.split()) == 1
    assert capfd.readouterr() == ("", f"{text}\n{usage_text()}")


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert pesto.run("pesto", ["-h", "-Z"]) == 0
    assert capfd.readouterr() == (usage_text(), "")
    assert pesto.run("pesto", ["--version"]) == 0
    assert re.match(r"pesto \d+\.\d+\S*\nGNU General", capfd.readouterr().out)


def test_nobody_is_there(path: str, run: Run) -> None:
    assert run("") == (1, "", f"Failed to connect to {path}: No such file or directory\n")


def test_usage_fits_a_terminal() -> None:
    lines = usage_text().splitlines()
    assert max(map(len, lines)) <= 79
    assert all(f"--{option.long}" in usage_text() for option in TABLE)


def test_installed_as_a_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["pesto"] == f"{pesto.__name__}:main"


def test_names_are_those_of_the_server_options() -> None:
    from passt.userspace.config.catalogue import TABLE as PASTA_TABLE

    known = {option.long: option.short for option in PASTA_TABLE}
    for name in ("tcp-ports", "udp-ports", "tcp-ns", "udp-ns", "debug", "help", "version"):
        (own,) = [option for option in TABLE if option.long == name]
        assert own.short == known[name]


# The manual page.


def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == manpage.manual_page(), (
        "run: python -m passt.userspace.control.manpage docs/pesto.1"
    )


def test_page_can_be_formatted() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff")
    done = subprocess.run(
        [groff, "-man", "-Tascii", "-ww", "-P-c"],
        input=manpage.manual_page(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "--tcp-ports SPEC" in re.sub(".\b", "", done.stdout)


def test_page_names_every_option() -> None:
    page = manpage.manual_page()
    assert not re.search(r"(?<!\\)-", page)
    for option in TABLE:
        assert f"\\fB--{option.long}\\fR" in page.replace("\\-", "-")


def test_generator_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pesto.1"
    assert manpage.main([str(page)]) == 0
    assert page.read_text(encoding="utf-8") == manpage.manual_page()
    assert manpage.main([]) == 0
    assert capsys.readouterr().out == manpage.manual_page()
