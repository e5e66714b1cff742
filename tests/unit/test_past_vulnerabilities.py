"""One test for each class of vulnerability that user-mode network stacks have had.

The first part follows the published vulnerabilities of libslirp, the second the bug list of
passt.  Where a class has tests elsewhere, :data:`ELSEWHERE` names them; what is here covers the
class through the whole stack.  tests/fuzz has the invariants that hold for any input.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from pathlib import Path

import pytest

from passt.userspace.flow.rules import Rule
from passt.userspace.tcp.const import ACK, PSH, RST, SYN
from tests.fuzz import frames, oracle, program
from tests.fuzz.one_reports import _REPORT
from tests.fuzz.one_reports import one as report
from tests.fuzz.world import World
from tests.unit.fakes import GATEWAY4, GUEST4, GUEST6, echo_frame, ip_frame, udp_frame
from tests.unit.tcp_kit import Guest, Host, inbound, outbound, receive
from tests.unit.udp_rig import Rig

#: Class → tests of it in other files, as module:function.
ELSEWHERE = {
    "reassembly of IP fragments": (
        "tests.unit.test_wire_ipv4:test_fragments",
        "tests.unit.test_wire_ipv6:test_fragments",
        "tests.unit.test_stack:test_fragments_of_a_flow",
        "tests.system.test_udp_raw:test_ipv4_fragments_are_dropped",
        "tests.system.test_udp_raw:test_ipv6_fragments_are_dropped",
    ),
    "reassembly of TCP": (
        "tests.unit.test_tcp_reassembly:test_against_a_dictionary",
        "tests.unit.test_tcp_reassembly:test_number_of_ranges_is_limited",
        "tests.unit.test_tcp_gaps:test_overlaps",
    ),
    "header longer than the frame": (
        "tests.unit.test_wire_ipv4:test_total_length",
        "tests.unit.test_wire_ipv6:test_truncation_inside_an_extension_header",
        "tests.unit.test_wire_tcp:test_data_offset",
        "tests.unit.test_wire_udp:test_truncation",
        "tests.unit.test_wire_icmp:test_truncation",
        "tests.unit.test_services_arp:test_truncated_requests_are_counted",
        "tests.unit.test_services_ndp:test_truncation_is_counted",
    ),
    "reply larger than the MTU": (
        "tests.unit.test_tcp_connect:test_segments_fit_the_mtu_whatever_the_guest_takes",
        "tests.unit.test_icmp_errors:test_errors_are_short_enough",
        "tests.unit.test_udp_errors:test_ipv6_error_never_exceeds_the_minimum_mtu",
    ),
    "queue corruption under bursts": (
        "tests.unit.test_tap_link:test_held_frames_keep_their_place",
        "tests.unit.test_udp_fromguest:test_long_trains_are_all_delivered",
        "tests.system.test_udp_raw:test_thousands_of_one_tuple",
        "tests.system.test_tcp_raw:test_hundreds_of_tuples_at_once",
    ),
    "leak of memory in padding": (
        "tests.unit.test_tcp_download:test_short_frames_do_not_leak_earlier_ones",
        "tests.unit.test_wire_ethernet:test_frames_are_padded_to_60_bytes",
    ),
    "urgent data": (
        "tests.unit.test_tcp_download:test_urgent_data_in_line",
        "tests.system.test_tcp_data:test_urgent_byte_is_kept_in_line",
    ),
    "port 0": (
        "tests.unit.test_tcp_connect:test_endpoints_that_cannot_be",
        "tests.unit.test_udp_fromguest:test_refused_endpoints",
        "tests.system.test_udp_raw:test_port_0",
    ),
    "sources that are not unicast": (
        "tests.unit.test_wire_ipv4:test_groups_are_no_sources",
        "tests.unit.test_wire_ipv6:test_groups_are_no_sources",
        "tests.unit.test_tcp_close:test_strays_that_concern_no_single_node_are_not_answered",
        "tests.system.test_udp_raw:test_impossible_sources",
    ),
    "overheard frames move the guest": (
        "tests.unit.test_nat:test_what_cannot_be_the_guest_is_not_observed",
        "tests.unit.test_nat:test_fixed_addresses_are_not_observed",
        "tests.unit.test_stack:test_our_own_address_is_not_observed",
        "tests.unit.test_stack:test_addresses_that_no_station_has_are_not_learned",
    ),
    "stale references after a slot was reused": (
        "tests.unit.test_tcp_close:test_stale_event_of_a_closed_flow",
        "tests.unit.test_tcp_close:test_same_tuple_again_and_again",
        "tests.unit.test_udp_splice_flows:test_events_of_the_round_that_ended_the_flow",
        "tests.unit.test_udp_lifetime:test_flow_ended_with_datagrams_waiting",
    ),
    "standard descriptors closed at start": (
        "tests.system.start.test_start_command:test_missing_standard_descriptors",
        "tests.system.start.test_start_join:test_daemon_without_standard_descriptors",
    ),
    "log floods": (
        "tests.unit.test_log:test_limit",
        "tests.unit.test_udp_lifetime:test_messages_are_limited",
        "tests.unit.test_control_server:test_clients_cannot_flood_the_log",
    ),
    "reset followed by a SYN": (
        "tests.unit.test_tcp_connect:test_reset_and_new_connection_of_the_same_tuple",
        "tests.system.test_tcp_raw:test_reset_then_syn_of_the_same_tuple",
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_named_tests_exist(name: str) -> None:
    root = Path(__file__).parent.parent.parent
    for test in ELSEWHERE[name]:
        module, _, function = test.partition(":")
        source = (root / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"\ndef {function}(" in source, test


# libslirp.


@pytest.mark.parametrize(
    "payload",
    [
        b"PORT 192,0,2,10,156,64\r\n",
        b"227 Entering Passive Mode (192,0,2,10,156,64)\r\n",
        b"EPRT |2|2001:db8:0:1::10|40000|\r\n",
        b":a PRIVMSG b :\x01DCC SEND file 3221225994 40000 1\x01\r\n",
        b"40000 , 6193\r\n",
        b"Contact: <sip:guest@192.0.2.10:5060>\r\n",
    ],
)
def test_payload_rewriting(payload: bytes) -> None:
    """There is no application gateway: what looks like an address passes as it is, both ways."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        guest.data(payload)
        assert receive(peer, len(payload)) == payload
        peer.send(payload)
        host.until(lambda: host.link.sent)
        assert b"".join(segment.payload for segment in guest.take()) == payload
    rig = Rig()
    try:
        server = rig.socket(4)
        rig.guest_sends(4, server.getsockname()[1], payload)
        got, client = server.recvfrom(2000)
        assert got == payload
        server.sendto(payload, client)
        assert [packet.payload for packet in rig.guest_gets(1)] == [payload]
    finally:
        rig.close()


