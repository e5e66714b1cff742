"""Socket to guest: what is sent again, when, and how often."""

from __future__ import annotations

import socket

import pytest

from passt.userspace.wire.tcp_options import sack_option
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    RST,
    Connection,
    Host,
    Segment,
    outbound,
    stream_of,
)

TEXT = bytes(range(256)) * 400


def send(connection: Connection, data: bytes) -> list[Segment]:
    """Have the peer send ``data``; returns what the guest receives of it at once."""
    connection.peer.sendall(data)
    connection.flow.ctx.loop.round(0.0)
    connection.flow.ctx.loop.round(0.0)
    return connection.guest.take()


def duplicate(connection: Connection, count: int = 1, options: bytes = b"") -> list[Segment]:
    """What the guest gets for ``count`` repeated acknowledgements."""
    return [reply for _ in range(count) for reply in connection.guest.send(ACK, options=options)]


def test_schedule_of_retransmissions() -> None:
    """1, 3, 7, 15, 31, 63, 127 s, and a reset of both sides at 247 s (D3.58)."""
    with Host() as host:
        connection = outbound(host)
        start = host.time
        original = send(connection, b"data")[0]
        seen = []
        while host.flows():
            host.time = host.next_deadline()
            host.turn()
            seen += [(host.time - start, segment) for segment in connection.guest.take()]
        again = [segment for _, segment in seen[:-1]]
        assert [when for when, _ in seen] == [1, 3, 7, 15, 31, 63, 127, 247]
        assert {segment[:8] for segment in again} == {original[:8]}
        assert {segment.payload for segment in again} == {b"data"}
        assert seen[-1][1].flags == RST | ACK
        with pytest.raises(ConnectionResetError):
            connection.peer.recv(1)


def test_timer_runs_from_the_last_progress() -> None:
    """A guest that acknowledges one segment every 0.9 s is never reset (D3.59)."""
    with Host(gso=False) as host:
        connection = outbound(host, window=0x2000)
        guest, flow = connection.guest, connection.flow
        assert len(send(connection, TEXT[: 25 * 1460])) == 25
        for _ in range(24):
            host.advance(0.9)
            guest.ack = (guest.ack + 1460) & MASK
            assert not any(reply.payload for reply in guest.send(ACK))
        assert flow.retries == 0
        assert host.ctx.retransmissions == 0


def test_timer_after_a_back_off() -> None:
    """Progress brings the first time-out back, even if the old deadline is far away."""
    with Host(gso=False) as host:
        connection = outbound(host)
        guest = connection.guest
        send(connection, TEXT[: 2 * 1460])
        host.advance(40)
        guest.take()
        guest.ack = (guest.ack + 1460) & MASK
        guest.send(ACK)
        host.advance(1.1)
        assert [segment.payload for segment in guest.take()] == [TEXT[1460:2920]]


def test_time_out_starts_slowly() -> None:
    with Host(gso=False) as host:
        connection = outbound(host)
        guest = connection.guest
        sent = send(connection, TEXT[:29200])
        assert len(sent) > 10
        host.advance(1.0)
        assert len(guest.take()) == 2
        guest.ack = (guest.ack + 2920) & MASK
        assert len(guest.send(ACK)) == 4


def test_fast_retransmit_needs_three_duplicates() -> None:
    with Host(gso=False) as host:
        connection = outbound(host, sack=False)
        send(connection, TEXT[:14600])
        assert duplicate(connection, 2) == []
        (again,) = duplicate(connection)
        assert again.payload == TEXT[:1460]
        assert duplicate(connection, 5) == []
        # A partial acknowledgement names the next hole (RFC 6582).
        (more,) = connection.guest.send(ACK, ack=connection.guest.ack + 2920)
        assert more.payload == TEXT[2920:4380]


def test_what_is_no_duplicate() -> None:
    """FIN, data, keep-alive, window update (D3.49)."""
    with Host(gso=False) as host:
        connection = outbound(host)
        guest, _, flow = connection
        send(connection, TEXT[:14600])
        sent = []
        for step in range(5):
            sent += guest.send(ACK, seq=guest.seq - 1)
            sent += guest.send(ACK, window=guest.window + step + 1)
            sent += guest.data(b"x")
        sent += guest.send(ACK | FIN)
        assert not any(segment.payload for segment in sent)
        assert flow.dup_acks == 0


