"""TCP towards the guest, segment by segment: handshake, odd input, answers without a connection."""

from __future__ import annotations

import socket
import time

import pytest

from tests.system.conftest import StartGuest
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.rawguest import TCP, RawGuest
from tests.system.kit.rawtcp import MODULUS, RawTcp, accept

pytestmark = pytest.mark.system

PORT = 7002


@pytest.fixture
def listener(remote: Netns, version: int) -> socket.socket:
    """A server at REMOTE."""
    return remote.listen(net.REMOTE[version], PORT)


def connection(guest: RawGuest, version: int, **fields: int) -> RawTcp:
    """Return a connection, not yet opened, to the server."""
    return RawTcp(guest, version, net.REMOTE[version], PORT, **fields)


def opened(guest: RawGuest, version: int, listener: socket.socket) -> tuple[RawTcp, socket.socket]:
    """Return an established connection and the server's socket."""
    raw = connection(guest, version)
    raw.connect()
    server, _ = listener.accept()
    server.settimeout(5.0)
    return raw, server


# -- handshake -----------------------------------------------------------------------------------


def test_syn_ack(guest: RawGuest, version: int, listener: socket.socket) -> None:
    raw = connection(guest, version)
    answer = raw.connect()
    assert answer.ack == (raw.isn + 1) % MODULUS
    assert answer.window >= 14600
    assert set(answer.options) <= {"MSS", "NOP", "WScale"}
    assert answer.options["MSS"] == 61440
    assert answer.payload == b""


def test_initial_sequence_numbers_differ(
    guest: RawGuest, version: int, listener: socket.socket
) -> None:
    first = connection(guest, version).connect().seq
    second = connection(guest, version).connect().seq
    assert abs(first - second) > 1 << 16


def test_refused_port(guest: RawGuest, version: int) -> None:
    """RST must carry ACK, and acknowledge the SYN, or the client does not believe it."""
    raw = connection(guest, version)
    raw.send("S")
    answer = raw.expect()
    assert answer.flags == "RA"
    assert answer.ack == (raw.isn + 1) % MODULUS


def test_repeated_syn_is_ignored(guest: RawGuest, version: int) -> None:
    """The guest's retries while the host's connect() is under way, with whatever sequence."""
    raw = RawTcp(guest, version, net.BLACKHOLE[version], 80)
    for _ in range(3):
        raw.send("S", seq=raw.isn)
    raw.send("S", seq=raw.isn + 1000)
    raw.expect_none()


@pytest.mark.parametrize(
    "options",
    [
        [],
        [("WScale", 7)],
        [("MSS", 1460)],
        [("MSS", 65535), ("WScale", 15)],
        [("MSS", 3)],
        [("EOL", None), ("MSS", 100)],
        [("SAckOK", b""), ("Timestamp", (1, 0)), ("MSS", 1000)],
    ],
    ids=["none", "scale", "mss", "large", "mss3", "end", "modern"],
)
def test_syn_options(
    request: pytest.FixtureRequest,
    guest: RawGuest,
    version: int,
    listener: socket.socket,
    options: list[tuple[str, object]],
) -> None:
    """Whatever the SYN says, data flows both ways, in segments the guest can take."""
    if ("MSS", 3) in options:
        request.getfixturevalue("ours_only")
    raw = connection(guest, version)
    raw.connect(options)
    server, _ = listener.accept()
    with server:
        server.sendall(bytes(range(256)) * 20)
        raw.send("PA", b"from the guest")
        assert stream.read_exactly(server, 14) == b"from the guest"
        assert raw.read(5120) == bytes(range(256)) * 20
        largest = max(len(segment.payload) for segment in raw.segments())
        offered = dict(options).get("MSS", 536) if options[:1] != [("EOL", None)] else 536
        assert largest <= max(int(str(offered)), 536)


@pytest.mark.parametrize("mss", [0, 1, 3])
def test_absurd_mss(
    ours_only: None, guest: RawGuest, version: int, listener: socket.socket, mss: int
) -> None:
    """An MSS of next to nothing must not end the program."""
    raw = connection(guest, version)
    raw.connect([("MSS", mss)])
    server, _ = listener.accept()
    with server:
        server.sendall(b"some data")
        assert raw.read(9) == b"some data"


@pytest.mark.parametrize("raw_options", ["0200", "0240ffff", "010101ff", "03030e00", "00000000"])
def test_malformed_options(
    guest: RawGuest, version: int, listener: socket.socket, raw_options: str
) -> None:
    raw = connection(guest, version)
    packet = raw.segment("S", options=[("NOP", None)] * 4)
    frame = bytearray(guest.frame(packet))
    frame[-4:] = bytes.fromhex(raw_options).ljust(4, b"\0")[:4]
    raw.seq += 1
    guest.send(bytes(frame))
    answer = raw.expect(lambda s: s.flags == "SA")
    assert answer.ack == raw.seq % MODULUS


