"""Entering the sandbox: where it cannot be had, what must still work, what is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.start.runner import Runner, alive, command_of, processes_with, status, wait_gone

pytestmark = pytest.mark.system

NOTICE = "Started as root, will change to nobody.\n"


@pytest.fixture
def readable(tmp_path: Path) -> Path:
    """A folder that anybody can use."""
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    return tmp_path


# A root that cannot be exchanged.

#: Makes a root of what is in the present one, and runs the rest of the words in it.  $1 is how
#: the root is mounted: not at all, or on something shared.
CHANGED_ROOT = """
set -e
kind=$1; shift
root=$(mktemp -d /var/tmp/passt-root-XXXXXX)
mount -t tmpfs none "$root"
if [ "$kind" = shared ]; then
    mount --make-shared "$root"; mkdir "$root/root"; mount -t tmpfs none "$root/root"
else
    mkdir "$root/root"
fi
cd "$root/root"
for name in /*; do
    if [ -L "$name" ]; then cp -P "$name" .; continue; fi
    [ -d "$name" ] || continue
    mkdir ".$name"; [ "$name" = /tmp ] || mount --rbind "$name" ".$name"
done
chmod 1777 tmp
exec chroot . "$@"
"""


def changed_root(pasta: Runner, kind: str, *words: str) -> list[str]:
    script = ["sh", "-c", CHANGED_ROOT, "sh", kind]
    return ["unshare", "--mount", *script, *pasta.program.argv, "--netns-only", *words]


@pytest.fixture
def tidy() -> Iterator[None]:
    """Removes the folders of changed roots, whose mounts went with their namespace."""
    yield
    for path in Path("/var/tmp").glob("passt-root-*"):
        path.rmdir()


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "Failed to remount /: Invalid argument"),
        ("shared", "Failed to pivot_root(): Invalid argument"),
    ],
)
def test_root_that_cannot_be_exchanged(root_pasta: Runner, kind: str, message: str) -> None:
    done = root_pasta.run(changed_root(root_pasta, kind, "-q", "--", "sleep", "32.1"))
    assert done.returncode == 1
    assert done.stderr.replace(NOTICE, "") == f"{message}\nFailed to sandbox process, exiting\n"
    assert processes_with("32.1") == []


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("kind", ["none", "shared"])
def test_fallback(root_pasta: Runner, kind: str) -> None:
    words = changed_root(root_pasta, kind, "-q", "--chroot-fallback", "--", "sleep", "32.2")
    process = root_pasta.host.popen(words, stderr=subprocess.PIPE)
    child = command_of(process)
    wait_for(lambda: status(process.pid)["Seccomp"] == "2")
    assert os.listdir(f"/proc/{process.pid}/root") == []
    assert os.statvfs(f"/proc/{process.pid}/root").f_flag & os.ST_RDONLY
    assert status(process.pid)["CapBnd"] == status(process.pid)["CapEff"] == "0" * 16
    # What was mounted for it is seen by nobody else, the command included.
    for pid in (child, os.getpid()):
        with open(f"/proc/{pid}/mounts") as file:
            assert "nr_inodes=2" not in file.read()
    process.terminate()
    assert process.wait(10) == 0
    os.kill(child, signal.SIGKILL)
    assert process.stderr is not None
    messages = process.stderr.read().replace(NOTICE, "")
    assert messages == "Failed to pivot_root(), fallback to chroot()...\n"


def test_fallback_is_not_taken_without_need(pasta: Runner) -> None:
    done = pasta("-q", "--chroot-fallback", "--", "true")
    assert (done.returncode, done.stderr.replace(NOTICE, "")) == (0, "")


# Failures.

#: A machine for which there are no numbers of system calls.
UNKNOWN_MACHINE = "from passt.syscalls import seccomp; seccomp.MACHINES.clear()"
FAILURE = (
    "Failed to set up a system call filter: Function not implemented\n"
    "Failed to sandbox process, exiting\n"
)


def test_no_filter_no_command(pasta: Runner, readable: Path) -> None:
    (readable / "sitecustomize.py").write_text(UNKNOWN_MACHINE)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(readable)}
    done = pasta("-q", "--", "sleep", "32.3", env=env)
    assert done.returncode == 1
    assert done.stderr.replace(NOTICE, "") == FAILURE
    assert processes_with("32.3") == []


def test_failure_in_the_background_is_told(pasta: Runner, readable: Path) -> None:
    """By the parent, as the daemon has nowhere to say it; no daemon stays."""
    (readable / "sitecustomize.py").write_text(UNKNOWN_MACHINE)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(readable)}
    target = pasta.sleeper("-Urn")
    path = readable / "pid"
    done = pasta("-q", "-P", str(path), str(target.pid), env=env)
    assert done.returncode == 1
    assert done.stderr.replace(NOTICE, "") == FAILURE
    wait_gone(int(path.read_text()))


def test_list_of_system_calls(user_pasta: Runner) -> None:
    done = user_pasta("--print-seccomp")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert {"splice", "mmap", "exit_group"} <= set(names)
    assert not {"open", "openat", "execve", "clone", "ptrace"} & set(names)


# What must still work.


def test_low_ports_in_the_namespace(start_pasta: StartPasta, host: Netns) -> None:
    """At start, and later, when the thread in the namespace opens them."""
    instance = start_pasta("-T", "auto", "-U", "53")
    assert instance.ns.listens(53, "udp")
    with host.listen("127.0.0.1", 81):
        instance.ns.wait_listening(81)


def test_messages_without_a_reader(user_pasta: Runner) -> None:
    target = user_pasta.sleeper("-Urn")
    process = user_pasta.start("-f", "--trace", "--config-net", str(target.pid))
    assert process.stderr is not None
    wait_for(lambda: status(process.pid)["Seccomp"] == "2")
    process.stderr.close()
    enter = ["nsenter", f"--net=/proc/{target.pid}/ns/net", "--"]
    subprocess.run([*enter, "ping", "-c", "2", "-i", "0.2", "-W", "1", "198.51.100.1"], check=False)
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == 0


def test_being_stopped(start_pasta: StartPasta, remote: Netns) -> None:
    """Both threads sleep in system calls, which then go on."""
    instance = start_pasta("-T", "auto")
    with remote.listen(net.REMOTE[4], 7031) as server:
        for _ in range(3):
            time.sleep(0.05)
            os.kill(instance.process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            os.kill(instance.process.pid, signal.SIGCONT)
        with instance.ns.connect(net.REMOTE[4], 7031) as client:
            client.sendall(b"after")
            connection, _ = server.accept()
            with connection:
                assert connection.recv(5) == b"after"
    assert instance.alive()


def test_directory_that_may_not_be_read(user_pasta: Runner, readable: Path) -> None:
    """The namespace's entry is looked for by name, which takes a system call of its own."""
    target = user_pasta.sleeper("-Urn")
    folder = readable / "entered"
    folder.mkdir()
    folder.chmod(0o711)
    entry = folder / "ns"
    entry.touch()
    subprocess.run(["mount", "--bind", f"/proc/{target.pid}/ns/net", entry], check=True)
    try:
        words = ["--userns", f"/proc/{target.pid}/ns/user", "--netns", str(entry)]
        process = user_pasta.start("-f", "-q", *words)
        time.sleep(2.5)
        assert process.poll() is None
    finally:
        subprocess.run(["umount", "-l", entry], check=True)
    entry.unlink()
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == "inotify_add_watch: Permission denied, use a timer\n"


def test_command_keeps_what_we_give_up(pasta: Runner) -> None:
    script = "ulimit -Hc; readlink /proc/self/root; ls /; grep CapInh /proc/self/status"
    inside = pasta("-q", "--", "sh", "-c", script).stdout
    assert inside == pasta.run(["sh", "-c", script]).stdout


def test_compiler_of_the_interpreter(user_pasta: Runner, readable: Path) -> None:
    """It is switched off, which takes starting anew; the command does not see that."""
    (readable / "sitecustomize.py").write_text(
        "import os, sys, types\n"
        "on = os.environ.get('PYTHON_JIT') == '1'\n"
        "sys._jit = types.SimpleNamespace(is_enabled=lambda: on)\n"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(readable), "PYTHON_JIT": "1"}
    done = user_pasta("-q", "--", "env", env=env)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {f"{name}={value}" for name, value in env.items()}


def test_end_in_each_way(pasta: Runner) -> None:
    """Exit status 0, not SIGSYS: what is done at the end is allowed, too."""
    for number in (signal.SIGTERM, signal.SIGQUIT):
        process = pasta.start("-q", "--config-net", "--", "sleep", "32.4")
        child = command_of(process)
        wait_for(lambda process=process: status(process.pid)["Seccomp"] == "2")
        process.send_signal(number)
        assert process.wait(10) == 0
        assert alive(child)
        os.kill(child, signal.SIGKILL)
