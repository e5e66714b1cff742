"""Run part of a test in a forked child, for what a process cannot undo."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def in_child(body: Callable[[], None]) -> None:
    """Run `body` in a forked child; fail with its traceback if it raised."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:
            os.write(w, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    os.close(w)
    with open(r, "rb") as f:
        report = f.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, report
