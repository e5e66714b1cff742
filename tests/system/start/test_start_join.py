"""Joining namespaces that exist, in the background: readiness, PID file, what fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.kit.netns import Netns, wait_for
from tests.system.start.runner import Runner, alive, links, status, wait_gone

pytestmark = pytest.mark.system


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    """A PID file anybody can write in a folder anybody can use; its process is ended."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    path = tmp_path / "pasta.pid"
    path.touch()
    path.chmod(0o666)
    yield path
    text = path.read_text().strip()
    if text and alive(int(text)):
        os.kill(int(text), signal.SIGKILL)
        wait_gone(int(text))


def inside(pasta: Runner, target: subprocess.Popen[str], *command: str) -> str:
    """Output of *command* in the network namespace of *target*."""
    return subprocess.run(
        ["nsenter", f"--net=/proc/{target.pid}/ns/net", "--", *command],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("form", ["pid", "dash pid", "userns pid", "userns netns"])
def test_forms(pasta: Runner, pid_file: Path, form: str) -> None:
    """Configured when the parent has ended, with nothing to say, from another process's /proc."""
    target = pasta.sleeper("-Urn")
    ns = f"/proc/{target.pid}/ns"
    words = {
        "pid": [str(target.pid)],
        "dash pid": ["--", str(target.pid)],
        "userns pid": ["--userns", f"{ns}/user", str(target.pid)],
        "userns netns": ["--userns", f"{ns}/user", "--netns", f"{ns}/net"],
    }[form]
    done = pasta("-q", "--config-net", "-P", str(pid_file), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.replace("Started as root, will change to nobody.\n", "") == ""
    pid = int(pid_file.read_text())
    assert alive(pid)
    assert "198.51.100.2/24" in inside(pasta, target, "ip", "-br", "addr", "show", "eth0")


def test_named_namespace_as_root(
    root_pasta: Runner, named: Netns, pid_file: Path, tmp_path: Path
) -> None:
    """The current user namespace is kept, and a file of that name here means nothing."""
    name = os.path.basename(named.path)
    done = root_pasta.shell(
        f"cd {tmp_path}; touch {name}; $PASTA -q --config-net -P {pid_file} --netns {name}"
    )
    assert done.returncode == 0, done.stderr
    assert "198.51.100.2/24" in named.run(["ip", "-br", "addr", "show", "eth0"]).stdout
    found = status(int(pid_file.read_text()))
    assert found["Uid"].split() == ["65534"] * 4
    assert found["CapPrm"] == "0" * 16
    assert os.readlink(f"/proc/{pid_file.read_text().strip()}/ns/user") == os.readlink(
        "/proc/self/ns/user"
    )


def test_network_of_another_user_namespace_as_root(root_pasta: Runner, pid_file: Path) -> None:
    target = root_pasta.sleeper("-Urn")
    net = f"/proc/{target.pid}/ns/net"
    done = root_pasta("-q", "--config-net", "-P", str(pid_file), "--netns", net)
    assert done.returncode == 0, done.stderr
    assert "198.51.100.2/24" in inside(root_pasta, target, "ip", "-br", "addr")


@pytest.mark.parametrize("target", ["--netns /proc/$!/ns/net", "$!"])
def test_network_inside_a_users_namespace(user_pasta: Runner, pid_file: Path, target: str) -> None:
    """As container managers do: root of their own namespace, a network namespace in it."""
    words = " ".join(user_pasta.program.argv)
    script = f"""
        unshare -n sleep 5 & sleep 0.2
        {words} -q --config-net -P {pid_file} {target} || exit
        nsenter --net=/proc/$!/ns/net ip -br addr show eth0
    """
    done = user_pasta.run(["unshare", "-r", "sh", "-c", script])
    assert done.stderr == ""
    assert "198.51.100.2/24" in done.stdout


def test_without_config_net_the_tap_stays_down(pasta: Runner, pid_file: Path) -> None:
    target = pasta.sleeper("-Urn")
    options = ["--ns-mac-addr", "02:00:00:00:00:07", "-I", "guest0"]
    done = pasta("-q", "-P", str(pid_file), *options, str(target.pid))
    assert done.returncode == 0, done.stderr
    shown = inside(pasta, target, "ip", "-br", "link", "show", "guest0").split()
    assert shown[1:3] == ["DOWN", "02:00:00:00:00:07"]
    assert "127.0.0.1/8" in inside(pasta, target, "ip", "-br", "addr", "show", "lo")


def test_daemon(pasta: Runner, pid_file: Path) -> None:
    """Process 1 of a PID namespace, a session of its own, nothing of ours kept."""
    pid_file.write_text("1" * 40)
    target = pasta.sleeper("-Urn")
    assert pasta("-q", "-P", str(pid_file), str(target.pid)).returncode == 0
    text = pid_file.read_text()
    pid = int(text)
    assert text == f"{pid}\n"
    found = status(pid)
    assert found["NSpid"].split()[-1] == "1"
    assert found["CapPrm"] == found["CapEff"] == "0" * 16
    assert os.getsid(pid) == pid
    opened = links(pid)
    assert [opened[fd] for fd in range(3)] == ["/dev/null"] * 3
    assert not [link for link in opened.values() if link.startswith(("net:", "user:"))]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGPIPE):
        os.kill(pid, number)
    time.sleep(0.1)
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


def test_pid_file_is_new_and_private(user_pasta: Runner, tmp_path: Path) -> None:
    target = user_pasta.sleeper("-Urn")
    path = f"/tmp/pasta-pid-{os.getpid()}"
    try:
        assert user_pasta("-q", "-P", path, str(target.pid)).returncode == 0
        assert os.stat(path).st_mode & 0o777 == 0o600
        with open(path) as file:
            os.kill(int(file.read()), signal.SIGTERM)
    finally:
        os.unlink(path)


def test_output_ends_with_the_parent(pasta: Runner, pid_file: Path) -> None:
    """Callers read it to its end."""
    target = pasta.sleeper("-Urn")
    started = time.monotonic()
    done = pasta.shell(f'x=$($PASTA -P {pid_file} {target.pid} 2>&1); echo "$x"')
    assert time.monotonic() - started < 5
    assert "Inbound forwarding rules (HOST):" in done.stdout.splitlines()
    assert alive(int(pid_file.read_text()))


def test_daemon_without_standard_descriptors(pasta: Runner, pid_file: Path) -> None:
    target = pasta.sleeper("-Urn")
    done = pasta.shell(f"$PASTA --config-net -P {pid_file} {target.pid} 0<&- 1>&- 2>&-")
    assert done.returncode == 0
    pid = int(pid_file.read_text())
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert "198.51.100.2/24" in inside(pasta, target, "ip", "-br", "addr")


def test_ready_means_listening(pasta: Runner, pid_file: Path) -> None:
    target = pasta.sleeper("-Urn")
    done = pasta(
        "-q", "--config-net", "-t", "7011", "-u", "7012", "-P", str(pid_file), str(target.pid)
    )
    assert done.returncode == 0, done.stderr
    assert pasta.host.listens(7011)
    assert pasta.host.listens(7012, "udp")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_foreground(pasta: Runner, pid_file: Path, number: int) -> None:
    target = pasta.sleeper("-Urn")
    process = pasta.start("-f", "-q", "--config-net", "-P", str(pid_file), str(target.pid))
    assert wait_for(pid_file.read_text) == f"{process.pid}\n"
    assert "198.51.100.2/24" in inside(pasta, target, "ip", "-br", "addr")
    process.send_signal(number)
    assert process.wait(3) == 0


def test_files_of_root(root_pasta: Runner, tmp_path: Path) -> None:
    """PID file and log belong to who started us, whoever we become."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    target = root_pasta.sleeper("-Urn")
    done = root_pasta("--config-net", "-P", f"{folder}/pid", "-l", f"{folder}/log", str(target.pid))
    assert done.returncode == 0, done.stderr
    pid = int((folder / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)
    log = (folder / "log").read_text().splitlines()
    assert log[0].startswith("pasta ")
    assert any("Template interface: eth0 (IPv4), eth0 (IPv6)" in line for line in log)


def test_capture_is_complete_at_the_end(user_pasta: Runner) -> None:
    target = user_pasta.sleeper("-Urn")
    path = f"/tmp/pasta-pcap-{os.getpid()}"
    process = user_pasta.start("-f", "-q", "--config-net", "-p", path, str(target.pid))
    try:
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path) > 24)
        process.terminate()
        assert process.wait(3) == 0
        done = subprocess.run(["tcpdump", "-nr", path], capture_output=True, text=True, check=True)
        assert "ARP, Request who-has 198.51.100.2" in done.stdout
    finally:
        os.unlink(path)


def test_capture_that_cannot_be_opened_is_not_fatal(pasta: Runner) -> None:
    done = pasta("-p", "/nonexistent/x", "--", "true")
    assert done.returncode == 0
    assert "Couldn't open pcap file /nonexistent/x: No such file or directory\n" in done.stderr


@pytest.fixture
def named(host: Netns) -> Iterator[Netns]:
    """A network namespace with a name, as ``ip netns add`` makes it."""
    name = f"pt-start-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield Netns("named", f"/run/netns/{name}", host.processes)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--netns", "none"], "Couldn't open network namespace /run/netns/none: No such file"),
        (["--netns", "./none"], "Couldn't open network namespace ./none: No such file"),
        (["--netns", "/etc/passwd"], "Couldn't switch to pasta namespaces: Invalid argument"),
        (["--netns", "/proc/self/ns/uts"], "Couldn't switch to pasta namespaces: Invalid argument"),
        (["4194304"], "Couldn't open user namespace /proc/4194304/ns/user: No such file"),
        (["--netns-only", "4194304"], "Couldn't open network namespace /proc/4194304/ns/net: No"),
        (["--userns", "/none", "true"], "Couldn't open user namespace /none: No such file"),
        (["--userns", "/etc/passwd", "true"], "Couldn't enter user namespace /etc/passwd: Invalid"),
        (["-P", "/nonexistent/x", "true"], "Couldn't open PID file /nonexistent/x: No such file"),
        (["-l", "/nonexistent/x", "true"], "Couldn't open log file /nonexistent/x: No such file"),
        (["-i", "none", "true"], "Invalid interface name none: No such device"),
    ],
)
def test_failures(pasta: Runner, words: list[str], message: str) -> None:
    started = time.monotonic()
    done = pasta("-q", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 5


def test_joining_without_rights(user_pasta: Runner, named: Netns) -> None:
    done = user_pasta("-q", "--netns", named.path)
    assert done.returncode == 1
    assert done.stderr == "Couldn't switch to pasta namespaces: Operation not permitted\n"
    done = user_pasta("-q", "1")
    assert done.returncode == 1
    assert done.stderr == "Couldn't open user namespace /proc/1/ns/user: Permission denied\n"


def test_failing_daemon_is_reported(pasta: Runner) -> None:
    """A PID file that cannot be written: status 1, and nothing keeps running."""
    target = pasta.sleeper("-Urn")
    net = os.readlink(f"/proc/{target.pid}/ns/net")
    done = pasta("-q", "--config-net", "-P", "/dev/full", str(target.pid))
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    target.kill()
    target.wait(3)
    wait_for(lambda: net not in networks(), 3, "end of the namespace")


def networks() -> set[str]:
    """Network namespaces of all processes."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.add(os.readlink(f"/proc/{name}/ns/net"))
            except OSError:
                continue
    return found


def test_tap_failure_is_fatal(pasta: Runner) -> None:
    """An interface of that name exists and is no tap."""
    target = pasta.sleeper("-Urn")
    subprocess.run(
        ["nsenter", f"--net=/proc/{target.pid}/ns/net", "ip", "-batch", "-"],
        input="link add dev clash0 type veth peer name clash1\n",
        text=True,
        check=True,
    )
    done = pasta("-q", "-I", "clash0", str(target.pid))
    assert done.returncode == 1
    assert "Failed to set up tap device in namespace" in done.stderr


def test_loss_of_the_tap_ends_us(pasta: Runner) -> None:
    target = pasta.sleeper("-Urn")
    process = pasta.start("-f", "-q", "--config-net", str(target.pid))
    wait_for(lambda: "198.51.100.2" in inside(pasta, target, "ip", "addr"))
    inside(pasta, target, "ip", "link", "del", "eth0")
    assert process.wait(3) == 1
    assert process.stderr is not None
    assert re.search("on (/dev/net/tun|tap) device, exiting\n$", process.stderr.read())
