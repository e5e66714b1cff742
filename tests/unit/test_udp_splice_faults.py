"""Spliced flows where ports, sockets or peers are not to be had."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import pytest

from passt.kernel.sockets import SocketSpec
from passt.syscalls.errqueue import SO_EE_ORIGIN_ICMP, Report
from passt.userspace import log
from passt.userspace.config.model import Rule
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.udp.errors import MAX_PHANTOM_ERRORS
from tests.unit.fakes import open_descriptors
from tests.unit.udp_rig import LOOPBACK_TEXT
from tests.unit.udp_splice_rig import UDP, SpliceRig, free_pair

if TYPE_CHECKING:
    from passt.syscalls.mmsg import Forward
    from passt.userspace.udp.side import Receiver

MakeRig = Callable[..., SpliceRig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    made: list[SpliceRig] = []

    def make(**options: object) -> SpliceRig:
        made.append(SpliceRig(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rate-limited messages, without their limits."""
    said: list[str] = []

    def limited(_key: str, _level: int, text: str, *arguments: object) -> None:
        said.append(text % arguments)

    monkeypatch.setattr(log, "limited", limited)
    return said


def established(rig: SpliceRig, version: int) -> tuple[socket.socket, socket.socket]:
    """Client and server, both connected, of a flow that has carried one datagram."""
    server, client = rig.server(version), rig.client(version)
    client.connect((LOOPBACK_TEXT[version], rig.port))
    client.send(b"hello")
    ((_, source),) = rig.receive_from(server, 1)
    server.connect(source)
    return client, server


class Confined(socket.socket):
    """Cannot be bound to :attr:`low`, except by :class:`Privileged`."""

    __slots__ = ()
    low = -1
    privileged = False

    def bind(self, address):  # type: ignore[no-untyped-def]
        if address[1] == Confined.low and not Confined.privileged:
            raise PermissionError(errno.EACCES, "Permission denied")
        super().bind(address)


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Confined]]:
    monkeypatch.setattr("passt.syscalls.bare_socket.socket", Confined)
    Confined.privileged = False
    yield Confined
    Confined.low = -1


