"""The control protocol, version 2: forwarding rules over a UNIX stream socket.

The server speaks first.  It sends a greeting and all its tables, whether asked or not.  A
client that has seen enough hangs up; one that wants changes sends back *all* tables as they
are to be, since those it leaves out become empty.  A request counts from its last byte on:
until then nothing has happened, and what is wrong with any rule is wrong with the request.

Integers are unsigned, big-endian, and not aligned::

    greeting   8  "basil:s" NUL          table      1  pif, never 0
               4  version: 2                      128  name, padded with NUL
               4  size of a pif's name              4  capabilities
               4  size of an interface's            4  number of rules, then the rules

    state      greeting, tables, 0       request    { pif (1), number of rules (4), rules }, 0

A rule has 56 bytes, see :mod:`passt.userspace.flow.rules`.  A pif may occur more than once in
a request: its rules add up.

The original protocol ends here; the server closes the connection, and the client cannot know
whether ports could be opened.  We add a reply, which clients of the original do not read::

    reply      nothing if all went well, else
               1  REFUSED: nothing has changed, or INCOMPLETE: the rules are in force, but
                  not every port could be opened
               …  UTF-8 text up to the end of the stream, what was wrong, in lines

The server of the original replies nothing.  If it closes the connection with part of a
request unread, which it does if a rule is bad, the client gets ECONNRESET: refused, too.

Source: pesto(1), and observation of passt 2026_10_02.
"""

from __future__ import annotations

import struct

from passt.userspace.flow.rules import MAX_RULES, WIRE_SIZE, Rule, RuleFormatError, RuleTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAGIC = b"basil:s\0"
VERSION = 2
PIF_NAME_SIZE = 128
IFNAME_SIZE = 16

#: More tables than there are pifs are not for us.
MAX_TABLES = 3

#: First byte of a reply, see above.
REFUSED = 1
INCOMPLETE = 2

#: Longest reply in bytes: always fits into an empty socket buffer.
MAX_REPLY = 8192

_GREETING = struct.Struct("!8sIII")
_TABLE = struct.Struct("!B128sII")
_SECTION = struct.Struct("!BI")
_END = b"\0"


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the text is one line for the user."""


class ReceivedTable(RuleTable):
    """A table as the server described it: its name is the server's, its rules are not checked.

    Rules that we would not accept are kept as they are, so that sending a table back changes
    nothing but what was meant to change.  Rules added later are checked like any.
    """

    __slots__ = ("_label",)

    def __init__(self, pif: int, caps: int, label: str) -> None:
        super().__init__(pif, caps)
        self._label = label

    @property
    def name(self) -> str:
        """The name given by the server."""
        return self._label

    def receive(self, rule: Rule) -> None:
        """Append a rule of the server's."""
        self._rules.append(rule)
        self.sockets += rule.sockets


def pack_state(tables: Iterable[RuleTable]) -> bytes:
    """Return what a server sends to a new client."""
    parts = [_GREETING.pack(MAGIC, VERSION, PIF_NAME_SIZE, IFNAME_SIZE)]
    for table in tables:
        parts.append(_TABLE.pack(table.pif, table.name.encode(), table.caps, len(table)))
        parts += [rule.pack() for rule in table]
    parts.append(_END)
    return b"".join(parts)


def read_greeting(read: Callable[[int], bytes]) -> None:
    """Read the greeting of a server, which must be of version 2.

    ``read(n)`` returns the next ``n`` bytes, or fewer if the stream ends there.  Raises
    :class:`ProtocolError`, and what ``read`` raises.
    """
    greeting = read(_GREETING.size)
    if len(greeting) < _GREETING.size:
        raise ProtocolError("Couldn't read server greeting: No data available")
    magic, version, pif_name_size, ifname_size = _GREETING.unpack(greeting)
    if magic != MAGIC:
        raise ProtocolError("Bad magic number from server")
    if version > VERSION:
        raise ProtocolError(f"Unknown server protocol version {version} > {VERSION}")
    if version == 0:
        raise ProtocolError("Unsupported experimental server protocol")
    if version < VERSION:
        # Rules had no target address then, and 40 bytes.
        raise ProtocolError(f"Server protocol version {version} is too old, {VERSION} is needed")
    if pif_name_size != PIF_NAME_SIZE:
        raise ProtocolError(
            f"Server has unexpected pif name size ({pif_name_size} not {PIF_NAME_SIZE})"
        )
    if ifname_size != IFNAME_SIZE:
        raise ProtocolError(f"Server has unexpected IFNAMSIZ ({ifname_size} not {IFNAME_SIZE})")


