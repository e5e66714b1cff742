"""Port forwarding specifiers (``-t``, ``-u``, ``-T``, ``-U``) and the rules they stand for.

::

    spec    = "none" | [ listen "/" ] chunk { "," chunk }
    listen  = [ address | "*" ] [ "%" ifname ]
    chunk   = "auto" | "all" [ ":" address ] | "~" range | range [ ":" target ]
    target  = address "/" range | address | range
    range   = port [ "-" port ]
    address = ipv4 | ipv6, either in brackets if wanted

What stands before the first ``/`` is a listening part if it reads as one; otherwise it belongs
to the first chunk, as in ``22:192.0.2.1/80``.

Ranges make one rule each; ``all``, ``auto`` or exclusions alone mean all ports but ephemeral
ones, best effort.  ``all`` beside ranges adds the ports that the ranges leave.  What ``~``
excludes is excluded from the whole specifier, splitting rules where needed, and ``auto``
makes all its rules automatic.

``-T`` and ``-U`` listen in the namespace, where only connections over the loopback interface
are meant: their rules are bound to ``lo``, so that any loopback address will do.

A specifier is read completely before any of its rules is added, so that an error of form is
reported as such, and not as that of a rule to its left.  Source: passt(1), pasta(1), pesto(1).
"""

from __future__ import annotations

import os

from passt.userspace import log
from passt.userspace.config import values
from passt.userspace.config.errors import UsageError
from passt.userspace.config.table import PASST, PASTA
from passt.userspace.flow.nat import LOOPBACK4, LOOPBACK6, UNSPECIFIED4, UNSPECIFIED6
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    CAP_AUTO,
    CAP_IFNAME,
    CAP_IPV4,
    CAP_IPV6,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    MAX_IFNAME,
    MAX_PORT,
    SPLICE,
    Rule,
    RuleError,
    RuleTable,
    is_ifname,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Range = tuple[int, int]

_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"
#: The range for dynamic ports of RFC 6335, section 6.
_EPHEMERAL_FALLBACK = (49152, 65535)


class PortOption:
    """One of the four options: its spelling in messages, and the rules it is about."""

    __slots__ = ("pif", "protocol", "spelling")

    def __init__(self, spelling: str, pif: int, protocol: int) -> None:
        self.spelling = spelling
        self.pif = pif
        self.protocol = protocol


TCP_PORTS = PortOption("-t", HOST, IPPROTO_TCP)
UDP_PORTS = PortOption("-u", HOST, IPPROTO_UDP)
TCP_NS = PortOption("-T", SPLICE, IPPROTO_TCP)
UDP_NS = PortOption("-U", SPLICE, IPPROTO_UDP)
PORT_OPTIONS = (TCP_PORTS, UDP_PORTS, TCP_NS, UDP_NS)

#: What an option that does not occur amounts to, by mode.
DEFAULTS = {PASTA: "auto", PASST: "none"}


class Spec:
    """A specifier other than ``none``, as it was read.

    * ``address``, ``ifname``: the listening part, packed; ``None`` for a wildcard, and empty;
    * ``auto``, ``all``: these words occurred; ``all_target`` came with the last ``all``;
    * ``ranges``: first and last port, target address, target port of the first;
    * ``excluded``: first and last port, in any order, possibly overlapping.
    """

    __slots__ = (
        "address",
        "all",
        "all_target",
        "auto",
        "excluded",
        "ifname",
        "ranges",
    )

    def __init__(self) -> None:
        self.address: bytes | None = None
        self.ifname = ""
        self.auto = False
        self.all = False
        self.all_target: bytes | None = None
        self.ranges: list[tuple[int, int, bytes | None, int]] = []
        self.excluded: list[Range] = []


