"""The program under test, and running instances of it.

``PASTA_UNDER_TEST`` holds the words of the program to test, or ``peer:ROOT``: the upstream program
in the Debian tree ROOT, started with that tree's own dynamic loader and libraries, so that both see
the same file system and peers. Default: our console script, from a copy if the ordinary user
cannot run it where it is (users.py).

An instance (:class:`Pasta`) runs a shell as its command that says when it has been started, which
is the moment networking must be ready, and then waits for its standard input to be closed: if the
test process dies, so does the instance.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property

from .netns import Command, Netns, wait_for
from .users import User, install_copy

VARIABLE = "PASTA_UNDER_TEST"
NO_FORWARDING = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
DEFAULT_MAC = "9a:55:9a:55:9a:55"


class Program:
    """A pasta to test: its *argv*, and whether it is the upstream one."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    @cached_property
    def upstream(self) -> bool:
        """Whether this is the upstream program, which shows in what ``--version`` prints."""
        out = subprocess.run(
            [*self.argv, "--version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        return "Red Hat" in out

    @classmethod
    def from_environment(cls, folder: str, user: User) -> Program:
        """Return the program that the environment asks for; *folder* takes a copy if needed."""
        words = shlex.split(os.environ.get(VARIABLE, ""))
        if not words:
            script = os.path.join(os.path.dirname(sys.executable), "pasta")
            if not os.access(script, os.X_OK):
                raise RuntimeError(f"no program to test: install the package, or set {VARIABLE}")
            if not user.can_run([script, "--version"]):
                script = install_copy(folder, script, user)
                if not user.can_run([script, "--version"]):
                    raise RuntimeError(f"{script} --version fails")
            words = [script]
        elif words[0].startswith("peer:"):
            words[:1] = peer_command(words[0].removeprefix("peer:"))
        return cls(words)


def peer_command(root: str, program: str = "pasta") -> list[str]:
    """Return the words that start *program* of the Debian tree *root* on this system."""
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    binary = f"{root}/usr/bin/{program}"
    if program == "pasta" and os.path.exists(binary + ".avx2"):
        binary += ".avx2"  # what `pasta` would execute by itself on a machine with AVX2
    loader = f"{root}/lib64/ld-linux-x86-64.so.2"
    return [loader, "--library-path", libraries, "--argv0", program, binary]


class Pasta:
    """A running pasta in *host*, with a namespace of its own, started by *user*.

    *options* are pasta's; forwarding is off unless they ask for it. *resolv_conf* is the path of a
    file to be seen as /etc/resolv.conf, if not the system's. :attr:`ns` is the namespace it
    serves: commands there run as the user in the user namespace (who is root there).
    """

    _count = 0

    def __init__(
        self,
        program: Program,
        host: Netns,
        user: User,
        *options: str,
        config_net: bool = True,
        resolv_conf: str = "",
    ) -> None:
        self.program = program
        self.host = host
        self.user = user
        words = [*program.argv, *forwarding(options)]
        if config_net:
            words.append("--config-net")
        Pasta._count += 1
        token = f"pasta-test-{os.getpid()}-{Pasta._count}"
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self.process = host.popen(
            [*words, "--", "sh", "-c", "echo ready; read -r line", token],
            prefix=[*with_resolv_conf(resolv_conf), *user.prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            cwd="/",
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.process.wait(10)
            raise AssertionError(
                f"{shlex.join(words)}: status {self.process.returncode}\n{self.messages()}"
            )
        self.command_pid = wait_for(lambda: find_command(token), what="command of pasta")
        self.ns = Netns(
            "pasta",
            f"/proc/{self.command_pid}/ns/net",
            host.processes,
            prefix=[
                *user.prefix,
                "nsenter",
                f"--target={self.command_pid}",
                "--user",
                "--preserve-credentials",
                "--net",
                "--",
            ],
        )
        # Without the user namespace: the system's root, for what tests do to the interfaces.
        self.ns_as_root = Netns("pasta-root", self.ns.path, host.processes)

    def messages(self) -> str:
        """Return what the program has written to standard error so far."""
        self._messages.seek(0)
        return self._messages.read()

    def alive(self) -> bool:
        """Tell whether the program still runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the instance. AssertionError if it had ended before, or reported a fault."""
        ended = self.process.poll()
        if self.process.stdin and ended is None:
            self.process.stdin.close()
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                ended = -9
        self.host.processes.stop(self.process)
        messages = self.messages()
        self._messages.close()
        if ended is not None:
            raise AssertionError(f"pasta ended early, status {ended}\n{messages}")
        if "Traceback" in messages:
            raise AssertionError(f"pasta reported a fault\n{messages}")

    def interface(self) -> str:
        """Return the name of the tap device."""
        names = [name for _, name in self.ns.call(socket.if_nameindex) if name != "lo"]
        assert len(names) == 1, names
        return names[0]

    def cpu_seconds(self) -> float:
        """Return the processor time used so far by the program and all its threads."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Return the number of open descriptors of the program."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def settled_descriptors(self) -> int:
        """As :meth:`descriptors`, once it does not change: stocks of sockets are full then."""
        counts = [-1] * 3

        def settled() -> bool:
            counts.append(self.descriptors())
            return len(set(counts[-3:])) == 1

        wait_for(settled, what="stocks of sockets to be full", interval=0.1)
        return counts[-1]

    def memory(self) -> dict[str, int]:
        """Return resident and proportional set size in KiB: ``Rss``, ``Pss``."""
        with open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            rows = re.findall(r"^(Rss|Pss):\s+(\d+) kB", file.read(), re.MULTILINE)
        return {name: int(value) for name, value in rows}


def forwarding(options: Sequence[str]) -> list[str]:
    """Return *options* preceded by ``none`` for each kind of forwarding they do not mention."""
    longer = {"-t": "--tcp-ports", "-u": "--udp-ports", "-T": "--tcp-ns", "-U": "--udp-ns"}
    words = list(options)
    for short, name in longer.items():
        if short not in options and name not in options:
            words[:0] = [short, "none"]
    return words


def with_resolv_conf(path: str) -> list[str]:
    """Return the words that run the following ones with *path* bound over /etc/resolv.conf."""
    if not path:
        return []
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, path]


def find_command(token: str) -> int:
    """Return the id of the shell with *token* among its arguments, 0 if there is none yet."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:  # ended meanwhile
            continue
        if words[0] == b"sh" and token.encode() in words:
            return int(name)
    return 0


def run(
    program: Program,
    host: Netns,
    user: User,
    options: Sequence[str],
    command: Command,
    *,
    timeout: float = 60.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``pasta [options] --config-net -- command`` to its end, as of :meth:`Netns.run`."""
    words = [*program.argv, *forwarding(options), "--config-net", "--", *command]
    return host.run(words, prefix=user.prefix, timeout=timeout, check=check, env=env)
