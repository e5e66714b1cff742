"""Socket to guest: sizes, windows, and how little is done while nothing can move."""

from __future__ import annotations

import socket

import pytest

from passt.userspace.tcp import toguest
from passt.userspace.tcp.const import MAX_WINDOW, PUMP_FRAMES
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    MASK,
    PSH,
    RST,
    Connection,
    Guest,
    Host,
    Segment,
    inbound,
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


def received(host: Host, guest: Guest) -> bytes:
    """All that there is for the guest, each step of it acknowledged."""
    got = bytearray()
    host.turn(5)
    while segments := [segment for segment in guest.take() if segment.next_seq != segment.seq]:
        assert segments[0].seq == guest.ack
        got += stream_of(segments)
        guest.ack = segments[-1].next_seq
        host.feed(guest.frame(ACK))
    return bytes(got)


def wake_ups(host: Host, seconds: float) -> int:
    """How often the loop's timers or sockets had something to do in ``seconds``."""
    end = host.time + seconds
    count = 0
    while host.next_deadline() <= end:
        host.time = host.next_deadline()
        host.turn(1)
        count += 1
    assert host.loop._epoll.poll(0) == []
    host.time = end
    return count


# Plain sending.


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [*range(1, 9), 1459, 1460, 1461, 2919, 2920, 2921, 14600])
@pytest.mark.parametrize("gso", [False, True])
def test_sizes(version: int, size: int, gso: bool) -> None:
    """Checksums and lengths, which the kit verifies, at every alignment (D3.63, D3.64)."""
    with Host(gso=gso) as host:
        connection = outbound(host, version=version)
        got = send(connection, TEXT[:size])
        assert stream_of(got) == TEXT[:size]
        assert got[-1].flags == ACK | PSH
        assert {segment.gso_size for segment in got} <= {0, 1460 if version == 4 else 1440}
        assert len({segment.label for segment in got}) == 1
        assert bool(got[0].label) == (version == 6)
        if not gso:
            assert max(len(segment.payload) for segment in got) <= 1460


def test_short_frames_do_not_leak_earlier_ones() -> None:
    with Host() as host:
        connection = outbound(host)
        send(connection, b"\xff" * 3000)
        assert stream_of(send(connection, b"a")) == b"a"  # parse() looks at the padding


def test_window_is_respected() -> None:
    with Host() as host:
        connection = outbound(host, window=100, scale=7)
        guest = connection.guest
        first = stream_of(send(connection, TEXT))
        assert 12800 - 1460 < len(first) <= 12800
        guest.ack = (guest.ack + len(first)) & MASK
        second = stream_of(guest.send(ACK, window=20))
        assert 2560 - 1460 < len(second) <= 2560
        assert first + second == TEXT[: len(first + second)]


def test_huge_window_is_limited() -> None:
    with Host() as host:
        connection = outbound(host, scale=14, window=0xFFFF)
        send(connection, TEXT)
        flow = connection.flow
        assert flow.guest_window == 0xFFFF << 14
        assert min(flow.guest_window, flow.cwnd) == MAX_WINDOW


def test_work_per_wake_up_is_bounded() -> None:
    """… and goes on without further events."""
    with Host(gso=False) as host:
        connection = outbound(host, scale=7, window=0x4000)
        connection.peer.sendall(TEXT)
        host.turn(1)
        assert len(host.link.sent) <= PUMP_FRAMES
        host.turn(10)
        assert stream_of(connection.guest.take()) == TEXT


