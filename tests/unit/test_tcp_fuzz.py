"""Any segments in any order: no exception, no leak, and the peer gets a prefix of what fits."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passt.userspace.tcp.const import MAX_WINDOW
from tests.unit import fakes
from tests.unit.fakes import open_descriptors
from tests.unit.tcp_kit import ACK, FIN, MASK, PSH, RST, SYN, Guest, Host, inbound, outbound

RUNS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def near(rnd: Random, value: int) -> int:
    """A sequence number at, around, or far from ``value``."""
    return (
        value + rnd.choice([0, 0, 0, -1, 1, 5, -5, 1460, -1460, 65536, 1 << 24, 1 << 31])
    ) & MASK


def segment(rnd: Random, guest: Guest, seq: int, ack: int) -> bytes:
    """A frame that is more or less plausible on the connection."""
    flags = rnd.choice([ACK, ACK, ACK, ACK | PSH, ACK | FIN, SYN, SYN | ACK, RST, 0, FIN, 0xFF])
    if flags & RST and rnd.random() < 0.9:
        flags = ACK
    options = rnd.choice(
        [b"", b"", rnd.randbytes(4 * rnd.randint(0, 10)), b"\1\1\5\x0a" + rnd.randbytes(8)]
    )
    if options[:4] == b"\1\1\5\x0a":
        left = near(rnd, ack)
        options = options[:4] + left.to_bytes(4, "big") + near(rnd, left).to_bytes(4, "big")
    return guest.frame(
        flags,
        bytes(rnd.choice([0, 0, 1, 5, 1460, 30000])),
        seq=near(rnd, seq),
        ack=near(rnd, ack),
        window=rnd.choice([0, 1, 100, 0xFFFF]),
        options=options,
    )


@RUNS
@given(
    seed=st.integers(0, 1 << 32),
    guest_connects=st.booleans(),
    version=st.sampled_from([4, 6]),
    peek_off=st.booleans(),
)
def test_segments(seed: int, guest_connects: bool, version: int, peek_off: bool) -> None:
    rnd = Random(seed)
    before = open_descriptors()
    with Host(peek_off=peek_off) as host:
        make = outbound if guest_connects else inbound
        guest, peer, flow = make(host, version=version, scale=rnd.choice([None, 0, 7, 14]))
        peer.setblocking(False)
        for _ in range(60):
            host.feed(
                *(segment(rnd, guest, flow.rcv_nxt, flow.snd_una) for _ in range(rnd.randint(1, 4)))
            )
            host.link.accept = rnd.random() < 0.95
            if rnd.random() < 0.3:
                host.advance(rnd.choice([0.001, 0.05, 1.0, 40.0]))
            try:
                if rnd.random() < 0.5:
                    peer.send(bytes(rnd.choice([1, 1000, 100000])))
                if rnd.random() < 0.5:
                    peer.recv(100000)
            except OSError:
                pass
            host.take()
            check(host)
        host.link.accept = True
        for left in host.flows():
            left.abort("end")
        host.turn()
        assert host.ctx.budget.data == 0
        assert not host.ctx.flows4
        assert not host.ctx.flows6
        assert not host.ctx.uploading
    assert open_descriptors() == before


def check(host: Host) -> None:
    """Invariants of every flow."""
    held = 0
    for flow in host.flows():
        assert flow.head <= flow.snd_una + 1 or flow.state < 3
        assert flow.snd_una <= flow.snd_nxt <= flow.snd_max
        assert flow.snd_max - flow.snd_una <= MAX_WINDOW + 1
        assert flow.told_ack <= flow.ack <= flow.rcv_nxt
        assert 0 <= flow.window_field <= 0xFFFF
        assert len(flow.tail) <= MAX_WINDOW
        assert all(a < b <= flow.snd_max and a >= flow.snd_una for a, b in flow.sacked), flow.sacked
        held += flow.holds()
    assert host.ctx.budget.data == held


@RUNS
@given(frames=st.lists(st.binary(max_size=120), max_size=20), version=st.sampled_from([4, 6]))
def test_frames(frames: list[bytes], version: int) -> None:
    """Noise, also behind the headers of a connection."""
    with Host() as host:
        guest = outbound(host, version=version).guest
        head = guest.frame(ACK)
        for noise in frames:
            for frame in (noise, head[:14] + noise, head[: len(head) - 20] + noise):
                view = memoryview(bytearray(10) + frame)
                host.stack.receive(view, 10, len(view))
            host.link.batch_end()
        host.turn()
        assert host.table.count <= 1
        host.link.sent.clear()


@RUNS
@given(seed=st.integers(0, 1 << 32))
def test_handshakes(seed: int) -> None:
    """Segments before the connection is established, from both sides at once."""
    rnd = Random(seed)
    with Host(limit=4) as host:
        listener = host.listener()
        where = host.forward()
        for _ in range(4):
            peer = host.connect(where) if host.table.count < 4 else None
            port = peer.getsockname()[1] if peer else 9
            guests = [
                Guest(host, listener.getsockname()[1], port=rnd.randint(1, 3)),
                Guest(host, port, port=80),
            ]
            for _ in range(5):
                guest = rnd.choice(guests)
                for flow in host.flows():
                    if flow.our_port == guest.dport and rnd.random() < 0.7:
                        host.feed(segment(rnd, guest, flow.rcv_nxt, flow.snd_nxt))
                host.feed(segment(rnd, guest, guest.seq, 0))
            host.advance(rnd.choice([0.0, 0.5, 20.0]))
            host.take()
            check(host)
            for flow in host.flows()[2:]:
                flow.abort("make room")
        assert host.table.count <= 4
        assert host.nat.observed4 == fakes.GUEST4
