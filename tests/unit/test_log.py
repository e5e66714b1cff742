"""Where messages go in each phase, how they look, and that nothing can go wrong with them."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace import log

STATE = {
    "debug_on": False,
    "trace_on": False,
    "_threshold": log.INFO,
    "_level": log.INFO,
    "_debug": False,
    "_stderr": True,
    "_program": "",
    "_file": None,
    "_syslog": None,
    "_watch": None,
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start each test in the first phase, with a system log that does not exist."""
    for name, value in STATE.items():
        monkeypatch.setattr(log, name, value)
    monkeypatch.setattr(log, "_windows", {})
    monkeypatch.setattr(log, "_SYSLOG_PATH", str(tmp_path / "no-such-log"))


def say_all() -> None:
    log.err("an error")
    log.warn("a warning")
    log.info("information")
    log.debug("detail")
    log.trace("packet")


ALL = ["an error", "a warning", "information", "detail", "packet"]


def test_before_setup(capfd: pytest.CaptureFixture[str]) -> None:
    say_all()
    assert capfd.readouterr().err.splitlines() == ALL[:3]


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 3), ({"quiet": True}, 2), ({"debug": True}, 4), ({"trace": True}, 5)],
)
def test_levels(options: dict[str, bool], count: int, capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta", **options)  # type: ignore[arg-type]
    say_all()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[-1] for line in lines] == ALL[:count]
    assert log.debug_on is (count >= 4)
    assert log.trace_on is (count >= 5)


