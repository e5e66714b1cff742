"""The real stack with the real translators, between a guest made of bytes and sinks.

Everything of the product is there but the tap device, for which there is a link that records, or
the real one over a socket, and the far ends (:mod:`tests.fuzz.confined`).  Time is the harness's
own.  What must hold whatever happens is checked as it happens:

* a frame of the guest is passed on, answered, or dropped and *counted*, and it is dropped if
  and only if the second decoder says so;
* every frame to the guest is sound (:func:`tests.fuzz.oracle.outgoing`), comes from and goes to
  addresses that can be on a link, and is no larger than the MTU, except for datagrams and echo
  replies, which arrive whole or not at all;
* the payload of TCP is what the peer sent, at the sequence number where it belongs: stale
  buffers would show here;
* the observed address of the guest is the source of one of its frames, and never a group,
  loopback or ours;
* the loop comes to rest, messages are limited and can be formatted;
* when all is over no descriptor, flow, or byte held in memory is left.
"""

from __future__ import annotations

import os
import select
import socket
import time
import zlib
from collections.abc import Callable

import passt.kernel.sockets
import passt.userspace.icmp.translator
import passt.userspace.services.services
import passt.userspace.tcp.tcp
from passt.syscalls import bare_socket
from passt.userspace.config.model import Config
from passt.userspace.flow.budget import Budget
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.table import Flow, FlowTable
from passt.userspace.icmp import Icmp
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.loop import EPOLLIN
from passt.userspace.multicast import translator as multicast
from passt.userspace.multicast.members import MAX_PORTS, MAX_SOCKETS, Member
from passt.userspace.multicast.policy import is_joined
from passt.userspace.multicast.sockets import Place
from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from passt.userspace.tcp.context import Context
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.tcp.tcp import Tcp
from passt.userspace.udp import Udp
from passt.userspace.udp.flow import UdpFlow
from passt.userspace.udp.spliced import SplicedFlow
from passt.userspace.wire import drops
from tests.fuzz import oracle
from tests.fuzz.confined import Net, abandon
from tests.fuzz.invariants import check_frame, check_tcp, is_service
from tests.fuzz.journal import Journal
from tests.fuzz.standins import Epoch, Maker, Peer, SocketTap, WorldLoop
from tests.unit import fakes
from tests.unit.tcp_kit import FEATURES

MASK = 0xFFFFFFFF

#: Flows at most: enough for everything to happen, few enough for a table to be full.
LIMIT = 12

#: Addresses that the guest can be given later on, and other routers.
_ASSIGNED = (
    (fakes.GUEST4, fakes.GUEST6),
    (b"\xc0\0\2\x63", fakes.GUEST6[:15] + b"\x63"),
    (b"\xa9\xfe\2\1", None),
    (b"\xc6\x33\x64\x63", b"\xfd" + bytes(14) + b"\x63"),
)
_ROUTER4, _ROUTER6 = b"\xc6\x33\x64\1", b"\xfe\x80" + bytes(13) + b"\x77"

#: Index of the loopback interface, where groups are joined.
_LOOPBACK = 1

#: Where code under test takes its sockets from.
_WITH_SOCKETS = (passt.userspace.tcp.tcp, passt.userspace.icmp.translator, passt.kernel.sockets)

_net: Net | None = None

_real_places = multicast.places  # type: ignore[attr-defined]


