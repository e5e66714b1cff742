"""Conversations that go well, as programs for :mod:`tests.fuzz.run`: what mutations begin with."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator

from passt.userspace.wire.tcp_options import sack_option, syn_options
from tests.fuzz import frames
from tests.fuzz.frames import FAR4, FAR6, GUEST_LL
from tests.fuzz.program import Step
from tests.fuzz.run import NUMBERS
from tests.unit import fakes
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, ip_frame

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

#: In the operations "peer" and "clock".
SENDS, READS, SHUTS, CLOSES, RESETS, URGENT = range(6)


def step(name: str, *operands: bytes) -> Step:
    """One step."""
    return NUMBERS[name], b"".join(operands)


END = step("end")


def peer(action: int, amount: int = 0, which: int = 0) -> Step:
    """The far end of a connection does something."""
    return step("peer", struct.pack("!BBH", which, action, amount))


def clock(mantissa: int, exponent: int) -> Step:
    """(mantissa + 1) × 10^exponent seconds pass, exponent from −4 to 1."""
    return step("clock", bytes((mantissa, exponent + 4)))


class Client:
    """A guest that connects, in literal frames."""

    def __init__(self, version: int = 4, port: int = 40000, isn: int = 0xFFFFFF00) -> None:
        self.src, self.dst = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
        self.port = port
        self.seq = isn
        key = self.src + self.dst + struct.pack("!HH", port, 80)
        #: Everything up to here is acknowledged: our SYN, to begin with.
        self.ack = zlib.crc32(key) + 1

    def segment(self, flags: int, payload: bytes = b"", *, at: int = 0, options: bytes = b"",
                window: int = 0x4000) -> Step:  # fmt: skip
        """The next segment, or one ``at`` bytes further that is not counted."""
        l4 = frames.segment(
            self.port, 80, (self.seq + at) & 0xFFFFFFFF,
            self.ack & 0xFFFFFFFF if flags & ACK else 0, flags, payload,
            options=options, window=window,
        )  # fmt: skip
        if not at:
            self.seq += len(payload) + bool(flags & SYN) + bool(flags & FIN)
        return step("frame", ip_frame(self.src, self.dst, socket.IPPROTO_TCP, l4))

    def handshake(self) -> list[Step]:
        """Until the connection is there."""
        options = syn_options(536, 3, True)
        return [self.segment(SYN, options=options), END, self.segment(ACK), END]


def upload(version: int) -> list[Step]:
    """The guest sends, with a gap that it fills, and both finish."""
    guest = Client(version)
    return [
        *guest.handshake(),
        guest.segment(ACK | PSH, b"first"),
        guest.segment(ACK, b"fourth", at=20),
        guest.segment(ACK, b"third", at=10),
        END,
        guest.segment(ACK | PSH, b"second" * 5),
        END,
        peer(READS, 100),
        clock(0, 0),
        guest.segment(ACK | FIN),
        END,
        peer(SHUTS),
        END,
        *acknowledge(guest, 1),
    ]


def acknowledge(guest: Client, count: int) -> list[Step]:
    """The guest acknowledges so many more bytes."""
    guest.ack += count
    return [guest.segment(ACK), END]


def download(version: int) -> list[Step]:
    """The peer sends; a segment is lost, and selectively acknowledged."""
    guest = Client(version)
    steps = [*guest.handshake(), peer(SENDS, 3000), END]
    guest.ack += 536
    blocks = [((guest.ack + 536) & 0xFFFFFFFF, (guest.ack + 1072) & 0xFFFFFFFF)]
    steps += [guest.segment(ACK, options=sack_option(blocks)) for _ in range(3)]
    steps += [END, clock(2, 0)]
    steps += acknowledge(guest, 3000 - 536)
    steps += [peer(URGENT), peer(SENDS, 9), peer(CLOSES), END, *acknowledge(guest, 11)]
    return [*steps, guest.segment(ACK | FIN), END]


def window() -> list[Step]:
    """The guest closes its window, is probed, opens it, falls silent, and is reset."""
    guest = Client()
    return [
        *guest.handshake(),
        guest.segment(ACK, window=0),
        peer(SENDS, 2000),
        END,
        clock(4, 0),
        guest.segment(ACK, at=-1, window=200),
        END,
        clock(99, 1),
    ]


def restart() -> list[Step]:
    """A reset and a SYN of the same tuple in one batch, then a stray."""
    guest = Client()
    steps = [*guest.handshake(), guest.segment(RST)]
    steps += Client(isn=77).handshake()
    steps += [guest.segment(ACK), Client(port=9).segment(ACK), Client(port=9).segment(RST)]
    return [*steps, END]


def call(version: int) -> list[Step]:
    """A host connects to the guest, which answers."""
    source, target = (FAR4, GUEST4) if version == 4 else (FAR6, GUEST6)
    isn = zlib.crc32(target + source + struct.pack("!HH", 80, 7))

    def answer(flags: int, seq: int, payload: bytes = b"", options: bytes = b"") -> Step:
        l4 = frames.segment(80, 7, seq, (isn + 1) & 0xFFFFFFFF, flags, payload, options=options)
        return step("frame", ip_frame(target, source, socket.IPPROTO_TCP, l4))

    return [
        step("call", bytes((version == 4,)), source.ljust(16, b"\0"), b"\0\7"),
        END,
        answer(SYN | ACK, 5, options=syn_options(1460, None, False)),
        END,
        peer(SENDS, 10),
        answer(ACK | PSH, 6, b"welcome"),
        END,
        peer(READS, 100),
        peer(RESETS),
        END,
    ]


def datagrams(version: int) -> list[Step]:
    """Trains both ways, another hop limit, and silence until the flow ends."""
    src, dst = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
    frame = fakes.udp_frame(src, dst, 5000, 53, b"question")
    other = fakes.udp_frame(src, dst, 5000, 53, b"quest", ttl=2)
    train = fakes.udp_frame(src, dst, 5000, 53, b"0123456789" * 7)
    return [
        *(step("frame", frame),) * 3,
        step("frame", other),
        END,
        step("answer", b"\0", b"answer"),
        step("answer", b"\1", b"answer"),
        step("answer", b"\2", b""),
        END,
        step("superframe", b"\0\x0a", train),
        END,
        clock(12, 1),
    ]


def called(version: int) -> list[Step]:
    """Datagrams to a forwarded port, from two clients."""
    first = b"\0" if version == 4 else b"\2"
    return [
        step("send", first, b"one"),
        step("send", first, b"two"),
        step("send", bytes((first[0] + 1,)), b"three"),
        END,
        clock(1, 0),
        step("send", first, b""),
        END,
    ]


def stream(version: int) -> list[Step]:
    """Many datagrams from one client at once, of one size and of several, and answers."""
    which = b"\0" if version == 4 else b"\2"
    guest, gateway = (GUEST4, GATEWAY4) if version == 4 else (GUEST6, GATEWAY6)
    few = fakes.udp_frame(guest, gateway, 53, 5000, b"x" * 300)
    return [
        step("send", which, b"first"),
        END,
        *[step("send", which, b"y" * 50)] * 12,
        END,
        *[step("send", which, b"z" * size) for size in (50, 50, 20, 0, 70)],
        END,
        *[step("send", which, b"w" * 60)] * 3,
        step("send", which, b"the last"),
        END,
        *[step("answer", bytes((number,)), b"answer") for number in range(3)],
        END,
        # A superframe of as many datagrams as there may be, and of one more.
        step("superframe", b"\0\3", few),
        step("superframe", b"\0\2", few),
        END,
    ]


def moves(version: int) -> list[Step]:
    """A guest with a bit of everything, whose host goes from one network to another."""
    some = [*upload(version)[:6], *datagrams(version)[:3], *echo(version)[:3], *groups(version)[:5]]
    return [
        step("frame", frames.samples()["router-solicitation"]),
        *some,
        step("renew", b"\x01"),
        END,
        *some,
        step("renew", b"\xc6"),
        clock(1, 0),
        step("renew", b"\x8b"),
        *some,
        step("renew", b"\xc0"),
        step("frame", frames.samples()["dhcp-request"]),
        END,
    ]


def groups(version: int) -> list[Step]:
    """The guest listens to a group, sends to it, is asked, listens to some only, and leaves."""
    v4 = version == 4
    group, one, other = (
        (frames.GROUP4, FAR4, GATEWAY4) if v4 else (frames.GROUP6_FAR, FAR6, GATEWAY6)
    )

    def report(kind: int, *sources: bytes) -> Step:
        listed = frames.records((kind, group, sources))
        return step("frame", frames.igmp(0x22, listed) if v4 else frames.mld(143, listed))

    guest = GUEST4 if v4 else GUEST6
    question = fakes.udp_frame(guest, group, 5000, 5353, b"question")
    return [
        report(4),
        step("frame", question),
        END,
        step("answer", b"\0answer"),
        step("tell", b"\0to all"),
        END,
        report(6, other),
        step("tell", b"\0not to hear"),
        END,
        report(3, one, other),
        step("tell", b"\0to hear"),
        step("tell", b"\0again"),
        clock(12, 1),
        report(1, one, other),
        clock(1, 1),
        # Nobody confirms any more.
        clock(29, 1),
        report(2, other),
        step("fault", bytes((1, 0, 0, 0))),
        step("frame", fakes.udp_frame(guest, group, 5353, 5353, b"by a shared port")),
        END,
        report(3),
        END,
    ]


def refusals() -> list[Step]:
    """Nobody listens, there is no way, there are no sockets, and the link is full."""
    syn = Client().segment(SYN)[1]
    udp = fakes.udp_frame(GUEST6, FAR6, 7, 7, b"x")
    return [
        step("refuse", b"\1"),
        step("frame", syn),
        END,
        step("fault", bytes((2, 0, 0, 1))),
        step("frame", syn),
        step("frame", udp),
        END,
        step("fault", bytes((0, 1, 0, 3))),
        step("frame", syn),
        step("frame", udp),
        step("link", b"\1"),
        step("frame", frames.arp(1, GUEST4, GATEWAY4)),
        END,
    ]


def echo(version: int) -> list[Step]:
    """Requests and replies, and a code that no kernel sends."""
    src, dst = (GUEST4, FAR4) if version == 4 else (GUEST_LL, GATEWAY6)
    return [
        step("frame", fakes.echo_frame(src, dst, 7, 1, b"data")),
        step("frame", fakes.echo_frame(src, dst, 7, 2, b"", ttl=1)),
        END,
        step("answer", b"\0", b"x"),
        step("answer", b"\1", b"nonsense"),
        END,
        step("fault", bytes((8, 0, 8, 2))),
        step("frame", fakes.echo_frame(src, dst, 7, 3, bytes(600), code=1)),
        END,
        clock(9, 1),
    ]


def all_of_them() -> Iterator[tuple[str, list[Step]]]:
    """By name."""
    for version in (4, 6):
        yield f"upload{version}", upload(version)
        yield f"download{version}", download(version)
        yield f"call{version}", call(version)
        yield f"datagrams{version}", datagrams(version)
        yield f"called{version}", called(version)
        yield f"echo{version}", echo(version)
        yield f"groups{version}", groups(version)
        yield f"stream{version}", stream(version)
        yield f"moves{version}", moves(version)
    yield "window", window()
    yield "restart", restart()
    yield "refusals", refusals()
