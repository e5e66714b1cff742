"""The server of the control socket, with clients that do as they like."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passt.userspace import log
from passt.userspace.control import server as server_module
from passt.userspace.control.protocol import INCOMPLETE, REFUSED, pack_state
from passt.userspace.control.server import TIME_LIMIT, ControlServer
from passt.userspace.flow.rules import HOST, SPLICE, Rule
from passt.userspace.loop import EPOLLIN, Loop
from passt.userspace.socketpath import bind_private
from tests.unit.control_rig import Rig, tcp

EVERYTHING = 1 << 20


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, of any level."""
    lines: list[str] = []

    def emit(level: int, msg: str, *args: object) -> None:
        lines.append(msg % args if args else msg)

    monkeypatch.setattr(log, "emit", emit)
    monkeypatch.setattr(log, "debug_on", True)
    monkeypatch.setattr(log, "_windows", {})
    return lines


@pytest.fixture
def rig(tmp_path: Path, messages: list[str]) -> Iterator[Rig]:
    rig = Rig(str(tmp_path / "control"))
    yield rig
    rig.close()


def request(*rules: Rule, ns: tuple[Rule, ...] = ()) -> bytes:
    return (
        struct.pack("!BI", HOST, len(rules))
        + b"".join(rule.pack() for rule in rules)
        + struct.pack("!BI", SPLICE, len(ns))
        + b"".join(rule.pack() for rule in ns)
        + b"\0"
    )


def answer(rig: Rig, sock: socket.socket) -> bytes:
    """All that the server still says, up to its closing of the connection."""
    rig.rounds()
    data = bytearray()
    while True:
        try:
            more = sock.recv(EVERYTHING)
        except ConnectionResetError:
            break
        if not more:
            break
        data += more
    sock.close()
    return bytes(data)


def test_every_client_is_told_the_state(rig: Rig, messages: list[str]) -> None:
    rig.tables[0].add(tcp(80))
    with rig.connect() as client:
        rig.rounds()
        assert client.recv(EVERYTHING) == pack_state(rig.tables)
    rig.rounds()
    assert messages == [
        f"Accepted configuration client, PID {os.getpid()}",
        "Configuration client hangup",
    ]
    assert rig.replaced == 0


def test_one_client_at_a_time(rig: Rig) -> None:
    first = rig.greeted()
    second = rig.connect()
    rig.rounds()
    with pytest.raises(BlockingIOError):
        second.recv(1)
    with pytest.raises(BlockingIOError):
        rig.connect()
    first.close()
    rig.rounds()
    assert second.recv(EVERYTHING) == pack_state(rig.tables)
    second.close()


def test_request_replaces_the_tables(rig: Rig, messages: list[str]) -> None:
    client = rig.greeted()
    client.send(request(tcp(1, 9), tcp(80, to=8080), ns=(tcp(7),)))
    assert answer(rig, client) == b""
    assert rig.shown() == [
        ["TCP [*]:1-9  =>  1-9 ", "TCP [*]:80  =>  8080 "],
        ["TCP [*]:7  =>  7 "],
    ]
    assert messages[1:] == [
        "New forwarding rules for HOST:",
        "    TCP [*]:1-9  =>  1-9 ",
        "    TCP [*]:80  =>  8080 ",
        "New forwarding rules for SPLICE:",
        "    TCP [*]:7  =>  7 ",
    ]


def test_client_that_leaves_after_its_request(rig: Rig) -> None:
    rig.problems = ["Listen failed"]
    for _ in range(3):
        client = rig.greeted()
        client.send(request(tcp(1)))
        client.close()
        rig.rounds()
    assert rig.replaced == 3
    assert rig.shown() == [["TCP [*]:1  =>  1 "], []]


def test_request_before_the_greeting_was_read(rig: Rig) -> None:
    before = pack_state(rig.tables)
    client = rig.connect()
    client.send(request(tcp(1)))
    assert answer(rig, client) == before
    assert rig.shown() == [["TCP [*]:1  =>  1 "], []]


def test_request_byte_by_byte(rig: Rig) -> None:
    client = rig.greeted()
    for byte in request(tcp(1), ns=(tcp(2),)):
        assert rig.replaced == 0
        client.send(bytes((byte,)))
        rig.rounds(1)
    assert answer(rig, client) == b""
    assert rig.shown() == [["TCP [*]:1  =>  1 "], ["TCP [*]:2  =>  2 "]]


