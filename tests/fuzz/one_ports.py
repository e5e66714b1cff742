"""Port forwarding specifiers against a second reader of the grammar and of its meaning.

Input: a byte that chooses option and capabilities, then the text.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from passt.userspace.config import ports
from passt.userspace.config.errors import UsageError
from passt.userspace.flow.rules import (
    BEST_EFFORT,
    CAP_AUTO,
    CAP_IFNAME,
    MAX_SOCKETS,
    SPLICE,
    Rule,
    RuleTable,
)
from tests.fuzz.journal import Journal

MAX_LEN = 300
DICTIONARY = (
    b"all", b"auto", b"none", b"~", b"*", b"%lo/", b"::", b"[::1]", b"192.0.2.1", b"127.0.0.1/",
    b"::ffff:192.0.2.1", b"1-65535", b"32768", b"60999", b"65536", b",", b":", b"/", b"-", b"0",
    b"224.0.0.1", b"8000-8003", b"[127.0.0.1]", b"fe80::1",
)  # fmt: skip

#: The range of ephemeral ports, wherever the harness runs.
EPHEMERAL = 32768, 60999

_RANGE = r"(\d{1,64})(?:-(\d{1,64}))?"


class Meaning(NamedTuple):
    """What one port is forwarded to; an unspecified target is none."""

    target: bytes | None
    port: int
    best_effort: bool


class Reading:
    """A specifier, read by the grammar in docs and nothing else."""

    def __init__(self) -> None:
        self.listen = ""
        self.auto = self.all = False
        self.all_target: bytes | None = None
        self.ranges: list[tuple[int, int, bytes | None, int]] = []
        self.excluded: list[tuple[int, int]] = []

    def port(self, number: int) -> Meaning | None:
        """What ``number`` is forwarded to; ``None`` if it is not."""
        if any(first <= number <= last for first, last in self.excluded):
            return None
        for first, last, target, to in self.ranges:
            if first <= number <= last:
                return Meaning(specified(target), to + number - first, False)
        if not self.all and self.ranges:
            return None
        if number == 0 or EPHEMERAL[0] <= number <= EPHEMERAL[1]:
            return None
        return Meaning(specified(self.all_target), number, True)


def specified(target: bytes | None) -> bytes | None:
    """``target`` unless it is all zero."""
    return target if target is not None and any(target) else None


def address(text: str) -> bytes | None:
    """An address, in brackets or not; IPv4 in disguise is IPv4."""
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1]
    try:
        if "%" in text:
            return None
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped.packed
    return found.packed


def bounds(text: str) -> tuple[int, int] | None:
    """First and last port of a range."""
    match = re.fullmatch(_RANGE, text, re.ASCII)
    if match is None:
        return None
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    return (first, last) if first <= last <= 65535 else None


def read(text: str, *, listens: bool) -> Reading | None:
    """The reading of ``text``, ``None`` if it has none; ``listens`` if there is a first part."""
    reading = Reading()
    head, slash, rest = text.partition("/")
    chunks = text
    match = re.fullmatch(r"(\*|[^%]*)(?:%(.*))?", head, re.DOTALL)
    if slash and match is not None:
        host, name = match[1], match[2]
        named = name is None or (
            0 < len(os.fsencode(name)) <= 15 and not any(char.isspace() for char in name)
        )
        if named and (host in ("", "*") or address(host) is not None):
            if name in (".", "..") or (name and (":" in name or "\0" in name)):
                return None
            if not listens:
                return None
            chunks = rest
            reading.listen = head
    for chunk in chunks.split(","):
        if not _chunk(reading, chunk):
            return None
    return reading


def _chunk(reading: Reading, chunk: str) -> bool:
    if chunk == "auto":
        reading.auto = True
        return True
    if chunk == "all" or chunk.startswith("all:"):
        reading.all = True
        reading.all_target = address(chunk[4:]) if len(chunk) > 3 else None
        return len(chunk) == 3 or reading.all_target is not None
    if chunk.startswith("~"):
        excluded = bounds(chunk[1:])
        if excluded is not None:
            reading.excluded.append(excluded)
        return excluded is not None
    source, colon, target = chunk.partition(":")
    ports_ = bounds(source)
    if ports_ is None:
        return False
    where, to = None, ports_
    if colon:
        host, slash, behind = target.rpartition("/")
        if slash and address(host) is not None:
            where, found = address(host), bounds(behind)
        elif not slash and address(target) is not None:
            where, found = address(target), ports_
        else:
            found = bounds(target)
        if found is None or found[1] - found[0] != ports_[1] - ports_[0]:
            return False
        to = found
    reading.ranges.append((*ports_, where, to[0]))
    return True


def one(data: bytes) -> None:
    """Read the specifier, add and delete its rules."""
    first = data[0] if data else 0
    text = data[1:].decode("utf-8", "surrogateescape")
    option = ports.PORT_OPTIONS[first & 3]
    caps = 0x3F
    for bit in (2, 3, 4, 5):
        if first >> bit & 1:
            caps &= ~(1, 2, CAP_AUTO, CAP_IFNAME)[bit - 2]
    if not caps & 3:
        caps |= 1
    saved = ports.ephemeral_ports
    ports.ephemeral_ports = lambda: EPHEMERAL
    try:
        with Journal():
            check(option, text, caps)
    finally:
        ports.ephemeral_ports = saved


def check(option: ports.PortOption, text: str, caps: int) -> None:
    """Both readers agree; what is accepted makes sound tables."""
    expected = read(text, listens=option.pif != SPLICE)
    try:
        rules = ports.rules_of(option, text, caps)
    except UsageError as error:
        assert error.message, "says nothing"
        if expected is not None and text != "none":
            refused = "auto" if expected.auto and not caps & CAP_AUTO else "Device binding"
            assert refused in error.message, f"refused: {error.message}"
        return
    if rules is None:
        assert text == "none"
        return
    assert expected is not None, "accepted"
    if option.pif == SPLICE and not caps & CAP_IFNAME and caps & 3 == 3:
        rules = rules[: len(rules) // 2]
    edges = {0, 1, 65535, EPHEMERAL[0] - 1, EPHEMERAL[0], EPHEMERAL[1], EPHEMERAL[1] + 1}
    for low, high, *_ in (*expected.ranges, *expected.excluded):
        edges |= {low - 1, low, high, high + 1}
    for number in edges:
        if 0 <= number <= 65535:
            assert expected.port(number) == meaning(rules, number), f"port {number}"
    for rule in rules:
        assert rule.auto == expected.auto
        assert Rule.unpack(rule.pack()) == rule, "changes on the wire"
        assert str(rule)
    check_table(option, text, caps)


def meaning(rules: list[Rule], number: int) -> Meaning | None:
    """What the first of ``rules`` that has the port makes of it."""
    for rule in rules:
        if rule.first <= number <= rule.last:
            best = bool(rule.flags & BEST_EFFORT)
            target = rule.target
            return Meaning(target, rule.target_port(number), best)
    return None


def check_table(option: ports.PortOption, text: str, caps: int) -> None:
    """Adding all of it or failing with a message, then deleting it again."""
    table = RuleTable(option.pif, caps)
    try:
        ports.add_rules(table, option, text)
    except UsageError as error:
        assert error.message
        assert len(table) <= 255
        return
    assert table.sockets == sum(rule.sockets for rule in table) <= MAX_SOCKETS
    for rule in table:
        assert 1 <= rule.first <= rule.last <= 65535
        assert 1 <= rule.to <= rule.target_port(rule.last) <= 65535
    ports.delete_rules(table, option, text)
    assert len(table) == table.sockets == 0


def seeds() -> Iterator[tuple[str, bytes]]:
    """Specifiers of every form, and of none."""
    for number, text in enumerate((
        "none", "auto", "all", "22", "22:23", "100-109:200-209", "all,~22,~80-90", "~25",
        "8000-8003,~8001",
        "192.0.2.1/22", "127.0.0.1%lo/22", "%eth0/22-25,auto", "*/22", "/22", "[::1]/22",
        "::/3000:2001:db8::1/81", "22:192.0.2.5", "22:[192.0.2.5]/80", "all:192.0.2.5", "0",
        "0.0.0.0/1-65535", "::ffff:192.0.2.1/22", "65535:1", "60000-65535:1-5536", "all,33000",
        "1-2:65535-65536", "foo/22", "%./22", "22:0", "22:::1/80", "~0-65535", "all,all:::1,auto",
    )):  # fmt: skip
        yield f"{number:02}", bytes((number % 4,)) + text.encode()
