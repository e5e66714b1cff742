"""What the program says about itself: usage text, version, and rejected command lines.

The usage text is made from the option table.  It goes to standard output for ``--help``, and
to standard error after getopt's line for an option that does not exist.
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.config.catalogue import TABLE
from passt.userspace.config.table import ADD, FAMILY, PASST, PASTA
from passt.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.errors import ImmediateExit, UsageError
    from passt.userspace.config.table import Option

_WIDTH = 79
_INDENT = " " * 26

_SYNOPSIS = {
    PASTA: """\
Usage: {name} [OPTION]... [COMMAND [ARG]...]
       {name} [OPTION]... PID
       {name} [OPTION]... --netns PATH|NAME

Give a network namespace access to the networks of the host, without privileges.
Without PID or --netns, run COMMAND, or a shell, in new network and user
namespaces.
""",
    PASST: """\
Usage: {name} [OPTION]...

Give a virtual machine access to the networks of the host, without privileges.
""",
}

_LICENCE = """\
GNU General Public License, version 2 or later
  <https://www.gnu.org/licenses/old-licenses/gpl-2.0.html>
This is free software: you are free to change and redistribute it.
There is NO WARRANTY, to the extent permitted by law.
"""


def version_text(mode: str) -> str:
    """Return the output of ``--version`` for the program called ``mode``."""
    return f"{mode} {VERSION}\n{_LICENCE}"


def usage_text(argv0: str) -> str:
    """Return the usage text; it speaks of pasta if ``argv0`` does, directories included."""
    mode = PASTA if PASTA in argv0 else PASST
    blocks = [_SYNOPSIS[mode].format(name=argv0.rpartition("/")[2] or mode)]
    blocks += [entry(option) for option in TABLE if mode in option.modes and not option.hidden]
    return "\n".join(blocks) + "\n"


def synopsis(option: Option) -> str:
    """Return an option's names and value: ``-m, --mtu MTU``."""
    names = f"-{option.short}, --{option.long}" if option.short else f"--{option.long}"
    return f"{names} {option.arg}" if option.arg else names


def repetition(option: Option) -> str:
    """Return how often an option may be given, empty if a repetition just replaces it."""
    if option.repeat == FAMILY:
        return "once for each IP version"
    return "may be repeated" if option.repeat == ADD else ""


def entry(option: Option) -> str:
    """Return the lines about an option: names and value on the left, text on the right."""
    head = f"  {synopsis(option)}" if option.short else f"      {synopsis(option)}"
    notes = [repetition(option)]
    if option.default:
        notes.append(f"default: {option.default}")
    if option.deprecated:
        notes.append("deprecated")
    note = "; ".join(note for note in notes if note)
    text = f"{option.help} ({note})" if note else option.help
    if len(head) + 2 > len(_INDENT):
        return "\n".join([head, *_wrap(text)])
    lines = _wrap(text)
    lines[0] = head.ljust(len(_INDENT)) + lines[0].lstrip()
    return "\n".join(lines)


def _wrap(text: str) -> list[str]:
    """Break ``text`` into lines of the second column."""
    lines = []
    line = _INDENT
    for word in text.split():
        if line != _INDENT and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = _INDENT
        line += word if line == _INDENT else f" {word}"
    lines.append(line)
    return lines


def report(outcome: UsageError | ImmediateExit, argv0: str) -> int:
    """Write what ended the reading of the command line, and return the exit status for it.

    An error goes to standard error, line by line through the log; a text that was asked for
    goes to standard output.  A reader that went away is no reason for a traceback.
    """
    from passt.userspace.config.errors import UsageError

    if not isinstance(outcome, UsageError):
        return outcome.status if log.write_fully(1, outcome.text.encode()) else 1
    for line in outcome.message.split("\n"):
        log.err(line)
    if outcome.show_usage:
        log.write_fully(2, usage_text(argv0).encode())
    return 1
