"""Listening sockets of rules in two real namespaces, tended by a real loop.

The translators are stand-ins that accept and answer, so that what is tested is who listens
where, and when.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from passt.kernel.sockdiag import SPEC, SocketDiag
from passt.kernel.sockets import SocketSpec, open_socket, open_sockets
from passt.syscalls import bare_socket
from passt.userspace.config import ports
from passt.userspace.config.model import Config
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, IPPROTO_UDP, SPLICE, Rule, RuleTable
from passt.userspace.forward.forwarder import Forwarder
from passt.userspace.forward.portset import span
from passt.userspace.forward.proclist import open_port_lists
from passt.userspace.forward.scan import PortScan
from passt.userspace.forward.side import ForwardError
from passt.userspace.loop import EPOLLIN, Loop
from tests.system.kit.netns import Netns
from tests.system.kit.servers import hold_ports

pytestmark = pytest.mark.system

CAPS = 0x3F
Made = list[socket.socket | OSError]


class Maker:
    """Makes sockets in a namespace, as its thread would."""

    def __init__(self, netns: Netns) -> None:
        self.netns = netns

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        plain = [spec.plain() for spec in specs]
        return self.netns.call(lambda: open_sockets(plain))

    def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        done(self.call(specs))


class Greeter:
    """Answers every connection or datagram with the port it came to."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.sockets: set[socket.socket] = set()

    def attach_listener(self, sock: socket.socket, rule: Rule, port: int, pif: int) -> object:
        answer = f"{pif} {port} {rule.target_port(port)}".encode()

        def serve(_events: int) -> None:
            if sock.type == socket.SOCK_STREAM:
                connection, _ = bare_socket.accept(sock)
                connection.sendall(answer)
                connection.close()
            else:
                _, peer = sock.recvfrom(1)
                sock.sendto(answer, peer)

        if rule.protocol == IPPROTO_TCP:
            sock.listen(16)
        self.loop.add(sock.fileno(), EPOLLIN, serve)
        self.sockets.add(sock)
        return sock

    def detach_listener(self, handle: object) -> None:
        assert isinstance(handle, bare_socket.socket)
        self.sockets.remove(handle)
        self.loop.close(handle, handle.fileno())


