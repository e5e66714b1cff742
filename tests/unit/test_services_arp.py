"""ARP service: who gets an answer, what it says, and who must not get one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from passt.userspace.services.arp import ArpService
from passt.userspace.wire import drops

OUR_MAC = bytes.fromhex("9a559a559a55")
GATEWAY = bytes((192, 0, 2, 1))
ASSIGNED = bytes((192, 0, 2, 15))


def service() -> ArpService:
    """A service in a typical network."""
    return ArpService(OUR_MAC, GATEWAY, ASSIGNED)


def request(sender: str, target: str, operation: int = 1, padding: int = 18) -> bytes:
    """A request frame whose Ethernet source and sender MAC differ."""
    return (
        bytes(
            Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
            / ARP(op=operation, hwsrc="02:00:00:00:00:02", psrc=sender, pdst=target)
        )
        + b"\xee" * padding
    )


def handle(frame: bytes, answering: ArpService | None = None) -> Ether | None:
    """The reply, if any, with the frame somewhere in a buffer."""
    answering = answering or service()
    buf = memoryview(b"\xee" * 10 + frame + b"\xee" * 60)
    reply = answering.handle(buf, 10, 10 + len(frame))
    return None if reply is None else Ether(reply)


@pytest.mark.parametrize("target", ["192.0.2.1", "192.0.2.77", "203.0.113.9", "8.8.8.8"])
@pytest.mark.parametrize("padding", [0, 18, 100])
def test_any_address_is_claimed(target: str, padding: int) -> None:
    reply = handle(request("192.0.2.15", target, padding=padding))
    assert reply is not None
    assert len(reply.original) == 60
    assert (reply.dst, reply.src) == ("02:00:00:00:00:01", "9a:55:9a:55:9a:55")
    message = reply[ARP]
    assert (message.op, message.hwsrc, message.psrc) == (2, "9a:55:9a:55:9a:55", target)
    assert (message.hwdst, message.pdst) == ("02:00:00:00:00:02", "192.0.2.15")


def test_probe_of_another_address_is_answered() -> None:
    reply = handle(request("0.0.0.0", "192.0.2.77"))
    assert reply is not None
    assert reply[ARP].pdst == "0.0.0.0"


@pytest.mark.parametrize("sender", ["0.0.0.0", "192.0.2.15", "192.0.2.77"])
def test_assigned_address_is_not_claimed(sender: str) -> None:
    assert handle(request(sender, "192.0.2.15")) is None


@pytest.mark.parametrize("address", ["192.0.2.15", "192.0.2.77"])
def test_announcements_are_ignored(address: str) -> None:
    assert handle(request(address, address)) is None


@pytest.mark.parametrize("operation", [0, 2, 3, 4, 8, 0xFFFF])
def test_other_operations_are_ignored(operation: int) -> None:
    assert handle(request("192.0.2.15", "192.0.2.1", operation)) is None


def test_truncated_requests_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "counts", [0] * len(drops.NAMES))
    whole = request("192.0.2.15", "192.0.2.1", padding=0)
    for length in range(14, len(whole)):
        assert handle(whole[:length]) is None
    assert drops.counts[drops.ARP_FORMAT] == len(whole) - 14
    assert handle(whole) is not None


def test_neighbours_show_their_own_mac() -> None:
    asked = []

    def mac_for(address: bytes) -> bytes:
        asked.append(address)
        return b"\4\0\0\0\0\7"

    answering = ArpService(OUR_MAC, GATEWAY, ASSIGNED, mac_for)
    reply = handle(request("192.0.2.15", "192.0.2.77"), answering)
    assert reply is not None
    assert asked == [bytes((192, 0, 2, 77))]
    # RFC 826 is about the message; the frame itself still comes from us.
    assert (reply.src, reply[ARP].hwsrc) == ("9a:55:9a:55:9a:55", "04:00:00:00:00:07")


def test_assigned_address_may_change() -> None:
    answering = service()
    answering.guest_addr = bytes((192, 0, 2, 77))
    assert handle(request("192.0.2.77", "192.0.2.15"), answering) is not None
    assert handle(request("0.0.0.0", "192.0.2.77"), answering) is None


def test_further_addresses_of_the_guest_are_not_claimed() -> None:
    more = frozenset((ASSIGNED, bytes((192, 0, 2, 77))))
    answering = ArpService(OUR_MAC, GATEWAY, ASSIGNED, more=more)
    for target in ("192.0.2.15", "192.0.2.77"):
        assert handle(request("0.0.0.0", target), answering) is None
        assert handle(request("192.0.2.15", target), answering) is None
    assert handle(request("0.0.0.0", "192.0.2.78"), answering) is not None


def test_initial_request() -> None:
    raw = service().initial_request()
    assert raw is not None
    assert len(raw) == 60
    frame = Ether(raw)
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", "9a:55:9a:55:9a:55")
    message = frame[ARP]
    assert (message.op, message.hwsrc, message.psrc) == (1, "9a:55:9a:55:9a:55", "192.0.2.1")
    assert (message.hwdst, message.pdst) == ("ff:ff:ff:ff:ff:ff", "192.0.2.15")


@pytest.mark.parametrize(("ours", "guest"), [(None, ASSIGNED), (GATEWAY, None), (None, None)])
def test_no_initial_request_without_addresses(ours: bytes | None, guest: bytes | None) -> None:
    assert ArpService(OUR_MAC, ours, guest).initial_request() is None


@given(st.binary(min_size=14, max_size=80))
def test_any_frame(data: bytes) -> None:
    reply = service().handle(data, 0, len(data))
    assert reply is None or len(reply) == 60


@given(st.binary(min_size=20, max_size=20))
def test_any_addresses(addresses: bytes) -> None:
    data = bytes(12) + bytes.fromhex("0806 0001 0800 06 04 0001") + addresses
    reply = service().handle(data, 0, len(data))
    sender, target = addresses[6:10], addresses[16:20]
    ignored = target == ASSIGNED or (sender == target and any(sender))
    assert (reply is None) is ignored
