"""The control protocol: its bytes, and what becomes of bytes that are wrong."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.control.protocol import (
    INCOMPLETE,
    MAX_REPLY,
    REFUSED,
    ProtocolError,
    ReceivedTable,
    RequestReader,
    pack_reply,
    pack_request,
    pack_state,
    read_greeting,
    read_tables,
    unpack_reply,
)
from passt.userspace.flow.rules import HOST, SPLICE, Rule, RuleError, RuleFormatError, RuleTable
from tests.unit.control_rig import PASST, PASTA, tcp

GREETING = b"basil:s\0" + struct.pack("!III", 2, 128, 16)


def tables(*rules: Rule, ns: tuple[Rule, ...] = ()) -> list[RuleTable]:
    host, splice = RuleTable(HOST, PASTA), RuleTable(SPLICE, PASTA)
    host.extend(rules)
    splice.extend(ns)
    return [host, splice]


def head(pif: int, name: bytes, count: int = 0, caps: int = PASTA) -> bytes:
    return struct.pack("!B128sII", pif, name, caps, count)


def received(data: bytes) -> list[ReceivedTable]:
    stream = io.BytesIO(data)
    read_greeting(stream.read)
    return read_tables(stream.read)


def section(pif: int, *rules: Rule) -> bytes:
    return struct.pack("!BI", pif, len(rules)) + b"".join(rule.pack() for rule in rules)


# From the server.


def test_state_of_passt() -> None:
    table = RuleTable(HOST, PASST)
    table.add(tcp(22, to=80))
    assert pack_state([table]) == (
        bytes.fromhex("626173696c3a7300 00000002 00000080 00000010")
        + bytes.fromhex("01")
        + b"HOST"
        + bytes(124)
        + bytes.fromhex("0000002f 00000001")
        + bytes(48)
        + bytes.fromhex("0016 0016 0050 06 01")
        + b"\0"
    )


def test_state_of_pasta_without_rules() -> None:
    assert pack_state(tables()) == GREETING + head(1, b"HOST") + head(3, b"SPLICE") + b"\0"


def test_state_is_read_as_it_was_meant() -> None:
    sent = tables(tcp(1, 10), tcp(80, ifname="lo"), ns=(tcp(9),))
    seen = received(pack_state(sent))
    assert [(t.pif, t.name, t.caps, t.sockets) for t in seen] == [
        (HOST, "HOST", PASTA, 11),
        (SPLICE, "SPLICE", PASTA, 1),
    ]
    assert [t.rules() for t in seen] == [t.rules() for t in sent]


def test_only_the_state_is_read() -> None:
    stream = io.BytesIO(pack_state(tables()) + b"reply")
    read_greeting(stream.read)
    read_tables(stream.read)
    assert stream.read() == b"reply"


def test_foreign_names_and_capabilities() -> None:
    (table,) = received(GREETING + head(9, "Größe\n".encode() + b"\xff", caps=0xFFFF00FF) + b"\0")
    assert (table.pif, table.name, table.caps) == (9, "Größe\n\\xff", 0xFFFF00FF)


def test_rules_of_the_server_are_kept_unchecked() -> None:
    odd = [Rule(6, 5, 4, 5, flags=0x80), Rule(99, 0, 0, 0), Rule(99, 0, 0, 0)]
    state = GREETING + head(1, b"HOST", 3) + b"".join(r.pack() for r in odd) + b"\0"
    (table,) = received(state)
    assert table.rules() == odd
    assert pack_request([table]) == section(1, *odd) + b"\0"


# Texts as observed of pesto 2026_10_02, except for version 1, which it believes to understand.
@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("Couldn't read server greeting: No data available", b""),
        ("Couldn't read server greeting: No data available", GREETING[:19]),
        ("Bad magic number from server", b"Basil:s\0" + GREETING[8:]),
        ("Unknown server protocol version 3 > 2", b"basil:s\0" + struct.pack("!III", 3, 9, 9)),
        ("Unsupported experimental server protocol", b"basil:s\0" + bytes(12)),
        (
            "Server protocol version 1 is too old, 2 is needed",
            b"basil:s\0" + struct.pack("!III", 1, 128, 16),
        ),
        (
            "Server has unexpected pif name size (64 not 128)",
            b"basil:s\0" + struct.pack("!III", 2, 64, 16),
        ),
        (
            "Server has unexpected IFNAMSIZ (20 not 16)",
            b"basil:s\0" + struct.pack("!III", 2, 128, 20),
        ),
        ("Error reading from control socket", GREETING),
        ("Error reading from control socket", GREETING + head(1, b"HOST")[:-1]),
        ("Error reading from control socket", GREETING + head(1, b"HOST")),
        (
            "Error reading from control socket",
            GREETING + head(1, b"HOST", 1) + tcp(1).pack()[:-1],
        ),
        ("Interface name was not NULL terminated", GREETING + head(1, b"x" * 128)),
        (
            "Interface name was not NULL terminated",
            GREETING + head(1, b"HOST", 1) + bytes(47) + b"x" + bytes(8),
        ),
        ("Too many forwarding rules", GREETING + head(1, b"HOST", 256)),
        (
            "Received duplicate interface identifier",
            GREETING + head(1, b"HOST") + head(1, b"X"),
        ),
        (
            "Received duplicate interface name",
            GREETING + head(1, b"HOST") + head(3, b"HOST"),
        ),
        (
            "passt has more pifs than pesto can manage (max 3)",
            GREETING + b"".join(head(n, b"%d" % n) for n in range(1, 5)),
        ),
    ],
)
def test_servers_that_are_not_understood(text: str, data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        received(data)
    assert str(caught.value) == text


@given(st.binary(max_size=600))
def test_any_state_is_read_or_refused(noise: bytes) -> None:
    for data in (noise, GREETING + noise, GREETING + head(1, b"HOST", 2) + noise):
        try:
            seen = received(data)
        except ProtocolError as error:
            assert str(error)
        else:
            assert len(seen) <= 3


# From the client.


def reader() -> RequestReader:
    return RequestReader(tables(tcp(7), ns=(tcp(8),)))


def test_request_replaces_all_tables() -> None:
    new = reader().feed(section(HOST, tcp(1), tcp(2)) + b"\0")
    assert new is not None
    assert [(t.pif, t.caps, t.rules()) for t in new] == [
        (HOST, PASTA, [tcp(1), tcp(2)]),
        (SPLICE, PASTA, []),
    ]


def test_tables_may_recur() -> None:
    new = reader().feed(section(HOST, tcp(1)) + section(SPLICE) + section(HOST, tcp(2)) + b"\0")
    assert new is not None
    assert new[0].rules() == [tcp(1), tcp(2)]


def test_shortest_request() -> None:
    new = reader().feed(b"\0")
    assert new is not None
    assert [len(t) for t in new] == [0, 0]


def test_bytes_after_the_end_are_ignored() -> None:
    new = reader().feed(section(HOST, tcp(1)) + b"\0\1\0\0\1\0")
    assert new is not None
    assert new[0].rules() == [tcp(1)]


def test_request_of_a_client() -> None:
    wanted = tables(tcp(1, 10), ns=(tcp(3), tcp(4)))
    new = reader().feed(pack_request(wanted))
    assert new is not None
    assert [t.rules() for t in new] == [t.rules() for t in wanted]


@given(st.lists(st.integers(1, 130), max_size=20))
def test_request_in_pieces(sizes: list[int]) -> None:
    request = section(HOST, tcp(1), tcp(2, 5)) + section(SPLICE, tcp(3)) + b"\0"
    incoming = reader()
    at = 0
    for size in sizes:
        piece = request[at : at + size]
        at += size
        if at >= len(request):
            break
        assert incoming.feed(piece) is None
    else:
        piece = request[at:]
    new = incoming.feed(piece)
    assert new is not None
    assert [t.rules() for t in new] == [[tcp(1), tcp(2, 5)], [tcp(3)]]


# Texts as observed of passt 2026_10_02.
@pytest.mark.parametrize(
    ("kind", "text", "request_"),
    [
        (ProtocolError, "Received 256 rules (maximum 255)", struct.pack("!BI", HOST, 256)),
        (ProtocolError, "Received rules for non-existent table", section(2)),
        (ProtocolError, "Received rules for non-existent table", section(255, tcp(1))),
        (RuleError, "Rule has invalid port range 5-4", section(HOST, tcp(5, 4))),
        (
            RuleFormatError,
            "Interface name was not NULL terminated",
            struct.pack("!BI", HOST, 1) + b"x" * 56,
        ),
        (
            RuleError,
            f"Forwarding configuration conflict: {tcp(1)} versus {tcp(1)}",
            section(HOST, tcp(1)) + section(HOST, tcp(1)),
        ),
        (
            RuleError,
            "Too many rules (maximum 255)",
            section(HOST, *map(tcp, range(1, 256))) + section(HOST, tcp(256)),
        ),
    ],
)
def test_requests_that_cannot_be_granted(kind: type[Exception], text: str, request_: bytes) -> None:
    with pytest.raises(kind) as caught:
        reader().feed(request_)
    assert str(caught.value) == text


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_request_is_incomplete_or_complete_or_refused(pieces: list[bytes]) -> None:
    incoming = reader()
    for piece in pieces:
        try:
            new = incoming.feed(piece)
        except (ProtocolError, RuleFormatError, RuleError) as error:
            assert str(error)
            return
        if new is not None:
            assert [table.pif for table in new] == [HOST, SPLICE]
            return


# The reply.


def test_replies() -> None:
    assert pack_reply(INCOMPLETE, ["a", "b"]) == b"\2a\nb"
    assert unpack_reply(b"\2a\nb") == (INCOMPLETE, ["a", "b"])
    assert unpack_reply(b"\1") == (REFUSED, [])
    assert unpack_reply(b"\1\xff") == (REFUSED, ["\\xff"])


def test_replies_are_bounded() -> None:
    reply = pack_reply(REFUSED, ["x" * 100] * 1000)
    assert len(reply) == MAX_REPLY
    assert unpack_reply(reply)[1][0] == "x" * 100
