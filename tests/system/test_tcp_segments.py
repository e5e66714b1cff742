"""TCP towards the guest on an established connection: data, acknowledgements, windows, ends."""

from __future__ import annotations

import hashlib
import socket
import time

import pytest

from tests.system.kit import offload, stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.rawguest import RawGuest
from tests.system.kit.rawtcp import MODULUS, RawTcp

pytestmark = pytest.mark.system

PORT = 7002


class Opened:
    """An established connection: *raw*, the guest's end, and *server*, the socket in *remote*."""

    def __init__(self, guest: RawGuest, remote: Netns, version: int, window: int = 65535) -> None:
        self.guest = guest
        with remote.listen(net.REMOTE[version], PORT) as listener:
            self.raw = RawTcp(guest, version, net.REMOTE[version], PORT, window=window)
            self.raw.connect()
            self.server, _ = listener.accept()
        remote.processes.sockets.add(self.server)
        self.server.settimeout(5.0)


@pytest.fixture
def opened(guest: RawGuest, remote: Netns, version: int) -> Opened:
    """An established connection from the guest to *remote*, window 65535 << 7."""
    return Opened(guest, remote, version)


def quiet(raw: RawTcp, timeout: float = 0.15) -> int:
    """Wait a moment for what is under way; return the mark after it."""
    time.sleep(timeout)
    return raw.mark()


# -- from the guest ------------------------------------------------------------------------------


def test_data_is_delivered_and_acknowledged(opened: Opened) -> None:
    raw = opened.raw
    for size in (1, 2, 3, 1459, 1460):
        raw.send("PA", bytes([size % 256]) * size)
        assert stream.read_exactly(opened.server, size) == bytes([size % 256]) * size
        raw.expect(lambda s: s.ack == raw.seq, timeout=0.5)


def test_reordered_segments(opened: Opened) -> None:
    """Behind a hole, nothing may be lost for good, and nothing delivered too early."""
    raw = opened.raw
    pieces = [bytes([65 + n]) * 100 for n in range(5)]
    first = raw.seq
    for index in (1, 3, 2, 4):
        raw.send("A", pieces[index], seq=first + 100 * index)
    opened.server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        opened.server.recv(1)
    opened.server.settimeout(5.0)
    for index in range(5):
        raw.send("A", pieces[index], seq=first + 100 * index)
    assert stream.read_exactly(opened.server, 500) == b"".join(pieces)
    raw.expect(lambda s: s.ack == (first + 500) % MODULUS)


def test_out_of_order_data_is_kept(ours_only: None, opened: Opened) -> None:
    """The segment that fills the hole is acknowledged together with all behind it."""
    raw = opened.raw
    first = raw.seq
    for index in (1, 2, 3):
        raw.send("A", bytes(100), seq=first + 100 * index)
        quiet(raw, 0.02)
    mark = raw.mark()
    raw.send("A", bytes(100), seq=first)
    raw.expect(lambda s: s.ack == (first + 400) % MODULUS, since=mark, timeout=1.0)


def test_three_duplicate_acks_for_a_hole(ours_only: None, opened: Opened) -> None:
    """One ACK per segment behind a hole (RFC 5681, 4.2), or fast retransmission never starts."""
    raw = opened.raw
    quiet(raw)
    first = raw.seq
    mark = raw.mark()
    for index in range(1, 5):
        raw.send("A", bytes(100), seq=first + 100 * index)
        time.sleep(0.03)
    quiet(raw)
    assert sum(s.ack == first % MODULUS for s in raw.segments(mark)) >= 3


def test_overlapping_and_repeated_segments(opened: Opened) -> None:
    raw = opened.raw
    data = bytes(range(250))
    first = raw.seq
    for start, end in ((0, 100), (0, 100), (50, 150), (20, 80), (149, 200), (100, 250), (0, 250)):
        raw.send("A", data[start:end], seq=first + start)
    raw.send("FA", seq=first + 250)
    assert stream.receive(opened.server) == (250, hashlib.sha256(data).hexdigest())
    raw.expect(lambda s: s.ack == (first + 251) % MODULUS)


def test_fin_on_overlapping_segment(ours_only: None, opened: Opened) -> None:
    raw = opened.raw
    first = raw.seq
    raw.send("A", b"0123456789", seq=first)
    assert stream.read_exactly(opened.server, 10) == b"0123456789"
    raw.send("FA", b"56789abcde", seq=first + 5)
    assert stream.read_exactly(opened.server, 5) == b"abcde"
    opened.server.settimeout(1.0)
    assert opened.server.recv(1) == b""
    raw.expect(lambda s: s.ack == (first + 16) % MODULUS, timeout=1.0)


