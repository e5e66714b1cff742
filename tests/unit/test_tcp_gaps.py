"""Guest to socket: gaps, repetitions, keep-alives, and contradictions."""

from __future__ import annotations

import socket
import struct

import pytest

from passt.userspace.tcp.reassembly import PIECE_COST
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    PSH,
    RST,
    Host,
    outbound,
    readable,
    receive,
)


def test_gap_is_filled() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        one, two, three = (guest.frame(ACK, text) for text in (b"one", b"two", b"three"))
        host.feed(three)
        host.feed(two)
        duplicates = guest.take()
        assert [reply.ack for reply in duplicates] == [(guest.isn + 1) & MASK] * 2
        base = guest.isn + 1
        assert duplicates[0].options.sack == (((base + 6) & MASK, (base + 11) & MASK),)
        assert duplicates[1].options.sack == (((base + 3) & MASK, (base + 11) & MASK),)
        host.feed(one)
        assert guest.take()[-1].ack == guest.seq
        assert receive(peer, 11) == b"onetwothree"
        assert host.ctx.budget.data == 0


def test_duplicates_for_a_guest_without_sack() -> None:
    with Host() as host:
        guest, _, _ = outbound(host, sack=False)
        guest.frame(ACK, b"lost")
        replies = guest.data(b"1", b"2", b"3")
        assert len(replies) == 3
        assert len({(reply.ack, reply.window, reply.flags) for reply in replies}) == 1
        assert not any(reply.raw_options for reply in replies)


def test_most_recent_block_comes_first() -> None:
    with Host() as host:
        guest, _, _ = outbound(host)
        base = guest.isn + 1
        for start in (100, 300, 500, 700, 900, 300 + 10):
            (reply,) = guest.send(ACK, bytes(10), seq=base + start)
        spans = [((a - base) & MASK, (b - base) & MASK) for a, b in reply.options.sack]
        assert spans == [(300, 320), (900, 910), (700, 710), (500, 510)]


def test_gap_within_one_batch() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        one, two = guest.frame(ACK, b"one"), guest.frame(ACK, b"two")
        host.feed(two, one)
        assert receive(peer, 6) == b"onetwo"
        assert guest.take()[-1].ack == guest.seq


def test_gap_never_filled() -> None:
    with Host() as host:
        guest, _, flow = outbound(host)
        guest.frame(ACK, b"lost")
        guest.data(*[b"x" * 100] * 50)
        assert host.ctx.budget.data == 5000 + PIECE_COST
        flow.abort("test")
        assert host.ctx.budget.data == 0


def test_gaps_beyond_the_budget_are_dropped() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        host.ctx.budget.data_limit = 1000
        lost = guest.frame(ACK, b"lost")
        pieces = [guest.frame(ACK, b"x" * 100) for _ in range(4)]
        host.feed(*pieces)
        assert host.ctx.budget.data == 200 + PIECE_COST
        host.feed(lost, *pieces)
        assert receive(peer, 404) == b"lost" + b"x" * 400
        assert host.ctx.budget.data == 0


