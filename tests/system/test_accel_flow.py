"""Accelerated connections from inside: what the kernel does by itself, bounds, order, ends.

The loop runs only when the test says so: what arrives in between has been forwarded by the kernel.
"""

from __future__ import annotations

import errno
import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from passt.kernel.ebpf.acquire import acquire
from passt.kernel.ebpf.layout import PACKETS, SLOTS
from passt.kernel.ebpf.maps import MapSet
from passt.userspace.splice import accel
from tests.system.kit.accel import MIB, Rig, drain, fill

pytestmark = pytest.mark.system

SO_RCVBUFFORCE = 33


@pytest.fixture(scope="module")
def maps() -> Iterator[MapSet]:
    made, _ = acquire(compile_first=False)
    yield made
    made.close()


@pytest.fixture
def rig(maps: MapSet) -> Iterator[Rig]:
    maps.clean()
    made = Rig(maps)
    yield made
    made.close()


def test_kernel_forwards_by_itself(rig: Rig) -> None:
    client, server, flow = rig.fast()
    for number in range(50):
        message = bytes([number]) * 100
        client.sendall(message)
        assert server.recv(200) == message
        server.sendall(message * 2)
        assert client.recv(300) == message * 2
    assert flow.fast is not None
    assert rig.accelerator.bytes() == (50 * 100, 50 * 200)
    # And nothing is waiting for us.
    rounds = rig.loop.load
    rig.loop.round(0)
    assert rig.loop.load == 0, rounds


def test_short_connections_are_not_accelerated(rig: Rig) -> None:
    for _ in range(20):
        client, server, flow = rig.connect(b"request")
        rig.expect(server, b"request")
        client.close()
        server.close()
        rig.until(lambda f=flow: f.index < 0, "end")
        # Nobody waits for them.
        assert flow not in (*rig.accelerator._young, *rig.accelerator._old)
    rig.until(lambda: rig.accelerator._probation is None, "probation to end")
    assert rig.accelerator.entered == 0


