"""Ports that are listened on: texts of /proc/net, and this machine's own sockets."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel import sockdiag
from passt.kernel.sockdiag import SPEC, SocketDiag
from passt.kernel.sockets import open_socket
from passt.userspace import log
from passt.userspace.flow.rules import IPPROTO_TCP, IPPROTO_UDP, Rule
from passt.userspace.forward.auto import Heard, wanted
from passt.userspace.forward.portset import ports_in, portset, shifted, span
from passt.userspace.forward.proclist import PortList, open_port_lists
from passt.userspace.forward.scan import PortScan

# Sets of ports

PORTS = st.sets(st.integers(0, 65535), max_size=50)


@given(PORTS)
def test_sets_round_trip(ports: set[int]) -> None:
    assert ports_in(portset(ports)) == sorted(ports)


@given(st.integers(0, 65535), st.integers(0, 300))
def test_spans(first: int, width: int) -> None:
    last = min(first + width, 65535)
    assert ports_in(span(first, last)) == list(range(first, last + 1))


@given(PORTS, st.integers(-65535, 65535))
def test_shifts(ports: set[int], offset: int) -> None:
    moved = sorted(p + offset for p in ports if p + offset >= 0)
    assert ports_in(shifted(portset(ports), offset)) == moved


# Automatic rules by sets


def test_wanted_by_rule() -> None:
    inbound = [Rule(6, 80, 89, 80), Rule(6, 8000, 8009, 90)]
    outbound = [Rule(6, 1, 65535, 1)]
    host = Heard(portset([5432, 80]), portset([80]))
    namespace = Heard(portset([85, 91, 5432]), 0)
    sets = [ports_in(bits) for bits in wanted(inbound, outbound, host, namespace)]
    # 5432 is nobody's inbound port, so that the outbound rule may have it.
    assert sets == [[85], [8001], [5432]]


# Texts

TCP_HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def line4(index: int, local: int, state: str, remote: int = 0) -> bytes:
    text = (
        f"{index:4}: 0100007F:{local:04X} 00000000:{remote:04X} {state} 00000000:00000000 "
        f"00:00000000 00000000     0        0 {123 + index} 1 0000000000000000 100 0 0 10 0"
    )
    return f"{text:149}\n".encode()


def line6(index: int, local: int, state: str, remote: int = 0) -> bytes:
    zero = "0" * 32
    return (
        f"{index:4}: {zero}:{local:04X} {zero}:{remote:04X} {state} 00000000:00000000 "
        f"00:00000000 00000000     0        0 {123 + index} 1 0000000000000000 100 0 0 10 0\n"
    ).encode()


@pytest.fixture
def file(tmp_path: os.PathLike[str]) -> Iterator[int]:
    fd = os.open(os.path.join(tmp_path, "list"), os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def fill(fd: int, *lines: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"".join(lines), 0)


def test_tcp_listeners(file: int) -> None:
    ports = PortList(os.dup(file), tcp=True, v6=False)
    fill(file, TCP_HEAD)
    assert ports.ports() == 0
    fill(
        file,
        TCP_HEAD,
        line4(0, 22, "0A"),
        line4(1, 65535, "0A"),
        line4(2, 22, "0A"),
        line4(3, 1234, "01", 0x0A00),
        line4(4, 1235, "06"),
    )
    assert ports_in(ports.ports()) == [22, 65535]
    fill(file, TCP_HEAD, line4(0, 22, "01", 80))
    assert ports.ports() == 0
    ports.close()


def test_tcp6_listeners(file: int) -> None:
    ports = PortList(os.dup(file), tcp=True, v6=True)
    fill(file, TCP_HEAD, line6(0, 22, "0A"), line6(1, 23, "01", 9))
    assert ports_in(ports.ports()) == [22]
    ports.close()


def test_udp_sockets_come_in_any_order(file: int) -> None:
    for v6, line in ((False, line4), (True, line6)):
        ports = PortList(os.dup(file), tcp=False, v6=v6)
        fill(file, TCP_HEAD, line(0, 53, "01", 9), line(1, 67, "07"), line(2, 68, "07"))
        assert ports_in(ports.ports()) == [67, 68]
        ports.close()


def test_more_sockets_than_digits_for_their_index(file: int) -> None:
    ports = PortList(os.dup(file), tcp=True, v6=False)
    fill(file, TCP_HEAD, *(line4(index, 1 + index, "0A") for index in range(20000)))
    assert ports_in(ports.ports()) == list(range(1, 20001))
    ports.close()


def test_connections_after_listeners_are_not_read(file: int) -> None:
    ports = PortList(os.dup(file), tcp=True, v6=False)
    lines = [line4(index, 80, "01", 9) for index in range(1000)]
    fill(file, TCP_HEAD, line4(0, 22, "0A"), *lines, line4(0, 23, "0A"))
    assert ports_in(ports.ports()) == [22]
    ports.close()


def test_unreadable_lists_keep_what_was_known(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _k, _l, msg, *args: lines.append(msg % args))
    ports = PortList(os.dup(file), tcp=True, v6=False)
    fill(file, TCP_HEAD, line4(0, 22, "0A"))
    assert ports_in(ports.ports()) == [22]

    def fail(_fd: int, _size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    assert ports_in(ports.ports()) == [22]
    assert lines == ["Couldn't read list of ports: Input/output error"]
    monkeypatch.undo()
    ports.close()


def test_lists_without_bound_keep_what_was_known(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may have a million sockets."""
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _k, _l, msg, *args: lines.append(msg % args))
    ports = PortList(os.dup(file), tcp=False, v6=False)
    fill(file, TCP_HEAD, line4(0, 22, "07"))
    assert ports_in(ports.ports()) == [22]
    fill(file, TCP_HEAD, *(line4(index, 1 + index, "07") for index in range(60000)))
    assert len(ports_in(ports.ports())) == 60000
    fill(file, TCP_HEAD, *[line4(0, 23, "07")] * 200000)
    assert len(ports_in(ports.ports())) == 60000
    assert lines == ["Couldn't read list of ports: File too large"]
    ports.close()