def test_longest_request(rig: Rig) -> None:
    rules = [tcp(port) for port in range(1, 256)]
    client = rig.greeted()
    client.send(request(*rules, ns=tuple(rules)))
    rig.rounds(20)
    assert answer(rig, client) == b""
    assert [table.rules() for table in rig.tables] == [rules, rules]


def test_ports_that_cannot_be_opened_are_reported(rig: Rig, messages: list[str]) -> None:
    rig.problems = ["Listen failed for HOST TCP port */80: Address already in use", "Again"]
    client = rig.greeted()
    client.send(request(tcp(80)))
    assert answer(rig, client) == bytes((INCOMPLETE,)) + "\n".join(rig.problems).encode()
    assert rig.shown() == [["TCP [*]:80  =>  80 "], []]
    assert messages[-1] == "Error switching to new forwarding rules"


def test_client_waits_for_its_request_to_be_carried_out(rig: Rig) -> None:
    rig.hold = True
    client = rig.greeted()
    client.send(request(tcp(1)))
    waiting = rig.connect()
    rig.rounds()
    assert rig.replaced == 1
    for sock in (client, waiting):
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    rig.problems = ["late"]
    rig.finish()
    assert answer(rig, client) == bytes((INCOMPLETE,)) + b"late"
    assert waiting.recv(EVERYTHING) == pack_state(rig.tables)
    waiting.close()


def test_client_gone_before_its_request_was_carried_out(rig: Rig) -> None:
    rig.hold = True
    client = rig.greeted()
    client.send(request(tcp(1)))
    rig.rounds()
    client.close()
    waiting = rig.connect()
    rig.rounds()
    assert rig.replaced == 1
    with pytest.raises(BlockingIOError):
        waiting.recv(1)
    rig.problems = ["late"]
    rig.finish()
    rig.rounds()
    assert waiting.recv(EVERYTHING) == pack_state(rig.tables)
    waiting.close()


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("Received 256 rules (maximum 255)", struct.pack("!BI", HOST, 256) + bytes(99)),
        ("Received rules for non-existent table", b"\2" + bytes(4)),
        ("Rule has invalid port range 5-4", request(tcp(1), tcp(5, 4))),
        ("Interface name was not NULL terminated", struct.pack("!BI", HOST, 1) + b"x" * 56),
        (
            (
                "Dual stack forward to IPv4 address 192.0.2.1 unsupported\n"
                "Did you mean 0.0.0.0/... instead?"
            ),
            request(tcp(1, target=bytes((192, 0, 2, 1)))),
        ),
        (
            f"Forwarding configuration conflict: {tcp(1)} versus {tcp(1)}",
            request(tcp(1), ns=(tcp(1), tcp(1))),
        ),
    ],
)
def test_refused_requests_change_nothing(
    rig: Rig, messages: list[str], text: str, data: bytes
) -> None:
    rig.tables[0].add(tcp(80))
    before = rig.shown()
    client = rig.greeted()
    client.send(data)
    assert answer(rig, client) == bytes((REFUSED,)) + text.encode()
    assert messages[1:] == text.split("\n")
    assert (rig.replaced, rig.shown()) == (0, before)
    rig.greeted().close()


def test_incomplete_requests_change_nothing(rig: Rig) -> None:
    whole = request(tcp(1), ns=(tcp(2),))
    for size in range(len(whole)):
        client = rig.greeted()
        client.send(whole[:size])
        client.shutdown(socket.SHUT_WR)
        assert answer(rig, client) == b""
    assert rig.replaced == 0


def test_surplus_is_ignored(rig: Rig) -> None:
    client = rig.greeted()
    client.send(request(tcp(1)) + request(tcp(2)) * 200)
    answer(rig, client)
    assert rig.replaced == 1
    assert rig.shown() == [["TCP [*]:1  =>  1 "], []]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(min_size=1, max_size=300))
def test_noise_ends_in_one_of_three_ways(rig: Rig, noise: bytes) -> None:
    before = rig.replaced
    client = rig.greeted()
    client.send(noise)
    client.shutdown(socket.SHUT_WR)
    reply = answer(rig, client)
    assert reply[:1] in (b"", bytes((REFUSED,)))
    if rig.replaced != before:
        assert noise[0] in (0, HOST, SPLICE)
        assert reply == b""
    rig.greeted().close()
    rig.rounds()


