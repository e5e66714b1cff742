"""The networks, the ordinary user, folders; and that nothing of it stays.

A :class:`Lab` builds a network (tests/system/kit/topology.py) for each pair of round-trip time and
loss when a case first asks for it, and keeps it until the end.  Where the kernel has netem(8),
that delays and loses; elsewhere the wire of the test kit does, a program in Python, which forwards
some hundred Mbit/s at best: what is possible there, the subject *direct* shows.

However a run ends, its namespaces, processes and folder go.  Every process that the lab started is
a descendant of this one, also if its parent has ended before (PR_SET_CHILD_SUBREAPER), and
namespaces and folder carry our process id: so the next run removes what was left by one that was
killed.  Interrupts (:func:`interrupts`) end a run once; further ones do not end the cleaning up.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType

import psutil

from passt.syscalls.prctl import PR_SET_CHILD_SUBREAPER, prctl
from perf.results import Fact
from tests.system.kit import prepared
from tests.system.kit.pasta import Program
from tests.system.kit.topology import Topology, remove_stale
from tests.system.kit.users import User, install_copy, ordinary_user

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_FOLDERS = "/var/tmp"
_STEM = "passt-perf-"


class SourceError(Exception):
    """A source that cannot be built; the message says why."""


class Lab:
    """Where cases are carried out. Use as a context manager, as root."""

    def __init__(self) -> None:
        self._networks: dict[tuple[int, float], Topology] = {}
        self._stack = ExitStack()
        self._sets = False
        #: By source; and that of this interpreter, of which there may be a copy to make.
        self._programs: dict[str, Program] = {}
        self._installed: Program | None = None

    def __enter__(self) -> Lab:
        try:
            self._prepare()
        except BaseException:
            self._clean_up()
            raise
        return self

    def _prepare(self) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, "PR_SET_CHILD_SUBREAPER", 1)
        remove_stale()
        remove_folders(lambda pid: not os.path.exists(f"/proc/{pid}"))
        os.chmod("/dev/net/tun", 0o666)
        self.user: User = ordinary_user()
        self.folder = tempfile.mkdtemp(prefix=f"{_STEM}{os.getpid()}-", dir=_FOLDERS)
        os.chmod(self.folder, 0o755)
        #: Where the ordinary user may make files.
        self.writable = os.path.join(self.folder, "user")
        os.mkdir(self.writable)
        os.chown(self.writable, self.user.uid, self.user.gid)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        try:
            for topology in self._networks.values():
                topology.close()
        finally:
            end_descendants()
            remove_namespaces(f"pt{os.getpid()}-")
            self._stack.close()
            remove_folders(lambda pid: pid == os.getpid())
            prctl(PR_SET_CHILD_SUBREAPER, "PR_SET_CHILD_SUBREAPER", 0)

    def network(self, rtt: int = 0, loss: float = 0.0) -> Topology:
        """The network with a round-trip time of *rtt* ms to *remote*, and *loss* % each way."""
        key = rtt, loss
        if key not in self._networks:
            if key == (0, 0.0):
                self._networks[key] = Topology()
            elif self.netem:
                self._networks[key] = topology = Topology()
                for ns in (topology.host, topology.remote):
                    ns.run(netem_words(rtt, loss))
            else:
                self._networks[key] = Topology(wire=wire_words(rtt, loss))
        return self._networks[key]

    @property
    def netem(self) -> bool:
        """Whether this kernel has netem."""
        done = self.network().far.run([*netem_words(1, 0.0)], check=False)
        if done.returncode == 0:
            self.network().far.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
        return done.returncode == 0

    def installed(self) -> Program:
        """Our pasta as installed with this interpreter, or what PASTA_UNDER_TEST says."""
        if self._installed is None:
            self._installed = Program.from_environment(self.folder, self.user)
        return self._installed

    def program(self, source: str) -> Program:
        """The pasta of another source: a folder with a tree, or a revision of this repository.

        Each is installed in the same way, so that they differ by their sources alone.
        """
        if source not in self._programs:
            folder = tempfile.mkdtemp(prefix="build-", dir=self.folder)
            os.chmod(folder, 0o755)
            tree = source
            if not os.path.isdir(os.path.join(source, "passt")):
                tree = os.path.join(folder, "tree")
                extract(source, tree)
            script = os.path.join(os.path.dirname(sys.executable), "pasta")
            copy = install_copy(folder, script, self.user, tree)
            self._programs[source] = Program([copy])
        return self._programs[source]

    def prepare_acceleration(self) -> None:
        """Make it possible for the ordinary user, until the end."""
        if not self._sets:
            self._stack.enter_context(prepared.sets(self.user, 2))
            self._sets = True

    def facts(self) -> dict[str, Fact]:
        """Which means of delay is in use."""
        return {"delay and loss by": "netem" if self.netem else "wire of the test kit"}


def extract(revision: str, folder: str) -> None:
    """Put the files of *revision* of this repository into *folder*; SourceError."""
    os.mkdir(folder)
    archive = ["git", "-C", TREE, "archive", "--format=tar", revision]
    packed = subprocess.run(archive, capture_output=True, check=False)
    if packed.returncode:
        message = packed.stderr.decode(errors="replace").strip()
        raise SourceError(f"neither a source tree nor a revision: {revision}: {message}")
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)


def netem_words(rtt: int, loss: float) -> list[str]:
    """The command that delays by half of *rtt* ms and loses *loss* % of what leaves eth0."""
    words = ["tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "limit", "100000"]
    words += ["delay", f"{rtt * 500}us"] if rtt else []
    return words + (["loss", f"{loss:g}%"] if loss else [])


def wire_words(rtt: int, loss: float) -> list[str]:
    """Options of the wire for *rtt* ms, half each way, and *loss* % each way."""
    return ["--delay", f"{rtt / 2000:g}", "--loss", f"{loss / 100:g}"]


def end_descendants() -> None:
    """Kill all that descends from this process, and wait for it."""
    for _ in range(10):
        children = psutil.Process().children(recursive=True)
        if not children:
            return
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(children, timeout=2)


def remove_namespaces(prefix: str) -> None:
    """Remove the network namespaces whose names begin with *prefix*."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        if name.startswith(prefix):
            subprocess.run(["ip", "netns", "del", name], check=False)


def remove_folders(whose: Callable[[int], bool]) -> None:
    """Remove the folders of runs, by what is said of their process ids."""
    for name in os.listdir(_FOLDERS):
        match = re.fullmatch(rf"{_STEM}(\d+)-\w+", name)
        if match and whose(int(match[1])):
            shutil.rmtree(os.path.join(_FOLDERS, name), ignore_errors=True)


@contextmanager
def interrupts() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into KeyboardInterrupt, and ignore all others."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
