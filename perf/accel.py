"""Compare ways of forwarding between loopback interfaces: upstream, spliced, by the kernel alone.

Run as root from the root of the tree: ``python -m perf.accel --peer ROOT``, with ROOT as of
:mod:`perf.compare`.  Rounds are interleaved; *direct* is loopback without pasta.  Connections go
from the host to the namespace.  For each way: exchanges of one byte on one connection, whole
connections with one exchange, bulk, the share of a core that pasta takes meanwhile, and start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

from perf.compare import EXCHANGE, PORT, PYTHON, Results, Setting, Values, gigabits
from tests.system.kit import prepared
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, peer_command
from tests.system.kit.servers import iperf3, iperf3_server
from tests.system.kit.topology import Topology
from tests.system.kit.users import ordinary_user

#: Bytes of an exchange.
SIZE = 1


def exchanges(
    server: Netns, address: str, host: Netns, count: int, verbs: tuple[str, str]
) -> Values:
    """Microseconds of an exchange: p50 and p99."""
    serving = server.popen([PYTHON, EXCHANGE, verbs[0], address, str(PORT)])
    server.wait_listening(PORT, "tcp")
    words = [PYTHON, EXCHANGE, verbs[1], net.LOOPBACK[4], str(PORT), str(count), str(SIZE)]
    values: Values = json.loads(host.run(words, timeout=60).stdout)
    server.processes.stop(serving)
    return values


def measure(setting: Setting, options: list[str]) -> Values:
    """All figures of one way."""
    host = setting.topology.host
    pasta, server, address = None, host, net.LOOPBACK[4]
    values: Values = {}
    if setting.program is not None:
        started = time.perf_counter()
        pasta = Pasta(setting.program, host, setting.user, "-t", str(PORT), *options)
        values["start-up, ms"] = (time.perf_counter() - started) * 1e3
        server, address = pasta.ns, net.HOST[4]

    def during(what: str, run: Callable[[], Values | float]) -> None:
        """Note the result of ``run``, and the processor time per second."""
        before, started = pasta.cpu_seconds() if pasta else 0.0, time.perf_counter()
        result = run()
        if isinstance(result, float):
            values[f"{what}, Gbit/s"] = result
        else:
            values[f"{what}, p50, µs"] = result["p50"]
            values[f"{what}, p99, µs"] = result["p99"]
        if pasta:
            used = pasta.cpu_seconds() - before
            values[f"{what}, % of a core"] = used / (time.perf_counter() - started) * 100

    def bulk(*words: str) -> float:
        iperf3_server(server, address, PORT)
        return gigabits(iperf3(host, net.LOOPBACK[4], PORT, *words, seconds=setting.seconds))

    verbs = ("serve", "ask"), ("serve-each", "connect")
    count = setting.count
    during("exchange", lambda: exchanges(server, address, host, count, verbs[0]))
    during("connection", lambda: exchanges(server, address, host, count // 4, verbs[1]))
    during("bulk in", bulk)
    during("bulk out", lambda: bulk("-R"))
    if pasta:
        pasta.close()
    return values


def main() -> int:
    """Run the comparison as a program."""
    parser = argparse.ArgumentParser(description="Compare ways of forwarding on loopback")
    parser.add_argument("--peer", metavar="ROOT", help="Debian tree with the upstream program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each iperf3 run")
    parser.add_argument("--count", type=int, default=6000, help="exchanges per round")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root, for network namespaces")
    os.chmod("/dev/net/tun", 0o666)
    user = ordinary_user()
    folder = tempfile.mkdtemp(prefix="passt-perf-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    try:
        ours = Program.from_environment(folder, user)
        ways: dict[str, tuple[Program | None, list[str]]] = {"direct": (None, [])}
        if options.peer:
            ways["upstream"] = Program(peer_command(options.peer)), []
        ways["splice"] = ours, []
        ways["ebpf"] = ours, ["--accel=ebpf"]
        results = Results(list(ways))
        with Topology() as topology, prepared.sets(user, 1):
            for round_ in range(options.rounds):
                for column, (program, words) in ways.items():
                    print(f"round {round_ + 1}: {column}", file=sys.stderr)
                    setting = Setting(topology, user, program, options.seconds, options.count)
                    results.add(column, measure(setting, words))
                    topology.processes.stop_all()
        print(results.table())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
