"""TCP timers towards a guest that does not answer: when segments are repeated, when no more.

All scenarios run at the same time against one pasta, for both IP versions; the tests then look at
what was recorded. That takes as long as the longest schedule: 19 s for a handshake (spec: SYNs at
0, 1, 2, 3, 4, 5, 7, 11 s, reset at 19 s, with the kernel's default retry settings).
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest

from tests.system.kit import topology as net
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.rawguest import RawGuest
from tests.system.kit.rawtcp import MODULUS, RawTcp, Segment, accept
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PORT = 7002
DURATION = 20.5
TOLERANCE = 0.35


class Recording:
    """What one IP version's scenarios have left: segments by scenario, and the peers' sockets."""

    def __init__(self, guest: RawGuest, topology: Topology, version: int) -> None:
        self.guest = guest
        self.peers: dict[str, socket.socket] = {}
        self.connections: dict[str, RawTcp] = {}
        self.ended: dict[str, tuple[float, str]] = {}
        remote, address = topology.remote, net.REMOTE[version]
        self.started = time.monotonic()

        # Inbound, never answered; and answered, but late.
        for name in ("syn", "late"):
            since = guest.position()
            client = remote.connect(net.HOST[version], 7001, source=(address, 0))
            self.peers[name] = client
            port = client.getsockname()[1]
            raw, _ = accept(guest, version, 7001, since=since, answer=False, peer_port=port)
            self.connections[name] = raw
        self.peers["late"].sendall(b"late but whole")

        with remote.listen(address, PORT) as listener:
            for name in ("synack", "data", "fin"):
                raw = RawTcp(guest, version, address, PORT)
                self.connections[name] = raw
                if name == "synack":
                    raw.send("S")
                    raw.expect(lambda s: s.flags == "SA")
                else:
                    raw.connect()
                server, _ = listener.accept()
                remote.processes.sockets.add(server)
                self.peers[name] = server
        time.sleep(0.1)
        self.sent = time.monotonic()
        self.peers["data"].sendall(b"unheard" * 100)
        self.peers["fin"].close()

    def watch(self) -> None:
        """Note when the peers' connections end, and how."""
        for name, peer in self.peers.items():
            if name in self.ended or peer.fileno() < 0:
                continue
            peer.setblocking(False)
            try:
                peer.recv(1)
            except BlockingIOError:
                continue
            except OSError as error:
                how = errno.errorcode[error.errno or 0]
            else:
                how = "EOF"
            self.ended[name] = (time.monotonic() - self.started, how)

    def answer_late(self) -> None:
        """Answer the first SYN of ``late``, after several have been sent."""
        raw = self.connections["late"]
        first = raw.segments()[0]
        raw.ack = (first.seq + 1) % MODULUS
        raw.send("SA", options=[("MSS", 1460)])

    def segments(self, name: str) -> list[Segment]:
        """Return what pasta sent on the connection of scenario *name*."""
        return self.connections[name].segments()


@pytest.fixture(scope="module")
def recordings(
    shared_topology: Topology, program: Program, user: User
) -> Iterator[dict[int, Recording]]:
    """The recordings for IPv4 and IPv6."""
    pasta = Pasta(program, shared_topology.host, user, "-t", "7001", config_net=False)
    guest = RawGuest(pasta)
    guest.ready()
    both = {version: Recording(guest, shared_topology, version) for version in (4, 6)}
    late = False
    while time.monotonic() < both[6].started + DURATION:
        time.sleep(0.05)
        for recording in both.values():
            recording.watch()
        if not late and time.monotonic() > both[6].started + 2.5:
            late = True
            for recording in both.values():
                recording.answer_late()
    yield both
    guest.close()
    pasta.close()


@pytest.fixture
def recording(recordings: dict[int, Recording], version: int) -> Recording:
    """The recording for one version."""
    return recordings[version]


def assert_schedule(segments: list[Segment], expected: list[float], start: float) -> None:
    """Compare times of arrival, in seconds after *start*, with a schedule."""
    times = [segment.time - start for segment in segments]
    shown = [round(value, 2) for value in times]
    assert len(times) == len(expected), shown
    for seen, wanted in zip(times, expected, strict=True):
        assert abs(seen - wanted) < TOLERANCE, shown


def test_syn_schedule(recording: Recording) -> None:
    syns = [s for s in recording.segments("syn") if s.flags == "S"]
    assert_schedule(syns, [0, 1, 2, 3, 4, 5, 7, 11], syns[0].time)


def test_handshake_ends_in_reset_of_both_sides(recording: Recording) -> None:
    when, how = recording.ended["syn"]
    assert how == "ECONNRESET"
    assert abs(when - 19) < 1.2
    last = recording.segments("syn")[-1]
    assert "R" in last.flags
    assert abs(last.time - recording.started - 19) < 1.2


def test_repeated_syn_is_identical(ours_only: None, recording: Recording) -> None:
    syns = [s for s in recording.segments("syn") if s.flags == "S"]
    assert len({s.seq for s in syns}) == 1
    assert len({(s.window, tuple(s.options.items())) for s in syns}) == 1


def test_late_answer_to_first_syn(ours_only: None, recording: Recording) -> None:
    """Data starts at the ISN of the SYN that was answered, plus one."""
    segments = recording.segments("late")
    data = [s for s in segments if s.payload]
    assert data[0].payload == b"late but whole"
    assert data[0].seq == (segments[0].seq + 1) % MODULUS


def test_syn_ack_is_repeated_as_it_was(ours_only: None, recording: Recording) -> None:
    segments = [s for s in recording.segments("synack") if "S" in s.flags]
    assert len(segments) >= 6
    assert {s.flags for s in segments} == {"SA"}
    assert len({(s.seq, s.ack) for s in segments}) == 1


def test_data_schedule(recording: Recording) -> None:
    data = [s for s in recording.segments("data") if s.payload]
    assert len({(s.seq, s.payload) for s in data}) == 1
    assert_schedule(data, [0, 1, 3, 7, 15], recording.sent)


def test_fin_schedule(recording: Recording) -> None:
    fins = [s for s in recording.segments("fin") if "F" in s.flags]
    assert len({s.seq for s in fins}) == 1
    assert_schedule(fins, [0, 1, 3, 7, 15], recording.sent)
