"""Batched datagram calls, control messages and raw addresses over real loopback sockets."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from passt.syscalls import cmsg, sockaddr, sockopt
from passt.syscalls.mmsg import Forward, RecvBatch, Region, SendBatch, anonymous

Pair = tuple[socket.socket, socket.socket]


def udp(address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two UDP sockets connected to each other."""
    with udp() as a, udp() as b:
        a.connect(b.getsockname())
        b.connect(a.getsockname())
        yield a, b


@pytest.fixture
def pair6() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as a,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as b,
    ):
        try:
            a.bind(("::1", 0))
            b.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback")
        yield a, b


# Raw addresses


def test_sockaddr_layout() -> None:
    assert sockaddr.pack(b"\x7f\0\0\1", 0x1234) == struct.pack("=H", 2) + (
        b"\x12\x34\x7f\0\0\1" + bytes(8)
    )
    raw = sockaddr.pack(bytes(15) + b"\1", 53, 7)
    assert raw == struct.pack("=H", 10) + b"\0\x35" + bytes(19) + b"\1" + struct.pack("=I", 7)


@pytest.mark.parametrize(
    ("address", "port", "scope"),
    [
        (b"\x01\x02\x03\x04", 65535, 0),
        (b"\xff" * 4, 0, 0),
        (bytes(range(16)), 443, 0),
        (bytes(range(16)), 443, 0xFFFFFFFF),
    ],
)
def test_sockaddr_round_trip(address: bytes, port: int, scope: int) -> None:
    raw = sockaddr.pack(address, port, scope)
    assert sockaddr.unpack(raw) == (address, port, scope)
    assert sockaddr.unpack(memoryview(raw)) == (address, port, scope)


@pytest.mark.parametrize("raw", [b"", b"\2", struct.pack("=H", 2) + bytes(13), bytes(28)])
def test_sockaddr_unpack_rejects(raw: bytes) -> None:
    assert sockaddr.unpack(raw) == (b"", 0, 0)
    assert sockaddr.unpack(struct.pack("=H", 10) + bytes(25)) == (b"", 0, 0)


def test_sockaddr_pack_rejects() -> None:
    with pytest.raises(ValueError, match="5-byte"):
        sockaddr.pack(bytes(5), 1)
    with pytest.raises(struct.error):
        sockaddr.pack(bytes(4), 65536)


# Control messages


def test_cmsg_iter_pads() -> None:
    data = cmsg.pack(1, 2, b"abc") + cmsg.pack(3, 4, b"defgh")
    found = [(level, kind, bytes(d)) for level, kind, d in cmsg.cmsg_iter(memoryview(data))]
    assert found == [(1, 2, b"abc"), (3, 4, b"defgh")]
    assert len(data) == cmsg.space(3) + cmsg.space(5)


def test_cmsg_matches_the_c_library() -> None:
    assert cmsg.space(5) == socket.CMSG_SPACE(5)
    assert len(cmsg.pack_segment(1)) == socket.CMSG_SPACE(2)
    assert cmsg.pack_segment(1400) == cmsg.pack(
        socket.IPPROTO_UDP, sockopt.UDP_SEGMENT, struct.pack("=H", 1400)
    )


@pytest.mark.parametrize("length", [0, 1, cmsg.HEADER_LEN - 1, 200, (1 << 31) - 1])
def test_cmsg_malformed_length_ends(length: int) -> None:
    bad = struct.pack("@Nii", length, socket.IPPROTO_UDP, sockopt.UDP_GRO) + bytes(16)
    view = memoryview(bad)
    assert list(cmsg.cmsg_iter(view)) == []
    assert cmsg.gro_size(view) == 0
    assert cmsg.pktinfo(view) is None


@pytest.mark.parametrize("cut", range(cmsg.space(4)))
def test_cmsg_truncated(cut: int) -> None:
    data = cmsg.pack(socket.IPPROTO_UDP, sockopt.UDP_GRO, struct.pack("=i", 99))
    view = memoryview(data)[:cut]
    whole = cut >= cmsg.HEADER_LEN + 4
    assert cmsg.gro_size(view) == (99 if whole else 0)


def test_gro_size_behind_others_and_negative() -> None:
    gro = cmsg.pack(socket.IPPROTO_UDP, sockopt.UDP_GRO, struct.pack("=i", 1200))
    assert cmsg.gro_size(memoryview(cmsg.pack_pktinfo(bytes(4)) + gro)) == 1200
    negative = cmsg.pack(socket.IPPROTO_UDP, sockopt.UDP_GRO, struct.pack("=i", -1))
    assert cmsg.gro_size(memoryview(negative)) == 0


