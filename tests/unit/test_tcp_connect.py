"""The guest connects: options, retries, failures of the host, and what may come in between."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from passt.userspace import log
from passt.userspace.config.model import Config
from passt.userspace.tcp.const import ESTABLISHED
from tests.unit import fakes
from tests.unit.tcp_kit import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Guest,
    Host,
    Segment,
    outbound,
    receive,
    stream_of,
    was_reset,
)


def synchronize(guest: Guest) -> Segment:
    """Send a SYN and return the one answer, which acknowledges it."""
    (reply,) = guest.ask(SYN, options=guest.options)
    assert reply.ack == guest.seq
    return reply


@pytest.mark.parametrize("version", [4, 6])
def test_answer_to_a_syn(version: int) -> None:
    with Host(mtu=65520) as host:
        listener = host.listener(socket.AF_INET if version == 4 else socket.AF_INET6)
        guest = Guest(host, listener.getsockname()[1], version=version)
        reply = synchronize(guest)
        assert reply.flags == SYN | ACK
        assert reply.options.mss == 61440  # whole pages
        assert 0 < reply.options.window_scale <= 8
        assert reply.options.sack_permitted
        assert 14600 <= reply.window <= 65535
        assert bool(reply.label) == (version == 6)


@pytest.mark.parametrize("version", [4, 6])
def test_query_for_a_resolver_that_is_not_there(version: int) -> None:
    """Never to the host's loopback, for which the gateway stands otherwise."""

    def match(config: Config) -> None:
        config.v4.dns_match, config.v6.dns_match = fakes.GATEWAY4, fakes.GATEWAY6

    with Host(tweak=match) as host:
        guest = Guest(host, 853, version=version)
        (reply,) = guest.ask(SYN, options=guest.options)
        assert (reply.flags, reply.ack) == (RST | ACK, guest.seq)
        assert host.flows() == []


@pytest.mark.parametrize(("mtu", "version", "mss"), [(1500, 4, 1460), (1500, 6, 1440), (68, 4, 88)])
def test_announced_mss(mtu: int, version: int, mss: int) -> None:
    with Host(mtu=mtu) as host:
        listener = host.listener(socket.AF_INET if version == 4 else socket.AF_INET6)
        guest = Guest(host, listener.getsockname()[1], version=version)
        assert synchronize(guest).options.mss == mss


def test_unknown_mtu_takes_the_mss_of_the_socket() -> None:
    with Host(mtu=0) as host:
        guest = Guest(host, host.listener().getsockname()[1])
        assert synchronize(guest).options.mss >= 536


@pytest.mark.parametrize(("mtu", "mss"), [(0, 65495), (1500, 1460), (576, 536), (68, 28)])
def test_segments_fit_the_mtu_whatever_the_guest_takes(mtu: int, mss: int) -> None:
    with Host(mtu=mtu) as host:
        guest = Guest(host, host.listener().getsockname()[1], mss=65535)
        synchronize(guest)
        assert host.flow.template.mss == mss


@pytest.mark.parametrize(
    ("options", "mss", "scaling"),
    [
        (b"", 536, False),
        (b"\x02\x04\x00\x00", 88, False),
        (b"\x02\x04\x00\x03", 88, False),
        (b"\x02\x04\xff\xff", 1460, False),
        (b"\x03\x03\x0f\x01", 536, False),
        (b"\x03\x03\x0e\x01", 536, True),
        (b"\x02\x00\x05\xb4", 536, False),
        (b"\x02\x28\x05\xb4", 536, False),
        (b"\x02\x04\x05\xb4\x00\x03\x03\x07", 1460, False),
        (b"\x01\x01\x01\x02", 536, False),
        (b"\x02\x04\x02\x00\x02\x04\x05\xb4", 1460, False),
    ],
)
def test_options_of_any_kind(options: bytes, mss: int, scaling: bool) -> None:
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        guest.options = options
        reply = synchronize(guest)
        assert host.flow.template.mss == mss
        assert (reply.options.window_scale >= 0) == scaling
        assert not reply.options.sack_permitted
        guest.ack = reply.next_seq
        guest.send(ACK, window=65535)
        host.accept(listener).sendall(bytes(3000))
        host.turn()
        got = [piece for whole in guest.take() for piece in whole.cut()]
        assert sum(len(piece.payload) for piece in got) == 3000
        assert max(len(piece.payload) for piece in got) <= mss


