"""``pesto``: show or change the forwarding rules of a running pasta or passt.

The tables are read from the server, changed here as the options say, one after the other, and
sent back as a whole, so that all changes are made or none.  Source: pesto(1).

Exit status 0 means that the server has the new rules and that all their ports are open.  A server
of the original cannot tell about ports: there, 0 means that it accepted the rules.
"""

from __future__ import annotations

import sys

from passt.userspace import log
from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.control.client import Connection, ControlError
from passt.userspace.control.edit import Editor
from passt.userspace.control.options import parse, usage_text
from passt.userspace.control.protocol import REFUSED
from passt.userspace.control.show import debug_line, table_lines, table_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.control.options import Request
    from passt.userspace.control.protocol import ReceivedTable

_STDOUT = 1
_STDERR = 2


def main() -> int:
    """Run the program that ``sys.argv`` asks for; returns the exit status."""
    return run(sys.argv[0], sys.argv[1:])


def run(argv0: str, words: Sequence[str]) -> int:
    """Run ``argv0`` with ``words``; returns the exit status."""
    try:
        request = parse(argv0, words)
    except ImmediateExit as outcome:
        return 0 if log.write_fully(_STDOUT, outcome.text.encode()) else 1
    except UsageError as error:
        if error.message:
            log.err("%s", error.message)
        log.write_fully(_STDERR, usage_text().encode())
        return 1
    try:
        return _serve(request)
    except (ControlError, UsageError) as error:
        for line in str(error).split("\n"):
            log.err("%s", line)
        return 1


def _serve(request: Request) -> int:
    """Do what the user wants; UsageError or ControlError if that is impossible."""
    server = Connection(request.path)
    tables = server.state()
    output = _Output(request)
    for table in tables:
        output.debug(debug_line(table))
    if not request.steps:
        output.tables("passt/pasta configuration", "tables", tables)
        return output.end()

    if request.show:
        output.tables("Previous configuration", "previous", tables)
    editor = Editor(tables)
    for spelling, value in request.steps:
        editor.apply(spelling, value)
    status, lines = server.replace(tables)
    for line in lines:
        log.err("%s", line)
    if status == REFUSED:
        return 1
    if request.show or request.json:
        output.tables("Updated configuration", "tables", tables)
    return output.end() or int(status != 0)


class _Output:
    """Standard output: text as it comes, or one JSON object at the end."""

    __slots__ = ("_debug", "_failed", "_json", "_object", "_path")

    def __init__(self, request: Request) -> None:
        self._path = request.path
        self._json = request.json
        self._debug = request.debug
        self._object: dict[str, object] = {"path": request.path}
        self._failed = False

    def debug(self, line: str) -> None:
        """Say ``line`` on standard error if the user wants to know."""
        if self._debug:
            log.info("%s", line)

    def tables(self, title: str, member: str, tables: Sequence[ReceivedTable]) -> None:
        """Print ``tables`` under ``title``; in JSON, they are to be a ``member``."""
        if self._json:
            self._object[member] = [table_object(table) for table in tables]
            return
        self._write("\n".join([f"{title} ({self._path})", *table_lines(tables), ""]))

    def end(self) -> int:
        """Finish; returns the exit status as far as the output is concerned."""
        if self._json:
            import json

            self._write(json.dumps(self._object, indent=2) + "\n")
        return int(self._failed)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        self._failed = not log.write_fully(_STDOUT, data) or self._failed


if __name__ == "__main__":
    sys.exit(main())
