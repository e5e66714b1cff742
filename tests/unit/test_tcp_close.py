"""Ends of connections, idle ones, and segments that belong to none."""

from __future__ import annotations

import socket
import struct

import pytest

from passt.userspace.tcp.const import SCAN_BATCH
from passt.userspace.wire import drops
from tests.unit import fakes
from tests.unit.fakes import open_descriptors
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    PSH,
    RST,
    SYN,
    Connection,
    Guest,
    Host,
    inbound,
    outbound,
    receive,
    stream_of,
    was_reset,
)

RESET = struct.pack("ii", 1, 0)


def peer_resets(connection: Connection) -> None:
    """The peer goes away with a RST."""
    connection.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.peer.close()


# Orderly.


@pytest.mark.parametrize("guest_connects", [True, False])
def test_peer_finishes_first(guest_connects: bool) -> None:
    with Host() as host:
        guest, peer, flow = (outbound if guest_connects else inbound)(host)
        peer.sendall(b"good")
        host.turn()
        peer.sendall(b"bye")
        peer.shutdown(socket.SHUT_WR)
        host.turn()
        got = guest.take()
        assert stream_of(got) == b"goodbye"
        assert got[-1].flags & FIN
        guest.acknowledge(got)
        assert flow.fin_acked
        guest.data(b"not yet")
        assert receive(peer, 7) == b"not yet"
        assert host.table.count == 1
        (ack,) = guest.send(FIN | ACK)
        assert (ack.flags, ack.ack) == (ACK, guest.seq)
        assert peer.recv(1) == b""
        assert host.table.count == 0


@pytest.mark.parametrize("guest_connects", [True, False])
def test_guest_finishes_first(guest_connects: bool) -> None:
    with Host() as host:
        guest, peer, _ = (outbound if guest_connects else inbound)(host)
        (ack,) = guest.send(FIN | ACK, b"request")
        assert ack.ack == guest.seq
        assert receive(peer, 7) == b"request"
        assert peer.recv(1) == b""
        peer.sendall(b"answer")
        peer.close()
        host.turn()
        got = guest.take()
        assert stream_of(got) == b"answer"
        assert got[-1].flags & FIN
        assert host.table.count == 1
        assert guest.acknowledge(got) == []
        assert host.table.count == 0


