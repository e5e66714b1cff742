"""What a running pasta has left of the system, by what the kernel tells of it.

Each way to start it, as root and as an ordinary user, ends in the same state.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Program
from tests.system.kit.users import User
from tests.system.start.runner import Runner, alive, command_of, links, status, wait_gone

pytestmark = pytest.mark.system

NOTHING = "0" * 16
LOW_PORTS = f"{1 << 10:016x}"


class Instance:
    """A running pasta: its process id, who started it, and whether it is in the background."""

    def __init__(self, pid: int, starter: Runner, background: bool, uid: int) -> None:
        self.pid = pid
        self.starter = starter
        self.background = background
        self.uid = uid

    def link(self, name: str) -> str:
        """Where /proc/PID/NAME points to."""
        return os.readlink(f"/proc/{self.pid}/{name}")

    def threads(self) -> list[dict[str, str]]:
        """The status of each thread, the main one first."""
        ids = sorted(map(int, os.listdir(f"/proc/{self.pid}/task")), key=lambda t: t != self.pid)
        return [status(thread) for thread in ids]


@pytest.fixture
def mapped_pasta(program: Program, host: Netns, user: User) -> Runner:
    """Pasta run by an ordinary user who is root of a user namespace."""
    return Runner(program, host, [*user.prefix, "unshare", "-r", "--"], user.uid)


@pytest.fixture
def grouped_pasta(program: Program, host: Netns) -> Runner:
    """Pasta run by root with supplementary groups."""
    return Runner(program, host, ["setpriv", "--groups=4,5,6", "--"], 0)


@pytest.fixture
def named(host: Netns) -> Iterator[str]:
    """A network namespace with a name."""
    name = f"pt-sandbox-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


NOBODY = 65534
SPAWNED = {
    "command": [],
    "netns-only": ["--netns-only"],
    "no-pidns": ["--no-pidns"],
    "userns": ["--userns", "/proc/{target}/ns/user"],
}
JOINED = {
    "pid": ["{target}"],
    "userns netns": ["--userns", "/proc/{target}/ns/user", "--netns", "/proc/{target}/ns/net"],
    "name": ["--netns", "{named}"],
}
#: Who starts it, how, in the background or not.
WAYS = [
    ("root", "command", False),
    ("root", "netns-only", False),
    ("root", "no-pidns", False),
    ("root", "userns", False),
    ("root", "pid", False),
    ("root", "pid", True),
    ("root", "userns netns", True),
    ("root", "name", False),
    ("root", "name", True),
    ("runas", "command", False),
    ("runas", "pid", True),
    ("grouped", "command", False),
    ("grouped", "name", True),
    ("user", "command", False),
    ("user", "no-pidns", False),
    ("user", "userns", False),
    ("user", "pid", False),
    ("user", "pid", True),
    ("user", "userns netns", True),
    ("mapped", "command", False),
    ("mapped", "netns-only", False),
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}-{'bg' if way[2] else 'fg'}")
def instance(
    request: pytest.FixtureRequest, user: User, tmp_path: Path, named: str
) -> Iterator[Instance]:
    """A pasta that is ready, by each way to start one; its command or target sleeps."""
    who, how, background = request.param
    starter: Runner = request.getfixturevalue("root_pasta" if who == "runas" else f"{who}_pasta")
    target = starter.sleeper("-Urn") if "mapped" not in who else None
    values = {"target": target.pid if target else 0, "named": named}
    words = ["-q", "--config-net", "-t", "7021", "-u", "7021", "-T", "80"]
    if who == "runas":
        words += ["--runas", str(user.uid)]
    how_words = [word.format(**values) for word in {**SPAWNED, **JOINED}[how]]
    uid = user.uid if who != "root" and who != "grouped" else NOBODY
    if not background:
        if how in SPAWNED:
            process = starter.start(*words, *how_words, "--", "sleep", "60")
            child = command_of(process)
        else:
            process = starter.start("-f", *words, *how_words)
            child = 0
        ready(process)
        yield Instance(process.pid, starter, False, uid)
        assert process.poll() is None, process.communicate()
        process.terminate()
        assert process.wait(10) == 0
        if child and alive(child):
            os.kill(child, 9)
        return
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    path = tmp_path / "pid"
    done = starter(*words, "-P", str(path), *how_words)
    assert done.returncode == 0, done.stderr
    pid = int(path.read_text())
    yield Instance(pid, starter, True, uid)
    assert alive(pid)
    os.kill(pid, 15)
    wait_gone(pid)


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until *process* has given up everything."""

    def done() -> bool:
        assert process.poll() is None, process.communicate()
        return status(process.pid)["Seccomp"] == "2"

    wait_for(done, what="pasta in its sandbox")


