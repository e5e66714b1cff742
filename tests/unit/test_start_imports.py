"""What starting must not import: modules that take longer than all they would be used for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
before = set(sys.modules)
import passt.userspace.cli.main, passt.kernel.netlink.worker
import passt.userspace.config.parse, passt.userspace.launch
print(*sorted(set(sys.modules) - before))
"""

#: Their own imports included, each takes from 1 to 10 ms of a start of some 60.
SLOW = (
    *("socket", "signal", "enum", "selectors", "collections", "heapq", "queue", "threading"),
    *("functools", "contextlib", "typing", "re", "logging", "traceback", "dataclasses"),
    *("ipaddress", "inspect", "subprocess", "pathlib", "argparse", "tempfile", "random"),
    *("hashlib", "json", "datetime", "pyroute2", "bcc", "psutil"),
)


def test_start_imports_nothing_slow() -> None:
    # Without what the test environment's own path hooks bring along.
    command = [sys.executable, "-S", "-c", PROGRAM]
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    loaded = done.stdout.split()
    assert "passt.userspace.tcp.flow" in loaded
    assert [name for name in SLOW if name in loaded] == []


PRELOADED = """
import sys
from passt.userspace.config.model import Config
from passt.userspace.engine import preload
config = Config("pasta")
config.conf_path = "/run/control"
config.splice_only = True
preload(config)
print("passt.userspace.control.server" in sys.modules)
"""


def test_what_serves_pesto_is_loaded_before_identities_change() -> None:
    """Root becomes nobody, who may not be able to read the package."""
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-S", "-c", PRELOADED],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "True\n"
