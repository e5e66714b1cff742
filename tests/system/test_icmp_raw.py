"""ICMP and ICMPv6 echo, frame by frame."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from tests.system.conftest import StartGuest
from tests.system.kit import offload
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.rawguest import Frame, IPv6, Packet, RawGuest

pytestmark = pytest.mark.system

REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}
PROTOCOL = {4: 1, 6: 58}


def echo(
    guest: RawGuest,
    version: int,
    target: str,
    identifier: int,
    sequence: int,
    payload: bytes = b"",
    code: int = 0,
    source: str = "",
) -> bytes:
    """Return a frame with an echo request whose checksum is right."""
    field: dict[str, object] = {"proto": 1} if version == 4 else {"nh": 58}
    if source:
        field["src"] = source
    head = struct.pack("!BBHHH", REQUEST[version], code, 0, identifier, sequence)
    packet = bytes(guest.ip(version, target, **field) / (head + payload))
    start = 20 if version == 4 else 40
    pseudo = b"" if version == 4 else offload.pseudo_header(packet, 58, 8 + len(payload))
    value = offload.checksum(pseudo + packet[start:])
    packet = packet[: start + 2] + struct.pack("!H", value) + packet[start + 4 :]
    ethertype = b"\x08\x00" if version == 4 else b"\x86\xdd"
    mac = bytes.fromhex(guest.mac.replace(":", ""))
    return bytes.fromhex("9a559a559a55") + mac + ethertype + packet


def is_reply(version: int) -> Callable[[Packet], bool]:
    """Return a predicate: is the packet an echo reply of that version?"""

    def check(packet: Packet) -> bool:
        raw = bytes(packet)
        if version == 4:
            return raw[12:14] == b"\x08\x00" and raw[23] == 1 and raw[34] == 0
        return raw[12:14] == b"\x86\xdd" and raw[20] == 58 and raw[54] == 129

    return check


def fields(frame: Frame, version: int) -> tuple[str, int, int, bytes]:
    """Return source, identifier, sequence and payload of an echo reply."""
    start = 34 if version == 4 else 54
    _, _, _, identifier, sequence = struct.unpack_from("!BBHHH", frame.raw, start)
    if version == 4:
        end = 14 + struct.unpack_from("!H", frame.raw, 16)[0]
    else:
        end = 54 + struct.unpack_from("!H", frame.raw, 18)[0]
    return frame.packet.payload.src, identifier, sequence, frame.raw[start + 8 : end]


def replies(guest: RawGuest, version: int, count: int, since: int = 0) -> list[Frame]:
    """Return *count* echo replies."""
    return guest.expect(is_reply(version), since=since, count=count)


def test_identifier_and_sequence_0(guest: RawGuest, version: int) -> None:
    """busybox starts at 0."""
    target = net.REMOTE[version]
    guest.send(echo(guest, version, target, 0, 0, b"zero"))
    (frame,) = replies(guest, version, 1)
    assert fields(frame, version) == (target, 0, 0, b"zero")


def test_odd_and_even_lengths(guest: RawGuest, version: int) -> None:
    """Content comes back whole; the kit verifies the checksums."""
    target = net.REMOTE[version]
    for size in range(41):
        guest.send(echo(guest, version, target, 77, size, bytes(range(size))))
        time.sleep(0.005)
    frames = replies(guest, version, 41)
    assert sorted(fields(frame, version)[1:] for frame in frames) == [
        (77, size, bytes(range(size))) for size in range(41)
    ]
    ip = frames[0].packet.payload
    assert (ip.ttl if version == 4 else ip.hlim) == 255


def test_one_identifier_to_several_hosts(guest: RawGuest, version: int) -> None:
    targets = [net.REMOTE[version], net.FAR[version], net.GATEWAY[version], net.OWN[version]]
    for sequence in range(3):
        guest.send(*(echo(guest, version, target, 5, sequence) for target in targets))
        time.sleep(0.02)
    frames = replies(guest, version, 12)
    seen = {fields(frame, version)[:3] for frame in frames}
    assert seen == {(target, 5, sequence) for target in targets for sequence in range(3)}


def test_identifier_in_use_on_the_host(guest: RawGuest, host: Netns, version: int) -> None:
    """A ping with the same identifier on the host and in the guest: both get their answers."""
    target = net.REMOTE[version]
    other = host.popen(["ping", f"-{version}", "-c15", "-i0.02", "-e", "4242", "-q", target])
    for sequence in range(10):
        guest.send(echo(guest, version, target, 4242, sequence))
        time.sleep(0.02)
    frames = replies(guest, version, 10)
    assert [fields(frame, version)[2] for frame in frames] == list(range(10))
    assert other.wait(5) == 0


def test_unanswerable_requests(guest: RawGuest, version: int) -> None:
    """Wrong code, truncated, reply instead of request: nothing, and no harm."""
    target = net.REMOTE[version]
    good = echo(guest, version, target, 9, 9)
    start = 34 if version == 4 else 54
    guest.send(
        echo(guest, version, target, 9, 1, code=1),
        good[:start] + bytes([REPLY[version]]) + good[start + 1 :],
        good[: start + 4],
    )
    guest.send(good)
    (frame,) = replies(guest, version, 1)
    assert fields(frame, version)[2] == 9
    time.sleep(0.2)
    assert len(replies(guest, version, 1)) == 1


def test_unspecified_target_is_refused(ours_only: None, guest: RawGuest, version: int) -> None:
    """The host itself would answer, mapping or not."""
    guest.send(echo(guest, version, {4: "0.0.0.0", 6: "::"}[version], 3, 1))
    guest.expect_none(is_reply(version))


def test_multicast_source_is_refused(ours_only: None, guest: RawGuest, version: int) -> None:
    source = {4: "224.0.0.1", 6: "ff02::1"}[version]
    guest.send(echo(guest, version, net.REMOTE[version], 9, 2, source=source))
    guest.expect_none(is_reply(version))


def test_v4_mapped_target_is_refused(start_guest: StartGuest) -> None:
    guest = start_guest("--no-map-gw")
    guest.send(echo(guest, 6, "::ffff:127.0.0.1", 3, 1))
    guest.expect_none(lambda p: IPv6 in p or p.type == 0x0800)


def test_repeated_sequence_is_answered(ours_only: None, guest: RawGuest, version: int) -> None:
    """Every request gets its answer, whatever number it carries."""
    target = net.REMOTE[version]
    for sequence in (5, 5, 6, 6, 5):
        guest.send(echo(guest, version, target, 8, sequence))
        time.sleep(0.03)
    frames = replies(guest, version, 5)
    assert [fields(frame, version)[2] for frame in frames] == [5, 5, 6, 6, 5]