def test_both_finish_at_once() -> None:
    """The flow stays until the guest has acknowledged our FIN; no reset (D3.57)."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        start = guest.ack
        peer.shutdown(socket.SHUT_WR)
        fin = guest.frame(FIN | ACK)
        host.turn()
        host.feed(fin)
        got = guest.take()
        assert [segment.flags for segment in got] == [FIN | ACK, ACK]
        assert host.table.count == 1
        assert guest.send(ACK, ack=start + 1) == []
        assert host.table.count == 0
        assert peer.recv(1) == b""


def test_late_fin_after_the_end() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        fin = guest.seq
        guest.send(FIN | ACK)
        peer.close()
        host.turn()
        guest.acknowledge(guest.take())
        assert host.table.count == 0
        (reply,) = guest.send(FIN | ACK, seq=fin)
        assert (reply.flags, reply.seq) == (RST, guest.ack)


def test_same_tuple_again_and_again() -> None:
    """A fixed port, a thousand times (D4.74)."""
    with Host() as host:
        listener = host.listener()
        for _ in range(300):
            guest = Guest(host, listener.getsockname()[1])
            guest.ack = guest.ask(SYN, options=guest.options)[0].next_seq
            guest.send(ACK | PSH, b"x")
            peer = listener.accept()[0]
            peer.close()
            while not any(segment.flags & (FIN | RST) for segment in guest.take()):
                host.turn(1)
            guest.send(RST, seq=guest.seq)
            assert host.table.count == 0


# Resets.


@pytest.mark.parametrize("guest_connects", [True, False])
def test_reset_by_the_guest(guest_connects: bool) -> None:
    """The peer sees a reset, no end of file (D4.69)."""
    with Host() as host:
        guest, peer, _ = (outbound if guest_connects else inbound)(host)
        assert guest.send(RST | ACK) == []
        assert host.table.count == 0
        assert was_reset(peer)


@pytest.mark.parametrize("distance", [-2, 1 << 20, 1 << 31, -(1 << 20)])
def test_reset_out_of_window_is_ignored(distance: int) -> None:
    with Host() as host:
        guest, _, flow = outbound(host)
        flow.rcv_edge = flow.rcv_nxt + 65536
        assert guest.send(RST, seq=guest.seq + distance) == []
        assert host.table.count == 1


def test_reset_in_answer_to_an_older_acknowledgement() -> None:
    """A guest that forgot the connection takes its number from what we said last."""
    with Host() as host:
        guest, _, flow = outbound(host)
        guest.data(b"x" * 1000)
        flow.ack = flow.rcv_nxt
        guest.send(RST, seq=flow.told_ack)
        assert host.table.count == 0


@pytest.mark.parametrize("guest_connects", [True, False])
def test_reset_by_the_peer(guest_connects: bool) -> None:
    with Host() as host:
        connection = (outbound if guest_connects else inbound)(host)
        peer_resets(connection)
        host.until(lambda: not host.table.count)
        (reply,) = connection.guest.take()
        assert reply.flags == RST | ACK
        assert (reply.seq, reply.ack) == (connection.guest.ack, connection.guest.seq)


@pytest.mark.parametrize(
    ("size", "window", "least"),
    [(7, 1 << 20, 7), (65_480, 1 << 20, 65_480), (50_000, 6400, 4000), (300_000, 1 << 20, 65_480)],
)
def test_last_words_before_a_reset(size: int, window: int, least: int) -> None:
    """What arrived before the peer's reset goes to the guest, as far as it takes it at once."""
    with Host() as host:
        connection = outbound(host, mss=65_480, scale=6, window=window >> 6)
        connection.peer.settimeout(5)
        connection.peer.sendall(b"x" * size)
        peer_resets(connection)
        host.turn()
        *data, last = connection.guest.take()
        assert least <= len(stream_of(data)) <= min(size, window)
        assert not any(segment.flags & (FIN | RST) for segment in data)
        assert last.flags == RST | ACK
        assert last.seq == data[-1].next_seq
        assert host.table.count == 0


def test_reset_with_data_on_the_way() -> None:
    with Host() as host:
        connection = outbound(host)
        connection.peer.sendall(bytes(5000))
        host.turn()
        end = connection.guest.take()[-1].next_seq
        peer_resets(connection)
        host.until(lambda: not host.table.count)
        assert connection.guest.take()[-1].seq == end


def test_syn_of_a_restarted_guest() -> None:
    """Answered, so that the guest resets the old connection and tries again."""
    with Host() as host:
        guest, peer, flow = outbound(host)
        (reply,) = guest.send(SYN, seq=12345, options=guest.options)
        assert (reply.flags, reply.ack) == (ACK, flow.rcv_nxt & MASK)
        assert guest.send(RST, seq=reply.ack) == []
        assert was_reset(peer)
        assert host.table.count == 0


def test_inquiry_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_INFO cannot be read: a reset, no exception (D4.80)."""
    with Host() as host:
        guest, peer, _ = outbound(host)

        def failing(_: socket.socket) -> None:
            raise OSError(107, "Transport endpoint is not connected")

        monkeypatch.setattr("passt.syscalls.tcpinfo.read", failing)
        replies = guest.data(bytes(1460), bytes(1460))
        assert replies[-1].flags == RST | ACK
        assert host.table.count == 0
        assert was_reset(peer)


def test_inquiry_failing_in_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset, and no SYN|ACK of a connection that is gone behind it."""

    def failing(_: socket.socket) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr("passt.syscalls.tcpinfo.meminfo", failing)
    with Host() as host:
        guest = Guest(host, host.listener().getsockname()[1])
        assert [reply.flags for reply in guest.ask(SYN, options=guest.options)] == [RST | ACK]
        assert host.table.count == 0


