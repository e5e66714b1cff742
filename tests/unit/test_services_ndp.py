"""NDP service: which solicitations are answered, with what, and from where."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.services.ndp import NdpService, offers
from passt.userspace.wire import drops, ndp
from tests.unit.fakes import config


def packed(text: str) -> bytes:
    """An IPv6 address as bytes."""
    return socket.inet_pton(socket.AF_INET6, text)


OUR_MAC = bytes.fromhex("9a559a559a55")
GUEST_MAC = b"\2\0\0\0\0\1"
OURS = packed("fe80::1")
ASSIGNED = packed("2001:db8:0:7:1:2:3:4")
GUEST_LL = packed("fe80::15")


def mtu_option(mtu: int) -> bytes:
    """An MTU option."""
    return ndp.option(ndp.MTU, ndp.mtu_body(mtu))


def service(**options: bool) -> NdpService:
    """A service in a typical network."""
    return NdpService(OUR_MAC, OURS, ASSIGNED, mtu_option(65520), **options)


def handle(
    message: Packet | bytes, src: bytes = GUEST_LL, answering: NdpService | None = None
) -> IPv6 | None:
    """The answer, if any, verified as far as it is common to all."""
    raw = bytes(message)
    buf = memoryview(b"\xee" * 10 + raw + b"\xee" * 60)
    reply = (answering or service()).handle(buf, 10, 10 + len(raw), src, GUEST_MAC)
    if reply is None:
        return None
    assert len(reply) >= 60
    frame = Ether(reply)
    assert (frame.dst, frame.src) == ("02:00:00:00:00:01", "9a:55:9a:55:9a:55")
    packet = frame[IPv6]
    assert (packet.src, packet.hlim, packet.tc, packet.fl) == ("fe80::1", 255, 0, 0)
    claimed = packet.payload.cksum
    copy = IPv6(packet.original)
    del copy.payload.cksum
    assert IPv6(bytes(copy)).payload.cksum == claimed
    return packet


@pytest.mark.parametrize(
    "target",
    ["fe80::1", "2001:db8:0:7::1", "2001:db8:0:7:1:2:3:4", "2606:4700::1111", "fe80::15"],
)
def test_any_unicast_target_is_claimed(target: str) -> None:
    reply = handle(ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01"))
    assert reply is not None
    assert reply.dst == "fe80::15"
    message = reply[ICMPv6ND_NA]
    assert (message.R, message.S, message.O, message.tgt) == (1, 1, 1, target)
    assert message[ICMPv6NDOptDstLLAddr].lladdr == "9a:55:9a:55:9a:55"


def test_duplicate_detection_is_not_answered() -> None:
    assert handle(ICMPv6ND_NS(tgt="2001:db8:0:7:1:2:3:4"), src=packed("::")) is None
    assert handle(ICMPv6ND_NS(tgt="2001:db8::77"), src=packed("::")) is None


@pytest.mark.parametrize("target", ["::", "::1", "ff02::1", "ff02::1:ff03:4"])
def test_targets_that_are_nobody(target: str) -> None:
    assert handle(ICMPv6ND_NS(tgt=target)) is None


def test_neighbours_show_their_own_mac() -> None:
    asked = []

    def mac_for(address: bytes) -> bytes:
        asked.append(address)
        return b"\4\0\0\0\0\7"

    answering = NdpService(OUR_MAC, OURS, ASSIGNED, b"", mac_for=mac_for)
    reply = handle(ICMPv6ND_NS(tgt="2001:db8::77"), answering=answering)
    assert reply is not None
    assert asked == [packed("2001:db8::77")]
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == "04:00:00:00:00:07"


def test_router_solicitation() -> None:
    reply = handle(ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01"))
    assert reply is not None
    assert reply.dst == "fe80::15"
    message = reply[ICMPv6ND_RA]
    assert (message.chlim, message.M, message.O, message.routerlifetime) == (255, 1, 0, 65535)
    prefix = message[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen) == ("2001:db8:0:7::", 64)
    assert message[ICMPv6NDOptSrcLLAddr].lladdr == "9a:55:9a:55:9a:55"
    assert message[ICMPv6NDOptMTU].mtu == 65520


def test_router_solicitation_without_source_is_answered_to_all_nodes() -> None:
    reply = handle(ICMPv6ND_RS(), src=packed("::"))
    assert reply is not None
    assert reply.dst == "ff02::1"


@pytest.mark.parametrize("address", [None, packed("fe80::77"), packed("febf::77")])
def test_no_prefix_without_global_address(address: bytes | None) -> None:
    reply = handle(ICMPv6ND_RS(), answering=NdpService(OUR_MAC, OURS, address, mtu_option(1500)))
    assert reply is not None
    assert ICMPv6NDOptPrefixInfo not in reply
    assert reply[ICMPv6NDOptMTU].mtu == 1500


def test_prefix_follows_the_assigned_address() -> None:
    answering = service()
    answering.guest_addr = packed("fec0:0:0:9::1")
    reply = handle(ICMPv6ND_RS(), answering=answering)
    assert reply is not None
    assert reply[ICMPv6NDOptPrefixInfo].prefix == "fec0:0:0:9::"


def test_prefixes_of_several_addresses() -> None:
    """Each /64 once, that of the assigned address first, and none that is link-local."""
    more = [packed(text) for text in ("fd00::9", "2001:db8:0:7::9", "fe80::9", "2001:db8:0:8::9")]
    reply = handle(
        ICMPv6ND_RS(), answering=NdpService(OUR_MAC, OURS, ASSIGNED, mtu_option(1500), more=more)
    )
    assert reply is not None
    found = []
    option = reply[ICMPv6ND_RA].payload
    while option:
        if isinstance(option, ICMPv6NDOptPrefixInfo):
            found.append((option.prefix, option.prefixlen, option.validlifetime))
        option = option.payload
    prefixes = ("2001:db8:0:7::", "fd00::", "2001:db8:0:8::")
    assert found == [(prefix, 64, 0xFFFFFFFF) for prefix in prefixes]
    assert reply[ICMPv6NDOptMTU].mtu == 1500


def test_no_mtu_option_without_mtu() -> None:
    reply = handle(ICMPv6ND_RS(), answering=NdpService(OUR_MAC, OURS, ASSIGNED, b""))
    assert reply is not None
    assert ICMPv6NDOptMTU not in reply


def configured(**attributes: object) -> NdpService:
    """A service with the further options of a configuration."""
    made = config()
    for name, value in attributes.items():
        family, _, field = name.partition("__")
        setattr(getattr(made, family) if field else made, field or name, value)
    return NdpService(OUR_MAC, OURS, ASSIGNED, offers(made))


def option_list(reply: IPv6 | None) -> list[tuple[int, bytes]]:
    """Types and bodies of the options of an advertisement, which fill it exactly."""
    assert reply is not None
    data = bytes(reply.payload)[16:]
    found = []
    while data:
        assert len(data) >= 8 and data[1]
        found.append((data[0], data[2 : data[1] * 8]))
        assert len(found[-1][1]) == data[1] * 8 - 2
        data = data[data[1] * 8 :]
    return found


def test_resolvers_and_search_list() -> None:
    told = {"v6__dns": [packed("2001:db8::53"), packed("::1")], "search": ["a.example", "b"]}
    reply = handle(ICMPv6ND_RS(), answering=configured(dhcp_dns=True, dhcp_search=True, **told))
    assert reply is not None
    assert [kind for kind, _ in option_list(reply)] == [3, 1, 5, 25, 31]
    resolvers = reply[ICMPv6NDOptRDNSS]
    assert (resolvers.dns, resolvers.lifetime) == (["2001:db8::53", "::1"], 0xFFFFFFFF)
    search = reply[ICMPv6NDOptDNSSL]
    assert (search.searchlist, search.lifetime) == (["a.example.", "b."], 0xFFFFFFFF)
    for switches in ({}, {"dhcp_search": True}):
        reply = handle(ICMPv6ND_RS(), answering=configured(**switches, **told))
        assert [kind for kind, _ in option_list(reply)] == [3, 1, 5]
    reply = handle(ICMPv6ND_RS(), answering=configured(dhcp_dns=True, **told))
    assert [kind for kind, _ in option_list(reply)] == [3, 1, 5, 25]


@pytest.mark.parametrize("length", range(1, 41))
def test_search_lists_are_padded_to_whole_units(length: int) -> None:
    """None of them by one unit too many, which would be an option of length zero."""
    told = {"v6__dns": [OURS], "dhcp_dns": True, "dhcp_search": True, "search": ["x" * length]}
    reply = handle(ICMPv6ND_RS(), answering=configured(**told))
    kind, body = option_list(reply)[-1]
    assert kind == 31
    assert len(body) + 2 == (8 + length + 2 + 7) // 8 * 8
    assert reply is not None and reply[ICMPv6NDOptDNSSL].searchlist == ["x" * length + "."]


def test_advertisement_fits_the_smallest_packet() -> None:
    name = ".".join(["a" * 60] * 4)
    told = {"v6__dns": [OURS] * 3, "dhcp_dns": True, "dhcp_search": True, "search": [name] * 6}
    extra = {37: b"x" * 254, 200: b"y" * 254}
    reply = handle(ICMPv6ND_RS(), answering=configured(ra_opts=extra, **told))
    assert reply is not None
    assert 1000 < 40 + reply.plen <= 1280
    search = dict(option_list(reply))[31]
    assert search.count(b"a" * 60) == 8


def test_options_of_the_user() -> None:
    extra = {5: b"\0\0\0\0\5\0", 25: None, 37: b"https://portal.example/"}
    told = {"v6__dns": [OURS], "dhcp_dns": True}
    reply = handle(ICMPv6ND_RS(), answering=configured(ra_opts=extra, **told))
    found = dict(option_list(reply))
    assert sorted(found) == [1, 3, 5, 37]
    assert reply is not None and reply[ICMPv6NDOptMTU].mtu == 1280
    assert found[37].rstrip(b"\0") == b"https://portal.example/"


def test_disabled_router_discovery() -> None:
    answering = service(router=False)
    assert handle(ICMPv6ND_RS(), answering=answering) is None
    assert handle(ICMPv6ND_NS(tgt="fe80::1"), answering=answering) is not None


def test_disabled_neighbour_discovery() -> None:
    answering = service(neighbours=False)
    assert handle(ICMPv6ND_RS(), answering=answering) is None
    assert handle(ICMPv6ND_NS(tgt="fe80::1"), answering=answering) is None
    assert answering.initial_solicitation(GUEST_MAC) is None


def test_advertisements_are_swallowed() -> None:
    assert handle(ICMPv6ND_NA(tgt="fe80::15")) is None
    assert handle(ICMPv6ND_RA()) is None


def test_truncation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "counts", [0] * len(drops.NAMES))
    solicitations = bytes(ICMPv6ND_NS(tgt="fe80::1", cksum=1)), bytes(ICMPv6ND_RS(cksum=1))
    for whole in solicitations:
        for length in range(len(whole)):
            assert handle(whole[:length]) is None
        assert handle(whole) is not None
    assert drops.counts[drops.NDP_SHORT] == 24 + 8


def test_answers_are_noted() -> None:
    notes: list[str] = []
    answering = NdpService(OUR_MAC, OURS, ASSIGNED, b"", note=notes.append)
    handle(ICMPv6ND_NS(tgt="fe80::1"), answering=answering)
    handle(ICMPv6ND_RS(), answering=answering)
    handle(ICMPv6ND_NS(tgt="fe80::1"), src=packed("::"), answering=answering)
    assert notes == ["NDP: received NS, sending NA", "NDP: received RS, sending RA"]


def test_initial_solicitation() -> None:
    raw = service().initial_solicitation(b"\xff" * 6)
    assert raw is not None
    frame = Ether(raw)
    assert (frame.dst, frame.src) == ("ff:ff:ff:ff:ff:ff", "9a:55:9a:55:9a:55")
    packet = frame[IPv6]
    assert (packet.src, packet.dst, packet.hlim, packet.plen) == (
        "fe80::1",
        "2001:db8:0:7:1:2:3:4",
        255,
        24,
    )
    assert packet[ICMPv6ND_NS].tgt == packet.dst
    claimed = packet.payload.cksum
    del packet.payload.cksum
    assert IPv6(bytes(packet)).payload.cksum == claimed


def test_no_initial_solicitation_without_address() -> None:
    assert NdpService(OUR_MAC, OURS, None, b"").initial_solicitation(GUEST_MAC) is None


@given(st.integers(133, 136), st.binary(max_size=80), st.binary(min_size=16, max_size=16))
def test_any_message(kind: int, rest: bytes, src: bytes) -> None:
    data = bytes((kind,)) + rest
    reply = service().handle(data, 0, len(data), src, GUEST_MAC)
    assert reply is None or kind in (133, 135)
    if kind == 133:
        assert (reply is None) is (len(data) < 8)