@pytest.mark.parametrize("port", [b"00g6", b"+016", b" 16 ", b"1_16", b""])
def test_lists_that_are_not_understood_keep_what_was_known(
    file: int, port: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _k, _l, msg, *args: lines.append(msg % args))
    ports = PortList(os.dup(file), tcp=True, v6=False)
    fill(file, TCP_HEAD, line4(0, 22, "0A"))
    assert ports_in(ports.ports()) == [22]
    fill(file, TCP_HEAD, line4(0, 22, "0A"), line4(1, 22, "0A").replace(b":0016", b":" + port))
    assert ports_in(ports.ports()) == [22]
    assert lines == ["List of ports is not understood"]
    ports.close()


# The real thing

FAMILIES = [socket.AF_INET, socket.AF_INET6]


def diag() -> SocketDiag:
    try:
        made = SocketDiag(open_socket(SPEC.plain()))
        made.ports(socket.AF_INET, IPPROTO_TCP, 10)
        made.ports(socket.AF_INET, IPPROTO_UDP, 7)
    except OSError as error:
        pytest.skip(f"sock_diag: {error}")
    return made


@pytest.mark.parametrize("by", ["netlink", "files"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [IPPROTO_TCP, IPPROTO_UDP])
def test_own_listeners_are_seen(by: str, family: int, protocol: int) -> None:
    tcp = protocol == IPPROTO_TCP
    scan = PortScan(open_port_lists(), diag() if by == "netlink" else None)
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(family, kind) as server, socket.socket(family, kind) as client:
        server.bind((loopback, 0))
        if tcp:
            server.listen()
        port = server.getsockname()[1]
        client.connect((loopback, port))
        other = client.getsockname()[1]
        bits = scan.ports(protocol)
        assert bits >> port & 1
        assert not bits >> other & 1
        assert scan.ports(protocol) >> port & 1
    assert not scan.ports(protocol) >> port & 1
    scan.close()


def test_missing_lists() -> None:
    scan = PortScan([None] * 4)
    assert scan.ports(IPPROTO_TCP) == scan.ports(IPPROTO_UDP) == 0
    scan.close()


# Netlink answers


class FakeNetlink:
    """Answers each request with prepared datagrams."""

    def __init__(self, *answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.queue: list[bytes] = []
        self.closed = False

    def connect(self, address: tuple[int, int]) -> None:
        assert address == (0, 0), "the kernel"

    def send(self, request: bytes) -> int:
        assert len(request) == 72
        self.queue += self.answers.pop(0)
        return len(request)

    def recv(self, _size: int) -> bytes:
        if not self.queue:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return self.queue.pop(0)

    def close(self) -> None:
        self.closed = True


def message(port: int, size: int = 72, kind: int = 20) -> bytes:
    head = struct.pack("=IHHII", 16 + size, kind, 2, 0, 0)
    return head + b"\2\n\0\0" + struct.pack(">H", port) + bytes(size - 6)


def end(number: int = 0, kind: int = 3) -> bytes:
    return struct.pack("=IHHIIi", 20, kind, 2, 0, 0, number)


def asked(*answers: list[bytes]) -> SocketDiag:
    return SocketDiag(FakeNetlink(*answers))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "ports"),
    [
        ([end()], []),
        ([message(22) + message(80), end()], [22, 80]),
        ([message(22), message(80), end()], [22, 80]),
        ([message(22) + message(80) + end()], [22, 80]),
        ([message(22, 72) + message(80, 80), end()], [22, 80]),
        ([message(22, 73) + bytes(3) + message(80, 80) + end()], [22, 80]),
        ([message(0x1234) * 3, end()], [0x1234]),
    ],
)
def test_answers(answer: list[bytes], ports: list[int]) -> None:
    assert sorted(asked(answer).ports(2, 6, 10)) == ports