def parse_spec(option: PortOption, text: str) -> Spec | None:
    """Read a specifier of ``option``, without meaning; ``None`` for ``none``.

    Ports are 0 to 65535 here: that port 0 cannot be forwarded is for the table to say.
    Raises UsageError, quoting the part that could not be read.
    """
    if text == "none":
        return None
    spec = Spec()
    head, slash, chunks = text.partition("/")
    if not (slash and _read_listen(spec, head)):
        chunks = text
    elif option.pif == SPLICE:
        raise UsageError(f"Listening address not allowed for {option.spelling} {text}")
    for chunk in chunks.split(","):
        if not _read_chunk(spec, chunk):
            raise UsageError(f"Invalid port specifier '{chunks}'")
    return spec


def rules_of(option: PortOption, text: str, caps: int) -> list[Rule] | None:
    """Return the rules that ``text`` means for ``option``; ``None`` for ``none``.

    ``caps`` are the capabilities of the table the rules are for.  They decide what wildcards
    are, and whether rules can be bound to interfaces and be automatic.  Raises UsageError.
    """
    spec = parse_spec(option, text)
    if spec is None:
        return None
    given = f"{option.spelling} {text}"
    if spec.auto and not caps & CAP_AUTO:
        raise UsageError("'auto' port forwarding is only allowed for pasta")
    if option.pif == SPLICE:
        if caps & CAP_IFNAME:
            return _rules_at(option, spec, _wildcard(caps), "lo")
        log.warn(f"SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '{given}'")
        rules = []
        if caps & CAP_IPV4:
            rules += _rules_at(option, spec, LOOPBACK4, "")
        if caps & CAP_IPV6:
            rules += _rules_at(option, spec, LOOPBACK6, "")
        return rules
    if spec.ifname and not caps & CAP_IFNAME:
        raise UsageError(f"Device binding for '{given}' unsupported (requires kernel 5.7+)")
    address = _wildcard(caps) if spec.address is None else spec.address
    return _rules_at(option, spec, address, spec.ifname)


def fill_tables(
    tables: Iterable[RuleTable], given: Iterable[tuple[PortOption, str]], mode: str
) -> None:
    """Add the rules of a command line, and defaults for options that it does not have.

    A protocol that is switched off has no defaults.  UsageError at the first problem.
    """
    by_pif = {table.pif: table for table in tables}
    seen = set()
    for option, text in given:
        add_rules(by_pif[option.pif], option, text)
        seen.add(option)
    for option in PORT_OPTIONS:
        table = by_pif.get(option.pif)
        if table is not None and option not in seen and table.serves(option.protocol):
            add_rules(table, option, DEFAULTS[mode])


def add_rules(table: RuleTable, option: PortOption, text: str) -> None:
    """Add the rules that ``text`` means to ``table``; UsageError at the first unsound one."""
    for rule in _rules_for(table, option, text):
        try:
            table.add(rule)
        except RuleError as error:
            raise UsageError(f"{error}\nUnable to add rule {rule}") from None


def delete_rules(table: RuleTable, option: PortOption, text: str) -> None:
    """Delete the rules that ``text`` means from ``table``; UsageError at the first missing."""
    for rule in _rules_for(table, option, text):
        try:
            table.delete(rule)
        except RuleError as error:
            raise UsageError(f"{error}\nUnable to delete rule {rule}") from None


def _rules_for(table: RuleTable, option: PortOption, text: str) -> list[Rule]:
    """The rules to add or delete; ``none`` is no rule, and too late if there are some."""
    rules = rules_of(option, text, table.caps)
    if rules is not None:
        return rules
    if any(rule.protocol == option.protocol for rule in table):
        raise UsageError(f"{option.spelling} none conflicts with previous options")
    return []


def ephemeral_ports() -> Range:
    """First and last port that the kernel may choose by itself, of this network namespace."""
    try:
        with open(_EPHEMERAL, "rb", 0) as file:
            first, last = file.read(64).split()
            return int(first), int(last)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not two numbers"
        first_port, last_port = _EPHEMERAL_FALLBACK
        log.warn(f"Couldn't read {_EPHEMERAL}: {why}, assuming {first_port} to {last_port}")
        return _EPHEMERAL_FALLBACK


