"""The stored inputs once more: what was found stays fixed, and seeds are what scripts make."""

from __future__ import annotations

import os

import pytest

from passt.syscalls import bare_socket
from tests.fuzz import oracle
from tests.fuzz.catalogue import CORPUS, NAMES, Harness, inputs
from tests.fuzz.engine import Find, attempt
from tests.fuzz.world import World
from tests.unit.fakes import Prefix

#: Bytes of one corpus: it is read by people, and kept by git for ever.
MAX_SIZE = 100_000

#: Frames that scapy, which is slow, looks at.
MOST = 300


@pytest.mark.parametrize("name", NAMES)
def test_replay(name: str) -> None:
    harness = Harness(name)
    found = inputs(os.path.join(CORPUS, name))
    assert found
    for file, data in found.items():
        error = attempt(harness.one, data)
        assert error is None, f"{file}: {Find(name, data, error).text}"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_stored(name: str) -> None:
    """After a change of a script: ``python -m tests.fuzz seeds NAME``."""
    stored = inputs(os.path.join(CORPUS, name))
    seeds = {label.removeprefix("seed-"): data for label, data in stored.items()
             if label.startswith("seed-")}  # fmt: skip
    assert seeds == Harness(name).seeds()


@pytest.mark.parametrize("name", NAMES)
def test_corpora_are_small(name: str) -> None:
    assert sum(map(len, inputs(os.path.join(CORPUS, name)).values())) < MAX_SIZE


def test_frames_are_what_scapy_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third decoder, and the only one that knows the formats of DHCP and Neighbour Discovery.

    One frame of each kind and size that the stack sends while its corpus is replayed.
    """
    from scapy.layers import dhcp, dhcp6, inet6  # noqa: F401 - known by being imported
    from scapy.layers.l2 import Ether
    from scapy.packet import Raw

    kinds: dict[object, bytes] = {}
    original = oracle.outgoing

    def outgoing(prefix: Prefix, frame: bytes, our_mac: bytes) -> oracle.Outgoing:
        found = original(prefix, frame, our_mac)
        if not prefix.gso_type and len(kinds) < MOST:
            start = {"arp": 14, "query": 14}.get(str(found.kind), 34 if len(found.src) == 4 else 54)
            whole = frame[:start] + found.l4 + frame[start + len(found.l4) :]
            kinds.setdefault((found.kind, len(frame), found.l4[:1]), whole)
        return found

    monkeypatch.setattr(oracle, "outgoing", outgoing)
    harness = Harness("stack")
    for data in harness.corpus():
        error = attempt(harness.one, data)
        assert error is None, Find("stack", data, error).text
    assert len(kinds) > 20
    for frame in kinds.values():
        packet = Ether(frame)
        assert bytes(packet) == frame
        rebuilt = packet.copy()
        layer = rebuilt
        # Down to what an error quotes, which need not be complete.
        while layer and not isinstance(layer, Raw) and " in ICMP" not in layer.name:
            for field in ("chksum", "cksum", "len", "plen"):
                if field in layer.fields and not (field == "chksum" and layer.name == "UDP"):
                    layer.delfieldval(field)
            layer = layer.payload
        assert bytes(rebuilt) == frame, packet.summary()


def test_worlds_leave_nothing_behind() -> None:
    """The modules under test have their own sockets and log again."""
    import socket

    import passt.userspace.tcp.tcp
    from passt.userspace import log

    before = log.emit, log._threshold
    with World():
        assert passt.userspace.tcp.tcp.socket is not socket
    assert passt.userspace.tcp.tcp.socket is bare_socket
    assert (log.emit, log._threshold) == before
