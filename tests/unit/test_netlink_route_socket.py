"""The netlink transport against a scripted kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EEXIST, EINVAL, ENETUNREACH, ENOBUFS, ETIMEDOUT

import pytest

from passt.kernel.netlink import route_socket
from passt.kernel.netlink.route_socket import NetlinkError, RouteSocket
from tests.unit.netlink_bytes import attr, message

ERROR, DONE, ROUTE = 2, 3, 24
MULTI, INTERRUPTED, CAPPED, TLVS = 0x2, 0x10, 0x100, 0x200

Answer = bytes | OSError
Script = Callable[[int, list[bytes]], list[Answer]]


class Kernel:
    """Stands in for a netlink socket: answers each datagram as `script` says.

    `script` gets the number of the datagram from 0, and the messages in it.
    """

    def __init__(self) -> None:
        self.script: Script = lambda _number, _requests: []
        self.sent: list[list[bytes]] = []
        self.queue: list[Answer] = []
        self.sender = 0

    def __call__(self, *_: int) -> Kernel:
        return self

    def setsockopt(self, *_: int) -> None:
        raise OSError(EINVAL, "an old kernel")

    def settimeout(self, _: float) -> None:
        pass

    def connect(self, address: tuple[int, int]) -> None:
        assert address == (0, 0), "the kernel"

    def send(self, datagram: bytes) -> int:
        requests = []
        start = 0
        while start < len(datagram):
            length = struct.unpack_from("=I", datagram, start)[0]
            requests.append(bytes(datagram[start : start + length]))
            start += (length + 3) & ~3
        self.sent.append(requests)
        self.queue += self.script(len(self.sent) - 1, requests)
        return len(datagram)

    def recvfrom_into(
        self, buffer: bytearray, size: int = 0, flags: int = 0
    ) -> tuple[int, tuple[int, int]]:
        if not self.queue:
            raise TimeoutError
        answer = self.queue[0]
        if isinstance(answer, OSError):
            self.queue.pop(0)
            raise answer
        if not flags:
            self.queue.pop(0)
            buffer[: len(answer)] = answer
        return len(answer), (self.sender, 0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(route_socket.socket, "socket", kernel)
    return kernel


def sequence_of(request: bytes) -> int:
    number: int = struct.unpack_from("=I", request, 8)[0]
    return number


def failure(
    request: bytes, errno: int, *, text: str = "", capped: bool = True, sequence: int = 0
) -> bytes:
    sequence = sequence or sequence_of(request)
    body = struct.pack("=i", -errno) + (request[:16] if capped else request)
    body += b"\0" * (-len(body) % 4)
    flags = CAPPED if capped else 0
    if text:
        body += attr(1, text.encode() + b"\0")
        flags |= TLVS
    return message(ERROR, body, sequence=sequence, flags=flags)


def done(sequence: int, errno: int = 0) -> bytes:
    return message(DONE, struct.pack("=i", -errno), sequence=sequence)


@pytest.mark.parametrize("joined", [True, False], ids=["same datagram", "own datagram"])
def test_end_of_dump_with_data_or_alone(kernel: Kernel, joined: bool) -> None:
    def script(_: int, requests: list[bytes]) -> list[Answer]:
        sequence = sequence_of(requests[0])
        data = message(ROUTE, b"one.", sequence=sequence) + message(
            ROUTE, b"two", sequence=sequence
        )
        end = done(sequence)
        return [data + end] if joined else [data, end]

    kernel.script = script
    assert RouteSocket().dump(26, b"") == [b"one.", b"two"]
    assert kernel.queue == []


def test_leftovers_and_strangers_are_ignored(kernel: Kernel) -> None:
    netlink = RouteSocket()

    def script(number: int, requests: list[bytes]) -> list[Answer]:
        sequence = sequence_of(requests[0])
        old = message(ROUTE, b"old!", sequence=sequence - 1) + done(sequence - 1)
        return [old, message(ROUTE, b"new!", sequence=sequence) + done(sequence)]

    kernel.script = script
    assert netlink.dump(26, b"") == [b"new!"]
    kernel.sender = 4711
    with pytest.raises(NetlinkError) as caught:
        netlink.dump(26, b"")
    assert caught.value.errno == ETIMEDOUT


def test_interrupted_dump_is_asked_for_again(kernel: Kernel) -> None:
    def script(number: int, requests: list[bytes]) -> list[Answer]:
        sequence = sequence_of(requests[0])
        flags = MULTI | (INTERRUPTED if number < 2 else 0)
        body = f"try{number}".encode()
        return [message(ROUTE, body, sequence=sequence, flags=flags), done(sequence)]

    kernel.script = script
    assert RouteSocket().dump(26, b"") == [b"try2"]


def test_dump_that_is_always_interrupted_ends(kernel: Kernel) -> None:
    def script(_: int, requests: list[bytes]) -> list[Answer]:
        sequence = sequence_of(requests[0])
        data = message(ROUTE, b"some", sequence=sequence, flags=MULTI | INTERRUPTED)
        return [data + done(sequence)]

    kernel.script = script
    assert RouteSocket().dump(26, b"") == [b"some"]
    assert 1 < len(kernel.sent) <= 10


def test_overflow_makes_a_dump_incomplete(kernel: Kernel) -> None:
    def script(number: int, requests: list[bytes]) -> list[Answer]:
        sequence = sequence_of(requests[0])
        lost: list[Answer] = [OSError(ENOBUFS, "overflow")] if number == 0 else []
        return [*lost, message(ROUTE, b"rest", sequence=sequence), done(sequence)]

    kernel.script = script
    assert RouteSocket().dump(26, b"") == [b"rest"]
    assert len(kernel.sent) == 2


@pytest.mark.parametrize("end", ["error", "done"])
def test_refused_dump(kernel: Kernel, end: str) -> None:
    def script(_: int, requests: list[bytes]) -> list[Answer]:
        request = requests[0]
        if end == "done":
            return [done(sequence_of(request), EINVAL)]
        return [failure(request, EINVAL, text="Invalid header")]

    kernel.script = script
    with pytest.raises(NetlinkError) as caught:
        RouteSocket().dump(26, b"")
    assert caught.value.errno == EINVAL
    assert ("Invalid header" in str(caught.value.strerror)) == (end == "error")


def test_kernel_silent(kernel: Kernel) -> None:
    with pytest.raises(NetlinkError) as caught:
        RouteSocket().request(24, 0, b"")
    assert caught.value.errno == ETIMEDOUT


def test_message_longer_than_the_buffer(kernel: Kernel) -> None:
    long = bytes(range(256)) * 1000
    kernel.script = lambda _, requests: [message(16, long, sequence=sequence_of(requests[0]))]
    assert RouteSocket().get(18, b"") == long


def test_message_without_bound_is_refused(kernel: Kernel) -> None:
    kernel.script = lambda _, requests: [bytes(5 << 20)]
    with pytest.raises(NetlinkError, match="netlink message of"):
        RouteSocket().get(18, b"")


@pytest.mark.parametrize(
    "datagram", [b"", b"\x10\0\0", struct.pack("=IHHII", 400, ROUTE, 0, 1, 0), bytes(64)]
)
def test_malformed_datagrams_are_skipped(kernel: Kernel, datagram: bytes) -> None:
    kernel.script = lambda _, requests: [datagram, done(sequence_of(requests[0]))]
    assert RouteSocket().dump(26, b"") == []


def test_number_that_is_no_error_of_the_kernel(kernel: Kernel) -> None:
    """It is a failure like any other, not one of strerror(3)."""
    kernel.script = lambda _, requests: [failure(requests[0], 1 << 31)]
    with pytest.raises(NetlinkError, match="Protocol error"):
        RouteSocket().request(24, 0, b"")


@pytest.mark.parametrize("capped", [True, False])
def test_failure_in_the_kernels_own_words(kernel: Kernel, capped: bool) -> None:
    text = "Nexthop has invalid gateway"
    kernel.script = lambda _, requests: [
        failure(requests[0], ENETUNREACH, text=text, capped=capped)
    ]
    with pytest.raises(NetlinkError) as caught:
        RouteSocket().request(24, 0, b"12345")
    assert caught.value.errno == ENETUNREACH
    assert caught.value.strerror == f"Network is unreachable ({text})"


def test_batch_reports_each_failure_at_its_place(kernel: Kernel) -> None:
    def script(_: int, requests: list[bytes]) -> list[Answer]:
        # As the kernel: failures, and the acknowledgement asked for by the last message.
        answers: list[Answer] = []
        for request in requests:
            number = int(request[16:20])
            wants_ack = struct.unpack_from("=H", request, 6)[0] & 4
            if number % 50 == 7:
                answers.append(failure(request, EEXIST))
            elif wants_ack:
                answers.append(failure(request, 0))
        return answers

    kernel.script = script
    results = RouteSocket().batch(24, 0, [b"%04d" % n for n in range(158)])
    assert [n for n, e in enumerate(results) if e is not None] == [7, 57, 107, 157]
    assert {e.errno for e in results if e is not None} == {EEXIST}
    sizes = [len(requests) for requests in kernel.sent]
    assert sum(sizes) == 158 and max(sizes) <= 64


def test_batch_of_long_messages_is_cut_by_size(kernel: Kernel) -> None:
    kernel.script = lambda _, requests: [failure(requests[-1], 0)]
    assert RouteSocket().batch(24, 0, [bytes(20000)] * 3) == [None] * 3
    assert [len(requests) for requests in kernel.sent] == [1, 1, 1]


def test_empty_batch_sends_nothing(kernel: Kernel) -> None:
    assert RouteSocket().batch(24, 0, []) == []
    assert kernel.sent == []
