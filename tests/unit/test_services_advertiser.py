"""Unsolicited router advertisements: when they begin, how often, and what stops them."""

from __future__ import annotations

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import Ether

from passt.userspace.config.model import Config
from passt.userspace.services import services
from tests.unit.services_rig import MAC_TEXT, Rig, dissect


def solicit(message: object, src: str = "fe80::15") -> Ether:
    return Ether(src=MAC_TEXT, dst="33:33:00:00:00:02") / IPv6(src=src, dst="ff02::2") / message


def test_first_solicitation_starts_them() -> None:
    rig = Rig()
    rig.advance(3600)
    assert rig.link.sent == []
    for _ in range(5):
        assert rig.ask(solicit(ICMPv6ND_RS())) is not None
    intervals = []
    last = rig.time
    while len(intervals) < 50:
        rig.advance(1)
        if rig.link.sent:
            ((_, raw),) = rig.link.sent
            rig.link.sent.clear()
            packet = dissect(raw)
            assert (packet[IPv6].dst, packet[IPv6].src) == ("ff02::1", "fe80::1")
            assert packet[ICMPv6ND_RA].routerlifetime == 65535
            intervals.append(rig.time - last)
            last = rig.time
    assert min(intervals) >= 200 and max(intervals) <= 601
    assert max(intervals) - min(intervals) > 100
    assert len(set(intervals)) > 25
    rig.close()


def test_none_without_router_advertisements() -> None:
    for name in ("ra", "ndp"):

        def tweak(config: Config, name: str = name) -> None:
            config.ra = False
            if name == "ndp":
                config.ndp = False

        rig = Rig(tweak)
        assert rig.ask(solicit(ICMPv6ND_RS())) is None
        rig.advance(100_000)
        assert rig.link.sent == []
        rig.close()


def test_neighbours_are_answered_without_limit_routers_are_not() -> None:
    rig = Rig()
    question = solicit(ICMPv6ND_NS(tgt="2001:db8::77"))
    for _ in range(4 * services.BURST):
        assert rig.send(question)
        assert not rig.send(solicit(ICMPv6ND_NA(tgt="fe80::15")))
    answers = [rig.send(solicit(ICMPv6ND_RS())) for _ in range(4 * services.BURST)]
    assert sum(map(bool, answers)) == services.BURST
    rig.close()
