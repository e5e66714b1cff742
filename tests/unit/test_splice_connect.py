"""Where spliced connections go, which are refused, and servers that do not answer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from passt.userspace import log
from passt.userspace.flow.rules import HOST, IPPROTO_TCP, SPLICE, Rule
from passt.userspace.splice.pool import STOCK
from tests.unit.splice_kit import Bypass, reset


@pytest.fixture
def make_bypass() -> Iterator[type[Bypass]]:
    made: list[Bypass] = []

    class Recorded(Bypass):
        """Closed at the end of the test."""

        def __init__(self, **options: object) -> None:
            super().__init__(**options)  # type: ignore[arg-type]
            made.append(self)

    yield Recorded
    for kit in made:
        kit.close()


def refused(bypass: Bypass, client: socket.socket) -> bool:
    """Whether the client is reset, the server never saw it, and nothing is left."""
    bypass.settle()
    bypass.server_listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        bypass.server_listener.accept()
    return bypass.is_reset(client) and not bypass.flows()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection, the accepting one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 5)
        return listener.accept()[0], client


# Which way.

RULE = Rule(IPPROTO_TCP, 80, 80, 80)
WITH_TARGET = Rule(IPPROTO_TCP, 80, 80, 80, target=socket.inet_aton("192.0.2.1"))


@pytest.mark.parametrize(
    ("source", "local"),
    [("127.0.0.1", True), ("127.0.0.5", True), ("198.51.100.10", False), ("0.0.0.0", False)],
)
def test_loopback_sources_bypass_the_link(
    make_bypass: type[Bypass], source: str, local: bool
) -> None:
    splice = make_bypass().splice
    address = socket.inet_aton(source)
    assert splice.takes(RULE, address, HOST) == local
    # A target address is for the guest to see.
    assert not splice.takes(WITH_TARGET, address, HOST)
    # Connections made in the namespace have no other way.
    assert splice.takes(RULE, address, SPLICE)
    assert splice.takes(WITH_TARGET, address, SPLICE)


@pytest.mark.parametrize(("source", "local"), [("::1", True), ("fe80::1", False), ("::", False)])
def test_loopback_sources_bypass_the_link6(
    make_bypass: type[Bypass], source: str, local: bool
) -> None:
    address = socket.inet_pton(socket.AF_INET6, source)
    assert make_bypass().splice.takes(RULE, address, HOST) == local


def test_no_splice(make_bypass: type[Bypass]) -> None:
    splice = make_bypass(splice=False).splice
    assert not splice.takes(RULE, socket.inet_aton("127.0.0.1"), HOST)
    assert splice.takes(RULE, socket.inet_aton("127.0.0.1"), SPLICE)


def test_splice_only_takes_and_refuses(make_bypass: type[Bypass]) -> None:
    """There is no link to send others by."""
    bypass = make_bypass(splice_only=True, host_lo_to_ns_lo=True)
    assert bypass.splice.takes(RULE, socket.inet_aton("198.51.100.10"), HOST)
    assert bypass.splice.takes(WITH_TARGET, socket.inet_aton("127.0.0.1"), HOST)
    for rule, source in ((RULE, "198.51.100.10"), (WITH_TARGET, "127.0.0.1")):
        ours, theirs = tcp_pair()
        peer = socket.inet_aton(source), 5000
        assert bypass.splice.accepted(ours, peer, rule, 80, HOST)
        assert bypass.is_reset(theirs)
        theirs.close()
    bypass.until_gone()


# From the host.


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5"])
def test_goes_to_the_observed_address(make_bypass: type[Bypass], address: str) -> None:
    bypass = make_bypass(target="127.0.0.77")
    bypass.nat.observed4 = socket.inet_aton("127.0.0.77")
    client, server = bypass.connect(address)
    assert server.getsockname()[0] == "127.0.0.77"
    bypass.transfer(client, server, b"x")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5"])
def test_loopback_destination_is_kept_if_wanted(make_bypass: type[Bypass], address: str) -> None:
    bypass = make_bypass(target=address, host_lo_to_ns_lo=True)
    bypass.nat.observed4 = socket.inet_aton("127.0.0.99")
    _client, server = bypass.connect(address)
    assert server.getsockname()[0] == address


def test_ipv6(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass(target="::1")
    client, server = bypass.connect("::1")
    assert server.getpeername()[0] == "::1"
    bypass.transfer(client, server, b"x" * 100_000)
    bypass.transfer(server, client, b"x" * 100_000)


def test_link_local_address_if_there_is_no_other(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass(target="::1")
    bypass.nat.observed6 = None
    bypass.nat.observed_ll = socket.inet_pton(socket.AF_INET6, "::1")
    bypass.connect("::1")


def test_mapped_source_is_ipv4(make_bypass: type[Bypass]) -> None:
    """A dual-stack listener reports IPv4 clients as v4-mapped."""
    bypass = make_bypass()
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen()
    bypass._listener.close()
    bypass._listener, bypass._family = listener, socket.AF_INET6
    client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
    bypass._on_accept(0)
    server = bypass.server()
    assert server.family == socket.AF_INET
    bypass.transfer(client, server, b"x")
    (flow,) = bypass.flows()
    assert flow.describe().startswith("HOST [127.0.0.1]:")
    client.close()


def test_no_known_address(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass()
    bypass.nat.observed4 = None
    assert refused(bypass, bypass.client())


# From the namespace.


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53"])
def test_loopback_address_is_kept(make_bypass: type[Bypass], address: str) -> None:
    bypass = make_bypass(target=address, pif=SPLICE)
    client, server = bypass.connect(address)
    assert server.getsockname()[0] == address
    bypass.transfer(client, server, b"x")
    (flow,) = bypass.flows()
    assert flow.describe().startswith("SPLICE [127.0.0.1]:")
    assert f"-> HOST [{address}]:" in flow.describe()


def test_sockets_are_of_the_right_side(make_bypass: type[Bypass]) -> None:
    inbound, outbound = make_bypass(), make_bypass(pif=SPLICE)
    for bypass, used in ((inbound, 1), (outbound, 0)):
        pool = bypass.splice._pools[4]
        before = len(pool._stock)
        bypass.connect()
        assert before - len(pool._stock) == used
        assert not bypass.maker.calls


def test_target_of_the_rule_counts(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass(target="127.0.0.9", pif=SPLICE)
    rule = bypass.rule
    target = socket.inet_aton("127.0.0.9")
    bypass.rule = Rule(IPPROTO_TCP, rule.first, rule.last, rule.to, target=target)
    _client, server = bypass.connect("127.0.0.1")
    assert server.getsockname()[0] == "127.0.0.9"


def test_ports_of_a_range(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass(pif=SPLICE)
    port = bypass.port
    to = bypass.server_listener.getsockname()[1]
    bypass.rule = Rule(IPPROTO_TCP, port - 10, port + 10, to - 10)
    bypass.connect()


def test_other_clients_in_the_namespace_are_refused(
    make_bypass: type[Bypass], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_stderr", True)
    monkeypatch.setattr(log, "_threshold", log.INFO)
    bypass = make_bypass(pif=SPLICE)
    ours, theirs = tcp_pair()
    _, port = ours.getsockname()
    peer = socket.inet_aton("198.51.100.10"), 5000
    assert bypass.splice.accepted(ours, peer, bypass.rule, bypass.port, SPLICE)
    assert bypass.is_reset(theirs)
    theirs.close()
    expected = f"No rules to forward SPLICE TCP [198.51.100.10]:5000 -> [127.0.0.1]:{port}\n"
    assert capfd.readouterr().err == expected


# Failures.


def test_nobody_listens(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass()
    client = bypass.client()
    bypass.server_listener.close()
    bypass.settle()
    assert bypass.is_reset(client)
    bypass.until_gone()


@pytest.mark.parametrize("target", ["255.255.255.255", "224.0.0.1"])
def test_connect_fails_at_once(make_bypass: type[Bypass], target: str) -> None:
    bypass = make_bypass()
    bypass.nat.observed4 = socket.inet_aton(target)
    assert refused(bypass, bypass.client())


def test_no_socket_to_connect_with(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass()
    bypass.splice.close()
    bypass.maker.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert refused(bypass, bypass.client())
    bypass.maker.error = None
    bypass.connect()


def test_many_at_once(make_bypass: type[Bypass]) -> None:
    """More than there are sockets in stock, all accepted before any is served."""
    bypass = make_bypass()
    clients = [bypass.client() for _ in range(STOCK + 8)]
    servers = [bypass.server() for _ in clients]
    by_port = {server.getpeername()[1]: server for server in servers}
    assert len(by_port) == len(clients)
    for number, client in enumerate(clients):
        client.sendall(b"%04d" % number)
    numbers = [int(bypass.receive(server, 4)) for server in servers]
    assert sorted(numbers) == list(range(len(clients)))


def test_full_table(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass()
    bypass.connect()
    bypass.table.limit = 1
    client = bypass.client()
    bypass.settle()
    assert bypass.full
    assert bypass.is_reset(client)
    assert len(bypass.flows()) == 1
    assert bypass.table.refused == 1


def test_stock_made_when_descriptors_were_scarce(make_bypass: type[Bypass]) -> None:
    """Its high numbers say nothing about the present; that of an accepted connection does."""
    held = [os.dup(0) for _ in range(100)]
    bypass = make_bypass()
    for fd in held:
        os.close(fd)
    bypass.table.last_fd = held[-1]
    for _ in range(5):
        bypass.connect()
    bypass.table.last_fd = 5
    assert bypass.is_reset(bypass.client())
    assert bypass.full


def test_client_gone_before_we_look(make_bypass: type[Bypass]) -> None:
    bypass = make_bypass()
    reset(bypass.client())
    assert bypass.is_reset(bypass.server())
    bypass.until_gone()
    client, server = bypass.connect()
    bypass.transfer(client, server, b"x")


# Servers that take their time: with a full backlog the SYN is dropped, and repeated a second
# later.


@pytest.fixture
def slow(make_bypass: type[Bypass]) -> tuple[Bypass, list[socket.socket]]:
    """A bypass to a server whose backlog is full, and the connections in that backlog."""
    bypass = make_bypass(backlog=0)
    waiting = [socket.create_connection(bypass.server_listener.getsockname())]
    return bypass, waiting


def test_nothing_is_read_before_the_server_answers(
    slow: tuple[Bypass, list[socket.socket]],
) -> None:
    bypass, waiting = slow
    client = bypass.client()
    client.sendall(b"early")
    bypass.settle()
    (flow,) = bypass.flows()
    assert flow.connecting
    assert bypass.idle()
    assert flow.client.sock.recv(10, socket.MSG_PEEK) == b"early"
    client.sendall(b", twice")
    client.shutdown(socket.SHUT_WR)
    bypass.settle()
    assert bypass.idle()
    for sock in (*waiting, bypass.server_listener.accept()[0]):
        sock.close()
    bypass.until(lambda: not flow.connecting)
    server = bypass.server()
    bypass.expect(server, b"early, twice")
    bypass.transfer(server, client, b"answer")


def test_client_gives_up_waiting(slow: tuple[Bypass, list[socket.socket]]) -> None:
    bypass, waiting = slow
    client = bypass.client()
    bypass.settle()
    assert len(bypass.flows()) == 1
    reset(client)
    bypass.settle()
    bypass.until_gone()
    waiting[0].close()


def test_server_refuses_late(slow: tuple[Bypass, list[socket.socket]]) -> None:
    bypass, waiting = slow
    client = bypass.client()
    bypass.settle()
    assert len(bypass.flows()) == 1
    waiting[0].close()
    bypass.server_listener.close()
    bypass.until(lambda: not bypass.flows())
    assert bypass.is_reset(client)
