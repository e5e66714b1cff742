"""Processor time and system calls of a subject.

Processor time is what the scheduler counted, in nanoseconds, for all threads
(``/proc/PID/task/*/schedstat``, first field).  It includes what the kernel does on behalf of system
calls, and not what it does elsewhere, in interrupts and workers, for the same traffic.

System calls are counted by ``perf stat`` on the tracepoint ``raw_syscalls:sys_enter``, which is
cheap, or where there is no perf(1) or no tracepoint, by ``strace -c -f``, which makes the
subject several times slower, and batches so larger.  Either way in a measurement of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from tests.system.kit.netns import wait_for


def processor_time(pids: Sequence[int]) -> float:
    """Seconds used so far by all threads of *pids*."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def voluntary_switches(pids: Sequence[int]) -> int:
    """How often threads of *pids* have gone to sleep: so often they woke up."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status") as file:
                found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total


class Meter:
    """What a subject used between entering and leaving a ``with`` block."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self.cpu: float | None = None
        self.elapsed = 0.0

    def __enter__(self) -> Meter:
        self._before = processor_time(self.pids)
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = time.monotonic() - self._started
        if self.pids:
            self.cpu = processor_time(self.pids) - self._before


class Counter(Meter):
    """A meter that counts system calls as well; ``tool`` is empty where nothing can."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__(pids)
        self.tool = counting_tool()
        self.calls = 0
        self.switches = -1

    def __enter__(self) -> Counter:
        words = {"perf": _perf_words, "strace": _strace_words}[self.tool](self.pids)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._wait_attached()
        super().__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        if args[0] is not None:  # what went wrong is more interesting than what was counted
            self._process.kill()
            self._process.communicate()
            return
        self._process.send_signal(signal.SIGINT)
        try:
            _, text = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise AssertionError(f"{self.tool} does not end") from None
        if self.tool == "perf":
            self.calls = perf_value(text, "raw_syscalls:sys_enter")
            self.switches = perf_value(text, "context-switches")
        else:
            self.calls = strace_total(text)

    def _wait_attached(self) -> None:
        if self.tool == "strace":

            def traced() -> bool:
                with open(f"/proc/{self.pids[0]}/status") as file:
                    return "TracerPid:\t0\n" not in file.read()
        else:

            def traced() -> bool:
                links = f"/proc/{self._process.pid}/fd"
                return sum(_link(f"{links}/{fd}") == _PERF_EVENT for fd in os.listdir(links)) >= 2

        def ready() -> bool:
            return self._process.poll() is not None or traced()

        wait_for(ready, what=f"{self.tool} attached")


_PERF_EVENT = "anon_inode:[perf_event]"
_EVENTS = "raw_syscalls:sys_enter,context-switches"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


def _perf_words(pids: Sequence[int]) -> list[str]:
    return ["perf", "stat", "-x", ",", "-e", _EVENTS, "-p", ",".join(map(str, pids))]


def _strace_words(pids: Sequence[int]) -> list[str]:
    return ["strace", "-c", "-f", "-p", ",".join(map(str, pids))]


def perf_value(text: str, event: str) -> int:
    """The count of *event* in what ``perf stat -x ,`` printed; AssertionError without."""
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].split(":u")[0] == event and fields[0].isdigit():
            return int(fields[0])
    raise AssertionError(f"perf counts no {event}: {text.strip()[:200]}")


def strace_total(text: str) -> int:
    """The number of calls in the summary of ``strace -c``; AssertionError without one."""
    for line in reversed(text.splitlines()):
        fields = line.split()
        if fields and fields[-1] == "total":
            return int(fields[3])
    raise AssertionError(f"strace counts nothing: {text.strip()[:200]}")


_found: list[str] = []


def counting_tool() -> str:
    """``perf``, ``strace``, or an empty string."""
    if not _found:
        _found.append(_find_tool())
    return _found[0]


def _find_tool() -> str:
    if shutil.which("perf"):
        probe = ["perf", "stat", "-x", ",", "-e", _EVENTS, "true"]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
        try:
            perf_value(done.stderr, "raw_syscalls:sys_enter")
        except AssertionError:
            pass
        else:
            return "perf"
    return "strace" if shutil.which("strace") else ""
