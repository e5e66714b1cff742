"""Compare our pasta with the upstream one, side by side, on this machine.

Run as root from the root of the tree: ``python -m perf.compare --peer ROOT``, where ROOT is a
Debian tree with the upstream program (its binary is started with that tree's own loader, so that
both programs see the same system, the same iperf3 and the same Python). Both run as the same
ordinary user in the same network (tests/system/kit). Ours is what the console script is, or, if the
user cannot run it there, an installed copy.

Rounds are interleaved, ours, upstream, without, ours, …, and medians are reported, as other work on
the machine comes and goes. *direct* is the same measurement without pasta, over loopback or, for
traffic with the remote namespace, over the veth pair.

Figures are only comparable within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, forwarding, peer_command
from tests.system.kit.servers import iperf3, iperf3_server
from tests.system.kit.topology import Topology
from tests.system.kit.users import User, ordinary_user

PORT = 5301  # forwarded to the namespace: services there
HOST_PORT = 5302  # services on the host and in the remote namespace
HERE = os.path.dirname(os.path.abspath(__file__))
EXCHANGE = os.path.join(HERE, "exchange.py")
IDLE = os.path.join(HERE, "idle.py")
IDLE_COUNT = 10_000
IDLE_SECONDS = 10
PYTHON = "/usr/bin/python3"  # in the reach of the ordinary user

Values = dict[str, float]


class Setting:
    """What a measurement needs: the network, the user, the program (None: direct), durations."""

    def __init__(
        self, topology: Topology, user: User, program: Program | None, seconds: int, count: int
    ) -> None:
        self.topology = topology
        self.user = user
        self.program = program
        self.seconds = seconds
        self.count = count

    def pasta(self, mtu: int) -> Pasta:
        """Start the program, with PORT forwarded."""
        assert self.program
        words = ["--mtu", str(mtu), "-t", str(PORT), "-u", str(PORT)]
        return Pasta(self.program, self.topology.host, self.user, *words)


# -- measurements --------------------------------------------------------------------------------


def gigabits(end: dict[str, dict[str, float]]) -> float:
    """Return the rate of received data in Gbit/s from an iperf3 report."""
    return end["sum_received"]["bits_per_second"] / 1e9


def stream_rates(
    setting: Setting, client: Netns, target: str, server: Netns, address: str, port: int = HOST_PORT
) -> tuple[float, float]:
    """Return Gbit/s from client to server, and back."""
    rates = []
    for options in ([], ["-R"]):
        iperf3_server(server, address, port)
        rates.append(gigabits(iperf3(client, target, port, *options, seconds=setting.seconds)))
    return rates[0], rates[1]


def datagram_rates(
    setting: Setting, client: Netns, target: str, server: Netns, address: str
) -> list[tuple[float, float]]:
    """Return received Gbit/s and loss in percent, from client to server and back."""
    results = []
    for options in ([], ["-R"]):
        iperf3_server(server, address, HOST_PORT)
        words = ["-u", "-b", "0", "-l", "1400", *options]
        total = iperf3(client, target, HOST_PORT, *words, seconds=setting.seconds)["sum"]
        received = total["packets"] - total["lost_packets"]
        results.append((received * 1400 * 8 / total["seconds"] / 1e9, total["lost_percent"]))
    return results


def exchange_time(
    setting: Setting,
    client: Netns,
    target: str,
    server: Netns,
    address: str,
    port: int = HOST_PORT,
    *,
    verbs: tuple[str, str] = ("serve", "ask"),
) -> Values:
    """Return p50 and p99 in µs of exchanges of 64 bytes; *verbs* as of exchange.py."""
    serving = server.popen([PYTHON, EXCHANGE, verbs[0], address, str(port)])
    server.wait_listening(port, "udp" if "udp" in verbs[0] else "tcp")
    words = [PYTHON, EXCHANGE, verbs[1], target, str(port), str(setting.count), "64"]
    values: Values = json.loads(client.run(words, timeout=60).stdout)
    server.processes.stop(serving)
    return values


def bulk(setting: Setting, mtu: int) -> Values:
    """TCP throughput: by the tap to and from the host's loopback and *remote*; inbound; spliced."""
    host, remote = setting.topology.host, setting.topology.remote
    loopback, address, outside = net.LOOPBACK[4], net.HOST[4], net.REMOTE[4]
    names = ("tap, ns → host", "tap, host → ns"), ("tap, ns → remote", "tap, remote → ns")
    inbound = ("inbound by tap, remote → ns", "inbound by tap, ns → remote")
    spliced = ("splice, host → ns", "splice, ns → host")
    values: Values = {}

    def add(labels: tuple[str, str], rates: tuple[float, float]) -> None:
        for label, rate in zip(labels, rates, strict=True):
            values[f"TCP {label}, MTU {mtu}, Gbit/s"] = rate

    if setting.program is None:
        lo = stream_rates(setting, host, loopback, host, loopback)
        veth = stream_rates(setting, host, outside, remote, outside)
        add(names[0], lo)
        add(names[1], veth)
        add(inbound, stream_rates(setting, remote, address, host, address))
        if mtu == 65520:
            add(spliced, lo)
        return values
    pasta = setting.pasta(mtu)
    add(names[0], stream_rates(setting, pasta.ns, net.GATEWAY[4], host, loopback))
    add(names[1], stream_rates(setting, pasta.ns, outside, remote, outside))
    add(inbound, stream_rates(setting, remote, address, pasta.ns, address, PORT))
    if mtu == 65520:
        add(spliced, stream_rates(setting, host, loopback, pasta.ns, address, PORT))
    pasta.close()
    return values


