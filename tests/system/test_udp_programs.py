"""UDP with real programs: iperf3, dig and dnsmasq (also over TCP), netcat."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import paths
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta
from tests.system.kit.paths import Path
from tests.system.kit.servers import dnsmasq, iperf3, iperf3_server

pytestmark = pytest.mark.system

PORT = 5201
LONG = "x" * 240
RECORDS = [
    "--address=/test.example/192.0.2.99",
    "--address=/test.example/2001:db8::99",
    "--edns-packet-max=4096",
    *(f"--txt-record=long.example,{number}{LONG}" for number in range(9)),
]


# -- dig and dnsmasq -----------------------------------------------------------------------------


@pytest.fixture
def name_server(remote: Netns) -> None:
    """dnsmasq at REMOTE."""
    dnsmasq(remote, list(net.REMOTE.values()), RECORDS)


def dig(ns: Netns, server: str, *words: str) -> str:
    """Return what dig prints for one try."""
    return ns.run(["dig", "+tries=1", "+time=3", f"@{server}", *words]).stdout


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig(start_pasta: StartPasta, name_server: None, version: int, transport: str) -> None:
    pasta = start_pasta()
    server = net.REMOTE[version]
    assert dig(pasta.ns, server, transport, "+short", "test.example") == "192.0.2.99\n"
    answer = dig(pasta.ns, server, transport, "AAAA", "test.example")
    assert "2001:db8::99" in answer
    assert f"SERVER: {server}#53" in answer


def test_truncated_answer_is_asked_for_by_tcp(
    start_pasta: StartPasta, name_server: None, version: int
) -> None:
    pasta = start_pasta()
    answer = dig(pasta.ns, net.REMOTE[version], "+bufsize=512", "TXT", "long.example")
    assert answer.count(LONG) == 9
    assert "(TCP)" in answer


def test_large_answer_by_udp(start_pasta: StartPasta, name_server: None, version: int) -> None:
    pasta = start_pasta()
    words = ["+bufsize=4096", "+ignore", "TXT", "long.example"]
    assert dig(pasta.ns, net.REMOTE[version], *words).count(LONG) == 9


# -- iperf3 --------------------------------------------------------------------------------------


def check_datagrams(total: dict[str, float], rate: float) -> None:
    """Assert that at least *rate* bit/s and all but a few percent of the datagrams arrived."""
    assert total["packets"] > 0
    assert total["lost_percent"] < 5, total
    assert total["bits_per_second"] > rate * 0.8, total


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("length", [200, 1400, 8000])
def test_iperf3_outbound(
    start_pasta: StartPasta, remote: Netns, version: int, direction: str, length: int
) -> None:
    pasta = start_pasta()
    iperf3_server(remote, net.REMOTE[version], PORT)
    options = ["-u", "-b", "10M", "-l", str(length), *(["-R"] if direction == "in" else [])]
    check_datagrams(iperf3(pasta.ns, net.REMOTE[version], PORT, *options)["sum"], 10e6)


@pytest.mark.paths("inbound", *paths.SPLICED)
def test_iperf3_forwarded(path: Path) -> None:
    iperf3_server(path.server_ns, path.address, path.port)
    options = ["-u", "-b", "10M", "-l", "1400", "-P", "4", "--bidir"]
    end = iperf3(path.client_ns, path.target, path.port, *options)
    for name in ("sum_received", "sum_received_bidir_reverse"):
        check_datagrams(end[name], 40e6)


# -- netcat --------------------------------------------------------------------------------------


def test_netcat(start_pasta: StartPasta, remote: Netns, version: int) -> None:
    pasta = start_pasta()
    listener = remote.popen(
        ["ncat", f"-{version}", "-u", "-l", net.REMOTE[version], "7002"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    remote.wait_listening(7002, "udp")
    client = pasta.ns.popen(
        ["ncat", f"-{version}", "-u", net.REMOTE[version], "7002"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert listener.stdin and listener.stdout and client.stdin and client.stdout
    client.stdin.write("there\n")
    client.stdin.flush()
    assert listener.stdout.readline() == "there\n"
    listener.stdin.write("and back\n")
    listener.stdin.flush()
    assert client.stdout.readline() == "and back\n"


def test_netcat_to_closed_port(start_pasta: StartPasta, version: int) -> None:
    """The second write meets the refusal of the first."""
    pasta: Pasta = start_pasta()
    client = pasta.ns.popen(
        ["socat", "-t5", "-", f"UDP{version}:{_bracketed(net.REMOTE[version])}:9"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdin and client.stderr
    client.stdin.write("x")
    client.stdin.flush()
    assert client.wait(5) == 1
    assert "Connection refused" in client.stderr.read()


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
