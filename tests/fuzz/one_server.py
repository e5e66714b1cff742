"""The server's end of the control protocol: any bytes of a client, in any pieces.

A second decoder says what the bytes are: a request that is complete, one that is not, or none.
Only the first may change anything, and all of what it says.  Whatever a client does, the next
one is served.

Input: a byte of circumstances, then what the client sends.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random

from passt.userspace.control.protocol import MAX_REPLY, pack_request, pack_state
from passt.userspace.control.server import READ_SIZE, TIME_LIMIT, ControlServer
from passt.userspace.flow.nat import LOOPBACK4
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    MAX_RULES,
    SPLICE,
    WIRE_SIZE,
    Rule,
    RuleError,
    RuleFormatError,
    RuleTable,
)
from passt.userspace.loop import Loop
from tests.fuzz.journal import Journal
from tests.fuzz.mutate import havoc

MAX_LEN = 20000
DICTIONARY = (b"\0", b"\1\0\0\0\1", b"\3\0\0\0\0", b"\1\0\0\0\xff", b"\xff\xff\xff\xff", b"\6\0")

_CAPS = 0x3F, 0x2F


class Service:
    """A server with tables of its own, and a clock."""

    def __init__(self, *, pasta: bool, problems: Sequence[str], later: bool) -> None:
        self.time = 0.0
        self.loop = Loop(lambda: self.time)
        self.tables = [RuleTable(HOST, _CAPS[0 if pasta else 1])]
        if pasta:
            self.tables.append(RuleTable(SPLICE, _CAPS[0]))
        self.replaced = 0
        self._problems = problems
        self._later = later
        self._waiting: list[Callable[[Sequence[str]], None]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # An abstract name that the kernel chooses.
        self._listener.bind("")
        self._listener.setblocking(False)
        self.server = ControlServer(self.loop, self._listener, lambda: self.tables, self._replace)
        self.server.start()

    def _replace(self, tables: list[RuleTable], done: Callable[[Sequence[str]], None]) -> None:
        self.tables = tables
        self.replaced += 1
        if self._later:
            self._waiting.append(done)
        else:
            done(self._problems)

    def connect(self) -> socket.socket:
        """A client."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(self._listener.getsockname())
        return sock

    def turn(self) -> None:
        """Serve what there is."""
        for _ in range(4):
            self.loop.round(0.0)
        while self._waiting:
            self._waiting.pop()(self._problems)
            self.loop.round(0.0)

    def close(self) -> None:
        """End the server."""
        self.server.close()
        self.loop.round(0.0)
        self.loop._epoll.close()


def one(data: bytes) -> None:
    """Send the bytes, and see what becomes of them."""
    first = data[0] if data else 0
    sent = data[1:]
    before = len(os.listdir("/proc/self/fd"))
    problems = ("no port",) * (40 if first & 2 else 0)
    # Each rule of a request is told in a line.
    with Journal(repeats=2 * MAX_RULES + 20):
        service = Service(pasta=bool(first & 1), problems=problems, later=bool(first & 4))
        try:
            client = service.connect()
            try:
                converse(service, client, sent, 1 if first & 8 else READ_SIZE)
            finally:
                client.close()
            service.turn()
            next_is_served(service)
        finally:
            service.close()
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left"


def converse(service: Service, client: socket.socket, sent: bytes, step: int) -> None:
    """One client, from greeting to the end."""
    old = service.tables
    state = pack_state(old)
    fate, tables = decode(sent, old)
    for at in range(0, len(sent), step):
        try:
            client.send(sent[at : at + step])
        except OSError:
            break
        service.loop.round(0.0)
        session = service.server._session
        assert session is None or len(session._reader._buffer) < WIRE_SIZE + READ_SIZE
    service.turn()
    if fate == "incomplete":
        assert service.server._session is not None, "gave up on a request that may be completed"
        service.time += TIME_LIMIT + 1
        service.turn()
    assert service.server._session is None, "keeps a client without need"
    said = b""
    try:
        while more := client.recv(1 << 16):
            said += more
    except ConnectionResetError:
        assert len(said) <= len(state) + MAX_REPLY
    else:
        assert said.startswith(state), "another greeting"
        reply = said[len(state) :]
        assert len(reply) <= MAX_REPLY, "reply too long"
        reply[1:].decode()
        assert reply[:1] in (b"", b"\1", b"\2")
        assert (reply[:1] == b"\1") <= (fate == "refused"), "refuses what it grants"
    if fate == "complete":
        assert service.replaced == 1, "not carried out"
        assert [[rule.pack() for rule in table] for table in service.tables] == tables
    else:
        assert service.replaced == 0, f"carried out, but {fate}"
        assert service.tables is old, "changed"


