"""What we tell guests of any configuration, as read by decoders that are not ours.

Configurations are drawn at random (always the same ones) from everything that options can say:
names of all lengths, long search lists, several addresses, odd prefixes, the user's own options.
Each is asked everything that there is to ask.  scapy has to make sense of every byte of the
answers, and they have to say what was configured; tcpdump must not find anything wrong with them.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Padding, Raw

from passt.userspace.config.actions import MAX_ADDRESSES
from passt.userspace.config.model import Config
from passt.userspace.services import services
from tests.unit.fakes import GATEWAY4, GUEST_MAC
from tests.unit.services_rig import MAC_TEXT, Rig, dhcp_frame, ip

CLIENT_ID = DHCP6OptClientId(duid=Raw(b"\0\3\0\1" + GUEST_MAC))
SAMPLES = 30
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"


def name(rng: random.Random, longest: int) -> str:
    """A domain name of at most ``longest`` bytes, of labels of any length."""
    labels: list[str] = []
    while True:
        label = "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 3, 8, 20, 62, 63))))
        if len(".".join((*labels, label))) > longest or len(labels) > 5:
            return ".".join(labels) or "a"
        labels.append(label)


def randomly(rng: random.Random, made: Config) -> None:
    """Configure everything that the services tell, within what options accept."""
    made.dhcp_dns, made.dhcp_search = rng.random() < 0.8, rng.random() < 0.8
    made.mtu = rng.choice((0, 1280, 1500, 65520))
    made.hostname = rng.choice(("", "guest", "h" * 63, name(rng, 253)))
    made.fqdn = rng.choice(("", "guest.example", name(rng, 253)))
    made.search = [name(rng, rng.choice((10, 60, 253))) for _ in range(rng.randrange(7))]
    v4, v6 = made.v4, made.v6
    v4.prefix_len = rng.randrange(1, 33)
    v4.gateway = rng.choice((GATEWAY4, ip("203.0.113.1")))
    v4.dns = [rng.randbytes(4) for _ in range(rng.randrange(4))]
    v6.dns = [b"\x20" + rng.randbytes(15) for _ in range(rng.randrange(4))]
    count = rng.choice((0, 0, 1, MAX_ADDRESSES - 1))
    v6.more = [(b"\x20" + rng.randbytes(15), 64) for _ in range(count)]
    made.dhcp_opts = rng.choice(({}, {42: ip("192.0.2.7")}, {66: b"boot.example", 43: b"x" * 200}))
    made.dhcpv6_opts = rng.choice(({}, {31: v6.addr or b""}, {59: b"http://boot.example/x"}))
    made.ra_opts = rng.choice(({}, {}, {24: b"\x40\0\0\0\7\x08" + bytes(8)}))


class Sample:
    """One configuration, and the answers of its services by question."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        rig = Rig(lambda made: randomly(rng, made))
        self.config = rig.config
        self.answers: dict[str, Packet] = {}
        try:
            for title, frame in self._questions(rig):
                (raw,) = rig.send(frame)
                self.answers[title] = Ether(raw)
                rig.advance(services.BURST / services.RATE)
        finally:
            rig.close()

    def _questions(self, rig: Rig) -> Iterator[tuple[str, Packet]]:
        asked = ("param_req_list", [119, 1, 3, 6, 15, 26, 81, 121])
        for kind in ("discover", "request"):
            yield f"dhcp {kind}", dhcp_frame(("message-type", kind), asked)
        yield "dhcp rapid", dhcp_frame(("message-type", "discover"), (80, b""))
        yield "bootp", dhcp_frame()
        yield "rs", _icmp6(ICMPv6ND_RS())
        yield "ns", _icmp6(ICMPv6ND_NS(tgt="2001:db8::77"))
        yield "arp", Ether(src=MAC_TEXT) / ARP(hwsrc=MAC_TEXT, psrc="192.0.2.10", pdst="192.0.2.1")
        wanted = DHCP6OptIA_NA(iaid=1)
        yield "solicit", _dhcp6(DHCP6_Solicit() / CLIENT_ID / wanted)
        server = DHCP6OptServerId(duid=Raw(bytes(self.answers["solicit"][DHCP6OptServerId].duid)))
        named = server / CLIENT_ID / DHCP6OptClientFQDN(flags="S", fqdn="x.")
        yield "request", _dhcp6(DHCP6_Request() / named / wanted)
        foreign = [DHCP6OptIAAddress(addr="2001:db8:9::9")]
        wrong = DHCP6OptIA_NA(iaid=2, ianaopts=foreign)
        yield "request foreign", _dhcp6(DHCP6_Request() / named / wrong)
        yield "confirm", _dhcp6(DHCP6_Confirm() / CLIENT_ID / wanted)
        yield "confirm foreign", _dhcp6(DHCP6_Confirm() / CLIENT_ID / wrong)
        yield "rebind", _dhcp6(DHCP6_Rebind() / CLIENT_ID / wanted)
        yield "information", _dhcp6(DHCP6_InfoRequest() / CLIENT_ID)


def _icmp6(message: Packet) -> Packet:
    return Ether(src=MAC_TEXT) / IPv6(src="fe80::15", dst="ff02::2") / message


