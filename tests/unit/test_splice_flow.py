"""Spliced connections: messages, half-close, the end, and abnormal ends."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator

import pytest

from passt.userspace import log
from passt.userspace.splice.flow import BUFFER_SIZE, SplicedTcp
from tests.unit.fakes import open_descriptors
from tests.unit.splice_kit import Bypass, reset


@pytest.fixture
def bypass() -> Iterator[Bypass]:
    kit = Bypass()
    yield kit
    kit.close()


# Messages.


def test_messages_pass_both_ways(bypass: Bypass) -> None:
    client, server = bypass.connect()
    for size in (1, 5, 49, 1000, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1):
        bypass.transfer(client, server, os.urandom(size))
        bypass.transfer(server, client, os.urandom(size))


def test_server_may_speak_first(bypass: Bypass) -> None:
    client, server = bypass.connect()
    bypass.transfer(server, client, b"220 ready\r\n")
    bypass.transfer(client, server, b"EHLO\r\n")


def test_data_sent_before_we_accept(bypass: Bypass) -> None:
    client = bypass.client()
    client.sendall(b"early")
    server = bypass.server()
    bypass.expect(server, b"early")


def test_both_sockets_send_at_once(bypass: Bypass) -> None:
    bypass.connect()
    (flow,) = bypass.flows()
    for end in (flow.client, flow.server):
        assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_idle_connection_holds_two_descriptors(bypass: Bypass) -> None:
    before = open_descriptors()
    client, server = bypass.connect()
    bypass.transfer(client, server, b"x")
    # The two of the test, and ours, one of which was in the pool.
    assert open_descriptors() == before + 3
    assert bypass.idle()


# The end.


def test_client_then_server_finish(bypass: Bypass) -> None:
    client, server = bypass.connect()
    client.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.is_finished(server)
    assert len(bypass.flows()) == 1
    bypass.transfer(server, client, b"still open this way")
    server.close()
    bypass.settle()
    assert bypass.is_finished(client)
    bypass.until_gone()


def test_server_then_client_finish(bypass: Bypass) -> None:
    client, server = bypass.connect()
    server.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.is_finished(client)
    bypass.transfer(client, server, b"still open this way")
    client.close()
    bypass.settle()
    assert bypass.is_finished(server)
    bypass.until_gone()


def test_half_closed_connection_is_at_rest(bypass: Bypass) -> None:
    client, _server = bypass.connect()
    client.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.idle()
    assert len(bypass.flows()) == 1


def test_client_finishes_before_we_accept(bypass: Bypass) -> None:
    client = bypass.client()
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    server = bypass.server()
    bypass.expect(server, b"request")
    assert bypass.is_finished(server)
    bypass.transfer(server, client, b"answer")


def test_both_finish_at_once(bypass: Bypass) -> None:
    client, server = bypass.connect()
    client.sendall(b"last of client")
    server.sendall(b"last of server")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    bypass.settle()
    bypass.expect(client, b"last of server")
    bypass.expect(server, b"last of client")
    assert bypass.is_finished(client)
    assert bypass.is_finished(server)
    bypass.until_gone()


@pytest.mark.parametrize("first", ["client", "server"])
def test_clean_close_is_never_a_reset(bypass: Bypass, first: str) -> None:
    """One way closed before; last data, end of file and hang-up then come in one event."""
    for size in (1, 100, 10_000) * 100:
        ends = bypass.connect()
        early, late = ends if first == "client" else reversed(ends)
        early.shutdown(socket.SHUT_WR)
        bypass.settle()
        assert bypass.is_finished(late)
        late.sendall(b"x" * size)
        late.close()
        bypass.settle()
        assert bypass.receive(early, size) == b"x" * size
        assert bypass.is_finished(early)
        early.close()
        bypass.until_gone()


def test_server_that_does_not_read_the_request(bypass: Bypass) -> None:
    """It answers and closes, and its kernel sends a reset, which does not overtake the answer."""
    for _ in range(100):
        client = bypass.client()
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        server = bypass.server()
        server.sendall(b"answer")
        server.close()
        bypass.settle()
        assert bypass.receive(client, 6) == b"answer"
        assert bypass.is_reset(client)
        bypass.until_gone()


# Abnormal ends.


@pytest.mark.parametrize("who", ["client", "server"])
def test_reset_reaches_the_other_side(bypass: Bypass, who: str) -> None:
    ends = bypass.connect()
    one, other = ends if who == "client" else reversed(ends)
    bypass.transfer(one, other, b"x")
    reset(one)
    bypass.settle()
    assert bypass.is_reset(other)
    bypass.until_gone()


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("crossing", [b"", b"more"])
def test_last_words_before_a_reset(bypass: Bypass, who: str, size: int, crossing: bytes) -> None:
    """As on a direct connection: what came before the reset can be read before it is noticed."""
    ends = bypass.connect()
    one, other = ends if who == "client" else reversed(ends)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    one.sendall(b"x" * size)
    reset(one)
    if crossing:
        other.sendall(crossing)
    bypass.settle()
    assert len(bypass.receive(other, size)) == size
    assert bypass.is_reset(other)
    bypass.until_gone()


@pytest.mark.parametrize("who", ["client", "server"])
def test_close_with_unread_data_resets_the_other_side(bypass: Bypass, who: str) -> None:
    ends = bypass.connect()
    one, other = ends if who == "client" else reversed(ends)
    other.sendall(b"never read")
    bypass.settle()
    one.close()
    bypass.settle()
    assert bypass.is_reset(other)
    bypass.until_gone()


@pytest.mark.parametrize("who", ["client", "server"])
def test_reset_of_half_closed_connection(bypass: Bypass, who: str) -> None:
    ends = bypass.connect()
    one, other = ends if who == "client" else reversed(ends)
    one.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.is_finished(other)
    reset(one)
    bypass.settle()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        other.sendall(b"x")
    bypass.until_gone()


def test_writing_to_a_server_that_is_gone(bypass: Bypass) -> None:
    client, server = bypass.connect()
    server.close()
    bypass.settle()
    assert bypass.is_finished(client)
    client.sendall(b"nobody reads this")
    bypass.settle()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.sendall(b"nor this")
    bypass.until_gone()


def test_reset_with_data_unsent(bypass: Bypass) -> None:
    client, server = bypass.connect()
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            server.send(b"x" * 100_000)
            bypass.settle()
    reset(client)
    bypass.settle()
    server.settimeout(5)
    with pytest.raises(OSError):
        server.sendall(b"x")
    bypass.until_gone()


# Resources.


def test_nothing_is_left_behind(bypass: Bypass) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            client, server = bypass.connect()
            bypass.transfer(client, server, b"x" * 100_000)
            client.close()
            server.close()
            bypass.settle()
            del client, server
        bypass.loop.round(0)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, SplicedTcp)]
    finally:
        gc.enable()
    assert bypass.table.count == 0


def test_descriptors_come_back(bypass: Bypass) -> None:
    bypass.connect()
    before = open_descriptors()
    for turn in range(100):
        client, server = bypass.connect()
        if turn % 2:
            reset(client)
        else:
            client.close()
        bypass.settle()
        server.close()
        bypass.settle()
        bypass.maker.deliver()
    # The pool may have had any filling level before.
    assert abs(open_descriptors() - before) <= 40
    assert len(bypass.flows()) == 1


def test_debug_messages_do_not_disturb(
    bypass: Bypass, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Logging makes system calls of its own between a call and the look at its result."""
    monkeypatch.setattr(log, "debug_on", True)
    monkeypatch.setattr(log, "_threshold", log.DEBUG)
    monkeypatch.setattr(log, "_stderr", True)
    client, server = bypass.connect()
    bypass.transfer(client, server, b"x" * 1_000_000)
    reset(server)
    bypass.settle()
    assert bypass.is_reset(client)
    text = capfd.readouterr().err
    assert "Flow 0 (TCP connection (spliced)): HOST [127.0.0.1]:" in text
    assert "Connection reset by peer" in text
