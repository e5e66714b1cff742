"""Automatic forwarding by the whole program: services that come and go, and no loops."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import Counter

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Program
from tests.system.kit.servers import HTTP_PORT, SMALL, Nginx, iperf3
from tests.system.kit.topology import Topology

pytestmark = pytest.mark.system

AUTO = ("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto")
IPERF3 = 5201
#: Seconds in which a change must have been noticed: two scans, and a busy machine.
NOTICED = 4.0


@pytest.mark.parametrize("way", ["in", "out"])
def test_service_comes_and_goes(
    start_pasta: StartPasta, topology: Topology, folder: str, way: str
) -> None:
    """nginx is started while we run, and stopped again."""
    pasta = start_pasta(*AUTO)
    inside, outside = (pasta.ns_as_root, topology.host)[:: 1 if way == "in" else -1]
    assert not outside.listens(HTTP_PORT)
    web = Nginx(inside, os.path.join(folder, "auto"), (4, 6))
    outside.wait_listening(HTTP_PORT, timeout=NOTICED)
    clients = [(outside, address) for address in ("127.0.0.1", "127.0.0.53", "[::1]")]
    if way == "in":
        clients += [(topology.remote, a) for a in (net.HOST[4], f"[{net.HOST[6]}]")]
    for ns, address in clients:
        words = ["curl", "-sSf", f"http://{address}:{HTTP_PORT}/small"]
        assert ns.run(words).stdout == SMALL.decode()
    topology.processes.stop(web.process)
    wait_for(lambda: not outside.listens(HTTP_PORT), NOTICED, "port closed again")


def test_connections_outlive_their_listener(start_pasta: StartPasta, host: Netns) -> None:
    """The port closes with the service's listening socket; who is connected stays so."""
    pasta = start_pasta(*AUTO)
    with pasta.ns.listen(net.HOST[4], 7201) as listener, pasta.ns.udp(net.HOST[4], 7201) as server:
        host.wait_listening(7201, timeout=NOTICED)
        host.wait_listening(7201, "udp", timeout=NOTICED)
        client, asker = host.connect("127.0.0.1", 7201), host.udp("127.0.0.1")
        connection, _ = listener.accept()
        asker.sendto(b"query", ("127.0.0.1", 7201))
        _, source = server.recvfrom(10)
        listener.close()
        server.connect(source)  # nobody else's any more
        wait_for(lambda: not host.listens(7201), NOTICED, "port closed")
        wait_for(lambda: not host.listens(7201, "udp"), NOTICED, "UDP port closed")
        server.send(b"late")
        assert asker.recvfrom(10) == (b"late", ("127.0.0.1", 7201))
        connection.sendall(b"late")
        assert stream.read_exactly(client, 4) == b"late"


def sockets(ns: Netns) -> dict[str, Counter[int]]:
    """How many sockets listen on each port, by protocol."""
    found = {}
    for kind, state in (("tcp", "0A"), ("udp", "07")):
        rows = [row for name in (kind, kind + "6") for row in ns.table(name) if row[3] == state]
        found[kind] = Counter(int(row[1].rpartition(":")[2], 16) for row in rows)
    return found


def test_services_of_both_sides(
    start_pasta: StartPasta, topology: Topology, program: Program
) -> None:
    """Each is forwarded once to the other side, and nothing changes any more after that.

    UDP follows TCP, not the other way round, and not where both sides have a TCP service: there
    upstream opens and closes it in turns.
    """
    host, pasta = topology.host, start_pasta(*AUTO)
    inside, tie = pasta.ns, 7210
    iperf = inside.popen(
        ["iperf3", "-s", "-p", str(IPERF3)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    opened: list[socket.socket] = [
        inside.listen("127.0.0.1", 7211),
        host.listen("127.0.0.1", 7212),
        inside.udp("127.0.0.1", 7213),
        host.udp("::1", 7214),
    ]
    if not program.upstream:
        opened += [inside.listen(net.HOST[4], tie), host.listen("127.0.0.1", tie)]
    both = Counter() if program.upstream else Counter([tie])
    expected = (
        {
            "tcp": Counter([IPERF3, 7211, 7212]) + both,
            "udp": Counter([IPERF3, 7211, 7213, 7214]),
        },
        {
            "tcp": Counter([IPERF3, 7211, 7212]) + both,
            "udp": Counter([7212, 7213, 7214]),
        },
    )

    def state() -> tuple[dict[str, Counter[int]], dict[str, Counter[int]]]:
        return sockets(host), sockets(inside)

    wait_for(lambda: state() == expected, 2 * NOTICED, "all services forwarded")
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        assert state() == expected
        time.sleep(0.1)
    end = iperf3(host, "::1", IPERF3, "-u", "-b", "10M", "-l", "1400")
    assert end["sum"]["packets"] > 500
    assert end["sum"]["lost_percent"] < 5
    assert iperf.poll() is None
    for sock in opened:
        sock.close()