def test_reassembly_of_contradictions() -> None:
    """Of bytes that arrive twice behind a gap the first ones count, and what fills the gap counts
    more, as in Linux: what the peer gets depends on the order of arrival and nothing else."""
    with Host() as host:
        guest, peer, flow = outbound(host)
        seq = guest.seq

        def send(offset: int, payload: bytes) -> None:
            guest.send(ACK | PSH, payload, seq=seq + offset)

        send(4, b"4567")
        send(2, b"xxxxxx89")
        send(6, b"yyyyyyab")
        assert flow.out_of_order is not None
        # From 2 to 14, each byte held once.
        assert flow.out_of_order.size == 12
        send(0, b"01zzzz")
        assert receive(peer, 14) == b"01zzzz6789yyab"
        send(0, b"contradictory!")
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        assert host.ctx.budget.data == 0


def test_reassembly_is_bounded() -> None:
    """Every other byte of the window: ranges, bytes and their cost stay within limits."""
    with Host() as host:
        guest, _, flow = outbound(host)
        for offset in range(1, 4000, 2):
            host.feed(guest.frame(ACK, b"x", seq=guest.seq + offset))
        assert flow.out_of_order is not None
        assert flow.out_of_order.size <= 512
        assert host.ctx.budget.data == flow.holds() <= 512 * 300


@pytest.mark.parametrize("name", frames.samples())
def test_header_longer_than_the_frame(name: str) -> None:
    """Each protocol cut off at each byte, and each byte of its headers at its extremes.

    The world checks each frame against a second decoder: dropped and counted if that says so.
    """
    frame = frames.samples()[name]
    with World() as world:
        for length in range(len(frame)):
            world.feed(frame[:length])
            fixed = bytearray(frame[:length])
            frames.fix_lengths(fixed)
            world.feed(bytes(fixed))
            world.end_batch()
    with World() as world:
        for at in range(14, min(len(frame), 100)):
            for value in (0, 1, frame[at] - 1 & 0xFF, frame[at] + 1 & 0xFF, 0x7F, 0x80, 0xFF):
                world.feed(frame[:at] + bytes((value,)) + frame[at + 1 :])
            world.settle()