def test_half_closed_by_the_guest() -> None:
    """Duplicates count (D3.50), data that arrived are not sent again (D3.56)."""
    with Host(gso=False) as host:
        connection = outbound(host, sack=False)
        guest = connection.guest
        guest.send(ACK | FIN)
        send(connection, TEXT[:14600])
        assert duplicate(connection, 3)[0].payload == TEXT[:1460]
        guest.ack = (guest.ack + 14600) & MASK
        assert guest.send(ACK) == []
        host.advance(20)
        assert not any(segment.payload for segment in guest.take())


def test_selective_acknowledgements() -> None:
    """Holes are filled, each once, and nothing else is sent again."""
    with Host(gso=False) as host:
        connection = outbound(host)
        guest = connection.guest
        send(connection, TEXT[:14600])
        base = guest.ack
        blocks = [((base + a * 1460) & MASK, (base + b * 1460) & MASK) for a, b in ((5, 8), (1, 3))]
        again = duplicate(connection, 1, sack_option(blocks))
        assert [(segment.seq - base) & MASK for segment in again] == [0, 4380, 5840]
        assert duplicate(connection, 4, sack_option(blocks)) == []
        assert host.ctx.retransmissions == 3


@pytest.mark.parametrize(
    "blocks",
    [
        [(0, 0)],
        [(10, 5)],
        [(0, 1 << 31)],
        [(14600, 14601)],
        [(-1460, 0)],
        [(0, 14600)],
        [(0, 14599), (0, 1), (3, 9)],
    ],
)
def test_selective_acknowledgements_of_nonsense(blocks: list[tuple[int, int]]) -> None:
    with Host(gso=False) as host:
        connection = outbound(host)
        guest = connection.guest
        send(connection, TEXT[:14600])
        base = guest.ack
        option = sack_option([((base + a) & MASK, (base + b) & MASK) for a, b in blocks])
        for _ in range(10):
            for segment in duplicate(connection, 1, option):
                at = (segment.seq - base) & MASK
                assert segment.payload == TEXT[at : at + len(segment.payload)]
        guest.ack = (base + 14600) & MASK
        guest.send(ACK)
        assert connection.flow.sacked == ()


def test_lost_fin() -> None:
    """Sent again at 1, 3, 7 s (D3.51)."""
    with Host() as host:
        connection = outbound(host)
        start = host.time
        connection.peer.shutdown(socket.SHUT_WR)
        host.turn()
        (fin,) = connection.guest.take()
        seen = []
        while host.time < start + 10:
            host.time = host.next_deadline()
            host.turn()
            seen += [(host.time - start, segment[:8]) for segment in connection.guest.take()]
        assert seen == [(1, fin[:8]), (3, fin[:8]), (7, fin[:8]), (15, fin[:8])]


@pytest.mark.parametrize("arrived", [0, 1460, 5000])
def test_lost_data_and_fin(arrived: int) -> None:
    """By time: from the loss on everything again, the FIN behind it."""
    with Host(gso=False) as host:
        connection = outbound(host)
        connection.peer.sendall(TEXT[:5000])
        connection.peer.shutdown(socket.SHUT_WR)
        host.turn()
        guest = connection.guest
        sent = guest.take()
        assert stream_of(sent) == TEXT[:5000]
        assert sent[-1].flags & FIN
        guest.ack = (guest.ack + arrived) & MASK
        guest.send(ACK)
        host.advance(1.0)
        got = guest.take()
        while not got[-1].flags & FIN:
            got += guest.send(ACK, ack=got[-1].next_seq)
        assert stream_of(got) == TEXT[arrived:5000]
        assert got[-1].next_seq == sent[-1].next_seq
        guest.acknowledge(got)
        assert connection.flow.fin_acked
        host.advance(20)
        assert not any(segment.flags & FIN for segment in guest.take())


def test_fast_retransmit_of_a_fin() -> None:
    """Data behind a hole arrived, the FIN in it did not."""
    with Host(gso=False) as host:
        connection = outbound(host, sack=False)
        connection.peer.sendall(TEXT[:4380])
        connection.peer.shutdown(socket.SHUT_WR)
        host.turn()
        guest = connection.guest
        guest.take()
        duplicate(connection, 3)
        guest.ack = (guest.ack + 4380) & MASK
        (fin,) = guest.send(ACK)
        assert fin.flags == FIN | ACK
        assert fin.seq == guest.ack