# Regions


def test_region_bounds_and_pin() -> None:
    buffer = bytearray(b"hello")
    region = Region(buffer)
    assert region.size == 5
    with pytest.raises(BufferError):
        buffer.append(0)
    region.view[0] = ord("J")
    assert buffer == b"Jello"


def test_anonymous_is_zero_and_lazy() -> None:
    with open("/proc/self/statm") as f:
        before = int(f.read().split()[1])
    region = anonymous(64 << 20)
    with open("/proc/self/statm") as f:
        after = int(f.read().split()[1])
    assert after - before < 1000
    assert region.view[(64 << 20) - 1] == 0


# Receiving


def test_empty_is_eagain(pair: Pair) -> None:
    batch = RecvBatch(4, 100)
    assert batch.recv(pair[0].fileno()) == -errno.EAGAIN
    assert batch.used == 0
    assert batch.lengths() == []
    assert batch.names() == []


def test_bad_descriptor() -> None:
    assert RecvBatch(1, 1).recv(-1) == -errno.EBADF
    assert SendBatch(1).send(-1, 1) == -errno.EBADF


def test_receive_lengths_names_order(pair: Pair) -> None:
    a, b = pair
    payloads = [bytes([i]) * (i * 7) for i in range(10)]  # the first is empty
    for payload in payloads:
        a.send(payload)
    batch = RecvBatch(16, 64)
    assert batch.recv(b.fileno()) == 10
    assert batch.lengths() == [len(p) for p in payloads]
    expected = sockaddr.pack(b"\x7f\0\0\1", a.getsockname()[1])
    assert batch.names() == [expected] * 10
    for i, payload in enumerate(payloads):
        assert batch.length(i) == len(payload)
        assert bytes(batch.view(i, batch.length(i))) == payload
        assert batch.name(i) == expected
        assert batch.flags(i) == 0
        assert bytes(batch.control(i)) == b""
        start = i * batch.size
        assert bytes(batch.ring.view[start : start + len(payload)]) == payload


def test_limit_and_reuse(pair: Pair) -> None:
    a, b = pair
    batch = RecvBatch(4, 10)
    for round_ in range(3):
        for i in range(6):
            a.send(bytes([round_, i]))
        assert batch.recv(b.fileno(), limit=1) == 1
        assert bytes(batch.view(0, 2)) == bytes([round_, 0])
        assert batch.recv(b.fileno()) == 4
        assert [bytes(batch.view(i, 2))[1] for i in range(4)] == [1, 2, 3, 4]
        assert len(batch.names()[3]) == 16
        assert batch.recv(b.fileno()) == 1
        assert batch.recv(b.fileno()) == -errno.EAGAIN


def test_truncation(pair: Pair) -> None:
    a, b = pair
    batch = RecvBatch(2, 8)
    a.send(b"x" * 100)
    a.send(b"y" * 8)
    assert batch.recv(b.fileno()) == 2
    assert batch.lengths() == [8, 8]
    assert batch.flags(0) & socket.MSG_TRUNC
    assert not batch.flags(1) & socket.MSG_TRUNC
    assert bytes(batch.view(1, 8)) == b"y" * 8


def test_recv_argument_errors(pair: Pair) -> None:
    batch = RecvBatch(2, 8)
    fd = pair[0].fileno()
    with pytest.raises(ValueError, match="MSG_TRUNC"):
        batch.recv(fd, socket.MSG_TRUNC)
    for limit in (3, -1):
        with pytest.raises(ValueError, match="limit"):
            batch.recv(fd, limit=limit)


def test_names_restored_after_shorter_family(pair6: Pair) -> None:
    """The kernel shortens msg_namelen for IPv4: the next IPv6 name must have room again."""
    a6, b6 = pair6
    batch = RecvBatch(1, 8)
    with udp() as a4, udp() as b4:
        for _ in range(2):
            a4.sendto(b"4", b4.getsockname())
            assert batch.recv(b4.fileno()) == 1
            assert len(batch.name(0)) == 16
            a6.sendto(b"6", b6.getsockname())
            assert batch.recv(b6.fileno()) == 1
            name = batch.name(0)
            assert sockaddr.unpack(name) == (bytes(15) + b"\1", a6.getsockname()[1], 0)


