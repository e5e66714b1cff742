"""The performance suite as a program: two cheap cases, and that an interrupt leaves nothing."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
import sys

import psutil
import pytest

from perf.results import read
from tests.system.kit.netns import wait_for
from tests.system.kit.pasta import VARIABLE, Program
from tests.system.kit.users import TREE

pytestmark = pytest.mark.system

CASES = ["start/plain", "splice/tcp/rr/in"]
BRIEF = ["--rounds", "1", "--seconds", "1", "--exchanges", "50"]


def perf(program: Program, *words: str) -> subprocess.Popen[str]:
    """Start the suite, with the program under test as `ours`."""
    return subprocess.Popen(
        [sys.executable, "-m", "perf", *words],
        cwd=TREE,
        env={**os.environ, VARIABLE: shlex.join(program.argv)},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def traces(pid: int) -> list[str]:
    """What the run of the process *pid* has on this machine: namespaces and folders."""
    found = [name for name in os.listdir("/run/netns") if name.startswith(f"pt{pid}-")]
    return found + [
        name for name in os.listdir("/var/tmp") if name.startswith(f"passt-perf-{pid}-")
    ]


def test_early_interrupt_leaves_nothing(program: Program) -> None:
    """While the network is being built."""
    process = perf(program, "run", *CASES, "-v")
    assert process.stderr
    assert "measurements, about" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not traces(process.pid)


def command_line(process: psutil.Process) -> list[str]:
    """The words of a process, none if it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_run(program: Program, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "results.json"
    # What a run leaves that was killed.
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = pathlib.Path("/var/tmp") / f"passt-perf-{gone.pid}-{tmp_path.name.replace('-', '_')}"
    stale.mkdir()
    process = perf(program, "run", *CASES, *BRIEF, "--output", str(output))
    out, err = process.communicate(timeout=80)
    assert process.returncode == 0, err
    assert err == ""  # quiet, as this is no terminal
    assert not traces(process.pid)
    assert not stale.exists()
    results = read(str(output))
    assert list(results.cases) == CASES
    for case, metric in zip(CASES, ("time", "p50"), strict=True):
        for subject in ("direct", "ours"):
            (value,) = results.values(case, subject, metric).values()
            assert value > 0
            assert results.cases[case].title in out
    (sample,) = results.of("splice/tcp/rr/in", "ours")
    assert sample.cpu
    count = results.count("splice/tcp/rr/in", "ours")
    assert count is not None
    assert count.calls > 50
    assert results.facts["kernel"] == os.uname().release


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(program: Program, number: signal.Signals) -> None:
    """In the middle of bulk by the wire, when most is there that could stay."""
    case = "tap/tcp/out/remote/mtu65520/v4/x1/rtt10/loss0"
    process = perf(program, "run", case, "--seconds", "60", "--subjects", "ours", "-v")
    assert process.stderr
    for line in process.stderr:
        if "round 1" in line:
            break

    def transferring() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        lines = [command_line(child) for child in children]
        return children if any("-c" in line and "iperf3" in line for line in lines) else []

    children = wait_for(transferring, 30, "iperf3")
    assert traces(process.pid)
    # As a terminal does: the whole group.
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.endswith("interrupted\n")
    assert not traces(process.pid)
    assert not [command_line(child) for child in children if child.is_running()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nonsense"], "perf: no case matches nonsense"),
        (["run", "--subjects", "direct,nonsense"], "perf: no such subject or program: nonsense"),
        (["run", "--subjects", "a=direct,a=veth"], "perf: two subjects have the same name"),
        (["run", "--subject", "old=tree:nonsense"], "perf: neither a source tree nor a revision"),
        (["run", "--output", "/nonexistent/a.json"], "perf: /nonexistent/a.json: no such folder"),
        (["compare", "/nonexistent"], "perf: /nonexistent: "),
    ],
)
def test_refused(program: Program, words: list[str], message: str) -> None:
    process = perf(program, *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(message)
    assert out == ""
    assert not traces(process.pid)
