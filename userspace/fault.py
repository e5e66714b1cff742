"""Reports of exceptions that nobody expected, without opening a file.

The interpreter's own reports quote the source, for which they open it, and newer versions import
a module to do so.  The running program can do neither: it would be ended by its system call
filter, and nobody would know why.  The same goes for warnings, which the user's environment may
have switched on.  So :func:`install` takes the place of all three.

A report has file, line and function of each call, as a traceback has, and goes to standard error,
in the foreground in any phase, and to the log.
"""

from __future__ import annotations

import _warnings
import sys

from passt.userspace import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

#: Exceptions of a chain, and calls of one of them, that are reported.
_MAX_CHAIN = 4
_MAX_CALLS = 50


def install() -> None:
    """Have exceptions that end the program or a thread reported here, and warnings dropped."""
    sys.excepthook = _ended_by
    sys.unraisablehook = _unraisable
    # The interpreter looks at the module's list if it has been imported.
    module = sys.modules.get("warnings", _warnings)
    module.filters.insert(0, ("ignore", None, Warning, None, 0))


def report(error: BaseException) -> None:
    """Report an exception that was not expected; does not raise."""
    try:
        lines = _describe(error)
    except Exception:
        lines = [f"Unexpected {type(error).__name__}"]
    log.fault(lines)


def _ended_by(_kind: type, error: BaseException, _traceback: TracebackType | None) -> None:
    report(error)


def _unraisable(happened: sys.UnraisableHookArgs) -> None:
    error = happened.exc_value
    if error is not None:
        report(error)


def _describe(error: BaseException) -> list[str]:
    """The lines of a report: the exception, and those it was caused by before it."""
    chain: list[tuple[BaseException, str]] = [(error, "")]
    while len(chain) < _MAX_CHAIN:
        last = chain[-1][0]
        if last.__cause__ is not None:
            chain.append(
                (
                    last.__cause__,
                    "The above exception was the direct cause of the following exception:",
                )
            )
        elif last.__context__ is not None and not last.__suppress_context__:
            chain.append(
                (
                    last.__context__,
                    "During handling of the above exception, another exception occurred:",
                )
            )
        else:
            break
    lines = []
    for each, link in reversed(chain):
        lines.append("Traceback (most recent call last):")
        lines += _calls(each.__traceback__)
        lines += f"{type(each).__name__}: {_text(each)}".split("\n")
        if link:
            lines.append(link)
    return lines


def _calls(traceback: TracebackType | None) -> list[str]:
    """A line for each call, the innermost last; those in the middle are left out."""
    lines = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {traceback.tb_lineno}, in {code.co_name}')
        traceback = traceback.tb_next
    if len(lines) > _MAX_CALLS:
        half = _MAX_CALLS // 2
        lines[half:-half] = ["  ..."]
    return lines


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no text)"
