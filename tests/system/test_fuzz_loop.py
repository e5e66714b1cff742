"""The running program under a guest that goes mad: frames, right, nearly right and wrong.

A raw guest (kit/rawguest.py) sends what tests/fuzz makes: samples of every protocol and their
mutations, segments of live connections with anything about them a little off, datagrams and pings
that a server answers, and noise, some of it as superframes. All the while the program must
take part in an ordinary exchange now and then; afterwards it must be as it was before.

FUZZ_LOOP is the number of seconds, 8 by default; with 60 or more the end of all flows is waited
for, to see that their descriptors and memory are given back. FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from passt.userspace.multicast.members import MAX_SOCKETS
from tests.fuzz import frames
from tests.system.conftest import StartGuest
from tests.system.kit import offload
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import DEFAULT_MAC
from tests.system.kit.rawguest import ICMP, UDP, RawGuest
from tests.system.kit.rawtcp import RawTcp
from tests.unit import fakes

pytestmark = pytest.mark.system

SECONDS = float(os.environ.get("FUZZ_LOOP", "8"))
PORT = 7002
ACK, PSH, FIN, SYN, RST = 16, 8, 1, 2, 4
MASK = 0xFFFFFFFF

OUR_MAC = bytes.fromhex(DEFAULT_MAC.replace(":", ""))


@pytest.fixture
def time_limit() -> Iterator[None]:
    """As of conftest.py, with the time that was asked for."""
    before = signal.signal(signal.SIGALRM, _expire)
    signal.alarm(int(SECONDS) + 300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _expire(_number: int, _frame: object) -> None:
    raise AssertionError("no end")


@pytest.fixture
def echoes(remote: Netns) -> Iterator[None]:
    """Servers of both versions that send back what they get, TCP and UDP."""
    stop = threading.Event()
    threads = []
    sockets = []

    def serve_datagrams(sock: socket.socket) -> None:
        sock.settimeout(0.2)
        while not stop.is_set():
            try:
                data, source = sock.recvfrom(65536)
                sock.sendto(data, source)
            except OSError:
                continue

    def serve_connections(listener: socket.socket) -> None:
        listener.settimeout(0.2)
        open_ones: list[socket.socket] = []
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
                sock.setblocking(False)
                open_ones.append(sock)
            except OSError:
                pass
            for sock in open_ones[:]:
                try:
                    data = sock.recv(65536)
                    if not data:
                        raise OSError
                    sock.send(data)
                except BlockingIOError:
                    continue
                except OSError:
                    sock.close()
                    open_ones.remove(sock)
            if len(open_ones) > 200:
                open_ones.pop(0).close()
        for sock in open_ones:
            sock.close()

    for version in (4, 6):
        pairs = (
            (serve_datagrams, remote.udp(net.REMOTE[version], PORT)),
            (serve_connections, remote.listen(net.REMOTE[version], PORT)),
        )
        for serve, sock in pairs:
            sockets.append(sock)
            threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
            threads[-1].start()
    yield
    stop.set()
    for thread in threads:
        thread.join()
    for sock in sockets:
        sock.close()


class Connection:
    """What the guest knows of one of its connections: the next numbers of both sides."""

    def __init__(self, mad: MadGuest, version: int, port: int) -> None:
        self.mad = mad
        self.version = version
        self.port = port
        self.seq = mad.rnd.getrandbits(32)
        self.ack = 0
        self.open = False
        self.got = bytearray()

    def send(self, flags: int, payload: bytes = b"", *, seq: int = 0, ack: int = 0,
             window: int = 0x4000) -> None:  # fmt: skip
        """A segment, ``seq`` and ``ack`` away from the right numbers."""
        l4 = frames.segment(
            self.port, PORT, (self.seq + seq) & MASK, (self.ack + ack) & MASK, flags, payload,
            window=window,
        )  # fmt: skip
        self.mad.send(self.mad.ip(self.version, socket.IPPROTO_TCP, l4))
        if not seq:
            self.seq = (self.seq + len(payload) + bool(flags & (SYN | FIN))) & MASK

    def receive(self, l4: bytes) -> None:
        """A segment came: take it into account if it is the next one."""
        seq, flags = int.from_bytes(l4[4:8], "big"), l4[13]
        payload = l4[(l4[12] >> 4) * 4 :]
        if flags & RST:
            self.open = False
        elif flags & SYN:
            self.ack = (seq + 1) & MASK
            self.open = True
        elif seq == self.ack:
            self.ack = (seq + len(payload) + bool(flags & FIN)) & MASK
            self.got += payload


class MadGuest:
    """Sends by *guest*, and follows what comes back."""

    def __init__(self, guest: RawGuest, seed: int) -> None:
        self.guest = guest
        self.rnd = random.Random(seed)
        self.mac = bytes.fromhex(guest.mac.replace(":", ""))
        self.sent = self.refused = 0
        self._seen = 0
        self.connections: dict[tuple[int, int], Connection] = {}
        self._ports = iter(range(20000, 60000))
        replaced = {
            fakes.GUEST4: packed(net.HOST[4]),
            fakes.GATEWAY4: packed(net.GATEWAY[4]),
            frames.FAR4: packed(net.REMOTE[4]),
            fakes.GUEST6: packed(net.HOST[6]),
            fakes.GATEWAY6: packed(net.GATEWAY[6]),
            frames.FAR6: packed(net.REMOTE[6]),
            fakes.GUEST_MAC: self.mac,
        }
        self.samples = []
        for frame in frames.samples().values():
            for old, new in replaced.items():
                frame = frame.replace(old, new)
            self.samples.append(frame)

    def ip(self, version: int, protocol: int, l4: bytes) -> bytes:
        """A frame to the server."""
        frame = fakes.ip_frame(packed(net.HOST[version]), packed(net.REMOTE[version]), protocol, l4)
        return OUR_MAC + self.mac + frame[12:]

    def send(self, frame: bytes, header: bytes = offload.NO_HEADER) -> None:
        """Send *frame*; the kernel refuses some."""
        try:
            self.guest.socket.send(header + frame)
            self.sent += 1
        except (OSError, TimeoutError):
            self.refused += 1

    def follow(self) -> None:
        """Look at the segments that arrived since the last time."""
        seen = self.guest.frames
        while self._seen < len(seen):
            raw = seen[self._seen].raw
            self._seen += 1
            version, at = (4, 34) if raw[12:14] == b"\x08\x00" else (6, 54)
            protocol = raw[23] if version == 4 else raw[20]
            if protocol != socket.IPPROTO_TCP or len(raw) < at + 20:
                continue
            end = 14 + (int.from_bytes(raw[16:18], "big") if version == 4 else len(raw) - 14)
            connection = self.connections.get(
                (version, int.from_bytes(raw[at + 2 : at + 4], "big"))
            )
            if connection is not None:
                connection.receive(raw[at:end])

    def connect(self, version: int) -> Connection:
        """Begin a connection to the server."""
        connection = Connection(self, version, next(self._ports))
        self.connections[version, connection.port] = connection
        connection.send(SYN)
        return connection

    def burst(self) -> None:
        """Thirty-two frames of any kind."""
        rnd = self.rnd
        self.follow()
        for _ in range(32):
            kind = rnd.random()
            if kind < 0.45:
                self.mutated()
            elif kind < 0.85:
                self.segment()
            elif kind < 0.95:
                payload = rnd.randbytes(rnd.choice((0, 1, 8, 100, 1400)))
                version = rnd.choice((4, 6))
                l4 = struct.pack("!HHHH", rnd.randrange(9000, 9016), PORT, 8 + len(payload), 0)
                self.send(self.ip(version, socket.IPPROTO_UDP, l4 + payload))
            else:
                self.send(rnd.randbytes(rnd.choice((14, 15, 34, 60, 1500, 60000))))

    def mutated(self) -> None:
        """A sample, changed now and again; sometimes with a header that promises anything."""
        rnd = self.rnd
        frame = rnd.choice(self.samples)
        for _ in range(rnd.choice((0, 1, 1, 2, 3))):
            frame = frames.mutate(frame, rnd)
        header = offload.NO_HEADER
        if rnd.random() < 0.1:
            header = offload.HEADER.pack(
                rnd.choice((0, 1)), rnd.choice((0, 1, 4, 5)), rnd.choice((34, 42, 54, 62, 74)),
                rnd.choice((1, 8, 536, 1460)), rnd.choice((0, 34, 54)), rnd.choice((6, 16)),
            )  # fmt: skip
        self.send(frame, header)

    def segment(self) -> None:
        """A segment of a live connection, with something a little off."""
        rnd = self.rnd
        live = [one for one in self.connections.values() if one.open]
        if len(live) < 6 and len(self.connections) < 5000:
            self.connect(rnd.choice((4, 6)))
            return
        if not live:
            return
        one = rnd.choice(live)
        payload = rnd.randbytes(rnd.choice((0, 0, 1, 5, 536, 1400)))
        deltas = (0, 0, 0, 0, 1, -1, 5, 1400, -1400, 65536, 1 << 24, 1 << 31)
        flags = rnd.choice(
            (ACK,) * 12 + (ACK | PSH,) * 12 + (ACK | FIN, SYN, SYN | ACK, RST, 0, 0xFF)
        )
        one.send(flags, payload, seq=rnd.choice(deltas), ack=rnd.choice(deltas),
                 window=rnd.choice((0, 1, 0x4000, 0xFFFF)))  # fmt: skip

    def canary(self, patience: float = 20.0) -> float:
        """An ordinary exchange in the middle of it; returns how many seconds it took."""
        began = time.monotonic()
        one = self.connect(self.rnd.choice((4, 6)))
        again = began + 1.0
        while not one.open:
            self._wait(began, patience, "answer to a SYN")
            if time.monotonic() > again:
                # As any guest would.
                again += 1.0
                one.seq -= 1
                one.send(SYN)
        one.send(ACK)
        message = b"a canary sings"
        one.send(ACK | PSH, message)
        while bytes(one.got) != message:
            self._wait(began, patience, "echo")
        one.send(ACK)
        one.send(RST)
        one.open = False
        return time.monotonic() - began

    def _wait(self, began: float, patience: float, what: str) -> None:
        assert self.guest.pasta.alive(), self.guest.pasta.messages()
        assert time.monotonic() < began + patience, f"no {what} within {patience:g} s"
        time.sleep(0.005)
        self.follow()


def packed(address: str) -> bytes:
    """*address* in bytes."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def test_mad_guest(start_guest: StartGuest, echoes: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o755)
    journal = tmp_path / "log"
    guest = start_guest("-t", "7001", "-u", "7001", "--log-file", str(journal))
    pasta = guest.pasta
    seed = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"FUZZ_SEED={seed}")
    mad = MadGuest(guest, seed)
    for _ in range(5):
        mad.canary()
    descriptors, memory = pasta.descriptors(), pasta.memory()["Rss"]
    began = time.monotonic()
    next_canary = began + 1.0
    slowest = 0.0
    most = 0
    while time.monotonic() < began + SECONDS:
        mad.burst()
        assert pasta.alive(), pasta.messages()
        if time.monotonic() > next_canary:
            slowest = max(slowest, mad.canary())
            next_canary = time.monotonic() + 1.0
            most = max(most, pasta.descriptors())
    lasted = time.monotonic() - began
    lines = journal.read_text().count("\n")
    print(
        f"{mad.sent} frames sent, {mad.refused} refused by the kernel, {len(guest.frames)} came "
        f"back in {lasted:.0f} s; slowest canary {slowest:.2f} s, {most} descriptors, {lines} lines"
    )
    assert mad.sent > 200 * SECONDS, "hardly anything was sent"
    assert "Traceback" not in journal.read_text()
    assert lines < 60 * lasted + 200, "a flood in the log"
    assert most < descriptors + 8000
    # No load without traffic, once retransmissions are over.
    for connection in mad.connections.values():
        if connection.open:
            connection.send(RST)
    wait_for(lambda: idle(guest), timeout=60.0, what="a quiet program")
    everything_works(guest)
    growth = pasta.memory()["Rss"] - memory
    print(f"{growth} KiB more, {pasta.descriptors() - descriptors} descriptors more")
    assert growth < 40000, f"{growth} KiB more than before"
    if SECONDS >= 60:
        # Group memberships live on for six minutes.
        most = descriptors + 20 + MAX_SOCKETS
        wait_for(lambda: pasta.descriptors() < most, timeout=200.0, what="end of flows")


def idle(guest: RawGuest) -> bool:
    """Whether the program used next to no processor time during half a second."""
    before = guest.pasta.cpu_seconds()
    time.sleep(0.5)
    return guest.pasta.cpu_seconds() - before < 0.05


def everything_works(guest: RawGuest) -> None:
    """TCP, UDP and ping, of both versions, seen by somebody else than who sent the noise."""
    for version in (4, 6):
        server = net.REMOTE[version]
        connection = RawTcp(guest, version, server, PORT)
        connection.connect(timeout=20.0)
        connection.send("PA", b"after the storm")
        assert connection.read(15, timeout=20.0) == b"after the storm"
        connection.reset()
        since = guest.position()
        guest.send(guest.ip(version, server) / UDP(sport=9999, dport=PORT) / b"datagram")
        guest.expect(lambda p: UDP in p and p[UDP].dport == 9999, timeout=10.0, since=since)
    since = guest.position()
    guest.send(guest.ip(4, net.REMOTE[4]) / ICMP(id=4711, seq=1) / b"ping")
    guest.expect(lambda p: ICMP in p and p[ICMP].id == 4711, timeout=10.0, since=since)
