"""What the running program makes of reports about the host's network."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    IPv6,
)
from scapy.layers.l2 import Ether

from passt.kernel.follow.start import LOCAL, NOTHING, WORLD, Report
from passt.kernel.netlink.worker import FamilyTemplate, TemplateInfo
from passt.userspace import log
from passt.userspace.config import resolvconf
from passt.userspace.config.followed import plans_for, task_of
from passt.userspace.config.model import Config
from passt.userspace.config.parse import parse
from passt.userspace.config.resolve import resolve
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.rules import HOST
from passt.userspace.flow.table import Flow, FlowTable
from passt.userspace.following import Following
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.loop import Loop
from passt.userspace.services.services import LEASE, Services
from passt.userspace.stack import Stack
from tests.unit.fakes import FakeLink
from tests.unit.services_rig import MAC_TEXT, dissect, ip

Summary = tuple[int, str, bytes | None, int, bytes | None, bytes | None, list[bytes]]
V4, V6 = socket.AF_INET, socket.AF_INET6
A4: Summary = (3, "eth0", ip("192.0.2.2"), 24, ip("192.0.2.1"), None, [])
B4: Summary = (7, "wlan0", ip("198.51.100.9"), 26, ip("198.51.100.1"), None, [])
A6: Summary = (3, "eth0", ip("2001:db8:a::2"), 64, ip("fe80::a"), ip("fe80::2"), [])
B6: Summary = (7, "wlan0", ip("2001:db8:b::2"), 64, ip("fe80::b"), ip("fe80::3"), [])
RESOLV_CONF = b"nameserver 192.0.2.53\nnameserver 127.0.0.53\nsearch one.example\n"


class Follower:
    """Stands for the process: a socket pair, and a count of the times it was told to go on."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.proceeded = 0
        self.report: Report | None = None

    def fileno(self) -> int:
        return self.ours.fileno()

    def receive(self) -> Report | None:
        return self.report

    def proceed(self) -> None:
        self.proceeded += 1

    def close(self) -> None:
        self.ours.close()


class Forwarder:
    scopes: dict[int, int]

    def __init__(self) -> None:
        self.scopes = {}

    def set_scope(self, pif: int, ifindex: int) -> None:
        self.scopes[pif] = ifindex