def test_debug_lines_carry_the_time(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta", debug=True)
    log.info("text")
    assert re.fullmatch(r"\d+\.\d{4}: text\n", capfd.readouterr().err)


def test_time_has_four_decimals(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log.setup("pasta", debug=True)
    monkeypatch.setattr(log, "_started", 5)
    for moment in (5, 5 + 123_456, 5 + 1_000_000_000, 5 + 61_009_950_000):
        monkeypatch.setattr(log, "monotonic_ns", lambda moment=moment: moment)
        log.err("x")
    stamps = [line.split(":")[0] for line in capfd.readouterr().err.splitlines()]
    assert stamps == ["0.0000", "0.0001", "1.0000", "61.0099"]


def test_detached_without_any_log(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta", debug=True)
    assert log.debug_on
    log.detach()
    say_all()
    assert capfd.readouterr().err == ""
    # Nothing is worth formatting any more.
    assert not log.debug_on


def test_command_has_standard_error_for_itself(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta")
    log.command_started()
    say_all()
    assert capfd.readouterr().err == ""


def test_debugging_goes_on_beside_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta", debug=True)
    log.command_started()
    log.debug("detail")
    assert capfd.readouterr().err.endswith(": detail\n")


def test_log_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    log.setup("pasta", trace=True, path=str(path), executable="/usr/bin/pasta")
    say_all()
    log.command_started()
    log.info("later")
    log.close()
    # No time on standard error, since the file has it; and nothing once the command runs.
    assert capfd.readouterr().err.splitlines() == ALL
    header, *entries = path.read_text().splitlines()
    assert re.fullmatch(rf"pasta .*: /usr/bin/pasta \({os.getpid()}\)", header)
    assert [re.sub(r"^\d+\.\d{4}: ", "", entry) for entry in entries] == [
        "ERROR:   an error",
        "WARNING: a warning",
        "info:    information",
        "         detail",
        "         packet",
        "info:    later",
    ]


def test_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        log.setup("pasta", path=str(tmp_path / "none" / "log"))


@pytest.fixture
def syslog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """A system log."""
    path = str(tmp_path / "log")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(path)
    server.setblocking(False)
    monkeypatch.setattr(log, "_SYSLOG_PATH", path)
    return server


def drain(server: socket.socket) -> list[bytes]:
    messages = []
    try:
        while True:
            messages.append(server.recv(65536))
    except BlockingIOError:
        return messages


def test_system_log(syslog: socket.socket, capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("pasta")
    say_all()
    log.detach()
    log.info("later")
    assert drain(syslog) == [
        b"<3> pasta: an error\n",
        b"<4> pasta: a warning\n",
        b"<6> pasta: information\n",
        b"<6> pasta: later\n",
    ]
    assert capfd.readouterr().err.splitlines() == ALL[:3]


@pytest.mark.parametrize("options", [{"debug": True}, {"path": "file"}])
def test_system_log_is_replaced(
    syslog: socket.socket, tmp_path: Path, options: dict[str, object]
) -> None:
    if "path" in options:
        options = {"path": str(tmp_path / "file")}
    log.setup("pasta", **options)  # type: ignore[arg-type]
    say_all()
    assert drain(syslog) == []


def test_system_log_full_or_gone(syslog: socket.socket) -> None:
    log.setup("pasta")
    log.detach()
    for number in range(20_000):
        log.info("filling %d", number)
    received = len(drain(syslog))
    assert 0 < received < 20_000
    syslog.close()
    log.info("nobody hears this")
    assert log._syslog is not None


def test_standard_error_gone() -> None:
    saved = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.dup2(writer, 2)
        log.err("nobody hears this")
        os.close(2)
        log.err("nor this")
        assert not log.write_fully(2, b"x")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(writer)


def test_formats(capfd: pytest.CaptureFixture[str]) -> None:
    log.err("100%")
    log.err("%s has %d", "x", 3)
    log.err("%d", "no number")
    log.err("no place", 1)
    assert capfd.readouterr().err.splitlines() == [
        "100%",
        "x has 3",
        "%d ('no number',)",
        "no place (1,)",
    ]


def test_arguments_are_not_formatted_unless_printed() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("formatted")

    log.debug("%s", Costly())
    log.limited("here", log.DEBUG, "%s", Costly())
    with pytest.raises(AssertionError):
        log.info("%s", Costly())


def test_control_characters_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    log.err("a\nb\x1b[31m\x9b é \t")
    assert capfd.readouterr().err == "a\\x0ab\\x1b[31m\\x9b é \\x09\n"


def test_file_names_come_out_as_they_went_in(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log.err("%s", os.fsdecode(b"/tmp/\xff"))
    log.err("%s", "\ud800")
    assert capfdbinary.readouterr().err == b"/tmp/\xff\n\\ud800\n"


@given(st.text(), st.lists(st.one_of(st.text(), st.integers(), st.none()), max_size=3))
def test_nothing_raises(msg: str, args: list[object]) -> None:
    log.err(msg, *args)
    log.limited("here", log.INFO, msg, *args)
    # One window is enough for the second kind.
    assert log._windows["here"][1] <= log.BURST


class Clock:
    """A clock that a test sets, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(log, "monotonic_ns", lambda: int(self.seconds * 1e9))


def test_limit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    for number in range(20):
        log.limited("frag", log.WARNING, "fragment %d", number)
    expected = [f"fragment {number}" for number in range(5)]
    expected.append("(suppressing further similar messages)")
    assert capfd.readouterr().err.splitlines() == expected
    # The window lasts while the current second is not more than one after its start.
    clock.seconds = 101.9
    log.limited("frag", log.WARNING, "fragment 20")
    assert capfd.readouterr().err == ""
    clock.seconds = 102.0
    log.limited("frag", log.WARNING, "fragment 21")
    log.limited("frag", log.WARNING, "fragment 22")
    assert capfd.readouterr().err.splitlines() == [
        "fragment 21",
        "(suppressed 16 similar messages)",
        "fragment 22",
    ]


def test_limits_are_per_key(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        log.limited("a", log.INFO, "from a")
    log.limited("b", log.INFO, "from b")
    assert capfd.readouterr().err.splitlines() == ["from a"] * 5 + ["from b"]


def test_below_the_limit_nothing_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    for _ in range(5):
        log.limited("a", log.INFO, "x")
    clock.seconds += 10
    log.limited("a", log.INFO, "y")
    assert capfd.readouterr().err.splitlines() == ["x"] * 5 + ["y"]


# Readers of standard error that do not read.


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def test_full_pipe_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = full_pipe()
    monkeypatch.setattr(log, "_STDERR", writer)
    log.setup("pasta")
    for _ in range(10):
        log.err("lost")
        log.to_stderr(bytes(100000))
    left = 65536
    while left:
        left -= len(os.read(reader, left))
    log.err("found")
    assert os.read(reader, 100) == b"found\n"
    os.close(reader)
    os.close(writer)


def test_long_text_goes_as_far_as_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(log, "_STDERR", writer)
    log.setup("pasta")
    log.to_stderr(b"x" * 100000)
    assert os.read(reader, 100000) == b"x" * 65536
    os.close(reader)
    log.to_stderr(b"nobody is there")
    os.close(writer)


def test_file_as_standard_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "errors"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(log, "_STDERR", fd)
    log.setup("pasta")
    log.err("kept")
    assert path.read_bytes() == b"kept\n"
    os.close(fd)
