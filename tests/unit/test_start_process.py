"""What start-up does to a process: descriptors, signals, the background, the command.

Each test runs its subject in an interpreter of its own, as these are about processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.ignored import foreign

TREE = Path(__file__).parents[2]


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``body`` in a new interpreter from the root of the tree."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-S", "-c", textwrap.dedent(body)],
        **{"cwd": TREE, "capture_output": True, "text": True, "timeout": 20, **options},
    )


def output(body: str, **options: object) -> str:
    """Standard output of ``body``, which must end with status 0."""
    done = run(body, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [True, False], ids=["size", "list"])
def test_open_descriptors_are_counted(size: bool) -> None:
    """With what the kernel tells of them, and, of one that does not, from the list."""
    body = f"""
        import os, types
        from passt.kernel.descriptors import count_open
        if not {size}:
            os.stat = lambda path: types.SimpleNamespace(st_size=0)
        before = count_open()
        fds = [os.dup(0) for _ in range(50)]
        print(before, count_open() - before)
        """
    before, more = map(int, output(body, stdin=subprocess.DEVNULL).split())
    assert before == 3
    assert more == 50


def test_inherited_descriptors_are_closed() -> None:
    leaks = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    try:
        listed = output(
            """
            import os
            from passt.kernel.descriptors import close_inherited
            before = len(os.listdir("/proc/self/fd"))
            close_inherited()
            print(before, sorted(os.listdir("/proc/self/fd"), key=int))
            """,
            pass_fds=leaks,
        )
    finally:
        for fd in leaks:
            os.close(fd)
    # The last one is the listing itself.
    assert listed == "7 ['0', '1', '2', '3']\n"


def test_descriptors_are_closed_without_proc() -> None:
    out = output(
        """
        import os
        from passt.kernel import descriptors
        leak = os.open("/dev/null", os.O_RDONLY)
        def refuse(_path):
            raise OSError(2, "no /proc")
        descriptors.os.listdir, listing = refuse, os.listdir
        descriptors.close_inherited()
        print(sorted(listing("/proc/self/fd"), key=int))
        """
    )
    assert out == "['0', '1', '2', '3']\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_missing_standard_descriptors(closed: tuple[int, ...], tmp_path: Path) -> None:
    """What is missing becomes /dev/null, what is there stays."""
    report = tmp_path / "report"
    done = run(
        f"""
        import os
        for fd in {closed}:
            os.close(fd)
        from passt.kernel.descriptors import fill_standard
        fill_standard()
        fill_standard()
        with open({str(report)!r}, "w") as file:
            print([os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)], file=file)
            print([os.get_inheritable(fd) for fd in (0, 1, 2)], file=file)
        """,
        stdin=subprocess.PIPE,
    )
    assert done.returncode == 0
    links, inheritable = report.read_text().splitlines()
    assert [link == "/dev/null" for link in eval(links)] == [fd in closed for fd in (0, 1, 2)]
    assert inheritable == "[True, True, True]"


SIGNALS = """
import os, select, signal, sys
from passt.kernel import signals
signals.install_early()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_ending_before_the_loop(number: int) -> None:
    done = run(SIGNALS + f"os.kill(os.getpid(), {int(number)})\nsys.exit(9)")
    assert done.returncode == 0


