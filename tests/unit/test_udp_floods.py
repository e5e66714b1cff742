"""Scans and floods of datagrams and echo requests: flows without answer are bounded."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from passt.userspace.flow.rules import IPPROTO_UDP, Rule
from passt.userspace.icmp import translator
from passt.userspace.udp.flow import UdpFlow
from tests.unit import test_icmp_errors
from tests.unit.test_icmp_errors import sent
from tests.unit.udp_rig import Rig, free_port

__all__ = ["sent"]  # a fixture

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(limit=400)  # 100 flows without answer
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def scan(rig: Rig, version: int, count: int, seconds: float) -> None:
    """One datagram to each of many ports that nobody answers from."""
    start = rig.loop.now
    for number in range(count):
        rig.loop.now = start + seconds * number / count
        rig.guest_sends(version, 10000 + number, b"?", source_port=40000)
        # Sockets that were given up are closed; the time that was made up stays.
        now = rig.loop.now
        rig.loop.round(0.0)
        rig.loop.now = now
        rig.link.sent.clear()


@VERSIONS
def test_port_scan(rig: Rig, version: int) -> None:
    server = rig.socket(version)
    port = server.getsockname()[1]
    rig.guest_sends(version, port, b"query", source_port=30000)
    query, client = server.recvfrom(100)
    server.sendto(b"answer", client)
    rig.guest_gets(1)
    (old,) = rig.flows()
    before = descriptors()
    scan(rig, version, 2000, 3.0)
    assert descriptors() - before <= 101
    assert rig.table.count <= 101
    assert old.index >= 0
    rig.guest_sends(version, port, b"old", source_port=30000)
    assert (query, server.recv(100)) == (b"query", b"old")
    rig.loop.now += 1.1
    rig.guest_sends(version, port, b"new", source_port=30001)
    assert server.recv(100) == b"new"


def test_ended_flows_of_a_scan_are_not_kept(rig: Rig) -> None:
    """Not even by the calendar that they would have been reviewed in."""
    scan(rig, 4, 2000, 6.0)
    gc.collect()
    alive = sum(isinstance(each, UdpFlow) for each in gc.get_objects())
    assert alive <= 210
    assert sum(map(len, rig.udp._expiry._calendar.values())) == rig.table.count


def test_destinations_that_cannot_be_reached(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt costs a socket, even if it is closed at once."""
    attempts = 0

    def refuse(*_: object, **__: object) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("passt.userspace.udp.base.flow_socket", refuse)
    scan(rig, 4, 5000, 2.0)
    assert 100 < attempts < 350


def test_flood_of_clients(rig: Rig) -> None:
    """From the host, and nobody in the guest answers."""
    port = free_port()
    rig.listen(Rule(IPPROTO_UDP, port, port, 53))
    client = rig.socket(4)
    client.sendto(b"first", ("127.0.0.1", port))
    (packet,) = rig.guest_gets(1)
    rig.guest_sends(4, packet.ports[0], b"answer", source_port=53)
    assert client.recv(100) == b"answer"
    before = descriptors()
    others = [rig.socket(4, f"127.0.0.{2 + n % 200}") for n in range(250)]
    for other in others:
        other.sendto(b"x", ("127.0.0.1", port))
        rig.loop.round(0.0)
    assert descriptors() - before - len(others) <= 101
    assert rig.table.count <= 101
    rig.link.take()
    client.sendto(b"second", ("127.0.0.1", port))
    assert rig.guest_gets(1)[0].payload == b"second"


def test_message_about_floods_is_limited(
    rig: Rig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passt.userspace.log._windows", {})
    scan(rig, 4, 500, 0.5)
    lines = capfd.readouterr().err.splitlines()
    assert "Too many UDP flows of the guest without answer" in lines
    assert len(lines) <= 8


def test_identifiers_of_pings(sent: list[tuple[bytes, object]]) -> None:
    rig = test_icmp_errors.Rig(limit=400)
    rig.ping(identifier=0)
    (answered,) = rig.table.flows()
    answered.answered = True
    for number in range(1, 3000):
        rig.loop.now += 0.001
        rig.ping(identifier=number, dst=bytes((198, 51, 100, number % 200)))
        now = rig.loop.now
        rig.loop.round(0.0)
        rig.loop.now = now
    assert rig.table.count <= 101
    assert len(rig.icmp._flows) == rig.table.count
    assert 150 < len(sent) < 450
    assert answered.index >= 0
    assert translator.UNANSWERED == 1024