def test_fin_behind_a_hole_waits(opened: Opened) -> None:
    raw = opened.raw
    first = raw.seq
    raw.send("FA", b"tail", seq=first + 10)
    opened.server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        opened.server.recv(1)
    opened.server.settimeout(5.0)
    raw.send("A", b"0123456789", seq=first)
    raw.send("FA", b"tail", seq=first + 10)
    assert stream.receive(opened.server)[0] == 14
    raw.expect(lambda s: s.ack == (first + 15) % MODULUS)


def test_old_segment_is_acknowledged(ours_only: None, opened: Opened) -> None:
    """The ACK was lost: the guest repeats, and must be told again (RFC 9293, 3.10.7.4)."""
    raw = opened.raw
    raw.send("A", b"0123456789")
    raw.expect(lambda s: s.ack == raw.seq)
    mark = quiet(raw)
    raw.send("A", b"0123456789", seq=raw.seq - 10)
    raw.expect(lambda s: s.ack == raw.seq, since=mark, timeout=0.5)
    assert stream.read_exactly(opened.server, 10) == b"0123456789"
    opened.server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        opened.server.recv(1)


def test_repeated_fin_is_acknowledged(ours_only: None, opened: Opened) -> None:
    raw = opened.raw
    raw.send("FA")
    raw.expect(lambda s: s.ack == raw.seq)
    mark = quiet(raw)
    raw.send("FA", seq=raw.seq - 1)
    raw.expect(lambda s: s.ack == raw.seq, since=mark, timeout=0.5)


@pytest.mark.parametrize("payload", [b"", b"\0"], ids=["empty", "garbage"])
def test_keep_alive_is_answered(opened: Opened, payload: bytes) -> None:
    raw = opened.raw
    raw.send("A", b"data")
    assert stream.read_exactly(opened.server, 4) == b"data"
    for _ in range(2):
        mark = quiet(raw)
        raw.send("A", payload, seq=raw.seq - 1)
        answer = raw.expect(lambda s: s.ack == raw.seq, since=mark, timeout=0.5)
        assert answer.flags == "A" and answer.payload == b""
    opened.server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        opened.server.recv(1)


def test_reset_reaches_the_peer(opened: Opened) -> None:
    opened.raw.send("R")
    with pytest.raises(ConnectionResetError):
        opened.server.recv(1)


def test_syn_on_established_connection_is_harmless(opened: Opened) -> None:
    opened.raw.send("S", seq=12345)
    quiet(opened.raw)
    opened.raw.send("PA", b"still here")
    assert stream.read_exactly(opened.server, 10) == b"still here"


def test_data_after_fin_is_ignored(opened: Opened) -> None:
    raw = opened.raw
    raw.send("FA")
    assert opened.server.recv(1) == b""
    raw.send("PA", b"too late")
    opened.server.sendall(b"still open this way")
    assert raw.read(19) == b"still open this way"


def test_peer_that_stopped_reading_altogether(opened: Opened) -> None:
    """Closed for reading with data coming in: the guest is reset."""
    opened.server.close()
    raw = opened.raw
    raw.expect(lambda s: "F" in s.flags)
    raw.ack += 1
    raw.send("A")
    raw.send("PA", b"nobody reads this")
    quiet(raw)
    raw.send("PA", b"nor this")
    raw.expect(lambda s: "R" in s.flags)