# Reading.


def _read_listen(spec: Spec, text: str) -> bool:
    """Take ``text`` as listening part if it is one; UsageError for an impossible name."""
    host, percent, ifname = text.partition("%")
    if percent:
        size = len(os.fsencode(ifname))
        if not 0 < size <= MAX_IFNAME or any(char.isspace() for char in ifname):
            return False
    address = None
    if host and host != "*":
        address = _read_address(host)
        if address is None:
            return False
    if percent and not is_ifname(ifname):
        raise UsageError(f"Invalid interface name: {ifname}")
    spec.address = address
    spec.ifname = ifname
    return True


def _read_chunk(spec: Spec, text: str) -> bool:
    """Take one chunk; False if it is none."""
    if text == "auto":
        spec.auto = True
        return True
    if text == "all":
        spec.all = True
        spec.all_target = None
        return True
    word, colon, rest = text.partition(":")
    if colon and word == "all":
        spec.all = True
        spec.all_target = _read_address(rest)
        return spec.all_target is not None
    if word[:1] == "~":
        excluded = _read_range(word[1:])
        if excluded is None or colon:
            return False
        spec.excluded.append(excluded)
        return True
    ports = _read_range(word)
    if ports is None:
        return False
    first, last = ports
    if not colon:
        spec.ranges.append((first, last, None, first))
        return True
    host, slash, target_ports = rest.partition("/")
    address = _read_address(host)
    if address is None:
        if slash:
            return False
        target_ports = rest
    elif not slash:
        target_ports = word
    target = _read_range(target_ports)
    if target is None or target[1] - target[0] != last - first:
        return False
    spec.ranges.append((first, last, address, target[0]))
    return True


def _read_address(text: str) -> bytes | None:
    """Read an address, in brackets or not; an IPv4-mapped one is IPv4."""
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1]
    given = values.address(text)
    return None if given is None else values.unmapped(given)


def _read_range(text: str) -> Range | None:
    """Read ``PORT`` or ``PORT-PORT``, each at most 65535, in order."""
    low, dash, high = text.partition("-")
    first = values.decimal(low)
    last = values.decimal(high) if dash else first
    if first is None or last is None or not first <= last <= MAX_PORT:
        return None
    return first, last


# Meaning.


def _wildcard(caps: int) -> bytes | None:
    """The address that stands for any: of both versions if there are both."""
    if caps & CAP_IPV4 and caps & CAP_IPV6:
        return None
    return UNSPECIFIED4 if caps & CAP_IPV4 else UNSPECIFIED6


def _rules_at(option: PortOption, spec: Spec, address: bytes | None, ifname: str) -> list[Rule]:
    """Make the rules of ``spec`` that listen on ``address``."""
    rules = []
    auto = AUTO if spec.auto else 0
    holes = spec.excluded
    for first, last, target, to in spec.ranges:
        for low, high in _without(first, last, holes):
            rules.append(
                Rule(option.protocol, low, high, to + low - first, address, ifname, target, auto)
            )
    if spec.all or not spec.ranges:
        holes = [*holes, ephemeral_ports(), *((first, last) for first, last, _, _ in spec.ranges)]
        for low, high in _without(1, MAX_PORT, holes):
            rules.append(
                Rule(
                    option.protocol,
                    low,
                    high,
                    low,
                    address,
                    ifname,
                    spec.all_target,
                    auto | BEST_EFFORT,
                )
            )
    return rules


def _without(first: int, last: int, holes: list[Range]) -> list[Range]:
    """What remains of ``first`` to ``last`` without ``holes``, in order."""
    kept = []
    for low, high in sorted(holes):
        if low > last:
            break
        if low > first:
            kept.append((first, low - 1))
        first = max(first, high + 1)
    if first <= last:
        kept.append((first, last))
    return kept