class Engine:
    """A loop, services on a recorded link, and a table of flows."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.time = 1000.0
        self.loop = Loop(lambda: self.time)
        self.table = FlowTable()
        self.nat = Nat(config)
        self.link = FakeLink()
        services = Services(config, self.nat, self.link, self.loop)
        self.stack = Stack(config, self.nat, self.link, None, None, None, services)

    def send(self, frame: Ether) -> list[Ether]:
        raw = bytes(frame)
        buf = memoryview(bytearray(10) + raw + bytes(70))
        self.stack.receive(buf, 10, 10 + len(raw))
        return self.sent()

    def sent(self) -> list[Ether]:
        frames = [dissect(raw) for _, raw in self.link.sent]
        self.link.sent.clear()
        return frames


class Rig:
    """A program started on a host with A4 and A6, with the options *words*."""

    def __init__(self, *words: str, v4: Summary | None = A4, v6: Summary | None = A6) -> None:
        options = parse("pasta", [*words, "true"])
        template = TemplateInfo(v4 and FamilyTemplate(*v4), v6 and FamilyTemplate(*v6), [])
        self.template = template
        resolvers = resolvconf.parse(RESOLV_CONF)
        self.options = options
        self.config = resolve(options, (True, True), template, resolvers)
        self.engine = Engine(self.config)
        self.forwarder = Forwarder()
        self.follower = Follower()
        self.following = Following(
            options,
            self.engine,  # type: ignore[arg-type]
            self.forwarder,  # type: ignore[arg-type]
            resolvers,
            self.follower,  # type: ignore[arg-type]
        )

    def take(self, **fields: object) -> None:
        report = Report()
        for name, value in fields.items():
            setattr(report, name, value)
        self.following.take(report)


def test_other_network() -> None:
    rig = Rig("--config-net")
    rig.take(templates={V4: B4, V6: B6}, withdrawn=[A4[2], A6[2]])
    v4, v6 = rig.config.v4, rig.config.v6
    assert (v4.ifindex, v4.ifname, v4.addr, v4.prefix_len) == B4[:4]
    assert v4.gateway == v4.map_host_loopback == B4[4]
    assert (v6.addr, v6.gateway, v6.our_ll) == (B6[2], B6[4], B6[4])
    assert rig.engine.nat.observed4 == B4[2]
    assert rig.engine.nat.observed6 == B6[2]
    assert rig.forwarder.scopes == {HOST: 7}
    assert rig.engine.nat.outbound(ip("198.51.100.1")) == ip("127.0.0.1")
    assert rig.engine.nat.outbound(ip("192.0.2.1")) == ip("192.0.2.1")


def test_what_the_user_set_stays() -> None:
    rig = Rig("--config-net", "-a", "10.0.0.5/8", "-g", "10.0.0.1", "-D", "10.0.0.53")
    rig.take(templates={V4: B4, V6: A6}, resolv_conf=b"nameserver 198.51.100.53\n")
    v4 = rig.config.v4
    assert (v4.addr, v4.prefix_len, v4.gateway) == (ip("10.0.0.5"), 8, ip("10.0.0.1"))
    assert v4.dns == [ip("10.0.0.53")]
    assert v4.ifindex == B4[0]
    assert rig.engine.nat.observed4 == ip("10.0.0.5")


def test_network_appears_and_vanishes() -> None:
    rig = Rig("--config-net", v4=None, v6=None)
    assert rig.config.v4.local and rig.config.v6.local
    rig.take(templates={V4: A4, V6: A6})
    assert not (rig.config.v4.local or rig.config.v6.local)
    assert rig.config.dhcpv6
    assert (rig.config.v4.addr, rig.config.v6.addr) == (A4[2], A6[2])
    rig.take(templates={V4: None, V6: None}, withdrawn=[A4[2], A6[2]])
    assert rig.config.v4.addr == ip("169.254.2.1")
    assert rig.config.v6.addr is None
    assert rig.engine.nat.observed4 == ip("169.254.2.1")
    assert rig.engine.nat.observed6 is None


def test_address_learned_from_the_guest_stays_in_local_mode() -> None:
    rig = Rig("--config-net", v6=None)
    rig.engine.nat.observe6(ip("fe80::77"))
    rig.take(templates={V4: B4, V6: None})
    assert rig.config.v6.addr == ip("fe80::77")


def test_tunnel_without_router() -> None:
    """Connections of the host come from the router that there was, and it stands for the host."""
    rig = Rig("--config-net")
    tunnel: Summary = (9, "tun0", ip("10.8.0.2"), 32, None, None, [])
    rig.take(templates={V4: tunnel, V6: A6})
    v4 = rig.config.v4
    assert (v4.addr, v4.gateway, v4.map_host_loopback) == (ip("10.8.0.2"), A4[4], A4[4])
    assert rig.config.dhcp
    assert rig.engine.nat.inbound_source(ip("10.8.0.2")) == A4[4]
    # Where there is no such mapping, none comes of it.
    rig = Rig("--config-net", "--no-map-gw")
    rig.take(templates={V4: tunnel, V6: A6})
    assert (rig.config.v4.gateway, rig.config.v4.map_host_loopback) == (A4[4], None)


def test_guest_that_keeps_its_address_is_still_there() -> None:
    """Without --config-net it goes on with the former one until it asks again."""
    rig = Rig("--follow")
    rig.take(templates={V4: B4, V6: A6})
    assert rig.engine.nat.observed4 == A4[2]
    rig.engine.nat.observe4(ip("198.51.100.9"))
    assert rig.engine.nat.observed4 == B4[2]


def test_resolvers() -> None:
    rig = Rig("--config-net")
    v4 = rig.config.v4
    # The second is out of reach, and reached by the router's address.
    assert v4.dns == [ip("192.0.2.53"), ip("192.0.2.1")]
    assert (v4.dns_match, v4.dns_host) == (ip("192.0.2.1"), ip("192.0.2.53"))
    rig.take(resolv_conf=b"nameserver 127.0.0.1\nsearch two.example\n")
    assert v4.dns == [ip("192.0.2.1")]
    assert (v4.dns_match, v4.dns_host) == (ip("192.0.2.1"), ip("127.0.0.1"))
    assert rig.config.search == ["two.example"]
    assert rig.engine.nat.outbound_port(ip("192.0.2.1"), 53) == ip("127.0.0.1")
    # A new router takes the old one's part.
    rig.take(templates={V4: B4, V6: A6})
    assert (v4.dns, v4.dns_match) == ([ip("198.51.100.1")], ip("198.51.100.1"))


def test_same_again_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig("--config-net")
    told: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _, __, text, *words: told.append(text % words))
    rig.take(templates={V4: A4, V6: A6}, resolv_conf=RESOLV_CONF)
    assert told == []
    rig.take(templates={V4: B4, V6: A6})
    assert told == [
        "IPv4 follows the host: 198.51.100.9/26, router 198.51.100.1, by wlan0",
        "Resolvers follow the host",
    ]


def solicit() -> Ether:
    return Ether(src=MAC_TEXT) / IPv6(src="fe80::15", dst="ff02::2") / ICMPv6ND_RS()


def test_router_says_farewell_and_begins_anew() -> None:
    rig = Rig("--follow", "--dhcp-dns")
    rig.take(templates={V4: A4, V6: A6})
    assert rig.engine.sent() == []
    rig.engine.send(solicit())
    rig.take(templates={V4: A4, V6: B6}, resolv_conf=b"nameserver 2001:db8:b::53\n")
    farewell, new = rig.engine.sent()
    assert (farewell[IPv6].src, new[IPv6].src) == ("fe80::a", "fe80::b")
    assert (farewell[ICMPv6ND_RA].routerlifetime, new[ICMPv6ND_RA].routerlifetime) == (0, 65535)
    old, other = farewell[ICMPv6NDOptPrefixInfo], new[ICMPv6NDOptPrefixInfo]
    assert (old.prefix, old.validlifetime, old.preferredlifetime) == ("2001:db8:a::", 0, 0)
    assert (other.prefix, other.validlifetime) == ("2001:db8:b::", 0xFFFFFFFF)
    assert new[ICMPv6NDOptRDNSS].dns == ["2001:db8:b::53"]


def test_nobody_listens_nobody_is_told() -> None:
    rig = Rig("--config-net")
    rig.take(templates={V4: A4, V6: B6})
    assert rig.engine.sent() == []


def dhcp(*options: object, **fields: object) -> Ether:
    from scapy.layers.inet import IP, UDP

    message = BOOTP(chaddr=b"\x52\x54\x00\x00\xaa\x01", xid=7, **fields) / DHCP(
        options=[*options, "end"]
    )
    return (
        Ether(src=MAC_TEXT)
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / message
    )


def options_of(frame: Ether) -> dict[str, object]:
    return {name: value for name, value, *_ in (o for o in frame[DHCP].options if len(o) > 1)}


def test_leases_are_short_and_former_addresses_are_refused() -> None:
    rig = Rig("--follow")
    (offer,) = rig.engine.send(dhcp(("message-type", "discover")))
    assert options_of(offer)["lease_time"] == LEASE
    (ack,) = rig.engine.send(dhcp(("message-type", "request"), ciaddr="192.0.2.2"))
    assert options_of(ack)["message-type"] == 5
    rig.take(templates={V4: B4, V6: A6})
    (nak,) = rig.engine.send(dhcp(("message-type", "request"), ciaddr="192.0.2.2"))
    assert (nak[BOOTP].ciaddr, nak[BOOTP].yiaddr) == ("0.0.0.0", "0.0.0.0")
    assert options_of(nak)["message-type"] == 6
    (nak,) = rig.engine.send(
        dhcp(("message-type", "request"), ("requested_addr", "192.0.2.2")),
    )
    assert options_of(nak)["message-type"] == 6
    # Who believes in any other address is told the right one, as ever.
    (ack,) = rig.engine.send(dhcp(("message-type", "request"), ciaddr="203.0.113.9"))
    assert (ack[BOOTP].yiaddr, options_of(ack)["message-type"]) == ("198.51.100.9", 5)
    # Back to the first: it is the right one again.
    rig.take(templates={V4: A4, V6: A6})
    (ack,) = rig.engine.send(dhcp(("message-type", "request"), ciaddr="192.0.2.2"))
    assert options_of(ack)["message-type"] == 5


def test_leases_are_for_ever_where_we_configure() -> None:
    (offer,) = Rig("--config-net").engine.send(dhcp(("message-type", "discover")))
    assert options_of(offer)["lease_time"] == 0xFFFFFFFF


class Some(Flow):
    """A flow that counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[object, object]] = []

    def strand(self, lost: object, withdrawn: object) -> None:
        self.asked.append((lost, withdrawn))


