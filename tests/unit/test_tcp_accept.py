"""The host connects: the offer to the guest, its retries, and listeners in need."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from passt.userspace import log
from passt.userspace.config.model import Config
from passt.userspace.flow.rules import Rule
from passt.userspace.wire.tcp_options import syn_options
from tests.unit import fakes
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    RST,
    SYN,
    Guest,
    Host,
    inbound,
    readable,
    receive,
    stream_of,
    was_reset,
)


@pytest.mark.parametrize("version", [4, 6])
def test_offer_to_the_guest(version: int) -> None:
    with Host() as host:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        peer = host.connect(host.forward(family))
        guest = Guest(host, peer.getsockname()[1], version=version, port=80)
        (syn,) = guest.take()
        assert (syn.flags, syn.ack) == (SYN, 0)
        assert 14600 <= syn.window <= 65535
        assert syn.options.sack_permitted
        assert syn.options.window_scale > 0
        guest.ack = syn.next_seq
        # An empty ACK at once, even though the peer has nothing to say (D1.1).
        (reply,) = guest.send(SYN | ACK, options=guest.options)
        assert (reply.flags, reply.seq, reply.ack) == (ACK, syn.next_seq, guest.seq)
        guest.data(b"220 mail")
        assert receive(peer, 8) == b"220 mail"


def test_unanswered_offer() -> None:
    """The identical SYN again and again; then a reset for the peer (D1.2)."""
    with Host() as host:
        host.ctx._syn_linear, host.ctx.syn_retries = 4, 7
        peer = host.connect(host.forward())
        start = host.time
        seen = [(0.0, segment) for segment in host.take()]
        while host.table.count:
            host.time = host.next_deadline()
            host.turn()
            seen += [(host.time - start, segment) for segment in host.take()]
        assert [when for when, segment in seen if segment.flags == SYN] == [0, 1, 2, 3, 4, 5, 7, 11]
        assert len({(s.seq, s.raw_options, s.window) for _, s in seen if s.flags == SYN}) == 1
        assert (seen[-1][0], seen[-1][1].flags) == (19, RST | ACK)
        assert was_reset(peer)


def test_late_answer_to_the_first_syn() -> None:
    """Data start right behind the sequence number of every SYN (D1.3)."""
    with Host() as host:
        peer = host.connect(host.forward())
        peer.sendall(b"waiting")
        guest = Guest(host, peer.getsockname()[1], port=80)
        first = guest.take()[0]
        host.advance(3)
        assert {segment.seq for segment in guest.take()} == {first.seq}
        guest.ack = first.next_seq
        empty, data = guest.send(SYN | ACK, options=guest.options)
        assert (empty.flags, empty.payload) == (ACK, b"")
        assert (data.seq, data.payload) == (first.next_seq, b"waiting")
        assert host.flow.syn_retried
        host.advance(2.9)
        assert guest.take() == []
        host.advance(0.2)
        assert guest.take()[0].payload == b"waiting"


def test_data_wait_for_the_guest() -> None:
    """The peer sends and finishes at once; the guest gets it all once it answers (D1.10)."""
    with Host() as host:
        peer = host.connect(host.forward())
        peer.sendall(b"x" * 20000)
        peer.shutdown(socket.SHUT_WR)
        guest = Guest(host, peer.getsockname()[1], port=80)
        host.advance(2)
        guest.ack = guest.take()[0].next_seq
        got = guest.send(SYN | ACK, options=guest.options, window=60000)
        assert stream_of(got) == b"x" * 20000
        assert got[-1].flags & FIN


def test_first_data_within_the_first_window() -> None:
    with Host() as host:
        peer = host.connect(host.forward())
        peer.sendall(bytes(65000))
        guest = Guest(host, peer.getsockname()[1], port=80, scale=7)
        guest.ack = guest.take()[0].next_seq
        got = guest.send(SYN | ACK, options=guest.options, window=14600)
        assert 13140 <= len(stream_of(got)) <= 14600


@pytest.mark.parametrize("flags", [RST | ACK, ACK, FIN | ACK, SYN])
def test_guest_declines(flags: int) -> None:
    with Host() as host:
        peer = host.connect(host.forward())
        guest = Guest(host, peer.getsockname()[1], port=80)
        guest.ack = guest.take()[0].next_seq
        replies = guest.send(flags)
        assert [segment.flags for segment in replies] == [RST | ACK] * (not flags & RST)
        assert host.table.count == 0
        assert was_reset(peer)


def test_reset_for_another_syn_is_ignored() -> None:
    with Host() as host:
        peer = host.connect(host.forward())
        guest = Guest(host, peer.getsockname()[1], port=80)
        syn = guest.take()[0]
        assert guest.send(RST | ACK, ack=syn.next_seq + 9) == []
        assert host.table.count == 1


def test_peer_gives_up_before_the_guest_answers() -> None:
    with Host() as host:
        peer = host.connect(host.forward())
        guest = Guest(host, peer.getsockname()[1], port=80)
        (syn,) = guest.take()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        host.until(lambda: not host.table.count)
        (reply,) = guest.take()
        assert (reply.flags, reply.seq) == (RST | ACK, syn.next_seq)


def test_ipv4_client_of_a_dual_stack_listener() -> None:
    """Its address arrives v4-mapped, and it is an IPv4 connection (D1.20)."""
    with Host() as host:
        sock = host.own(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        host.acceptors.attach_listener(sock, Rule(6, port, port, 80), port)
        host.connect(("127.0.0.1", port))
        (syn,) = host.take()
        assert (syn.src, syn.dst, syn.dport) == (fakes.GATEWAY4, fakes.GUEST4, 80)


def test_source_that_the_guest_cannot_be_shown() -> None:
    """The peer is reset, its descriptor closed (D1.19)."""

    def nowhere(config: Config) -> None:
        config.v4.gateway = config.v4.map_host_loopback = None

    with Host(tweak=nowhere) as host:
        peer = host.own(socket.create_connection(host.forward(), timeout=5))
        host.until(lambda: readable(peer))
        assert was_reset(peer)
        assert host.table.count == 0
        assert host.take() == []


def test_connection_whose_own_address_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused all the same, and the main loop does not hear of it."""
    said: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _key, _level, msg, *args: said.append(msg % args))

    class Nameless(socket.socket):
        __slots__ = ()

        def getsockname(self):  # type: ignore[no-untyped-def]
            raise OSError(errno.ENOBUFS, "No buffer space available")

    with Host() as host:
        near, far = socket.socketpair()
        sock = Nameless(fileno=near.detach())
        rule = Rule(socket.IPPROTO_TCP, 7, 7, 80)
        assert host.tcp.accepted(sock, (bytes((224, 0, 0, 1)), 5), rule, 7)
        assert sock.fileno() < 0
        assert said == ["No rules to forward HOST TCP [224.0.0.1]:5 -> [0.0.0.0]:0"]
        far.close()


