"""The client's end of the control protocol: whatever a server says, pesto prints or refuses it.

What the server says may be anything but must not reach the terminal as it is, and tables that
are sent back unchanged must be those that came.

Input: what the server sends, after a byte that says how much of it is held back until the
client has sent its request.
"""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Iterator
from random import Random

from passt.userspace.config.errors import UsageError
from passt.userspace.control.client import Connection, ControlError
from passt.userspace.control.edit import Editor
from passt.userspace.control.protocol import (
    MAX_TABLES,
    ProtocolError,
    ReceivedTable,
    pack_reply,
    pack_request,
    pack_state,
    read_greeting,
    read_tables,
)
from passt.userspace.control.show import debug_line, table_lines, table_object
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, MAX_RULES, SPLICE, Rule, RuleTable
from tests.fuzz.journal import Journal
from tests.fuzz.mutate import havoc

MAX_LEN = 20000
DICTIONARY = (b"basil:s\0", b"\0\0\0\2", b"\0\0\0\x80", b"\0\0\0\x10", b"HOST\0", b"SPLICE\0",
              b"\x1b[2J", b"\0")  # fmt: skip

_STEPS = (("-A", ""), ("-t", "8080:80"), ("-U", "auto"), ("-D", ""), ("-t", "8080:80"),
          ("-C", "HOST"))  # fmt: skip


def one(data: bytes) -> None:
    """Read a server's state, by itself and over a connection."""
    held, said = (data[0] if data else 0), data[1:]
    with Journal():
        stream = io.BytesIO(said)
        try:
            read_greeting(stream.read)
            tables = read_tables(stream.read)
        except ProtocolError as error:
            assert str(error).isprintable(), "not fit to be printed"
            tables = None
        else:
            check(tables, said, stream.tell())
        end = stream.tell()
        talk(said, end if tables is not None else max(len(said) - held, 0), tables)


def check(tables: list[ReceivedTable], said: bytes, end: int) -> None:
    """What was read can be shown, and is what was said."""
    assert len(tables) <= MAX_TABLES
    for table in tables:
        assert len(table) <= MAX_RULES
    for line in (*table_lines(tables), *(debug_line(table) for table in tables)):
        assert line.isprintable(), f"not fit to be printed: {line!r}"
    json.loads(json.dumps([table_object(table) for table in tables]))
    at = 20
    for table in tables:
        at += 137
        for rule in table:
            assert same(rule.pack(), said[at : at + 56]), "another rule"
            at += 56
    assert said[at : at + 1] == b"\0"
    assert at + 1 == end
    pack_request(tables)


def same(packed: bytes, wire: bytes) -> bool:
    """Whether a rule is what came, but for what follows the name's end."""
    name = wire[32:48].partition(b"\0")[0].ljust(16, b"\0")
    return packed == wire[:32] + name + wire[48:]


def talk(said: bytes, first: int, tables: list[ReceivedTable] | None) -> None:
    """The same over a socket, then changes, a request, and the rest as the server's reply."""
    ours, theirs = socket.socketpair()
    connection = Connection.__new__(Connection)
    connection._sock = ours
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setblocking(False)
        theirs.send(said[:first])
        if tables is None:
            theirs.shutdown(socket.SHUT_WR)
            try:
                connection.state()
            except ControlError as error:
                assert all(line.isprintable() for line in str(error).split("\n"))
                return
            raise AssertionError("read over a socket what is nothing")
        got = connection.state()
        assert [[rule.pack() for rule in table] for table in got] == [
            [rule.pack() for rule in table] for table in tables
        ]
        editor = Editor(got)
        for spelling, value in _STEPS:
            try:
                editor.apply(spelling, value)
            except UsageError as error:
                assert str(error)
        theirs.send(said[first : first + 8192])
        theirs.shutdown(socket.SHUT_WR)
        status, lines = connection.replace(got)
        assert 0 <= status <= 255
        assert all("\n" not in line for line in lines)


def state(*rules: Rule) -> bytes:
    """What a server of ours says."""
    host, splice = RuleTable(HOST, 0x3F), RuleTable(SPLICE, 0x3F)
    host.extend(rules)
    return pack_state([host, splice])


def seeds() -> Iterator[tuple[str, bytes]]:
    """States, foreign names, and replies."""
    rules = Rule(IPPROTO_TCP, 8080, 8081, 80), Rule(IPPROTO_TCP, 1, 9, 1, bytes(16), "eth0")
    whole = state(*rules)
    yield "whole", b"\0" + whole
    yield "refused", b"\0" + state() + pack_reply(1, ["no", "\x1b[2Jyes"])
    yield "incomplete", b"\0" + state(*rules) + pack_reply(2, ["Listen failed"])
    yield "escape", b"\0" + whole.replace(b"HOST\0", b"\x1b[2J")
    yield "three", b"\0" + whole[:-1] + struct.pack("!B128sII", 2, b"TAP", 0xFFFFFFFF, 0) + b"\0"
    yield "version", b"\0" + whole[:11] + b"\3" + whole[12:]
    yield "cut", b"\7" + whole[:-60]
    yield "nothing", b"\0"


def mutate(data: bytes, rnd: Random) -> bytes:
    """The fields behind the greeting, or anything."""
    if len(data) < 200 or rnd.random() < 0.3:
        return havoc(data, rnd, limit=MAX_LEN, dictionary=DICTIONARY)
    tail = havoc(data[21:], rnd, limit=MAX_LEN, dictionary=DICTIONARY)
    return data[:21] + tail
