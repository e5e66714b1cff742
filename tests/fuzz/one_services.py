"""ARP, Neighbour Discovery, DHCP and DHCPv6: requests of every kind, and what must be answered.

The first byte of the input chooses what there is to tell; the rest is a program
(:mod:`tests.fuzz.program`) of requests to the services themselves, which the stack hands them
without looking into them.  Each is served twice, with different bytes around it.  A second
reader of the requests and of the rules says whether there is an answer, to whom, and what is in
it, down to each option; it must be told if it fits and nothing else may be.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from random import Random

from passt.userspace.config.model import Config
from passt.userspace.services import dhcp, dhcpv6, ndp
from passt.userspace.services.arp import ArpService
from passt.userspace.services.dhcp import DhcpService
from passt.userspace.services.dhcpv6 import Dhcp6Service
from passt.userspace.services.ndp import NdpService
from tests.fuzz import oracle, program
from tests.fuzz.mutate import havoc
from tests.fuzz.one_resolvconf import decode
from tests.fuzz.oracle import number
from tests.fuzz.program import Step
from tests.unit import fakes
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, OUR_LL, OUR_MAC, Prefix

MAX_LEN = 3000

OPERATIONS = ("dhcp", "dhcpv6", "ndp", "arp", "raw")
DHCP, DHCPV6, NDP, ARP, RAW = range(len(OPERATIONS))

GUEST_LL = bytes.fromhex("fe80000000000000505400fffe00aa01")
SERVER_ID = struct.pack("!HHI6s", 1, 1, 1_000_000_000 - 946684800, OUR_MAC)
MORE4 = bytes((192, 0, 2, 200))
#: As many as can be given; the first has the prefix of GUEST6.
MORE6 = [GUEST6[:8] + b"more" + bytes(4), *(b"\xfd" + bytes(14) + bytes((n,)) for n in range(6))]
#: What the guest had before, and how long it has what it has now, where the host is followed.
FORMER4 = bytes((192, 0, 2, 199))
LEASE = 300
COOKIE = b"\x63\x82\x53\x63"
LONG = ".".join(["label" * 12] * 4)

DICTIONARY = (
    COOKIE, SERVER_ID, GUEST6, GUEST_LL, GUEST4, GATEWAY4, OUR_MAC, b"\x35\1\1", b"\x35\1\3",
    b"\x50\0", b"\x37\3\1\3\6", struct.pack("!HH", 1, 4), struct.pack("!HH", 3, 40),
    struct.pack("!HH", 5, 24), struct.pack("!HH", 2, 14), struct.pack("!HHB", 39, 1, 1),
)  # fmt: skip

NAK = b"\6"

_JUNK = bytes(70), b"\xff" * 70
_PLAIN = Prefix(0, 0, 0, 0, 0)


def one(data: bytes) -> None:
    """Ask the services what the program says."""
    config = configuration(data[0] if data else 0)
    servers = Servers(config)
    for operation, request in program.decode(data[1:], len(OPERATIONS)):
        (servers.dhcp, servers.dhcpv6, servers.ndp, servers.arp, servers.raw)[operation](request)


def configuration(first: int) -> Config:
    """What there is to tell."""
    config = fakes.config()
    config.mtu = (1500, 0, 65520, 1280)[first & 3]
    if first & 4:
        config.v4.dns, config.v6.dns = [GATEWAY4] * 4, [GATEWAY6] * 3
        config.dhcp_dns = True
    if first & 8:
        config.dhcp_search = True
        config.search = ["example.org", "a.b.example.org", ".", "x..y", LONG, LONG.upper()] * 2
    if first & 16:
        config.hostname, config.fqdn = "guest", "guest.example.org"
    if first & 32:
        config.fqdn = LONG
        config.v4.prefix_len = 32
    if first & 64:
        config.dhcp_opts = {26: None, 66: b"boot" * 40, 67: b"f" * 255, 15: b"example"}
        config.dhcpv6_opts = {23: None, 59: b"u" * 1000, 60: b"p" * 900}
        config.ra_opts = {5: None, 37: b"https://portal.example"}
    if first & 128:
        config.v4.own, config.v6.more = frozenset((MORE4,)), [(addr, 64) for addr in MORE6]
        config.follow = True
    return config


Option = tuple[int, bytes]


class Servers:
    """The services of one configuration, asked in this one's words."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._former = {FORMER4, GUEST4} if config.follow else set()
        self._lease = LEASE if config.follow else 0xFFFFFFFF
        self._told = dhcp.offers(config, self._lease.to_bytes(4, "big"))
        self._told6 = dhcpv6.offers(config)
        self._told_ra = ndp.offers(config)
        more = [addr for addr, _ in config.v6.more]
        self._own4 = {GUEST4, *config.v4.own}
        self._own6 = [GUEST6, *more]
        self._dhcp = DhcpService(OUR_MAC, GATEWAY4, GUEST4, self._told, former=self._former)
        self._dhcp6 = Dhcp6Service(OUR_MAC, OUR_LL, self._own6, self._told6, 1e9, lease=self._lease)
        self._ndp = NdpService(OUR_MAC, OUR_LL, GUEST6, self._told_ra, more=more)
        self._arp = ArpService(OUR_MAC, GATEWAY4, GUEST4, more=config.v4.own)
        check_names(config, self._told, self._told6)

    def raw(self, data: bytes) -> None:
        """A datagram or message as it is, of whichever service."""
        if not data:
            return
        kind, data = data[0] % 4, data[1:]
        if kind == ARP:
            self.arp(data)
        elif kind == NDP:
            self.ndp(data)
        elif len(data) >= 8:
            self._datagram(kind, data)

    def dhcp(self, payload: bytes) -> None:
        """A message to the port of DHCP."""
        self._datagram(DHCP, _udp(68, 67, payload))

    def dhcpv6(self, payload: bytes) -> None:
        """A message to the port of DHCPv6, from the address that its first byte chooses."""
        self._datagram(DHCPV6, _udp(546, 547, payload))

    def _datagram(self, kind: int, data: bytes) -> None:
        sound = number(data, 4) == len(data)
        if kind == DHCP:
            answers = [
                self._dhcp.handle(junk + data + junk, 70, 70 + len(data), GUEST_MAC)
                for junk in _JUNK
            ]
            expected = self._expected4(data[8:]) if sound else None
        else:
            # Whom it comes from and goes to: a source or group that may not be is as good.
            source = OUR_LL if data[0] & 0x80 else GUEST_LL
            target = fakes.OUR_LL if data[1] & 0x80 else bytes.fromhex("ff02") + bytes(14)
            answers = [
                self._dhcp6.handle(
                    junk + data + junk, 70, 70 + len(data), source, target, GUEST_MAC
                )
                for junk in _JUNK
            ]
            expected = None
            if sound and target[0] == 0xFF:
                expected = self._expected6(data[8:])
        assert answers[0] == answers[1], "depends on what is not in the request"
        frame = answers[0]
        if expected is None:
            assert frame is None, "must not be answered"
            return
        assert frame is not None, "must be answered"
        packet = oracle.outgoing(_PLAIN, frame, OUR_MAC)
        assert packet.dst_mac == GUEST_MAC
        if kind == DHCP:
            assert (packet.kind, packet.src, packet.l4[:4]) == (17, GATEWAY4, b"\0\x43\0\x44")
            refused = expected[0] == (53, NAK)
            broadcast = refused or (len(data) > 18 and data[8 + 10] & 0x80)
            assert packet.dst == (b"\xff" * 4 if broadcast else GUEST4)
            told = {} if refused else self._told
            check_reply4(packet.payload, data[8:], expected, told)
        else:
            assert (packet.kind, packet.src, packet.dst) == (17, OUR_LL, source)
            assert packet.l4[:4] == b"\x02\x23\x02\x22"
            assert packet.size <= 1280
            assert packet.payload == b"".join(value for _, value in expected)

    def _expected4(self, message: bytes) -> list[Option] | None:
        """The type of the answer and what it has to tell beside; ``None`` for no answer."""
        if len(message) < 240 or message[0] != 1:
            return None
        asked = options4(message[240:])
        if asked is None:
            return None
        last = dict(asked)
        kind = last.get(53, b"")
        wanted = last.get(50, message[12:16])
        if kind[:1] == b"\3" and wanted in self._former - {GUEST4}:
            return [(53, NAK), (54, self._told[54])]
        if not kind or kind[0] == 3:
            return [(53, b"\5")]
        if kind[0] != 1:
            return None
        return [(53, b"\5"), (80, b"")] if 80 in last else [(53, b"\2")]

    def _expected6(self, message: bytes) -> list[Option] | None:
        """The parts of the answer, in order; ``None`` for no answer."""
        if len(message) < 4:
            return None
        kind, listed = message[0], options6(message[4:])
        client = next((value for code, value in listed if code == 1), b"")
        server = next((value for code, value in listed if code == 2), None)
        if not 0 < len(client) <= 128 or (server is not None and len(server) != 14):
            return None
        associations = [
            (code, value[:fixed], [one[:16] for inner, one in options6(value[fixed:])
                                   if inner == 5 and len(one) >= 24])
            for code, value in listed
            if code in (3, 4) and len(value) >= (fixed := 12 if code == 3 else 4)
        ]  # fmt: skip
        count = len(listed) + sum(
            len(options6(value[12 if code == 3 else 4 :])) for code, value in listed
            if code in (3, 4)
        )  # fmt: skip
        if count > 256 or kind not in (1, 3, 4, 5, 6, 11):
            return None
        if (
            server != SERVER_ID
            if kind in (3, 5)
            else server is not None and (kind in (1, 4) or server != SERVER_ID)
        ):
            return None
        if kind == 11 and associations:
            return None
        begin = (2 if kind == 1 else 7, bytes((2 if kind == 1 else 7,)) + message[1:4])
        parts = [begin, (2, _option6(2, SERVER_ID))]
        if kind in (3, 4, 5):
            for code, fixed, addresses in associations:
                if any(address not in self._own6 for address in addresses):
                    status = _option6(13, b"\0\4Prefix not appropriate for link.")
                    parts += [(code, _option6(code, fixed + status)), (1, _option6(1, client))]
                    return [*parts, (13, status)] if kind == 4 else parts
        wanted = next((fixed for code, fixed, _ in associations if code == 3), None)
        if kind == 4:
            parts.append((13, _option6(13, b"\0\0")))
        elif wanted is not None:
            times = struct.pack("!II", self._lease, self._lease)
            lease = b"".join(_option6(5, address + times) for address in self._own6)
            if self._config.follow:
                times = struct.pack("!II", LEASE // 2, LEASE * 4 // 5)
            parts.append((3, _option6(3, wanted[:4] + times + lease)))
        parts.append((1, _option6(1, client)))
        size = sum(len(part) for _, part in parts)
        flags = next((value[0] for code, value in listed if code == 39 and value), 0)
        for code, value in sorted(self._told6.items()):
            if code == 39:
                value = (b"\2" if flags & 1 else b"\0") + value
            if size + 4 + len(value) <= 1280 - 48:
                size += 4 + len(value)
                parts.append((code, _option6(code, value)))
        return parts

    def ndp(self, message: bytes) -> None:
        """A message of Neighbour Discovery, from the guest or from nobody."""
        if len(message) < 8:
            # The stack has seen to that.
            return
        src = bytes(16) if message[1] & 0x80 else GUEST_LL
        answers = [
            self._ndp.handle(junk + message + junk, 70, 70 + len(message), src, GUEST_MAC)
            for junk in _JUNK
        ]
        assert answers[0] == answers[1], "depends on what is not in the request"
        frame, target = answers[0], message[8:24]
        if message[0] == 133:
            assert frame is not None, "a solicitation of a router is answered"
            packet = oracle.outgoing(_PLAIN, frame, OUR_MAC)
            everybody = bytes.fromhex("ff020000000000000000000000000001")
            assert packet.dst == (everybody if src == bytes(16) else src)
            check_advertisement(packet.l4, self._own6, self._told_ra)
        elif (
            message[0] == 135
            and len(message) >= 24
            and src != bytes(16)
            and (target[0] != 0xFF and target not in (bytes(16), bytes(15) + b"\1"))
        ):
            assert frame is not None, "a solicitation of a neighbour is answered"
            packet = oracle.outgoing(_PLAIN, frame, OUR_MAC)
            assert packet.dst == src
            answer = b"\x88\0" + packet.l4[2:4] + b"\xe0\0\0\0" + target + b"\2\1" + OUR_MAC
            assert packet.l4 == answer
        else:
            assert frame is None, "must not be answered"
            return
        assert (packet.kind, packet.src, packet.dst_mac) == (58, OUR_LL, GUEST_MAC)
        assert packet.size <= 1280

    def arp(self, message: bytes) -> None:
        """A message of ARP."""
        frame = b"\xff" * 6 + GUEST_MAC + b"\x08\x06" + message
        answers = [self._arp.handle(junk + frame + junk, 70, 70 + len(frame)) for junk in _JUNK]
        assert answers[0] == answers[1], "depends on what is not in the request"
        asked = len(message) >= 28 and message[:8] == b"\0\1\x08\0\6\4\0\1"
        sender, target = message[14:18], message[24:28]
        if not asked or target in self._own4 or (sender == target and any(sender)):
            assert answers[0] is None, "must not be answered"
            return
        assert answers[0] is not None, "must be answered"
        packet = oracle.outgoing(_PLAIN, answers[0], OUR_MAC)
        assert packet.dst_mac == GUEST_MAC
        assert packet.l4 == b"\0\1\x08\0\6\4\0\2" + OUR_MAC + target + message[8:18]


# The second reader.


def options4(area: bytes) -> list[Option] | None:
    """The options in ``area``; ``None`` if one does not fit."""
    found = []
    while area and area[0] != 255:
        if area[0] == 0:
            area = area[1:]
            continue
        if len(area) < 2 or len(area) < 2 + area[1]:
            return None
        found.append((area[0], area[2 : 2 + area[1]]))
        area = area[2 + area[1] :]
    return found


def options6(data: bytes) -> list[Option]:
    """The options in ``data``, up to the first that does not fit."""
    found = []
    while len(data) >= 4 and len(data) >= 4 + number(data, 2):
        size = number(data, 2)
        found.append((number(data, 0), data[4 : 4 + size]))
        data = data[4 + size :]
    return found


def _option6(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def _udp(sport: int, dport: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload) & 0xFFFF, 0) + payload


def check_reply4(reply: bytes, request: bytes, must: list[Option], told: dict[int, bytes]) -> None:
    """The answer to ``request`` that has ``must`` to say, and of ``told`` what fits."""
    assert 300 <= len(reply) <= 548, "size of a message"
    refused = must[0] == (53, NAK)
    # Who is refused is told of no address, its own included (RFC 2131 table 3).
    addresses = bytes(8) if refused else request[12:16] + GUEST4
    expected = (
        b"\2" + request[1:3] + b"\0" + request[4:8] + b"\0\0" + request[10:12] + addresses
        + bytes(4) + request[24:44] + bytes(192) + request[236:240]
    )  # fmt: skip
    assert reply[:240] == expected
    area = reply[240:]
    listed = options4(area)
    assert listed is not None
    used = sum(2 + len(value) for _, value in listed)
    assert area[used : used + 1] == b"\xff"
    assert not any(area[used + 1 :]), "something behind the end"
    assert len(dict(listed)) == len(listed), "an option twice"
    whole = {**told, **dict(must)}
    for code, value in listed:
        assert whole[code] == value
    for code, value in whole.items():
        if code not in dict(listed):
            assert used + 2 + len(value) + 1 > 308, f"option {code} would have fitted"
    assert dict(listed).keys() >= dict(must).keys()
    wanted = dict(options4(request[240:]) or ()).get(55, b"")
    order = [*wanted] if 53 in wanted else [53, *wanted]
    firsts = [code for code in dict.fromkeys(order) if code in dict(listed)]
    if refused:
        # There is nothing to choose from.
        firsts = [53, 54]
    assert [code for code, _ in listed][: len(firsts)] == firsts, "not in the order asked for"


def check_advertisement(message: bytes, addresses: list[bytes], told: bytes) -> None:
    """An advertisement: prefixes, our MAC, and what is told, as options of whole units."""
    assert message[:2] + message[4:16] == b"\x86\0\xff\x80\xff\xff" + bytes(8)
    rest = message[16:]
    kinds = []
    while rest:
        assert len(rest) >= 8 and 0 < rest[1] * 8 <= len(rest), "an option that does not fit"
        kinds.append(rest[0])
        rest = rest[rest[1] * 8 :]
    prefixes = list(dict.fromkeys(address[:8] for address in addresses))
    assert kinds[: len(prefixes) + 1] == [3] * len(prefixes) + [1]
    head = b"\3\4\x40\xc0" + b"\xff" * 8 + bytes(4)
    expected = b"".join(head + prefix + bytes(8) for prefix in prefixes)
    assert message[16:] == expected + b"\1\1" + OUR_MAC + told


def check_names(config: Config, told: dict[int, bytes], told6: dict[int, bytes]) -> None:
    """Search lists and names, decoded again."""
    wire = [os.fsencode(name) for name in config.search if config.dhcp_search]
    for names in (told.get(119, b""), told6.get(24, b"")):
        found = decode(names)
        sound = [name for name in wire if name not in (b".", b"x..y")]
        assert found == sound[: len(found)]
    if config.fqdn:
        name = os.fsencode(config.fqdn)
        assert decode(told6[39]) == [name]
        assert 81 not in told or decode(told[81][3:]) == [name]


# Inputs.


def message4(*asked: tuple[int, bytes], flags: int = 0, op: int = 1) -> bytes:
    """A message of a DHCP client."""
    fixed = struct.pack(
        "!BBBB4sHH4s4s4s4s16s", op, 1, 6, 0, b"xid0", 3, flags, bytes(4), bytes(4), bytes(4),
        bytes(4), GUEST_MAC + bytes(10),
    )  # fmt: skip
    area = b"".join(bytes((code, len(value))) + value for code, value in asked)
    return fixed + bytes(192) + COOKIE + area + b"\xff"


def message6(kind: int, *asked: tuple[int, bytes]) -> bytes:
    """A message of a DHCPv6 client."""
    return bytes((kind,)) + b"abc" + b"".join(_option6(code, value) for code, value in asked)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Clients of each kind, with little to be told and with much."""
    identity = (1, b"\0\3\0\1" + GUEST_MAC)
    ours, guest = (2, SERVER_ID), _option6(5, GUEST6 + bytes(8))
    association = (3, b"iaid" + bytes(8) + guest)
    elsewhere = (3, b"iaid" + bytes(8) + guest + _option6(5, GATEWAY6 + bytes(8)))
    four = [
        message4((53, b"\1"), (55, b"\1\3\6\x0c\x0f\x1a\x77\x35"), (61, b"\1" + GUEST_MAC)),
        message4((53, b"\3"), (50, GUEST4), (54, GATEWAY4), (55, b"\x77\x51\x43"), flags=0x8000),
        message4((53, b"\1"), (80, b"")),
        message4((53, b"\3"), (50, FORMER4), (55, b"\x36\x35")),
        message4(),
        message4((53, b"\7")),
        message4((53, b"\1"), op=2),
        message4((53, b""), (0, b""))[:-1] + b"\x0c\xff",
        b"short",
    ]
    six = [
        message6(1, identity, (3, b"iaid" + bytes(8)), (6, b"\0\x17\0\x18"), (39, b"\1\5guest\0")),
        message6(3, identity, ours, association, (39, b"\0")),
        message6(5, identity, ours, elsewhere),
        message6(4, identity, association),
        message6(4, identity, elsewhere, (4, b"iata" + guest)),
        message6(6, identity, (3, b"x")),
        message6(11, identity, ours),
        message6(11, identity, association),
        message6(1, identity, ours),
        message6(6, identity, (2, bytes(14))),
        message6(8, identity, ours),
        message6(1, (1, bytes(129))),
        message6(1, *[(99, b"")] * 260, identity),
        b"\1abc\0\1\0\xff",
    ]
    solicitation = b"\x87\0\0\0\0\0\0\0"
    neighbours = [
        b"\x85\0\0\0\0\0\0\0\1\1" + GUEST_MAC,
        b"\x85\x80\0\0\0\0\0\0",
        solicitation + GATEWAY6 + b"\1\1" + GUEST_MAC,
        solicitation + OUR_LL,
        solicitation + b"\xff\2" + bytes(14),
        b"\x87\x80\0\0\0\0\0\0" + GATEWAY6,
        solicitation,
        b"\x88\0\0\0\0\0\0\0" + GUEST6,
    ]
    who_has = b"\0\1\x08\0\6\4\0\1" + GUEST_MAC
    arps = [
        who_has + GUEST4 + bytes(6) + GATEWAY4,
        who_has + bytes(10) + GUEST4,
        who_has + GUEST4 + bytes(6) + GUEST4,
        who_has + bytes(14),
        b"\0\1\x08\0\6\4\0\2" + bytes(20),
        who_has,
    ]
    groups = (("dhcp", DHCP, four), ("dhcpv6", DHCPV6, six), ("ndp", NDP, neighbours),
              ("arp", ARP, arps))  # fmt: skip
    for name, operation, requests in groups:
        for first in (0, 0x1D, 0xEE):
            steps = [(operation, request) for request in requests]
            yield f"{name}-{first:02x}", bytes((first,)) + program.encode(steps)
    raw = [(RAW, bytes((operation,)) + requests[0]) for _, operation, requests in groups]
    yield "raw", b"\0" + program.encode([*raw, (RAW, b"\1" + bytes((0x80, 0x80)) + bytes(20))])


def mutate(data: bytes, rnd: Random) -> bytes:
    """Another program, seldom with other things to tell."""
    first = data[:1] or b"\0"
    if rnd.random() < 0.1:
        first = rnd.randbytes(1)
    return first + program.mutate(data[1:], rnd, len(OPERATIONS), _change, _fresh)


def _change(step: Step, rnd: Random) -> Step:
    return step[0], havoc(step[1], rnd, limit=1200, dictionary=DICTIONARY)


def _fresh(rnd: Random) -> Step:
    operation = rnd.randrange(len(OPERATIONS))
    if operation == DHCP:
        asked = [(rnd.choice((0, 12, 50, 53, 55, 61, 80)), rnd.randbytes(rnd.randrange(4)))]
        return operation, message4((53, bytes((rnd.randrange(4),))), *asked, flags=rnd.randrange(2))
    if operation == DHCPV6:
        some = [(rnd.choice((1, 2, 3, 4, 6, 39)), rnd.choice(DICTIONARY) * rnd.randrange(3))
                for _ in range(rnd.randrange(5))]  # fmt: skip
        return operation, message6(rnd.randrange(13), (1, GUEST_MAC), *some)
    return operation, rnd.randbytes(rnd.choice((8, 24, 28, 40)))
