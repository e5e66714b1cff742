"""The kit itself: what the other tests take for granted."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import time

import pytest

from tests.system.kit import stream, wire
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, Processes, wait_for
from tests.system.kit.pasta import Program, run
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system


def test_reachability(host: Netns, remote: Netns, version: int) -> None:
    ping = ["ping", f"-{version}", "-c1", "-W2"]
    for address in (net.GATEWAY, net.REMOTE, net.FAR):
        host.run([*ping, address[version]])
    for address in (net.HOST, net.OWN):
        remote.run([*ping, address[version]])


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (net.UNREACHABLE, {4: "Host Unreachable", 6: "No route"}),
        (net.PROHIBITED, {4: "Packet filtered", 6: "Administratively prohibited"}),
    ],
    ids=["unreachable", "prohibited"],
)
def test_icmp_errors(
    host: Netns, version: int, addresses: dict[int, str], text: dict[int, str]
) -> None:
    done = host.run(["ping", f"-{version}", "-c1", "-W2", addresses[version]], check=False)
    assert done.returncode == 1
    assert text[version] in done.stdout
    assert "1 errors" in done.stdout


def test_blackhole_is_silent(host: Netns, version: int) -> None:
    target = net.BLACKHOLE[version]
    done = host.run(["ping", f"-{version}", "-c1", "-W1", target], check=False)
    assert done.returncode == 1
    assert "errors" not in done.stdout


def test_sockets_live_in_their_namespace(host: Netns, remote: Netns, version: int) -> None:
    with remote.listen(net.REMOTE[version]) as listener:
        port = listener.getsockname()[1]
        assert remote.listens(port)
        assert not host.listens(port)
        with host.connect(net.REMOTE[version], port) as client:
            server, peer = listener.accept()
            with server:
                assert peer[0] == net.HOST[version]
                client.sendall(b"through the wire")
                assert stream.read_exactly(server, 16) == b"through the wire"


def test_variants() -> None:
    with Topology(ipv6=False, mtu=9000) as small:
        assert small.host.run(["ip", "-6", "addr"]).stdout == ""
        small.host.run(["ping", "-c1", "-W2", "-Mdo", "-s8900", net.REMOTE[4]])
    with Topology(bare=True) as bare:
        assert [name for _, name in bare.host.call(socket.if_nameindex)] == ["lo"]


def test_topology_is_removed() -> None:
    with pytest.raises(ZeroDivisionError), Topology(ipv6=False) as doomed:
        process = doomed.host.popen(["sleep", "1000"])
        names = [ns.path for ns in (doomed.host, doomed.remote, doomed.far)]
        assert all(os.path.exists(name) for name in names)
        _ = 1 / 0
    assert process.poll() is not None
    assert not any(os.path.exists(name) for name in names)


def test_processes_are_stopped() -> None:
    processes = Processes()
    child = processes.start(
        ["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000"],
        stdout=subprocess.PIPE,
    )
    assert child.stdout
    grandchild = int(child.stdout.readline())
    processes.stop(child, grace=0.1)
    assert child.returncode == -signal.SIGKILL
    wait_for(lambda: not os.path.exists(f"/proc/{grandchild}"), what="end of the grandchild")


def test_wait_for_gives_up() -> None:
    with pytest.raises(AssertionError, match="the impossible"):
        wait_for(lambda: False, 0.05, "the impossible")


def test_content_is_reproducible(tmp_path: object) -> None:
    size = 3 * stream.BLOCK + 17
    path = f"{tmp_path}/content"
    assert stream.write_file(path, size, 5) == stream.digest(size, 5) == stream.file_digest(path)
    assert os.path.getsize(path) == size
    assert stream.digest(size, 5) != stream.digest(size, 6)
    first, second = list(stream.blocks(2 * stream.BLOCK))
    assert first != second


def test_ordinary_user_can_make_namespaces(host: Netns, user: User) -> None:
    done = host.run(["unshare", "-rn", "id", "-u"], prefix=user.prefix)
    assert done.stdout == "0\n"
    assert user.uid != 0


def test_program_runs(program: Program, host: Netns, user: User) -> None:
    done = run(program, host, user, [], ["sh", "-c", "echo hello; exit 7"], check=False)
    assert done.stdout == "hello\n", done.stderr
    assert done.returncode == 7


# -- the wire ------------------------------------------------------------------------------------


def through_wire(
    options: list[str], count: int, pause: float
) -> tuple[list[tuple[int, float]], dict[str, int]]:
    """Send *count* numbered datagrams through a wire.

    Return number and travelling time (s) of each that arrived, and the counters of the wire.
    """
    with Topology(ipv6=False, wire=options) as topology:
        sink = topology.remote.udp(net.REMOTE[4], 9)
        sink.settimeout(0.5)
        source = topology.host.udp(family=socket.AF_INET)
        source.connect((net.REMOTE[4], 9))

        def collect() -> list[tuple[int, float]]:
            arrived: list[tuple[int, float]] = []
            while True:
                try:
                    data = sink.recv(2000)
                except TimeoutError:
                    return arrived
                number, sent = struct.unpack_from("!Id", data)
                arrived.append((number, time.monotonic() - sent))

        collector = stream.Background(collect)
        for number in range(count):
            source.send(struct.pack("!Id", number, time.monotonic()).ljust(1400))
            time.sleep(pause)
        arrived = collector.result()
        topology.wire.send_signal(signal.SIGTERM)
        report, _ = topology.wire.communicate(timeout=5)
        return arrived, json.loads(report)["a"]


def test_good_wire() -> None:
    arrived, count = through_wire([], 200, 0.0005)
    assert [number for number, _ in arrived] == list(range(200))
    assert count["oversize"] == count["lost"] == count["overflow"] == 0


def test_bad_wire() -> None:
    options = ["--loss", "0.1", "--delay", "0.02", "--duplicate", "0.1", "--reorder", "0.1"]
    arrived, count = through_wire(options, 500, 0.001)
    numbers = [number for number, _ in arrived]
    assert min(delay for _, delay in arrived) >= 0.02
    assert 0 < 500 - len(set(numbers)) < 120
    assert 10 < len(numbers) - len(set(numbers)) < 120
    assert numbers != sorted(numbers)
    assert count["lost"] > 0 and count["duplicated"] > 0 and count["reordered"] > 0
    assert count["sent"] == count["frames"] - count["lost"] + count["duplicated"]


def test_wire_rate() -> None:
    arrived, _ = through_wire(["--rate", "1e6", "--queue", "50"], 100, 0.0)
    # 100 frames of 1442 bytes at once, a queue of 50 × 1500 bytes: about half of them fit, or more
    # if they come slowly.
    assert 40 < len(arrived) < 90
    assert 0.05 < max(delay for _, delay in arrived) < 0.3


def test_wire_fate_is_reproducible() -> None:
    options = argparse.Namespace(
        loss=0.2,
        delay=0.01,
        jitter=0.0,
        duplicate=0.1,
        reorder=0.1,
        reorder_delay=0.005,
        rate=0.0,
        queue=10,
    )
    first, second, other = (wire.Direction(options, seed) for seed in (3, 3, 4))
    plans = [[d.plan(float(n), 100) for n in range(100)] for d in (first, second, other)]
    assert plans[0] == plans[1] != plans[2]
    assert first.count == second.count
