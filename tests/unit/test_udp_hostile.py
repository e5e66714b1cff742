"""Whatever the guest sends: no exception, no datagram where it does not belong."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from tests.unit.fakes import GUEST4, GUEST6, ip_frame
from tests.unit.udp_rig import GUEST, Rig


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A translator whose sockets all lead to one on loopback, whatever they ask for."""
    sinks: dict[int, socket.socket] = {}

    class Confined(socket.socket):
        __slots__ = ()

        def bind(self, address):  # type: ignore[no-untyped-def]
            super().bind((sinks[self.family].getsockname()[0], 0))

        def connect(self, address):  # type: ignore[no-untyped-def]
            super().connect(sinks[self.family].getsockname())

    made = Rig()
    for version in (4, 6):
        sink = made.socket(version)
        sinks[sink.family] = sink
    monkeypatch.setattr("passt.userspace.udp.sockets.socket.socket", Confined)
    yield made
    made.close()


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """IP packets of protocol UDP with any content, some cut off or overwritten."""
    version = draw(st.sampled_from((4, 6)))
    size = 4 if version == 4 else 16
    source = draw(st.one_of(st.just(GUEST[version]), st.binary(min_size=size, max_size=size)))
    target = draw(st.binary(min_size=size, max_size=size))
    l4 = draw(st.binary(max_size=120))
    options = draw(st.sampled_from((b"", b"\x01" * 4, b"\x07" * 40))) if version == 4 else b""
    frame = bytearray(ip_frame(source, target, 17, l4, draw(st.integers(0, 255)), options))
    for position in draw(st.lists(st.integers(0, len(frame) - 1), max_size=3)):
        frame[position] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(14, len(frame)))])


@given(
    batch=st.lists(frames(), max_size=6),
    gso_size=st.sampled_from((0, 0, 0, 1, 7, 100, 65535)),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_frame(rig: Rig, batch: list[bytes], gso_size: int) -> None:
    services = Services(rig.config, rig.nat, rig.link, rig.loop)
    stack = Stack(rig.config, rig.nat, rig.link, None, rig.udp, None, services)
    rig.link.rx_gso_size = gso_size
    for frame in batch:
        stack.receive(memoryview(bytearray(frame)), 0, len(frame))
    stack.batch_end()
    rig.link.rx_gso_size = 0
    rig.loop.round(0.0)
    for flow in rig.flows():
        assert len(flow.guest_key) in (12, 36)
        assert not flow.parts
        assert not flow.touched
    assert not rig.udp._touched


def test_wholly_random_datagrams(rig: Rig) -> None:
    """Input as the stack guarantees it, everything else at its worst."""
    for version, l4, source in ((4, 34, GUEST4), (6, 54, GUEST6)):
        for fill in (0x00, 0x7F, 0xFF):
            frame = bytearray([fill]) * (l4 + 8)
            frame[l4 - 2 * len(source) : l4 - len(source)] = source
            rig.udp.input(memoryview(frame), 0, l4, len(frame), version)
            rig.udp.batch_end()
    rig.settle()
    assert all(flow.index >= 0 for flow in rig.flows())