@pytest.mark.parametrize("kind", [3, 11, 12, 1, 2, 4])
def test_lying_lengths_in_quotes(kind: int) -> None:
    """ICMP errors that quote anything between nothing and too much, for flows of all kinds.

    What the guest is told quotes a packet of its own, with true lengths (the world checks).
    """
    quote = bytes((0x45, 0, 0xFF, 0xFF)) + bytes(60)
    for size in (*range(34), 548, 549, 1200, 1400, 2048):
        steps = [
            (0, _REPORT.pack(which, 0, kind, 4, 0xFFFF, bytes(16), 0) + (quote * 40)[:size])
            for which in range(6)
        ]
        report(b"\0" + program.encode(steps))


@pytest.mark.parametrize("pointer", [0, 1, 5, 6, 0x7FFF, 0xFFFF])
def test_urgent_pointer(pointer: int) -> None:
    """Wherever it points, the bytes arrive in line and in order, none is taken out."""
    with Host() as host:
        guest, peer, _ = outbound(host)
        for payload in (b"hello", b"", b"world"):
            l4 = frames.segment(
                guest.port, guest.dport, guest.seq, guest.ack, ACK | PSH | 0x20, payload,
                urgent=pointer,
            )  # fmt: skip
            host.feed(ip_frame(guest.src, guest.dst, socket.IPPROTO_TCP, l4))
            guest.seq += len(payload)
        assert receive(peer, 10) == b"helloworld"
        peer.setblocking(False)
        with pytest.raises(OSError, match="Invalid argument"):
            peer.recv(1, socket.MSG_OOB)


def test_reply_larger_than_the_mtu() -> None:
    """Everything we say by ourselves fits the smallest packet that a host must take.

    Resets, advertisements, offers, errors, handshakes, data; echo replies and datagrams have
    the size that their senders gave them.
    """
    sizes: dict[object, int] = {}

    class Measured(World):
        def _check_frame(self, frame: oracle.Outgoing) -> None:
            super()._check_frame(frame)
            sizes[frame.kind] = max(sizes.get(frame.kind, 0), frame.size)

    with Measured(mtu=576) as world:
        for frame in frames.samples().values():
            world.feed(frame)
        big = bytes(1400)
        world.net.faults["connect"] = deque([errno.ENETUNREACH] * 6)
        for frame in (
            udp_frame(GUEST4, frames.FAR4, 7, 7, big),
            udp_frame(GUEST6, frames.FAR6, 7, 7, big),
            echo_frame(GUEST4, frames.FAR4, 9, 9, big),
        ):
            world.feed(frame)
        world.settle()
    assert set(sizes) >= {"arp", oracle.TCP, oracle.UDP, oracle.ICMP, oracle.ICMPV6}
    assert sizes[oracle.TCP] <= 576
    assert sizes[oracle.UDP] <= 576
    assert sizes[oracle.ICMP] <= 576
    assert sizes[oracle.ICMPV6] <= 1280


def test_queue_corruption_under_bursts() -> None:
    """Interleaved flows of changing sizes in one batch, with a link that refuses now and then."""
    rig = Rig()
    try:
        servers = [rig.socket(4) for _ in range(5)]
        sent: list[list[bytes]] = [[] for _ in servers]
        batch = []
        for number in range(250):
            which = number * 7 % 5
            payload = struct.pack("!I", number) * (1 + number % 3)
            sent[which].append(payload)
            port = servers[which].getsockname()[1]
            batch.append(udp_frame(GUEST4, GATEWAY4, 5000 + which, port, payload))
        rig.feed(*batch)
        clients = []
        for server, expected in zip(servers, sent, strict=True):
            got = [server.recvfrom(100) for _ in expected]
            assert [payload for payload, _ in got] == expected
            clients.append(got[0][1])
        answers: dict[int, list[bytes]] = {}
        for round_ in range(20):
            rig.link.accept = round_ % 4 != 3
            for which, server in enumerate(servers):
                payload = bytes((which, round_)) * (1 + round_ % 5)
                server.sendto(payload, clients[which])
                if rig.link.accept:
                    answers.setdefault(which, []).append(payload)
            rig.loop.round(0.05)
            rig.settle()
        packets = rig.link.take()
        for which, expected in answers.items():
            assert [p.payload for p in packets if p.ports[1] == 5000 + which] == expected
    finally:
        rig.close()


