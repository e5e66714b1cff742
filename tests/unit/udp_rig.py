"""A UDP translator between a :class:`~tests.unit.fakes.FakeLink` and real loopback sockets."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from passt.kernel.sockets import open_socket
from passt.userspace.config.model import Config, Rule
from passt.userspace.flow.nat import LOOPBACK4, LOOPBACK6, Nat
from passt.userspace.flow.rules import HOST
from passt.userspace.flow.table import FlowTable
from passt.userspace.forward.sockets import plans
from passt.userspace.loop import Loop
from passt.userspace.udp import Udp
from passt.userspace.udp.flow import UdpFlow
from passt.userspace.udp.side import Listener
from tests.unit.fakes import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    FakeLink,
    Packet,
    config,
    feed,
    run_until,
    settle,
    udp_frame,
)

if TYPE_CHECKING:
    from passt.userspace.splice.pool import SocketMaker

GUEST = {4: GUEST4, 6: GUEST6}
GATEWAY = {4: GATEWAY4, 6: GATEWAY6}
LOOPBACK = {4: LOOPBACK4, 6: LOOPBACK6}
LOOPBACK_TEXT = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

#: The guest's port in most tests; unprivileged and hardly in use.
GUEST_PORT = 24242


class Rig:
    """Everything around one translator."""

    def __init__(
        self,
        *rules: Rule,
        configuration: Config | None = None,
        limit: int = 1000,
        gso_udp: bool = True,
        maker: SocketMaker | None = None,
        ns_ifindex: int = 0,
    ) -> None:
        self.config = configuration or config()
        self.config.rules = list(rules)
        self.loop = Loop()
        self.link = FakeLink(gso_udp=gso_udp)
        self.nat = Nat(self.config)
        self.table = FlowTable(limit)
        self.udp = self.translator(maker, ns_ifindex)
        self._sockets: list[socket.socket] = []
        for rule in rules:
            for port in range(rule.first, rule.last + 1):
                self.listen(rule, port)

    def translator(self, maker: SocketMaker | None, ns_ifindex: int) -> Udp:
        """The translator, in these surroundings."""
        return Udp(self.config, self.nat, self.loop, self.link, self.table, maker, ns_ifindex)

    def listen(self, rule: Rule, port: int = 0, pif: int = HOST) -> Listener:
        """Attach a listening socket for ``port`` of ``rule``, by default the first."""
        port = port or rule.first
        sock = open_socket(plans(rule, self.config, 0)[0].spec(port).plain())
        self._sockets.append(sock)
        return self.udp.attach_listener(sock, rule, port, pif)

    def close(self) -> None:
        """Close every socket of the test."""
        for flow in self.flows():
            self.udp.end(flow)
        self.loop.round(0.0)
        for sock in self._sockets:
            sock.close()

    def flows(self) -> list[UdpFlow]:
        """All flows, in order of index."""
        return [flow for flow in self.table.flows() if isinstance(flow, UdpFlow)]

    def socket(self, version: int, address: str = "", port: int = 0) -> socket.socket:
        """A socket of the host, on loopback unless told otherwise."""
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.settimeout(5)
        sock.bind((address or LOOPBACK_TEXT[version], port))
        return sock

    def closed_port(self, version: int) -> int:
        """A port of the host's loopback that nobody has."""
        with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
            sock.bind((LOOPBACK_TEXT[version], 0))
            port: int = sock.getsockname()[1]
        return port

    def guest_sends(
        self,
        version: int,
        port: int,
        *payloads: bytes,
        to: bytes | None = None,
        source: bytes | None = None,
        source_port: int = GUEST_PORT,
        ttl: int = 64,
        gso_size: int = 0,
    ) -> None:
        """One batch of datagrams from the guest, by default to the host's loopback."""
        frames = [
            udp_frame(
                source or GUEST[version],
                to or GATEWAY[version],
                source_port,
                port,
                payload,
                ttl,
            )
            for payload in payloads
        ]
        self.feed(*frames, gso_size=gso_size)

    def feed(self, *frames: bytes, gso_size: int = 0) -> None:
        """One batch of frames from the guest."""
        feed(self.udp, *frames, batch_end=self.udp.batch_end, link=self.link, gso_size=gso_size)

    def guest_gets(self, count: int) -> list[Packet]:
        """The next ``count`` packets that reach the guest; there must not be more."""
        got: list[Packet] = []

        def enough() -> bool:
            got.extend(self.link.take())
            return len(got) >= count

        run_until(self.loop, enough)
        assert len(got) == count
        return got

    def settle(self) -> None:
        """Run until nothing happens any more; AssertionError if the loop spins."""
        settle(self.loop)


def free_port() -> int:
    """A port that is free in both versions; below the ephemeral range, so nobody takes it."""
    while True:
        port = random.randrange(20000, 30000)
        try:
            for family, any_address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.bind((any_address, port))
        except OSError:
            continue
        return port
