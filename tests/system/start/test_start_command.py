"""Spawned commands: namespaces, what they inherit, when they run, how they end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.ignored import foreign
from tests.system.kit.netns import wait_for
from tests.system.kit.users import User
from tests.system.start.runner import (
    FULL,
    Runner,
    alive,
    command_of,
    links,
    processes_with,
    status,
)

pytestmark = pytest.mark.system


def fields(text: str) -> dict[str, str]:
    """The fields of a /proc status file."""
    return {
        name: " ".join(value.split())
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def test_code_that_only_root_can_read(ours_only: None, root_pasta: Runner, tmp_path: Path) -> None:
    """Whoever root becomes cannot import: all that the configuration needs is there by then."""
    shutil.copytree(Path(__file__).parents[3] / "passt", tmp_path / "passt")
    tmp_path.chmod(0o700)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    # To see that it is this code: it says something.
    with open(tmp_path / "passt" / "userspace" / "launch.py", "a") as file:
        file.write('\nprint("private", flush=True)\n')
    done = root_pasta("--config-net", "--", "cat", "/proc/net/dev", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("private\n")
    assert "eth0" in done.stdout


def test_words_after_the_options_are_the_commands(pasta: Runner) -> None:
    done = pasta("--config-net", "ip", "-6", "route")
    assert done.returncode == 0
    assert "2001:db8:1::/64 dev eth0" in done.stdout


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_status(pasta: Runner, code: int) -> None:
    assert pasta("--config-net", "--", "sh", "-c", f"exit {code}").returncode == code


def test_command_killed_from_outside(pasta: Runner) -> None:
    process = pasta.start("--", "sleep", "31.4")
    child = command_of(process)
    os.kill(child, signal.SIGTERM)
    time.sleep(0.1)
    assert alive(child), "process 1 of a PID namespace ignores what it does not handle"
    os.kill(child, signal.SIGKILL)
    assert process.wait(5) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-command-anywhere", "x"), "No such file or directory"),
        (("/etc/passwd",), "Permission denied"),
        (("/etc/passwd/x",), "Not a directory"),
    ],
)
def test_command_that_cannot_be_executed(
    pasta: Runner, command: tuple[str, ...], reason: str
) -> None:
    started = time.monotonic()
    done = pasta("--config-net", "--", *command, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 1
    assert f"Failed to start command or shell: {reason}\n" in done.stderr
    assert time.monotonic() - started < 5


def test_network_is_ready_when_the_command_runs(pasta: Runner) -> None:
    done = pasta("--config-net", "--", "ip", "-br", "addr", "show", "dev", "eth0")
    assert "198.51.100.2/24" in done.stdout
    assert "2001:db8:1::2/64" in done.stdout
    assert "tentative" not in pasta("--config-net", "--", "ip", "-6", "addr").stdout


def test_setup_failure_leaves_nothing(pasta: Runner) -> None:
    """The command, which was waiting, never runs."""
    done = pasta("--config-net", "-a", "192.0.2.5/24", "-g", "203.0.113.9", "--", "sleep", "27.1")
    assert done.returncode == 1
    assert "Couldn't set IPv4 route(s) in guest: Network is unreachable" in done.stderr
    assert processes_with("27.1") == []


def test_descriptors(pasta: Runner) -> None:
    """Leaked ones of the caller do not get through, nor do ours."""
    done = pasta.shell("exec 7</dev/null 9>/dev/null; $PASTA --config-net -- ls /proc/self/fd")
    assert done.stdout.split() == ["0", "1", "2", "3"]


def test_program_keeps_no_leaked_descriptor(pasta: Runner) -> None:
    leak = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        process = pasta.start("--", "sleep", "31.5", pass_fds=[leak])
        command_of(process)
        opened = set(links(process.pid).values())
    finally:
        os.close(leak)
    assert "/dev/zero" not in opened
    assert "/dev/net/tun" in opened


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_missing_standard_descriptors(pasta: Runner, closed: str) -> None:
    done = pasta.shell(f"$PASTA --config-net -- sh -c 'exit 5' {closed}")
    assert done.returncode == 5


def test_signals_limits_and_privileges(pasta: Runner) -> None:
    """All that the caller had, all that root of a new namespace may have."""
    done = pasta.shell(
        "ulimit -Sn 321; $PASTA --config-net -- sh -c 'ulimit -Sn; cat /proc/self/status'"
    )
    limit, _, rest = done.stdout.partition("\n")
    assert limit == "321"
    found = fields(rest)
    assert foreign(found["SigIgn"]) == int(found["SigBlk"], 16) == 0
    assert found["NoNewPrivs"] == found["Seccomp"] == "0"
    assert found["CapPrm"] == found["CapEff"] == found["CapBnd"] == FULL
    assert found["Uid"] == found["Gid"] == "0 0 0 0"


def test_user_namespace(pasta: Runner) -> None:
    done = pasta("--", "sh", "-c", "id -u; id -g; cd /proc/self; cat uid_map gid_map setgroups")
    uid = 65534 if pasta.root else pasta.uid
    assert done.stdout.split()[:2] == ["0", "0"]
    assert done.stdout.split()[2:5] == ["0", str(uid), "1"]
    assert done.stdout.split()[5:] == ["0", done.stdout.split()[6], "1", "deny"]
    assert ("Started as root, will change to nobody.\n" in done.stderr) is pasta.root


def test_environment_is_the_callers(pasta: Runner) -> None:
    """The interpreter would add LC_CTYPE in the C locale."""
    done = pasta("--", "env", env={"PATH": "/usr/bin:/bin", "X": "y"})
    assert sorted(done.stdout.split()) == ["PATH=/usr/bin:/bin", "X=y"]


def test_ping_group_range(pasta: Runner) -> None:
    done = pasta("--", "cat", "/proc/sys/net/ipv4/ping_group_range")
    assert done.stdout.split() == ["0", "0"]
    assert done.stderr.replace("Started as root, will change to nobody.\n", "") == ""


def test_hostname(pasta: Runner) -> None:
    assert pasta("--", "hostname").stdout == f"pasta-{socket.gethostname()}"[:64] + "\n"
    assert pasta("-H", "guest.example", "--", "hostname").stdout == "guest.example\n"
    assert pasta("-H", "a" * 100, "--", "hostname").stdout == "a" * 64 + "\n"


def test_long_hostname_is_cut(root_pasta: Runner) -> None:
    words = [*root_pasta.program.argv, "--", "hostname"]
    done = root_pasta.run(
        ["unshare", "-u", "sh", "-c", 'hostname "$0"; exec "$@"', "h" * 63, *words]
    )
    assert done.stdout == "pasta-" + "h" * 58 + "\n"


def test_new_namespaces_and_proc(pasta: Runner) -> None:
    kinds = ("net", "ipc", "uts", "mnt", "pid", "user")
    script = f"cd /proc/self/ns; for n in {' '.join(kinds)}; do readlink $n; done"
    inside = pasta("--", "sh", "-c", script).stdout.split()
    outside = pasta.run(["sh", "-c", script]).stdout.split()
    assert len(inside) == len(outside) == 6
    assert not set(inside) & set(outside)
    shown = pasta("--", "sh", "-c", "ps -eo pid=,comm=").stdout.split()
    assert shown[:2] == ["1", "sh"] or shown[:2] == ["1", "ps"]
    assert len(shown) <= 4


def test_proc_does_not_appear_outside(pasta: Runner) -> None:
    before = pasta.run(["cat", "/proc/self/mounts"]).stdout
    process = pasta.start("--", "sleep", "31.6")
    command_of(process)
    assert pasta.run(["cat", "/proc/self/mounts"]).stdout == before


def test_rest_of_the_pid_namespace_ends_with_the_command(pasta: Runner) -> None:
    pasta("--", "sh", "-c", "sleep 28.1 & sleep 0.1")
    wait_for(lambda: not processes_with("28.1"), 3)


def test_no_pidns(pasta: Runner) -> None:
    script = "readlink /proc/self/ns/pid; setsid sleep 28.2 >/dev/null 2>&1 & sleep 0.1"
    done = pasta("--no-pidns", "--", "sh", "-c", script)
    survivors = processes_with("28.2")
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert done.stdout.strip() == os.readlink("/proc/self/ns/pid")
    assert len(survivors) == 1


def test_shell_is_a_login_shell(pasta: Runner) -> None:
    """$SHELL, else /bin/sh; argv[0] starts with a dash."""
    script = "echo $0; exit 6"
    for env in ({"SHELL": "/bin/bash"}, {"SHELL": ""}, {}):
        process = pasta.start(stdin=subprocess.PIPE, env={"PATH": os.environ["PATH"], **env})
        out, _ = process.communicate(script, 10)
        assert process.returncode == 6
        assert out == f"-{env.get('SHELL') or '/bin/sh'}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_ending_leaves_the_command(pasta: Runner, number: int) -> None:
    process = pasta.start("--config-net", "--", "sleep", "29.1")
    child = command_of(process)
    process.send_signal(number)
    assert process.wait(3) == 0
    time.sleep(0.1)
    assert alive(child)
    os.kill(child, signal.SIGKILL)


def test_killing_us_before_the_command_runs_ends_it(pasta: Runner) -> None:
    """From any moment of the start, no process may stay."""
    for delay in (0.03, 0.05, 0.06, 0.07, 0.08):
        process = pasta.start("--config-net", "--", "sleep", "30.1")
        time.sleep(delay)
        process.kill()
        process.wait(3)
    time.sleep(0.2)
    # Once it was executed, the command stays; before, its words are still ours.
    for pid in processes_with("30.1"):
        name = status(pid)["Name"]
        os.kill(pid, signal.SIGKILL)
        assert name == "sleep"


def test_interrupt_has_its_default_action(pasta: Runner) -> None:
    # Whoever starts the tests may have it ignored.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = pasta.start("--", "sleep", "29.2", **default)
    child = command_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(3) == -signal.SIGINT
    os.kill(child, signal.SIGKILL)


def test_nested(pasta: Runner) -> None:
    words = [*pasta.program.argv, "--config-net", "--", "sh", "-c", "hostname; ip -br addr"]
    done = pasta("--config-net", "--", *words)
    assert done.returncode == 0
    assert done.stdout.startswith("pasta-pasta-")
    assert "198.51.100.2/24" in done.stdout


def test_root_of_another_namespace_stays_root(user_pasta: Runner) -> None:
    """With and without a further namespace; nothing to say about either."""
    words = " ".join(user_pasta.program.argv)
    for options in ("-q", "-q --netns-only"):
        done = user_pasta.run(["unshare", "-r", "sh", "-c", f"{words} {options} -- id -u"])
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_netns_only(user_pasta: Runner) -> None:
    """The current user namespace, a new network namespace."""
    words = " ".join(user_pasta.program.argv)
    show = "readlink /proc/self/ns/user /proc/self/ns/net"
    done = user_pasta.run(["unshare", "-r", "sh", "-c", f"{show}; {words} --netns-only -- {show}"])
    user_before, net_before, user_after, net_after = done.stdout.split()
    assert user_before == user_after
    assert net_before != net_after


def test_netns_only_as_root(root_pasta: Runner) -> None:
    """The command runs as nobody, in a network of its own."""
    script = "id -u; ip -br addr; cat /proc/self/status; cat /proc/sys/net/ipv4/ping_group_range"
    done = root_pasta("--netns-only", "--config-net", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("65534\n")
    assert "198.51.100.2/24" in done.stdout
    assert fields(done.stdout)["CapEff"] == "0" * 16
    assert fields(done.stdout)["Groups"] == ""
    assert root_pasta("--netns-only", "--runas", "0", "--", "id", "-u").stdout == "0\n"


def test_runas(root_pasta: Runner, user_pasta: Runner, user: User) -> None:
    def owner(*words: str) -> str:
        return root_pasta(*words, "--", "cat", "/proc/self/uid_map").stdout.split()[1]

    assert owner("--runas", str(user_pasta.uid)) == str(user_pasta.uid)
    assert owner("--runas", user.name) == str(user_pasta.uid)
    assert owner("--runas", "0") == "0"
    done = user_pasta("--runas", "4711", "--", "true")
    assert done.returncode == 1
    assert "Can't set GID to 0 in userns: Invalid argument\n" in done.stderr


def test_existing_user_namespace(pasta: Runner) -> None:
    target = pasta.sleeper("-Ur")
    done = pasta("--userns", f"/proc/{target.pid}/ns/user", "--", "readlink", "/proc/self/ns/user")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == os.readlink(f"/proc/{target.pid}/ns/user")


def test_children_that_end_meanwhile(pasta: Runner) -> None:
    """Processes that are not ours end while we start: nothing of theirs disturbs us."""
    for _ in range(3):
        done = pasta.shell(
            "for i in 1 2 3 4 5 6 7 8; do sleep 0.0$i & done; exec $PASTA --config-net -- true"
        )
        assert done.returncode == 0
        assert done.stderr.replace("Started as root, will change to nobody.\n", "") == ""


def test_privileges_while_running(pasta: Runner) -> None:
    process = pasta.start("--config-net", "--", "sleep", "31.7")
    command_of(process)
    wait_for(lambda: status(process.pid)["CapEff"] == "0" * 16)
    found = status(process.pid)
    assert found["CapPrm"] == found["CapInh"] == found["CapAmb"] == "0" * 16
    uid = "65534" if pasta.root else str(pasta.uid)
    assert found["Uid"].split() == [uid] * 4
    # The other one is in the namespace, where it may bind low ports and nothing else.
    threads = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")]
    threads.remove(process.pid)
    assert [status(thread)["CapEff"] for thread in threads] == [f"{1 << 10:016x}"]
    if pasta.root:
        assert found["Groups"] == ""
    # Its sockets are the host's.
    outside = pasta.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
    assert os.readlink(f"/proc/{process.pid}/ns/net") == outside


def test_no_child_is_left_but_the_command(pasta: Runner) -> None:
    process = pasta.start("--config-net", "--no-follow", "--", "sleep", "31.8")
    child = command_of(process)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        assert file.read().split() == [str(child)]


def test_low_ports(root_pasta: Runner) -> None:
    """They are bound before the privilege to do so goes."""
    process = root_pasta.start("-t", "80", "-u", "53", "--", "sleep", "31.9")
    root_pasta.host.wait_listening(80)
    root_pasta.host.wait_listening(53, "udp")
    process.terminate()
    assert process.wait(3) == 0


def test_low_ports_without_privilege(user_pasta: Runner) -> None:
    done = user_pasta("-t", "80", "--", "true")
    assert done.returncode == 1
    assert "Listen failed for HOST TCP port */80: Permission denied\n" in done.stderr


def test_interpreter_with_support_of_perf(pasta: Runner) -> None:
    """It writes to a file of its own, whose descriptor must not become one of our sockets."""
    env = {"PATH": os.environ["PATH"], "PYTHONPERFSUPPORT": "1"}
    done = pasta("-q", "--config-net", "--", "ip", "-br", "addr", env=env)
    assert done.returncode == 0
    assert "198.51.100.2/24" in done.stdout
