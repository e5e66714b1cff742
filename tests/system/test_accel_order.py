"""Accelerated streams in both directions at once: nothing is lost, doubled, or in another order.

Each repetition has other sizes and pauses.  By itself, bulk soon leaves the fast path; so the same
is done with connections that have to stay there, and with connections that are sent to and fro.
``PASST_ORDER_REPETITIONS`` and ``PASST_ORDER_MIB`` (in each direction) make for longer runs.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from collections.abc import Iterator

import pytest

from passt.kernel.ebpf.acquire import acquire
from passt.kernel.ebpf.maps import MapSet
from passt.userspace.splice import accel, fast
from tests.system.kit.accel import MIB, Rig

pytestmark = pytest.mark.system

REPETITIONS = int(os.environ.get("PASST_ORDER_REPETITIONS", "2"))
AMOUNT = int(os.environ.get("PASST_ORDER_MIB", "24"))
#: Seconds for one repetition, and between a connection's departures.
PATIENCE = 80 + AMOUNT
RESTLESS = 0.004


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


class Manner:
    """How a stream is written and read: bytes, sizes of pieces, how often there is a pause."""

    def __init__(self, amount: int, sizes: tuple[int, ...], pauses: float) -> None:
        self.amount = amount
        self.sizes = sizes
        self.pauses = pauses


BULK = Manner(AMOUNT * MIB, (1, 3, 100, 1448, 8000, 65536, 300000, MIB), 0.01)
#: With moments at which a connection may enter.
MESSAGES = Manner(AMOUNT * MIB // 8, (1, 3, 100, 1448, 8000, 65536), 0.3)


def write_randomly(sock: socket.socket, manner: Manner, seed: int, out: list[str]) -> None:
    """Send pseudo-random data in pieces of random sizes, and shut down."""
    chance, digest = random.Random(seed), hashlib.sha256()
    data = random.randbytes(4 * MIB)
    size = manner.amount
    while size:
        start = chance.randrange(2 * MIB)
        piece = memoryview(data)[start : start + min(size, chance.choice(manner.sizes))]
        digest.update(piece)
        sock.sendall(piece)
        size -= len(piece)
        if chance.random() < manner.pauses:
            time.sleep(chance.choice((0, 0.001, 0.03 if manner is BULK else 0.005)))
    sock.shutdown(socket.SHUT_WR)
    out.append(digest.hexdigest())


def read_randomly(sock: socket.socket, manner: Manner, seed: int, out: list[str]) -> None:
    """Read to the end, stopping and going."""
    chance, digest = random.Random(seed), hashlib.sha256()
    while data := sock.recv(chance.choice(manner.sizes)):
        digest.update(data)
        if chance.random() < 0.01:
            time.sleep(chance.choice((0.001, 0.01, 0.04)))
    out.append(digest.hexdigest())


@pytest.mark.time_limit(PATIENCE + 10)
@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("way", ["usual", "stay", "to and fro"])
def test_order_in_both_directions(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, way: str, repetition: int
) -> None:
    """Sizes and pauses are random, the end of file comes last, and nothing is amiss."""
    departures = 0
    if way != "usual":
        # Bulk is no reason to leave, nor to wait.
        monkeypatch.setattr(fast, "BULK_BELLS", 1 << 40)
        monkeypatch.setattr(fast, "MOST_BEHIND", 1 << 40)
        monkeypatch.setattr(accel, "LARGE_BUFFER", 1 << 40)
        monkeypatch.setattr(accel, "VERY_BUSY", RESTLESS)
        monkeypatch.setattr(accel, "_busy", accel._holds)
        # Neither is a reader who rests.
        catch_up = fast.Lane.catch_up
        patient = {fast.BLOCKED: fast.WAIT}
        monkeypatch.setattr(
            fast.Lane, "catch_up", lambda lane: patient.get(got := catch_up(lane), got)
        )
    client, server, flow = rig.fast()
    assert flow.fast is not None
    lanes = flow.fast.lanes

    def send_away() -> None:
        nonlocal departures
        if flow.fast is not None and not flow.fast.leaving:
            departures += 1
            flow.fast.leave("test")
        if flow.index >= 0:
            rig.loop.call_at(rig.loop.now + 2 * RESTLESS * random.random(), send_away)

    manner = BULK
    if way == "to and fro":
        manner = MESSAGES
        send_away()
    there: list[str] = []
    back: list[str] = []
    rig.during(
        lambda: write_randomly(client, manner, 4 * repetition, there),
        lambda: read_randomly(server, manner, 4 * repetition + 1, there),
        lambda: write_randomly(server, manner, 4 * repetition + 2, back),
        lambda: read_randomly(client, manner, 4 * repetition + 3, back),
        seconds=PATIENCE,
    )
    assert there[0] == there[1]
    assert back[0] == back[1]
    by_kernel = sum(rig.accelerator.bytes())
    if way == "usual":
        assert by_kernel > 0
    elif way == "stay":
        # From the first to the last byte, or at least until one direction has ended.
        assert by_kernel + sum(lane.sent for lane in lanes) > AMOUNT * MIB
    else:
        assert departures > AMOUNT // 2
