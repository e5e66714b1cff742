"""DHCPv6 service: who is answered, with what; read by scapy, and byte by byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LLT,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_RelayForward,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from passt.userspace import log
from passt.userspace.config.model import Config
from passt.userspace.services.dhcpv6 import Dhcp6Service, offers
from passt.userspace.wire import dhcp6, drops
from tests.unit.fakes import GUEST6, GUEST_MAC, OUR_LL, OUR_MAC
from tests.unit.services_rig import MAC_TEXT, Rig, ip

Make = Callable[..., Rig]

GUEST = "2001:db8:0:1::10"
FOREIGN = "2001:db8:9::9"
CLIENT_ID = DHCP6OptClientId(duid=Raw(b"\0\3\0\1" + GUEST_MAC))
IA = DHCP6OptIA_NA(iaid=0xABCD, T1=1, T2=2)


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


def frame(message: Packet | bytes, src: str = "fe80::15", dst: str = "ff02::1:2") -> Packet:
    """A frame with a message from the guest."""
    if isinstance(message, bytes):
        message = Raw(message)
    return (
        Ether(src=MAC_TEXT, dst="33:33:00:01:00:02")
        / IPv6(src=src, dst=dst)
        / UDP(sport=546, dport=547)
        / message
    )


def options(reply: Packet | None) -> list[tuple[int, bytes]]:
    """The options of a reply in their order, which fill it exactly."""
    assert reply is not None
    data = reply.original[54 + 8 + 4 :]
    found = []
    while data:
        code, length = struct.unpack_from("!HH", data)
        assert len(data) >= 4 + length
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def server_id(rig: Rig) -> bytes:
    """The identifier that the server gives itself."""
    return dict(options(rig.ask(frame(DHCP6_InfoRequest(trid=1) / CLIENT_ID))))[2]


def named(rig: Rig) -> Packet:
    """The option that names the server."""
    return DHCP6OptServerId(duid=Raw(server_id(rig)))


def with_address(address: str, code: type[Packet] = DHCP6OptIA_NA) -> Packet:
    """An association with an address in it."""
    inner = [DHCP6OptIAAddress(addr=address, preflft=7, validlft=8)]
    return code(iaid=0xABCD, **{"ianaopts" if code is DHCP6OptIA_NA else "iataopts": inner})


# Who is answered


def test_solicit(rig: Rig) -> None:
    message = DHCP6_Solicit(trid=0x123456) / CLIENT_ID / IA / DHCP6OptElapsedTime()
    reply = rig.ask(frame(message / DHCP6OptOptReq(reqopts=[23, 24]) / DHCP6OptRapidCommit()))
    assert reply is not None
    assert (reply[IPv6].src, reply[IPv6].dst) == ("fe80::1", "fe80::15")
    assert (reply[UDP].sport, reply[UDP].dport) == (547, 546)
    assert reply[DHCP6_Advertise].trid == 0x123456
    assert [code for code, _ in options(reply)] == [2, 3, 1]
    lease = reply[DHCP6OptIA_NA]
    assert (lease.iaid, lease.T1, lease.T2) == (0xABCD, 0xFFFFFFFF, 0xFFFFFFFF)
    (address,) = lease.ianaopts
    assert (address.addr, address.preflft, address.validlft) == (GUEST, 0xFFFFFFFF, 0xFFFFFFFF)
    assert bytes(reply[DHCP6OptClientId]) == bytes(CLIENT_ID)
    duid = reply[DHCP6OptServerId].duid
    assert isinstance(duid, DUID_LLT)
    assert (duid.hwtype, duid.lladdr) == (1, "9a:55:9a:55:9a:55")


def test_identifier_holds_the_time_of_start() -> None:
    assert dhcp6.duid_llt(OUR_MAC, 946684800.7) == b"\0\1\0\1" + bytes(4) + OUR_MAC
    assert dhcp6.duid_llt(OUR_MAC, 946684801)[4:8] == b"\0\0\0\1"
    # A clock that was never set.
    assert len(dhcp6.duid_llt(OUR_MAC, 0)) == 14


REPLIES = [
    # Type, named server, address; whether it is answered, codes of the options.
    (DHCP6_Solicit, "none", GUEST, [2, 3, 1]),
    (DHCP6_Solicit, "none", FOREIGN, [2, 3, 1]),
    (DHCP6_Solicit, "us", GUEST, None),
    (DHCP6_Request, "us", GUEST, [2, 3, 1]),
    (DHCP6_Request, "none", GUEST, None),
    (DHCP6_Request, "other", GUEST, None),
    (DHCP6_Renew, "us", GUEST, [2, 3, 1]),
    (DHCP6_Renew, "none", GUEST, None),
    (DHCP6_Renew, "other", GUEST, None),
    (DHCP6_Confirm, "none", GUEST, [2, 13, 1]),
    (DHCP6_Confirm, "us", GUEST, None),
    (DHCP6_Rebind, "none", GUEST, [2, 3, 1]),
    (DHCP6_Rebind, "none", FOREIGN, [2, 3, 1]),
    (DHCP6_Rebind, "us", GUEST, [2, 3, 1]),
    (DHCP6_Rebind, "other", GUEST, None),
    (DHCP6_InfoRequest, "none", "", [2, 1]),
    (DHCP6_InfoRequest, "us", "", [2, 1]),
    (DHCP6_InfoRequest, "other", "", None),
    (DHCP6_InfoRequest, "none", GUEST, None),
    (DHCP6_Release, "us", GUEST, None),
    (DHCP6_Decline, "us", GUEST, None),
    (DHCP6_Reply, "none", GUEST, None),
    (DHCP6_Advertise, "none", GUEST, None),
]


@pytest.mark.parametrize(("kind", "server", "address", "codes"), REPLIES)
def test_types(
    rig: Rig, kind: type[Packet], server: str, address: str, codes: list[int] | None
) -> None:
    message = kind(trid=5) / CLIENT_ID
    if server == "us":
        message /= named(rig)
    elif server == "other":
        message /= DHCP6OptServerId(duid=Raw(b"\0\1\0\1" + bytes(10)))
    if address:
        message /= with_address(address)
    reply = rig.ask(frame(message))
    if codes is None:
        assert reply is None
        return
    assert [code for code, _ in options(reply)] == codes
    assert reply is not None
    assert DHCP6_Advertise in reply if kind is DHCP6_Solicit else DHCP6_Reply in reply
    if 3 in codes:
        assert [inner.addr for inner in reply[DHCP6OptIA_NA].ianaopts] == [GUEST]
    if 13 in codes:
        assert reply[DHCP6OptStatusCode].statuscode == 0


def test_server_that_was_started_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """RENEW goes unanswered, REBIND finds the new one."""
    before = make()
    message = CLIENT_ID / named(before) / with_address(GUEST)
    assert before.ask(frame(DHCP6_Renew() / message)) is not None
    monkeypatch.setattr("time.time", lambda: 2e9)
    after = make()
    assert after.ask(frame(DHCP6_Renew() / message)) is None
    reply = after.ask(frame(DHCP6_Rebind() / CLIENT_ID / with_address(GUEST)))
    assert reply is not None and DHCP6_Reply in reply


def test_reply_goes_to_the_source_of_the_request(rig: Rig) -> None:
    reply = rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA, src="2001:db8:5::5"))
    assert reply is not None
    assert (reply[IPv6].src, reply[IPv6].dst) == ("fe80::1", "2001:db8:5::5")


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("fe80::15", "fe80::1"),
        ("fe80::15", "2001:db8::1"),
        ("::", "ff02::1:2"),
        ("ff02::1", "ff02::1:2"),
    ],
)
def test_addresses_that_are_not_answered(rig: Rig, src: str, dst: str) -> None:
    before = sum(drops.counts)
    assert rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA, src=src, dst=dst)) is None
    assert sum(drops.counts) == before + 1


def test_answer_makes_the_assigned_address_the_guests(rig: Rig) -> None:
    rig.ask(frame(DHCP6_Release() / CLIENT_ID, src="2001:db8:5::5"))
    assert rig.nat.observed6 == ip("2001:db8:5::5")
    rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA, src="2001:db8:5::5"))
    assert rig.nat.observed6 == GUEST6


# What is told


def test_only_the_first_association_is_served(rig: Rig) -> None:
    second = DHCP6OptIA_NA(iaid=0x99)
    temporary = DHCP6OptIA_TA(iaid=0x88)
    prefix = Raw(b"\0\x19\0\x0c" + bytes(12))
    reply = rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / temporary / IA / second / prefix))
    assert reply is not None
    assert [code for code, _ in options(reply)] == [2, 3, 1]
    assert reply[DHCP6OptIA_NA].iaid == 0xABCD
    assert [code for code, _ in options(rig.ask(frame(DHCP6_Solicit() / CLIENT_ID)))] == [2, 1]


def test_several_addresses(make: Make) -> None:
    """All in one association; each of them is right, any other one is not."""
    more = "fd00::9"
    rig = make(v6__more=[(ip(more), 64)])
    reply = rig.ask(frame(DHCP6_Solicit(trid=1) / CLIENT_ID / IA))
    assert reply is not None
    assert [address.addr for address in reply[DHCP6OptIA_NA].ianaopts] == [GUEST, more]
    for address, status in ((GUEST, 0), (more, 0), (FOREIGN, 4)):
        reply = rig.ask(frame(DHCP6_Confirm(trid=1) / CLIENT_ID / with_address(address)))
        assert reply is not None
        assert reply[DHCP6OptStatusCode].statuscode == status


def test_resolvers_search_list_and_name(make: Make) -> None:
    told = {"v6__dns": [ip("2001:db8::53"), ip("::1")], "search": ["a.example", "b.example"]}
    solicit = DHCP6_Solicit() / CLIENT_ID / IA
    rig = make(dhcp_dns=True, dhcp_search=True, fqdn="guest.example", **told)
    reply = rig.ask(frame(solicit))
    assert reply is not None
    assert [code for code, _ in options(reply)] == [2, 3, 1, 23, 24, 39]
    assert reply[DHCP6OptDNSServers].dnsservers == ["2001:db8::53", "::1"]
    assert reply[DHCP6OptDNSDomains].dnsdomains == ["a.example.", "b.example."]
    assert dict(options(reply))[24] == b"\1a\7example\0\1b\7example\0"
    assert dict(options(reply))[39] == b"\0\5guest\7example\0"
    assert [code for code, _ in options(make(**told).ask(frame(solicit)))] == [2, 3, 1]


@pytest.mark.parametrize(("asked", "answer"), [(0, 0), (1, 2), (4, 0), (5, 2)])
def test_name_flags(make: Make, asked: int, answer: int) -> None:
    rig = make(fqdn="a.b")
    message = DHCP6_InfoRequest() / CLIENT_ID / DHCP6OptClientFQDN(flags=asked, fqdn="x")
    assert dict(options(rig.ask(frame(message))))[39] == bytes((answer,)) + b"\1a\1b\0"


def test_options_of_the_user(make: Make) -> None:
    extra = {7: b"\xff", 23: None, 31: ip("2001:db8::7"), 60000: b"x"}
    rig = make(dhcp_dns=True, v6__dns=[ip("::1")], dhcpv6_opts=extra)
    told = options(rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA)))
    assert told[3:] == [(7, b"\xff"), (31, ip("2001:db8::7")), (60000, b"x")]


def test_what_does_not_fit_is_left_out(make: Make) -> None:
    rig = make(dhcpv6_opts={100: b"x" * 900, 101: b"y" * 900, 102: b"z" * 50}, fqdn="a.b")
    reply = rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA))
    assert [code for code, _ in options(reply)][3:] == [39, 100, 102]
    assert reply is not None and 40 + reply[IPv6].plen <= 1280


# Not on link


@pytest.mark.parametrize("kind", [DHCP6_Request, DHCP6_Renew, DHCP6_Confirm])
@pytest.mark.parametrize("association", [DHCP6OptIA_NA, DHCP6OptIA_TA])
def test_foreign_address(rig: Rig, kind: type[Packet], association: type[Packet]) -> None:
    message = kind(trid=9) / CLIENT_ID
    if kind is not DHCP6_Confirm:
        message /= named(rig)
    offending = with_address(FOREIGN, association)
    reply = rig.ask(frame(message / with_address(GUEST) / offending))
    assert reply is not None and DHCP6_Reply in reply
    told = options(reply)
    code = 3 if association is DHCP6OptIA_NA else 4
    confirm = kind is DHCP6_Confirm
    assert [number for number, _ in told] == [2, code, 1, *([13] if confirm else [])]
    if confirm:
        assert told[3][1] == b"\0\4Prefix not appropriate for link."
    fixed = bytes(offending)[4 : 16 if code == 3 else 8]
    assert told[1][1] == fixed + b"\0\x0d\0\x22\0\4Prefix not appropriate for link."
    assert len(told[1][1]) == (50 if code == 3 else 42)


def test_address_outside_of_an_association(rig: Rig) -> None:
    stray = DHCP6OptIAAddress(addr=FOREIGN)
    message = DHCP6_Request() / CLIENT_ID / named(rig) / with_address(GUEST) / stray
    assert [code for code, _ in options(rig.ask(frame(message)))] == [2, 3, 1]


def test_nested_options_stay_inside(rig: Rig) -> None:
    """An address that begins in an association and ends behind it is none."""
    outside = bytes(DHCP6OptIAAddress(addr=FOREIGN))
    crossing = Raw(b"\0\3\0\x14" + b"\0\0\xab\xcd" + bytes(8) + outside[:8] + outside[8:])
    message = DHCP6_Request() / CLIENT_ID / named(rig) / crossing
    assert [code for code, _ in options(rig.ask(frame(message)))] == [2, 3, 1]
    last = DHCP6_Request() / CLIENT_ID / named(rig) / with_address(GUEST)
    assert rig.ask(frame(last)) is not None


def test_short_address_is_none(rig: Rig) -> None:
    inner = b"\0\5\0\x17" + ip(FOREIGN) + bytes(7)
    short = Raw(b"\0\3\0\x27" + b"\0\0\xab\xcd" + bytes(8) + inner)
    message = DHCP6_Request() / CLIENT_ID / named(rig) / short
    assert [code for code, _ in options(rig.ask(frame(message)))] == [2, 3, 1]


# Hostile


def duid(length: int) -> Packet:
    return Raw(b"\0\1" + length.to_bytes(2, "big") + b"d" * length)


@pytest.mark.parametrize(("length", "answered"), [(0, False), (1, True), (128, True), (129, False)])
def test_client_identifier(rig: Rig, length: int, answered: bool) -> None:
    reply = rig.ask(frame(DHCP6_Solicit() / duid(length) / IA))
    assert (reply is not None) is answered
    if reply is not None:
        assert dict(options(reply))[1] == b"d" * length


@pytest.mark.parametrize("length", [0, 13, 15])
def test_server_identifier_of_wrong_size(rig: Rig, length: int) -> None:
    wrong = Raw(b"\0\2" + length.to_bytes(2, "big") + b"s" * length)
    for kind in (DHCP6_Request, DHCP6_Rebind, DHCP6_InfoRequest, DHCP6_Solicit):
        assert rig.ask(frame(kind() / CLIENT_ID / wrong)) is None


def test_association_too_short_is_absent(rig: Rig) -> None:
    reply = rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / Raw(b"\0\3\0\x0b" + bytes(11))))
    assert [code for code, _ in options(reply)] == [2, 1]


def test_relayed_message(rig: Rig) -> None:
    assert rig.ask(frame(DHCP6_RelayForward() / CLIENT_ID)) is None


def test_truncated_at_every_byte(rig: Rig) -> None:
    identity = bytes(CLIENT_ID)
    whole = b"\1abc" + identity + bytes(IA) + bytes(DHCP6OptElapsedTime())
    for size in range(len(whole) + 1):
        rig.advance(1)
        reply = rig.ask(frame(whole[:size]))
        assert (reply is not None) is (size >= 4 + len(identity))
        if reply is not None:
            assert (3 in dict(options(reply))) is (size >= 4 + len(identity) + 16)
        lying = bytearray(bytes(frame(whole)))
        lying[58:60] = (8 + size).to_bytes(2, "big")
        assert (rig.ask(bytes(lying)) is not None) is (size == len(whole))


def test_number_of_options_is_bounded(rig: Rig) -> None:
    start = b"\1abc" + bytes(CLIENT_ID)
    assert rig.ask(frame(start + b"\0\x99\0\0" * 255)) is not None
    assert rig.ask(frame(start + b"\0\x99\0\0" * 256)) is None
    nested = b"\0\x99\0\0" * 300
    inside = b"\0\3" + (12 + len(nested)).to_bytes(2, "big") + bytes(12) + nested
    assert rig.ask(frame(start + inside)) is None


@given(st.integers(0, 20), st.binary(max_size=400))
def test_any_datagram(kind: int, rest: bytes) -> None:
    service = Dhcp6Service(OUR_MAC, OUR_LL, GUEST6, {}, 0)
    payload = bytes((kind,)) + rest
    raw = bytes(4) + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    reply = service.handle(raw, 0, len(raw), ip("fe80::15"), ip("ff02::1:2"), GUEST_MAC)
    assert reply is None or len(reply) <= 14 + 1280


def test_mutated_requests(make: Make) -> None:
    rng = random.Random(7)
    rig = make(fqdn="a.b", dhcp_dns=True, v6__dns=[ip("::1")])
    message = DHCP6_Request() / CLIENT_ID / named(rig) / with_address(GUEST)
    whole = bytes(frame(message / DHCP6OptClientFQDN(fqdn="x")))
    answered = 0
    for _ in range(500):
        rig.advance(1)
        mutant = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutant[rng.randrange(62, len(mutant))] = rng.randrange(256)
        for answer in rig.send(bytes(mutant)):
            assert len(answer) <= 14 + 1280
            answered += 1
    assert answered > 100


def test_disabled_service_swallows(make: Make) -> None:
    for rig in (make(dhcpv6=False), make(v6__addr=None)):
        assert rig.ask(frame(DHCP6_Solicit() / CLIENT_ID / IA)) is None


def test_messages(
    rig: Rig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(rig)
    monkeypatch.setattr(log, "_windows", {})
    capfd.readouterr()
    for message in (
        DHCP6_Solicit() / CLIENT_ID,
        DHCP6_Renew() / CLIENT_ID / server,
        DHCP6_Rebind() / CLIENT_ID,
        DHCP6_InfoRequest() / CLIENT_ID,
        DHCP6_Confirm() / CLIENT_ID / with_address(FOREIGN),
    ):
        rig.ask(frame(message))
    assert capfd.readouterr().err.splitlines() == [
        "DHCPv6: received SOLICIT, sending ADVERTISE",
        "DHCPv6: received REQUEST/RENEW/CONFIRM, sending REPLY",
        "DHCPv6: received REBIND, sending REPLY",
        "DHCPv6: received INFORMATION_REQUEST, sending REPLY",
        f"DHCPv6: requested address {FOREIGN} not on link",
    ]


def test_offers_follow_the_configuration() -> None:
    assert offers(Config("pasta")) == {}