def test_without_names(pair: Pair) -> None:
    a, b = pair
    a.send(b"hi")
    batch = RecvBatch(1, 8, names=False)
    assert batch.recv(b.fileno()) == 1
    assert batch.name(0) == b""
    assert batch.names() == [b""]


def test_error_is_returned() -> None:
    with udp() as a:
        with udp() as gone:
            port = gone.getsockname()[1]
        a.connect(("127.0.0.1", port))
        a.send(b"x")
        assert RecvBatch(4, 8).recv(a.fileno()) == -errno.ECONNREFUSED


def test_pktinfo_exact_control(pair: Pair) -> None:
    a, b = pair
    b.setsockopt(socket.IPPROTO_IP, sockopt.IP_PKTINFO, 1)
    batch = RecvBatch(2, 8, control=256)
    for _ in range(3):  # the control length is restored each time
        a.send(b"1")
        assert batch.recv(b.fileno()) == 1
        view = batch.control(0)
        assert len(view) == cmsg.space(12)
        assert cmsg.pktinfo(view) == (
            b"\x7f\0\0\1",
            socket.if_nametoindex("lo"),
            b"\x7f\0\0\1",
        )
        assert cmsg.gro_size(view) == 0


def test_pktinfo6(pair6: Pair) -> None:
    a, b = pair6
    b.setsockopt(socket.IPPROTO_IPV6, sockopt.IPV6_RECVPKTINFO, 1)
    a.sendto(b"1", b.getsockname())
    batch = RecvBatch(1, 8, control=64)
    assert batch.recv(b.fileno()) == 1
    localhost = bytes(15) + b"\1"
    index = socket.if_nametoindex("lo")
    assert cmsg.pktinfo(batch.control(0)) == (localhost, index, localhost)


def test_control_truncation(pair: Pair) -> None:
    a, b = pair
    b.setsockopt(socket.IPPROTO_IP, sockopt.IP_PKTINFO, 1)
    a.send(b"1")
    batch = RecvBatch(1, 8, control=cmsg.HEADER_LEN + 2)
    assert batch.recv(b.fileno()) == 1
    assert batch.flags(0) & socket.MSG_CTRUNC
    assert cmsg.pktinfo(batch.control(0)) is None


# Sending


def test_send_parts(pair: Pair) -> None:
    a, b = pair
    region, other = Region(bytearray(b"0123456789")), Region(bytearray(b"abc"))
    batch = SendBatch(3, parts=3)
    batch.set(0, region, 2, 3)
    batch.set(1, region, 0, 0)
    batch.set(2, region, 9, 1)
    batch.add(2, other, 0, 3)
    batch.add(2, region, 0, 2)
    with pytest.raises(ValueError, match="too many"):
        batch.add(2, region, 0, 1)
    assert batch.send(a.fileno(), 3) == 3
    assert [b.recv(100) for _ in range(3)] == [b"234", b"", b"9abc01"]
    batch.set(2, region, 0, 1)  # one piece again
    assert batch.send(a.fileno(), 1, first=2) == 1
    assert b.recv(100) == b"0"


def test_send_names() -> None:
    region = Region(bytearray(b"data"))
    batch = SendBatch(2)
    with udp() as a, udp() as b, udp() as c:
        for i, sock in enumerate((b, c)):
            batch.set(i, region, i, 2, sockaddr.pack(b"\x7f\0\0\1", sock.getsockname()[1]))
        assert batch.send(a.fileno(), 2) == 2
        assert b.recv(10) == b"da"
        assert c.recv(10) == b"at"
        batch.set(0, region, 0, 4)  # the name is gone
        assert batch.send(a.fileno(), 1) == -errno.EDESTADDRREQ


def test_partial_send(pair: Pair) -> None:
    """An error after the first datagram: the count says how many went, the next call why."""
    a, b = pair
    region = Region(bytearray(70000))
    batch = SendBatch(3)
    batch.set(0, region, 0, 10)
    batch.set(1, region, 0, 70000)
    batch.set(2, region, 0, 20)
    assert batch.send(a.fileno(), 3) == 1
    assert batch.send(a.fileno(), 2, first=1) == -errno.EMSGSIZE
    assert batch.send(a.fileno(), 1, first=2) == 1
    assert [len(b.recv(100)) for _ in range(2)] == [10, 20]