def test_full_table_pauses_the_listener() -> None:
    with Host(limit=1) as host:
        where = host.forward()
        first = host.connect(where)
        second = host.own(socket.create_connection(where, timeout=5))
        host.until(lambda: readable(second))
        assert was_reset(second)
        third = host.own(socket.create_connection(where, timeout=5))
        host.turn(5)
        assert not readable(third)
        host.flow.abort("make room")
        host.advance(0.2)
        assert host.flow.our_port == third.getsockname()[1]
        assert was_reset(first)


def test_no_descriptor_pauses_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting fails: no spinning, and a recovery (D4.78)."""
    with Host() as host:
        where = host.forward()
        calls = 0

        def refused(_: socket.socket) -> None:
            nonlocal calls
            calls += 1
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "_accept", refused)
            host.own(socket.create_connection(where, timeout=5))
            host.until(lambda: calls)
            host.turn(10)
            assert calls == 1
            host.advance(0.15)
            assert calls == 2
        host.advance(0.2)
        assert host.table.count == 1


def test_clashing_clients() -> None:
    """Two addresses of the host that look the same to the guest, from the same port."""
    with Host() as host:
        where = host.forward()
        first = host.own(socket.socket())
        first.bind(("127.0.0.2", 0))
        first.connect(where)
        host.until(lambda: host.table.count)
        second = host.own(socket.socket())
        second.bind(("127.0.0.3", first.getsockname()[1]))
        second.settimeout(5)
        second.connect(where)
        host.until(lambda: readable(second))
        assert was_reset(second)
        assert host.table.count == 1
        guest = Guest(host, first.getsockname()[1], port=80)
        guest.ack = guest.take()[0].next_seq
        assert guest.send(SYN | ACK, options=guest.options)[0].flags == ACK


def test_guest_without_options_is_called() -> None:
    with Host() as host:
        connection = inbound(host, scale=None, sack=False)
        guest, peer, flow = connection
        assert (flow.our_scale, flow.guest_scale, flow.sack_ok) == (0, 0, False)
        guest.options = syn_options(1460)
        replies = guest.data(bytes(4000), bytes(4000))
        assert replies[-1].ack == guest.seq
        assert flow.rcv_edge - flow.ack == replies[-1].window
        assert len(receive(peer, 8000)) == 8000
        assert (guest.seq - guest.isn - 1) & MASK == 8000
