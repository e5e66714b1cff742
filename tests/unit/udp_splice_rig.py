"""The loopback bypass for UDP with both of its sides on this host's loopback.

The "namespace" is a :class:`LocalMaker`, which makes its sockets here; the guest's address is
127.0.0.2 or ::1.  So ports of the two sides must differ, and clients whose port is to be kept
on the far side share it (SO_REUSEADDR).
"""

from __future__ import annotations

import os
import random
import select
import socket
from collections.abc import Callable, Sequence

from passt.kernel.sockets import SocketSpec, open_sockets
from passt.syscalls import bare_socket
from passt.userspace.config.model import Config, Rule
from passt.userspace.flow.nat import LOOPBACK6
from passt.userspace.flow.rules import SPLICE
from passt.userspace.udp.spliced import Half, SplicedFlow
from tests.unit.fakes import config, run_until
from tests.unit.udp_rig import FAMILY, LOOPBACK_TEXT, Rig

UDP = 17

#: The address of the guest that spliced datagrams are sent to.
NS_GUEST = {4: bytes((127, 0, 0, 2)), 6: LOOPBACK6}
NS_GUEST_TEXT = {4: "127.0.0.2", 6: "::1"}

Made = list[socket.socket | OSError]


class LocalMaker:
    """Makes sockets here, at once; counts, and remembers what was ordered bound."""

    def __init__(self) -> None:
        self.calls: list[SocketSpec] = []
        #: Made in advance, so far.
        self.stocked = 0
        #: While set, nothing can be made.
        self.failure: OSError | None = None
        self.made: list[socket.socket] = []

    def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        self.stocked += len(specs)
        done(self._make(specs))

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        self.calls += specs
        return self._make(specs)

    def _make(self, specs: Sequence[SocketSpec]) -> Made:
        if self.failure is not None:
            return [self.failure] * len(specs)
        made = open_sockets(spec.plain() for spec in specs)
        self.made += [sock for sock in made if isinstance(sock, bare_socket.socket)]
        return made

    def close(self) -> None:
        for sock in self.made:
            sock.close()


def free_pair() -> int:
    """A port that is free, as is the one above it, and that other test processes avoid.

    Ports between :func:`~tests.unit.udp_rig.free_port`'s and the ephemeral ones, in blocks by
    process, because sockets with SO_REUSEADDR would not notice each other.
    """
    start = 30000 + os.getpid() % 27 * 100
    while True:
        port = start + 2 * random.randrange(50)
        try:
            for number in (port, port + 1):
                for family, any_address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
                    with socket.socket(family, socket.SOCK_DGRAM) as sock:
                        sock.bind((any_address, number))
        except OSError:
            continue
        return port


def splice_config() -> Config:
    """A configuration whose guest has loopback addresses."""
    made = config()
    made.v4.addr = NS_GUEST[4]
    made.v6.addr = NS_GUEST[6]
    return made


class SpliceRig(Rig):
    """A translator with a listening socket of either side, at :attr:`port` and :attr:`ns_port`.

    What arrives at either goes to the port above it.
    """

    def __init__(
        self,
        *,
        configuration: Config | None = None,
        rule: Rule | None = None,
        ns_rule: Rule | None = None,
        limit: int = 1000,
        ns_ifindex: int = 0,
    ) -> None:
        self.maker = LocalMaker()
        port = rule.first if rule is not None else free_pair()
        ns_port = ns_rule.first if ns_rule is not None else port
        while ns_port == port:
            if ns_rule is not None:
                port = free_pair()
            else:
                ns_port = free_pair()
        super().__init__(
            configuration=configuration or splice_config(),
            limit=limit,
            maker=self.maker,
            ns_ifindex=ns_ifindex,
        )
        self.port = port
        self.ns_port = ns_port
        self.listener = self.listen(rule or Rule(UDP, port, port, port + 1))
        self.ns_listener = self.listen(
            ns_rule or Rule(UDP, ns_port, ns_port, ns_port + 1), pif=SPLICE
        )

    def close(self) -> None:
        for flow in self.spliced():
            self.udp.end_spliced(flow)
        super().close()
        self.udp.close()
        self.maker.close()

    def spliced(self) -> list[SplicedFlow]:
        """All spliced flows, in order of index."""
        return [flow for flow in self.table.flows() if isinstance(flow, SplicedFlow)]

    def halves(self) -> tuple[Half, Half]:
        """Both halves of the only flow, near and far."""
        (flow,) = self.spliced()
        assert flow.near is not None
        assert flow.far is not None
        return flow.near, flow.far

    def server(self, version: int, address: str = "") -> socket.socket:
        """Where datagrams of the host to :attr:`port` go."""
        return self.socket(version, address or NS_GUEST_TEXT[version], self.port + 1)

    def host_server(self, version: int, address: str = "") -> socket.socket:
        """Where datagrams of the namespace to :attr:`ns_port` go."""
        return self.socket(version, address or LOOPBACK_TEXT[version], self.ns_port + 1)

    def client(self, version: int, address: str = "", port: int = 0) -> socket.socket:
        """A socket on loopback that lets others have its port, too."""
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.settimeout(5)
        if port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address or LOOPBACK_TEXT[version], port))
        # Not earlier: the kernel would give several sockets one port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return sock

    def serve(self) -> None:
        """Run until no event is left; AssertionError if there is always another."""
        for _ in range(500):
            self.loop.round(0.0)
            if not select.select([self.loop.fileno()], [], [], 0)[0]:
                return
        raise AssertionError("the loop spins")

    def receive(self, sock: socket.socket, count: int) -> list[bytes]:
        """The payloads of the next ``count`` datagrams at ``sock``, and no more."""
        return [payload for payload, _ in self.receive_from(sock, count)]

    def receive_from(self, sock: socket.socket, count: int) -> list[tuple[bytes, tuple[str, int]]]:
        """The next ``count`` datagrams at ``sock`` and their sources, and no more."""
        got: list[tuple[bytes, tuple[str, int]]] = []
        sock.setblocking(False)

        def enough() -> bool:
            while True:
                try:
                    payload, source = sock.recvfrom(70000)
                except BlockingIOError:
                    return len(got) >= count
                got.append((payload, source[:2]))

        run_until(self.loop, enough)
        self.serve()
        enough()
        assert len(got) == count
        return got