def test_guest_without_window_scaling(
    ours_only: None, guest: RawGuest, version: int, listener: socket.socket
) -> None:
    """No scale offered: none announced, and the window field means bytes, both ways."""
    raw = connection(guest, version, window=3000)
    answer = raw.connect([("MSS", 1460)])
    assert "WScale" not in answer.options
    server, _ = listener.accept()
    with server:
        server.sendall(bytes(20000))
        raw.expect(lambda s: s.payload)
        time.sleep(0.2)
        assert 1540 < sum(len(segment.payload) for segment in raw.segments()) <= 3000
        assert raw.segments()[-1].window > 10000


def test_window_of_the_handshake_is_unscaled(
    guest: RawGuest, version: int, listener: socket.socket
) -> None:
    """Before the guest's first ACK, its window counts bytes: 14600, not 14600 << 7."""
    raw = connection(guest, version, window=14600)
    raw.send("S", options=[("MSS", 1460), ("WScale", 7)])
    answer = raw.expect(lambda s: s.flags == "SA")
    server, _ = listener.accept()
    with server:
        server.setblocking(False)
        assert server.send(bytes(1 << 20)) > 40000
        raw.ack = (answer.seq + 1) % MODULUS
        raw.send("A", window=14600 >> 7)
        raw.expect(lambda s: s.payload)
        time.sleep(0.2)
        assert sum(len(segment.payload) for segment in raw.segments()) <= 14600


def test_data_with_the_handshake_ack(
    ours_only: None, guest: RawGuest, version: int, listener: socket.socket
) -> None:
    """Data that completes the handshake is data."""
    raw = connection(guest, version)
    raw.send("S")
    raw.ack = raw.expect(lambda s: s.flags == "SA").seq + 1
    raw.send("PA", b"early")
    server, _ = listener.accept()
    with server:
        assert stream.read_exactly(server, 5) == b"early"
    raw.expect(lambda s: s.ack == raw.seq, timeout=0.3)


def test_data_following_the_handshake(
    guest: RawGuest, version: int, listener: socket.socket
) -> None:
    raw = connection(guest, version)
    raw.send("S")
    raw.ack = raw.expect(lambda s: s.flags == "SA").seq + 1
    raw.send("A")
    raw.send("PA", b"early ")
    raw.send("PA", b"bird")
    server, _ = listener.accept()
    with server:
        assert stream.read_exactly(server, 10) == b"early bird"
    raw.expect(lambda s: s.ack == raw.seq)


def test_fin_completes_the_handshake(
    guest: RawGuest, version: int, listener: socket.socket
) -> None:
    raw = connection(guest, version)
    raw.send("S")
    raw.ack = raw.expect(lambda s: s.flags == "SA").seq + 1
    raw.send("FA")
    server, _ = listener.accept()
    with server:
        server.settimeout(3.0)
        assert server.recv(1) == b""
    raw.expect(lambda s: s.ack == raw.seq)


def test_reset_then_syn_of_the_same_tuple(
    guest: RawGuest, version: int, listener: socket.socket
) -> None:
    """Both frames at once: the second opens a new connection."""
    raw, server = opened(guest, version, listener)
    again = connection(guest, version, sport=raw.sport)
    guest.send(raw.segment("R"), again.segment("S"))
    with server, pytest.raises(ConnectionResetError):
        server.recv(1)
    answer = again.expect(lambda s: s.flags == "SA" and s.ack == (again.isn + 1) % MODULUS)
    again.seq, again.ack = again.isn + 1, answer.seq + 1
    again.send("A")
    second, _ = listener.accept()
    with second:
        again.send("PA", b"again")
        assert stream.read_exactly(second, 5) == b"again"


def test_guest_refuses_inbound(guest: RawGuest, remote: Netns, version: int) -> None:
    since = guest.position()
    with remote.connect(net.HOST[version], 7001) as client:
        raw, syn = accept(guest, version, 7001, since=since, answer=False)
        raw.send("RA", seq=0, ack=syn.seq + 1)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_inbound_answer_without_syn_ack_is_reset(
    guest: RawGuest, remote: Netns, version: int
) -> None:
    since = guest.position()
    with remote.connect(net.HOST[version], 7001) as client:
        raw, _ = accept(guest, version, 7001, since=since, answer=False)
        raw.send("A")
        raw.expect(lambda s: "R" in s.flags)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_empty_ack_comes_first(guest: RawGuest, remote: Netns, version: int) -> None:
    """Servers that speak first wait for it; data that was there before follows."""
    since = guest.position()
    with remote.connect(net.HOST[version], 7001) as client:
        client.sendall(b"waiting already")
        raw, syn = accept(guest, version, 7001, since=since)
        assert {"MSS", "WScale"} <= set(syn.options) <= {"MSS", "NOP", "WScale", "SAckOK"}
        assert raw.read(15) == b"waiting already"
        after_syn = [s for s in raw.segments() if "S" not in s.flags]
        assert (after_syn[0].flags, after_syn[0].payload) == ("A", b"")
        raw.reset()