def test_large_frames_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledgements are read in between: what is not discarded has to be passed over."""
    monkeypatch.setattr(toguest, "PUMP_BYTES", 29200)
    with Host(gso=True) as host:
        connection = outbound(host, scale=7, window=0x4000)
        connection.flow.template.max_payload = 14600
        connection.peer.sendall(TEXT)
        host.turn(1)
        first = stream_of(connection.guest.take())
        assert 0 < len(first) <= 29200
        host.turn(10)
        assert first + stream_of(connection.guest.take()) == TEXT


def test_last_small_piece_is_not_held_back() -> None:
    """A segment larger than what is left of the window must not delay a short message."""
    with Host(mtu=65520) as host:
        connection = outbound(host, mss=65480, scale=None, window=65535)
        head = stream_of(send(connection, TEXT[:10000]))
        body = stream_of(send(connection, TEXT[10000:10100]))
        assert head + body == TEXT[:10100]


def test_small_piece_of_much_is_held_back() -> None:
    """The other way round: no silly segments while more is under way (RFC 9293, 3.8.6.2.1)."""
    with Host(mtu=65520) as host:
        connection = outbound(host, mss=65480, scale=None, window=65535)
        first = stream_of(send(connection, TEXT[:40000]))
        assert len(first) == 40000
        assert send(connection, TEXT[40000:]) == []
        rest = connection.guest.send(ACK, ack=connection.guest.ack + 40000)
        assert stream_of(rest) == TEXT[40000 : 40000 + len(stream_of(rest))]
        assert rest


def test_half_of_a_small_window_is_used() -> None:
    """A guest whose window never reaches a segment gets data all the same."""
    with Host() as host:
        connection = outbound(host, mss=1460, scale=None, window=1000)
        got = bytearray(stream_of(send(connection, TEXT[:5000])))
        assert len(got) == 1000
        guest = connection.guest
        guest.ack += 500
        while len(got) < 5000:
            more = stream_of(guest.send(ACK))
            assert more
            got += more
            guest.ack = (guest.ack + len(more)) & MASK
        assert bytes(got) == TEXT[:5000]


def test_idle_with_everything_in_flight() -> None:
    """Data queued and unacknowledged: wake-ups by the retransmission timer only (D3.45)."""
    with Host() as host:
        connection = outbound(host)
        send(connection, TEXT[:5000])
        assert wake_ups(host, 0.9) == 0


def test_idle_with_a_full_window() -> None:
    with Host() as host:
        connection = outbound(host, scale=None, window=1460)
        assert len(stream_of(send(connection, TEXT))) == 1460
        connection.peer.setblocking(False)
        connection.peer.send(TEXT)
        host.turn()
        assert wake_ups(host, 0.9) == 0


def test_refused_frame_is_sent_again() -> None:
    """The link has no room: the stream goes on in order with the next event (D3.47)."""
    with Host(gso=False) as host:
        connection = outbound(host)
        guest, flow = connection.guest, connection.flow
        before = stream_of(send(connection, TEXT[:1460]))
        real, left = host.link.send, [2]

        def limited(length: int) -> bool:
            left[0] -= 1
            return left[0] >= 0 and real(length)

        host.link.send = limited  # type: ignore[method-assign]
        some = stream_of(send(connection, TEXT[1460:14600]))
        assert len(some) == 2 * 1460
        assert flow.snd_nxt == flow.snd_max
        host.link.send = real  # type: ignore[method-assign]
        guest.ack = (guest.ack + len(before + some)) & MASK
        rest = stream_of(guest.send(ACK))
        assert before + some + rest == TEXT[:14600]


def test_refused_fin_is_sent_again() -> None:
    with Host() as host:
        connection = outbound(host)
        host.link.accept = False
        connection.peer.shutdown(socket.SHUT_WR)
        host.turn()
        host.link.accept = True
        host.advance(1.1)
        assert connection.guest.take()[-1].flags == FIN | ACK


# Windows that close.


def test_no_fin_in_front_of_data() -> None:
    """The guest's window is closed, the peer sends and closes (D3.52)."""
    with Host() as host:
        connection = outbound(host, window=0)
        connection.peer.sendall(TEXT[:3000])
        connection.peer.shutdown(socket.SHUT_WR)
        host.advance(0.9)
        guest = connection.guest
        assert guest.take() == []
        got = guest.send(ACK, window=100)
        assert stream_of(got) == TEXT[:3000]
        assert got[-1].flags & FIN


def test_probe_of_a_closed_window() -> None:
    """One byte at 1, 3, 7 … s; for as long as the guest answers (D3.53, D3.54)."""
    with Host() as host:
        connection = outbound(host, window=0)
        guest = connection.guest
        send(connection, TEXT[:3000])
        start = host.time
        seen = []
        while host.time < start + 1800:
            host.time = host.next_deadline()
            host.turn()
            for segment in guest.take():
                if segment.payload:
                    assert segment.payload == TEXT[:1]
                    seen.append(host.time - start)
                    guest.send(ACK)
        assert seen[:7] == [1, 3, 7, 15, 31, 63, 127]
        assert seen[7:10] == [247, 367, 487]
        got = guest.send(ACK, window=100)
        assert stream_of(got) == TEXT[:3000]
        # What was the interval of probes is none for data.
        host.advance(1.1)
        assert guest.take()[0].payload.startswith(TEXT[:1460])


def test_dead_guest_with_a_closed_window() -> None:
    with Host() as host:
        connection = outbound(host, window=0)
        send(connection, TEXT[:3000])
        host.advance(250)
        assert connection.guest.take()[-1].flags == RST | ACK
        assert host.table.count == 0


