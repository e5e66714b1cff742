"""ICMP errors about echo requests; what is refused without asking the host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, ICMPerror, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
)
from scapy.layers.l2 import Ether

from passt.userspace.config.model import Config
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.table import FlowTable
from passt.userspace.flow.unreachable import offender, refusal, router
from passt.userspace.icmp import Icmp
from passt.userspace.icmp.errors import echo_error
from passt.userspace.loop import Loop
from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from tests.unit.fakes import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_MAC,
    OUR_MAC,
    FakeLink,
    config,
    echo_frame,
    feed,
    ip_frame,
    open_descriptors,
)

ROUTER4 = bytes((203, 0, 113, 1))
ROUTER6 = bytes.fromhex("20010db8000000990000000000000001")


class Rig:
    """An echo translator and what it needs; its sockets are whatever the test provides."""

    def __init__(self, configuration: Config | None = None, limit: int = 100) -> None:
        self.config = configuration or config()
        self.loop = Loop()
        self.link = FakeLink()
        self.table = FlowTable(limit)
        self.nat = Nat(self.config)
        self.icmp = Icmp(self.config, self.nat, self.loop, self.link, self.table)

    def ping(self, version: int = 4, **options: object) -> None:
        source, target = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
        arguments = {"src": source, "dst": target, "identifier": 1, "sequence": 1}
        feed(self.icmp, echo_frame(**{**arguments, **options}))  # type: ignore[arg-type]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bytes, object]]]:
    """Messages that ping sockets were asked to send; no such socket is really opened."""
    messages: list[tuple[bytes, object]] = []

    class Recorder(socket.socket):
        __slots__ = ()

        def __init__(self, family: int, kind: int, protocol: int) -> None:
            assert protocol == (socket.IPPROTO_ICMP if family == 2 else socket.IPPROTO_ICMPV6)
            super().__init__(family, kind)

        def sendto(self, data, address):  # type: ignore[no-untyped-def]
            messages.append((bytes(data), address))
            return len(data)

    monkeypatch.setattr("passt.userspace.icmp.translator.socket.socket", Recorder)
    yield messages


def test_request_goes_to_the_translated_destination(sent: list[tuple[bytes, object]]) -> None:
    rig = Rig()
    rig.ping(4, identifier=7, sequence=9, data=b"payload")
    rig.ping(6, identifier=0, sequence=0)
    (first, address4), (second, address6) = sent
    assert address4 == ("127.0.0.1", 0)
    assert (first[0], first[4:]) == (8, b"\0\x07\0\x09payload")
    assert address6 == ("::1", 0, 0, 0)
    assert (second[0], second[4:]) == (128, bytes(4))
    flow4, flow6 = (str(flow) for flow in rig.table.flows())
    assert flow4 == (
        "Flow 0 (ICMP ping sequence): TAP [192.0.2.10]:7 -> [192.0.2.1] => HOST [127.0.0.1]"
    )
    assert flow6 == (
        "Flow 1 (ICMPv6 ping sequence): TAP [2001:db8:0:1::10]:0 -> [2001:db8:0:1::1] => HOST [::1]"
    )


def test_one_socket_per_address_destination_and_identifier(
    sent: list[tuple[bytes, object]],
) -> None:
    rig = Rig()
    for _ in range(2):
        rig.ping()
        rig.ping(identifier=2)
        rig.ping(dst=ROUTER4)
        rig.ping(src=bytes((192, 0, 2, 11)))
    assert len(sent) == 8
    assert rig.table.count == 4


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (4, {"dst": bytes(4)}),
        (4, {"src": bytes(4)}),
        (4, {"kind": 0}),
        (4, {"kind": 3}),
        (4, {"kind": 13}),
        (6, {"dst": bytes(16)}),
        (6, {"src": bytes(16)}),
        (6, {"kind": 129}),
        (6, {"kind": 1}),
        (6, {"kind": 143}),
    ],
)
def test_refused(
    sent: list[tuple[bytes, object]], version: int, options: dict[str, object]
) -> None:
    rig = Rig()
    rig.ping(version, **options)
    assert sent == []
    assert rig.table.count == 0


def test_full_table(sent: list[tuple[bytes, object]]) -> None:
    rig = Rig(limit=1)
    before = open_descriptors()
    for identifier in range(5):
        rig.ping(identifier=identifier)
    assert len(sent) == 1
    assert open_descriptors() == before + 1


def test_expiry_after_the_last_request(sent: list[tuple[bytes, object]]) -> None:
    rig = Rig()
    rig.ping()
    rig.loop.now += 50
    rig.ping()
    rig.loop.now += 59
    rig.icmp._expiry.run()
    assert rig.table.count == 1
    rig.loop.now += 2.1
    rig.icmp._expiry.run()
    assert rig.table.count == 0
    before = open_descriptors()
    rig.loop.round(0.0)
    assert open_descriptors() == before - 1


def test_no_ping_sockets_permitted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*_arguments: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("passt.userspace.log._windows", {})
    rig = Rig()
    monkeypatch.setattr("passt.userspace.icmp.translator.socket.socket", refused)
    for _ in range(50):
        rig.ping()
    assert rig.table.count == 0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith('Cannot open "ping" socket: Permission denied')
    assert "net.ipv4.ping_group_range" in lines[0]


@pytest.mark.parametrize(
    ("number", "head4", "head6"),
    [
        (101, b"\x03\x00", b"\x01\x00"),
        (113, b"\x03\x01", b"\x01\x03"),
        (22, None, None),
        (90, None, None),
    ],
)
def test_no_route(
    monkeypatch: pytest.MonkeyPatch, number: int, head4: bytes | None, head6: bytes | None
) -> None:
    class Unroutable(socket.socket):
        __slots__ = ()

        def __init__(self, family: int, kind: int, protocol: int) -> None:
            super().__init__(family, kind)

        def sendto(self, data, address):  # type: ignore[no-untyped-def]
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("passt.userspace.icmp.translator.socket.socket", Unroutable)
    rig = Rig()
    for version, head, gateway in ((4, head4, GATEWAY4), (6, head6, GATEWAY6)):
        rig.ping(version, identifier=77, sequence=5, data=b"data")
        packets = rig.link.take()
        if head is None:
            assert packets == []
            continue
        (packet,) = packets
        assert packet.l4[:2] == head
        assert packet.src == gateway
        assert packet.l4[-8:] == b"\0\x4d\0\x05data"


def test_error_about_ipv4_echo() -> None:
    request = b"\x08\0\x12\x34\x99\x99\0\x05" + bytes(range(100))
    frame = Ether(
        echo_error(GUEST_MAC, OUR_MAC, ROUTER4, GUEST4, GATEWAY4, 0x4D, 11, 0, 0, request)
    )
    assert (frame[IP].src, frame[IP].dst, frame[IP].ttl) == ("203.0.113.1", "192.0.2.10", 255)
    assert (frame[ICMP].type, frame[ICMP].code) == (11, 0)
    quoted = frame[IPerror]
    assert (quoted.src, quoted.dst, quoted.len) == ("192.0.2.10", "192.0.2.1", 20 + len(request))
    echo = frame[ICMPerror]
    assert (echo.type, echo.id, echo.seq) == (8, 0x4D, 5)
    again = IP(bytes(quoted))
    assert again.chksum == quoted.chksum
    rebuilt = again[ICMP].copy()
    del rebuilt.chksum
    assert ICMP(bytes(rebuilt)).chksum == echo.chksum
    assert bytes(echo.payload) == bytes(range(100))


def test_error_about_ipv6_echo() -> None:
    request = b"\x80\0\x12\x34\x99\x99\0\x05" + bytes(range(70))
    frame = Ether(echo_error(GUEST_MAC, OUR_MAC, ROUTER6, GUEST6, GATEWAY6, 0x4D, 1, 0, 0, request))
    assert (frame[IPv6].src, frame[IPv6].dst) == ("2001:db8:0:99::1", "2001:db8:0:1::10")
    assert frame[ICMPv6DestUnreach].code == 0
    quoted = frame[IPerror6]
    assert (quoted.src, quoted.dst) == ("2001:db8:0:1::10", "2001:db8:0:1::1")
    assert quoted.plen == len(request)
    echo = quoted[ICMPv6EchoRequest]
    assert (echo.id, echo.seq, echo.data) == (0x4D, 5, bytes(range(70)))
    whole = IPv6(src=quoted.src, dst=quoted.dst) / ICMPv6EchoRequest(
        id=echo.id, seq=echo.seq, data=echo.data
    )
    assert IPv6(bytes(whole))[ICMPv6EchoRequest].cksum == echo.cksum


@pytest.mark.parametrize("mtu", [0, 1300, 70000])
def test_next_hop_mtu(mtu: int) -> None:
    request = b"\x08\0\0\0\0\0\0\0"
    macs = GUEST_MAC, OUR_MAC
    frame = Ether(echo_error(*macs, ROUTER4, GUEST4, GATEWAY4, 1, 3, 4, mtu, request))
    assert frame[ICMP].nexthopmtu == mtu & 0xFFFF
    frame = Ether(echo_error(*macs, ROUTER6, GUEST6, GATEWAY6, 1, 2, 0, mtu, request))
    assert frame[ICMPv6PacketTooBig].mtu == mtu
    frame = Ether(echo_error(*macs, ROUTER4, GUEST4, GATEWAY4, 1, 3, 1, mtu, request))
    assert frame[ICMP].nexthopmtu == 0


@pytest.mark.parametrize("size", [8, 9, 400, 5000])
def test_errors_are_short_enough(size: int) -> None:
    request = b"\x08" + bytes(size - 1)
    macs = GUEST_MAC, OUR_MAC
    frame4 = echo_error(*macs, ROUTER4, GUEST4, GATEWAY4, 1, 3, 1, 0, request)
    assert len(Ether(frame4)[IP]) <= 576
    frame6 = echo_error(*macs, ROUTER6, GUEST6, GATEWAY6, 1, 1, 3, 0, request)
    assert len(Ether(frame6)[IPv6]) <= 1280
    assert len(frame6) == 14 + min(1280, 88 + size)


def test_where_errors_come_from() -> None:
    made = config()
    nat = Nat(made)
    local = bytes((127, 0, 0, 1))
    assert offender(nat, local, local, GATEWAY4) == GATEWAY4
    assert offender(nat, ROUTER4, local, GATEWAY4) == ROUTER4
    assert offender(nat, b"", local, GATEWAY4) is None
    assert offender(nat, ROUTER6, local, GATEWAY4) is None
    assert offender(nat, bytes((224, 0, 0, 1)), local, GATEWAY4) is None
    assert offender(nat, b"\xff\x02" + bytes(14), ROUTER6, GATEWAY6) is None
    assert offender(nat, bytes(10) + b"\xff\xff" + ROUTER4, ROUTER6, GATEWAY6) is None
    assert router(made, v4=True) == GATEWAY4
    assert router(made, v4=False) == GATEWAY6
    made.v6.gateway = None
    assert router(made, v4=False) == made.v6.our_ll
    assert refusal(OSError(101, ""), GATEWAY4) == (3, 0)
    assert refusal(OSError(13, ""), GATEWAY6) == (1, 1)
    assert refusal(OSError(22, ""), GATEWAY4) is None
    # That a link-local destination is nowhere, of others something else.
    assert refusal(OSError(22, ""), bytes.fromhex("fe80") + bytes(13) + b"\2") == (1, 0)
    assert refusal(OSError(22, ""), bytes.fromhex("20010db8") + bytes(11) + b"\2") is None


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from((4, 6)))
    size = 4 if version == 4 else 16
    source, target = (draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    l4 = draw(st.sampled_from((b"", b"\x08", b"\x80"))) + draw(st.binary(max_size=60))
    frame = ip_frame(source, target, 1 if version == 4 else 58, l4, draw(st.integers(0, 255)))
    return frame[: draw(st.integers(14, len(frame)))]


@given(frame=messages())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_frame(sent: list[tuple[bytes, object]], frame: bytes) -> None:
    rig = Rig()
    sent.clear()
    services = Services(rig.config, rig.nat, rig.link, rig.loop)
    stack = Stack(rig.config, rig.nat, rig.link, None, None, rig.icmp, services)
    stack.receive(memoryview(bytearray(frame)), 0, len(frame))
    for data, _ in sent:
        assert data[0] in (8, 128)
        assert len(data) >= 8
    for flow in rig.table.flows():
        rig.icmp.end(flow)  # type: ignore[arg-type]
    rig.loop.round(0.0)