class Forwarding:
    """A forwarder between ``host`` and ``inner``, by specifiers as on a command line."""

    def __init__(self, host: Netns, inner: Netns, *words: str, netlink: bool = True) -> None:
        self.netns = {HOST: host, SPLICE: inner}
        made = self.tables(*words)
        config = Config("pasta")
        config.rule_caps = CAPS
        config.rules, config.rules_ns = (table.rules() for table in made)
        self.loop = Loop()
        self.greeter = Greeter(self.loop)
        self.forwarder = Forwarder(config)
        makers = {pif: Maker(netns) for pif, netns in self.netns.items()}
        for pif, maker in makers.items():
            self.forwarder.open_fixed(pif, maker.call)
            self.forwarder.scan(pif, self._scan(pif, netlink))
        self.forwarder.open_auto({pif: maker.call for pif, maker in makers.items()})
        self.forwarder.attach(self.loop, {IPPROTO_TCP: self.greeter, IPPROTO_UDP: self.greeter})
        for pif, maker in makers.items():
            self.forwarder.use(pif, maker)

    def tables(self, *words: str) -> list[RuleTable]:
        """The tables that a command line with ``words`` makes."""
        options = {option.spelling: option for option in ports.PORT_OPTIONS}
        made = [RuleTable(HOST, CAPS), RuleTable(SPLICE, CAPS)]
        for letter, text in zip(words[::2], words[1::2], strict=True):
            option = options[letter]
            ports.add_rules(made[option.pif == SPLICE], option, text)
        return made

    def _scan(self, pif: int, netlink: bool) -> PortScan:
        netns = self.netns[pif]
        plain = SPEC.plain()
        diag = SocketDiag(netns.call(lambda: open_socket(plain))) if netlink else None
        return PortScan(netns.call(open_port_lists), diag)

    def run(self, seconds: float) -> None:
        """Let the loop run for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.round(left)

    def wait_open(self, pif: int, port: int, kind: str = "tcp", wanted: bool = True) -> None:
        """Run until ``port`` is open, or closed, on ``pif``; 2.5 seconds at most."""
        end = time.monotonic() + 2.5
        while self.netns[pif].listens(port, kind) != wanted:
            assert time.monotonic() < end, (
                f"{kind} port {port} still {'' if wanted else 'not '}closed"
            )
            self.loop.round(0.05)

    def ask(self, pif: int, address: str, port: int) -> str:
        """What a client of ``pif`` gets from ``address`` and ``port`` over TCP."""
        client = self.netns[pif].connect(address, port)
        with client:
            self.run(0.05)
            return client.recv(100).decode()

    def close(self) -> None:
        for sock in self.greeter.sockets:
            sock.close()


Start = Callable[..., Forwarding]


@pytest.fixture
def inner(remote: Netns) -> Netns:
    """The other side."""
    return remote


@pytest.fixture
def start(host: Netns, inner: Netns) -> Iterator[Start]:
    """Start a :class:`Forwarding` with the given options."""
    started: list[Forwarding] = []

    def begin(*words: str, netlink: bool = True) -> Forwarding:
        started.append(Forwarding(host, inner, *words, netlink=netlink))
        return started[-1]

    yield begin
    for forwarding in started:
        forwarding.close()


@pytest.mark.parametrize(("netlink", "address"), [(True, "::1"), (False, "127.0.0.1")])
def test_a_service_that_comes_and_goes(
    start: Start, host: Netns, inner: Netns, netlink: bool, address: str
) -> None:
    forwarding = start("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto", netlink=netlink)
    service = inner.listen(address, 7001)
    forwarding.wait_open(HOST, 7001)
    assert forwarding.ask(HOST, "127.0.0.1", 7001) == "1 7001 7001"
    assert forwarding.ask(HOST, "::1", 7001) == "1 7001 7001"
    # UDP follows; our sockets are not taken for services of the host's.
    forwarding.run(2.2)
    assert host.listens(7001, "udp")
    assert not inner.listens(7001, "udp")
    service.close()
    forwarding.wait_open(HOST, 7001, wanted=False)
    assert not host.listens(7001, "udp")


def test_outbound_listeners_are_for_loopback_only(start: Start, host: Netns, inner: Netns) -> None:
    service = host.listen("127.0.0.1", 7002)
    forwarding = start("-T", "auto")
    for address in ("127.0.0.1", "127.0.0.53", "::1"):
        assert forwarding.ask(SPLICE, address, 7002) == "3 7002 7002"
    own = inner.call(lambda: own_address(socket.AF_INET))
    with pytest.raises(ConnectionRefusedError):
        host.connect(own, 7002)
    service.close()


def own_address(family: int) -> str:
    """An address of this namespace by which others reach it."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.10", 9) if family == socket.AF_INET else ("2001:db8:1::10", 9))
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(("netlink", "limit"), [(True, 0.05), (False, 0.2)])
def test_cost_of_a_scan(host: Netns, netlink: bool, limit: float) -> None:
    """20,000 listening sockets, seen in less than 50 ms, whether there are news or not.

    Where the kernel does not answer by netlink it takes longer.
    """
    holders = [
        hold_ports(host, "127.0.0.2", ports) for ports in (range(10000, 20000), range(20000, 30000))
    ]
    diag = SocketDiag(host.call(lambda: open_socket(SPEC.plain()))) if netlink else None
    scan = PortScan(host.call(open_port_lists), diag)
    expected = span(10000, 29999)
    costs = []
    for round_ in range(8):
        if round_ % 2:
            extra = host.listen("127.0.0.1", 7200)
        before = time.process_time()
        found = scan.ports(IPPROTO_TCP)
        scan.ports(IPPROTO_UDP)
        costs.append(time.process_time() - before)
        assert found & expected == expected
        assert bool(found & span(7200, 7200)) == bool(round_ % 2)
        if round_ % 2:
            extra.close()
    scan.close()
    for holder in holders:
        host.processes.stop(holder)
    # Other programs disturb the caches: what it costs is the least that was measured.
    assert min(costs[2:]) < limit, costs


