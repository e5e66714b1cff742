"""Floods of what makes the program say something, through the handlers that say it.

Each flood has hundreds of causes; what is printed must be a handful of lines per kind of message.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from passt.userspace import log
from passt.userspace.flow.rules import IPPROTO_UDP, Rule
from passt.userspace.tcp.tcp import Tcp
from passt.userspace.wire import ethernet
from tests.unit import control_rig, fakes, test_icmp_errors, udp_rig
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6
from tests.unit.tcp_kit import ACK, SYN, Guest, Host, outbound
from tests.unit.test_control_server import request
from tests.unit.test_icmp_errors import sent

__all__ = ["sent"]  # a fixture

FLOOD = 300
#: Lines of one kind within the windows that a flood may touch, on a busy machine.
MOST = 4 * (log.BURST + 2)

Printed = Callable[..., None]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Printed:
    """Checks what was printed: each of the texts given, and few lines altogether."""
    monkeypatch.setattr(log, "_windows", {})

    def check(*texts: str) -> None:
        lines = capfd.readouterr().err.splitlines()
        for text in texts:
            assert any(text in line for line in lines), (text, lines[:20])
        assert len(lines) <= MOST * len(texts), lines[:20]

    return check


def test_syns_with_invalid_endpoints(printed: Printed) -> None:
    with Host() as host:
        for number in range(FLOOD):
            guest = Guest(host, 0, port=number)
            host.feed(guest.frame(SYN))
    printed("Invalid endpoint in TCP SYN: [192.0.2.10]:0 -> [192.0.2.1]:0")


def test_syns_beyond_the_limit(printed: Printed) -> None:
    with Host(limit=64) as host:
        for number in range(FLOOD):
            guest = Guest(host, 1, port=1000 + number)
            host.feed(guest.frame(SYN))
    printed("Too many TCP connections without answer")


def test_full_table(printed: Printed) -> None:
    with Host(limit=1) as host:
        connection = outbound(host)
        for number in range(FLOOD):
            guest = Guest(host, connection.guest.dport, port=1000 + number)
            host.feed(guest.frame(SYN))
    printed("Flow table full (1 flows), no new TCP connections of the guest")


def test_sockets_that_cannot_be_had(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Host() as host, monkeypatch.context() as patch:
        patch.setattr("passt.userspace.tcp.tcp.socket.socket", none)
        for number in range(FLOOD):
            guest = Guest(host, 9, port=1000 + number)
            host.feed(guest.frame(SYN))
    printed("TCP socket: Too many open files")


def test_connections_that_nobody_may_have(
    printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(config: fakes.Config) -> None:
        config.v4.gateway = config.v4.map_host_loopback = None

    monkeypatch.setattr("passt.userspace.tcp.const.REFUSAL_PAUSE", 0.0)
    with Host(tweak=nowhere) as host:
        where = host.forward()
        for _ in range(FLOOD):
            with socket.create_connection(where, timeout=5):
                host.turn()
    printed("No rules to forward HOST TCP")


def test_offers_beyond_the_limit(printed: Printed) -> None:
    with Host(limit=64) as host:
        where = host.forward()
        for _ in range(FLOOD):
            with socket.create_connection(where, timeout=5):
                host.turn(1)
                host.advance(0.002)
    printed("Too many TCP connections that the guest has not answered, refusing that from")


def test_connections_without_a_path(printed: Printed) -> None:
    with Host() as host:
        host.acceptors._tcp = None
        where = host.forward()
        for _ in range(FLOOD):
            with socket.create_connection(where, timeout=5):
                host.turn()
    printed("No rules to forward HOST TCP")


def test_clashing_connections(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    with Host() as host:
        peer = host.connect(host.forward())
        (flow,) = host.flows()
        rule = Rule(6, 80, 80, 80)
        assert isinstance(host.tcp, Tcp)
        for _ in range(FLOOD):
            ours, theirs = socket.socketpair()
            with theirs:
                address = socket.inet_aton("127.0.0.1"), peer.getsockname()[1]
                assert host.tcp.accepted(ours, address, rule, 80)
        assert host.flows() == [flow]
    printed("TCP connection from [127.0.0.1]", "clashes with another")


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(printed: Printed, version: int) -> None:
    with Host() as host:
        for number in range(FLOOD):
            if version == 4:
                frame = bytearray(fakes.ip_frame(GUEST4, GATEWAY4, 17, bytes(100)))
                frame[20:22] = (0x2000 | number).to_bytes(2, "big")
            else:
                header = struct.pack("!BBHI", 17, 0, number << 3 | 1, 7)
                frame = bytearray(fakes.ip_frame(GUEST6, GATEWAY6, 44, header + bytes(100)))
            host.feed(bytes(frame))
    printed(f"Can't process IPv{version} fragments")


def test_changing_link_layer_addresses(printed: Printed) -> None:
    with Host() as host:
        for number in range(FLOOD):
            mac = b"\x02\0\0\0" + number.to_bytes(2, "big")
            head = ethernet.HEADER.pack(fakes.OUR_MAC, mac, 0x88B5)
            host.feed(head + bytes(60))
    printed("New guest MAC address observed")


def test_datagrams_to_nowhere(printed: Printed) -> None:
    rig = udp_rig.Rig()
    for number in range(FLOOD):
        rig.guest_sends(4, 0, b"x", source_port=1000 + number)
        # Link-local without an interface to go out by.
        target = bytes.fromhex("fe80000000000000000000000000") + number.to_bytes(2, "big")
        rig.guest_sends(6, 9, b"x", source_port=1000 + number, to=target)
    rig.close()
    printed(
        "Dropping datagram with no flow TAP",
        "Couldn't connect flow socket",
        "Too many UDP flows of the guest without answer",
    )


def test_datagrams_that_no_rule_takes(printed: Printed) -> None:
    configuration = fakes.config()
    configuration.v4.gateway = configuration.v4.map_host_loopback = None
    rig = udp_rig.Rig(configuration=configuration)
    port = udp_rig.free_port()
    rig.listen(Rule(IPPROTO_UDP, port, port, 53))
    client = rig.socket(4)
    for number in range(FLOOD):
        client.sendto(str(number).encode(), ("127.0.0.1", port))
        if number % 20 == 0:
            rig.settle()
    rig.close()
    printed("Discarding datagram without flow: HOST")


def test_pings(printed: Printed, sent: list[tuple[bytes, object]]) -> None:
    rig = test_icmp_errors.Rig(limit=64)
    for number in range(FLOOD):
        rig.ping(identifier=number)
    printed("Too many ping sequences of the guest without answer")


def test_ping_sockets_that_are_not_permitted(
    printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("passt.userspace.icmp.translator.socket.socket", refuse)
    rig = test_icmp_errors.Rig()
    for number in range(FLOOD):
        rig.ping(identifier=number)
    printed('Cannot open "ping" socket: Permission denied')


# Clients of the control socket.


@pytest.fixture
def rig(tmp_path: Path) -> control_rig.Rig:
    return control_rig.Rig(str(tmp_path / "control"))


def test_clients_that_talk_nonsense(printed: Printed, rig: control_rig.Rig) -> None:
    for number in range(FLOOD):
        client = rig.greeted()
        client.send(bytes((number % 250 + 4,)) * 100)
        rig.rounds()
        client.close()
    rig.close()
    printed("Accepted configuration client", "Received rules for non-existent table")


def test_clients_that_stall(printed: Printed, rig: control_rig.Rig) -> None:
    for _ in range(FLOOD):
        client = rig.greeted()
        rig.ahead += 6
        rig.rounds()
        client.close()
    rig.close()
    printed("Accepted configuration client", "Configuration client timed out")


def test_clients_whose_ports_are_taken(printed: Printed, rig: control_rig.Rig) -> None:
    rig.problems = ["Listen failed"]
    for _ in range(FLOOD):
        client = rig.greeted()
        client.send(request(control_rig.tcp(1)))
        rig.rounds()
        client.close()
    rig.close()
    printed("Accepted configuration client", "Error switching to new forwarding rules")


# The log file.


def test_log_file_under_a_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst there is: every packet says something, with --trace."""
    path = tmp_path / "log"
    for name in ("_file", "_level", "_threshold", "_debug", "debug_on", "trace_on", "_program"):
        monkeypatch.setattr(log, name, getattr(log, name))
    monkeypatch.setattr(log, "_stderr", False)
    log.setup("pasta", trace=True, path=str(path), size=100000)
    largest = 0
    with Host() as host:
        for number in range(3000):
            guest = Guest(host, 0, port=number)
            host.feed(guest.frame(SYN), guest.frame(ACK))
            log.debug("packet %d of a flood, with some text that is not short at all", number)
            largest = max(largest, os.path.getsize(path))
    assert 60000 < largest <= 100000
    assert path.read_bytes().startswith(b"pasta ")
    log.close()
