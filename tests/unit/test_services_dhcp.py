"""DHCP service: who is answered, with what, in which order; read by scapy, and byte by byte."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

from passt.kernel.netlink.worker import TemplateInfo
from passt.userspace import log
from passt.userspace.config.model import Config
from passt.userspace.config.parse import parse
from passt.userspace.config.resolvconf import ResolvConf
from passt.userspace.config.resolve import resolve
from passt.userspace.services import services
from passt.userspace.services.dhcp import DhcpService, offers
from passt.userspace.wire import drops
from tests.unit.fakes import GATEWAY4, GUEST4, GUEST6, GUEST_MAC, OUR_MAC, config, udp_frame
from tests.unit.services_rig import MAC_TEXT, Rig, dhcp_frame, ip

Make = Callable[..., Rig]

DISCOVER = ("message-type", "discover")
REQUEST = ("message-type", "request")
OFFER, ACK = 2, 5


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes a rig; attributes of its configuration as keywords."""
    rigs = []

    def build(**attributes: object) -> Rig:
        def tweak(made: Config) -> None:
            for name, value in attributes.items():
                family, _, field = name.partition("__")
                setattr(getattr(made, family) if field else made, field or name, value)

        rigs.append(Rig(tweak))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make: Make) -> Rig:
    return make()


def area(frame: Packet) -> bytes:
    """The option area of a reply."""
    raw: bytes = frame.original[14 + 28 + 240 : 14 + frame[IP].len]
    return raw


def options(frame: Packet | None) -> list[tuple[int, bytes]]:
    """The options of a reply in their order; behind the end there are only zeroes."""
    assert frame is not None
    data = area(frame)
    found = []
    at = 0
    while data[at] != 255:
        value = data[at + 2 : at + 2 + data[at + 1]]
        assert len(value) == data[at + 1]
        found.append((data[at], value))
        at += 2 + len(value)
    assert not any(data[at + 1 :])
    assert len({code for code, _ in found}) == len(found)
    return found


def codes(frame: Packet | None) -> list[int]:
    return [code for code, _ in options(frame)]


# Message types


def test_offer_to_discover(rig: Rig) -> None:
    reply = rig.dhcp(DISCOVER, ("param_req_list", [53, 1, 3]), flags=0, secs=9, hops=3)
    assert reply is not None
    assert (reply[IP].src, reply[IP].dst) == ("192.0.2.1", "192.0.2.10")
    assert (reply[UDP].sport, reply[UDP].dport) == (67, 68)
    message = reply[BOOTP]
    assert (message.op, message.htype, message.hlen, message.hops, message.secs) == (2, 1, 6, 0, 0)
    assert (message.xid, message.yiaddr, message.siaddr) == (0x12345678, "192.0.2.10", "0.0.0.0")
    assert message.chaddr == GUEST_MAC + bytes(10)
    assert not message.sname.strip(b"\0") and not message.file.strip(b"\0")
    told = {option[0]: option[1] for option in reply[DHCP].options if len(option) == 2}
    assert told["message-type"] == OFFER
    assert told["subnet_mask"] == "255.255.255.0"
    assert told["router"] == told["server_id"] == "192.0.2.1"
    assert told["lease_time"] == 0xFFFFFFFF
    assert told["interface-mtu"] == 65520
    assert codes(reply) == [53, 1, 3, 26, 51, 54]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ([DISCOVER], OFFER),
        ([REQUEST], ACK),
        ([], ACK),
        ([(53, b"")], ACK),
        (["pad", "pad", DISCOVER], OFFER),
        ([REQUEST, DISCOVER], OFFER),
        ([REQUEST, ("requested_addr", "10.9.9.9"), ("server_id", "10.9.9.1")], ACK),
        ([REQUEST, ("max_dhcp_size", 100), ("client_id", b"\1abc")], ACK),
        ([("message-type", kind) for kind in ("offer",)], None),
        ([("message-type", "decline")], None),
        ([("message-type", "ack")], None),
        ([("message-type", "nak")], None),
        ([("message-type", "release")], None),
        ([("message-type", "inform")], None),
        ([(53, b"\0")], None),
        ([(53, b"\xff")], None),
    ],
)
def test_types(rig: Rig, asked: list[object], answer: int | None) -> None:
    reply = rig.dhcp(*asked)
    assert (None if reply is None else dict(options(reply))[53][0]) == answer


def test_rapid_commit(rig: Rig) -> None:
    told = dict(options(rig.dhcp(DISCOVER, (80, b""))))
    assert (told[53], told[80]) == (bytes((ACK,)), b"")
    told = dict(options(rig.dhcp(DISCOVER)))
    assert told[53] == bytes((OFFER,)) and 80 not in told
    assert 80 not in codes(rig.dhcp(REQUEST, (80, b"")))