def test_interrupt_has_its_default_action() -> None:
    # Whoever starts the tests may have it ignored.
    done = run(
        SIGNALS + "os.kill(os.getpid(), signal.SIGINT)",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == -signal.SIGINT


def test_ignored_interrupt_stays_ignored() -> None:
    done = run(
        SIGNALS + "os.kill(os.getpid(), signal.SIGINT)",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0


def test_signals_end_a_sleep() -> None:
    """A signal during epoll_wait, without timeout, is seen at once."""
    out = output(
        SIGNALS
        + """
pipe = signals.SignalPipe()
poll = select.epoll()
poll.register(pipe.fileno(), select.EPOLLIN)
for number in ("TERM", "QUIT", "CHLD"):
    if os.fork() == 0:
        if number != "CHLD":
            os.kill(os.getppid(), getattr(signal, "SIG" + number))
        os._exit(0)
    ending = ended = False
    while not (ended and (ending or number == "CHLD")):
        poll.poll()
        found = pipe.take()
        ending |= found[0]
        ended |= found[1]
    print(number, ending)
    os.wait()
print(pipe.take())
"""
    )
    assert out == "TERM True\nQUIT True\nCHLD False\n(False, False)\n"


COMMAND = """
import os, resource, sys
from passt.kernel.command import Command
"""


def execute(
    executable: str, argv: list[str], **options: object
) -> subprocess.CompletedProcess[str]:
    return run(
        COMMAND
        + f"""
command = Command({executable!r}, {argv!r}, (100, resource.getrlimit(7)[1]))
sys.exit(command.execute())
""",
        **options,
    )


def test_command_gets_the_callers_environment() -> None:
    """Nothing that the interpreter set for itself: it sets LC_CTYPE in the C locale."""
    environ = {"PATH": os.environ["PATH"], "ODD": "a=b", "BYTES": "\udcff", "EMPTY": ""}
    done = execute("env", ["env", "-0"], env=environ, text=False)
    assert done.returncode == 0
    assert set(os.fsencode(done.stdout).split(b"\0")[:-1]) == {
        b"PATH=" + os.fsencode(os.environ["PATH"]),
        b"ODD=a=b",
        b"BYTES=\xff",
        b"EMPTY=",
    }


def test_command_gets_signals_and_limits_back() -> None:
    done = execute("sh", ["sh", "-c", "grep SigIgn /proc/self/status; ulimit -Sn"])
    name, ignored, limit = done.stdout.split()
    assert (name, limit) == ("SigIgn:", "100")
    assert foreign(ignored) == 0


def test_command_argv() -> None:
    done = execute("/bin/sh", ["-odd", "-c", 'echo "$0"', "name"])
    assert done.stdout == "name\n"
    assert execute("cat", ["-cat", "/proc/self/cmdline"]).stdout == "-cat\0/proc/self/cmdline\0"


def test_script_without_interpreter_line(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"')
    script.chmod(0o755)
    assert execute("script", ["script", "x y"], env={"PATH": str(tmp_path)}).stdout == "x y\n"


@pytest.mark.parametrize(
    ("word", "path", "reason"),
    [
        ("no-such-command", "/usr/bin:/bin", "No such file or directory"),
        ("./no-such-command", "/usr/bin", "No such file or directory"),
        ("", "/usr/bin", "No such file or directory"),
        ("plain", "{tmp}:/usr/bin", "Permission denied"),
        ("plain/x", "", "Not a directory"),
        ("true", "/nonexistent", "No such file or directory"),
    ],
)
def test_command_that_cannot_run(tmp_path: Path, word: str, path: str, reason: str) -> None:
    (tmp_path / "plain").touch()
    done = execute(
        f"{tmp_path}/{word}" if word == "plain/x" else word,
        [word],
        env={"PATH": path.format(tmp=tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == f"Failed to start command or shell: {reason}\n"


def test_empty_directory_in_path_is_the_current_one(tmp_path: Path) -> None:
    script = tmp_path / "here"
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    done = run(
        f"import sys, os; sys.path.insert(0, {str(TREE)!r})"
        + COMMAND
        + "Command('here', ['here'], resource.getrlimit(7)).execute()",
        cwd=tmp_path,
        env={"PATH": "/nonexistent:"},
    )
    assert done.stdout == "here\n"


DAEMON = """
import os, sys, time
from passt.kernel import signals
from passt.kernel.daemon import PidFile, daemonise
signals.install_early()
path = sys.argv[1]
null = os.open("/dev/null", os.O_RDWR)
ready = daemonise(PidFile(path), null)
"""


def daemon(path: Path, rest: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", DAEMON + textwrap.dedent(rest), str(path)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_parent_ends_when_the_daemon_is_ready(tmp_path: Path) -> None:
    """PID file complete by then, mode 0600, shortened if it was there; output at its end."""
    path = tmp_path / "pid"
    path.write_text("1" * 100)
    done = daemon(
        path,
        """
        with open(path) as file:
            while file.read() != f"{os.getpid()}\\n":
                file.seek(0)
        session = os.getsid(0) == os.getpid()
        stdio = {os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)}
        with open(path + ".more", "w") as file:
            print(session, stdio, file=file)
        ready.announce()
        time.sleep(0.5)
        os._exit(0)
        """,
    )
    assert done.returncode == 0
    assert (tmp_path / "pid.more").read_text() == "True {'/dev/null'}\n"
    os.kill(int(path.read_text()), 0)


def test_parent_fails_with_the_daemon(tmp_path: Path) -> None:
    assert daemon(tmp_path / "pid", "os._exit(0)").returncode == 1


def test_new_pid_file_is_private(tmp_path: Path) -> None:
    daemon(tmp_path / "pid", "os._exit(0)")
    assert (tmp_path / "pid").stat().st_mode & 0o777 == 0o600


def test_no_daemon_without_pid_file() -> None:
    """If the PID file cannot be written, the daemon is not left to itself."""
    done = daemon(
        Path("/dev/full"),
        """
        import signal
        signal.pause()
        """,
    )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
