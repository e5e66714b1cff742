"""What the figures depend on: kernel, processor, congestion control, offloads, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence

from perf.results import Fact
from tests.system.kit.netns import Netns

#: Features of ``ethtool -k`` that decide how much one system call carries.
_OFFLOADS = (
    "tx-checksumming",
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-udp-segmentation",
)
_SYSCTLS = (
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/default_qdisc",
)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def first_line(words: Sequence[str]) -> str:
    """The first line that a program prints, empty if it cannot be run."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def processor(text: str) -> tuple[str, bool]:
    """Model of the processor, and whether it is a virtual one, from ``/proc/cpuinfo``."""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE)
    return (model[1].strip() if model else platform.machine()), flags is not None


def offloads(text: str) -> str:
    """The offloads that are on, from ``ethtool -k``."""
    on = [
        name for name in _OFFLOADS if re.search(rf"^\s*{name}: on\b", text, re.MULTILINE)
    ]  # fmt: skip
    return " ".join(on) or "none"


def interface_offloads(ns: Netns, name: str) -> str:
    """The offloads of an interface that are on, ``unknown`` where ethtool does not tell."""
    done = ns.run(["ethtool", "-k", name], check=False)
    return offloads(done.stdout) if done.returncode == 0 else "unknown"


def revision(tree: str) -> str:
    """Commit of a source tree, with a plus sign if files differ; empty if it is none."""
    commit = first_line(["git", "-C", tree, "rev-parse", "--short=12", "HEAD"])
    if not re.fullmatch("[0-9a-f]{7,40}", commit):
        return ""
    changed = first_line(["git", "-C", tree, "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def collect(tree: str) -> dict[str, Fact]:
    """Facts about this machine, now."""
    model, virtual = processor(_read("/proc/cpuinfo"))
    facts: dict[str, Fact] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": model,
        "processors": len(os.sched_getaffinity(0)),
        "virtual machine": "yes" if virtual else "no",
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "none",
        "memory, MiB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "python": platform.python_version(),
        "iperf3": first_line(["iperf3", "--version"]),
        "commit": revision(tree),
        "load average at start": round(os.getloadavg()[0], 2),
    }
    facts |= {name: " ".join(_read(f"/proc/sys/{name}").split()) for name in _SYSCTLS}
    return facts
