"""ICMP errors of the host to the guest, and error events that must not spin."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from passt.syscalls.sockopt import IP_RECVERR, IPV6_RECVERR
from passt.userspace.config.model import Rule
from passt.userspace.loop import EPOLLERR
from tests.unit.fakes import Packet, run_until
from tests.unit.udp_rig import GATEWAY, GUEST, GUEST_PORT, LOOPBACK_TEXT, Rig, free_port


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def check_refusal(packet: Packet, version: int, ports: tuple[int, int], payload: bytes) -> None:
    """``packet`` is 'port unreachable' from the gateway, about what the guest sent to it."""
    assert packet.protocol == (1 if version == 4 else 58)
    assert (packet.src, packet.dst) == (GATEWAY[version], GUEST[version])
    assert packet.ttl == 255
    assert packet.l4[:2] == (b"\x03\x03" if version == 4 else b"\x01\x04")
    assert packet.l4[4:8] == bytes(4)
    quote = packet.l4[8:]
    if version == 4:
        source, destination, header = quote[12:16], quote[16:20], 20
        assert struct.unpack_from("!H", quote, 2)[0] == len(quote)
        payload = payload[:8]
    else:
        source, destination, header = quote[8:24], quote[24:40], 40
        assert struct.unpack_from("!H", quote, 4)[0] == len(quote) - 40
        assert len(packet.l4) + 40 <= 1280
    assert (source, destination) == (GUEST[version], GATEWAY[version])
    assert struct.unpack_from("!HH", quote, header) == ports
    assert quote[header + 8 :] == payload


@pytest.mark.parametrize("size", [0, 3, 100, 1100])
def test_closed_port_is_reported_by_the_address_the_guest_used(
    rig: Rig, version: int, size: int
) -> None:
    port = rig.closed_port(version)
    rig.guest_sends(version, port, b"e" * size)
    (packet,) = rig.guest_gets(1)
    check_refusal(packet, version, (GUEST_PORT, port), b"e" * size)
    rig.settle()


def test_ipv6_error_never_exceeds_the_minimum_mtu(rig: Rig) -> None:
    port = rig.closed_port(6)
    rig.guest_sends(6, port, b"E" * 5000)
    (packet,) = rig.guest_gets(1)
    assert 1200 < len(packet.l4) + 40 <= 1280


def test_every_refused_datagram_is_reported(rig: Rig, version: int) -> None:
    port = rig.closed_port(version)
    for i in range(5):
        rig.guest_sends(version, port, bytes([i]) * 5)
        (packet,) = rig.guest_gets(1)
        check_refusal(packet, version, (GUEST_PORT, port), bytes([i]) * 5)
    assert len(rig.flows()) == 1
    rig.settle()


def test_pending_error_does_not_cost_the_next_datagram(rig: Rig, version: int) -> None:
    port = rig.closed_port(version)
    rig.guest_sends(version, port, b"refused")
    server = rig.socket(version, port=port)
    rig.guest_sends(version, port, b"delivered")
    assert server.recv(100) == b"delivered"
    rig.guest_sends(version, port, *[b"train"] * 3)
    assert [server.recv(100) for _ in range(3)] == [b"train"] * 3
    rig.guest_gets(1)
    rig.settle()


def test_flow_survives_errors(rig: Rig) -> None:
    port = rig.closed_port(4)
    rig.guest_sends(4, port, b"refused")
    rig.guest_gets(1)
    server = rig.socket(4, port=port)
    rig.guest_sends(4, port, b"hello")
    _, client = server.recvfrom(100)
    server.sendto(b"answer", client)
    assert rig.guest_gets(1)[0].payload == b"answer"


def test_refused_answer_to_a_host_client(rig: Rig, version: int) -> None:
    """The client of an inbound flow has gone: the guest's answer is refused."""
    port = free_port()
    made = Rig(Rule(17, port, port, 7001))
    client = made.socket(version)
    number = client.getsockname()[1]
    client.sendto(b"in", (LOOPBACK_TEXT[version], port))
    made.guest_gets(1)
    client.close()
    made.guest_sends(version, number, b"late", source_port=7001)
    (packet,) = made.guest_gets(1)
    check_refusal(packet, version, (7001, number), b"late")
    made.settle()
    made.close()


def test_refusal_on_a_shared_socket_finds_its_flow(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    def refused(*_arguments: object, **_options: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("passt.userspace.udp.base.flow_socket", refused)
    port = free_port()
    made = Rig(Rule(17, port, port, 53))
    client = made.socket(version)
    number = client.getsockname()[1]
    client.sendto(b"in", (LOOPBACK_TEXT[version], port))
    made.guest_gets(1)
    client.close()
    made.guest_sends(version, number, b"late", source_port=53)
    (packet,) = made.guest_gets(1)
    check_refusal(packet, version, (53, number), b"late")
    made.settle()
    made.close()


def test_no_route_is_reported_by_the_gateway(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unroutable(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Unroutable)
    for version, head in ((4, b"\x03\x00"), (6, b"\x01\x00")):
        rig.guest_sends(version, 9, b"x")
        (packet,) = rig.guest_gets(1)
        assert packet.l4[:2] == head
        assert packet.src == GATEWAY[version]
    rig.guest_sends(4, 9, b"x", to=bytes((224, 0, 0, 5)))
    assert rig.link.sent == []
    assert rig.flows() == []


def test_error_without_queue_entry_is_cleared(rig: Rig, version: int) -> None:
    """Without RECVERR the kernel only sets SO_ERROR."""
    port = rig.closed_port(version)
    server = rig.socket(version, port=port)
    rig.guest_sends(version, port, b"x")
    server.close()
    (flow,) = rig.flows()
    if version == 4:
        flow.sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)
    else:
        flow.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 0)
    rig.guest_sends(version, port, b"y")
    rig.settle()
    assert flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_flow_that_reports_errors_without_having_any_is_ended(rig: Rig) -> None:
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], b"x")
    (flow,) = rig.flows()
    rig.udp.ready(flow, EPOLLERR)
    assert rig.flows() == [flow]
    for _ in range(20):
        rig.udp.ready(flow, EPOLLERR)
    assert rig.flows() == []


def test_flow_whose_error_queue_cannot_be_read_is_ended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = rig.socket(4)
    rig.guest_sends(4, server.getsockname()[1], b"x")
    (flow,) = rig.flows()

    def broken(_fd: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("passt.syscalls.errqueue.ErrorQueue.read", lambda _self, fd: broken(fd))
    rig.udp.ready(flow, EPOLLERR)
    assert rig.flows() == []
    run_until(rig.loop, lambda: flow.sock.fileno() == -1)


def test_guest_gets_no_error_about_a_broadcast(rig: Rig) -> None:
    """Neither sender nor receiver of an error may be a group (RFC 1122, 3.2.2)."""
    port = rig.closed_port(4)
    rig.guest_sends(4, port, b"x")
    (flow,) = rig.flows()
    flow.multicast = True
    rig.settle()
    assert rig.link.sent == []