def test_stalling_client_loses_its_place(rig: Rig, messages: list[str]) -> None:
    client = rig.greeted()
    client.send(request(tcp(1))[:-1])
    waiting = rig.connect()
    rig.ahead += TIME_LIMIT - 1
    rig.rounds()
    with pytest.raises(BlockingIOError):
        client.recv(1)
    rig.ahead += 1
    assert answer(rig, client) == b""
    assert waiting.recv(EVERYTHING) == pack_state(rig.tables)
    assert messages.count("Configuration client timed out") == 1
    assert rig.replaced == 0
    waiting.close()


def test_time_limit_ends_with_the_request(rig: Rig, messages: list[str]) -> None:
    rig.hold = True
    client = rig.greeted()
    client.send(request(tcp(1)))
    rig.rounds()
    rig.ahead += 2 * TIME_LIMIT
    rig.rounds()
    rig.problems = ["late"]
    rig.finish()
    assert answer(rig, client) == bytes((INCOMPLETE,)) + b"late"
    assert "Configuration client timed out" not in messages


def test_stalling_client_stops_nobody_else(rig: Rig) -> None:
    client = rig.greeted()
    client.send(request(tcp(1))[:-1])
    rig.rounds()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seen: list[bytes] = []
        rig.loop.add(ours.fileno(), EPOLLIN, lambda _: seen.append(ours.recv(1)))
        theirs.send(b"x")
        rig.rounds(1)
        assert seen == [b"x"]
        rig.loop.remove(ours.fileno())
    client.close()


def test_client_that_reads_late(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state larger than any socket buffer arrives whole, and no round waits for it."""
    state = os.urandom(3 << 20)
    monkeypatch.setattr(server_module, "pack_state", lambda _: state)
    client = rig.connect()
    rig.rounds()
    got = bytearray()
    while len(got) < len(state):
        got += client.recv(100_000)
        rig.rounds(1)
    assert got == state
    client.send(request(tcp(1)))
    assert answer(rig, client) == b""
    assert rig.replaced == 1


def test_client_gone_before_the_greeting(rig: Rig) -> None:
    rig.connect().close()
    rig.rounds()
    rig.greeted().close()
    rig.rounds()
    assert rig.replaced == 0


class Listener(socket.socket):
    """A listening socket of a process that may have no descriptors left."""

    poor = True
    tries = 0

    def _accept(self) -> tuple[int, object]:
        """Fail, or accept."""
        self.tries += 1
        if self.poor:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super()._accept()  # type: ignore[misc]


def test_want_of_descriptors_is_no_busy_loop(tmp_path: Path, messages: list[str]) -> None:
    path = str(tmp_path / "other")
    listener = Listener(fileno=bind_private(path).detach())
    now = 0.0
    loop = Loop(lambda: now)
    server = ControlServer(loop, listener, list, lambda _tables, _done: None)
    server.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        client.setblocking(False)
        for _ in range(10):
            loop.round(0.0)
        assert listener.tries == 1
        assert messages == ["Control socket: Too many open files"]

        listener.poor = False
        now = 1.0
        loop.round(0.0)
        loop.round(0.0)
        assert client.recv(EVERYTHING) == pack_state([])
    server.close()
    assert listener.fileno() == -1


def test_closing_with_a_client(rig: Rig) -> None:
    client = rig.greeted()
    rig.close()
    assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        rig.connect()
    rig.close()


def test_closing_while_a_request_is_carried_out(rig: Rig) -> None:
    rig.hold = True
    client = rig.greeted()
    client.send(request(tcp(1)))
    rig.rounds()
    rig.close()
    rig.problems = ["late"]
    rig.finish()
    assert client.recv(1) == b""


def test_clients_cannot_flood_the_log(rig: Rig, messages: list[str]) -> None:
    rule = b"".join(tcp(port).pack() for port in range(1, 201))
    whole = struct.pack("!BI", HOST, 200) + rule + b"\0"
    for number in range(40):
        client = rig.greeted()
        client.send(whole if number % 2 else request(tcp(0)))
        answer(rig, client)
    assert rig.replaced == 20
    said = [line for line in messages if not line.startswith("Configuration client")]
    assert len(said) < 250, "one listing of the rules, the rest is limited"
    assert "    TCP [*]:200  =>  200 " in said
    assert "New forwarding rules for HOST: 200" in said