@pytest.mark.parametrize(
    "wrong",
    [
        {"src": {4: "0.0.0.0", 6: "::"}},
        {"src": {4: "224.0.0.5", 6: "ff02::5"}},
        {"src": {4: "255.255.255.255", 6: "ff0e::1"}},
        {"dst": {4: "0.0.0.0", 6: "::"}},
        {"dst": {4: "224.0.0.5", 6: "ff02::5"}},
        {"src": {4: "127.0.0.1", 6: "::1"}},
        {"dst": {4: "127.0.0.1", 6: "::1"}},
        {"sport": 0},
        {"dport": 0},
    ],
    ids=lambda wrong: "-".join(wrong) + "-" + str(next(iter(wrong.values())))[:16],
)
def test_impossible_endpoints(
    guest: RawGuest, host: Netns, version: int, wrong: dict[str, dict[int, str]]
) -> None:
    """Nothing is opened, nothing answered, nobody on the host is bothered."""
    packet = connection(guest, version).segment("S")
    for name, value in wrong.items():
        if isinstance(value, dict):
            setattr(packet, name, value[version])
        else:
            setattr(packet[TCP], name, value)
    before = guest.pasta.descriptors()
    since = guest.position()
    with host.listen(net.LOOPBACK[version], PORT) as loopback:
        guest.send(packet)
        guest.expect_none(lambda p: TCP in p, since=since)
        loopback.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            loopback.accept()
    assert guest.pasta.descriptors() <= before


def test_v4_mapped_addresses(ours_only: None, guest: RawGuest, host: Netns) -> None:
    """An IPv6 packet to ::ffff:127.0.0.1 must not reach the host's loopback."""
    with host.listen(net.LOOPBACK[4], PORT) as loopback:
        raw = RawTcp(guest, 6, "::ffff:127.0.0.1", PORT)
        raw.send("S")
        raw.expect_none()
        loopback.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            loopback.accept()


# -- without a connection ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["A", "SA", "FA", "PA"])
def test_stray_ack_is_reset(guest: RawGuest, version: int, flags: str) -> None:
    raw = connection(guest, version)
    raw.ack = 0x12345678
    raw.send(flags, b"data" if flags == "PA" else b"")
    answer = raw.expect()
    assert (answer.flags, answer.seq, answer.ack) == ("R", 0x12345678, 0)


def test_stray_segment_without_ack_is_reset(guest: RawGuest, version: int) -> None:
    raw = connection(guest, version)
    raw.send("P", b"12345")
    answer = raw.expect()
    assert (answer.flags, answer.seq, answer.ack) == ("RA", 0, (raw.isn + 5) % MODULUS)


def test_stray_fin_is_counted(ours_only: None, guest: RawGuest, version: int) -> None:
    raw = connection(guest, version)
    raw.send("F", b"12345")
    answer = raw.expect()
    assert (answer.flags, answer.seq, answer.ack) == ("RA", 0, (raw.isn + 6) % MODULUS)


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_stray_reset_is_not_answered(guest: RawGuest, version: int, flags: str) -> None:
    raw = connection(guest, version)
    raw.send(flags)
    raw.expect_none()


@pytest.mark.parametrize("offset", [0, 4, 15])
def test_data_offset_out_of_bounds(guest: RawGuest, version: int, offset: int) -> None:
    raw = connection(guest, version)
    guest.send(raw.segment("S", dataofs=offset))
    raw.expect_none(lambda s: "S" in s.flags)


def test_truncated_segment(guest: RawGuest, version: int) -> None:
    raw = connection(guest, version)
    whole = guest.frame(raw.segment("S"))
    ip_length = 20 if version == 4 else 40
    for length in range(20):
        cut = bytearray(whole[: 14 + ip_length + length])
        if version == 4:
            cut[16:18] = (20 + length).to_bytes(2, "big")
        else:
            cut[18:20] = length.to_bytes(2, "big")
        guest.send(bytes(cut))
    raw.expect_none(lambda s: "S" in s.flags)


def test_checksum_is_not_checked(guest: RawGuest, version: int, listener: socket.socket) -> None:
    """A guest with checksum offload does not fill it in."""
    raw = connection(guest, version)
    guest.send(raw.segment("S", chksum=0xBAD))
    raw.expect(lambda s: s.flags == "SA")


def test_hundreds_of_tuples_at_once(start_guest: StartGuest, remote: Netns, version: int) -> None:
    guest = start_guest()
    with remote.listen(net.REMOTE[version], PORT, backlog=1024):
        raws = [connection(guest, version, sport=20000 + n) for n in range(300)]
        guest.send(*(raw.segment("S") for raw in raws))
        found = guest.expect(
            lambda p: TCP in p and p[TCP].flags == "SA", timeout=10, count=len(raws)
        )
        assert {frame.packet[TCP].dport for frame in found} == {raw.sport for raw in raws}
        for raw in raws:
            raw.seq += 1
            raw.reset()
    wait_for(lambda: guest.pasta.descriptors() < 200, 5.0, "descriptors to be freed")
