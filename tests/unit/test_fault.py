"""Reports of what nobody expected, made without opening or importing anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from passt.userspace import fault

TREE = Path(__file__).parents[2]

#: From here on, opening and importing end the process with status 99.
GUARD = """
import _thread, os, sys
from passt.userspace import fault, log
fault.install()
def guard(event, args):
    if event in ("open", "import", "os.listdir", "compile", "exec"):
        os.write(1, f"{event} {args}".encode())
        os._exit(99)
sys.addaudithook(guard)
"""


def run(body: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", GUARD + textwrap.dedent(body)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_report(capfd: pytest.CaptureFixture[str]) -> None:
    def inner() -> None:
        raise KeyError("key")

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise ValueError("value\nand more") from error

    try:
        outer()
    except ValueError as error:
        fault.report(error)
    lines = capfd.readouterr().err.splitlines()
    heads = [line for line in lines if not line.startswith("  ")]
    assert heads == [
        "Traceback (most recent call last):",
        "KeyError: 'key'",
        "The above exception was the direct cause of the following exception:",
        "Traceback (most recent call last):",
        "ValueError: value",
        "and more",
    ]
    here = f'  File "{__file__}", line '
    assert [line.rpartition(" ")[2] for line in lines if line.startswith(here)] == [
        "outer",
        "inner",
        "test_report",
        "outer",
    ]


def test_context_unless_suppressed(capfd: pytest.CaptureFixture[str]) -> None:
    for suppressed in (False, True):
        try:
            try:
                raise KeyError("first")
            except KeyError:
                if suppressed:
                    raise ValueError("second") from None
                raise ValueError("second")  # noqa: B904
        except ValueError as error:
            fault.report(error)
        assert ("KeyError: 'first'" in capfd.readouterr().err) is not suppressed


def test_deep_and_endless_ones_are_cut(capfd: pytest.CaptureFixture[str]) -> None:
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise OSError("deep")

    try:
        deep(200)
    except OSError as error:
        error.__cause__ = OSError("cause")
        error.__cause__.__cause__ = error
        fault.report(error)
    lines = capfd.readouterr().err.splitlines()
    assert lines.count("  ...") == 2
    assert len(lines) < 130


def test_exception_without_text(capfd: pytest.CaptureFixture[str]) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    fault.report(OddError())
    assert capfd.readouterr().err.splitlines()[-1] == "OddError: (no text)"


def test_control_characters_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    fault.report(OSError("\x1b[2J"))
    assert capfd.readouterr().err.splitlines()[-1] == "OSError: \\x1b[2J"


def test_end_of_the_program() -> None:
    done = run("1 / 0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_end_of_a_thread_and_of_an_object() -> None:
    done = run(
        """
        lock = _thread.allocate_lock()
        lock.acquire()
        class Odd:
            def __del__(self):
                raise RuntimeError("finalizer")
        def thread():
            del globals()["odd"]
            lock.release()
            raise RuntimeError("thread")
        odd = Odd()
        _thread.start_new_thread(thread, ())
        lock.acquire()
        while _thread._count():
            pass
        os._exit(0)
        """
    )
    assert done.returncode == 0, done.stdout
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("RuntimeError")] == [
        "RuntimeError: finalizer",
        "RuntimeError: thread",
    ]


@pytest.mark.parametrize("options", [("-Wd",), ("-Werror",), ("-Xdev",), ()])
def test_warnings_are_dropped(options: tuple[str, ...]) -> None:
    """Even those of the interpreter, for sockets that nobody closed."""
    body = "import socket\n" + GUARD + "socket.socket()\nos._exit(0)"
    done = subprocess.run(
        [sys.executable, *options, "-c", body],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