@pytest.mark.parametrize("call", ["send", "shutdown", "recv_into"])
def test_socket_calls_failing(call: str) -> None:
    class Broken:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> object:
            if name == call:
                return self._fail
            return getattr(self._sock, name)

        def _fail(self, *_: object) -> None:
            raise OSError(32, "Broken pipe")

    with Host() as host:
        guest, peer, flow = outbound(host)
        flow.sock = Broken(flow.sock)  # type: ignore[assignment]
        peer.sendall(b"x")
        host.turn()
        host.feed(guest.frame(ACK | FIN, b"y"), guest.frame(ACK, b"z"))
        assert [reply.flags for reply in guest.take()][-2:][0] in (RST | ACK, RST)
        assert host.table.count == 0
        assert host.ctx.budget.data == 0


# Idle.


def test_keepalive_of_an_idle_guest() -> None:
    """First after 30 to 60 s, then every 30 s; a guest that forgot is noticed (D4.70)."""
    with Host() as host:
        guest, peer, flow = outbound(host)
        host.advance(61)
        (probe,) = guest.take()
        assert (probe.flags, probe.payload) == (ACK, b"")
        assert probe.seq == (flow.snd_nxt - 1) & MASK
        host.advance(30)
        assert len(guest.take()) == 1
        guest.send(ACK)
        host.advance(30)
        assert guest.take() == []
        host.advance(30)
        (probe,) = guest.take()
        guest.send(RST, seq=probe.ack)
        assert was_reset(peer)
        assert host.table.count == 0


def test_no_keepalive_for_half_open_or_busy_flows() -> None:
    with Host() as host:
        connection = outbound(host)
        connection.peer.sendall(b"data")
        host.connect(host.forward())
        host.turn()
        host.take()
        host.advance(62)
        assert {segment.flags & ~PSH for segment in host.take()} <= {ACK, SYN, RST | ACK}
        assert all(s.payload or s.flags != ACK for s in host.take())


def test_dead_guest_is_removed_after_hours() -> None:
    with Host() as host:
        connection = outbound(host)
        host.advance(7100)
        assert host.table.count == 1
        host.advance(7400)
        assert host.table.count == 0
        assert connection.guest.take()[-1].flags == RST | ACK
        assert was_reset(connection.peer)


def test_guest_that_answers_stays() -> None:
    with Host() as host:
        connection = outbound(host)
        for _ in range(5):
            host.advance(3600)
            connection.guest.send(ACK)
        assert host.table.count == 1


def test_scans_are_bounded() -> None:
    """Thousands of idle flows are not all looked at in one round."""
    with Host(limit=5000) as host:
        connection = outbound(host)
        flow = connection.flow
        host.ctx.flows4.update({bytes([n >> 8, n & 255]): flow for n in range(3 * SCAN_BATCH)})
        host.time = host.next_deadline()
        host.turn(10)
        host.link.sent.clear()
        host.time += 30
        host.turn(1)
        assert 0 < len(host.link.sent) <= SCAN_BATCH
        for n in range(3 * SCAN_BATCH):
            del host.ctx.flows4[bytes([n >> 8, n & 255])]


def test_no_scan_without_flows() -> None:
    with Host() as host:
        connection = outbound(host)
        connection.guest.send(RST)
        host.advance(100)
        assert host.next_deadline() == float("inf")


def test_nothing_is_left_behind() -> None:
    """Descriptors, table, lookup, timers (D4.77)."""
    with Host() as host:
        listener = host.listener()
        before = open_descriptors()
        guests = []
        for port in range(40000, 40060):
            guest = Guest(host, listener.getsockname()[1], port=port)
            guests.append(guest)
            host.feed(guest.frame(SYN, options=guest.options))
        host.until(lambda: len(host.link.sent) >= 60)
        replies = {reply.dport: reply for reply in host.take()}
        for guest in guests:
            guest.ack = replies[guest.port].next_seq
            host.feed(guest.frame(ACK | PSH, b"x" * 2000), guest.frame(ACK, b"gap", seq=9))
        assert host.table.count == 60
        host.feed(*(guest.frame(RST) for guest in guests))
        assert open_descriptors() == before
        assert (host.table.count, host.ctx.flows4, host.ctx.budget.data) == (0, {}, 0)
        assert not host.ctx.uploading
        host.advance(40)
        assert host.next_deadline() == float("inf")


