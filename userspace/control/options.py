"""The command line of pesto(1): its option table, and what a line of words asks for.

Most options are steps, carried out in order once the server's tables are known; their values
are not looked at before.  Options may follow the path.
"""

from __future__ import annotations

from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.config.getopt import Scanner
from passt.userspace.config.table import ADD, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.options import Options

PROGRAM = "pesto"


def _later(_options: Options, _text: str) -> None:
    """Store of all options here: the table is for names and texts, :func:`parse` acts."""


_SPECIFIER_DETAILS = (
    "A specifier is `none`, or as for the option of the same name of pasta(1): a list of ports, "
    "ranges and their targets, `all`, `auto` and exclusions, after an address or interface to "
    "listen on and a slash."
)

TABLE = (
    Option(
        "add",
        "A",
        "",
        _later,
        help="Add the following specifiers to the tables, instead of replacing them",
    ),
    Option(
        "delete",
        "D",
        "",
        _later,
        help="Delete the following specifiers from the tables",
        details="What a specifier stands for must be in the table in exactly this form: port "
        "4000 cannot be deleted from a rule for ports 4000 to 4010.",
    ),
    Option(
        "clear",
        "C",
        "PIF",
        _later,
        repeat=ADD,
        help="Remove all rules from the table of PIF, HOST or SPLICE",
        details="The names are those printed without options: `HOST` is the table for "
        "`--tcp-ports` and `--udp-ports`, `SPLICE` that for `--tcp-ns` and `--udp-ns`.",
    ),
    Option(
        "tcp-ports",
        "t",
        "SPEC",
        _later,
        repeat=ADD,
        help="TCP ports of the host to be forwarded to the guest or namespace",
        details=_SPECIFIER_DETAILS,
    ),
    Option(
        "udp-ports",
        "u",
        "SPEC",
        _later,
        repeat=ADD,
        help="UDP ports of the host to be forwarded to the guest or namespace",
    ),
    Option(
        "tcp-ns",
        "T",
        "SPEC",
        _later,
        repeat=ADD,
        help="TCP ports of the namespace to be forwarded to the host, pasta only",
        details="Without a part to listen on: any loopback address of the namespace will do.",
    ),
    Option(
        "udp-ns",
        "U",
        "SPEC",
        _later,
        repeat=ADD,
        help="UDP ports of the namespace to be forwarded to the host, pasta only",
    ),
    Option("show", "s", "", _later, help="Print the tables before and after changes"),
    Option(
        "json",
        "",
        "",
        _later,
        help="Print the tables as they are in the end, in JSON",
        details="With `--show` and changes, the output has the previous tables, too.",
    ),
    Option("debug", "d", "", _later, help="Print what the server says of itself"),
    Option("help", "h", "", _later, help="Print this text and exit"),
    Option("version", "", "", _later, help="Print the version and exit"),
)

_STEPS = frozenset("ADCtuTU")


class Request:
    """What the user wants: ``steps`` are pairs of an option's spelling and value, in order."""

    __slots__ = ("debug", "json", "path", "show", "steps")

    def __init__(self) -> None:
        self.path = ""
        self.steps: list[tuple[str, str]] = []
        self.show = False
        self.json = False
        self.debug = False


def parse(argv0: str, words: Sequence[str]) -> Request:
    """Read the command line ``words``, without ``argv0``.

    Raises :class:`~passt.userspace.config.errors.UsageError`, with an empty message if just
    the path is missing or not alone, and :class:`~passt.userspace.config.errors.ImmediateExit`.
    """
    request = Request()
    operands: list[str] = []
    while True:
        scanner = Scanner(argv0, words, TABLE)
        for option, value in scanner:
            _take(request, option, value)
        if scanner.ended_by_dashes or not scanner.operands:
            operands += scanner.operands
            break
        operands.append(scanner.operands[0])
        words = scanner.operands[1:]
    if len(operands) != 1:
        raise UsageError("", show_usage=True)
    request.path = operands[0]
    return request


def usage_text() -> str:
    """Return the output of ``--help``."""
    from passt.userspace.config.usage import entry

    head = f"""\
Usage: {PROGRAM} [OPTION]... PATH

Show or change the forwarding rules of the pasta or passt that was started with
--conf-path PATH. Without options, show them.

"""
    return head + "\n".join(entry(option) for option in TABLE) + "\n"


def _take(request: Request, option: Option, value: str) -> None:
    if option.short in _STEPS:
        request.steps.append((option.spelling, value))
    elif option.long == "help":
        raise ImmediateExit(usage_text())
    elif option.long == "version":
        from passt.userspace.config.usage import version_text

        raise ImmediateExit(version_text(PROGRAM))
    else:
        setattr(request, option.long, True)
