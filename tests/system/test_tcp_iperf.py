"""iperf3: throughput by the tap with several MTUs, without loss there; and inbound.

The floors are far below what is expected on any machine: they tell a working path from one that
lives on retransmission timeouts. The real figures are perf/'s business.
"""

from __future__ import annotations

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import paths
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.paths import Path
from tests.system.kit.servers import iperf3, iperf3_server

pytestmark = pytest.mark.system

PORT = 5201
FLOOR = 50e6  # bit/s


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65520])
@pytest.mark.parametrize("direction", ["out", "in"])
def test_mtu(
    request: pytest.FixtureRequest,
    start_pasta: StartPasta,
    host: Netns,
    version: int,
    mtu: int,
    direction: str,
) -> None:
    """To and from the host, whose own link has no say: only the tap's MTU matters."""
    if direction == "out":
        request.getfixturevalue("ours_only")
    pasta = start_pasta("--mtu", str(mtu))
    iperf3_server(host, net.LOOPBACK[version], PORT)
    options = ["-R"] if direction == "in" else []
    end = iperf3(pasta.ns, net.GATEWAY[version], PORT, *options)
    assert end["sum_received"]["bits_per_second"] > FLOOR
    if direction == "out":
        # Loss probes when the machine is busy elsewhere, but no loss.
        assert end["sum_sent"]["retransmits"] <= 20


@pytest.mark.parametrize(("direction", "streams"), [("out", 1), ("in", 1), ("both", 8)])
def test_remote(
    request: pytest.FixtureRequest,
    start_pasta: StartPasta,
    remote: Netns,
    version: int,
    direction: str,
    streams: int,
) -> None:
    if direction != "in":
        request.getfixturevalue("ours_only")
    pasta = start_pasta()
    iperf3_server(remote, net.REMOTE[version], PORT)
    options = {"in": ["-R"], "both": ["--bidir"], "out": []}[direction]
    end = iperf3(pasta.ns, net.REMOTE[version], PORT, "-P", str(streams), *options)
    assert end["sum_received"]["bits_per_second"] > FLOOR
    if direction == "both":
        assert end["sum_received_bidir_reverse"]["bits_per_second"] > FLOOR


@pytest.mark.parametrize("direction", ["out", "in"])
def test_inbound_connection(
    request: pytest.FixtureRequest,
    start_pasta: StartPasta,
    remote: Netns,
    version: int,
    direction: str,
) -> None:
    if direction == "out":
        request.getfixturevalue("ours_only")
    pasta = start_pasta("-t", str(PORT))
    iperf3_server(pasta.ns, net.HOST[version], PORT)
    options = ["-R"] if direction == "out" else []
    end = iperf3(remote, net.HOST[version], PORT, *options)
    assert end["sum_received"]["bits_per_second"] > FLOOR


@pytest.mark.parametrize("words", ["", "-R", "-P 8 --bidir"])
@pytest.mark.paths(*paths.SPLICED)
def test_splice(path: Path, words: str) -> None:
    iperf3_server(path.server_ns, path.address, path.port)
    end = iperf3(path.client_ns, path.target, path.port, *words.split())
    if "--bidir" in words:
        # iperf3 itself prefers one direction by far.
        for name in ("sum_received", "sum_received_bidir_reverse"):
            assert end[name]["bits_per_second"] > FLOOR
    else:
        assert end["sum_received"]["bits_per_second"] > 10 * FLOOR