#: Kinds of exchange: verbs of exchange.py.
EXCHANGES = {
    "TCP request/response": ("serve", "ask"),
    "TCP connect/request/close": ("serve-each", "connect"),
    "UDP request/response": ("serve-udp", "ask-udp"),
}


def exchange(setting: Setting) -> Values:
    """Request and answer of all kinds, by the tap and spliced."""
    host, loopback = setting.topology.host, net.LOOPBACK[4]
    values: Values = {}
    for kind, verbs in EXCHANGES.items():
        if setting.program is None:
            tap = spliced = exchange_time(setting, host, loopback, host, loopback, verbs=verbs)
        else:
            pasta = setting.pasta(65520)
            tap = exchange_time(setting, pasta.ns, net.GATEWAY[4], host, loopback, verbs=verbs)
            inside = (pasta.ns, net.HOST[4], PORT)
            spliced = exchange_time(setting, host, loopback, *inside, verbs=verbs)
            pasta.close()
        for name, value in (("tap", tap), ("splice", spliced)):
            for point in ("p50", "p99"):
                values[f"{kind} by {name}, {point}, µs"] = value[point]
    return values


def datagrams(setting: Setting) -> Values:
    """UDP, datagrams of 1400 bytes, as fast as the sender can."""
    host, loopback = setting.topology.host, net.LOOPBACK[4]
    if setting.program is None:
        results = datagram_rates(setting, host, loopback, host, loopback)
    else:
        pasta = setting.pasta(65520)
        results = datagram_rates(setting, pasta.ns, net.GATEWAY[4], host, loopback)
        pasta.close()
    values: Values = {}
    for name, (rate, loss) in zip(("ns → host", "host → ns"), results, strict=True):
        values[f"UDP {name}, 1400 bytes, received Gbit/s"] = rate
        values[f"UDP {name}, 1400 bytes, loss %"] = loss
    return values


def start_time(setting: Setting, options: list[str], count: int) -> float:
    """Return the median of *count* starts of ``pasta [options] -- true``, milliseconds."""
    words = ["true"]
    if setting.program:
        words = [*setting.program.argv, *forwarding(options), "--config-net", "--", "true"]
    times = []
    for _ in range(count):
        started = time.perf_counter()
        setting.topology.host.run(words, prefix=setting.user.prefix)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def start(setting: Setting) -> Values:
    """How long it takes from the start to the end of ``true``, with what it takes to get there."""
    values = {"start: pasta --config-net -- true, ms": start_time(setting, [], 7)}
    if setting.program:
        # As many sockets as a common limit of descriptors admits, 20000.
        ports = ["-t", "10000-17999", "-u", "10000-17999"]
        values["start: 16000 forwarded ports, ms"] = start_time(setting, ports, 3)
    return values


def memory(setting: Setting) -> Values:
    """Memory of the long-lived process, at rest and after one bulk transfer each way, MiB."""
    if setting.program is None:
        return {}
    host, loopback = setting.topology.host, net.LOOPBACK[4]
    pasta = setting.pasta(65520)
    time.sleep(0.5)
    values = {f"memory at rest, {k}, MiB": v / 1024 for k, v in pasta.memory().items()}
    short = Setting(setting.topology, setting.user, setting.program, 2, 0)
    stream_rates(short, pasta.ns, net.GATEWAY[4], host, loopback)
    values |= {f"memory after bulk, {k}, MiB": v / 1024 for k, v in pasta.memory().items()}
    pasta.close()
    return values