def test_the_same_answer_is_the_same_set() -> None:
    first, second = [message(22), end()], [message(23), end()]
    source = asked(first, first, second)
    one, two, three = (source.ports(2, 6, 10) for _ in range(3))
    assert one is two
    assert three == {23}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [b""],
        [b"x" * 10],
        [b"x" * 5 + end()],
        [bytes(64), end()],
        [message(22)[:-1] + end()],
        [message(22)],
        [message(22) + message(23)[:30] + end()],
        [end(-2, kind=2)],
        [end(-2)],
        [end(-(1 << 31))],
        [end(-(1 << 31), kind=2)],
        [message(22), end(-105)],
        [message(22, kind=24), end()],
        [message(22) + bytes(3) + end()],
        [message(22, 73) * 2 + end()],
        [struct.pack("=IHHII", 16, 20, 2, 0, 0) + end()],
    ],
)
def test_strange_answers_are_errors(answer: list[bytes]) -> None:
    with pytest.raises(OSError, match=r"\w"):
        asked(answer).ports(2, 6, 10)


def test_answer_without_end_is_an_error() -> None:
    with pytest.raises(OSError, match="Message too long"):
        asked([message(22) * 800] * 1000).ports(2, 6, 10)


@given(st.lists(st.binary(max_size=60).map(lambda some: some + end()) | st.binary(max_size=200)))
def test_any_answer_is_an_error_or_a_set(answer: list[bytes]) -> None:
    try:
        ports = asked(answer).ports(2, 6, 10)
    except OSError:
        return
    assert all(0 <= port <= 65535 for port in ports)


def test_remains_of_a_failure_are_dropped() -> None:
    source = asked([end(-2, kind=2), message(1), end()], [message(22), end()])
    with pytest.raises(OSError, match="No such file"):
        source.ports(2, 6, 10)
    assert source.ports(2, 6, 10) == {22}


def test_files_are_read_if_netlink_fails() -> None:
    netlink = FakeNetlink([end(-2)])
    scan = PortScan(open_port_lists(), SocketDiag(netlink))  # type: ignore[arg-type]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert scan.ports(IPPROTO_TCP) >> server.getsockname()[1] & 1
    assert netlink.closed
    scan.close()


def test_requests_are_what_the_kernel_expects() -> None:
    """As in linux/inet_diag.h: struct nlmsghdr and struct inet_diag_req_v2."""
    request = sockdiag._REQUEST.pack(72, 20, 0x301, 0, 0, 2, 6, 1 << 10)
    assert request[16:24] == b"\2\6\0\0" + struct.pack("=I", 0x400)
