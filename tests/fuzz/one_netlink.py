"""Netlink: tables of links, addresses and routes, and the transport below, in a hostile namespace.

The input is a program (:mod:`tests.fuzz.program`).  Its steps are bodies of messages, which come
to be the host's tables, and datagrams, which are delivered to who asks a question.  The tables
are read, looked through for a template, and made into requests for a namespace, as start-up
does.  A second reader of the same bytes, plain and slow, says what must come of it: an entry is
understood whole or not at all, and what is copied differs from the original in nothing but what
must.  Whatever arrives from the kernel or instead of it, a question ends in an answer or an
OSError.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from errno import EAGAIN, ENOBUFS
from random import Random

from passt.kernel import sockdiag
from passt.kernel.follow import monitor
from passt.kernel.netlink import route_socket, uapi
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.neighbours import NeighbourSocket
from passt.kernel.netlink.records import (
    parse_address,
    parse_link,
    read_addresses,
    read_link,
    read_routes,
)
from passt.kernel.netlink.route_socket import NetlinkError, RouteSocket
from passt.userspace.flow.nat import Nat
from passt.userspace.services.neighbours import MAX_ENTRIES, Neighbours
from tests.fuzz import oracle, program
from tests.fuzz.journal import Journal
from tests.fuzz.mutate import havoc
from tests.fuzz.netlink_tables import (
    attributes,
    check_address,
    check_link,
    check_routes,
    check_rules,
)
from tests.fuzz.program import Step
from tests.unit import fakes
from tests.unit import netlink_bytes as make
from tests.unit.fakes import GATEWAY4, GUEST6

MAX_LEN = 4000
DICTIONARY = tuple(struct.pack("=HH", 8, kind) for kind in (1, 2, 3, 4, 5, 8, 9, 15, 23, 30))

OPERATIONS = (
    "link", "address", "route", "route6", "rule", "datagram", "answer", "stranger", "overflow",
)  # fmt: skip
LINK, ADDRESS, ROUTE, ROUTE6, RULE, DATAGRAM, ANSWER, STRANGER, OVERFLOW = range(len(OPERATIONS))


def one(data: bytes) -> None:
    """Read what the program says there is."""
    steps = program.decode(data, len(OPERATIONS))
    bodies = [[body for operation, body in steps if operation == kind] for kind in range(5)]
    for body in bodies[LINK]:
        check_link(body)
    addresses = [found for body in bodies[ADDRESS] if (found := check_address(body)) is not None]
    for family, routes in ((socket.AF_INET, bodies[ROUTE]), (socket.AF_INET6, bodies[ROUTE6])):
        own = [each for each in addresses if each.family == family]
        check_routes(family, routes, own)
        check_rules(family, routes, bodies[RULE], [each.local for each in own])
    if any(operation >= DATAGRAM for operation, _ in steps):
        check_questions(steps)


# Tables.


class Wire:
    """Stands for a netlink socket to which the datagrams of the program are delivered in order."""

    def __init__(self, steps: list[Step]) -> None:
        self._queue = deque(steps)
        self._sequence = 0

    # As the socket module has it.

    def __call__(self, *_: int) -> Wire:
        return self

    def setsockopt(self, *_: int) -> None:
        """All options are there."""

    def settimeout(self, _seconds: float) -> None:
        """Silence is an error at once."""

    def connect(self, address: tuple[int, int]) -> None:
        """To the kernel."""
        assert address == (0, 0)

    def close(self) -> None:
        """Nothing is left."""

    def send(self, datagram: bytes) -> int:
        """Take a request: the next answers are to it."""
        at = 0
        while at < len(datagram):
            size, _, flags, self._sequence, _ = struct.unpack_from("=IHHII", datagram, at)
            assert flags & 1 and size >= 16
            at += (size + 3) // 4 * 4
        return len(datagram)

    def recvfrom_into(
        self, buffer: bytearray, _size: int = 0, flags: int = 0
    ) -> tuple[int, tuple[int, int]]:
        """The next datagram, or what its length is."""
        if not self._queue:
            raise TimeoutError
        operation, data = self._queue[0]
        if operation == OVERFLOW:
            self._queue.popleft()
            raise OSError(ENOBUFS, "No buffer space available")
        if operation == ANSWER:
            data = self._answer(data)
        if not flags:
            self._queue.popleft()
            buffer[: len(data)] = data
        return len(data), (1 if operation == STRANGER else 0, 0)

    def recv(self, _size: int) -> bytes:
        """The next datagram, whoever sent it: who is connected to the kernel does not ask."""
        if not self._queue:
            raise BlockingIOError(EAGAIN, "Resource temporarily unavailable")
        operation, data = self._queue.popleft()
        if operation == OVERFLOW:
            raise OSError(ENOBUFS, "No buffer space available")
        return self._answer(data) if operation == ANSWER else data

    def _answer(self, data: bytes) -> bytes:
        """A message to the last question: type, flags, how many before the last, and a body."""
        kind, flags, back = struct.unpack("=HHB", data[:5].ljust(5, b"\0"))
        sequence = (self._sequence - back) & 0xFFFFFFFF
        return struct.pack("=IHHII", 16 + len(data[5:]), kind, flags, sequence, 0) + data[5:]


def check_questions(steps: list[Step]) -> None:
    """Each question has an answer or fails, whatever is delivered."""
    delivered = [step for step in steps if step[0] >= DATAGRAM]
    questions: tuple[Callable[[RouteSocket], object], ...] = (
        lambda sock: read_link(sock, 2),
        lambda sock: read_addresses(sock, socket.AF_INET6, 2),
        lambda sock: read_routes(sock, socket.AF_INET, 2),
        lambda sock: sock.batch(24, 0, [b"abc", b"defg", b""]),
        lambda sock: sock.request(16, 0, bytes(16)),
    )
    original = route_socket.socket.socket
    for question in questions:
        route_socket.socket.socket = Wire(delivered)  # type: ignore[assignment,misc]
        try:
            question(RouteSocket())
        except NetlinkError as error:
            assert error.errno and error.strerror
        except (FormError, OSError):
            pass
        finally:
            route_socket.socket.socket = original  # type: ignore[misc]
    check_ports(delivered)
    check_neighbours(delivered)
    changes = monitor.Changes()
    for step in delivered:
        for kind, body in monitor._messages(_bytes(Wire([]), step)):
            changes.matters(kind, body)
            check_news(changes, kind, body)
    assert len(changes._seen) <= len(delivered) * 300


def check_news(changes: monitor.Changes, kind: int, body: bytes) -> None:
    """Of links and addresses, what has been said before is no news."""
    try:
        if kind == uapi.RTM_NEWLINK:
            parse_link(body)
        elif kind == uapi.RTM_NEWADDR:
            parse_address(body)
        else:
            return
    except FormError:
        return
    assert not changes.matters(kind, body), "told twice"


def check_neighbours(delivered: list[Step]) -> None:
    """The same as news of neighbours, and as an answer about all: what is kept of it."""
    source = NeighbourSocket.__new__(NeighbourSocket)
    source._indices = {socket.AF_INET: 2, socket.AF_INET6: 2}
    source._sequence = 0
    source._changes = Wire(delivered)  # type: ignore[assignment]
    expected: list[Entry] = []
    for step in delivered:
        expected += neighbours_in(_bytes(source._changes, step))  # type: ignore[arg-type]
    changes = source.changes()
    lost = any(operation == OVERFLOW for operation, _ in delivered)
    assert changes == (None if lost else expected)
    config, link = fakes.config(), fakes.FakeLink()
    source._changes = Wire([])  # type: ignore[assignment]
    source._questions = Wire(delivered)  # type: ignore[assignment]
    with Journal():
        table = Neighbours(config, Nat(config), link, Still(), source)  # type: ignore[arg-type]
        table._update()
        if changes is not None:
            table._take(changes)
        table.announce()
    assert len(table._macs) <= MAX_ENTRIES
    for addr, mac in table._macs.items():
        assert oracle.is_unicast(addr) and not oracle.is_loopback(addr)
        assert len(mac) == 6 and any(mac) and not mac[0] & 1
    for prefix, frame in link.sent:
        oracle.outgoing(prefix, frame, frame[6:12])


class Still:
    """A loop in which no time passes."""

    now = 1.0

    def call_at(self, _when: float, _callback: object) -> None:
        """Never."""


Entry = tuple[bytes, bytes, bool]


def neighbours_in(datagram: bytes) -> list[Entry]:
    """Address, MAC and whether it is valid, by the second reader."""
    found: list[Entry] = []
    while len(datagram) >= 16:
        size, kind = struct.unpack("=IH", datagram[:6])
        if not 16 <= size <= len(datagram) or kind in (2, 3):
            break
        body = datagram[16:size]
        datagram = datagram[(size + 3) // 4 * 4 :]
        listed = attributes(body[12:], 0xFFFF)
        if kind not in (28, 29) or len(body) < 12 or listed is None:
            continue
        last = dict(listed)
        length = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(body[0], -1)
        address = last.get(1, b"")
        if body[4:8] == struct.pack("=i", 2) and body[11] == 1 and len(address) == length:
            state = struct.unpack("=H", body[8:10])[0]
            found.append((address, last.get(2, b""), kind == 28 and bool(state & 0xDE)))
    return found


def check_ports(delivered: list[Step]) -> None:
    """The same datagrams as an answer about sockets: a set of ports, or OSError."""
    diag = sockdiag.SocketDiag.__new__(sockdiag.SocketDiag)
    wire = Wire(delivered)
    # What is there before the question is dropped: it has to come after it.
    held, wire._queue = wire._queue, deque()
    ask = wire.send

    def send(request: bytes) -> int:
        wire._queue = held
        return ask(request)

    wire.send = send  # type: ignore[method-assign]
    diag.__init__(wire)  # type: ignore[misc]
    try:
        ports = diag.ports(socket.AF_INET, socket.IPPROTO_TCP, 10)
    except OSError:
        return
    # Sequence numbers are not looked at: there is one question at a time.
    expected: set[int] = set()
    for messages in (_bytes(wire, step) for step in delivered):
        while len(messages) >= 16:
            size, kind = struct.unpack("=IH", messages[:6])
            if kind == 3:
                assert ports == expected
                return
            assert kind == 20 and size >= 24, "other messages are taken for sockets"
            expected.add(int.from_bytes(messages[20:22], "big"))
            messages = messages[(size + 3) // 4 * 4 :]
    raise AssertionError("an answer without end")


def _bytes(wire: Wire, step: Step) -> bytes:
    operation, data = step
    return wire._answer(data) if operation == ANSWER else data


# Inputs.


def answer(kind: int, body: bytes, *, flags: int = 2, back: int = 0) -> Step:
    """A message that answers the question before."""
    return ANSWER, struct.pack("=HHB", kind, flags, back) + body


def listening(port: int, size: int = 72) -> bytes:
    """The body of a message about one socket."""
    return b"\2\n\0\0" + struct.pack("!H", port) + bytes(size - 6)


def rule(table: int, *selectors: bytes, source: int = 0, flags: int = 0) -> bytes:
    """The body of a message about a routing rule for IPv4."""
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, source, 0, table, 0, 0, 1, flags)
    return header + b"".join(selectors)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Tables of ordinary hosts, and conversations that go right or wrong."""
    host = [
        (LINK, struct.pack("=BxHiII", 0, 1, 2, 0, 0) + make.attr(3, b"eth0\0") + make.attr(1, MAC)),
        (ADDRESS, make.address("192.0.2.10", 24, label="eth0")),
        (ADDRESS, make.address("192.0.2.11", 32, peer="192.0.2.1", extra=make.attr(6, bytes(16)))),
        (ADDRESS, make.address("2001:db8::10", 64)),
        (ADDRESS, make.address("fe80::1", 64, scope=make.LINK_SCOPE)),
        (ROUTE, make.route(index=2, gateway="192.0.2.1", metric=100)),
        (ROUTE, make.route("192.0.2.0/24", 2, protocol=make.KERNEL, scope=make.LINK_SCOPE)),
        (ROUTE, make.route("169.254.0.0/16", 2, extra=make.attr(7, bytes(4)))),
        (ROUTE6, make.route(index=2, gateway="fe80::1")),
        (ROUTE6, make.route("fe80::/64", 2, family=socket.AF_INET6, flags=4)),
    ]
    yield "host", program.encode(host)
    several = [make.hop(2, "192.0.2.1"), make.hop(2, "192.0.2.2", 5, 4), make.hop(2)]
    yield "multipath", program.encode([(ROUTE, make.route(hops=several)), host[5]])
    others = [make.hop(2, "192.0.2.1"), make.hop(3, "198.51.100.1")]
    yield (
        "interfaces",
        program.encode(
            [(ROUTE, make.route(hops=others)), (ROUTE, make.route(index=3)), (ROUTE, make.route())]
        ),
    )
    elsewhere = [
        make.route(index=3, gateway="198.51.100.1", table=100),
        make.route("192.0.2.0/24", 3, table=100),
        make.route(index=2, gateway="192.0.2.1", table=1000)[:4] + b"\xfc"
        + make.route(index=2, gateway="192.0.2.1", table=1000)[5:],
    ]  # fmt: skip
    rules = [
        rule(255),
        rule(254, make.u32(14, 0)),
        rule(7, make.u32(10, 7)),
        rule(100, make.attr(2, bytes((192, 0, 2, 10))), source=32),
        rule(0, make.u32(15, 1000), make.u32(10, 7), flags=2),
    ]
    yield (
        "rules",
        program.encode(
            [*((ROUTE, body) for body in elsewhere), *((RULE, body) for body in rules), host[1]]
        ),
    )
    odd = make.route(index=2)[:-2], make.route(index=2, table=7), make.route(index=2, flags=0x200)
    yield "odd", program.encode([(ROUTE, body) for body in odd] + [(LINK, b""), (ADDRESS, b"\2")])
    done = answer(3, bytes(4))
    yield "dump", program.encode([answer(24, body) for _, body in host[5:8]] + [done])
    yield "get", program.encode([answer(16, host[0][1], flags=0)])
    refused = struct.pack("=i", -1) + bytes(16)
    words = make.attr(1, b"not here\0")
    yield "refused", program.encode([answer(2, refused + words, flags=0x300)])
    whole = struct.pack("=i", -22) + struct.pack("=IHHII", 19, 24, 1, 1, 0) + b"abc\0" + words
    yield "words", program.encode([answer(2, whole, flags=0x200)])
    acks = [answer(2, bytes(20), back=back) for back in (2, 1, 0)]
    yield "batch", program.encode(acks)
    yield "interrupted", program.encode([answer(24, host[5][1], flags=0x12), done] * 6)
    stranger = (STRANGER, host[0][1])
    yield "noise", program.encode([stranger, (OVERFLOW, b""), (DATAGRAM, b"abc"), stranger, done])
    near = [
        answer(kind, neighbour(addr, mac, state), back=back)
        for kind, addr, mac, state, back in (
            (28, GATEWAY4, MAC, 2, 0),
            (28, bytes((192, 0, 2, 7)), MAC, 4, 0),
            (28, bytes((192, 0, 2, 8)), b"", 1, 0),
            (28, GUEST6[:15] + b"\7", MAC, 0x40, 1),
            (29, bytes((192, 0, 2, 7)), MAC, 2, 1),
        )
    ]
    yield "neighbours", program.encode([*near, done, answer(3, bytes(4), back=1), done])
    sockets = [answer(20, listening(port)) for port in (22, 80)]
    yield "sockets", program.encode([*sockets, done])
    joined = b"".join(_bytes(Wire([]), step) for step in (*sockets, done))
    yield "joined", program.encode([(DATAGRAM, joined)])
    uneven = [answer(20, listening(22, 73)), answer(20, listening(80, 80))]
    yield "uneven", program.encode([*uneven, (DATAGRAM, b"x" * 5 + joined[-20:])])


