"""Texts made from the option table: usage, version, manual page; and reports of failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from passt.userspace.config import manpage
from passt.userspace.config.catalogue import TABLE
from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.config.usage import report, usage_text, version_text
from passt.version import VERSION

DOCS = Path(__file__).parents[2] / "docs"
MODES = pytest.mark.parametrize("mode", ["pasta", "passt"])


def named_in(text: str) -> set[str]:
    return set(re.findall(r"^(?:  -\w, |      )--([a-z0-9-]+)", text, re.MULTILINE))


def test_usage_names_every_option_of_the_mode() -> None:
    shown = {option.long for option in TABLE if not option.hidden and "pasta" in option.modes}
    assert named_in(usage_text("pasta")) == shown
    assert "no-dhcp-dns" not in shown
    passt = {option.long for option in TABLE if not option.hidden and "passt" in option.modes}
    assert named_in(usage_text("passt")) == passt
    assert "config-net" not in passt


def test_usage_wording_follows_the_whole_path() -> None:
    assert usage_text("/usr/bin/pasta").startswith("Usage: pasta [OPTION]... [COMMAND [ARG]...]\n")
    assert usage_text("/opt/pasta/passt").startswith("Usage: passt [OPTION]... [COMMAND")
    assert usage_text("/usr/bin/passt").startswith("Usage: passt [OPTION]...\n\n")


def test_usage_fits_a_terminal() -> None:
    lines = usage_text("pasta").splitlines()
    assert max(len(line) for line in lines) <= 80
    assert all(line == line.rstrip() for line in lines)


def test_usage_tells_defaults_and_repetition() -> None:
    text = " ".join(usage_text("pasta").split())
    assert "guest's interface, up to 65521; 0 leaves it alone (default: 65520)" in text
    assert "Address of the guest (may be repeated; default:" in text
    assert "Router address for the guest (once for each IP version; default:" in text
    assert "(may be repeated; default: auto in pasta, none in passt)" in text


def test_version() -> None:
    lines = version_text("passt").splitlines()
    assert lines[0] == f"passt {VERSION}"
    assert "NO WARRANTY" in lines[-1]


def test_report_of_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(UsageError("one\ntwo"), "pasta") == 1
    output = capfd.readouterr()
    assert output.err == "one\ntwo\n"
    assert output.out == ""


def test_report_of_an_unknown_option(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(UsageError("pasta: invalid option -- 'Z'", show_usage=True), "pasta") == 1
    output = capfd.readouterr()
    assert output.err == f"pasta: invalid option -- 'Z'\n{usage_text('pasta')}"
    assert output.out == ""


def test_report_of_what_was_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(ImmediateExit("text\n"), "pasta") == 0
    output = capfd.readouterr()
    assert output.out == "text\n"
    assert output.err == ""


def test_report_without_a_reader() -> None:
    """A closed pipe costs the status, not a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    try:
        os.dup2(writer, 1)
        assert report(ImmediateExit("text\n"), "pasta") == 1
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)


@MODES
def test_committed_page_is_up_to_date(mode: str) -> None:
    assert (DOCS / f"{mode}.1").read_text(encoding="utf-8") == manpage.manual_page(mode), (
        f"run: python -m passt.userspace.config.manpage {mode} docs/{mode}.1"
    )


@MODES
def test_page_names_every_option(mode: str) -> None:
    page = manpage.manual_page(mode).replace("\\-", "-")
    for option in TABLE:
        shown = mode in option.modes and not option.hidden
        # As the head of a paragraph: in the text of others it may be mentioned.
        assert (f"\\fB--{option.long}\\fR" in page) >= shown, option.long
        assert (f".TP\n\\fB--{option.long}\\fR" in page) is (shown and not option.short)


@MODES
def test_page_escapes_dashes_and_requests(mode: str) -> None:
    body = manpage.manual_page(mode).split(".SH OPTIONS\n")[1].split(".SH EXIT STATUS")[0]
    assert not re.search(r"(?<!\\)-", body)
    assert "`" not in body
    requests = {line.split()[0] for line in body.splitlines() if line[:1] in ".'"}
    assert requests == {".TP"}


@MODES
def test_page_can_be_formatted(mode: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff")
    done = subprocess.run(
        [groff, "-man", "-Tascii", "-ww", "-P-c"],
        input=manpage.manual_page(mode),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "--map-host-loopback ADDR|none" in re.sub(".\b", "", done.stdout)


def test_generator_writes_a_file(tmp_path: Path) -> None:
    page = tmp_path / "pasta.1"
    assert manpage.main(["pasta", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == manpage.manual_page()