def test_stale_event_of_a_closed_flow() -> None:
    """The socket had an event in the round that closed the flow (D4.73)."""
    with Host() as host:
        guest, peer, flow = outbound(host)
        peer.sendall(b"data")
        flow.abort("test")
        flow.on_event(0x1)
        flow.pump()
        flow.ack_expired()
        host.turn()
        assert guest.take() == []


# Strays.


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        (ACK, b"", (RST, 777, 0)),
        (SYN | ACK, b"", (RST, 777, 0)),
        (FIN | ACK, b"", (RST, 777, 0)),
        (ACK | PSH, b"data", (RST, 777, 0)),
        (PSH, b"data", (RST | ACK, 0, 1004)),
        (FIN, b"data", (RST | ACK, 0, 1005)),
        (0, b"", (RST | ACK, 0, 1000)),
        (RST, b"", None),
        (RST | ACK, b"", None),
        (RST | SYN, b"", None),
    ],
)
def test_segments_without_a_connection(
    version: int, flags: int, payload: bytes, expected: tuple[int, int, int] | None
) -> None:
    with Host() as host:
        guest = Guest(host, 80, version=version)
        replies = guest.send(flags, payload, seq=1000, ack=777)
        if expected is None:
            assert replies == []
        else:
            (reply,) = replies
            assert (reply.flags, reply.seq, reply.ack) == expected
            assert reply.window == 0
        assert host.table.count == 0


@pytest.mark.parametrize(
    ("version", "change"),
    [
        (4, {"dst": bytes((224, 0, 0, 1))}),
        (4, {"dst": b"\xff" * 4}),
        (4, {"dst": bytes(4)}),
        (4, {"src": bytes(4)}),
        (6, {"dst": b"\xff\x02" + bytes(13) + b"\x01"}),
        (6, {"src": bytes(16)}),
    ],
)
def test_strays_that_concern_no_single_node_are_not_answered(
    version: int, change: dict[str, bytes]
) -> None:
    """RFC 1122, 4.2.3.10: no reset from a group, nor to nobody."""
    with Host() as host:
        guest = Guest(host, 80, version=version)
        for name, address in change.items():
            setattr(guest, name, address)
        before = drops.counts[drops.TCP_STRAY_GROUP]
        host.feed(guest.frame(ACK))
        assert host.link.sent == []
        assert drops.counts[drops.TCP_STRAY_GROUP] == before + 1


def test_stray_resets_are_counted() -> None:
    with Host() as host:
        before = drops.counts[drops.TCP_STRAY_RESET]
        Guest(host, 80).send(RST)
        assert drops.counts[drops.TCP_STRAY_RESET] == before + 1


def test_reset_of_a_stray_has_its_flow_label() -> None:
    with Host() as host:
        frame = bytearray(Guest(host, 80, version=6).frame(ACK))
        frame[14:18] = (0x60000000 | 0xABCDE).to_bytes(4, "big")
        host.feed(bytes(frame))
        assert host.take()[0].label == 0xABCDE


def test_truncated_headers() -> None:
    with Host() as host:
        guest = outbound(host).guest
        frame = guest.frame(ACK, b"x" * 8)
        before = drops.counts[drops.TCP_HEADER_LEN]
        for offset in (0, 4, 15):
            broken = bytearray(frame)
            broken[14 + 20 + 12] = offset << 4
            host.feed(bytes(broken))
        assert host.take() == []
        assert drops.counts[drops.TCP_HEADER_LEN] == before + 3


def test_new_address_of_the_guest() -> None:
    """Old connections keep the old address (D4.76); the link-layer address is the new one."""
    with Host() as host:
        connection = outbound(host)
        moved = Guest(host, 81, port=1)
        moved.src = bytes((192, 0, 2, 77))
        moved.send(ACK)
        assert host.nat.observed4 == moved.src
        mac = bytes.fromhex("020000000099")
        frame = bytearray(moved.frame(ACK))
        frame[6:12] = mac
        host.feed(bytes(frame))
        host.link.sent.clear()
        connection.peer.sendall(b"still here")
        host.turn()
        sent = host.link.sent[-1][1]
        assert sent[:6] == mac
        assert sent[30:34] == fakes.GUEST4