MAC = bytes.fromhex("020000000002")


def neighbour(address: bytes, mac: bytes, state: int) -> bytes:
    """The body of a message about a neighbour."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    head = struct.pack("=BxxxiHBB", family, 2, state, 0, 1)
    return head + make.attr(1, address) + (make.attr(2, mac) if mac else b"")


def mutate(data: bytes, rnd: Random) -> bytes:
    """Another program."""
    return program.mutate(data, rnd, len(OPERATIONS), _change, _fresh)


def _change(step: Step, rnd: Random) -> Step:
    return step[0], havoc(step[1], rnd, limit=600, dictionary=DICTIONARY)


def _fresh(rnd: Random) -> Step:
    operation = rnd.randrange(len(OPERATIONS))
    payload = make.attr(rnd.choice((1, 2, 4, 5, 7, 8, 9)), rnd.randbytes(rnd.choice((0, 2, 4, 16))))
    if operation in (ROUTE, ROUTE6):
        family = socket.AF_INET if operation == ROUTE else socket.AF_INET6
        return operation, make.route(index=rnd.choice((None, 1, 2)), family=family, extra=payload)
    if operation == RULE:
        return operation, rule(rnd.choice((7, 252, 254)), payload, source=rnd.randrange(129))
    if operation == ADDRESS:
        local = rnd.choice(("192.0.2.9", "2001:db8::9", "fe80::9"))
        return operation, make.address(local, rnd.randrange(129), extra=payload)
    return operation, rnd.randbytes(rnd.choice((0, 5, 20, 40))) + payload
