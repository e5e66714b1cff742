"""Guest to socket: when, which number, and how large a window is told to the guest."""

from __future__ import annotations

import socket
import time

import pytest

from passt.syscalls import tcpinfo
from passt.userspace.tcp import fromguest
from passt.userspace.tcp.flow import TcpFlow
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    SYN,
    Connection,
    Guest,
    Host,
    Segment,
    inbound,
    outbound,
    receive,
)


def edge(connection: Connection, segment: Segment) -> int:
    """Where the window of ``segment`` ends, as bytes of the guest's stream."""
    guest = connection.guest
    return ((segment.ack - guest.isn - 1) & MASK) + (segment.window << guest.our_scale)


def fill(connection: Connection, *, most: int = 64 << 20) -> int:
    """Send all that the window admits until it is closed; returns the number of bytes."""
    guest, _, flow = connection
    sent = 0
    while sent < most and (left := flow.rcv_edge - flow.rcv_nxt) > 0:
        sizes = [1460] * (left // 1460) + [left % 1460] * bool(left % 1460)
        guest.data(*(bytes(size) for size in sizes[:64]))
        sent += sum(sizes[:64])
    return sent


def reopened(host: Host, flow: TcpFlow, before: int) -> bool:
    """Whether the window ends behind ``before`` after some time."""
    host.advance(0.3)
    return flow.rcv_edge > before


# When.


def test_acknowledgement_waits_for_an_answer() -> None:
    with Host() as host:
        guest, peer, _ = outbound(host)
        assert guest.data(b"request") == []
        assert receive(peer, 7) == b"request"
        peer.sendall(b"answer")
        host.turn()
        (answer,) = guest.take()
        assert (answer.payload, answer.ack) == (b"answer", guest.seq)
        host.advance(0.1)
        assert guest.take() == []


def test_acknowledgement_does_not_wait_for_ever() -> None:
    with Host() as host:
        guest, _, _ = outbound(host)
        assert guest.data(b"request") == []
        host.advance(0.0099)
        assert guest.take() == []
        host.advance(0.001)
        (ack,) = guest.take()
        assert (ack.flags, ack.ack) == (ACK, guest.seq)


def test_two_segments_are_acknowledged_at_once() -> None:
    with Host() as host:
        guest, _, _ = outbound(host)
        (ack,) = guest.data(bytes(1460), bytes(1460))
        assert (ack.flags, ack.ack) == (ACK, guest.seq)


def test_every_byte_of_a_burst_behind_the_handshake() -> None:
    """Some of it in the handshake's own batch, some of it after a wake-up (D2.23)."""
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        guest.ack = guest.ask(SYN, options=guest.options)[0].next_seq
        guest.data(*[bytes(1000)] * 20)
        host.turn()
        replies = guest.data(*[bytes(1000)] * 20)
        assert replies[-1].ack == guest.seq
        assert len(receive(host.accept(listener), 40000)) == 40000


# Which number.


@pytest.fixture
def distant(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Peers that are far away and have acknowledged as many bytes as the list's one element."""
    acked = [1]
    real = tcpinfo.read

    def read(sock: socket.socket) -> tcpinfo.Info:
        values = list(real(sock))
        values[5] = 100000  # 100 ms
        values[6] = acked[0]
        values[7] = 90000
        values[8] = 1000  # interactive
        return tuple(values)  # type: ignore[return-value]

    monkeypatch.setattr(tcpinfo, "read", read)
    return acked


def far(connection: Connection) -> Connection:
    """Have the connection treated like one to another machine."""
    connection.flow.peer_local = False
    connection.flow.ack_all = False
    return connection


def test_acknowledgement_follows_that_of_the_peer(distant: list[int]) -> None:
    """Interactive traffic over a long path (D2.32)."""
    with Host() as host:
        guest, _, flow = far(outbound(host))
        guest.data(b"x" * 100)
        host.advance(0.05)
        assert {reply.ack for reply in guest.take()} <= {(guest.isn + 1) & MASK}
        distant[0] = 61
        host.advance(0.05)
        (ack,) = guest.take()
        assert (ack.ack - guest.isn - 1) & MASK == 60
        distant[0] = 101
        host.advance(0.3)
        assert guest.take()[-1].ack == guest.seq
        assert flow.ack_deadline == float("inf")


def test_acknowledgement_of_an_accepted_connection(distant: list[int]) -> None:
    """There the kernel counts no SYN."""
    distant[0] = 0
    with Host() as host:
        guest, _, _ = far(inbound(host))
        guest.data(b"x" * 100)
        distant[0] = 100
        host.advance(0.02)
        assert guest.take()[-1].ack == guest.seq


def test_acknowledgement_never_moves_back(
    distant: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bulk traffic is acknowledged early; once it ends the peer's number is behind (D2.33)."""
    with Host() as host:
        guest, _, _ = far(outbound(host))
        with monkeypatch.context() as patch:
            patch.setattr(fromguest, "BULK_FACTOR", 1 << 40)
            (early,) = guest.data(bytes(1460), bytes(1460))
            assert early.ack == guest.seq
        guest.data(b"x")
        host.advance(0.5)
        assert guest.take() == []
        distant[0] = 1 + 2921
        host.advance(0.5)
        assert guest.take()[-1].ack == guest.seq


def test_all_is_acknowledged_once_a_side_has_finished(distant: list[int]) -> None:
    with Host() as host:
        guest, _, _ = far(outbound(host))
        replies = guest.send(ACK | FIN, b"bye")
        assert replies[-1].ack == guest.seq
        assert distant == [1]


# How much.


def test_full_socket_loses_nothing() -> None:
    """A peer that does not read closes the window; it reopens by itself (D2.24)."""
    with Host() as host:
        connection = outbound(host, rcvbuf=20000)
        guest, peer, flow = connection
        sent = fill(connection)
        assert flow.rcv_nxt - flow.told_ack == len(flow.tail)
        host.advance(1)
        guest.take()
        assert len(receive(peer, sent)) == sent
        before = flow.rcv_edge
        host.until(lambda: reopened(host, flow, before))
        (*_, update) = guest.take()
        assert edge(connection, update) == flow.rcv_edge - guest.isn - 1
        guest.data(b"more")
        assert receive(peer, 4) == b"more"


def test_room_is_reported_by_the_kernel_not_by_polling() -> None:
    """Wake-ups while the window is closed become rare, and no timer is needed to reopen it."""
    with Host() as host:
        connection = outbound(host, rcvbuf=20000)
        guest, peer, flow = connection
        # Until it stays full: what moved on into the peer's queue made room once more.
        sent = 0
        while more := fill(connection):
            sent += more
            time.sleep(0.01)
            host.advance(1)
        host.advance(60)
        guest.take()
        wake_ups = 0
        end = host.time + 10
        while host.next_deadline() < end:
            wake_ups += 1
            host.advance(host.next_deadline() - host.time)
        assert wake_ups <= 45
        while more := fill(connection):
            sent += more
            host.advance(1)
        assert flow.watching
        before = flow.rcv_edge
        got = 0
        # In real time, as the kernel's acknowledgements may take theirs; the flow's stands still.
        deadline = time.monotonic() + 5
        while flow.rcv_edge == before and time.monotonic() < deadline:
            if got < sent:
                got += len(peer.recv(65536))
            else:
                time.sleep(0.01)
            host.turn(1)
        assert flow.rcv_edge > before


def test_idle_flow_has_no_timer() -> None:
    with Host() as host:
        connection = outbound(host)
        guest, peer, _ = connection
        guest.data(bytes(5000))
        receive(peer, 5000)
        host.advance(5)
        assert host.next_deadline() - host.time > 20  # the next scan


def test_small_window_of_the_peer_needs_no_timer() -> None:
    """It is all that there will be: nothing to wait for."""
    with Host(mtu=65520) as host:
        guest, peer, flow = outbound(host, rcvbuf=9000, mss=65480)
        guest.data(b"x")
        receive(peer, 1)
        host.advance(5)
        assert 0 < flow.rcv_edge - flow.rcv_nxt < flow.segment_size
        assert host.next_deadline() - host.time > 20


def test_peer_that_shrinks_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest would hold back segments that do not fit, so one may wait in the socket.

    Not in the peer's window, but as much as a sender wants that avoids silly windows: half of the
    largest window that it has seen, rounded up to what the field can say.
    """
    shrunk = [False]
    real = tcpinfo.read

    def read(sock: socket.socket) -> tcpinfo.Info:
        *values, window = real(sock)
        return (*values, 24576 if shrunk[0] else window)  # type: ignore[return-value]

    monkeypatch.setattr(tcpinfo, "read", read)
    with Host(mtu=65520) as host:
        guest, peer, flow = outbound(host, mss=65480)
        largest = flow.rcv_edge - flow.rcv_nxt
        shrunk[0] = True
        for _ in range(3):
            replies = guest.data(bytes(30000))
            assert len(receive(peer, 30000)) == 30000
            host.advance(0.05)
            (*_, update) = replies + guest.take()
            window = edge(Connection(guest, peer, flow), update)
            assert window - (guest.seq - guest.isn - 1) >= min(largest // 2, 61440)


def test_right_edge_stands_still() -> None:
    with Host() as host:
        connection = outbound(host)
        guest = connection.guest
        last = 0
        for size in (1, 2, 3, 1460, 7, 1460, 1459, 255, 256, 257) * 20:
            for reply in guest.data(bytes(size), bytes(size)):
                assert edge(connection, reply) >= last
                last = edge(connection, reply)


def test_payload_beyond_the_window_is_cut() -> None:
    with Host() as host:
        connection = outbound(host)
        guest, peer, flow = connection
        sent = fill(connection)
        guest.take()
        start = guest.seq
        # Nothing of it fits, and the FIN behind it does not count either.
        (reply,) = guest.send(ACK | FIN, b"y" * 10)
        assert (reply.ack, flow.fin_at) == (flow.told_ack & MASK, -1)
        assert flow.rcv_nxt & MASK == start
        assert len(receive(peer, sent)) == sent
        host.advance(1)
        guest.seq = start
        guest.send(ACK | FIN, b"y" * 10)
        assert receive(peer, 10) == b"y" * 10
        assert peer.recv(1) == b""


def test_fin_beyond_a_full_window() -> None:
    """A FIN may be acknowledged beyond the edge; the field is zero, not negative."""
    with Host() as host:
        connection = outbound(host, scale=None)
        guest, peer, flow = connection
        sent = fill(connection)
        replies = guest.send(ACK | FIN)
        assert not flow.shut or replies[-1].window == 0
        assert len(receive(peer, sent)) == sent
        host.advance(1)
        assert peer.recv(1) == b""
        assert [*replies, *guest.take()][-1].ack == guest.seq


def test_uploads_share_the_queue_of_the_guest() -> None:
    with Host() as host:
        first = outbound(host)
        second = outbound(host, port=40001)
        assert host.ctx.upload_share(1460) == 700 * 1460
        for connection in (first, second):
            host.feed(*(connection.guest.frame(ACK, bytes(1460)) for _ in range(4)))
            host.take()
        assert host.ctx.uploads == 2
        assert host.ctx.upload_share(1460) == 350 * 1460
        host.feed(*(first.guest.frame(ACK, bytes(1460)) for _ in range(4)))
        host.advance(1.0)
        assert host.ctx.uploads == 2
        host.advance(1.0)
        assert host.ctx.uploads == 1
        host.advance(1.0)
        assert host.next_deadline() - host.time > 20
        host.ctx.uploads = 10000
        assert host.ctx.upload_share(1460) == 2920
