"""Features of newer interpreters that the sandbox has no room for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TREE = Path(__file__).parents[2]

#: An interpreter whose compiler follows the switch, as that of Python 3.14.
FAKE = """
import os, sys, types
sys._jit = types.SimpleNamespace(is_enabled=lambda: os.environ.get("PYTHON_JIT") in SWITCHED_ON)
SWITCHED_ON = {on}
from passt.kernel import interpreter
from passt.kernel.command import original_environment
"""


def run(path: Path, on: str, body: str, **environ: str) -> subprocess.CompletedProcess[str]:
    script = path / "script.py"
    script.write_text(FAKE.format(on=on) + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-S", str(script), "word", "-x"],
        env={"PYTHONPATH": str(TREE), "LC_ALL": "C.UTF-8", **environ},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


BODY = """
print(os.getpid(), flush=True)
interpreter.start_anew_without_compiler()
environ = original_environment()
print(os.environ.get("PYTHON_JIT"), sys.argv[1:])
interpreter.restore(environ)
print(sorted(environ))
print(environ.get(b"PYTHON_JIT"))
"""
VARIABLES = "[b'LC_ALL', b'PYTHONPATH'"


def test_compiler_that_is_on(tmp_path: Path) -> None:
    """The same process, with the same words, and for commands with the same environment."""
    lines = run(tmp_path, "('1',)", BODY, PYTHON_JIT="1").stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[2:] == ["0 ['word', '-x']", VARIABLES + ", b'PYTHON_JIT']", "b'1'"]


def test_compiler_that_is_on_by_default(tmp_path: Path) -> None:
    lines = run(tmp_path, "('1', None)", BODY).stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[2:] == ["0 ['word', '-x']", VARIABLES + "]", "None"]


def test_compiler_that_is_off(tmp_path: Path) -> None:
    lines = run(tmp_path, "()", BODY, PYTHON_JIT="1").stdout.splitlines()
    assert lines[1:] == ["1 ['word', '-x']", VARIABLES + ", b'PYTHON_JIT']", "b'1'"]


def test_compiler_that_cannot_be_switched_off(tmp_path: Path) -> None:
    """Once more would be of no use."""
    done = run(tmp_path, "('1', '0')", BODY, PYTHON_JIT="1")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert "cannot be switched off by PYTHON_JIT=0" in done.stderr


def test_perf_support_ends() -> None:
    """Where the interpreter has it."""
    body = """
    import sys
    from passt.kernel import interpreter
    interpreter.end_perf_support()
    if hasattr(sys, "is_stack_trampoline_active"):
        assert not sys.is_stack_trampoline_active()
    else:
        active = [True]
        sys.is_stack_trampoline_active = lambda: active[-1]
        sys.deactivate_stack_trampoline = lambda: active.append(False)
        interpreter.end_perf_support()
        assert active == [True, False]
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-X", "perf", "-c", textwrap.dedent(body)],
        cwd=TREE,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr
