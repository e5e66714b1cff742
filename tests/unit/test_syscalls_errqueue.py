"""Error queue of UDP sockets, with refusals from the loopback's closed ports."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest

from passt.syscalls import cmsg, sockaddr, sockopt
from passt.syscalls.errqueue import SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, ErrorQueue
from passt.syscalls.mmsg import RecvBatch

LOCALHOST4 = b"\x7f\0\0\1"
LOCALHOST6 = bytes(15) + b"\1"


def closed_port(family: int, address: str) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


def udp4() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, sockopt.IP_RECVERR, 1)
    return sock


def test_empty_queue() -> None:
    with udp4() as sock:
        assert ErrorQueue().read(sock.fileno()) is None


def test_bad_descriptor() -> None:
    with pytest.raises(OSError, match="recvmsg MSG_ERRQUEUE: ") as caught:
        ErrorQueue().read(-1)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("packet_info", [False, True])
def test_refused_ipv4(packet_info: bool) -> None:
    port = closed_port(socket.AF_INET, "127.0.0.1")
    queue = ErrorQueue()
    with udp4() as sock:
        if packet_info:
            sock.setsockopt(socket.IPPROTO_IP, sockopt.IP_PKTINFO, 1)
        sock.sendto(b"first", ("127.0.0.1", port))
        report = queue.read(sock.fileno())
        assert report is not None
        assert report.errno == errno.ECONNREFUSED
        assert (report.origin, report.type, report.code) == (SO_EE_ORIGIN_ICMP, 3, 3)
        assert (report.info, report.data) == (0, 0)
        assert sockaddr.unpack(report.offender) == (LOCALHOST4, 0, 0)
        assert sockaddr.unpack(report.destination) == (LOCALHOST4, port, 0)
        assert report.payload == b"first"
        if packet_info:
            assert report.local == LOCALHOST4
            assert report.ifindex == socket.if_nametoindex("lo")
        else:
            assert report.local is None
            assert report.ifindex == 0
        assert queue.read(sock.fileno()) is None


def test_refused_ipv6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback")
        port = closed_port(socket.AF_INET6, "::1")
        sock.setsockopt(socket.IPPROTO_IPV6, sockopt.IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, sockopt.IPV6_RECVPKTINFO, 1)
        sock.sendto(b"", ("::1", port))
        report = ErrorQueue().read(sock.fileno())
        assert report is not None
        assert report.errno == errno.ECONNREFUSED
        assert (report.origin, report.type, report.code) == (SO_EE_ORIGIN_ICMP6, 1, 4)
        assert sockaddr.unpack(report.offender) == (LOCALHOST6, 0, 0)
        assert sockaddr.unpack(report.destination) == (LOCALHOST6, port, 0)
        assert report.local == LOCALHOST6
        assert report.payload == b""


def test_several_entries_in_order_and_long_payload() -> None:
    port = closed_port(socket.AF_INET, "127.0.0.1")
    queue = ErrorQueue()
    payloads = [b"one", b"x" * 5000, b"three"]
    with udp4() as sock:
        poller = select.poll()
        poller.register(sock, 0)
        for payload in payloads:
            # Each refusal also fails the next call on the socket once.
            try:
                sock.sendto(payload, ("127.0.0.1", port))
            except ConnectionRefusedError:
                sock.sendto(payload, ("127.0.0.1", port))
        assert poller.poll(0)[0][1] & select.POLLERR
        for payload in payloads:
            report = queue.read(sock.fileno())
            assert report is not None
            # The ICMP error quotes as much as fits in 576 bytes.
            assert payload.startswith(report.payload)
            assert len(report.payload) == min(len(payload), 576 - 20 - 8 - 20 - 8)
        assert queue.read(sock.fileno()) is None
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED)
        assert poller.poll(0) == []


def test_entry_without_extended_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only packet info, and a cut extended error: fields stay at their neutral values."""
    queue = ErrorQueue()
    port = closed_port(socket.AF_INET, "127.0.0.1")
    with udp4() as sock:
        sock.sendto(b"p", ("127.0.0.1", port))
        short = cmsg.pack(socket.IPPROTO_IP, sockopt.IP_RECVERR, bytes(15))
        info = cmsg.pack_pktinfo(LOCALHOST4, 3)
        monkeypatch.setattr(RecvBatch, "control", lambda self, i: memoryview(info + short))
        report = queue.read(sock.fileno())
    assert report is not None
    assert (report.errno, report.origin, report.offender) == (0, 0, b"")
    assert report.ifindex == 3


@pytest.mark.parametrize("family", [0, 1, 2, 10, 99])
@pytest.mark.parametrize("length", [0, 1, 2, 15, 16, 27, 28])
def test_offender_of_any_length(monkeypatch: pytest.MonkeyPatch, family: int, length: int) -> None:
    queue = ErrorQueue()
    offender = (family.to_bytes(2, "little") + bytes(26))[:length]
    data = (5).to_bytes(4, "little") + bytes(12) + offender
    control = cmsg.pack(socket.IPPROTO_IP, sockopt.IP_RECVERR, data)
    monkeypatch.setattr(RecvBatch, "recv", lambda *_: 1)
    exact = memoryview(control)[: cmsg.HEADER_LEN + len(data)]
    monkeypatch.setattr(RecvBatch, "control", lambda self, i: exact)
    report = queue.read(os.devnull)  # type: ignore[arg-type]
    assert report is not None
    wanted = {2: 16, 10: 28}.get(family, 0)
    expected = wanted if length >= wanted and length >= 2 else 0
    assert len(report.offender) == expected
    assert report.errno == 5