def test_state(instance: Instance) -> None:
    main, *others = threads = instance.threads()
    assert len(others) == 1
    for thread in threads:
        assert thread["Uid"].split() == [str(instance.uid)] * 4
        assert thread["CapInh"] == thread["CapAmb"] == thread["CapBnd"] == NOTHING
        assert thread["NoNewPrivs"] == "1"
        assert (thread["Seccomp"], thread["Seccomp_filters"]) == ("2", "1")
        assert thread["Groups"] == ""
    assert main["CapPrm"] == main["CapEff"] == NOTHING
    # The other one is in the namespace, where it may bind low ports.
    assert [(thread["CapPrm"], thread["CapEff"]) for thread in others] == [(LOW_PORTS, LOW_PORTS)]

    # An empty root that nothing can be written to, and nothing else is mounted.
    root = f"/proc/{instance.pid}/root"
    assert os.listdir(root) == []
    assert os.statvfs(root).f_flag & os.ST_RDONLY
    with open(f"/proc/{instance.pid}/mountinfo") as file:
        (mount,) = file.read().splitlines()
    fields = mount.split()
    assert fields[4] == "/"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(fields[5].split(","))
    assert " - tmpfs tmpfs ro," in mount
    assert instance.link("cwd") == instance.link("root") == "/"

    # Namespaces: its own, but for that of the network it forwards to.
    def ours(kind: str) -> str:
        return os.readlink(f"/proc/self/ns/{kind}")

    for kind in ("mnt", "ipc", "uts"):
        assert instance.link(f"ns/{kind}") != ours(kind)
    assert (instance.link("ns/pid") != ours("pid")) is instance.background
    outside = instance.starter.host.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
    assert instance.link("ns/net") == outside
    if instance.background:
        assert main["NSpid"].split()[-1] == "1"

    with open(f"/proc/{instance.pid}/limits") as file:
        (core,) = (line.split()[4:6] for line in file if line.startswith("Max core file size"))
    assert core == ["0", "0"]
    # Files of who is not dumpable belong to root of the namespace that it was executed in.
    owner = instance.uid if instance.starter.prefix[-3:] == ["unshare", "-r", "--"] else 0
    assert os.stat(f"/proc/{instance.pid}/environ").st_uid == owner


def follower_of(instance: Instance) -> int:
    """The process that follows the host's network, once it is in its sandbox; 0 if not yet.

    It is in the network namespace that the second thread is in, and has the same words.
    """
    (thread,) = (int(t) for t in os.listdir(f"/proc/{instance.pid}/task") if int(t) != instance.pid)
    namespace = instance.link(f"task/{thread}/ns/net")
    words = Path(f"/proc/{instance.pid}/cmdline").read_bytes()
    for name in os.listdir("/proc"):
        path = Path("/proc") / name
        try:
            if not name.isdigit() or int(name) == instance.pid:
                continue
            if (path / "cmdline").read_bytes() != words:
                continue
            if os.readlink(path / "ns/net") == namespace and status(int(name))["Seccomp"] == "2":
                return int(name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0


def test_follower(instance: Instance) -> None:
    """One capability, a view of a directory or two, and next to nothing open."""
    pid = wait_for(lambda: follower_of(instance), what="follower in its sandbox")
    state = status(pid)
    assert state["Uid"].split() == [str(instance.uid)] * 4
    assert state["CapPrm"] == state["CapEff"] == f"{1 << 12:016x}"
    assert state["CapInh"] == state["CapAmb"] == state["CapBnd"] == NOTHING
    assert (state["NoNewPrivs"], state["Groups"], state["Threads"]) == ("1", "", "1")
    assert (state["Seccomp"], state["Seccomp_filters"]) == ("2", "1")
    root = Path(f"/proc/{pid}/root")
    if (root / "etc").exists():
        assert set(os.listdir(root)) <= {"etc", "run"}
        assert os.statvfs(root / "etc").f_flag & os.ST_RDONLY
    else:
        # Nobody, without an id in the user namespace: the one directory is the root.
        assert instance.uid == NOBODY or instance.starter.root
        assert (root / Path("/etc/resolv.conf").resolve().name).exists()
    assert os.statvfs(root).f_flag & os.ST_RDONLY
    kinds = sorted(
        link.partition(":[")[0] for link in links(pid).values() if not link.endswith("/null")
    )
    assert kinds == ["anon_inode:inotify", *["socket"] * 4]


#: What descriptors may refer to.
ALLOWED = re.compile(
    r"(socket|pipe):\[\d+\]"
    r"|anon_inode:(\[eventpoll\]|\[eventfd\]|inotify)"
    r"|/dev/net/tun"
    r"|/proc/\d+(/task/\d+)?/net/(tcp|udp)6?"
)


def test_descriptors(instance: Instance) -> None:
    """Nothing that leads back to what was left: no namespaces, no files, no directories.

    But for the directory whose entry is watched.
    """
    found = links(instance.pid)
    strange = [found[fd] for fd in found if fd > 2 and not ALLOWED.fullmatch(found[fd])]
    assert all(link.endswith(("/ns", "/run/netns")) for link in strange), strange
    assert len(strange) <= 1