def idle(setting: Setting) -> Values:
    """What thousands of spliced connections cost while they do nothing.

    As many as there can be, which the limit for open files decides.
    """
    if setting.program is None:
        return {}
    pasta = setting.pasta(65520)
    serving = pasta.ns.popen([PYTHON, IDLE, "serve", net.HOST[4], str(PORT)])
    pasta.ns.wait_listening(PORT)
    time.sleep(1.5)  # for stocks of sockets
    descriptors, memory_before = pasta.descriptors(), pasta.memory()["Pss"]
    words = [PYTHON, IDLE, "hold", net.LOOPBACK[4], str(PORT), str(IDLE_COUNT)]
    holding = setting.topology.host.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holding.stdout
    count = int(holding.stdout.readline())
    time.sleep(2)
    before = pasta.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    values = {
        "idle spliced connections": float(count),
        f"idle: CPU time in {IDLE_SECONDS} s, ms": (pasta.cpu_seconds() - before) * 1e3,
        "idle: descriptors per connection": (pasta.descriptors() - descriptors) / count,
        "idle: memory per connection, Pss, KiB": (pasta.memory()["Pss"] - memory_before) / count,
    }
    for process in (holding, serving):
        setting.topology.processes.stop(process)
    pasta.close()
    return values


MEASUREMENTS: dict[str, Callable[[Setting], Values]] = {
    "start": start,
    "bulk-65520": lambda setting: bulk(setting, 65520),
    "bulk-1500": lambda setting: bulk(setting, 1500),
    "exchange": exchange,
    "datagrams": datagrams,
    "memory": memory,
    "idle": idle,
}


# -- running and reporting -----------------------------------------------------------------------


class Results:
    """All values by name and column, in the order of their first appearance."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, column: str, values: Values) -> None:
        """Add the values of one measurement of one round."""
        for name, value in values.items():
            self.rows.setdefault(name, {}).setdefault(column, []).append(value)

    def median(self, name: str, column: str) -> float | None:
        """Return the median over the rounds, None without values."""
        values = self.rows[name].get(column)
        return statistics.median(values) if values else None

    def table(self) -> str:
        """Return a Markdown table of medians; the last column says how we compare."""
        head = ["measurement", *self.columns, "ours : upstream"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name in self.rows:
            medians = [self.median(name, column) for column in self.columns]
            cells = ["–" if value is None else f"{value:.3g}" for value in medians]
            ours, upstream = self.median(name, "ours"), self.median(name, "upstream")
            ratio = f"{ours / upstream:.2f}" if ours is not None and upstream else "–"
            better = "lower" if re.search(r"µs|ms$|[MK]iB|loss|descriptors", name) else "higher"
            lines.append(f"| {name} ({better} is better) | " + " | ".join([*cells, ratio]) + " |")
        return "\n".join(lines)


def main() -> int:
    """Run the comparison as a program."""
    parser = argparse.ArgumentParser(description="Compare our pasta with the upstream one")
    parser.add_argument("--peer", metavar="ROOT", help="Debian tree with the upstream program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each iperf3 run")
    parser.add_argument("--count", type=int, default=5000, help="exchanges per round")
    parser.add_argument("--only", default="", help="measurements whose name matches this pattern")
    parser.add_argument("--without", default="", help="columns to leave out, by commas")
    parser.add_argument("--json", metavar="FILE", help="write all values there as well")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root, for network namespaces")
    os.chmod("/dev/net/tun", 0o666)
    user = ordinary_user()
    folder = tempfile.mkdtemp(prefix="passt-perf-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    try:
        programs: dict[str, Program | None] = {"direct": None}
        if options.peer:
            programs["upstream"] = Program(peer_command(options.peer))
        programs["ours"] = Program.from_environment(folder, user)
        for name in filter(None, options.without.split(",")):
            programs.pop(name, None)
        results = Results(list(programs))
        with Topology() as topology:
            chosen = [name for name in MEASUREMENTS if re.search(options.only, name)]
            for round_ in range(options.rounds):
                for name in chosen:
                    for column, program in programs.items():
                        print(f"round {round_ + 1}: {name}, {column}", file=sys.stderr)
                        setting = Setting(topology, user, program, options.seconds, options.count)
                        try:
                            results.add(column, MEASUREMENTS[name](setting))
                        except AssertionError as error:
                            print(f"failed: {error}", file=sys.stderr)
                        topology.processes.stop_all()
        print(results.table())
        if options.json:
            with open(options.json, "w") as file:
                json.dump(results.rows, file, indent=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
