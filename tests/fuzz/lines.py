"""Which lines of the product were executed: guidance for campaigns, and a figure to report.

Python 3.12 and later have ``sys.monitoring``, where a line that was seen once costs nothing any
more.  Before, ``sys.settrace`` does the same at a price: a function is traced until all of its
lines were seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

import passt

#: Where the package under test is, as its modules' file names begin.
ROOT = os.path.dirname(passt.__file__) + os.sep

_monitoring = getattr(sys, "monitoring", None)


class Lines:
    """Collects executed lines of the package while it is started."""

    def __init__(self) -> None:
        #: File and line.
        self.seen: set[tuple[str, int]] = set()
        self._left: dict[CodeType, set[int] | None] = {}

    def start(self) -> None:
        """Collect from here on."""
        if _monitoring is None:
            sys.settrace(self._trace)
            return
        tool = _monitoring.COVERAGE_ID
        _monitoring.use_tool_id(tool, "tests.fuzz")
        _monitoring.register_callback(tool, _monitoring.events.LINE, self._line)
        _monitoring.set_events(tool, _monitoring.events.LINE)
        # Lines that somebody before us has seen enough of.
        _monitoring.restart_events()

    def stop(self) -> None:
        """Collect no more."""
        if _monitoring is None:
            sys.settrace(None)
            return
        tool = _monitoring.COVERAGE_ID
        _monitoring.set_events(tool, 0)
        _monitoring.register_callback(tool, _monitoring.events.LINE, None)
        _monitoring.free_tool_id(tool)

    def __enter__(self) -> Lines:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _line(self, code: CodeType, line: int) -> Any:
        if code.co_filename.startswith(ROOT):
            self.seen.add((code.co_filename, line))
        return _monitoring.DISABLE  # type: ignore[union-attr]

    def _trace(self, frame: FrameType, _event: str, _arg: object) -> Any:
        code = frame.f_code
        try:
            left = self._left[code]
        except KeyError:
            ours = code.co_filename.startswith(ROOT)
            left = self._left[code] = _lines_of(code) if ours else None
        return self._local if left else None

    def _local(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line":
            code = frame.f_code
            left = self._left[code]
            if left:
                left.discard(frame.f_lineno)
            self.seen.add((code.co_filename, frame.f_lineno))
        return self._local

    def table(self, parts: Iterable[str]) -> list[tuple[str, int, int]]:
        """Per part of the product, a file or folder below it: name, lines seen, lines there are."""
        rows = []
        for part in parts:
            reached = total = 0
            for path in _files(part):
                there = executable(path)
                total += len(there)
                reached += sum((path, line) in self.seen for line in there)
            rows.append((part, reached, total))
        return rows

    def missing(self, part: str) -> dict[str, list[int]]:
        """Lines of each file of ``part`` that were not seen."""
        return {
            path: sorted(line for line in executable(path) if (path, line) not in self.seen)
            for path in _files(part)
        }


def _files(part: str) -> list[str]:
    """The Python files of a file or folder ``part``, as in ``userspace/tcp``."""
    path = os.path.join(ROOT, part)
    if os.path.isfile(path):
        return [path]
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(".py")
    )


def executable(path: str) -> set[int]:
    """The lines of functions in the file ``path``: what runs at import is no achievement."""
    with open(path, encoding="utf-8") as file:
        module = compile(file.read(), path, "exec")
    found: set[int] = set()
    todo = [const for const in module.co_consts if isinstance(const, CodeType)]
    while todo:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
        # The body of a class runs at import, too; its functions do not.
        if code.co_flags & 0x2:
            found |= _lines_of(code)
    return found


def _lines_of(code: CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line}
    lines.discard(code.co_firstlineno)
    return lines