def test_flows_are_asked_some_per_round_and_then_the_follower_goes_on() -> None:
    rig = Rig("--config-net")
    flows = [Some() for _ in range(1000)]
    for flow in flows:
        assert rig.engine.table.add(flow)
    lost, withdrawn = ip("192.0.2.2"), ip("10.0.0.1")
    rig.take(lost=[lost], withdrawn=[withdrawn], waits=True)
    assert 0 < sum(len(flow.asked) for flow in flows) < 1000
    assert rig.follower.proceeded == 0
    # One that ends in between is left alone.
    rig.engine.table.remove(flows[-1])
    for _ in range(10):
        rig.engine.loop.round(0.0)
    assert [len(flow.asked) for flow in flows] == [1] * 999 + [0]
    assert flows[0].asked == [(frozenset((lost,)), frozenset((withdrawn,)))]
    assert rig.follower.proceeded == 1


def test_ping_whose_address_the_kernel_does_not_tell_goes_on() -> None:
    """An error of getsockname(2) must not get to the loop."""

    class Silent(socket.socket):
        def getsockname(self) -> object:
            raise OSError(105, "No buffer space available")

    ended: list[object] = []
    owner = SimpleNamespace(end=ended.append)
    with Silent(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        key = ip("192.0.2.2") + ip("10.0.0.1") + b"\0\7"
        flow = EchoFlow(owner, sock, key, ip("10.0.0.1"), ("10.0.0.1", 0), multicast=False)  # type: ignore[arg-type]
        flow.strand(frozenset((ip("192.0.2.2"),)), frozenset())
        assert not ended
        flow.strand(frozenset(), frozenset((ip("192.0.2.2"),)))
        assert ended == [flow]


def test_nothing_to_end_goes_on_at_once() -> None:
    rig = Rig("--config-net")
    rig.take(withdrawn=[ip("192.0.2.2")], waits=True)
    assert rig.follower.proceeded == 1


def test_end_of_the_follower_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "warn", lambda text, *_: told.append(text))
    rig = Rig("--config-net")
    told.clear()
    rig.follower.theirs.close()
    for _ in range(3):
        rig.engine.loop.round(0.0)
    assert told == ["The host's network is not followed any more"]