class World:
    """To be entered, fed, and left, where the last checks are made."""

    def __init__(
        self,
        *,
        mtu: int = 1500,
        gso: bool = True,
        peek_off: bool = True,
        debug: bool = False,
        memory: int = 0,
        splices: bool = False,
        tap: bool = False,
        groups: bool = False,
        tweak: Callable[[Config], None] | None = None,
    ) -> None:
        global _net
        if _net is None:
            _net = Net()
        self.net = _net
        self.net.clear()
        self._descriptors = len(os.listdir("/proc/self/fd"))
        self._journal = Journal(debug=debug)
        self.time = 1000.0
        self.loop = WorldLoop(lambda: self.time, self.net)
        self.link: fakes.FakeLink | SocketTap
        if tap:
            self.link = SocketTap(gso=gso)
        else:
            self.link = fakes.FakeLink(gso_udp=gso)
            self.link.gso_tcp4 = self.link.gso_tcp6 = gso
        self.config = fakes.config()
        self.config.mtu = mtu
        if tweak is not None:
            tweak(self.config)
        self.nat = Nat(self.config)
        self.table = FlowTable(LIMIT, Budget(memory) if memory else None)
        features = type(FEATURES).__new__(type(FEATURES))
        for name in type(FEATURES).__slots__:
            setattr(features, name, getattr(FEATURES, name))
        features.peek_off = FEATURES.peek_off and peek_off
        surroundings = self.config, self.nat, self.loop, self.link, self.table
        self.ctx = Context(*surroundings, features=features)
        # The same in every run, so that inputs can acknowledge it.
        self.ctx.isn = zlib.crc32  # type: ignore[method-assign]
        self.tcp = Tcp(self.ctx) if self.config.tcp else None
        #: There is a namespace for datagrams to bypass the link to.
        self.splices = splices
        maker = Maker() if splices else None
        #: The UDP translator, if it is the one with multicast.
        self.groups: multicast.Multicast | None = None
        if groups and self.config.udp:
            places = self._places(self.config)
            self.groups = multicast.Multicast(*surroundings, maker, 0, places)
            multicast.places = self._places  # type: ignore[attr-defined]
        self.udp: Udp | None = self.groups
        if self.udp is None and self.config.udp:
            self.udp = Udp(*surroundings, maker)
        self.icmp = Icmp(*surroundings) if self.config.icmp else None
        # Our DHCPv6 identifier is made of the time of our start.
        passt.userspace.services.services.time = Epoch()  # type: ignore[assignment]
        try:
            services = Services(self.config, self.nat, self.link, self.loop)
        finally:
            passt.userspace.services.services.time = time
        self.stack = Stack(
            self.config, self.nat, self.link, self.tcp, self.udp, self.icmp, services, self.groups
        )
        self.link.receiver = self._receive
        #: By the key of its flow, whoever had it.
        self.peers: dict[bytes, list[Peer]] = {}
        self._count = 0
        self._sources: set[bytes] = {fakes.GUEST_MAC, b"\xff" * 6}
        self._held: list[memoryview] = []

    def __enter__(self) -> World:
        for module in _WITH_SOCKETS:
            module.socket = self.net.shim  # type: ignore[attr-defined]
        self._journal.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.settle()
            self._end(check=kind is None)
        finally:
            multicast.places = _real_places  # type: ignore[attr-defined]
            for module in _WITH_SOCKETS:
                module.socket = bare_socket  # type: ignore[attr-defined]
            self._journal.__exit__()

    def _end(self, *, check: bool) -> None:
        """End everything, and see whether anything is left."""
        self.net.clear()
        self.link.accept = True
        for group in list(self.groups._groups) if self.groups is not None else ():
            # Some have no sockets.
            self.groups._leave(group)
        for flow in self.table.flows():
            self.end(flow)
        for peers in self.peers.values():
            for peer in peers:
                abandon(peer.sock)
        self.loop.round(0.0)
        for sock in self.loop._closing:
            sock.close()
        self.loop._epoll.close()
        self.net.clear()
        if isinstance(self.link, SocketTap):
            self.drain()
            self.link.close()
        if not check:
            return
        self.drain()
        assert self.table.count == 0, "flows are left"
        assert self.ctx.budget.data == 0, "data are left"
        assert self.ctx.budget.flows == 0, "flows are left in the budget"
        assert not self.table._counts, "sources are left"
        if self.groups is not None:
            assert not self.groups._groups, "memberships are left"
            assert not self.groups._members, "members are left"
            assert not self.groups._senders, "senders are left"
            assert not self.groups._called, "flows to groups are left"
        assert not (self.ctx.flows4 or self.ctx.flows6 or self.ctx.uploading), "TCP remembers"
        if self.udp is not None:
            assert not self.udp.flows, "UDP remembers flows of the guest"
            assert not self.udp._host.flows, "UDP remembers flows of the host"
            assert not self.udp._namespace.flows, "UDP remembers flows of the namespace"
        if self.icmp is not None:
            assert not self.icmp._flows, "ICMP remembers"
        left = len(os.listdir("/proc/self/fd")) - self._descriptors
        # Fewer if garbage of somebody else was collected meanwhile.
        assert left <= 0, f"{left} descriptors are left"

    def end(self, flow: Flow) -> None:
        """End one flow, whatever it is."""
        if isinstance(flow, TcpFlow):
            flow.abort("the world ends")
        elif isinstance(flow, UdpFlow):
            flow.end()
        elif isinstance(flow, SplicedFlow) and self.udp is not None:
            self.udp.end_spliced(flow)
        elif isinstance(flow, EchoFlow) and self.icmp is not None:
            self.icmp.end(flow)

    # The guest.

    def feed(self, frame: bytes, gso_size: int = 0) -> None:
        """One frame from the guest: by the tap, or in a buffer that changes once it may."""
        link = self.link
        if isinstance(link, SocketTap):
            while not link.inject(frame, gso_size):
                link.on_event(EPOLLIN)
            return
        buf = memoryview(bytearray(10) + frame + b"\x5a" * 70)
        link.rx_gso_size = gso_size
        held = self._receive(buf, 10, 10 + len(frame))
        link.rx_gso_size = 0
        if held:
            self._held.append(buf)
        else:
            buf[:] = b"\xa5" * len(buf)

    def _receive(self, buf: memoryview, off: int, end: int) -> object:
        """Have the stack receive a frame, and see what it does with it."""
        frame = bytes(buf[off:end])
        expected = oracle.incoming(frame)
        if len(frame) >= 14:
            self._sources.add(frame[6:12])
        dropped, flows = sum(drops.counts), self.table.count
        sent = len(self.link.sent) + self.link.tx_dropped
        observed = self._observed()
        known = expected is not None and self._flow_of(expected) is not None
        held = self.stack.receive(buf, off, end)
        dropped = sum(drops.counts) - dropped
        answered = len(self.link.sent) + self.link.tx_dropped - sent
        assert dropped <= 1, "counted twice"
        self._check_observed(observed, expected)
        mac = self.link.guest_mac
        assert any(mac), "a guest without a MAC"
        assert not mac[0] & 1, "a guest with the MAC of a group"
        assert mac != fakes.OUR_MAC, "a guest with our MAC"
        report = oracle.membership(frame) if self.groups is not None else None
        if report is not None and report.size in self.groups._places:  # type: ignore[union-attr]
            assert not answered, "reports are not answered"
            assert not held, "reports are not held"
            assert dropped or report.records is not None, "malformed, but not counted"
        elif expected is None or not self._enabled(expected):
            assert dropped == 1, "must be dropped, and counted"
            assert not answered, "must be dropped, not answered"
            assert self.table.count == flows, "must be dropped, and not make a flow"
            assert not held, "must be dropped, not held"
        elif dropped:
            assert self.table.count <= flows, "dropped, but it made a flow"
        elif isinstance(expected.kind, int) and not is_service(expected):
            known = known or self._flow_of(expected) is not None
            assert known or answered, f"neither passed on nor answered nor counted: {expected}"
        self.drain()
        return held

    def _enabled(self, packet: oracle.Incoming) -> bool:
        """Whether the configuration has a use for ``packet``."""
        config = self.config
        v4 = packet.kind == "arp" or len(packet.src) == 4
        if not (config.v4 if v4 else config.v6).enabled:
            return False
        if packet.kind == oracle.TCP:
            return config.tcp
        if packet.kind == "arp" or is_service(packet):
            return True
        return config.udp if packet.kind == oracle.UDP else config.icmp

    def _flow_of(self, packet: oracle.Incoming) -> Flow | None:
        """The flow that ``packet`` belongs to, if there is one."""
        if packet.kind == oracle.TCP:
            flows = self.ctx.flows4 if len(packet.src) == 4 else self.ctx.flows6
            return flows.get(packet.key)
        if packet.kind == oracle.UDP:
            return self.udp.flows.get(packet.key) if self.udp is not None else None
        if packet.kind in (oracle.ICMP, oracle.ICMPV6) and self.icmp is not None:
            return self.icmp._flows.get(packet.src + packet.dst + packet.l4[4:6])
        return None

    def _observed(self) -> tuple[bytes | None, ...]:
        nat = self.nat
        return nat.observed4, nat.observed6, nat.observed_ll

    def _check_observed(
        self, before: tuple[bytes | None, ...], packet: oracle.Incoming | None
    ) -> None:
        """What the guest's addresses were, and the frame that may have changed them."""
        for old, new, family in zip(
            before, self._observed(), (self.config.v4, self.config.v6, None), strict=True
        ):
            if old == new:
                continue
            assert new is not None
            assert family is None or old is None or not family.addr_fixed, "fixed, but changed"
            assert oracle.is_unicast(new), f"a guest with the address {new.hex()}"
            assert not oracle.is_loopback(new), f"a guest with the address {new.hex()}"
            ours = self.config.v4.gateway, self.config.v6.gateway, self.config.v6.our_ll
            assert new not in ours, "a guest with our address"
            # Who is assigned an address by DHCPv6 has it.
            assert packet is None or new in (packet.src, self.config.v6.addr), "of nobody"

    def end_batch(self) -> None:
        """The link read what there was."""
        if isinstance(self.link, SocketTap):
            while self.link.waiting():
                self.link.on_event(EPOLLIN)
        self.link.batch_end()
        for buf in self._held:
            buf[:] = b"\xa5" * len(buf)
        self._held.clear()
        if self.udp is not None:
            assert not self.udp._touched, "UDP waits for another batch"
        assert not self.ctx.touched, "TCP waits for another batch"
        self.drain()

    def _places(self, config: Config) -> dict[int, Place]:
        """Where multicast is: the loopback interface, of a version that has a router."""
        families = (4, config.v4), (16, config.v6)
        return {
            size: Place(size == 4, _LOOPBACK, "lo")
            for size, each in families
            if each.enabled and each.gateway is not None
        }

    def renew(self, choice: int) -> None:
        """The host's network changed, and with it what the guest has: one of a few things."""
        config = self.config
        former4, former6 = config.v4.addr, config.v6.addr
        routers = (fakes.GATEWAY4, fakes.GATEWAY6), (_ROUTER4, _ROUTER6), (None, None)
        for family, addr, router in zip(
            (config.v4, config.v6),
            _ASSIGNED[choice & 3],
            routers[(choice >> 2) % 3],
            strict=True,
        ):
            if not family.addr_fixed:
                family.addr = addr
                family.own = frozenset((addr,) if addr is not None else ())
            if family.map_host_loopback is not None:
                family.map_host_loopback = router or family.map_host_loopback
            family.gateway = router
        gone = {former4, former6} - {config.v4.addr, config.v6.addr, None}
        withdrawn = frozenset(addr for addr in gone if addr is not None)
        self.nat.renew(withdrawn)
        self.stack.renew(former4 if former4 != config.v4.addr else None)
        lost = frozenset((b"\x7f\0\0\1",) if choice & 0x40 else ())
        for flow in self.table.flows():
            flow.strand(lost, withdrawn if choice & 0x80 else frozenset())
        self.drain()

    # Time and events.

    def settle(self) -> None:
        """End the batch, and serve events until there are none."""
        self.end_batch()
        for _ in range(300):
            self.loop.round(0.0)
            self.meet()
            self.drain()
            if not self.loop._again and not select.select([self.loop], [], [], 0)[0]:
                self.check()
                return
        raise AssertionError("the loop spins")

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at timers, at most at 200 of them."""
        self.settle()
        target = self.time + seconds
        for _ in range(200):
            timers = self.loop._timers
            due = min((due for due, _, timer in timers if timer.callback), default=target)
            if due > target:
                break
            self.time = max(self.time, due)
            self.settle()
            if due == target:
                break
        self.time = max(self.time, target)
        self.settle()

    def meet(self) -> None:
        """Find out whose connections arrived at the sinks."""
        for sock in self.net.accept():
            try:
                name = sock.getpeername()
            except OSError:
                # Reset again before it was seen.
                sock.close()
                continue
            for flow in self.tcp_flows():
                if socket.socket.getsockname(flow.sock)[:2] == name[:2]:
                    self.introduce(flow.key, sock)
                    break
            else:
                abandon(sock)

    def introduce(self, key: bytes, sock: socket.socket) -> Peer:
        """``sock`` is the far end of the flow with ``key``."""
        peer = Peer(self._count, sock)
        self._count += 1
        self.peers.setdefault(key, []).append(peer)
        return peer

    def tcp_flows(self) -> list[TcpFlow]:
        """TCP flows in order of index."""
        return [flow for flow in self.table.flows() if isinstance(flow, TcpFlow)]

    # Checks.

    def drain(self) -> None:
        """Check and forget what was sent to the guest."""
        for prefix, frame in self.link.sent:
            self._check_frame(oracle.outgoing(prefix, frame, fakes.OUR_MAC))
        self.link.sent.clear()

    def _check_frame(self, frame: oracle.Outgoing) -> None:
        assert frame.dst_mac in self._sources, "to a MAC that the guest never had"
        check_frame(frame, self.config.mtu)
        if frame.kind == oracle.TCP and frame.payload:
            self._check_payload(frame)

    def _check_payload(self, frame: oracle.Outgoing) -> None:
        key = frame.dst + frame.src + frame.l4[2:4] + frame.l4[:2]
        position = (oracle.number(frame.l4, 4, 4) - zlib.crc32(key) - 1) & MASK
        peers = self.peers.get(key, ())
        assert any(
            position + len(frame.payload) <= peer.sent
            and frame.payload == peer.stream(position, len(frame.payload))
            for peer in peers
        ), f"payload that no peer sent, at {position}"

    def check(self) -> None:
        """What holds between events."""
        held = 0
        members: list[tuple[bytes, int]] = []
        for flow in self.table.flows():
            if isinstance(flow, TcpFlow):
                check_tcp(flow)
                held += flow.holds()
            elif isinstance(flow, Member) and self.groups is not None:
                members.append((flow.group_addr, flow.port))
            elif isinstance(flow, UdpFlow) and self.udp is not None:
                assert not flow.parts
                assert not flow.touched
                assert self.udp.flows.get(flow.guest_key) is not None
                assert len(flow.guest_key) in (12, 36)
        assert self.ctx.budget.data == held, "count of data held"
        assert held <= self.ctx.budget.data_limit, "more than the budget"
        self._check_groups(members)
        flows = [*self.ctx.flows4.items(), *self.ctx.flows6.items()]
        assert all(flow.key == key and flow.index >= 0 for key, flow in flows)
        assert len(self.loop._timers) < 2000, "timers pile up"

    def _check_groups(self, members: list[tuple[bytes, int]]) -> None:
        """What the guest listens to, and the sockets for it by group and port."""
        if self.groups is None:
            return
        known = self.groups._groups
        assert len(known) <= multicast.MAX_GROUPS, "too many groups"
        assert self.groups._members == len(members) <= MAX_SOCKETS, "count of members"
        assert sorted(members) == sorted(
            (group, port) for group, each in known.items() for port in each.members
        )
        for group, each in known.items():
            assert is_joined(group), f"joined {group.hex()}"
            assert not each.filter.is_empty, "a member that hears nobody"
            assert len(each.filter.sources) <= 64, "sources"
            assert len(each.sent) <= MAX_PORTS, "ports"
            assert all(member.filter == each.filter for member in each.members.values())
