"""What the tests of start-up share: running pasta as either user, things to join, /proc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tests.system.kit.netns import Command, Netns, wait_for
from tests.system.kit.pasta import Program

FULL = "000001ffffffffff"


class Runner:
    """Runs the program in *host* as one user; *prefix* is what makes a command that user's."""

    def __init__(self, program: Program, host: Netns, prefix: Sequence[str], uid: int) -> None:
        self.program = program
        self.host = host
        self.prefix = list(prefix)
        self.uid = uid

    @property
    def root(self) -> bool:
        """Whether the user is root of the machine."""
        return self.uid == 0

    def __call__(
        self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run ``pasta words`` to its end, whatever its status."""
        return self.run([*self.program.argv, *words], env=env, timeout=timeout)

    def run(
        self, argv: Command, env: Mapping[str, str] | None = None, timeout: float = 20.0
    ) -> subprocess.CompletedProcess[str]:
        """Run any command as the user, to its end."""
        return self.host.run(argv, prefix=self.prefix, check=False, env=env, timeout=timeout)

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell *script* as the user; ``$PASTA`` is the program."""
        words = " ".join(self.program.argv)
        return self.run(["sh", "-c", f'PASTA="{words}"\n{script}'])

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``pasta words``, its output in pipes; *options* as of subprocess.Popen."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return self.host.popen([*self.program.argv, *words], prefix=self.prefix, **options)

    def sleeper(self, *flags: str) -> subprocess.Popen[str]:
        """A process of the user in namespaces made by ``unshare`` *flags*, ready to be joined."""
        process = self.host.popen(
            ["unshare", *flags, "sh", "-c", "echo ready; exec sleep 60"],
            prefix=self.prefix,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        pairs = (line.partition(":") for line in file)
        return {name: " ".join(value.split()) for name, _, value in pairs}


def alive(pid: int) -> bool:
    """Whether the process exists, and one of its threads is no zombie: they share descriptors."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return any(status(int(thread))["State"][0] not in "ZX" for thread in threads)
    except (FileNotFoundError, ProcessLookupError):
        return False


def links(pid: int) -> dict[int, str]:
    """What the descriptors of the process lead to, by number; some may come and go meanwhile."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def wait_gone(pid: int, timeout: float = 3.0) -> None:
    """Wait until the process has ended; AssertionError after *timeout* seconds."""
    wait_for(lambda: not alive(pid), timeout, f"end of process {pid}")


def processes_with(token: str) -> list[int]:
    """Ids of running processes with *token* among their words."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if token.encode() in words and alive(int(name)):
                found.append(int(name))
    return found


def command_of(process: subprocess.Popen[str], name: str = "sleep") -> int:
    """Wait until the command of pasta *process*, called *name*, was executed; its process id."""

    def find() -> int:
        assert process.poll() is None, (process.returncode, process.communicate())
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            for word in file.read().split():
                try:
                    if status(int(word))["Name"] == name:
                        return int(word)
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return 0

    return wait_for(find, what=f"command {name} of pasta")
