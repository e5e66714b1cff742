"""From the words of a command line to :class:`~passt.userspace.config.options.Options`.

The order matters to those who read the first message and stop:

1. the program's mode, from its name;
2. options from left to right: each is checked as it is met, and ``--help`` or ``--version``
   act where they stand (a caller may probe for an option with ``--option --version``);
3. what several options say together;
4. port forwarding specifiers, whose meaning depends on other options;
5. the words that remain: a PID, or a command, or neither.

Nothing of the host is looked at, except that ``--interface`` must exist, that ``--runas``
consults the user database, and that rules depend on the IP versions that the kernel has, on
whether sockets can be bound to interfaces, and on the range of ephemeral ports.  Messages:
passt(1), pasta(1), and the words of getopt_long(3).
"""

from __future__ import annotations

import os

from passt.userspace import log
from passt.userspace.config import ports, values
from passt.userspace.config.catalogue import TABLE
from passt.userspace.config.errors import UsageError
from passt.userspace.config.getopt import Scanner
from passt.userspace.config.model import ACCEL_EBPF
from passt.userspace.config.options import COMMAND, MACHINE, NETNS, PID, SHELL, Options, Target
from passt.userspace.config.resolve import can_bind_to_device, enabled_versions
from passt.userspace.config.table import PASST, PASTA
from passt.userspace.flow.rules import HOST, SPLICE, RuleTable, capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.table import Option

_MAX_PID = 0x7FFFFFFF

#: Options of one mode that upstream's messages call by their letter.
_BY_LETTER = ("I", "T", "U", "s")


def select_mode(argv0: str) -> str:
    """Return ``"pasta"`` or ``"passt"`` by the last path component of ``argv0``."""
    name = argv0.rpartition("/")[2]
    for mode in (PASTA, PASST):
        if mode in name:
            return mode
    raise UsageError('Cannot determine mode, invoke as "passt" or "pasta"')


def parse(argv0: str, argv: Sequence[str]) -> Options:
    """Read the command line ``argv``, without ``argv0``, the name the program was called by.

    Raises :class:`~passt.userspace.config.errors.UsageError` for anything that cannot be
    accepted, :class:`~passt.userspace.config.errors.ImmediateExit` for ``--help`` and the
    like.  Warnings go to :mod:`passt.userspace.log`.
    """
    options = Options(argv0, select_mode(argv0))
    given: list[Option] = []
    scanner = Scanner(argv0, argv, TABLE)
    for option, text in scanner:
        _apply(options, option, text)
        if option not in given:
            given.append(option)
    _check_together(given)
    _check_accel(options, given)
    _finish_prefix(options)
    _finish_rules(options)
    if options.mode == PASTA:
        target = _target(options, scanner.operands)
        options.target = target
        if target.spawns:
            options.foreground = True
    elif scanner.operands:
        raise UsageError(f"Extra non-option argument: {scanner.operands[0]}")
    else:
        options.target = Target(MACHINE, new_userns=True)
    return options


def guest_descriptor(argv0: str, argv: Sequence[str]) -> int:
    """The descriptor that ``--fd`` names, −1 if none: it is not to be closed with all the others.

    What is wrong with the command line is left to :func:`parse`.
    """
    options = Options(argv0, PASST)
    try:
        for option, text in Scanner(argv0, argv, TABLE):
            if option.long in ("fd", "socket", "socket-path"):
                option.store(options, text)
    except UsageError:
        pass
    return options.guest_fd


def _apply(options: Options, option: Option, text: str) -> None:
    """Do what the columns of ``option`` say, now that it was met with value ``text``."""
    if options.mode not in option.modes:
        name = option.spelling if option.short in _BY_LETTER else f"--{option.long}"
        raise UsageError(f"{name} is for {option.modes[0]} mode only")
    if option.deprecated:
        log.warn(f"--{option.long} will be dropped soon")
    option.store(options, text)
    for attribute in option.implies:
        setattr(options, attribute, True)
    for attribute in option.cancels:
        # False for a flag, empty for a path.
        setattr(options, attribute, type(getattr(options, attribute))())


def _check_together(given: list[Option]) -> None:
    """Check what options need and exclude, in the order of the table."""
    names = {option.long for option in given}
    for option in TABLE:
        if option not in given:
            continue
        if option.needs and option.needs not in names:
            raise UsageError(f"--{option.long} needs --{option.needs}")
        for other in option.excludes:
            if other in names:
                raise UsageError(f"--{option.long} is incompatible with --{other}")


def _check_accel(options: Options, given: list[Option]) -> None:
    """Refuse what is without effect unless the kernel is to forward."""
    if options.accel != ACCEL_EBPF:
        for option in given:
            if option.long.startswith("accel-"):
                raise UsageError(f"--{option.long} needs --accel={ACCEL_EBPF}")


def _finish_prefix(options: Options) -> None:
    """Settle prefix lengths: ``-n``, else the length in ``-a``, else by address class."""
    options.prefix_v4 = options.netmask or options.prefix_v4 or None
    if options.prefix_v4 is None and options.address_v4 is not None:
        options.prefix_v4 = values.class_prefix_len(options.address_v4)
    options.prefix_v6 = options.prefix_v6 or None
    options.more_v4 = [
        (addr, options.netmask or length or values.class_prefix_len(addr))
        for addr, length in options.more_v4
    ]


def _finish_rules(options: Options) -> None:
    """Turn specifiers into rules: the last step that can find fault with options."""
    v4, v6 = enabled_versions(options)
    caps = options.rule_caps = capabilities(
        v4=v4,
        v6=v6,
        tcp=not options.no_tcp,
        udp=not options.no_udp,
        auto=options.mode == PASTA,
        ifname=can_bind_to_device(),
    )
    tables = [RuleTable(HOST, caps)]
    if options.mode == PASTA:
        tables.append(RuleTable(SPLICE, caps))
    ports.fill_tables(tables, options.port_specs, options.mode)
    options.rules = tables[0].rules()
    if len(tables) > 1:
        options.rules_ns = tables[1].rules()


def _target(options: Options, words: list[str]) -> Target:
    """Tell which namespaces are meant, by options and remaining words (pasta(1))."""
    if options.netns:
        if words:
            raise UsageError("Both --netns and PID or command given")
        target = Target(NETNS, netns=options.netns, userns=options.userns)
    elif len(words) == 1 and words[0].isascii() and words[0].isdigit():
        number = values.decimal(words[0])
        if not number or number > _MAX_PID:
            raise UsageError(f"Invalid PID {words[0]}")
        userns = options.userns
        if not userns and not options.netns_only:
            userns = f"/proc/{number}/ns/user"
        target = Target(PID, pid=number, netns=f"/proc/{number}/ns/net", userns=userns)
    else:
        new_userns = not options.userns and not options.netns_only
        if words:
            kind, executable, argv = COMMAND, words[0], words
        else:
            # A login shell, by the convention that argv[0] starts with a dash (login(1)).
            kind, executable = SHELL, os.environ.get("SHELL") or "/bin/sh"
            argv = [f"-{executable}"]
        return Target(
            kind,
            executable=executable,
            argv=argv,
            userns=options.userns,
            new_userns=new_userns,
        )
    if options.no_pidns:
        raise UsageError("--no-pidns is incompatible with PID or --netns")
    return target
