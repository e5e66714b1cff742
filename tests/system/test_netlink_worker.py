"""The worker as a process: ordinary users, namespaces it may not enter, its end."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pyroute2
import pytest

import passt
from passt.kernel.netlink.worker import Worker, WorkerError
from tests.system.netlink_lab import Lab, Net

pytestmark = pytest.mark.system

USER = pwd.getpwnam("nobody")
AS_USER = (
    "setpriv",
    f"--reuid={USER.pw_uid}",
    f"--regid={USER.pw_gid}",
    "--clear-groups",
    "--inh-caps=-all",
)

# The tests' interpreter may be where only root can read.
PYTHON = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin") or sys.executable
PATHS = [os.path.dirname(os.path.dirname(m.__file__ or "")) for m in (passt, pyroute2)]

# Reads the host it is started in, then configures the namespaces of process argv[1].
PROGRAM = """
import os, sys
from passt.kernel.netlink.worker import FamilyPlan, Worker, WorkerError
pid, user = sys.argv[1], sys.argv[2] == "user"
worker = Worker.start()
try:
    found = worker.template(ipv6=False).ipv4
    user_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY) if user else None
    tap = worker.enter(user_fd, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY), "tap0")
    worker.loopback_up()
    plan = FamilyPlan(found.address, found.prefix_len, found.gateway,
                      copy_addresses=True, copy_routes=True)
    print(worker.configure(65520, plan, None).ipv4, tap.name, os.read(0, 1) and "")
except WorkerError as e:
    print("refused:", e, e.errno)
finally:
    worker.close()
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    os.chmod("/dev/net/tun", 0o666)
    lab = Lab()
    lab.host.run("ip addr add 192.0.2.2/24 dev eth0; ip route add default via 192.0.2.1")
    try:
        yield lab
    finally:
        lab.close()


def start(lab: Lab, target: int, user: bool, *run_as: str) -> subprocess.Popen[str]:
    """The program above, in the host namespace; the tap lives until its input closes."""
    command = ["nsenter", "-t", str(lab.host.pid), "-n", *run_as, PYTHON, "-c", PROGRAM]
    return subprocess.Popen(
        [*command, str(target), "user" if user else "net"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(PATHS)},
    )


def configured(target: Net, *enter: str) -> list[str]:
    """Destinations of the routes in a namespace once a default route is there, or as they are."""
    deadline = time.monotonic() + 10
    while True:
        shown = subprocess.run(
            ["nsenter", "-t", str(target.pid), *enter, "-n", "ip", "-4", "route"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        routes = [line.split()[0] for line in shown.splitlines()]
        if "default" in routes or time.monotonic() > deadline:
            return routes
        time.sleep(0.02)


def test_ordinary_user_with_a_user_namespace(lab: Lab) -> None:
    target = Net(*AS_USER, "unshare", "-Un", "--map-root-user")
    program = start(lab, target.pid, True, *AS_USER)
    try:
        assert configured(target, "-U", "--preserve-credentials") == ["default", "192.0.2.0/24"]
        output, _ = program.communicate("go", timeout=10)
        assert output == "True tap0 \n"
    finally:
        program.kill()
        program.communicate()
        target.close()


def test_ordinary_user_within_their_user_namespace(lab: Lab) -> None:
    """Root of a nested user namespace attaches to one that the same namespace owns."""
    target = Net(*AS_USER, "unshare", "-Un", "--map-root-user")
    join = ("nsenter", "-t", str(target.pid), "-U", "--preserve-credentials")
    user_only = start(lab, target.pid, False, *AS_USER, *join)
    try:
        assert "default" in configured(target, "-U", "--preserve-credentials")
        assert user_only.communicate("go", timeout=10)[0] == "True tap0 \n"
        # The user namespace it is in already is no obstacle either.
        same = start(lab, target.pid, True, *AS_USER, *join)
        assert same.communicate("go", timeout=10)[0] == "True tap0 \n"
    finally:
        user_only.kill()
        user_only.communicate()
        target.close()


def test_root_with_an_ordinary_users_namespaces(lab: Lab) -> None:
    target = Net(*AS_USER, "unshare", "-Un", "--map-root-user")
    try:
        program = start(lab, target.pid, True)
        assert program.communicate("go", timeout=10)[0] == "True tap0 \n"
        program = start(lab, target.pid, False)
        assert program.communicate("go", timeout=10)[0] == "True tap0 \n"
    finally:
        target.close()


def test_namespaces_of_somebody_else(lab: Lab) -> None:
    with lab.host.inside():
        foreign = lab.guest.fd()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setgroups([])
                os.setgid(USER.pw_gid)
                os.setuid(USER.pw_uid)
                worker = Worker.start()
                try:
                    worker.enter(None, foreign, "tap0")
                except WorkerError as e:
                    expected = "Couldn't switch to pasta namespaces: Operation not permitted"
                    status = 0 if str(e) == expected and e.errno == 1 else 2
                worker.close()
            finally:
                os._exit(status)
    os.close(foreign)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_descriptor_that_is_no_namespace(lab: Lab) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(WorkerError, match="Couldn't switch to pasta namespaces: Invalid argument"):
        lab.worker.enter(None, fd, "tap0")
    os.close(fd)
    # Failing to enter leaves the worker able to try again.
    assert lab.enter().name == "tap0"


def test_nothing_of_the_program_is_kept_open(lab: Lab) -> None:
    r, w = os.pipe()
    worker = lab.worker
    os.close(w)
    # End of file: the worker does not hold the writing end.
    assert select.select([r], [], [], 10)[0] and os.read(r, 1) == b""
    os.close(r)
    lab.enter()
    lab.worker.loopback_up()
    links = [
        os.readlink(f"/proc/{worker._pid}/fd/{fd}") for fd in os.listdir(f"/proc/{worker._pid}/fd")
    ]
    assert not [link for link in links if "tun" in link]


def test_worker_dies_with_the_program_also_after_joining_a_user_namespace() -> None:
    target = Net(*AS_USER, "unshare", "-Un", "--map-root-user")
    program = (
        "import os, signal, sys\n"
        "from passt.kernel.netlink.worker import Worker\n"
        "worker = Worker.start()\n"
        "path = f'/proc/{sys.argv[1]}/ns/'\n"
        "fds = [os.open(path + kind, os.O_RDONLY) for kind in ('user', 'net')]\n"
        "worker.enter(*fds, None)\n"
        # Keep the channel open beyond our end, so that only the signal can tell.
        "if os.fork() == 0:\n"
        "    os.close(1)\n"
        "    os.read(0, 1)\n"
        "    os._exit(0)\n"
        "print(worker._pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    r, w = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(target.pid)],
            stdin=r,
            timeout=30,
            stdout=subprocess.PIPE,
            text=True,
        )
        worker = int(done.stdout)
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{worker}"):
            assert time.monotonic() < deadline, "worker survived"
            time.sleep(0.01)
        assert done.returncode == -9
    finally:
        os.close(w)
        os.close(r)
        target.close()
