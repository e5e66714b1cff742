"""Many forwarded ports: upstream's and our socket for each, and one socket for all of them.

``python -m perf.ranges [--peer ROOT] [--rounds N]`` prints a table: time and processor time from
start to end of ``pasta -- true``, in interleaved rounds, median and least; then what a running
instance takes of memory, descriptors, and the kernel's memory, where control groups of version 1
count that.  Upstream is run by the ordinary user, as it does not start as root; ours by root.

What upstream does in vain is not counted: a start that did not end in ten seconds.  Takes root.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import sys
import time

from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, forwarding, peer_command
from tests.system.kit.topology import Topology
from tests.system.kit.users import User, ordinary_user

RANGE = "20000-35999"
#: Title, options, and whether upstream has it, too.
LOADS = (
    ("no ports", ["-t", "none"], True),
    ("16,000 ports", ["-t", RANGE], True),
    ("all ports", ["-t", "all"], False),
)
_COUNTED = "/sys/fs/cgroup/memory"
_PATIENCE = 10.0


class Subject:
    """A program, who runs it, and with which options besides."""

    def __init__(self, name: str, program: Program, user: User, *options: str) -> None:
        self.name = name
        self.program = program
        self.user = user
        self.options = list(options)

    def start(self, host: Netns, options: list[str]) -> tuple[float, float] | None:
        """Milliseconds and those of processor time of a start; None if it does not end well."""
        words = [*self.program.argv, "--config-net", *forwarding([*options, *self.options])]
        before, started = _used(), time.perf_counter()
        try:
            host.run([*words, "--", "true"], prefix=self.user.prefix, timeout=_PATIENCE)
        except AssertionError:
            return None
        return (time.perf_counter() - started) * 1e3, (_used() - before) * 1e3

    def memory(self, host: Netns, options: list[str]) -> dict[str, float]:
        """What an instance takes."""
        group = f"{_COUNTED}/passt-perf-{os.getpid()}"
        counted = os.path.exists(f"{_COUNTED}/memory.kmem.usage_in_bytes")
        prefix = []
        if counted:
            os.mkdir(group)
            prefix = ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]
        user = ordinary_user() if self.user.prefix else User("root")
        user.prefix = [*prefix, *user.prefix]
        try:
            pasta = Pasta(self.program, host, user, *options, *self.options)
            time.sleep(1.0)
            values = {
                "Pss, MiB": pasta.memory()["Pss"] / 1024,
                "descriptors": float(pasta.descriptors()),
            }
            if counted:
                with open(f"{group}/memory.kmem.usage_in_bytes") as file:
                    values["kernel, MiB"] = int(file.read()) / (1 << 20)
            pasta.close()
        finally:
            if counted:
                _remove(group)
        return values


def _used() -> float:
    """Processor seconds of all that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _remove(group: str) -> None:
    """Remove a control group as soon as its processes have ended."""
    for _ in range(100):
        try:
            os.rmdir(group)
            return
        except OSError:
            time.sleep(0.1)


def measure(subjects: list[Subject], host: Netns, rounds: int) -> None:
    """Print the table."""
    starts: dict[tuple[str, str], list[tuple[float, float]]] = {}
    cases = [
        (subject, title, options)
        for title, options, both in LOADS
        for subject in subjects
        if both or "--accel=ebpf" in subject.options
    ]
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for subject, title, options in cases:
            result = subject.start(host, options)
            if result is not None:
                starts.setdefault((subject.name, title), []).append(result)
    print(f"{'':32}{'start, ms':>16}{'processor, ms':>16}")
    print(f"{'':32}{'median  least':>16}{'median  least':>16}  memory")
    for subject, title, options in cases:
        results = starts.get((subject.name, title))
        cells = ""
        for column in range(2):
            values = [result[column] for result in results or ()]
            cell = f"{statistics.median(values):.0f}  {min(values):5.0f}" if values else "fails"
            cells += f"{cell:>16}"
        memory = subject.memory(host, options) if results else {}
        text = ", ".join(f"{name} {value:.1f}" for name, value in memory.items())
        print(f"{subject.name + ', ' + title:32}{cells}  {re.sub(r'[.]0(?=,|$)', '', text)}")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m perf.ranges", description=__doc__)
    parser.add_argument("--peer", metavar="ROOT", help="Debian tree with the upstream program")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    root = User("root")
    ours = Program([os.path.join(os.path.dirname(sys.executable), "pasta")])
    subjects = [
        Subject("a socket for each", ours, root),
        Subject("one socket", ours, root, "--accel=ebpf"),
    ]
    if arguments.peer:
        program = Program(peer_command(arguments.peer))
        subjects.insert(0, Subject("upstream", program, ordinary_user()))
    with Topology() as topology:
        measure(subjects, topology.host, arguments.rounds)


if __name__ == "__main__":
    main()
