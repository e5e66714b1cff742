"""TCP repair mode on real loopback connections: read one, rebuild it, let it talk on."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterator

import pytest

from passt.syscalls import repair, tcpinfo

pytestmark = pytest.mark.system

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connected pair (peer, ours) over 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    peer.settimeout(10)
    ours.settimeout(10)
    with peer, ours:
        yield peer, ours


def test_modes(pair: Pair) -> None:
    _, ours = pair
    assert not repair.enabled(ours)
    for off in (repair.TCP_REPAIR_OFF, repair.TCP_REPAIR_OFF_NO_WP):
        repair.switch(ours, repair.TCP_REPAIR_ON)
        assert repair.enabled(ours)
        repair.switch(ours, off)
        assert not repair.enabled(ours)


def test_refused_on_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(PermissionError):
        repair.switch(listener, repair.TCP_REPAIR_ON)


def test_everything_needs_the_mode(pair: Pair) -> None:
    _, ours = pair
    with pytest.raises(PermissionError):
        repair.select_queue(ours, repair.TCP_SEND_QUEUE)
    with pytest.raises(OSError, match="Invalid argument"):
        repair.set_options(ours, [(repair.TCPOPT_MSS, 1000)])
    with pytest.raises(PermissionError):
        repair.get_window(ours)
    with pytest.raises(PermissionError):
        repair.set_window(ours, (0, 0, 0, 0, 0))
    with pytest.raises(PermissionError):
        repair.set_timestamp(ours, 1)


def test_sequences_need_a_queue_and_no_connection(pair: Pair) -> None:
    _, ours = pair
    repair.switch(ours, repair.TCP_REPAIR_ON)
    with pytest.raises(PermissionError):
        repair.set_sequence(ours, 1)
    with socket.socket() as fresh:
        repair.switch(fresh, repair.TCP_REPAIR_ON)
        with pytest.raises(OSError, match="Invalid") as caught:
            repair.set_sequence(fresh, 1)
        assert caught.value.errno == errno.EINVAL
        for queue, sequence in (
            (repair.TCP_SEND_QUEUE, 0xFFFFFFFE),
            (repair.TCP_RECV_QUEUE, 0x80000000),
        ):
            repair.select_queue(fresh, queue)
            repair.set_sequence(fresh, sequence)
            assert repair.get_sequence(fresh) == sequence
        repair.select_queue(fresh, repair.TCP_NO_QUEUE)


def test_window_scale_limits() -> None:
    assert repair.window_scales(7, 8) == 0x80007
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as fresh:
        repair.switch(fresh, repair.TCP_REPAIR_ON)
        fresh.connect(listener.getsockname())
        with pytest.raises(OSError, match="File too large") as caught:
            repair.set_options(fresh, [(repair.TCPOPT_WINDOW, repair.window_scales(15, 0))])
        assert caught.value.errno == errno.EFBIG


def test_freeze_and_thaw(pair: Pair) -> None:
    peer, ours = pair
    repair.freeze(ours)
    peer.sendall(b"x" * 3000)
    assert tcpinfo.inq(ours.fileno()) == 0
    assert tcpinfo.outq(peer.fileno()) == 3000  # not acknowledged either
    repair.thaw(ours)
    assert ours.recv(3000, socket.MSG_WAITALL) == b"x" * 3000
    with pytest.raises(FileNotFoundError):
        repair.thaw(ours)


def test_rebuild_connection(pair: Pair) -> None:
    """All calls together: unread and unacknowledged data survive, both directions go on."""
    peer, ours = pair
    peer.sendall(b"early")
    assert ours.recv(5) == b"early"
    unread = hashlib.sha256(b"unread").digest() * 20
    peer.sendall(unread)
    # With the peer deaf, what we send stays in the send queue.
    repair.freeze(peer)
    unacked = hashlib.sha256(b"unacked").digest() * 30
    ours.sendall(unacked)

    repair.freeze(ours)
    repair.switch(ours, repair.TCP_REPAIR_ON)
    _, options, scales, *_ = tcpinfo.read(ours)
    mss = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    timestamp = repair.get_timestamp(ours)
    window = repair.get_window(ours)
    contents = {}
    for queue in (repair.TCP_SEND_QUEUE, repair.TCP_RECV_QUEUE):
        repair.select_queue(ours, queue)
        data = ours.recv(1 << 16, socket.MSG_PEEK)
        start = repair.get_sequence(ours) - len(data) & 0xFFFFFFFF
        contents[queue] = start, data
    assert contents[repair.TCP_SEND_QUEUE][1] == unacked
    assert contents[repair.TCP_RECV_QUEUE][1] == unread
    # snd_wnd, max_window, rcv_wnd are plausible and rcv_wup is near the receive sequence.
    assert window[1] <= window[2]
    assert 0 < window[3] < 1 << 30
    assert (contents[repair.TCP_RECV_QUEUE][0] + len(unread) - window[4]) & 0xFFFFFFFF < 1 << 20
    local, remote = ours.getsockname(), ours.getpeername()
    ours.close()  # silently
    assert tcpinfo.read(peer)[0] == tcpinfo.TCP_ESTABLISHED

    with socket.socket() as rebuilt:
        rebuilt.settimeout(10)
        repair.switch(rebuilt, repair.TCP_REPAIR_ON)
        rebuilt.bind(local)
        if options & tcpinfo.TCPI_OPT_TIMESTAMPS:
            repair.set_timestamp(rebuilt, timestamp)
        for queue, (start, _) in contents.items():
            repair.select_queue(rebuilt, queue)
            repair.set_sequence(rebuilt, start)
        rebuilt.connect(remote)
        for queue in (repair.TCP_RECV_QUEUE, repair.TCP_SEND_QUEUE):
            repair.select_queue(rebuilt, queue)
            rebuilt.sendall(contents[queue][1])
        declared = [
            (repair.TCPOPT_WINDOW, repair.window_scales(*tcpinfo.split_scales(scales))),
            (repair.TCPOPT_MSS, mss),
        ]
        if options & tcpinfo.TCPI_OPT_SACK:
            declared.append((repair.TCPOPT_SACK_PERM, 0))
        if options & tcpinfo.TCPI_OPT_TIMESTAMPS:
            declared.append((repair.TCPOPT_TIMESTAMP, 0))
        repair.set_options(rebuilt, declared)
        repair.set_window(rebuilt, window)
        assert repair.get_window(rebuilt) == window
        repair.thaw(peer)
        repair.switch(rebuilt, repair.TCP_REPAIR_OFF)

        assert tcpinfo.read(rebuilt)[1] & 7 == options & 7
        assert tcpinfo.read(rebuilt)[2] == scales
        assert rebuilt.recv(len(unread), socket.MSG_WAITALL) == unread
        assert peer.recv(len(unacked), socket.MSG_WAITALL) == unacked
        peer.sendall(b"to the rebuilt one")
        assert rebuilt.recv(100) == b"to the rebuilt one"
        rebuilt.sendall(b"and back")
        assert peer.recv(100) == b"and back"
        rebuilt.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
