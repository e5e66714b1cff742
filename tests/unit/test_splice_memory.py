"""What spliced connections keep aside for slow readers, and that it is bounded."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from passt.userspace.flow.budget import Budget
from passt.userspace.splice import flow as splice_flow
from passt.userspace.splice.flow import BUFFER_SIZE, SMALL_SIZE, SplicedTcp
from tests.unit.splice_kit import Bypass


@pytest.fixture
def bypass(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bypass]:
    """Without pipes, so that whatever is kept aside is kept in user space."""
    made = Bypass()
    monkeypatch.setattr("passt.userspace.splice.pipes.LIMIT", 0)
    yield made
    for flow in made.flows():
        flow.reset("end of test")
    assert made.table.budget.data == 0
    # Connections yet to come use all of the buffer again.
    made.splice._shared.fit_buffer()
    assert len(splice_flow._buffer) == BUFFER_SIZE
    made.close()


def stall(bypass: Bypass) -> tuple[socket.socket, socket.socket, SplicedTcp]:
    """A connection whose server does not read, and a client that sends for all that."""
    client, server = bypass.connect()
    flow = bypass.flows()[-1]
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    flow.server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while flow.client.held is None:
        client.send(bytes(50000))
        bypass.settle()
    return client, server, flow


def test_what_is_kept_aside_counts(bypass: Bypass) -> None:
    _, server, flow = stall(bypass)
    budget = bypass.table.budget
    assert flow.client.held is not None
    assert 0 < len(flow.client.held) <= budget.data <= BUFFER_SIZE
    server.setblocking(False)
    while flow.client.held is not None or not bypass.idle():
        try:
            server.recv(1 << 20)
        except BlockingIOError:
            pass
        bypass.loop.round(0)
        assert budget.data == flow.client.weight * (flow.client.held is not None)
    assert budget.data == 0


def test_little_is_kept_aside_when_memory_is_short(bypass: Bypass) -> None:
    budget = bypass.table.budget = bypass.splice._shared.budget = Budget(16 << 20)
    budget.data_limit = 6 * BUFFER_SIZE
    budget._tight_data = 3 * BUFFER_SIZE
    for _ in range(40):
        stall(bypass)
    assert budget.tight
    assert budget.data <= 4 * BUFFER_SIZE + 40 * SMALL_SIZE
    assert max(flow.client.weight for flow in bypass.flows()[6:]) <= SMALL_SIZE


def test_data_pass_unharmed_when_memory_is_short(bypass: Bypass) -> None:
    budget = bypass.table.budget
    client, server = bypass.connect()
    much, budget._tight_flows = budget._tight_flows, 0
    other = bypass.connect()
    assert len(splice_flow._buffer) == SMALL_SIZE
    data = os.urandom(300_000)
    bypass.transfer(client, server, data)
    bypass.transfer(other[1], other[0], data)
    assert budget.tight
    budget._tight_flows = much
    bypass.connect()