# What the follower is told at its start.


def test_task() -> None:
    rig = Rig("--config-net", "--outbound-if4", "wlan0", "-g", "fe80::1", v4=None)
    task = task_of(rig.options, rig.config, rig.template, 9)
    assert task.wishes == [(V4, None, "wlan0", False, False), (V6, None, None, False, True)]
    assert task.grades == {V4: NOTHING, V6: WORLD}
    assert task.resolvers
    assert task.addresses == [A6[2]]
    assert task.plan is not None
    plans = task.plan({V4: B4, V6: None})
    v4, v6 = plans[V4], plans[V6]
    assert v4 is not None and v4.copy_addresses and v4.copy_routes and v4.address == B4[2]
    assert v6 is not None and v6.local and v6.gateway == ip("fe80::1") and v6.address is None


def test_task_without_configuring() -> None:
    rig = Rig("--follow", "-D", "none", "-S", "none", v6=(*A6[:4], None, *A6[5:]))
    task = task_of(rig.options, rig.config, rig.template, 9)
    assert task.plan is None
    assert not task.resolvers
    assert task.grades == {V4: WORLD, V6: LOCAL}


def test_versions_that_are_off_are_not_followed() -> None:
    rig = Rig("--config-net")
    rig.config.v6.enabled = False
    assert [wish[0] for wish in task_of(rig.options, rig.config, rig.template, 9).wishes] == [V4]
    rig.take(templates={V4: B4})
    assert rig.config.v6.addr == A6[2]
    assert list(plans_for(rig.options, {V4: None})) == [V4]


def test_end_of_the_program_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel is closed in a round that has an event for it."""
    told: list[str] = []
    monkeypatch.setattr(log, "warn", lambda text, *_: told.append(text))
    rig = Rig("--config-net")
    told.clear()
    rig.follower.close()
    rig.following._on_event(1)
    assert told == []
