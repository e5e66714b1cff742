"""TCP_INFO, SO_MEMINFO and queue lengths of real loopback connections; socket probes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from passt.syscalls import sockopt, tcpinfo

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connected pair (client, server) over 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


class FakeSocket:
    """Answers getsockopt like a kernel whose structure ends at `length` bytes."""

    def __init__(self, data: bytes, length: int) -> None:
        self.data = data[:length]

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.data[:size]


def numbered() -> bytes:
    """A tcp_info in which each field decoded by `read` has a value of its own."""
    data = bytearray(280)
    struct.pack_into("=BBB", data, 0, 1, 99, 98)
    struct.pack_into("=BB", data, 5, 7, 0x87)
    for offset, value in ((16, 1460), (44, 5), (68, 6), (148, 7), (228, 8)):
        struct.pack_into("=I", data, offset, value)
    struct.pack_into("=Q", data, 120, 1 << 40)
    struct.pack_into("=Q", data, 160, 1 << 41)
    return bytes(data)


def test_offsets() -> None:
    fake = FakeSocket(numbered(), 280)
    info = tcpinfo.read(fake)  # type: ignore[arg-type]
    assert info == (1, 7, 0x87, 1460, 5, 6, 1 << 40, 7, 1 << 41, 8)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (231, (1, 7, 0x87, 1460, 5, 6, 1 << 40, 7, 1 << 41)),
        (168, (1, 7, 0x87, 1460, 5, 6, 1 << 40, 7, 1 << 41, 0)),
        (152, (1, 7, 0x87, 1460, 5, 6, 1 << 40, 7, 0, 0)),
        (128, (1, 7, 0x87, 1460, 5, 6, 1 << 40, 0, 0, 0)),
        (104, (1, 7, 0x87, 1460, 5, 6, 0, 0, 0, 0)),
    ],
)
def test_short_structures(length: int, expected: tuple[int, ...]) -> None:
    fake = FakeSocket(numbered(), length)
    assert tcpinfo.read(fake)[: len(expected)] == expected  # type: ignore[arg-type]


def test_fields_by_length() -> None:
    def present(length: int) -> tuple[bool, bool, bool, bool]:
        f = tcpinfo.Fields(length)
        return f.bytes_acked, f.min_rtt, f.delivery_rate, f.snd_wnd

    assert present(104) == (False, False, False, False)
    assert present(128) == (True, False, False, False)
    assert present(152) == (True, True, False, False)
    assert present(168) == (True, True, True, False)
    assert present(231) == (True, True, True, False)
    assert present(232) == (True, True, True, True)


def test_probe_matches_kernel() -> None:
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    fields = tcpinfo.probe()
    assert fields.length >= 104
    assert fields.snd_wnd == (version >= (5, 4))
    assert fields.delivery_rate == (version >= (4, 9))


def test_connection_values(pair: Pair) -> None:
    client, server = pair
    client.sendall(b"x" * 1000)
    assert server.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
    server.sendall(b"y")
    assert client.recv(1) == b"y"
    state, _, scales, mss, _, rtt, acked, min_rtt, rate, window = tcpinfo.read(client)
    assert state == tcpinfo.TCP_ESTABLISHED
    assert 500 < mss <= 65536
    assert acked == 1001  # the SYN of a connecting socket counts
    assert 0 < rtt < 10_000_000
    assert 0 < min_rtt <= tcpinfo.MIN_RTT_UNKNOWN
    assert rate > 0
    assert 1000 < window <= 1 << 30
    peer, own = tcpinfo.split_scales(scales)
    assert (peer, own) == tcpinfo.split_scales(tcpinfo.read(server)[2])[::-1]
    assert tcpinfo.read(server)[6] == 1  # and not that of an accepted one


def test_states(pair: Pair) -> None:
    client, server = pair
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert tcpinfo.read(listener)[0] == tcpinfo.TCP_LISTEN
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert tcpinfo.read(server)[0] == tcpinfo.TCP_CLOSE_WAIT
    # The acknowledgement of the FIN may be delayed.
    assert tcpinfo.read(client)[0] in (tcpinfo.TCP_FIN_WAIT1, tcpinfo.TCP_FIN_WAIT2)


def test_scales_of_asymmetric_connection() -> None:
    # A small receive buffer set before the handshake makes that side announce scale 0.
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            peer, own = tcpinfo.split_scales(tcpinfo.read(client)[2])
    assert peer == 0
    assert own > 0


def test_read_of_non_tcp() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises(OSError, match=r"not supported|not available") as caught,
    ):
        tcpinfo.read(sock)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.ENOPROTOOPT)


def test_queues_and_meminfo(pair: Pair) -> None:
    client, server = pair
    idle = tcpinfo.meminfo(client)
    assert idle is not None
    assert idle[0] == client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert idle[1] == 0
    client.setblocking(False)
    sent = 0
    try:
        while True:
            sent += client.send(b"z" * 65536)
    except BlockingIOError:
        pass
    outq = tcpinfo.outq(client.fileno())
    inq = tcpinfo.inq(server.fileno())
    unsent = tcpinfo.outq_unsent(client.fileno())
    assert 0 < unsent <= outq
    # What was received but not acknowledged yet is in both queues.
    assert inq + unsent <= sent <= inq + outq
    full = tcpinfo.meminfo(client)
    assert full is not None
    assert full[1] >= outq


def test_meminfo_absent() -> None:
    class Old:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            raise OSError(errno.ENOPROTOOPT, "no")

    assert tcpinfo.meminfo(Old()) is None  # type: ignore[arg-type]
    assert tcpinfo.meminfo(FakeSocket(bytes(36), 20)) is None  # type: ignore[arg-type]


def test_linger_reset(pair: Pair) -> None:
    client, server = pair
    sockopt.linger_reset(client)
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_probe_peek_off(family: int) -> None:
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if family == socket.AF_INET6:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 loopback")
    since = (6, 9) if family == socket.AF_INET else (6, 12)
    # A distribution may have brought the option to an older kernel.
    assert sockopt.probe_peek_off(family) or version < since


def test_probe_peek_off_without_family() -> None:
    assert sockopt.probe_peek_off(12345) is False


def test_probe_large_sndbuf() -> None:
    with open("/proc/sys/net/core/wmem_max") as f:
        limit = int(f.read())
    assert sockopt.probe_large_sndbuf() == (2 * limit >= 4 << 20)