def test_renewals_and_strangers_are_all_alike(rig: Rig) -> None:
    """Unicast to us or to anybody, from any port: INIT-REBOOT, renewing, rebinding."""
    for dst in ("192.0.2.1", "203.0.113.9", "255.255.255.255"):
        frame = dhcp_frame(REQUEST, src="192.0.2.10", dst=dst, ciaddr="192.0.2.10")
        frame[UDP].sport = 1068
        reply = rig.ask(frame)
        assert reply is not None
        assert (reply[IP].dst, reply[UDP].dport) == ("192.0.2.10", 68)
        assert (reply[BOOTP].ciaddr, reply[BOOTP].yiaddr) == ("192.0.2.10", "192.0.2.10")


def test_broadcast_flag(rig: Rig) -> None:
    reply = rig.dhcp(DISCOVER, flags=0x8000, ciaddr="10.1.2.3", giaddr="10.1.2.4")
    assert reply is not None
    assert reply[IP].dst == "255.255.255.255"
    assert (reply[BOOTP].flags, reply[BOOTP].ciaddr) == (0x8000, "10.1.2.3")
    assert (reply[BOOTP].giaddr, reply.dst) == ("10.1.2.4", MAC_TEXT)


def test_unchecked_fields_are_repeated(rig: Rig) -> None:
    frame = dhcp_frame(DISCOVER, htype=6, hlen=16, chaddr=bytes(range(16)))
    frame[BOOTP].options = b"\1\2\3\4"
    reply = rig.ask(frame)
    assert reply is not None
    assert (reply[BOOTP].htype, reply[BOOTP].hlen) == (6, 16)
    assert reply[BOOTP].chaddr == bytes(range(16))
    assert reply.original[14 + 28 + 236 :][:4] == b"\1\2\3\4"


# Order


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        (None, [53, 1, 3, 26, 51, 54]),
        ([3, 1], [53, 3, 1, 26, 51, 54]),
        ([3, 53, 1], [3, 53, 1, 26, 51, 54]),
        ([3, 1, 3, 3, 53, 53], [3, 1, 53, 26, 51, 54]),
        ([0, 255, 6, 200, 54, 58, 59], [53, 54, 1, 3, 26, 51]),
    ],
)
def test_order(rig: Rig, asked: list[int] | None, order: list[int]) -> None:
    assert codes(rig.dhcp(DISCOVER, *([] if asked is None else [(55, bytes(asked))]))) == order


# Options


def test_prefix_lengths(make: Make) -> None:
    for length, mask in ((27, "ffffffe0"), (32, "ffffffff"), (1, "80000000"), (24, "ffffff00")):
        rig = make(v4__prefix_len=length)
        assert dict(options(rig.dhcp(DISCOVER)))[1] == bytes.fromhex(mask)


def test_router_out_of_the_subnet(make: Make) -> None:
    told = dict(options(make(v4__addr=ip("198.51.100.5")).dhcp(DISCOVER)))
    assert told[121] == b"\x20\xc0\0\2\1" + bytes(4) + b"\0\xc0\0\2\1"
    assert told[3] == ip("192.0.2.1")
    assert 121 not in dict(options(make().dhcp(DISCOVER)))


def test_mtu(make: Make) -> None:
    assert dict(options(make(mtu=1400).dhcp(DISCOVER)))[26] == struct.pack("!H", 1400)
    assert 26 not in codes(make(mtu=0).dhcp(DISCOVER))


def test_names(make: Make) -> None:
    told = dict(options(make(hostname="guest", fqdn="guest.example").dhcp(DISCOVER)))
    assert told[12] == b"guest"
    assert told[81] == b"\x04\xff\xff\5guest\7example\0"
    # The client's own ideas about names do not matter.
    assert dict(options(make(fqdn="a.b").dhcp(DISCOVER, (81, b"\x0f\0\0x"))))[81][0] == 4


def test_longest_names(make: Make) -> None:
    """250 bytes fit an option of 255, as of 251 there is no option."""
    name = ".".join(["a" * 61, "b" * 62, "c" * 62, "d" * 62])
    assert len(name) == 250
    assert len(dict(options(make(fqdn=name).dhcp(DISCOVER)))[81]) == 255
    assert 81 not in codes(make(fqdn="a" + name).dhcp(DISCOVER))


