"""What code that took over the running process can do: foreign code is run in it to see.

The product has no hook for this.  The tests put a ``sitecustomize`` on PYTHONPATH, which the
interpreter imports before the program and which has the event loop run the test's code first.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.kit.machine import passt_command
from tests.system.start.runner import Runner, alive, wait_gone

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64"),
]

#: To be followed by the definition of attack().
PRELUDE = """
import _thread, ctypes, mmap, os, socket, sys
from passt.kernel import nsthread
from passt.userspace import loop

libc = ctypes.CDLL(None, use_errno=True)
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
path = ctypes.create_string_buffer(b"/")
original_run, original_start = loop.Loop.run, nsthread.NsThread.start
original_open = nsthread.open_sockets
threads = []

def call(number, *arguments):
    return libc.syscall(*map(ctypes.c_long, (number, *arguments)))

def report():
    try:
        result = attack()
        word = f"survived: {result}"
    except BaseException as error:
        word = f"survived: {type(error).__name__}"
    os.write(2, word.encode())

def start(self, *arguments):
    threads.append(self)
    original_start(self, *arguments)

def run(self):
    if in_thread:
        # Once: sockets ordered before may still be on their way.
        def open_sockets(specs):
            nsthread.open_sockets = original_open
            report()
            return original_open(specs)

        nsthread.open_sockets = open_sockets
        threads[0].call([])
    else:
        report()
    os.write(2, b" and running")
    return original_run(self)

loop.Loop.run, nsthread.NsThread.start = run, start
"""

Attack = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def attack(user_pasta: Runner, tmp_path: Path) -> Attack:
    """A function that starts pasta, has it run a body of code, and returns how it ended.

    Or passt, with *machine*.
    """
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    code = tmp_path / "sitecustomize.py"

    def run(
        body: str,
        *,
        thread: bool = False,
        options: tuple[str, ...] = ("--", "true"),
        machine: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
        code.write_text(f"in_thread = {thread}\ndef attack():\n{body}\n{PRELUDE}")
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
        if machine:
            words = [*passt_command(user_pasta.program), "-f", "-D", "none"]
            return user_pasta.run([*words, "-q", "-s", str(tmp_path / "socket")], env=env)
        return user_pasta("-q", *options, env=env)

    return run


def test_harness(attack: Attack) -> None:
    """Code does run, in either thread, and what is allowed is allowed."""
    for thread in (False, True):
        done = attack("return call(0, -1, 0, 0), ctypes.get_errno()", thread=thread)
        assert done.returncode == 0
        assert done.stderr == "survived: (-1, 9) and running"


#: System calls by what they would be good for.
CALLS = {
    # Files.
    "open": "call(2, ctypes.addressof(path), 0)",
    "openat": "call(257, -100, ctypes.addressof(path), 0)",
    "openat2": "call(437, -100, ctypes.addressof(path), address, 24)",
    "stat": "call(4, ctypes.addressof(path), address)",
    "newfstatat": "call(262, -100, ctypes.addressof(path), address, 0)",
    "chdir": "call(80, ctypes.addressof(path))",
    "chroot": "call(161, ctypes.addressof(path))",
    "memfd_create": "call(319, ctypes.addressof(path), 0)",
    # Processes.
    "execve": "call(59, ctypes.addressof(path), 0, 0)",
    "execveat": "call(322, -100, ctypes.addressof(path), 0, 0, 0)",
    "fork": "call(57)",
    "vfork": "call(58)",
    "clone": "call(56, 17, 0, 0, 0, 0)",
    "clone of a thread": "call(56, 0x10f00, address + 4096, 0, 0, 0)",
    "clone3": "call(435, address, 64)",
    "kill": "call(62, os.getppid() if False else 1, 0)",
    "kill itself": "call(62, 0, 0)",
    "tkill": "call(200, 1, 0)",
    "tgkill": "call(234, 1, 1, 0)",
    "pidfd_open": "call(434, 1, 0)",
    "ptrace": "call(101, 16, 1, 0, 0)",
    "process_vm_readv": "call(310, 1, address, 1, address, 1, 0)",
    # Privileges and namespaces.
    "setuid": "call(105, 0)",
    "capset": "call(126, address, address)",
    "prctl": "call(157, 4, 1)",
    "setns": "call(308, 0, 0)",
    "unshare": "call(272, 0x10000000)",
    "mount": "call(165, 0, ctypes.addressof(path), 0, 0, 0)",
    "umount2": "call(166, ctypes.addressof(path), 0)",
    # Memory that could be executed.
    "mmap": "call(9, 0, 4096, 5, 0x22, -1, 0)",
    "mmap of a file": "call(9, 0, 4096, 1, 2, 0, 0)",
    "mprotect": "call(10, address, 4096, 5)",
    "pkey_mprotect": "call(329, address, 4096, 5, -1)",
    "shmat": "call(30, 0, 0, 0x8000)",
    # Sockets.
    "netlink socket": "call(41, 16, 3, 0)",
    "packet socket": "call(41, 17, 3, 0)",
    "unix socket": "call(41, 1, 1, 0)",
    "vsock socket": "call(41, 40, 1, 0)",
    "raw socket": "call(41, 2, 3, 1)",
    "socketpair": "call(53, 1, 1, 0, address)",
    "filter on a socket": "call(54, 0, 1, 26, address, 16)",
    # Terminals, devices, descriptors.
    "terminal input": "call(16, 0, 0x5412, address)",
    "tap request": "call(16, 0, 0x400454ca, address)",
    "dup": "call(32, 0)",
    "owner of signals": "call(72, 0, 8, 1)",
    # Interfaces of the kernel.
    "bpf": "call(321, 0, address, 64)",
    "seccomp": "call(317, 1, 0, address)",
    "keyctl": "call(250, 0, 0)",
    "io_uring_setup": "call(425, 1, address)",
    "userfaultfd": "call(323, 0)",
    "perf_event_open": "call(298, address, 0, -1, -1, 0)",
    # Other tables.
    "x32": "call(0x40000001, 2, address, 0)",
    "unknown number": "call(999)",
}


@pytest.mark.parametrize("name", CALLS)
def test_call(attack: Attack, name: str) -> None:
    done = attack(f"return {CALLS[name]}")
    assert (done.returncode, done.stderr) == (-signal.SIGSYS, "")


@pytest.mark.parametrize("name", ["openat", "setns", "netlink socket", "mprotect"])
def test_call_of_the_other_thread(attack: Attack, name: str) -> None:
    done = attack(f"return {CALLS[name]}", thread=True)
    assert (done.returncode, done.stderr) == (-signal.SIGSYS, "")


#: What pasta may do, for its command and its namespace, and passt may not.
PASTA_CALLS = {
    "splice": "call(275, -1, 0, -1, 0, 0, 0)",
    "pipe2": "call(293, address, 0)",
    "wait4": "call(61, -1, 0, 0, 0)",
    "lseek": "call(8, 0, 0, 0)",
    "getdents64": "call(217, 0, address, 4096)",
    "readv": "call(19, 0, address, 1)",
    "leaving the tap": "call(16, 0, 0x400454cb, 1)",
}


@pytest.mark.parametrize("name", [*CALLS, *PASTA_CALLS])
def test_call_of_passt(attack: Attack, name: str) -> None:
    done = attack(f"return {(CALLS | PASTA_CALLS)[name]}", machine=True)
    assert (done.returncode, done.stderr) == (-signal.SIGSYS, "")


def test_harness_with_passt(attack: Attack) -> None:
    """Code does run there, and the size of the queue can be set, which pasta's may not be."""
    queue = "call(54, -1, 1, 7, address, 4)"
    done = attack(f"{queue}; os._exit(10 + ctypes.get_errno())", machine=True)
    assert (done.returncode, done.stderr) == (10 + errno.EBADF, "")
    assert attack(f"return {queue}").returncode == -signal.SIGSYS


