"""Floods of connections from either side, and what becomes of those that exist meanwhile."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from passt.userspace.flow.budget import Budget
from passt.userspace.tcp import connects
from passt.userspace.tcp.connects import AGE, Notes
from passt.userspace.tcp.const import CONNECTING
from passt.userspace.tcp.reassembly import PIECE_COST
from tests.unit.tcp_kit import (
    ACK,
    RST,
    SYN,
    Guest,
    Host,
    Segment,
    inbound,
    outbound,
    readable,
    receive,
    was_reset,
)

#: Of connections without answer, with the table that the kit makes unless told otherwise.
PENDING = 250
REPEATED = 62


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def black_hole(host: Host, version: int) -> int:
    """A port of the host's loopback where connections neither fail nor succeed."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = host.own(socket.socket(family))
    listener.bind(("127.0.0.1" if version == 4 else "::1", 0))
    listener.listen(0)
    where = listener.getsockname()
    for _ in range(3):
        filler = host.own(socket.socket(family))
        filler.setblocking(False)
        filler.connect_ex(where)
    port: int = where[1]
    return port


def closed_port(version: int) -> int:
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as sock:
        sock.bind(("127.0.0.1" if version == 4 else "::1", 0))
        port: int = sock.getsockname()[1]
    return port


def flood(host: Host, port: int, version: int, seconds: float, rate: int = 2000) -> list[Segment]:
    """SYNs from ever new ports of the guest; returns what comes back."""
    replies = []
    for number in range(int(seconds * rate)):
        host.time += 1 / rate
        guest = Guest(host, port, version=version, port=1024 + (host.flooded + number) % 64000)
        host.feed(guest.frame(SYN, options=guest.options))
        replies += host.take()
    host.flooded += int(seconds * rate)
    return replies


class Flooded(Host):
    """A host that remembers how many SYNs there were."""

    flooded = 0


@pytest.mark.parametrize("version", [4, 6])
def test_syns_into_a_black_hole(version: int) -> None:
    """Sockets are bounded, and an established connection goes on as if nothing was."""
    with Flooded() as host:
        guest, peer, flow = outbound(host, version=version, port=999)
        hole = black_hole(host, version)
        before = descriptors()
        for step in range(5):
            assert flood(host, hole, version, 0.5) == []
            assert sum(flow.state == CONNECTING for flow in host.flows()) <= PENDING
            assert descriptors() - before <= PENDING
            guest.data(bytes((step,)) * 1000)
            assert receive(peer, 1000) == bytes((step,)) * 1000
            peer.sendall(b"answer")
            host.turn()
            assert guest.acknowledge(guest.take()) == []
        assert not flow.out_of_order
        assert host.ctx.retransmissions == 0


@pytest.mark.parametrize("version", [4, 6])
def test_syns_to_closed_ports(version: int) -> None:
    """No more attempts per second than there are places, and no place is lost for good."""
    with Flooded() as host:
        guest, peer, _ = outbound(host, version=version, port=999)
        port = closed_port(version)
        replies = flood(host, port, version, 3.0)
        assert {reply.flags for reply in replies} == {RST | ACK}
        # A burst of half of the places, then all of them each second; and a bit map errs.
        assert 2 * PENDING < len(replies) < 4 * (PENDING + REPEATED)
        assert host.table.count == 1
        guest.data(b"still here")
        assert receive(peer, 10) == b"still here"
        host.time += 1.1
        host.turn()
        host.take()
        late = Guest(host, port, version=version, port=998)
        assert [reply.flags for reply in late.ask(SYN, options=late.options)] == [RST | ACK]


def test_connection_that_is_meant_gets_through() -> None:
    """Its first SYN may find no place, the repeated one does."""
    with Flooded() as host:
        hole = black_hole(host, 4)
        flood(host, hole, 4, 1.4)
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1], port=999)
        frame = guest.frame(SYN, options=guest.options)
        host.feed(frame)
        first = host.take()
        flood(host, hole, 4, 1.0)
        if not first:
            host.feed(frame)
            first = host.take()
        (reply,) = first
        assert reply.flags == SYN | ACK
        guest.ack = reply.next_seq
        assert guest.send(ACK) == []
        host.accept(listener)