def test_resolvers_and_search_list(make: Make) -> None:
    attributes = {
        "v4__dns": [ip("192.0.2.1"), ip("9.9.9.9")],
        "search": ["example.com", "foo.example.com"],
    }
    told = dict(options(make(dhcp_dns=True, dhcp_search=True, **attributes).dhcp(DISCOVER)))
    assert told[6] == ip("192.0.2.1") + ip("9.9.9.9")
    assert told[119] == b"\7example\3com\0\3foo\xc0\0"
    assert not {6, 119} & set(codes(make(**attributes).dhcp(DISCOVER)))
    assert not {6, 119} & set(codes(make(dhcp_dns=True, dhcp_search=True).dhcp(DISCOVER)))


def test_search_list_stops_at_whole_names(make: Make) -> None:
    names = [".".join([letter * 60] * 2) for letter in "abcdef"]
    told = dict(options(make(dhcp_search=True, search=names).dhcp(DISCOVER)))
    assert len(told[119]) == 2 * 123
    assert told[119].count(b"<") == 4 and told[119].endswith(b"\0")


def test_options_of_the_user(make: Make) -> None:
    extra = {42: ip("192.0.2.7"), 51: struct.pack("!I", 60), 3: None, 224: b"x"}
    reply = make(dhcp_opts=extra).dhcp(DISCOVER, (55, bytes((224, 42))))
    assert options(reply)[:3] == [(53, b"\2"), (224, b"x"), (42, ip("192.0.2.7"))]
    told = dict(options(reply))
    assert told[51] == struct.pack("!I", 60)
    assert 3 not in told
    assert told[54] == GATEWAY4


def test_offline_host(make: Make) -> None:
    """Addresses from the command line alone are exactly what is told."""
    words = ["-a", "10.0.2.15/24", "-g", "10.0.2.2", "true"]
    nothing = TemplateInfo(None, None, [])
    made = resolve(parse("pasta", words), (True, True), nothing, ResolvConf([], []))
    assert made.dhcp
    told = offers(made)
    assert (told[1], told[3], told[54]) == (ip("255.255.255.0"), ip("10.0.2.2"), ip("10.0.2.2"))
    assert 121 not in told
    rig = make(v4__addr=made.v4.addr, v4__gateway=made.v4.gateway)
    reply = rig.dhcp(DISCOVER)
    assert reply is not None
    assert (reply[BOOTP].yiaddr, reply[IP].src) == ("10.0.2.15", "10.0.2.2")


# Sizes


def test_smallest_reply(rig: Rig) -> None:
    reply = rig.dhcp(DISCOVER)
    assert reply is not None
    assert len(area(reply)) == 60
    assert reply[IP].len == 328


def test_what_does_not_fit_is_left_out(make: Make) -> None:
    rig = make(fqdn=".".join(["a" * 60] * 4), hostname="h" * 63, dhcp_opts={224: b"x" * 100})
    reply = rig.dhcp(DISCOVER)
    assert reply is not None
    assert reply[IP].len <= 576
    assert codes(reply) == [53, 1, 3, 12, 26, 51, 54, 224]
    reply = rig.dhcp(DISCOVER, (55, bytes((81,))))
    assert reply is not None
    assert reply[IP].len <= 576
    assert codes(reply) == [53, 81, 1, 3, 26, 51, 54]


@pytest.mark.parametrize("size", range(200, 256))
def test_largest_reply(make: Make, size: int) -> None:
    """To the byte: 48 for the protocol, 2 for the option, 1 for the end."""
    fixed = {224: b"x" * 20, 225: b"y" * size}
    reply = make(dhcp_opts=fixed).dhcp(DISCOVER)
    assert reply is not None
    taken = 3 + 6 + 6 + 4 + 6 + 6 + 22
    assert (225 in codes(reply)) is (taken + 2 + size + 1 <= 308)
    assert reply[IP].len <= 576


# Hostile


def raw_request(*, area: bytes = b"\x35\1\1\xff", cut: int = 0) -> bytes:
    """A frame with a DISCOVER of these option bytes."""
    frame = dhcp_frame(DISCOVER)
    whole = bytes(frame[BOOTP])[:240] + area
    frame[UDP].remove_payload()
    return bytes(frame / Raw(whole[: len(whole) - cut]))


@pytest.mark.parametrize(
    ("bytes_of_options", "answered"),
    [
        (b"", True),
        (b"\xff", True),
        (b"\x35\1\1", True),
        (b"\x35\1\1\xff" + b"\x77\xff\x00", True),
        (b"\xff\x10\x35", True),
        (b"\0" * 500, True),
        (b"\x35\1\1\x0c", False),
        (b"\x35\1\1\x0c\1", False),
        (b"\x35\1\1\x0c\5abcd", False),
        (b"\x35\1", False),
        (b"\x35", False),
    ],
)
def test_malformed_options(rig: Rig, bytes_of_options: bytes, answered: bool) -> None:
    before = drops.counts[drops.DHCP_FORMAT]
    assert (rig.ask(raw_request(area=bytes_of_options)) is not None) is answered
    assert drops.counts[drops.DHCP_FORMAT] - before == (not answered)