def test_early_data_come_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives while the sockets enter, before and after each step, is in its place."""
    real = MapSet.enter

    def slowly(self: MapSet, sock: socket.socket, slot: int) -> None:
        client.sendall(b"1")
        server.sendall(b"2")
        real(self, sock, slot)
        client.sendall(b"3")
        server.sendall(b"4")

    monkeypatch.setattr(MapSet, "enter", slowly)
    client, server, flow = rig.connect(b"0")
    rig.until(lambda: flow.fast is not None, "acceleration")
    client.sendall(b"5")
    server.sendall(b"6")
    rig.loop.round(0.02)
    rig.loop.round(0.02)
    assert drain(server, 6) == hashlib.sha256(b"013135").hexdigest()
    assert drain(client, 5) == hashlib.sha256(b"24246").hexdigest()


@pytest.mark.parametrize("side", ["client", "server"])
def test_early_data_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """Data that arrive while the sockets enter, and want an answer, do not stay in our hands."""
    real = MapSet.enter
    said: list[int] = []

    def slowly(self: MapSet, sock: socket.socket, slot: int) -> None:
        if not said:
            said.append(one.send(b"question"))
            time.sleep(0.01)
        real(self, sock, slot)

    monkeypatch.setattr(MapSet, "enter", slowly)
    client, server, flow = rig.connect()
    one, other = (client, server) if side == "client" else (server, client)
    rig.expect(other, b"question")
    rig.until(lambda: flow.fast is not None and not rig.accelerator._retries, "being served")
    for number in range(20):
        message = bytes([number]) * 50
        other.sendall(message)
        assert one.recv(100) == message
        one.sendall(message)
        assert other.recv(100) == message
    assert rig.accelerator.bytes() == (20 * 50, 20 * 50)
    assert flow.fast is not None
    assert [lane.unread() for lane in flow.fast.lanes] == [0, 0]


def test_unread_data_are_bounded_without_us(rig: Rig) -> None:
    """The program alone stops a sender: by then the credit is used up, and buffers are full."""
    client, server, flow = rig.fast()
    assert flow.fast is not None
    lane = flow.fast.lanes[0]
    total, digest = fill(client)
    assert lane.redirected() <= lane.credit == accel.FIRST_CREDIT
    buffers = sum(
        sock.getsockopt(socket.SOL_SOCKET, option)
        for sock, option in (
            (client, socket.SO_SNDBUF),
            (flow.client.sock, socket.SO_RCVBUF),
            (flow.server.sock, socket.SO_SNDBUF),
            (server, socket.SO_RCVBUF),
        )
    )
    assert total <= lane.credit + buffers
    done = []
    rig.during(lambda: done.append(drain(server, total)))
    assert done == [digest]


def test_unread_data_are_bounded_with_us(rig: Rig) -> None:
    """A reader who does not read makes the connection leave, with nothing lost."""
    client, server, flow = rig.fast()
    sent: list[tuple[int, str]] = []
    rig.during(lambda: sent.append(fill(client)))
    assert flow.fast is None
    assert rig.accelerator.returns == {"full": 1}
    assert "1 (1 full) returned to splicing; 0 not accelerated" in rig.accelerator.summary()
    total, digest = sent[0]
    assert total < 64 * MIB
    # The other direction is not concerned.
    server.sendall(b"still here")
    rig.expect(client, b"still here")
    done = []
    rig.during(lambda: done.append(drain(server, total)))
    assert done == [digest]


def test_bulk_is_not_moved_by_hand(rig: Rig) -> None:
    """Most of it either goes by the kernel alone, or in the usual way."""
    client, server, flow = rig.fast()
    assert flow.fast is not None
    lane = flow.fast.lanes[0]
    amount = 256 * MIB
    done: list[str] = []
    rig.during(lambda: client.sendall(bytes(amount)), lambda: done.append(drain(server, amount)))
    assert done == [hashlib.sha256(bytes(amount)).hexdigest()]
    assert lane.sent < amount // 4


def test_grown_buffers_are_not_kept(rig: Rig) -> None:
    """Who has had bulk is spliced for good: all of that could become ours to keep."""
    _, _, flow = rig.connect()
    for end in (flow.client, flow.server):
        end.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 * MIB)
    rig.until(lambda: rig.accelerator.refusals == {"large buffer": 1}, "attempt")
    assert flow.fast is None


def test_small_packets_are_bounded_without_us(rig: Rig) -> None:
    """Single bytes take room far beyond their number."""
    client, server, flow = rig.fast()
    assert flow.fast is not None
    lane = flow.fast.lanes[0]
    limit = lane.credit // 1024
    packets = rig.maps.counts[lane.at + PACKETS]
    for number in range(2 * limit):
        client.send(bytes([number & 255]))
        if number % 10 == 0:
            time.sleep(0.0005)
    assert rig.maps.counts[lane.at + PACKETS] - packets <= limit
    assert lane.unread()
    wanted = hashlib.sha256(bytes(n & 255 for n in range(2 * limit))).hexdigest()
    done = []
    rig.during(lambda: done.append(drain(server, 2 * limit)))
    assert done == [wanted]


@pytest.mark.parametrize("amount", [1, 1000, 3 * MIB])
def test_end_of_file_behind_all_data(rig: Rig, amount: int) -> None:
    client, server, flow = rig.fast()
    data = random.randbytes(amount)

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    got = []
    rig.during(send, lambda: got.append(drain(server, amount)))
    rig.until(lambda: flow.client.done, "end of file")
    assert server.recv(1) == b""
    assert got == [hashlib.sha256(data).hexdigest()]
    # Half-closed, and in the usual way from here on.
    assert flow.fast is None
    server.sendall(b"answer")
    rig.expect(client, b"answer")


def test_last_data_then_close_while_reader_rests(rig: Rig) -> None:
    """The far end says much and closes, the near end, half-closed, reads late: all is there."""
    client, server, flow = rig.fast()
    client.shutdown(socket.SHUT_WR)
    data = random.randbytes(2 * MIB)

    def answer() -> None:
        assert server.recv(1) == b""
        server.sendall(data)
        server.close()

    got = []

    def read() -> None:
        time.sleep(0.3)
        got.append(drain(client, len(data)))

    rig.during(answer, read)
    assert got == [hashlib.sha256(data).hexdigest()]
    assert client.recv(1) == b""
    rig.until(lambda: flow.index < 0, "end")


@pytest.mark.parametrize("by", ["client", "server"])
def test_reset_with_data_on_the_way(rig: Rig, by: str) -> None:
    client, server, flow = rig.fast()
    one, other = (client, server) if by == "client" else (server, client)
    one.sendall(b"x" * 1000)
    other.sendall(b"y" * 100000)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    one.close()
    rig.until(lambda: flow.index < 0, "end")
    with pytest.raises(ConnectionResetError):
        while other.recv(MIB):
            pass
    assert rig.numbers() == 0


def test_urgent_data_stay_in_line(rig: Rig) -> None:
    client, server, _ = rig.fast()
    client.sendall(b"abc")
    client.send(b"X", socket.MSG_OOB)
    client.sendall(b"def")
    assert drain(server, 7) == hashlib.sha256(b"abcXdef").hexdigest()


def test_one_direction_does_not_wait_for_the_other(rig: Rig) -> None:
    """Much to send both ways, and one side that does not read until it has sent all."""
    client, server, _ = rig.fast()
    amount = 20 * MIB
    done: list[str] = []

    def selfish() -> None:
        client.sendall(bytes(amount))
        done.append(drain(client, amount))

    server_sends = threading.Thread(target=lambda: server.sendall(bytes(amount)))
    server_sends.start()
    rig.during(selfish, lambda: done.append(drain(server, amount)))
    server_sends.join()
    assert len(done) == 2


def test_slots_are_used_again(rig: Rig) -> None:
    """Counters go on from connection to connection, and no state with them."""
    for number in range(30):
        client, server, flow = rig.fast()
        assert flow.fast is not None
        assert flow.fast.slot == 0
        message = bytes([number]) * 70000
        client.sendall(message)
        assert drain(server, len(message)) == hashlib.sha256(message).hexdigest()
        client.close()
        server.close()
        rig.until(lambda f=flow: f.index < 0, "end")
        assert rig.numbers() == 0


def test_budget_of_a_hundred(maps: MapSet) -> None:
    """Credits never exceed the budget; whoever gets none is forwarded all the same."""
    maps.clean()
    budget = 8 * MIB
    rig = Rig(maps, budget=budget)
    flows = [rig.connect() for _ in range(100)]
    refusals = rig.accelerator.refusals
    rig.until(
        lambda: rig.accelerator.entered + refusals.get("no credit", 0) == 100, "all to be tried"
    )
    assert rig.accelerator.active > 8

    def credits_given() -> int:
        return sum(lane.credit for lane in rig.accelerator._lanes.values())

    assert credits_given() <= budget
    sent: list[tuple[int, str]] = []
    rig.during(*(lambda c=client: sent.append(fill(c)) for client, _, _ in flows[:3]))
    assert credits_given() <= budget
    for client, server, _ in flows[3:]:
        client.sendall(b"to all")
        rig.expect(server, b"to all")
    for client, server, _ in flows:
        client.close()
        server.close()
    rig.until(lambda: rig.table.count == 0, "end")
    assert rig.accelerator._budget == budget
    assert len(rig.accelerator._free) == SLOTS // 2 - 1
    rig.close()


@pytest.mark.parametrize("which", [0, 1])
def test_kernel_that_refuses_a_socket(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Nothing is lost, and the connection goes on, and ends in good order."""
    real = MapSet.enter

    def refuse(self: MapSet, sock: socket.socket, slot: int) -> None:
        if slot % 2 == which:
            client.sendall(b"meanwhile")
            raise OSError(errno.ENOMEM, "no memory")
        real(self, sock, slot)

    monkeypatch.setattr(MapSet, "enter", refuse)
    client, server, flow = rig.connect(b"early")
    rig.expect(server, b"early")
    rig.until(lambda: not rig.accelerator._old and not rig.accelerator._young, "attempt")
    rig.loop.round(0.05)
    assert flow.fast is None
    assert rig.accelerator.active == 0
    assert server.recv(100) == b"meanwhile"
    client.sendall(b"later")
    rig.expect(server, b"later")
    for end in (flow.client, flow.server):
        assert not any(end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
