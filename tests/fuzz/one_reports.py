"""ICMP errors from anywhere about what the guest sent, with quotes that lie about their length.

The kernel matches an error to a socket and hands it over; type, code, MTU, the address of the
node that complains and the quoted bytes are still whatever that node put there.  So are the
control messages in which all this comes, as far as their decoder is concerned.

Input: a byte for the surroundings, then a program of reports, each about one of six flows.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from random import Random

from passt.syscalls.cmsg import cmsg_iter, gro_size, pktinfo
from passt.syscalls.errqueue import Report, _offender
from passt.syscalls.sockaddr import unpack
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.loop import EPOLLERR
from passt.userspace.udp.flow import UdpFlow
from tests.fuzz import frames, program
from tests.fuzz.frames import FAR4, FAR6
from tests.fuzz.mutate import havoc
from tests.fuzz.program import Step
from tests.fuzz.world import World
from tests.unit import fakes
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6

MAX_LEN = 4096
DICTIONARY = frames.DICTIONARY

_REPORT = struct.Struct("!BBBBI16sB")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class _Errors:
    """Stands for the reader of error queues."""

    def __init__(self) -> None:
        self.queue: list[Report] = []

    def read(self, _fd: int) -> Report | None:
        """The next report."""
        return self.queue.pop(0) if self.queue else None


def one(data: bytes) -> None:
    """Report errors about flows of either version and protocol."""
    first = data[0] if data else 0
    with World(mtu=576 if first & 1 else 1500, debug=bool(first & 2)) as world:
        assert world.udp is not None
        assert world.icmp is not None
        errors = _Errors()
        world.udp._errors = world.icmp._errors = errors  # type: ignore[assignment]
        flows = _flows(world)
        for operation, operand in program.decode(data[1:], 3):
            if operation == 2:
                _control(operand)
                continue
            report = _report(operand, flows)
            if report is None:
                continue
            flow = flows[operand[0] % len(flows)]
            errors.queue.append(report)
            if operation == 1:
                # One more, about the same.
                errors.queue.append(report)
            if isinstance(flow, EchoFlow):
                world.icmp.ready(flow, EPOLLERR)
            else:
                world.udp.ready(flow, EPOLLERR)
            errors.queue.clear()
            world.settle()


def _flows(world: World) -> list[UdpFlow | EchoFlow]:
    """A query and a ping of each version, and a datagram to everybody."""
    for frame in (
        fakes.udp_frame(GUEST4, FAR4, 5000, 53, b"question"),
        fakes.udp_frame(GUEST6, FAR6, 5000, 53, b"question"),
        fakes.udp_frame(GUEST4, GATEWAY4, 5001, 53, b""),
        fakes.udp_frame(GUEST4, b"\xff" * 4, 5000, 53, b"to all"),
        fakes.echo_frame(GUEST4, FAR4, 7, 1, b"data"),
        fakes.echo_frame(GUEST6, GATEWAY6, 7, 1, b"data"),
    ):
        world.feed(frame)
    world.settle()
    found = [flow for flow in world.table.flows() if isinstance(flow, (UdpFlow, EchoFlow))]
    assert len(found) == 6
    return found


def _report(operand: bytes, flows: list[UdpFlow | EchoFlow]) -> Report | None:
    """The report that ``operand`` describes: flow, origin, type, code, MTU, offender, payload."""
    if len(operand) < _REPORT.size:
        return None
    which, origin, kind, code, info, node, form = _REPORT.unpack_from(operand)
    flow = flows[which % len(flows)]
    v4 = flow.v4 if isinstance(flow, EchoFlow) else len(flow.host_key) == 12
    report = Report(_sockaddr(form, node), operand[_REPORT.size :])
    report.errno = 111
    report.origin = (2 if v4 else 3) if origin < 192 else origin & 7
    report.type, report.code, report.info = kind, code, info
    report.offender = _sockaddr(form >> 4 if form & 1 else 0 if v4 else 1, node)
    report.local = node if form & 2 else None
    return report


def _sockaddr(form: int, node: bytes) -> bytes:
    """A raw address: of IPv4, of IPv6, none, or neither."""
    form &= 3
    if form == 0:
        return struct.pack("=H", socket.AF_INET) + bytes(2) + node[:4] + bytes(8)
    if form == 1:
        return struct.pack("=H", socket.AF_INET6) + bytes(6) + node + bytes(4)
    return b"" if form == 2 else node


def _control(operand: bytes) -> None:
    """Control messages of any form: decoders find what is whole, and do not raise."""
    view = memoryview(operand)
    total = sum(len(content) for _, _, content in cmsg_iter(view))
    assert total <= len(operand), "more content than there is"
    info = pktinfo(view)
    assert info is None or len(info[0]) in (4, 16)
    assert gro_size(view) >= 0
    node = _offender(view)
    assert len(node) in (0, 16, 28)
    assert len(unpack(node)[0]) in (0, 4, 16)
    assert len(unpack(operand)[0]) in (0, 4, 16)


def _step(which: int, kind: int, code: int, info: int, node: bytes, quote: bytes) -> Step:
    head = _REPORT.pack(which, 0, kind, code, info, node.ljust(16, b"\0"), 0)
    return 0, head + quote


def seeds() -> Iterator[tuple[str, bytes]]:
    """What real networks report, and quotes of all sizes."""
    router4, router6 = b"\xc6\x33\x64\x01", frames.GUEST_LL
    echo = bytes((8, 0, 0, 0, 0, 7, 0, 1))
    yield "usual", b"\0" + program.encode([
        _step(0, 3, 3, 0, FAR4, b"question"),
        _step(0, 3, 4, 1400, router4, b""),
        _step(1, 1, 4, 0, FAR6, b"question"),
        _step(1, 2, 0, 1280, router6, bytes(1400)),
        _step(2, 11, 0, 0, b"\x7f\0\0\1", bytes(8)),
        _step(3, 3, 3, 0, router4, b"to all"),
        _step(4, 11, 0, 0, router4, echo),
        _step(5, 3, 0, 0, router6, b"\x80" + echo[1:]),
    ])  # fmt: skip
    yield (
        "lengths",
        b"\1"
        + program.encode(
            _step(which, 3, 3, 0, router4 if which & 1 else FAR4, (echo * 260)[:size])
            for which in range(6)
            for size in (0, 1, 7, 8, 9, 2048)
        ),
    )
    yield "odd", b"\2" + program.encode([
        (0, _REPORT.pack(0, 255, 1, 2, 3, bytes(16), 0x31)),
        (1, _REPORT.pack(1, 0, 255, 255, 0xFFFFFFFF, b"\xff" * 16, 0x11)),
        (1, _REPORT.pack(4, 0, 5, 0, 0, bytes(10) + b"\xff\xff" + FAR4, 0x13)),
    ])  # fmt: skip
    recverr = struct.pack("=QiiIBBBBII", 48, 0, 11, 111, 2, 3, 3, 0, 0, 0)
    recverr += _sockaddr(0, FAR4)
    info = struct.pack("=Qii", 28, 0, 8) + struct.pack("=I", 2) + GUEST4 + FAR4
    yield "control", b"\0" + program.encode([(2, info.ljust(32, b"\0") + recverr), (2, recverr)])


def mutate(data: bytes, rnd: Random) -> bytes:
    """Other reports."""
    return data[:1] + program.mutate(data[1:], rnd, 3, _change, _fresh)


def _change(step: Step, rnd: Random) -> Step:
    operation, operand = step
    return operation, havoc(operand, rnd, limit=2100, dictionary=DICTIONARY)


def _fresh(rnd: Random) -> Step:
    nodes = (*frames.ADDRESSES4, *frames.ADDRESSES6)
    return _step(
        rnd.randrange(6), rnd.choice((1, 2, 3, 4, 11, 12)), rnd.randrange(16),
        rnd.choice((0, 68, 576, 1280, 65535, 1 << 31)), rnd.choice(nodes),
        rnd.randbytes(rnd.choice((0, 4, 8, 28, 548, 1232, 2048))),
    )  # fmt: skip