@pytest.mark.parametrize(
    "body",
    [
        "return os.system('id')",
        "return os.fork()",
        "return open('/etc/passwd')",
        "import json",
        "return socket.socket(socket.AF_UNIX)",
        "return socket.getaddrinfo('localhost', 80)",
        "return ctypes.CDLL('nonexistent.so')",
        "return ctypes.CFUNCTYPE(None)(lambda: None) and mmap.mmap(-1, 4096, prot=7)",
        "import _thread; return _thread.start_new_thread(print, ())",
        "return os.kill(os.getpid(), 9)",
    ],
)
def test_from_python(attack: Attack, body: str) -> None:
    done = attack(body)
    assert (done.returncode, done.stderr) == (-signal.SIGSYS, "")


def test_background(attack: Attack, user_pasta: Runner, tmp_path: Path) -> None:
    """The daemon, process 1 of its namespace, ends as any other would."""
    target = user_pasta.sleeper("-Urn")
    tmp_path.chmod(0o777)
    path = tmp_path / "pid"
    done = attack("return call(257, -100, 0, 0)", options=("-P", str(path), str(target.pid)))
    assert done.stderr == ""
    wait_gone(int(path.read_text()))
    done = attack("return call(0, -1, 0, 0)", options=("-P", str(path), str(target.pid)))
    assert done.returncode == 0
    pid = int(path.read_text())
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


def test_exception_that_nobody_expected(attack: Attack, tmp_path: Path) -> None:
    """It ends the program with a report, not by the filter."""
    body = """
        def fail(self):
            raise RuntimeError("odd") from KeyError("key")
        loop.Loop.round = fail
    """
    # A command that has ended before the loop begins would leave it nothing to do.
    done = attack(body, options=("--", "sleep", "1"))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == "RuntimeError: odd"
    assert "KeyError: 'key'" in lines
    assert any("launch.py" in line and line.endswith("in serve") for line in lines)


def test_exception_in_the_other_thread(attack: Attack) -> None:
    """As much as can be done there: its end is reported, and does not end the process."""
    body = """
        original = nsthread.NsThread._serve
        def serve(self, request):
            original(self, request)
            if request.waiter is not None:
                raise RuntimeError("odd")
        nsthread.NsThread._serve = serve
        threads[0].call([])
        while _thread._count():
            pass
    """
    done = attack(body)
    assert done.returncode == 0
    assert "RuntimeError: odd\n" in done.stderr
    assert done.stderr.endswith(" and running")