def test_guest_without_scaling_counts_bytes() -> None:
    with Host() as host:
        guest, peer, flow = outbound(host, scale=None, window=5000)
        assert flow.our_scale == 0
        peer.sendall(bytes(20000))
        host.turn()
        assert len(stream_of(guest.take())) <= 5000
        reply = guest.data(bytes(3000))[-1]
        assert reply.window <= 65535
        assert flow.rcv_edge == flow.ack + reply.window


def test_scaled_window_right_after_the_handshake() -> None:
    """The field of the SYN|ACK is not scaled, that of the first data is."""
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        reply = synchronize(guest)
        scale = reply.options.window_scale
        guest.ack = reply.next_seq
        guest.send(ACK)
        host.accept(listener).sendall(b"220 ready")
        host.turn()
        (first,) = guest.take()
        assert 0 <= (first.window << scale) - reply.window < 1 << scale


def test_guest_retries_while_the_target_is_slow() -> None:
    """SYNs of a connection under way are ignored (D1.5)."""
    with Host() as host:
        # A full backlog: this kernel answers no more SYNs.
        listener = host.own(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = host.own(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        guest = Guest(host, listener.getsockname()[1])
        isn = guest.seq
        for seq in (isn, isn, isn + 5):
            assert guest.send(SYN, seq=seq, options=guest.options) == []
        assert host.table.count == 1
        assert guest.send(RST, seq=isn + 1) == []
        assert host.table.count == 0


def test_refused_port() -> None:
    with Host() as host:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            guest = Guest(host, port)
            (reply,) = guest.ask(SYN, options=guest.options)
        assert reply.flags == RST | ACK
        assert reply.ack == guest.seq
        assert host.table.count == 0
        host.advance(10)
        assert guest.take() == []


@pytest.mark.parametrize(
    ("number", "icmp", "kind"),
    [
        (errno.EHOSTUNREACH, True, (3, 1)),
        (errno.ENETUNREACH, True, (3, 0)),
        (errno.EACCES, True, (3, 13)),
        (errno.EPERM, True, (3, 13)),
        (errno.ETIMEDOUT, True, (3, 1)),
        (errno.ECONNREFUSED, True, None),
        (errno.EINVAL, True, None),
        (errno.EHOSTUNREACH, False, None),
    ],
)
def test_refusal_of_the_host_is_explained(
    number: int, icmp: bool, kind: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ICMP error that quotes the SYN, and then the reset, in this order."""

    def without(config: Config) -> None:
        config.icmp = icmp

    with Host(tweak=without) as host:
        monkeypatch.setattr(host.tcp, "_open", lambda *_: number)
        guest = Guest(host, 80)
        host.feed(guest.frame(SYN, options=guest.options))
        frames = [frame for _, frame in host.link.sent]
        assert [frame[23] for frame in frames] == ([1, 6] if kind else [6])
        if kind:
            assert (frames[0][34], frames[0][35]) == kind
            assert frames[0][26:34] == fakes.GATEWAY4 + fakes.GUEST4
            quoted = struct.unpack_from("!HHI", frames[0], 14 + 20 + 8 + 20)
            assert quoted == (guest.port, 80, guest.isn)
        assert host.take()[-1].flags == RST | ACK
        assert host.table.count == 0


def test_refusal_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    with Host() as host:
        monkeypatch.setattr(host.tcp, "_open", lambda *_: errno.EACCES)
        guest = Guest(host, 80, version=6)
        host.feed(guest.frame(SYN))
        frame = host.link.sent[0][1]
        assert (frame[20], frame[54], frame[55]) == (58, 1, 1)
        assert struct.unpack_from("!HHI", frame, 14 + 40 + 8 + 40) == (guest.port, 80, guest.isn)


@pytest.mark.parametrize("tail", [b"", b" and more"])
def test_data_with_the_last_segment_of_the_handshake(tail: bytes) -> None:
    """Delivered and acknowledged at once, alone and with more behind it (D1.14)."""
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        guest.ack = synchronize(guest).next_seq
        frames = [guest.frame(ACK | PSH, b"hello")]
        if tail:
            frames.append(guest.frame(ACK | PSH, tail))
        host.feed(*frames)
        assert receive(host.accept(listener), 5 + len(tail)) == b"hello" + tail
        host.advance(0.011)
        assert guest.take()[-1].ack == guest.seq


def test_fin_completes_the_handshake() -> None:
    """… and a new connection follows from another port in the same batch (D1.15)."""
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        other = Guest(host, listener.getsockname()[1], port=40001)
        guest.ack = synchronize(guest).next_seq
        host.feed(guest.frame(FIN | ACK), other.frame(SYN, options=other.options))
        host.until(lambda: host.table.count == 2)
        assert host.accept(listener).recv(1) == b""
        host.turn()
        replies = host.take()
        assert any(reply.dport == 40000 and reply.ack == guest.seq for reply in replies)
        assert any(reply.dport == 40001 and reply.flags == SYN | ACK for reply in replies)


def test_reset_and_new_connection_of_the_same_tuple() -> None:
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        guest.ack = synchronize(guest).next_seq
        guest.send(ACK)
        first = host.accept(listener)
        again = Guest(host, listener.getsockname()[1], isn=77)
        host.feed(guest.frame(RST), again.frame(SYN, options=again.options))
        second = host.accept(listener)
        host.turn()
        assert was_reset(first)
        (reply,) = guest.take()
        assert (reply.flags, reply.ack) == (SYN | ACK, 78)
        again.ack = reply.next_seq
        again.data(b"fresh")
        assert receive(second, 5) == b"fresh"


@pytest.mark.parametrize("flags", [0, PSH, SYN | ACK, ACK])
def test_anything_else_in_the_handshake_resets(flags: int) -> None:
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        reply = synchronize(guest)
        guest.ack = reply.next_seq
        replies = guest.send(flags, seq=guest.seq, ack=reply.next_seq + 1)
        assert [segment.flags for segment in replies] == [RST | ACK]
        assert host.table.count == 0
        assert was_reset(host.accept(listener))


@pytest.mark.parametrize(
    ("src", "dst", "sport", "dport"),
    [
        ("192.0.2.10", "224.0.0.1", 1, 2),
        ("192.0.2.10", "255.255.255.255", 1, 2),
        ("192.0.2.10", "192.0.2.1", 0, 2),
        ("192.0.2.10", "192.0.2.1", 1, 0),
        ("0.0.0.0", "192.0.2.1", 1, 2),
    ],
)
def test_endpoints_that_cannot_be(
    src: str, dst: str, sport: int, dport: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _key, _level, text, *_: said.append(text))
    with Host() as host:
        guest = Guest(host, dport, port=sport)
        guest.src, guest.dst = socket.inet_aton(src), socket.inet_aton(dst)
        host.feed(guest.frame(SYN))
        assert host.take() == []
        assert host.table.count == 0
        assert said == ["Invalid endpoint in TCP SYN: %s -> %s"]


def test_errors_on_the_way_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptors, a full table, epoll refusing (D1.18): no flow, no exception."""
    with Host(limit=1) as host:
        guest = Guest(host, 80)

        def none(*_: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("passt.userspace.tcp.tcp.socket.socket", none)
            assert guest.send(SYN, seq=1) == []
        with monkeypatch.context() as patch:
            patch.setattr(type(host.loop), "add", none)
            (reply,) = guest.send(SYN, seq=1)
            assert reply.flags == RST | ACK
        assert host.table.count == 0
        connection = outbound(host)
        other = Guest(host, connection.guest.dport, port=40001)
        assert other.send(SYN) == []
        assert host.table.count == 1
        assert host.table.refused == 1


def test_lost_last_segment_of_the_handshake() -> None:
    """The identical SYN|ACK is repeated, by time and on request (D1.4)."""
    with Host() as host:
        guest = Guest(host, host.listener().getsockname()[1])
        first = synchronize(guest)
        host.advance(1.5)
        (again,) = guest.take()
        assert again[:8] == first[:8]
        assert again.raw_options == first.raw_options
        (asked,) = guest.send(SYN, seq=guest.isn, options=guest.options)
        assert asked[:8] == first[:8]
        guest.ack = first.next_seq
        guest.send(ACK)
        assert host.flow.state == ESTABLISHED
        host.advance(20)
        assert guest.take() == []


def test_server_that_speaks_before_the_handshake_is_complete() -> None:
    """Its event comes once, and early; the data wait for the guest's last segment."""
    with Host() as host:
        listener = host.listener()
        guest = Guest(host, listener.getsockname()[1])
        (reply,) = guest.ask(SYN, options=guest.options)
        peer = host.accept(listener)
        peer.sendall(b"220 ready")
        host.turn(3)
        assert guest.take() == []
        guest.ack = reply.next_seq
        (greeting,) = guest.send(ACK)
        assert greeting.payload == b"220 ready"