def next_is_served(service: Service) -> None:
    """Another client gets what the state is now."""
    client = service.connect()
    try:
        service.turn()
        assert client.recv(1 << 18) == pack_state(service.tables)
    finally:
        client.close()
    service.turn()


def decode(data: bytes, old: Sequence[RuleTable]) -> tuple[str, list[list[bytes]]]:
    """``"complete"``, ``"incomplete"`` or ``"refused"``, and the rules in wire form by table."""
    tables = {table.pif: RuleTable(table.pif, table.caps) for table in old}
    at = 0
    while at < len(data):
        pif = data[at]
        if not pif:
            return "complete", [[rule.pack() for rule in table] for table in tables.values()]
        if at + 5 > len(data):
            break
        (count,) = struct.unpack_from("!I", data, at + 1)
        if pif not in tables or count > MAX_RULES:
            return "refused", []
        at += 5
        for _ in range(count):
            if at + WIRE_SIZE > len(data):
                return "incomplete", []
            try:
                tables[pif].add(Rule.unpack(data[at : at + WIRE_SIZE]))
            except (RuleError, RuleFormatError):
                return "refused", []
            at += WIRE_SIZE
    return "incomplete", []


def _tables(*rules: Rule) -> list[RuleTable]:
    host, splice = RuleTable(HOST, 0x3F), RuleTable(SPLICE, 0x3F)
    host.extend(rules)
    splice.add(Rule(IPPROTO_TCP, 5000, 5001, 6000, LOOPBACK4, "lo"))
    return [host, splice]


def seeds() -> Iterator[tuple[str, bytes]]:
    """Requests that are granted, and some that are not."""
    rules = [
        Rule(IPPROTO_TCP, 8080, 8080, 80),
        Rule(IPPROTO_UDP, 53, 60, 53, LOOPBACK4, "", b"\xc0\0\2\5"),
        Rule(IPPROTO_TCP, 1, 79, 1, flags=BEST_EFFORT | AUTO),
    ]
    whole = pack_request(_tables(*rules))
    yield "whole", b"\1" + whole
    yield "slow", b"\x0d" + whole[: 5 + 2 * WIRE_SIZE]
    yield "problems", b"\3" + whole
    yield "later", b"\7" + pack_request(_tables())
    yield "passt", b"\0" + pack_request(_tables(*rules[:2])[:1])
    yield "foreign-table", b"\0" + whole
    yield "surplus", b"\1" + whole + b"more"
    yield "conflict", b"\1\1\0\0\0\2" + rules[0].pack() * 2 + b"\0"
    yield "too-many", b"\1\1\0\0\1\0" + rules[0].pack()
    many = [Rule(IPPROTO_TCP, port, port, port) for port in range(1000, 1000 + MAX_RULES)]
    yield "longest", b"\1" + pack_request(_tables(*many[:60]))
    yield "nothing", b"\1"
    yield "empty", b"\1\0"


def mutate(data: bytes, rnd: Random) -> bytes:
    """A field of a rule, a count, a rule more or less."""
    out = bytearray(data)
    kind = rnd.randrange(5)
    if kind == 0 or len(out) < 6 + WIRE_SIZE:
        return havoc(data, rnd, limit=MAX_LEN, dictionary=DICTIONARY)
    at = 6 + WIRE_SIZE * rnd.randrange((len(out) - 6) // WIRE_SIZE)
    if kind == 1:
        out[at + rnd.choice((0, 15, 16, 31, 32, 47, 48, 50, 52, 54, 55))] = rnd.randrange(256)
    elif kind == 2:
        out[at + 48 : at + 54] = struct.pack("!3H", *(rnd.choice((0, 1, 80, 65535)) for _ in "abc"))
    elif kind == 3:
        out[at:at] = out[at : at + WIRE_SIZE]
        out[5] = (out[5] + 1) & 0xFF
    else:
        del out[at : at + WIRE_SIZE]
        out[5] = (out[5] - 1) & 0xFF
    return bytes(out)