def test_truncated_at_every_byte(make: Make) -> None:
    """By the lengths of IP and UDP, and by UDP's alone."""
    rig = make()
    whole = raw_request(area=b"\x35\1\1\x0c\4test\xff")
    total = len(whole) - 14
    for size in range(28, total):
        rig.advance(1)
        cut = raw_request(area=b"\x35\1\1\x0c\4test\xff", cut=total - size)
        # Up to the cookie, between two options, without the end: that is all that may lack.
        assert (rig.ask(cut) is not None) is (size - 28 in (240, 243, 249))
        lying = bytearray(whole)
        lying[14 + 24 : 14 + 26] = (size - 20).to_bytes(2, "big")
        assert rig.ask(bytes(lying)) is None
    assert rig.ask(whole) is not None


def test_padding_is_no_part_of_the_datagram(rig: Rig) -> None:
    assert rig.send(raw_request() + b"\0" * 40)
    assert rig.send(raw_request() + b"\x0c" * 40)


def test_only_requests(rig: Rig) -> None:
    for op in (0, 2, 255):
        assert rig.dhcp(DISCOVER, op=op) is None


@given(st.binary(min_size=8, max_size=700))
def test_any_datagram(data: bytes) -> None:
    made = config()
    service = DhcpService(OUR_MAC, GATEWAY4, GUEST4, offers(made))
    fitting = data[:4] + len(data).to_bytes(2, "big") + data[6:]
    for raw in (data, fitting):
        reply = service.handle(raw, 0, len(raw), GUEST_MAC)
        assert reply is None or len(reply) <= 14 + 576


def test_mutated_requests(make: Make) -> None:
    rng = random.Random(7)
    rig = make(dhcp_dns=True, v4__dns=[ip("192.0.2.1")], hostname="guest")
    whole = bytes(dhcp_frame(DISCOVER, ("param_req_list", [1, 3, 6]), ("client_id", b"\1abc")))
    answered = 0
    for _ in range(500):
        rig.advance(1)
        mutant = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutant[rng.randrange(34, len(mutant))] = rng.randrange(256)
        for answer in rig.send(bytes(mutant)):
            assert 14 + 328 <= len(answer) <= 14 + 576
            answered += 1
    assert answered > 100


class Forwarder:
    """A UDP translator that only counts."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.flows: dict[bytes, object] = {}

    def input(self, buf: memoryview, _off: int, l4: int, _end: int, _version: int) -> bool:
        self.ports.append(buf[l4 + 2] << 8 | buf[l4 + 3])
        return False

    def batch_end(self) -> None:
        """Nothing was put off."""


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("enabled", [False, True])
def test_ports_of_services_are_never_forwarded(make: Make, enabled: bool, version: int) -> None:
    """Whatever their destination, and whether the service is on."""
    rig = make(dhcp=enabled, dhcpv6=enabled)
    forwarder = Forwarder()
    rig.stack._translators[socket.IPPROTO_UDP] = forwarder
    own = 67 if version == 4 else 547
    for port in (own - 1, own, own + 1, own << 8 & 0xFFFF):
        source, target = (GUEST4, "203.0.113.9") if version == 4 else (GUEST6, "2001:db8:9::9")
        assert rig.send(udp_frame(source, ip(target), 1234, port, b"x")) == []
    assert forwarder.ports == [own - 1, own + 1, own << 8 & 0xFFFF]


def test_disabled_service_swallows(make: Make) -> None:
    assert make(dhcp=False).dhcp(DISCOVER) is None


def test_rate_is_limited(rig: Rig) -> None:
    def burst() -> int:
        return sum(rig.dhcp(DISCOVER) is not None for _ in range(200))

    before = drops.counts[drops.SERVICE_RATE]
    assert burst() == services.BURST
    assert drops.counts[drops.SERVICE_RATE] - before == 200 - services.BURST
    rig.advance(1)
    assert burst() == services.RATE
    rig.advance(3600)
    assert burst() == services.BURST


def test_messages(
    rig: Rig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_windows", {})
    rig.dhcp(DISCOVER)
    rig.dhcp(REQUEST)
    assert capfd.readouterr().err.splitlines() == [
        "DHCP: offer to discover",
        f"    from {MAC_TEXT}",
        "DHCP: ack to request",
        f"    from {MAC_TEXT}",
    ]
