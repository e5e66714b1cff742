"""``python -m tests.fuzz``: campaigns, replay, and care of the corpora; see docs/fuzzing.md."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.fuzz import guided
from tests.fuzz.catalogue import CORPUS, NAMES, WORK, Harness, inputs
from tests.fuzz.engine import Campaign, Find, attempt, digest, minimise, shorten
from tests.fuzz.lines import Lines

#: What the report of covered lines is about.
PARTS = (
    "userspace/wire",
    "userspace/stack.py",
    "userspace/services",
    "userspace/tcp",
    "userspace/udp",
    "userspace/icmp",
    "userspace/link/stream.py",
    "userspace/multicast",
    "userspace/flow",
    "userspace/config/ports.py",
    "userspace/config/extras.py",
    "userspace/config/resolvconf.py",
    "userspace/control",
    "userspace/forward/proclist.py",
    "kernel/follow/difference.py",
    "kernel/follow/monitor.py",
    "kernel/netlink/attributes.py",
    "kernel/netlink/neighbours.py",
    "kernel/netlink/policy.py",
    "kernel/netlink/records.py",
    "kernel/netlink/retarget.py",
    "kernel/netlink/route_socket.py",
    "kernel/netlink/template.py",
    "kernel/sockdiag.py",
)


def main() -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    words = {
        "run": "fuzz each harness for a while",
        "replay": "run stored inputs, or the files given, once",
        "lines": "say which part of the product the stored inputs execute",
        "seeds": "write the inputs that scripts make into the corpora",
        "minimise": "add what campaigns reached to the corpora, and drop what is not needed",
    }
    for name, text in words.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
        if name == "run":
            command.add_argument("--seconds", type=float, default=60.0, help="for each harness")
            command.add_argument("--seed", type=int, default=0, help="default: the time of day")
            command.add_argument("--engine", choices=("auto", "own", "atheris"), default="auto")
        if name == "replay":
            command.add_argument("--file", action="append", default=[], help="an input of NAME")
        if name in ("lines", "minimise"):
            command.add_argument("--work", action="store_true", help="with those of campaigns")
        if name == "lines":
            command.add_argument("--missing", metavar="PART", help="list lines not executed")
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    return {"run": run, "replay": replay, "lines": lines, "seeds": seeds, "minimise": reduce}[
        arguments.command
    ](names, arguments)


def run(names: list[str], arguments: argparse.Namespace) -> int:
    """Campaigns, one after the other."""
    seed = arguments.seed or time.time_ns() & 0xFFFFFFFF
    by_atheris = arguments.engine == "atheris" or (
        arguments.engine == "auto" and guided.available()
    )
    failed = 0
    for name in names:
        print(f"{name}: {arguments.seconds:g} s, seed {seed}", flush=True)
        if by_atheris:
            failed |= guided.campaign(name, arguments.seconds, seed)
            continue
        harness = Harness(name)
        campaign = Campaign(harness, harness.corpus(work=True), seed, lines=Lines())
        campaign.run(arguments.seconds)
        print(f"{name}: {campaign.executions} executions, {len(campaign.added)} inputs added")
        _store(os.path.join(WORK, name), campaign.added)
        for find in campaign.finds:
            failed = 1
            _report(shorten(harness, find))
    return 1 if failed else 0


def replay(names: list[str], arguments: argparse.Namespace) -> int:
    """Stored inputs, or files."""
    status = 0
    for name in names:
        harness = Harness(name)
        files = {path: _read(path) for path in arguments.file}
        found = files or inputs(os.path.join(CORPUS, name))
        started = time.monotonic()
        for path, data in found.items():
            error = attempt(harness.one, data)
            if error is not None:
                status = 1
                print(f"{path}:\n{Find(name, data, error).text}")
        print(f"{name}: {len(found)} inputs in {time.monotonic() - started:.2f} s")
    return status


def lines(names: list[str], arguments: argparse.Namespace) -> int:
    """A table of what is executed, of which there is how much."""
    harnesses = [Harness(name) for name in names]
    with Lines() as seen:
        for harness in harnesses:
            for data in harness.corpus(work=arguments.work):
                attempt(harness.one, data)
    if arguments.missing:
        for path, numbers in seen.missing(arguments.missing).items():
            print(path, *numbers)
        return 0
    for part, reached, total in seen.table(PARTS):
        print(f"{part:32}{reached:6} of {total:5} lines {100 * reached / max(total, 1):5.1f} %")
    return 0


def seeds(names: list[str], _arguments: argparse.Namespace) -> int:
    """Write seeds; their names begin with ``seed-``."""
    for name in names:
        folder = os.path.join(CORPUS, name)
        os.makedirs(folder, exist_ok=True)
        for file in os.listdir(folder):
            if file.startswith("seed-"):
                os.unlink(os.path.join(folder, file))
        for label, data in Harness(name).seeds().items():
            _write(os.path.join(folder, f"seed-{label}"), data)
    return 0


def reduce(names: list[str], arguments: argparse.Namespace) -> int:
    """Keep the seeds, and of everything else the little that executes the same lines.

    Inputs whose names begin with ``find-`` are regressions and stay, too.
    """
    for name in names:
        harness = Harness(name)
        folder = os.path.join(CORPUS, name)
        stored = inputs(folder)
        kept = {
            label: data for label, data in stored.items() if label.startswith(("seed-", "find-"))
        }
        candidates = [data for label, data in stored.items() if label not in kept]
        if arguments.work:
            candidates += inputs(os.path.join(WORK, name)).values()
        for label in stored.keys() - kept.keys():
            os.unlink(os.path.join(folder, label))
        added = minimise(harness, candidates, list(kept.values()))
        _store(folder, added)
        size = sum(map(len, added)) + sum(map(len, kept.values()))
        print(f"{name}: {len(kept)} seeds and finds, {len(added)} others, {size} bytes")
    return 0


def _report(find: Find) -> None:
    print(f"{find.text}\n{len(find.data)} bytes in {find.save()}: {find.data.hex()}", flush=True)


def _store(folder: str, found: list[bytes]) -> None:
    os.makedirs(folder, exist_ok=True)
    for data in found:
        _write(os.path.join(folder, digest(data)), data)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