def test_leak_of_memory_in_padding() -> None:
    """Short answers after long ones hold nothing but zeros behind the packet (the world checks)."""
    with World() as world:
        world.feed(echo_frame(GUEST4, frames.FAR4, 7, 1, b"\xaa" * 1400))
        for number in range(30):
            world.feed(echo_frame(GUEST4, frames.FAR4, 7, number, b"\xbb" * number))
        world.settle()
        answered = 0
        for sink, content, source in world.net.received():
            sink.sendto(b"\0" + content[1:], source)
            world.settle()
            answered += 1
        assert answered == 31
        world.feed(frames.arp(1, GUEST4, GATEWAY4))
        world.feed(ip_frame(GUEST4, GATEWAY4, 6, frames.segment(1, 2, 3, 4, ACK)))


# passt.


@pytest.mark.parametrize(
    ("address", "port"),
    [
        (frames.FAR4, 0),
        (b"\xe0\0\0\1", 7),
        (b"\xff" * 4, 7),
        (bytes(4), 7),
        (frames.FAR6, 0),
        (frames.GROUP6, 7),
        (bytes(16), 7),
    ],
)
def test_impossible_peers_of_inbound_connections(address: bytes, port: int) -> None:
    """Port 0, and sources that are not unicast: reset, and the guest never hears of it."""
    with World() as world:
        assert world.tcp is not None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        rule = Rule(socket.IPPROTO_TCP, 8000, 8000, 80)
        assert world.tcp.accepted(ours, (address, port), rule, 8000)
        assert ours.fileno() < 0, "not closed"
        assert world.table.count == 0
        assert world.link.sent == []
        theirs.close()


def test_overheard_frames() -> None:
    """A fixed address stays, and what cannot be the guest moves nothing in any case."""

    def fixed(config: object) -> None:
        config.v4.addr_fixed = config.v6.addr_fixed = True  # type: ignore[attr-defined]

    stranger = udp_frame(frames.FAR4, GATEWAY4, 7, 7, b"x")
    with World(tweak=fixed) as world:
        world.feed(stranger)
        assert world.nat.observed4 == GUEST4
    with World() as world:
        for frame in (
            ip_frame(frames.FAR4, GATEWAY4, 17, bytes(4))[:30],
            udp_frame(b"\x7f\0\0\1", GATEWAY4, 7, 7, b"x"),
            udp_frame(b"\xef\0\0\1", GATEWAY4, 7, 7, b"x"),
            udp_frame(GATEWAY4, GUEST4, 7, 7, b"x"),
        ):
            world.feed(frame)
            assert world.nat.observed4 == GUEST4
        world.feed(stranger)
        assert world.nat.observed4 == frames.FAR4


def test_stale_references_after_a_slot_was_reused() -> None:
    """Flows end and others take their index and descriptor in one round; events find the right."""
    with World() as world:
        for number in range(60):
            key = 5000 + number % 3
            world.feed(udp_frame(GUEST4, frames.FAR4, key, 7, bytes((number,))))
            world.feed(echo_frame(GUEST4, frames.FAR4, key, number, b"x"))
            world.feed(ip_frame(GUEST4, GATEWAY4, 6, frames.segment(key, 80, number, 0, 2)))
            world.settle()
            for flow in world.table.flows()[number % 4 :]:
                world.end(flow)
            world.feed(udp_frame(GUEST4, frames.FAR4, key, 9, bytes((number,))))
        indices = [flow.index for flow in world.table.flows()]
        assert len(set(indices)) == len(indices) <= 12


@pytest.mark.parametrize("version", [4, 6])
def test_reset_followed_by_a_syn(version: int) -> None:
    """In one batch, many times: each SYN finds no trace of the connection before."""
    with Host() as host:
        listener = host.listener(socket.AF_INET if version == 4 else socket.AF_INET6)
        before: Guest | None = None
        for number in range(20):
            guest = Guest(host, listener.getsockname()[1], version=version, isn=number * 1000)
            batch = [guest.frame(SYN, options=guest.options)]
            if before is not None:
                batch.insert(0, before.frame(RST))
            host.feed(*batch)
            host.until(lambda: host.link.sent)
            (reply,) = host.take()
            guest.ack = reply.next_seq
            guest.send(ACK)
            assert host.table.count == 1
            before = guest


def test_inbound_connection_reset_in_its_handshake() -> None:
    """A reset instead of an answer, then a SYN of the guest's own on the same tuple."""
    with Host() as host:
        guest, peer, _ = inbound(host)
        guest.send(RST)
        assert host.table.count == 0
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