def test_send_bounds() -> None:
    region = Region(bytearray(10))
    batch = SendBatch(2, parts=2, control=8)
    for offset, length in ((0, 11), (10, 1), (-1, 5), (5, -1)):
        with pytest.raises(ValueError, match="outside"):
            batch.set(0, region, offset, length)
        with pytest.raises(ValueError, match="outside"):
            batch.add(0, region, offset, length)
    with pytest.raises(ValueError, match="too long"):
        batch.set(0, region, 0, 1, bytes(33))
    with pytest.raises(ValueError, match="too long"):
        batch.set(1, region, 0, 1, b"", bytes(9))
    for count, first in ((3, 0), (2, 1), (-1, 0)):
        with pytest.raises(ValueError, match="beyond"):
            batch.send(0, count, first=first)


def test_pktinfo_chooses_source() -> None:
    region = Region(bytearray(b"q"))
    with udp("0.0.0.0") as a, udp() as b:
        batch = SendBatch(1, control=64)
        name = sockaddr.pack(b"\x7f\0\0\1", b.getsockname()[1])
        batch.set(0, region, 0, 1, name, cmsg.pack_pktinfo(b"\x7f\0\0\x09"))
        assert batch.send(a.fileno(), 1) == 1
        assert b.recvfrom(10) == (b"q", ("127.0.0.9", a.getsockname()[1]))
        batch.set(0, region, 0, 1, name)  # and without control data the default
        assert batch.send(a.fileno(), 1) == 1
        assert b.recvfrom(10)[1][0] == "127.0.0.1"


def test_pktinfo6_is_accepted(pair6: Pair) -> None:
    a, b = pair6
    region = Region(bytearray(b"q"))
    batch = SendBatch(1, control=64)
    localhost = bytes(15) + b"\1"
    batch.set(
        0,
        region,
        0,
        1,
        sockaddr.pack(localhost, b.getsockname()[1]),
        cmsg.pack_pktinfo(localhost, socket.if_nametoindex("lo")),
    )
    assert batch.send(a.fileno(), 1) == 1
    assert b.recv(10) == b"q"


def test_segmentation_and_gro(pair: Pair) -> None:
    a, b = pair
    payload = bytes(range(250)) * 20  # 5000 bytes: 4 × 1200 + 200
    region = Region(bytearray(payload))
    batch = SendBatch(1, control=cmsg.space(2))
    batch.set(0, region, 0, len(payload), b"", cmsg.pack_segment(1200))
    assert batch.send(a.fileno(), 1) == 1
    recv = RecvBatch(8, 65536, control=cmsg.space(4))
    assert recv.recv(b.fileno()) == 5
    assert recv.lengths() == [1200] * 4 + [200]
    assert b"".join(bytes(recv.view(i, n)) for i, n in enumerate(recv.lengths())) == payload
    b.setsockopt(socket.IPPROTO_UDP, sockopt.UDP_GRO, 1)
    assert batch.send(a.fileno(), 1) == 1
    assert recv.recv(b.fileno()) == 1
    assert recv.length(0) == 5000
    assert cmsg.gro_size(recv.control(0)) == 1200
    assert bytes(recv.view(0, 5000)) == payload


# Forwarding


def test_forward(pair: Pair) -> None:
    a, b = pair
    recv = RecvBatch(16, 2000)
    forward = Forward(recv)
    payloads = [bytes([i]) * (100 * i) for i in range(12)]
    with udp() as c, udp() as d:
        c.connect(d.getsockname())
        for payload in payloads:
            a.send(payload)
        assert recv.recv(b.fileno()) == 12
        assert forward.send(c.fileno(), 3, 5) == 5
        assert [d.recv(2000) for _ in range(5)] == payloads[3:8]
        assert forward.send(c.fileno(), 0, 12) == 12
        assert [d.recv(2000) for _ in range(12)] == payloads
        assert forward.send(c.fileno(), 11, 1) == 1
        assert d.recv(2000) == payloads[11]
        for first, count in ((0, 13), (12, 1), (-1, 2), (0, 0)):
            with pytest.raises(ValueError, match="hold nothing"):
                forward.send(c.fileno(), first, count)


def test_forward_returns_errno(pair: Pair) -> None:
    a, b = pair
    recv = RecvBatch(2, 10)
    forward = Forward(recv)
    a.send(b"x")
    assert recv.recv(b.fileno()) == 1
    assert forward.send(-1, 0, 1) == -errno.EBADF
