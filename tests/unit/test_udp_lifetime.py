"""When flows end, what remains of them, and what happens at the limits."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from passt.userspace.udp import base
from passt.userspace.udp.flow import UdpFlow
from tests.unit.fakes import open_descriptors
from tests.unit.udp_rig import GATEWAY, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.udp.timeout_short, made.udp.timeout_stream = 30, 120
    yield made
    made.close()


def later(rig: Rig, seconds: float) -> None:
    """Let flows be reviewed as if ``seconds`` had passed since the last round."""
    rig.loop.now += seconds
    rig.udp._expiry.run()


def query(rig: Rig, server: socket.socket, answers: int = 0) -> UdpFlow:
    """The guest sends one datagram, and gets ``answers`` one by one."""
    rig.guest_sends(4, server.getsockname()[1], b"query")
    _, client = server.recvfrom(100)
    for _ in range(answers):
        server.sendto(b"answer", client)
        rig.guest_gets(1)
    return rig.flows()[0]


def test_one_way_is_short(rig: Rig) -> None:
    server = rig.socket(4)
    for _ in range(10):
        query(rig, server)
    later(rig, 30)
    assert len(rig.flows()) == 1
    later(rig, 1.1)
    assert rig.flows() == []


def test_query_and_one_answer_is_short(rig: Rig) -> None:
    query(rig, rig.socket(4), answers=1)
    later(rig, 31.1)
    assert rig.flows() == []


@pytest.mark.parametrize("again", ["query", "answer"])
def test_more_than_one_exchange_is_long(rig: Rig, again: str) -> None:
    server = rig.socket(4)
    if again == "query":
        query(rig, server, answers=1)
        query(rig, server)
    else:
        query(rig, server, answers=2)
    later(rig, 119)
    assert len(rig.flows()) == 1
    later(rig, 2.1)
    assert rig.flows() == []


def test_several_datagrams_at_once_count_as_one(rig: Rig) -> None:
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], b"a", b"b", b"c")
    _, client = server.recvfrom(100)
    for _ in range(5):
        server.sendto(b"answer", client)
    rig.guest_gets(5)
    (flow,) = rig.flows()
    assert (flow.guest_active, flow.host_active) == (1, 1)


def test_either_direction_refreshes(rig: Rig) -> None:
    """One request, then answers only: the flow lives as long as they come."""
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], b"subscribe")
    _, client = server.recvfrom(100)
    (flow,) = rig.flows()
    for _ in range(10):
        later(rig, 29)
        assert rig.flows() == [flow]
        server.sendto(b"news", client)
        before = rig.loop.now
        rig.guest_gets(1)
        # The real clock is behind: keep the time that was made up.
        rig.loop.now = flow.last = before


def test_timers_are_armed_only_while_flows_exist(rig: Rig) -> None:
    assert not rig.loop._timers
    query(rig, rig.socket(4))
    assert [timer for _, _, timer in rig.loop._timers if timer.callback]
    later(rig, 40)
    assert not [timer for _, _, timer in rig.loop._timers if timer.callback]


def test_expired_flow_leaves_nothing(rig: Rig) -> None:
    server = rig.socket(4)
    before = open_descriptors()
    flow = query(rig, server)
    assert open_descriptors() == before + 1
    later(rig, 40)
    rig.loop.round(0.0)
    assert open_descriptors() == before
    assert flow.sock.fileno() == -1
    assert rig.udp._guest_flows.first == {}
    assert rig.udp._host.flows == {}
    assert rig.table.count == 0


def test_ports_of_an_expired_flow_work_again(rig: Rig) -> None:
    server = rig.socket(4)
    for _ in range(3):
        flow = query(rig, server, answers=1)
        others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        later(rig, 40)
        rig.loop.round(0.0)
        assert flow.index == -1
        for sock in others:
            sock.close()


def test_flow_ended_with_datagrams_waiting(rig: Rig) -> None:
    """As by expiry between two batches, or an error in the middle of one."""
    server = rig.socket(4)
    flow = query(rig, server)
    port = server.getsockname()[1]
    rig.guest_sends(4, port, b"before")
    flow.touched = True
    rig.udp._touched.append(flow)
    flow.parts.append(memoryview(b"waiting"))
    rig.udp.end(flow)
    rig.udp.batch_end()
    assert server.recv(100) == b"before"
    rig.guest_sends(4, port, b"after")
    assert server.recv(100) == b"after"


def test_flows_made_while_others_expire(rig: Rig) -> None:
    """Expiry and the draining of new sockets in one round of the loop."""
    server = rig.socket(4)
    port = server.getsockname()[1]
    for i in range(20):
        rig.guest_sends(4, port, b"x", source_port=30000 + i)
    rig.loop.now += 40
    rig.guest_sends(4, port, b"y", source_port=31000)
    rig.udp._expiry.run()
    rig.loop.round(0.0)
    assert len(rig.flows()) == 1
    rig.settle()


def test_many_flows_expire_in_portions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passt.userspace.flow.expiry.BATCH", 8)
    server = rig.socket(4)
    for i in range(20):
        rig.guest_sends(4, server.getsockname()[1], b"x", source_port=30000 + i)
    later(rig, 40)
    assert len(rig.flows()) == 12
    rig.loop.now += 0.1
    rig.udp._expiry.run()
    rig.udp._expiry.run()
    assert rig.flows() == []


def test_full_table_refuses_new_flows_only(rig: Rig) -> None:
    made = Rig(limit=2)
    server = made.socket(4)
    port = server.getsockname()[1]
    before = open_descriptors()
    for i in range(10):
        made.guest_sends(4, port, bytes([i]), source_port=30000 + i)
    assert len(made.flows()) == 2
    assert open_descriptors() == before + 2
    assert {server.recv(10) for _ in range(2)} == {b"\0", b"\1"}
    made.guest_sends(4, port, b"old", source_port=30001)
    assert server.recv(10) == b"old"
    made.close()


def test_no_descriptors_left(rig: Rig) -> None:
    server = rig.socket(4)
    port = server.getsockname()[1]
    rig.guest_sends(4, port, b"first", source_port=30000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        for i in range(5):
            rig.guest_sends(4, port, b"no", source_port=31000 + i)
        rig.guest_sends(4, port, b"old", source_port=30000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rig.guest_sends(4, port, b"again", source_port=31000)
    assert [server.recv(10) for _ in range(3)] == [b"first", b"old", b"again"]
    assert len(rig.flows()) == 2


def test_failed_connect_leaves_no_descriptor(rig: Rig) -> None:
    """Link-local without an interface to go out by: connect() fails."""
    before = open_descriptors()
    address = bytes.fromhex("fe800000000000000000000000000099")
    for i in range(200):
        rig.guest_sends(6, 9, b"x", to=address, source_port=20000 + i)
    assert open_descriptors() == before
    assert rig.flows() == []
    rig.settle()


def test_messages_are_limited(
    rig: Rig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passt.userspace.log._windows", {})
    address = bytes.fromhex("fe800000000000000000000000000099")
    for i in range(100):
        rig.guest_sends(6, 9, b"x", to=address, source_port=20000 + i)
        rig.guest_sends(4, 0, b"x", source_port=20000 + i)
    lines = capfd.readouterr().err.splitlines()
    assert any("Couldn't connect flow socket" in line for line in lines)
    assert any("Dropping datagram with no flow TAP [192.0.2.10]:20000" in line for line in lines)
    assert len(lines) < 30


@pytest.mark.parametrize(
    ("content", "expected"), [(b"45\n", 45), (b"", 30), (b"x", 30), (b"0", 30), (None, 30)]
)
def test_timeouts_are_read_with_fallback(
    tmp_path: os.PathLike[str], content: bytes | None, expected: int
) -> None:
    path = os.path.join(tmp_path, "timeout")
    if content is not None:
        with open(path, "wb") as file:
            file.write(content)
    assert base._read_seconds(path, 30) == expected


def test_debug_names_flows(rig: Rig) -> None:
    server = rig.socket(4)
    flow = query(rig, server)
    port = server.getsockname()[1]
    assert str(flow) == (
        f"Flow 0 (UDP flow): TAP [192.0.2.10]:24242 -> [192.0.2.1]:{port} => "
        f"HOST [127.0.0.1]:24242 -> [127.0.0.1]:{port}"
    )
    assert flow.guest_key[4:8] == GATEWAY[4]