@pytest.mark.parametrize("start", [0, 1, 4, 9])
@pytest.mark.parametrize("size", [1, 5, 6, 10, 20])
def test_overlaps(start: int, size: int) -> None:
    """Old, partly old, with a FIN on an overlapping segment (D2.36)."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        text = b"0123456789abcdefghijklmnopqrstuvwxyz"
        base = guest.isn + 1
        host.feed(guest.frame(ACK, text[:10]))
        replies = guest.send(ACK, text[start : start + size], seq=base + start)
        if start + size <= 10:
            assert [(reply.ack - base) & MASK for reply in replies] == [10]
        guest.send(ACK | FIN, text[5:], seq=base + 5)
        got = receive(peer, len(text))
        assert got == text
        assert peer.recv(1) == b""


def test_repeated_data_are_acknowledged_at_once() -> None:
    """The acknowledgement was lost (upstream stays silent)."""
    with Host() as host:
        guest, _, _ = outbound(host)
        start = guest.seq
        guest.data(b"x" * 500)
        host.advance(0.02)
        assert guest.take()[-1].ack == guest.seq
        (reply,) = guest.send(ACK, b"x" * 500, seq=start)
        assert (reply.flags, reply.ack) == (ACK, guest.seq)


def test_repeated_fin_is_acknowledged_again() -> None:
    with Host() as host:
        guest, _, _ = outbound(host)
        fin = guest.seq
        assert guest.send(ACK | FIN)[-1].ack == guest.seq
        (again,) = guest.send(ACK | FIN, seq=fin)
        assert (again.flags, again.ack) == (ACK, guest.seq)


def test_fin_waits_for_what_is_missing() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host)
        lost = guest.frame(ACK, b"lost")
        (reply,) = guest.send(ACK | FIN, b"end")
        assert (reply.ack, flow.shut) == ((guest.isn + 1) & MASK, False)
        host.feed(lost)
        assert guest.take()[-1].ack == guest.seq
        assert receive(peer, 7) == b"lostend"
        assert peer.recv(1) == b""


def test_fin_waits_for_what_the_socket_did_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short send right before the FIN (D2.34)."""
    with Host() as host:
        guest, peer, flow = outbound(host)
        flow.tail += b"kept "
        flow.rcv_nxt += 5
        guest.seq += 5
        assert guest.send(ACK | FIN, b"back") == []
        assert flow.fin_at == flow.rcv_nxt
        assert not flow.shut
        host.loop.modify(flow.fd, 0x4 | 0x1 | 1 << 31)
        host.turn()
        assert guest.take()[-1].ack == guest.seq
        assert receive(peer, 9) == b"kept back"
        assert peer.recv(1) == b""


def test_data_behind_the_fin_are_ignored() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        guest.send(ACK | FIN, b"end")
        behind = guest.seq
        (reply,) = guest.send(ACK, b"beyond")
        assert (reply.flags, reply.ack) == (ACK, behind)
        assert receive(peer, 3) == b"end"
        assert peer.recv(10) == b""


@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_keepalive_of_the_guest(payload: bytes) -> None:
    """Acknowledged each time, not passed on, SO_KEEPALIVE set, its window used (D2.38)."""
    with Host() as host:
        guest, peer, flow = outbound(host, window=0)
        peer.sendall(b"waiting")
        host.turn()
        assert guest.take() == []
        for _ in range(2):
            (reply,) = guest.send(ACK, payload, seq=guest.seq - 1)
            assert (reply.flags, reply.ack) == (ACK, guest.seq)
        assert flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        replies = guest.send(ACK, payload, seq=guest.seq - 1, window=100)
        assert b"".join(reply.payload for reply in replies) == b"waiting"
        assert not readable(peer)
        assert flow.dup_acks == 0


def test_old_sequence_with_a_new_acknowledgement() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host)
        guest.data(b"x" * 50)
        peer.sendall(b"answer")
        host.turn()
        guest.ack = guest.take()[-1].next_seq
        guest.send(ACK, seq=guest.seq - 50)
        assert flow.snd_una == flow.snd_max


def test_acknowledgement_of_what_was_never_sent() -> None:
    """Answered, not believed: data waiting in the socket are not lost (D2.40)."""
    with Host() as host:
        guest, peer, flow = outbound(host, window=0)
        peer.sendall(b"waiting")
        host.turn()
        (reply,) = guest.send(ACK, ack=guest.ack + 4, window=100)
        assert (reply.flags, reply.payload) == (ACK, b"")
        replies = guest.send(ACK, window=100)
        assert replies[-1].payload == b"waiting"
        assert flow.head == flow.snd_una


def test_old_acknowledgement_is_ignored() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host)
        start = guest.ack
        peer.sendall(b"answer")
        host.turn()
        guest.acknowledge(guest.take())
        una = flow.snd_una
        assert guest.send(ACK, ack=start - 1000) == []
        assert flow.snd_una == una
        guest.send(ACK | PSH, b"data counts", ack=start)
        assert receive(peer, 11) == b"data counts"


def test_peer_closed_for_reading() -> None:
    """The guest goes on sending: it is reset (D2.43)."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        replies = guest.ask(ACK | PSH, b"anybody there?")
        assert replies[-1].flags == RST | ACK
        assert host.table.count == 0


def test_segments_without_acknowledgement_are_dropped() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host)
        nxt = flow.rcv_nxt
        assert guest.send(PSH, b"no ack") == []
        assert flow.rcv_nxt == nxt
        assert not readable(peer)
