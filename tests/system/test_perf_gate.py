"""The gate of the performance suite, with a build that starts more slowly than the other."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.system.kit.users import TREE

pytestmark = pytest.mark.system

BRIEF = ["--rounds", "1", "--exchanges", "1"]
SLOW = "import time\n\ntime.sleep(0.3)\n"


def test_slow_start_is_caught(tmp_path: pathlib.Path) -> None:
    """The tree is compared with a copy of itself that sleeps when it starts."""
    for name in ("passt", "syscalls", "kernel", "userspace"):
        ignored = shutil.ignore_patterns("__pycache__")
        source = os.path.join(TREE, name)
        shutil.copytree(source, tmp_path / name, symlinks=True, ignore=ignored)
    main = tmp_path / "userspace" / "cli" / "main.py"
    before, mark, after = main.read_text().partition("from __future__ import annotations\n")
    main.write_text(before + mark + SLOW + after)
    words = ["gate", "start/plain", "--base", TREE, "--head", str(tmp_path), *BRIEF]
    done = subprocess.run(
        [sys.executable, "-m", "perf", *words],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
        timeout=80,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("start/plain: ×0.")
    assert line.endswith(" REGRESSION")