def read_tables(read: Callable[[int], bytes]) -> list[ReceivedTable]:
    """Read the tables that follow the greeting; ``read`` and errors as there."""
    tables: list[ReceivedTable] = []
    while True:
        pif = _exactly(read, 1)
        if pif == _END:
            return tables
        if len(tables) == MAX_TABLES:
            raise ProtocolError(f"passt has more pifs than pesto can manage (max {MAX_TABLES})")
        table, count = _read_table(pif + _exactly(read, _TABLE.size - 1))
        for other in tables:
            if other.pif == table.pif:
                raise ProtocolError("Received duplicate interface identifier")
            if other.name == table.name:
                raise ProtocolError("Received duplicate interface name")
        for _ in range(count):
            table.receive(_read_rule(_exactly(read, WIRE_SIZE)))
        tables.append(table)


def _read_table(head: bytes) -> tuple[ReceivedTable, int]:
    """Read the head of a table; returns the empty table and the number of its rules."""
    pif, name, caps, count = _TABLE.unpack(head)
    if name[-1]:
        raise ProtocolError("Interface name was not NULL terminated")
    if count > MAX_RULES:
        raise ProtocolError("Too many forwarding rules")
    label = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    return ReceivedTable(pif, caps, label), count


def _read_rule(wire: bytes) -> Rule:
    try:
        return Rule.unpack(wire)
    except RuleFormatError as error:
        raise ProtocolError(str(error)) from None


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) < size:
        raise ProtocolError("Error reading from control socket")
    return data


def pack_request(tables: Iterable[RuleTable]) -> bytes:
    """Return what a client sends to have ``tables`` in the place of all tables."""
    parts = []
    for table in tables:
        parts.append(_SECTION.pack(table.pif, len(table)))
        parts += [rule.pack() for rule in table]
    parts.append(_END)
    return b"".join(parts)


class RequestReader:
    """Reads a request as it arrives into new tables with the pifs and capabilities of others.

    Holds at most one incomplete rule besides the tables.
    """

    __slots__ = ("_buffer", "_missing", "_table", "_tables")

    def __init__(self, tables: Iterable[RuleTable]) -> None:
        self._tables = {table.pif: RuleTable(table.pif, table.caps) for table in tables}
        self._buffer = bytearray()
        #: Rules of the current section that have not arrived, and where they go.
        self._missing = 0
        self._table = RuleTable(0, 0)

    def feed(self, data: bytes) -> list[RuleTable] | None:
        """Take the next bytes; returns the new tables once the request is complete.

        Bytes after its end are ignored.  Raises :class:`ProtocolError`, RuleFormatError or
        :class:`~passt.userspace.flow.rules.RuleError` for a request that cannot be granted;
        the reader is of no use afterwards.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while True:
            left = len(buffer) - at
            if self._missing:
                if left < WIRE_SIZE:
                    break
                self._table.add(Rule.unpack(bytes(buffer[at : at + WIRE_SIZE])))
                self._missing -= 1
                at += WIRE_SIZE
            elif left and not buffer[at]:
                return list(self._tables.values())
            elif left < _SECTION.size:
                break
            else:
                self._begin(*_SECTION.unpack_from(buffer, at))
                at += _SECTION.size
        del buffer[:at]
        return None

    def _begin(self, pif: int, count: int) -> None:
        table = self._tables.get(pif)
        if table is None:
            raise ProtocolError("Received rules for non-existent table")
        if count > MAX_RULES:
            raise ProtocolError(f"Received {count} rules (maximum {MAX_RULES})")
        self._table = table
        self._missing = count


def pack_reply(status: int, lines: Iterable[str]) -> bytes:
    """Return a reply of at most :data:`MAX_REPLY` bytes; ``status`` as above."""
    text = "\n".join(lines).encode("utf-8", "backslashreplace")
    return bytes((status,)) + text[: MAX_REPLY - 1]


def unpack_reply(reply: bytes) -> tuple[int, list[str]]:
    """Return status and lines of a reply that is not empty."""
    return reply[0], reply[1:].decode("utf-8", "backslashreplace").splitlines()