def test_never_more_than_advertised_is_lost(opened: Opened) -> None:
    """A guest that fills the window of a peer that does not read: all of it can be delivered."""
    raw = opened.raw
    handshake = raw.segments()[0]
    scale = int(str(handshake.options.get("WScale", 0)))
    first = raw.seq

    def room(total: int) -> int:
        """Bytes that may be sent beyond *total*, by the last segment from pasta."""
        last = raw.segments()[-1]
        window = last.window << (0 if "S" in last.flags else scale)
        return int((last.ack - first) % MODULUS + window - total)

    sent = 0
    while sent < 8 << 20:
        try:
            wait_for(lambda total=sent: room(total) >= 1460, 0.3)  # type: ignore[misc]
        except AssertionError:
            break
        for _ in range(min(room(sent) // 1460, 100)):
            raw.send("A", bytes([sent // 1460 % 251]) * 1460)
            sent += 1460
    assert sent > 20000
    data = stream.read_exactly(opened.server, sent)
    expected = b"".join(bytes([n % 251]) * 1460 for n in range(sent // 1460))
    assert data == expected


# -- to the guest --------------------------------------------------------------------------------


def test_headers(opened: Opened, version: int) -> None:
    """Fields of the IP header, padding, flags: what the spec promises for every frame."""
    raw = opened.raw
    opened.server.sendall(b"x")
    assert raw.read(1) == b"x"
    opened.server.sendall(bytes(3000))
    raw.read(3000)
    quiet(raw)
    frames = opened.guest.matching(raw._mine)
    labels = set()
    for frame in frames:
        ip = frame.packet.payload
        assert len(frame.raw) >= 60
        if version == 4:
            assert (ip.ttl, ip.tos, str(ip.flags), ip.ihl) == (255, 0, "DF", 5)
        else:
            assert (ip.hlim, ip.tc) == (255, 0)
            labels.add(ip.fl)
    for segment in raw.segments():
        assert "A" in segment.flags
        assert not set(segment.flags) & set("UEC")
        assert ("P" in segment.flags) <= bool(segment.payload)
    last = [s for s in raw.segments() if s.payload][-1]
    assert "P" in last.flags
    if version == 6:
        assert len(labels) == 1 and labels != {0}


def test_payload_sizes(opened: Opened) -> None:
    """Every size and alignment; the kit verifies lengths and checksums of each frame."""
    for size in range(1, 71):
        opened.server.sendall(bytes([size]) * size)
        assert opened.raw.read(size) == bytes([size]) * size


def test_segments_respect_mss_and_window(guest: RawGuest, remote: Netns, version: int) -> None:
    opened = Opened(guest, remote, version, window=100)  # << 7: 12800 bytes
    opened.server.setblocking(False)
    opened.server.send(bytes(1 << 20))
    quiet(opened.raw, 0.4)
    segments = [s for s in opened.raw.segments() if s.payload]
    assert 12800 - 1460 < sum(len(s.payload) for s in segments) <= 12800
    assert max(len(s.payload) for s in segments) <= 1460


def test_no_load_while_the_guest_does_not_acknowledge(opened: Opened) -> None:
    opened.server.setblocking(False)
    opened.server.send(bytes(1 << 20))
    quiet(opened.raw, 0.3)
    before = opened.guest.pasta.cpu_seconds()
    time.sleep(0.5)
    assert opened.guest.pasta.cpu_seconds() - before < 0.1


def test_lost_segment_is_sent_again(opened: Opened) -> None:
    """Fast retransmission after duplicate ACKs, well before the first timeout (1 s)."""
    raw = opened.raw
    opened.server.sendall(bytes(range(256)) * 20)
    quiet(raw)
    mark = raw.mark()
    for _ in range(4):
        raw.send("A")
        time.sleep(0.01)
    again = raw.expect(lambda s: s.payload, since=mark, timeout=0.6)
    assert again.seq == raw.ack % MODULUS
    assert raw.read(5120) == bytes(range(256)) * 20


def test_what_is_not_a_duplicate_ack(opened: Opened) -> None:
    """Window updates, keep-alives and data with an old ACK number do not cause retransmission."""
    raw = opened.raw
    opened.server.sendall(bytes(1000))
    quiet(raw)
    mark = raw.mark()
    raw.send("A", window=60000)
    raw.send("A", window=50000)
    raw.send("PA", b"data")
    raw.expect(lambda s: s.ack == raw.seq, since=mark)  # not in one batch with the next
    raw.send("A", seq=raw.seq - 1)
    raw.expect_none(lambda s: s.payload, since=mark)
    assert raw.read(1000) == bytes(1000)


def test_ack_beyond_what_was_sent(ours_only: None, opened: Opened) -> None:
    """Believing it would discard data the guest has never seen."""
    raw = opened.raw
    opened.server.sendall(b"first")
    assert raw.read(5) == b"first"
    raw.send("A", ack=raw.ack + 100000)
    opened.server.sendall(b"second")
    assert raw.read(6) == b"second"
    raw.send("PA", b"alive")
    assert stream.read_exactly(opened.server, 5) == b"alive"


def test_ack_below_what_was_acknowledged(opened: Opened) -> None:
    raw = opened.raw
    opened.server.sendall(b"first")
    assert raw.read(5) == b"first"
    mark = quiet(raw)
    raw.send("A", ack=raw.ack - 3)
    raw.expect_none(lambda s: "R" in s.flags or s.payload, since=mark)
    opened.server.sendall(b"second")
    assert raw.read(6) == b"second"


def test_fin_waits_for_data(guest: RawGuest, remote: Netns, version: int) -> None:
    """FIN comes after everything before it has been acknowledged, and it is acknowledged once."""
    opened = Opened(guest, remote, version, window=10)  # << 7: 1280 bytes
    raw = opened.raw
    opened.server.sendall(bytes(4000))
    opened.server.shutdown(socket.SHUT_WR)
    quiet(raw, 0.3)
    assert not any("F" in s.flags for s in raw.segments())
    assert raw.read(4000) == bytes(4000)
    fin = raw.expect(lambda s: "F" in s.flags)
    assert fin.seq == raw.ack % MODULUS
    raw.ack += 1
    raw.send("A")
    raw.send("PA", b"half open")
    assert stream.read_exactly(opened.server, 9) == b"half open"


def test_window_closes_and_opens(opened: Opened) -> None:
    raw = opened.raw
    opened.server.sendall(bytes(1000))
    assert raw.read(1000) == bytes(1000)
    raw.window = 0
    raw.send("A")
    quiet(raw)
    mark = raw.mark()
    opened.server.sendall(b"0123456789" * 100)
    time.sleep(0.4)
    probes = [s for s in raw.segments(mark) if s.payload]
    assert sum(len(s.payload) for s in probes) <= 128, probes
    raw.window = 65535
    raw.send("A")
    started = time.monotonic()
    assert raw.read(1000) == b"0123456789" * 100
    assert time.monotonic() - started < 2.5


def test_window_closes_with_data_in_flight(opened: Opened) -> None:
    """A zero window that takes back what was promised, then reopens: nothing is lost."""
    raw = opened.raw
    opened.server.sendall(b"0123456789" * 300)
    raw.expect(lambda s: s.payload)
    raw.send("A", window=0)
    raw.send("A")
    assert raw.read(3000, timeout=8.0) == b"0123456789" * 300


def test_keep_alive_opens_the_window(opened: Opened) -> None:
    raw = opened.raw
    raw.window = 0
    raw.send("A")
    quiet(raw)
    opened.server.sendall(b"waiting")
    quiet(raw, 0.3)
    raw.window = 65535
    raw.send("A", seq=raw.seq - 1)
    assert raw.read(7, timeout=3.0) == b"waiting"


def test_transfer_after_the_guest_has_finished(
    guest: RawGuest, remote: Netns, version: int
) -> None:
    """Half-closed by the guest, small window: window updates and ACKs still drive the transfer."""
    opened = Opened(guest, remote, version, window=40)
    raw = opened.raw
    raw.send("FA")
    assert opened.server.recv(1) == b""
    data = b"".join(stream.blocks(60000))
    writer = stream.Background(lambda: opened.server.sendall(data))
    assert raw.read(60000, timeout=10) == data
    writer.result()
    opened.server.close()
    raw.expect(lambda s: "F" in s.flags)


def test_flow_survives_until_fin_is_acknowledged(opened: Opened) -> None:
    """FINs crossing; the guest acknowledges late: no reset for its last ACK."""
    raw = opened.raw
    opened.server.close()
    raw.expect(lambda s: "F" in s.flags)
    raw.send("FA")
    raw.expect(lambda s: s.ack == raw.seq)
    mark = quiet(raw)
    raw.send("A", ack=raw.ack + 1)
    raw.expect_none(lambda s: "R" in s.flags, since=mark)


def test_late_segment_of_a_closed_connection_is_reset(opened: Opened) -> None:
    raw = opened.raw
    raw.send("FA")
    assert opened.server.recv(1) == b""
    opened.server.close()
    raw.expect(lambda s: "F" in s.flags)
    raw.ack += 1
    raw.send("A")
    mark = quiet(raw)
    raw.send("FA", seq=raw.seq - 1)
    wait_for(lambda: raw.segments(mark), 1.0, "an answer")
    assert raw.segments(mark)[0].flags == "R"


def test_kit_notices_a_wrong_checksum(guest: RawGuest, version: int) -> None:
    """The check that every other test here relies on."""
    raw = RawTcp(guest, version, net.REMOTE[version], PORT)
    frame = guest.frame(raw.segment("A", b"odd"))
    assert offload.verify(frame) == ""
    assert offload.verify(frame[:-1] + b"x") == "checksum of protocol 6"
