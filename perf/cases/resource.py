"""What a subject takes: time to start, memory, descriptors, wake-ups while nothing happens."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import time
from collections.abc import Sequence

from perf.cases.base import Case, Outcome, Work
from perf.cases.stream import transfer
from perf.loads import IDLE
from perf.sampling import processor_time, voluntary_switches
from perf.subjects import UnsupportedError

FLOWS = 10_000
SETTLING = 1.5  # seconds for stocks of sockets and the like


def memory(pids: Sequence[int]) -> dict[str, float]:
    """Resident and proportional share of *pids*, MiB."""
    totals = {"rss": 0.0, "pss": 0.0}
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for name, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB", file.read(), re.MULTILINE):
                totals[name.lower()] += int(value) / 1024
    return totals


def descriptors(pids: Sequence[int]) -> int:
    """Open descriptors of *pids*."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def port_options() -> list[str]:
    """As many forwarded TCP and UDP ports as the limit of descriptors admits, 8000 at most."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(8000, int(hard * 0.4))
    ports = f"10000-{9999 + count}"
    return ["-t", ports, "-u", ports]


def start(work: Work, options: Sequence[str], count: int) -> Outcome:
    """The best of some starts: what disturbs can only add."""
    count = min(count, 1 + work.settings.exchanges // 1000)
    times = [work.subject.start_time(work.network, options) for _ in range(count)]
    return Outcome({"time": min(times) * 1e3})


def processes(work: Work) -> list[int]:
    """The processes of the instance; UnsupportedError if it has none."""
    if not work.running.pids:
        raise UnsupportedError("no process of its own")
    return work.running.pids


def at_rest(work: Work) -> Outcome:
    """Memory of an instance that just started."""
    pids = processes(work)
    time.sleep(SETTLING)
    return Outcome(memory(pids))


def after_bulk(work: Work) -> Outcome:
    """Memory of an instance that has moved bulk each way."""
    pids = processes(work)
    for options in ([], ["-R"]):
        transfer(work, *options)
    return Outcome(memory(pids))


def sleep(work: Work) -> dict[str, float]:
    """Wake-ups and processor time of an instance that has nothing to do."""
    pids, seconds = work.running.pids, max(1, 2 * work.settings.seconds)
    woken, used = voluntary_switches(pids), processor_time(pids)
    with work.meter:
        time.sleep(seconds)
    per_minute = 60 / seconds
    return {
        "wakeups": (voluntary_switches(pids) - woken) * per_minute,
        "busy": (processor_time(pids) - used) * 1e3 * per_minute,
    }


def idle(work: Work) -> Outcome:
    """Doing nothing without flows."""
    processes(work)
    time.sleep(SETTLING)
    return Outcome(sleep(work))


def flows(work: Work) -> Outcome:
    """Many connections, as many as limits admit, and doing nothing with them."""
    route, pids = work.route, processes(work)
    serving = route.server.popen([*IDLE, "serve", route.bind, str(route.port)])
    route.server.wait_listening(route.port)
    time.sleep(SETTLING)
    descriptors_before, memory_before = descriptors(pids), memory(pids)["pss"]
    wanted = min(FLOWS, work.settings.exchanges * 5)
    words = [*IDLE, "hold", route.target, str(route.port), str(wanted)]
    holding = route.client.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holding.stdout
    count, took = holding.stdout.readline().split()
    held = int(count)
    if not held:
        raise AssertionError("no connection was answered")
    time.sleep(SETTLING)
    values = {
        "flows": float(held),
        "fill": float(took) / held * FLOWS,
        "flow-memory": (memory(pids)["pss"] - memory_before) / held * 1000,
        "flow-descriptors": (descriptors(pids) - descriptors_before) / held,
    }
    values |= sleep(work)
    for process in (holding, serving):
        work.network.processes.stop(process)
    return Outcome(values)


CASES = [
    Case(
        "start/plain",
        "start, and `true`",
        "time",
        lambda work: start(work, [], 3),
        sets=frozenset({"full", "quick", "ci"}),
        standing=False,
        counted=False,
        seconds=lambda _: 0.5,
    ),
    Case(
        "start/ports",
        "start with thousands of forwarded ports, and `true`",
        "time",
        lambda work: start(work, port_options(), 1),
        sets=frozenset({"full"}),
        standing=False,
        counted=False,
        seconds=lambda _: 2.0,
    ),
    Case(
        "memory/idle",
        "memory at rest",
        "rss",
        at_rest,
        sets=frozenset({"full", "quick"}),
        counted=False,
        seconds=lambda _: 2.0,
    ),
    Case(
        "memory/bulk",
        "memory after bulk by the tap, each way",
        "rss",
        after_bulk,
        sets=frozenset({"full"}),
        counted=False,
        seconds=lambda settings: 2.0 * settings.seconds,
    ),
    Case(
        "idle/wakeups",
        "doing nothing",
        "wakeups",
        idle,
        sets=frozenset({"full"}),
        counted=False,
        seconds=lambda settings: 2.0 + 2 * settings.seconds,
    ),
    *(
        Case(
            f"flows/{name}",
            f"up to 10,000 TCP connections, {title}",
            "fill",
            flows,
            route=route,
            sets=frozenset({"full"}),
            counted=False,
            seconds=lambda settings: 10.0 + 2 * settings.seconds,
        )
        for name, title, route in (
            ("splice", "on loopback", "loopback-in"),
            ("tap", "by the tap", "host"),
        )
    ),
]