def _dhcp6(message: Packet) -> Packet:
    ports = UDP(sport=546, dport=547)
    return Ether(src=MAC_TEXT) / IPv6(src="fe80::15", dst="ff02::1:2") / ports / message


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [Sample(seed) for seed in range(SAMPLES)]


def dotted(names: list[str]) -> list[str]:
    return [f"{each}." for each in names]


def told_by_dhcp(reply: Packet) -> dict[object, object]:
    return {option[0]: option[1] for option in reply[DHCP].options if isinstance(option, tuple)}


def test_dhcp(samples: list[Sample]) -> None:
    kinds = {"dhcp discover": 2, "dhcp rapid": 5, "dhcp request": 5, "bootp": 5}
    for sample in samples:
        config = sample.config
        mask = ~((1 << (32 - config.v4.prefix_len)) - 1) & 0xFFFFFFFF
        for title, kind in kinds.items():
            reply = sample.answers[title]
            assert Raw not in reply
            assert reply[BOOTP].yiaddr == "192.0.2.10"
            told = told_by_dhcp(reply)
            assert told["message-type"] == kind
            assert ip(str(told["subnet_mask"])) == mask.to_bytes(4, "big")
            assert told.get("interface-mtu", 0) == config.mtu
            assert told.get("rapid_commit", told.get(80)) == (
                b"" if title == "dhcp rapid" else None
            )


def test_router_advertisements(samples: list[Sample]) -> None:
    for sample in samples:
        config, reply = sample.config, sample.answers["rs"]
        assert Raw not in reply and Padding not in reply
        assert reply[IPv6].plen + 40 <= 1280
        prefixes, layer = [], reply[ICMPv6ND_RA].payload
        while layer:
            if isinstance(layer, ICMPv6NDOptPrefixInfo):
                prefixes.append(ip(layer.prefix)[:8])
            layer = layer.payload
        addresses = [config.v6.addr, *(addr for addr, _ in config.v6.more)]
        assert prefixes == list(dict.fromkeys(addr[:8] for addr in addresses if addr is not None))
        assert reply[ICMPv6NDOptSrcLLAddr].lladdr == "9a:55:9a:55:9a:55"
        assert (ICMPv6NDOptMTU in reply) is (config.mtu != 0)
        resolvers = config.v6.dns if config.dhcp_dns else []
        assert (ICMPv6NDOptRDNSS in reply) is bool(resolvers)
        if resolvers:
            assert [ip(each) for each in reply[ICMPv6NDOptRDNSS].dns] == resolvers
        if ICMPv6NDOptDNSSL in reply:
            listed = reply[ICMPv6NDOptDNSSL].searchlist
            assert listed == dotted(config.search)[: len(listed)]
        else:
            assert not (
                resolvers
                and config.dhcp_search
                and config.search[:1]
                and len(config.search[0]) < 60
            )


def test_neighbours(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.answers["ns"][ICMPv6ND_NA].tgt == "2001:db8::77"
        assert sample.answers["arp"][ARP].psrc == "192.0.2.1"


def test_dhcpv6(samples: list[Sample]) -> None:
    answers = {
        "solicit": DHCP6_Advertise,
        **dict.fromkeys(
            ("request", "request foreign", "confirm", "confirm foreign", "rebind", "information"),
            DHCP6_Reply,
        ),
    }
    for sample in samples:
        config = sample.config
        addresses = [addr for addr in (config.v6.addr, *(a for a, _ in config.v6.more)) if addr]
        for title, kind in answers.items():
            reply = sample.answers[title]
            assert kind in reply and Padding not in reply
            assert reply[IPv6].plen + 40 <= 1280
            assert bytes(reply[DHCP6OptClientId].duid) == bytes(CLIENT_ID.duid)
            if title in ("solicit", "request", "rebind"):
                lease = reply[DHCP6OptIA_NA].ianaopts
                assert [ip(each.addr) for each in lease] == addresses
            else:
                assert (DHCP6OptIA_NA in reply) is ("foreign" in title)
            if "foreign" in title:
                continue
            resolvers = config.v6.dns if config.dhcp_dns else []
            assert (DHCP6OptDNSServers in reply) is bool(resolvers)
            if resolvers:
                assert [ip(each) for each in reply[DHCP6OptDNSServers].dnsservers] == resolvers
            if DHCP6OptDNSDomains in reply:
                listed = reply[DHCP6OptDNSDomains].dnsdomains
                assert listed == dotted(config.search)[: len(listed)]


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump")
def test_tcpdump(samples: list[Sample], tmp_path: Path) -> None:
    frames = [bytes(answer) for sample in samples for answer in sample.answers.values()]
    path = tmp_path / "answers.pcap"
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame)
    done = subprocess.run(
        ["tcpdump", "-n", "-e", "-vvv", "-r", path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", ethertype ") == len(frames)
    for wrong in ("bad ", "incorrect", "nvalid", "runcated", "[|", "malformed", "wrong"):
        lines = [line for line in done.stdout.splitlines() if wrong in line]
        assert not lines, lines[:3]
