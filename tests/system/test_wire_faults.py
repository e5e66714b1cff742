"""Transfers over a bad wire: 1 % loss, 5 ms delay, duplication, reordering, and all at once.

The wire lies between the host and the remote network, where the host's kernel has to cope, or
between the tap and the guest, where pasta has to (kit/wiredguest.py).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.topology import Topology
from tests.system.kit.users import User
from tests.system.kit.wiredguest import WiredGuest

pytestmark = pytest.mark.system

SIZE = 2 << 20
PORT_IN, PORT = 7001, 7002
FAULTS = {
    "loss": ["--loss", "0.01"],
    "delay": ["--delay", "0.005", "--jitter", "0.001"],
    "duplication": ["--duplicate", "0.05"],
    "reordering": ["--reorder", "0.05", "--reorder-delay", "0.003"],
    "all": ["--loss", "0.01", "--delay", "0.005", "--duplicate", "0.02", "--reorder", "0.02"],
}


def transfer(sender: socket.socket, receiver: socket.socket, size: int = SIZE) -> None:
    """Send *size* bytes, and compare what arrives."""
    for sock in (sender, receiver):
        sock.settimeout(60)
    writer = stream.Background(lambda: stream.send(sender, size))
    assert stream.receive(receiver) == (size, writer.result())


def check_streams(inside: Netns, topology: Topology, version: int) -> None:
    """A transfer in each direction, by outbound and inbound connections."""
    remote = topology.remote
    with remote.listen(net.REMOTE[version], PORT) as listener:
        for upload in (True, False):
            client = inside.connect(net.REMOTE[version], PORT)
            server, _ = listener.accept()
            with client, server:
                transfer(*((client, server) if upload else (server, client)))
    with inside.listen(net.HOST[version], PORT_IN) as listener:
        for upload in (True, False):
            client = remote.connect(net.HOST[version], PORT_IN)
            server, _ = listener.accept()
            with client, server:
                transfer(*((client, server) if upload else (server, client)), SIZE // 4)


def check_datagrams(inside: Netns, topology: Topology, version: int, needed: int) -> None:
    """Of 200 questions, at least *needed* answers; each belongs to its question."""
    with (
        topology.remote.udp(net.REMOTE[version], PORT) as server,
        inside.udp(family=socket.AF_INET if version == 4 else socket.AF_INET6) as client,
    ):
        server.settimeout(0.5)
        client.settimeout(0.5)
        client.connect((net.REMOTE[version], PORT))

        def answer() -> None:
            try:
                while True:
                    data, source = server.recvfrom(2000)
                    server.sendto(data[::-1], source)
            except TimeoutError:
                pass

        answering = stream.Background(answer)
        questions = [bytes([n]) * (n + 1) + b"?" for n in range(200)]
        for question in questions:
            client.send(question)
        answers = set()
        try:
            while True:
                answers.add(client.recv(2000)[::-1])
        except TimeoutError:
            pass
        answering.result()
        assert answers <= set(questions)
        assert len(answers) >= needed


class Scene:
    """A bad wire somewhere, and *inside*, where the programs behind pasta run."""

    def __init__(self, topology: Topology, inside: Netns) -> None:
        self.topology = topology
        self.inside = inside


@pytest.fixture(params=list(FAULTS))
def outside_wire(request: pytest.FixtureRequest, program: Program, user: User) -> Iterator[Scene]:
    """The wire between host and remote."""
    with Topology(wire=FAULTS[request.param]) as topology:
        pasta = Pasta(program, topology.host, user, "-t", str(PORT_IN))
        yield Scene(topology, pasta.ns)
        pasta.close()


@pytest.fixture(params=list(FAULTS))
def inside_wire(
    request: pytest.FixtureRequest, ours_only: None, program: Program, user: User
) -> Iterator[Scene]:
    """The wire between tap and guest. Upstream survives it, but takes minutes for a megabyte."""
    with Topology() as topology:
        pasta = Pasta(program, topology.host, user, "-t", str(PORT_IN), config_net=False)
        guest = WiredGuest(topology, pasta, FAULTS[request.param])
        yield Scene(topology, guest.ns)
        report = guest.close()
        pasta.close()
        assert report["a"]["sent"] > 100 and report["b"]["sent"] > 100


def test_outside(outside_wire: Scene, version: int) -> None:
    check_streams(outside_wire.inside, outside_wire.topology, version)
    check_datagrams(outside_wire.inside, outside_wire.topology, version, 180)


def test_inside(inside_wire: Scene, version: int) -> None:
    check_streams(inside_wire.inside, inside_wire.topology, version)
    check_datagrams(inside_wire.inside, inside_wire.topology, version, 180)