def test_thousand_ports_with_translation(start: Start, host: Netns) -> None:
    forwarding = start("-t", "20000-20999:30000-30999,~20500")
    assert forwarding.ask(HOST, "127.0.0.1", 20000) == "1 20000 30000"
    assert forwarding.ask(HOST, "::1", 20999) == "1 20999 30999"
    with pytest.raises(ConnectionRefusedError):
        host.connect("127.0.0.1", 20500)


def test_dual_stack_whatever_the_default(start: Start, host: Netns) -> None:
    host.sysctl("net/ipv6/bindv6only", 1)
    try:
        forwarding = start("-t", "7003")
        assert forwarding.ask(HOST, "127.0.0.1", 7003) == "1 7003 7003"
        assert forwarding.ask(HOST, "::1", 7003) == "1 7003 7003"
    finally:
        host.sysctl("net/ipv6/bindv6only", 0)


def test_wildcards_of_both_versions_side_by_side(start: Start) -> None:
    forwarding = start("-t", "0.0.0.0/7004:81", "-t", "::/7004:82")
    assert forwarding.ask(HOST, "127.0.0.1", 7004) == "1 7004 81"
    assert forwarding.ask(HOST, "::1", 7004) == "1 7004 82"


def test_interface_without_address(start: Start, host: Netns) -> None:
    forwarding = start("-t", "%lo/7005")
    assert forwarding.ask(HOST, "127.0.0.1", 7005) == "1 7005 7005"


@pytest.mark.parametrize("port", [65535, 7006])
def test_a_busy_port_in_a_range_is_named(start: Start, host: Netns, port: int) -> None:
    service = host.listen("127.0.0.1", port)
    with pytest.raises(ForwardError, match=rf"HOST TCP port \*/{port}: Address already in use"):
        start("-t", f"{port - 3}-{port}")
    service.close()


def test_new_rules_while_running(start: Start, host: Netns, inner: Netns) -> None:
    forwarding = start("-t", "7010-7011", "-T", "7012")
    busy = host.listen("127.0.0.1", 7021)
    outcome: list[list[str]] = []
    forwarding.forwarder.replace(
        forwarding.tables("-t", "7011,7020-7022", "-T", "7013"),
        lambda lines: outcome.append(list(lines)),
    )
    forwarding.run(0.3)
    assert outcome == [["Listen failed for HOST TCP port */7021: Address already in use"]]
    open_ports = [port for port in range(7010, 7023) if host.listens(port)]
    assert open_ports == [7011, 7020, 7021, 7022]
    assert not inner.listens(7012)
    assert inner.listens(7013)
    # What was busy is taken as soon as it is free.
    busy.close()
    forwarding.run(1.3)
    assert forwarding.ask(HOST, "::1", 7021) == "1 7021 7021"


def test_the_range_of_ephemeral_ports_is_the_hosts(host: Netns) -> None:
    before = host.call(ports.ephemeral_ports)
    host.sysctl("net/ipv4/ip_local_port_range", "20000 30000")
    try:
        assert host.call(ports.ephemeral_ports) == (20000, 30000)
    finally:
        host.sysctl("net/ipv4/ip_local_port_range", f"{before[0]} {before[1]}")


def test_freebind(start: Start, host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ForwardError, match="Cannot assign requested address"):
        start("-t", "192.0.2.77/7030")
    monkeypatch.setattr(Config, "__init__", freebinding(Config.__init__))
    start("-t", "192.0.2.77/7030", "-u", "2001:db8:77::1/7030")
    host.ip("addr add 192.0.2.77/32 dev lo")
    try:
        host.connect("192.0.2.77", 7030).close()
    finally:
        host.ip("addr del 192.0.2.77/32 dev lo")


def freebinding(original: Callable[[Config, str], None]) -> Callable[[Config, str], None]:
    """Configurations with ``--freebind``."""

    def init(self: Config, mode: str) -> None:
        original(self, mode)
        self.freebind = True

    return init