def test_low_port_of_a_client_is_bound_in_the_namespace(
    make_rig: MakeRig, confined: type[Confined], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    server, client = rig.server(4), rig.client(4)
    confined.low = client.getsockname()[1]
    call = rig.maker.call

    def privileged(specs: list[SocketSpec]) -> object:
        confined.privileged = True
        try:
            return call(specs)
        finally:
            confined.privileged = False

    monkeypatch.setattr(rig.maker, "call", privileged)
    client.sendto(b"query", ("127.0.0.1", rig.port))
    ((_, source),) = rig.receive_from(server, 1)
    assert source[1] == confined.low
    assert rig.maker.calls[-1].plain()[3] == ("0.0.0.0", confined.low)
    server.sendto(b"answer", source)
    assert rig.receive(client, 1) == [b"answer"]


def test_low_port_of_a_client_that_nobody_may_bind(
    make_rig: MakeRig, confined: type[Confined], version: int
) -> None:
    rig = make_rig()
    server, client = rig.server(version), rig.client(version)
    confined.low = client.getsockname()[1]
    client.sendto(b"query", (LOOPBACK_TEXT[version], rig.port))
    ((_, source),) = rig.receive_from(server, 1)
    assert source[1] != confined.low
    server.sendto(b"answer", source)
    assert rig.receive(client, 1) == [b"answer"]


@pytest.mark.parametrize("outbound", [False, True], ids=["in", "out"])
def test_low_port_is_served_by_the_listening_socket(
    make_rig: MakeRig, confined: type[Confined], version: int, outbound: bool
) -> None:
    rig = make_rig()
    server = rig.host_server(version) if outbound else rig.server(version)
    confined.low = port = rig.ns_port if outbound else rig.port
    clients = [rig.client(version) for _ in range(2)]
    for _ in range(2):
        for client in clients:
            client.sendto(b"query", (LOOPBACK_TEXT[version], port))
            ((payload, source),) = rig.receive_from(server, 1)
            assert (payload, source[1]) == (b"query", client.getsockname()[1])
            answers = [b"one", b"many", b"many", b"many", b"", b"long" * 100]
            for answer in answers:
                server.sendto(answer, source)
            got = rig.receive_from(client, 6)
            assert got == [(answer, (LOOPBACK_TEXT[version], port)) for answer in answers]
            for _ in range(5):
                server.sendto(b"equal", source)
            assert rig.receive(client, 5) == [b"equal"] * 5
    assert len(rig.spliced()) == 2


def test_detached_socket_serves_the_flows_that_need_it(
    make_rig: MakeRig, confined: type[Confined], version: int
) -> None:
    """It is closed with the last of them; new clients are not served any more."""
    rig = make_rig()
    confined.low = rig.port
    client, server = established(rig, version)
    fd = rig.listener.fd
    rig.udp.detach_listener(rig.listener)
    client.send(b"more")
    assert rig.receive(server, 1) == [b"more"]
    server.send(b"answer")
    assert rig.receive(client, 1) == [b"answer"]
    rig.client(version).sendto(b"new", (LOOPBACK_TEXT[version], rig.port))
    rig.serve()
    assert len(rig.spliced()) == 1
    confined.privileged = True
    rig.listen(Rule(UDP, rig.port, rig.port, rig.port + 1))
    confined.privileged = False
    rig.client(version).sendto(b"newer", (LOOPBACK_TEXT[version], rig.port))
    assert rig.receive(server, 0) == []
    assert len(rig.spliced()) == 2
    assert rig.listener.sock.fileno() == fd
    rig.spliced()[0].near.end()  # type: ignore[union-attr]
    rig.serve()
    assert rig.listener.sock.fileno() == -1


# Failures.


def test_full_table(make_rig: MakeRig, messages: list[str]) -> None:
    rig = make_rig(limit=1)
    client, server = established(rig, 4)
    before = open_descriptors()
    for _ in range(20):
        rig.client(4).sendto(b"dropped", ("127.0.0.1", rig.port))
    rig.serve()
    assert "Flow table full" in messages[0]
    assert open_descriptors() == before + 20
    client.send(b"served")
    assert rig.receive(server, 1) == [b"served"]


def test_stock_made_when_descriptors_were_scarce(make_rig: MakeRig) -> None:
    """Its high numbers say nothing about the present; that of a socket made now does."""
    held = [os.dup(0) for _ in range(100)]
    rig = make_rig()
    for pool in rig.udp._pools.values():
        pool.fill()
    for fd in held:
        os.close(fd)
    rig.table.last_fd = held[-1]
    for _ in range(2):
        client, server = rig.client(4), rig.server(4)
        client.sendto(b"x", ("127.0.0.1", rig.port))
        assert rig.receive(server, 1) == [b"x"]
        server.close()
    rig.table.last_fd = 5
    rig.client(4).sendto(b"x", ("127.0.0.1", rig.port))
    rig.serve()
    assert len(rig.spliced()) == 2


def test_no_sockets_in_the_namespace(make_rig: MakeRig, messages: list[str]) -> None:
    rig = make_rig()
    server, client = rig.server(4), rig.client(4)
    rig.maker.failure = OSError(errno.EMFILE, "Too many open files")
    client.sendto(b"lost", ("127.0.0.1", rig.port))
    client.sendto(b"lost", ("127.0.0.1", rig.ns_port))
    rig.serve()
    assert [text for text in messages if text.startswith("Couldn't open flow specific socket")]
    assert rig.spliced() == []
    assert rig.udp._host.flows == {}
    rig.maker.failure = None
    client.sendto(b"found", ("127.0.0.1", rig.port))
    assert rig.receive(server, 1) == [b"found"]


@pytest.mark.parametrize("failing", [1, 2])
def test_connect_that_fails(
    make_rig: MakeRig, messages: list[str], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """On either side."""
    rig = make_rig()
    client = rig.client(4)
    before = open_descriptors()
    attempts: list[object] = []

    class Unroutable(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            attempts.append(address)
            if len(attempts) % failing == 0:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
            super().connect(address)

    monkeypatch.setattr("passt.syscalls.bare_socket.socket", Unroutable)
    for _ in range(10):
        client.sendto(b"lost", ("127.0.0.1", rig.port))
    rig.serve()
    assert len(attempts) == 10 * failing
    assert "Couldn't connect flow socket: Network is unreachable: HOST [" in messages[0]
    assert rig.spliced() == []
    assert open_descriptors() - len(rig.udp._pools[4]._stock) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_socket_that_cannot_be_watched(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    rig = make_rig()
    client = rig.client(4)
    before = open_descriptors()
    add = rig.loop.add
    attempts: list[int] = []

    def refuse(fd: int, events: int, handler: Callable[[int], None]) -> None:
        attempts.append(fd)
        if len(attempts) % failing == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(fd, events, handler)

    monkeypatch.setattr(type(rig.loop), "add", lambda _self, *arguments: refuse(*arguments))
    client.sendto(b"lost", ("127.0.0.1", rig.port))
    rig.serve()
    assert len(attempts) == failing
    assert rig.spliced() == []
    assert rig.udp._host.flows == {}
    assert rig.udp._namespace.flows == {}
    assert open_descriptors() - len(rig.udp._pools[4]._stock) == before


# Few datagrams each: the kernel limits how many ICMP errors it sends in a second.
@pytest.mark.parametrize("sizes", [[1], [5] * 9, [1, 2, 3] * 3, [5, 5]], ids=str)
def test_refused_datagrams_leave_the_flow_usable(
    make_rig: MakeRig, version: int, sizes: list[int]
) -> None:
    """Nobody listens: nothing is told to anybody, the loop rests, and later it works."""
    rig = make_rig()
    client = rig.client(version)
    client.connect((LOOPBACK_TEXT[version], rig.port))
    for _ in range(2):
        for size in sizes:
            client.send(bytes(size))
        rig.serve()
    assert rig.link.sent == []
    server = rig.server(version)
    for size in sizes:
        client.send(bytes(size))
    assert rig.receive(server, len(sizes)) == [bytes(size) for size in sizes]
    assert len(rig.spliced()) == 1


def test_refused_answers(make_rig: MakeRig, version: int) -> None:
    """The client is gone; the server goes on for a while."""
    rig = make_rig()
    client, server = established(rig, version)
    client.close()
    for size in (1, 2, 3, 4, 4, 4, 4):
        server.send(bytes(size))
        rig.serve()
    assert rig.link.sent == []
    assert len(rig.spliced()) == 1


def test_refusal_on_a_listening_socket(
    make_rig: MakeRig, confined: type[Confined], version: int
) -> None:
    rig = make_rig()
    confined.low = rig.port
    client, server = established(rig, version)
    client.close()
    server.send(b"refused")
    rig.serve()
    assert rig.link.sent == []
    assert len(rig.spliced()) == 1


def test_errors_are_not_propagated(make_rig: MakeRig, messages: list[str]) -> None:
    """Not even to the guest, whom they do not concern."""
    rig = make_rig()
    established(rig, 4)
    near, far = rig.halves()
    report = Report(b"", b"hello")
    report.errno = errno.ECONNREFUSED
    report.origin = SO_EE_ORIGIN_ICMP
    report.type, report.code = 3, 3
    for half in (near, far):
        rig.udp._propagate(report, half.fd, half)
    assert messages == [
        f"Can't propagate ICMP error from HOST to SPLICE: {near}",
        f"Can't propagate ICMP error from SPLICE to HOST: {near}",
    ]
    assert rig.link.sent == []


def test_socket_that_always_reports_errors(make_rig: MakeRig, messages: list[str]) -> None:
    rig = make_rig()
    established(rig, 4)
    near, _ = rig.halves()
    for _ in range(MAX_PHANTOM_ERRORS - 1):
        near.ready(EPOLLERR)
    assert near.index >= 0
    near.ready(EPOLLERR)
    assert near.index < 0
    assert messages[-1].startswith("Error event without error: Flow")


def test_broken_error_queue_ends_the_flow(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    rig = make_rig()
    established(rig, 4)
    near, _ = rig.halves()

    def broken(_fd: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(rig.udp, "_errors", type("Queue", (), {"read": staticmethod(broken)}))
    near.ready(EPOLLERR)
    assert near.index < 0
    assert messages[-1].startswith("Couldn't read error queue")


def test_low_port_of_an_ipv4_listening_socket(make_rig: MakeRig, confined: type[Confined]) -> None:
    """Not a dual-stack one: addresses are not in mapped form."""
    port = free_pair()
    rig = make_rig(rule=Rule(UDP, port, port, port + 1, address=bytes(4)))
    confined.low = port
    client, server = established(rig, 4)
    server.send(b"answer")
    assert rig.receive_from(client, 1) == [(b"answer", ("127.0.0.1", port))]


def test_error_pending_where_a_datagram_is_to_leave(make_rig: MakeRig) -> None:
    """The refusal of an earlier one is not taken for that of the next."""
    rig = make_rig()
    client, server = established(rig, 4)
    near, _ = rig.halves()
    server.close()
    client.send(b"refused")
    near.ready(EPOLLIN)
    server = rig.server(4)
    client.send(b"sent")
    near.ready(EPOLLIN)
    assert rig.receive(server, 1) == [b"sent"]


def test_events_without_datagram(make_rig: MakeRig) -> None:
    """Whichever way the socket is read: nothing was received, nothing is sent."""
    rig = make_rig()
    client, server = established(rig, 4)
    near, _ = rig.halves()
    for i in range(4):
        active = near.active
        near.ready(EPOLLIN)
        near.ready(EPOLLIN)
        assert near.active == active
        client.send(bytes([i]))
        assert rig.receive(server, 1) == [bytes([i])]
        assert near.active == active + 1


class Outcomes:
    """In place of sendmmsg: what each call returns; counts are limited to what was asked."""

    def __init__(self, *results: int) -> None:
        self.results = list(results)
        self.asked: list[tuple[int, int]] = []

    def send(self, _fd: int, first: int, count: int) -> int:
        self.asked.append((first, count))
        return min(self.results.pop(0), count)


@pytest.mark.parametrize(
    ("results", "asked"),
    [
        ((4,), [(0, 4)]),
        ((1, 3), [(0, 4), (1, 3)]),
        ((-errno.ECONNREFUSED, 4), [(0, 4), (0, 4)]),
        ((-errno.ECONNREFUSED, -errno.ECONNREFUSED, 3), [(0, 4), (0, 4), (1, 3)]),
        ((1, -errno.EMSGSIZE, 2), [(0, 4), (1, 3), (2, 2)]),
        ((1, -errno.EAGAIN), [(0, 4), (1, 3)]),
    ],
    ids=["all", "short", "stale", "twice", "too large", "full"],
)
def test_batches_that_leave_in_parts(
    make_rig: MakeRig, results: tuple[int, ...], asked: list[tuple[int, int]]
) -> None:
    """What was reported instead of a datagram does not cost it, what is wrong with it does."""
    rig = make_rig()
    client, _ = established(rig, 4)
    outcomes = Outcomes(*results)
    rig.udp._forward = cast("Forward", outcomes)
    for size in (1, 2, 3, 4):
        client.send(bytes(size))
    rig.serve()
    assert outcomes.asked == asked
    assert outcomes.results == []


def test_every_port_is_taken(make_rig: MakeRig, messages: list[str]) -> None:
    class Everything(dict[bytes, "Receiver"]):
        def __contains__(self, _key: object) -> bool:
            return True

    rig = make_rig()
    rig.udp._namespace.flows = Everything()
    client = rig.client(4)
    before = open_descriptors()
    client.sendto(b"lost", ("127.0.0.1", rig.port))
    rig.serve()
    assert messages[0].startswith("Couldn't open flow specific socket: No usable port: HOST [")
    assert rig.spliced() == []
    assert open_descriptors() - len(rig.udp._pools[4]._stock) == before


def test_drain_that_hits_its_bound(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """New sockets are drained further with their next event, and still anybody's datagrams."""
    monkeypatch.setattr("passt.userspace.udp.toguest.LISTEN_BATCHES", 1)
    rig = make_rig()
    server, first, second = rig.server(4), rig.client(4), rig.client(4)
    connects: list[object] = []

    class Racing(socket.socket):
        __slots__ = ()

        def connect(self, address):  # type: ignore[no-untyped-def]
            connects.append(address)
            if len(connects) == 2:
                for i in range(100):
                    first.sendto(bytes([1, i]), ("127.0.0.1", rig.port))
                    second.sendto(bytes([2, i]), ("127.0.0.1", rig.port))
            super().connect(address)

    monkeypatch.setattr("passt.syscalls.bare_socket.socket", Racing)
    first.sendto(b"first", ("127.0.0.1", rig.port))
    got = rig.receive(server, 201)
    assert [payload for payload in got if payload[0] == 1] == [bytes([1, i]) for i in range(100)]
    assert [payload for payload in got if payload[0] == 2] == [bytes([2, i]) for i in range(100)]
    assert len(rig.spliced()) == 2