def test_connection_made_room_for_another_can_be_tried_again() -> None:
    """To the guest its SYN was lost: no reset, and the next one begins anew."""
    with Flooded() as host:
        hole = black_hole(host, 4)
        victim = Guest(host, hole, port=999)
        host.feed(victim.frame(SYN, options=victim.options))
        flow = host.flow
        assert flood(host, hole, 4, 2.5) == []
        assert flow.index == -1
        host.time += 2
        host.turn()
        assert victim.send(SYN, seq=victim.isn, options=victim.options) == []
        assert any(flow.guest_port == 999 for flow in host.flows())


def test_established_connections_do_not_count() -> None:
    with Flooded(limit=131071) as host:
        listener = host.listener()
        for number in range(60):
            guest = Guest(host, listener.getsockname()[1], port=2000 + number)
            guest.ack = guest.ask(SYN, options=guest.options)[-1].next_seq
            guest.send(ACK)
            host.accept(listener)
        assert host.ctx.connects.admits(b"key", b"source", b"target") is not None
        host.time += 2
        host.turn()
        assert host.ctx.connects.admits(b"key", b"source", b"target") is not None
        assert len(host.ctx.connects._first) == 0


def test_scan_of_one_address_leaves_places_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Unreachable(socket.socket):
        """Of a network without routes."""

        def connect_ex(self, address: Any) -> int:
            """Fail, and remember."""
            tried.append(address[0])
            return errno.ENETUNREACH

    monkeypatch.setattr("passt.userspace.tcp.tcp.socket.socket", Unreachable)
    with Host(limit=4000) as host:
        for number in range(2000):
            host.time += 0.0004
            guest = Guest(host, 1 + number % 65000, port=30000)
            guest.dst = bytes((192, 0, 2, 77))
            # Addresses of the guest as well, or the limit would be its own.
            guest.src = bytes((192, 0, 2, 100 + number % 100))
            host.feed(guest.frame(SYN))
        assert tried == ["192.0.2.77"] * len(tried)
        assert len(tried) <= 3 * 1000 // 4 + 1
        tried.clear()
        for number in range(20):
            host.time += 0.001
            host.turn()
            guest = Guest(host, 80, port=30000)
            guest.dst = bytes((192, 0, 2, 150 + number))
            host.feed(guest.frame(SYN))
        assert tried == [f"192.0.2.{150 + number}" for number in range(20)]


# From the host.


def test_guest_that_answers_no_offer() -> None:
    """Peers are refused when there are too many; old ones make room for new ones."""
    with Host(limit=100) as host:  # 25 offers at a time
        established = inbound(host)
        where = host.forward(guest_port=81)
        before = descriptors()
        peers = []
        for _ in range(60):
            peer = host.own(socket.create_connection(where, timeout=5))
            peers.append(peer)
            host.time += 0.01
            host.turn()
        assert host.table.count <= 26
        assert descriptors() - before - len(peers) <= 26
        host.take()
        established.guest.data(b"fine")
        assert receive(established.peer, 4) == b"fine"
        waiting = [peer for peer in peers if not readable(peer)]
        refused = [peer for peer in peers if readable(peer)]
        assert refused
        assert all(was_reset(peer) for peer in refused)
        host.advance(2)
        for _ in range(10):
            host.own(socket.create_connection(where, timeout=5))
            host.advance(0.1)
        # The first have had their second, and make room for those who come later.
        assert was_reset(waiting[0])
        assert not readable(waiting[-1])
        assert {segment.flags for segment in host.take()} >= {SYN, RST | ACK}


def test_offers_of_one_peer_leave_places_for_others() -> None:
    with Host(limit=400) as host:  # 100 offers at a time
        where = host.forward(guest_port=81)

        def connect(source: str) -> None:
            sock = host.own(socket.socket())
            sock.bind((source, 0))
            sock.connect(where)

        for _ in range(80):
            connect("127.0.0.2")
            host.time += 0.0105
            host.turn()
        assert 70 <= host.table.count <= 76
        connect("127.0.0.3")
        host.advance(0.11)
        sources = [flow.sock.getpeername()[0] for flow in host.flows()]
        assert sources.count("127.0.0.3") == 1


# Descriptors.


