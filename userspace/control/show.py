"""Tables of forwarding rules as pesto(1) prints them.

The text is upstream's, and for people.  The JSON is for programs, ``pesto --json``::

    {"path": PATH, "tables": [TABLE, …]}

    TABLE   "pif": "HOST" or "SPLICE"      "id": 1 or 3
            "capabilities": any of "ipv4", "ipv6", "tcp", "udp", "auto", "interface"
            "rules": [RULE, …]

    RULE    "protocol": "tcp" or "udp"
            "address": listening address, "*" for both IP versions
            "interface": name, or null
            "first", "last": listening ports
            "target_address": address, or null if it follows from the connection
            "target_first", "target_last": ports
            "best_effort", "auto": true or false

A protocol without a name is a number.  Names and members may be added, not removed.
"""

from __future__ import annotations

from passt.userspace.flow.nat import text
from passt.userspace.flow.rules import (
    CAP_AUTO,
    CAP_IFNAME,
    CAP_IPV4,
    CAP_IPV6,
    CAP_TCP,
    CAP_UDP,
    PROTOCOL_NAMES,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from passt.userspace.flow.rules import Rule, RuleTable

_CAPABILITIES = (
    (CAP_IPV4, "IPv4", "ipv4"),
    (CAP_IPV6, "IPv6", "ipv6"),
    (CAP_TCP, "TCP", "tcp"),
    (CAP_UDP, "UDP", "udp"),
    (CAP_AUTO, "scan", "auto"),
    (CAP_IFNAME, "ifname", "interface"),
)


def table_lines(tables: Iterable[RuleTable]) -> list[str]:
    """Return the lines that show ``tables``; what is not printable is escaped."""
    lines = []
    for table in tables:
        lines.append(f"  {_printable(table.name)}")
        lines += [f"    {_printable(str(rule))}" for rule in table]
    return lines


def debug_line(table: RuleTable) -> str:
    """Return what ``--debug`` says about a table."""
    names = " ".join(name for bit, name, _ in _CAPABILITIES if table.caps & bit)
    return (
        f"PIF {table.pif}: {_printable(table.name)}, {len(table)} rules, "
        f"capabilities 0x{table.caps:x}: {names}"
    )


def table_object(table: RuleTable) -> dict[str, object]:
    """Return a table in terms of JSON."""
    return {
        "pif": table.name,
        "id": table.pif,
        "capabilities": [name for bit, _, name in _CAPABILITIES if table.caps & bit],
        "rules": [_rule_object(rule) for rule in table],
    }


def _rule_object(rule: Rule) -> dict[str, object]:
    protocol = PROTOCOL_NAMES.get(rule.protocol)
    return {
        "protocol": protocol.lower() if protocol else rule.protocol,
        "address": "*" if rule.address is None else text(rule.address),
        "interface": rule.ifname or None,
        "first": rule.first,
        "last": rule.last,
        "target_address": None if rule.target is None else text(rule.target),
        "target_first": rule.to,
        "target_last": rule.target_port(rule.last),
        "best_effort": rule.best_effort,
        "auto": rule.auto,
    }


def _printable(line: str) -> str:
    """Escape control characters, and bytes that were not UTF-8, byte by byte."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else _escape(char) for char in line)


def _escape(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
