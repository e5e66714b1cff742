"""What flows really cost, against the numbers that the memory budget counts with."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from passt.userspace.flow.table import Flow
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.multicast.members import Member
from passt.userspace.multicast.sending import GroupFlow
from passt.userspace.splice.flow import SplicedTcp
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.udp.flow import UdpFlow
from passt.userspace.udp.spliced import SplicedFlow
from passt.userspace.wire.membership import TO_EXCLUDE, TO_INCLUDE
from tests.unit import test_icmp_errors
from tests.unit.fakes import run_until
from tests.unit.multicast_rig import GROUP, GroupRig
from tests.unit.splice_kit import Bypass
from tests.unit.tcp_kit import ACK, SYN, Guest, Host
from tests.unit.test_icmp_errors import sent
from tests.unit.udp_rig import Rig
from tests.unit.udp_splice_rig import SpliceRig

__all__ = ["sent"]  # a fixture

FLOWS = 200


class Measure:
    """Bytes allocated per flow between entering and leaving."""

    per_flow = 0.0


@contextmanager
def measured(flows: int = FLOWS) -> Iterator[Measure]:
    result = Measure()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield result
        gc.collect()
        result.per_flow = (tracemalloc.get_traced_memory()[0] - before) / flows
    finally:
        tracemalloc.stop()


def check(kind: type[Flow], measure: Measure) -> None:
    """The constant covers what was measured, without being far from it."""
    assert measure.per_flow < kind.cost, measure.per_flow
    assert measure.per_flow > kind.cost / 4, measure.per_flow


@pytest.mark.parametrize("version", [4, 6])
def test_tcp(version: int) -> None:
    with Host() as host:
        listener = host.listener(socket.AF_INET if version == 4 else socket.AF_INET6)
        listener.listen(1000)

        def connect(number: int) -> None:
            guest = Guest(host, listener.getsockname()[1], version=version, port=2000 + number)
            guest.ack = guest.ask(SYN, options=guest.options)[-1].next_seq
            guest.send(ACK)
            host.take()

        for number in range(20):
            connect(number)
        with measured() as measure:
            for number in range(FLOWS):
                connect(100 + number)
        assert host.table.count >= FLOWS
        check(TcpFlow, measure)


@pytest.mark.parametrize("version", [4, 6])
def test_udp(version: int) -> None:
    rig = Rig(limit=5000)
    server = rig.socket(version)
    port = server.getsockname()[1]

    def exchange(number: int) -> None:
        rig.guest_sends(version, port, b"query", source_port=20000 + number)
        server.sendto(b"answer", server.recvfrom(100)[1])
        rig.guest_gets(1)

    for number in range(20):
        exchange(number)
    with measured() as measure:
        for number in range(FLOWS):
            exchange(100 + number)
    assert rig.table.count == FLOWS + 20
    check(UdpFlow, measure)
    rig.close()


def test_flow_to_a_group() -> None:
    rig = GroupRig(limit=5000)
    for number in range(20):
        rig.guest_sends(4, 9, b"x", to=GROUP, source_port=20000 + number)
    with measured() as measure:
        for number in range(FLOWS):
            rig.guest_sends(4, 9, b"x", to=GROUP, source_port=20100 + number)
    assert rig.table.count == FLOWS + 20
    check(GroupFlow, measure)
    rig.close()


def test_group_membership() -> None:
    """A socket for each port, each with as many sources as are remembered."""
    rig = GroupRig(limit=5000)
    senders = [rig.sender() for _ in range(15)]
    count = 60

    def join(number: int) -> None:
        group = bytes((239, 3, 0, number))
        rig.report((TO_EXCLUDE, group, ()))
        rig.guest_sends(4, 9, b"x", to=group)
        # What comes back to us is not delivered.
        rig.loop.round(0.0)

    join(200)
    flows = rig.table.count
    with measured(count) as measure:
        for number in range(count):
            join(number)
        for flow in rig.flows():
            rig.udp.end(flow)
        for number in range(count):
            for sender in senders:
                sender.sendto(b"x", (f"239.3.0.{number}", 9))
            run_until(rig.loop, lambda: len(rig.link.sent) == len(senders))
            rig.link.sent.clear()
    assert rig.table.count == flows - 1 + count
    check(Member, measure)
    for number in (200, *range(count)):
        rig.report((TO_INCLUDE, bytes((239, 3, 0, number)), ()))
    rig.close()


def test_echo(sent: list[tuple[bytes, object]]) -> None:
    rig = test_icmp_errors.Rig(limit=5000)
    for number in range(20):
        rig.ping(6, identifier=number)
    with measured() as measure:
        for number in range(FLOWS):
            rig.ping(6, identifier=100 + number)
            sent.clear()
    assert rig.table.count == FLOWS + 20
    check(EchoFlow, measure)


def test_spliced_tcp() -> None:
    bypass = Bypass()
    try:
        ends = [bypass.connect() for _ in range(20)]
        # The test's own two sockets are measured along, but they are small.
        with measured() as measure:
            ends += [bypass.connect() for _ in range(FLOWS)]
        check(SplicedTcp, measure)
    finally:
        bypass.close()


def test_spliced_udp() -> None:
    rig = SpliceRig(limit=5000)
    clients = [rig.client(4) for _ in range(FLOWS + 20)]

    def query(client: socket.socket) -> None:
        client.sendto(b"query", ("127.0.0.1", rig.port))
        rig.serve()

    for client in clients[:20]:
        query(client)
    with measured() as measure:
        for client in clients[20:]:
            query(client)
    assert rig.table.count == FLOWS + 20
    check(SplicedFlow, measure)
    rig.close()