def test_no_socket_beyond_the_reserve() -> None:
    with Host() as host:
        connection = outbound(host)
        spare = os.open("/dev/null", os.O_RDONLY)
        os.close(spare)
        host.table.last_fd = spare + 2
        listener = host.listener()
        where = host.forward()
        for number in range(8):
            guest = Guest(host, listener.getsockname()[1], port=2000 + number)
            host.feed(guest.frame(SYN, options=guest.options))
        assert all(flow.fd <= spare + 2 for flow in host.flows())
        assert host.table.refused > 0
        peer = host.own(socket.create_connection(where, timeout=5))
        host.until(lambda: readable(peer))
        assert was_reset(peer)
        host.take()
        connection.guest.data(b"unharmed")
        assert receive(connection.peer, 8) == b"unharmed"


# Memory.


def test_peer_that_does_not_read_costs_no_more_than_its_share() -> None:
    """What was acknowledged arrives, all of it, and what was not is sent again."""
    with Host() as host:
        guest, peer, flow = outbound(host, rcvbuf=4096)
        host.ctx.budget.data_limit = 100000
        text = os.urandom(1460)
        flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        # Whatever the window: a guest that does not keep to what it is offered, and a socket
        # that takes less than it promised.
        sent = 0
        for _ in range(400):
            flow.rcv_edge = max(flow.rcv_edge, flow.rcv_nxt + 100000)
            guest.data(text)
            sent += 1
        assert 40000 < flow.holds() <= 50000
        assert host.ctx.budget.data == flow.holds()
        host.take()
        taken = flow.rcv_nxt - flow.ack_base - 1
        assert taken < sent * len(text)
        stream = text * sent
        got = bytearray()
        while len(got) < taken:
            got += peer.recv(65536)
            host.turn()
        assert bytes(got) == stream[:taken]
        assert host.ctx.budget.data == 0


def test_every_other_byte_is_counted_with_what_it_takes_to_keep_it() -> None:
    with Host() as host:
        guest, _, flow = outbound(host)
        host.ctx.budget.data_limit = 40 * PIECE_COST
        for number in range(100):
            guest.send(ACK, b"x", seq=guest.isn + 3 + 2 * number)
        assert flow.out_of_order is not None
        assert 15 < flow.out_of_order.size < 25
        assert host.ctx.budget.data == flow.out_of_order.cost
        flow.abort("test")
        assert host.ctx.budget.data == 0


def test_windows_shrink_when_memory_is_short() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host)
        wide = flow.rcv_edge - flow.rcv_nxt
        assert wide > 10 * 1460
        host.ctx.budget.tight = True
        for _ in range(40):
            guest.data(bytes(1460), bytes(1460))
            receive(peer, 2920)
            if flow.rcv_edge - flow.rcv_nxt <= 1460 + (1 << flow.our_scale):
                break
        assert flow.rcv_edge - flow.rcv_nxt <= 1460 + (1 << flow.our_scale)
        host.ctx.budget.tight = False
        host.advance(1)
        guest.data(b"y")
        host.advance(1)
        assert flow.rcv_edge - flow.rcv_nxt >= wide // 2


def test_flows_are_refused_when_memory_is_used_up() -> None:
    with Host() as host:
        connection = outbound(host)
        host.table.budget = Budget(3 * connection.flow.cost)
        other = Guest(host, connection.guest.dport, port=40001)
        assert len(other.ask(SYN, options=other.options)) == 1
        for port in range(40002, 40010):
            guest = Guest(host, connection.guest.dport, port=port)
            host.feed(guest.frame(SYN, options=guest.options))
        assert host.table.count <= 3
        assert host.table.refused >= 6
        host.take()
        connection.guest.data(b"unharmed")
        assert receive(connection.peer, 8) == b"unharmed"
        host.table.budget = Budget()


# Notes of SYNs.


class Clock:
    now = 100.0


def test_notes() -> None:
    clock = Clock()
    notes = Notes(clock)  # type: ignore[arg-type]
    assert not notes.seen(b"one")
    clock.now += 1
    assert notes.seen(b"one")
    clock.now += AGE
    assert notes.seen(b"one")
    clock.now += 2 * AGE
    assert not notes.seen(b"one")
    assert not notes.seen(b"two")


def test_notes_of_a_flood_hardly_err() -> None:
    clock = Clock()
    notes = Notes(clock)  # type: ignore[arg-type]
    errors = 0
    for number in range(100000):
        clock.now += 1 / 20000
        errors += notes.seen(number.to_bytes(12, "big"))
    assert errors < 1200
    assert connects.BITS >> 3 == len(notes._now) == len(notes._before)