@pytest.mark.parametrize("one_batch", [True, False])
def test_window_closed_on_data_in_flight(one_batch: bool) -> None:
    """The guest did not take them: all of them again when it opens (D3.53)."""
    with Host() as host:
        connection = outbound(host)
        guest = connection.guest
        send(connection, TEXT[:5000])
        closed, opened = guest.frame(ACK, window=0), guest.frame(ACK, window=100)
        if one_batch:
            host.feed(closed, opened)
        else:
            host.feed(closed)
            assert guest.take() == []
            host.advance(0.5)
            assert guest.take() == []
            host.feed(opened)
        assert stream_of(guest.take()) == TEXT[:5000]


def test_window_closed_while_half_closed() -> None:
    """Guest FIN, then zero window, then small updates (D3.55)."""
    with Host() as host:
        connection = outbound(host)
        guest = connection.guest
        guest.send(ACK | FIN)
        guest.send(ACK, window=0)
        got = bytearray()
        for segment in send(connection, TEXT[:20000]):
            got += segment.payload
        assert not got
        for _ in range(40):
            for segment in guest.send(ACK, window=8):
                got += segment.payload
                guest.ack = segment.next_seq
            if len(got) == 20000:
                break
        assert bytes(got) == TEXT[:20000]


def test_probe_with_a_fin() -> None:
    with Host() as host:
        connection = outbound(host, window=0)
        connection.peer.shutdown(socket.SHUT_WR)
        host.advance(1.1)
        (fin,) = connection.guest.take()
        assert fin.flags == FIN | ACK


# The socket.


def test_acknowledged_data_leave_the_socket() -> None:
    """At the latest after a few small exchanges; large ones at once."""
    with Host() as host:
        connection = outbound(host)
        flow, guest = connection.flow, connection.guest
        left = []
        for _ in range(40):
            guest.ack = send(connection, b"0123456789")[-1].next_seq
            guest.data(b"answer")
            left.append(flow.snd_una - flow.head)
        assert max(left) == 80
        guest.acknowledge(send(connection, TEXT[:10000]))
        assert flow.snd_una == flow.head


def test_peer_with_nagle_is_acknowledged() -> None:
    """It sends one small message after the other, and the guest does not answer."""
    with Host() as host:
        connection = outbound(host)
        for _ in range(40):
            connection.guest.acknowledge(send(connection, b"0123456789"))
            assert connection.flow.snd_una == connection.flow.head


def test_small_receive_buffers_are_emptied_at_once() -> None:
    with Host() as host:
        host.features.lazy_discard = 0
        connection = outbound(host)
        connection.guest.acknowledge(send(connection, b"x"))
        assert connection.flow.head == connection.flow.snd_una


@pytest.mark.parametrize("peek_off", [False, True])
def test_urgent_data_in_line(peek_off: bool) -> None:
    """The urgent byte is a byte of the stream like any other (D3.67)."""
    with Host(peek_off=peek_off) as host:
        connection = outbound(host)
        peer, guest = connection.peer, connection.guest
        peer.sendall(b"abc")
        peer.send(b"X", socket.MSG_OOB)
        peer.sendall(b"def")
        assert received(host, guest) == b"abcXdef"
        peer.sendall(b"ghi")
        peer.send(b"Y", socket.MSG_OOB)
        peer.sendall(b"jkl" * 3000)
        peer.shutdown(socket.SHUT_WR)
        got = received(host, guest)
        assert got == b"ghiY" + b"jkl" * 3000
        assert connection.flow.fin_acked


def test_without_peek_offset() -> None:
    """Large windows, with loss in the middle (D3.66)."""
    with Host(peek_off=False) as host:
        connection = outbound(host, sack=False)
        guest = connection.guest
        sent = stream_of(send(connection, TEXT))
        assert duplicate(connection, 3)[0].payload == TEXT[:1460]
        guest.ack = (guest.ack + len(sent)) & MASK
        rest = guest.send(ACK)
        assert (sent + stream_of(rest)) == TEXT


def test_discard_failing() -> None:
    """The socket was reset meanwhile: both sides end, nothing gets out of step (D2.42)."""
    with Host() as host:
        connection = inbound(host)
        guest, peer, _ = connection
        send(connection, TEXT[:9000])
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        guest.ack = (guest.ack + 9000) & MASK
        host.feed(guest.frame(ACK))
        host.turn()
        assert guest.take()[-1].flags == RST | ACK
        assert host.table.count == 0
