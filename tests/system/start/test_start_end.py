"""What becomes of the tap and its namespace when pasta ends.

At the end of a command, with its PID namespace, nobody is left in the namespace: then the tap is
left to it, as taking it down takes the kernel 15 ms for which pasta would have to wait.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.system.kit.netns import Netns, wait_for
from tests.system.start.runner import Runner, command_of

pytestmark = pytest.mark.system


def tap_in(namespace: int) -> str:
    """The tap in the namespace behind a descriptor, as ip(8) shows it; empty without one."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{namespace}", "ip", "link", "show", "eth0"],
        pass_fds=[namespace],
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_namespace_ends_with_the_command(pasta: Runner, host: Netns) -> None:
    """The other end of a veth pair goes when its namespace does, tap and all."""
    process = pasta.start("-q", "--config-net", "--", "sleep", "31.5")
    child = command_of(process)
    host.run(["ip", "link", "add", "here", "type", "veth", "peer", "name", "there"])
    host.run(["ip", "link", "set", "there", "netns", str(child)])
    os.kill(child, signal.SIGKILL)
    process.wait(10)
    wait_for(
        lambda: host.run(["ip", "link", "show", "here"], check=False).returncode != 0,
        what="end of the namespace",
    )


@pytest.mark.parametrize(
    ("options", "by_command", "stays"),
    [
        ((), True, True),
        ((), False, False),
        (("--no-pidns",), True, False),
    ],
    ids=["command ended", "pasta ended", "others may be left"],
)
def test_tap_of_a_namespace_that_is_held(
    root_pasta: Runner, options: tuple[str, ...], by_command: bool, stays: bool
) -> None:
    """It stays, without carrier, only where nobody can have been left to use it."""
    words = ("-q", "-f", "--config-net", *options, "--", "sleep", "31.6")
    process = root_pasta.start(*words)
    child = command_of(process)
    namespace = os.open(f"/proc/{child}/ns/net", os.O_RDONLY)
    try:
        assert "LOWER_UP" in tap_in(namespace)
        if by_command:
            os.kill(child, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        process.wait(10)
        left = tap_in(namespace)
        assert bool(left) == stays, left
        assert "LOWER_UP" not in left
    finally:
        os.close(namespace)
        if not by_command:
            os.kill(child, signal.SIGKILL)
