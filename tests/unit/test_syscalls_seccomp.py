"""System call filters: what the program says, run by an interpreter of its own, and for real."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.syscalls import seccomp
from passt.syscalls.numbers import NUMBERS
from passt.syscalls.seccomp import ALLOW, KILL_PROCESS, LOG, MACHINES, Argument, Condition, Machine
from tests.unit.bpf import ArgumentReadError, run

TREE = Path(__file__).parents[2]
X86 = MACHINES["x86_64"]
ARM = MACHINES["aarch64"]


def expected(condition: Condition, arguments: tuple[int, ...]) -> bool:
    if not condition:
        return True
    return any(
        all((arguments[t.argument] & 0xFFFFFFFF & t.mask) in t.values for t in tests)
        for tests in condition
    )


tests = st.builds(
    Argument,
    st.integers(0, 5),
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.sampled_from((0xFFFFFFFF, 3, 5)),
)
conditions = st.lists(st.lists(tests, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
arguments = st.tuples(*[st.integers(0, 7) | st.integers(1 << 32, (1 << 32) + 7)] * 6)


@given(
    st.dictionaries(st.integers(0, 40), conditions, max_size=30),
    st.lists(st.tuples(st.integers(0, 42), arguments), min_size=1, max_size=20),
)
def test_any_list(allowed: dict[int, Condition], calls: list[tuple[int, tuple[int, ...]]]) -> None:
    """Allowed is what the list says, whatever the order and the gaps."""
    program = seccomp.assemble(X86, allowed)
    for number, values in calls:
        permitted = number in allowed and expected(allowed[number], values)
        assert run(program, X86, number, values) == (ALLOW if permitted else KILL_PROCESS)


def test_long_programs() -> None:
    """Distances beyond those of a conditional jump."""
    allowed: dict[int, Condition] = {
        number: ((Argument(0, range(number, number + 100)),),) for number in range(0, 76, 2)
    }
    program = seccomp.assemble(X86, allowed)
    assert len(program) > 8 * 3800
    assert len(program) <= 8 * 4096
    for number in range(77):
        inside, outside = (number + 99,), (number + 100,)
        wanted = ALLOW if number in allowed else KILL_PROCESS
        assert run(program, X86, number, inside) == wanted
        assert run(program, X86, number, outside) == KILL_PROCESS


def test_condition_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        seccomp.assemble(X86, {1: ((Argument(0, range(300)),),)})


def test_other_tables_are_never_allowed() -> None:
    """Whatever happens to the rest: 32 bits, x32, another architecture."""
    program = seccomp.assemble(X86, {1: ()}, LOG)
    assert run(program, X86, 1) == ALLOW
    assert run(program, X86, 2) == LOG
    assert run(program, X86, 0x3FFFFFFF) == LOG
    assert run(program, X86, 0x40000000) == KILL_PROCESS
    assert run(program, X86, 0x40000001) == KILL_PROCESS
    assert run(program, X86, 0xFFFFFFFF) == KILL_PROCESS
    i386 = Machine("i386", 0x40000003, 0, 0)
    assert run(program, i386, 1) == KILL_PROCESS
    assert run(program, ARM, 1) == KILL_PROCESS
    assert run(seccomp.assemble(ARM, {1: ()}), ARM, 1) == ALLOW


def test_arguments_matter_only_where_there_is_a_condition() -> None:
    """The kernel's own test for calls that never need the filter again."""
    program = seccomp.assemble(X86, {1: (), 2: ((Argument(0, (1,)),),), 3: ()})
    assert run(program, X86, 1, None) == run(program, X86, 3, None) == ALLOW
    assert run(program, X86, 4, None) == KILL_PROCESS
    with pytest.raises(ArgumentReadError):
        run(program, X86, 2, None)


HEADERS = {
    seccomp.X86_64: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    seccomp.GENERIC: "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    path = Path(HEADERS[column])
    if not path.exists():
        pytest.skip("no kernel headers")
    text = path.read_text()
    # Some are named for what they are on 32-bit machines, too.
    aliases = {"newfstatat": "3264_fstatat"}
    for name, numbers in NUMBERS.items():
        names = [f"__NR_{name}", f"__NR3264_{name}", f"__NR{aliases.get(name)}"]
        found = re.findall(rf"^#define (?:{'|'.join(names)})\s+(\d+)$", text, re.MULTILINE)
        number = numbers[column]
        assert found == ([] if number is None else [str(number)]), name


# For real, in processes of their own.

COMMON = """
import ctypes, errno, os, sys
from passt.syscalls import prctl, seccomp
from passt.syscalls.seccomp import Argument
machine = seccomp.machine()
column = machine.column
libc = ctypes.CDLL(None, use_errno=True)
# Some calls that the interpreter may need, by name; all others are what a test is about.
from passt.syscalls.numbers import NUMBERS
allowed = {
    NUMBERS[name][column]: ()
    for name in ("write", "exit_group", "mmap", "munmap", "brk", "futex", "rt_sigreturn")
}
"""


def python(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", COMMON + textwrap.dedent(body)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


INSTALL = """
prctl.set_no_new_privs()
seccomp.install(machine, seccomp.assemble(machine, allowed))
"""


def test_filter_in_force() -> None:
    done = python(INSTALL + "os.write(1, b'alive')\nos.getppid()\nos.write(1, b'still')")
    assert done.returncode == -signal.SIGSYS
    assert done.stdout == "alive"


def test_conditions_in_force() -> None:
    lseek = NUMBERS["lseek"][seccomp.machine().column]

    def seek(fd: int, whence: int) -> int:
        return python(
            f"allowed[{lseek}] = ((Argument(0, (0, 99)), Argument(2, (0,))),)\n"
            + INSTALL
            + f"try:\n    os.lseek({fd}, 0, {whence})\nfinally:\n    os._exit(7)"
        ).returncode

    assert seek(99, 0) == 7
    assert seek(99, 1) == -signal.SIGSYS
    assert seek(98, 0) == -signal.SIGSYS


def test_all_threads_are_concerned() -> None:
    thread = """
    import _thread
    started, go, stop = (_thread.allocate_lock() for _ in range(3))
    started.acquire(); go.acquire(); stop.acquire()
    def other():
        started.release()
        go.acquire()
        os.write(1, b"alive")
        os.getppid()
        stop.release()
    _thread.start_new_thread(other, ())
    started.acquire()
    """
    done = python(textwrap.dedent(thread) + INSTALL + "go.release(); stop.acquire(); os._exit(0)")
    assert done.returncode == -signal.SIGSYS
    assert done.stdout == "alive"


def foreign(body: str) -> int:
    return python(INSTALL + textwrap.dedent(body) + "\nos._exit(3)").returncode


@pytest.mark.skipif(seccomp.machine() is not X86, reason="about the tables of x86-64")
def test_calls_of_x32() -> None:
    """write(2), which is allowed, by its number in the other table."""
    assert foreign("libc.syscall(0x40000001, 1, b'x', 1)") == -signal.SIGSYS


@pytest.mark.skipif(seccomp.machine() is not X86, reason="about the tables of x86-64")
def test_calls_of_32_bit_programs() -> None:
    """Number 4 is write(2) there, and stat(2) here; both ways it is refused."""
    machine_code = """
    import mmap
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # mov eax, 20 (getpid); int 0x80; ret
    area.write(bytes.fromhex("b814000000cd80c3"))
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    """
    machine_code = textwrap.dedent(machine_code)
    unfiltered = python(machine_code + "os._exit(call() == os.getpid())")
    if unfiltered.returncode != 1:
        pytest.skip("no 32-bit calls on this kernel")
    # 20 is writev(2) here: allowed, so that only the table can be the reason.
    script = machine_code + "allowed[20] = ()\n" + INSTALL + "call()\nos._exit(3)"
    assert python(script).returncode == -signal.SIGSYS


def test_refusals() -> None:
    """Without no_new_privs and privileges, and of what is no program."""
    script = """
    from passt.syscalls import caps
    caps.set_masks(0, 0, 0)
    try:
        seccomp.install(machine, seccomp.assemble(machine, allowed))
    except OSError as error:
        print(error.errno == errno.EACCES)
    prctl.set_no_new_privs()
    for program in (b"", b"\\0" * 8):
        try:
            seccomp.install(machine, program)
        except OSError as error:
            print(error.errno == errno.EINVAL)
    """
    assert python(script).stdout == "True\nTrue\nTrue\n"


def test_thread_with_another_filter() -> None:
    """A filter that cannot be put in force for all is an error, and no half measure."""
    done = python(
        """
        import _thread
        ready, stop = _thread.allocate_lock(), _thread.allocate_lock()
        ready.acquire(); stop.acquire()
        prctl.set_no_new_privs()
        def other():
            everything = seccomp.assemble(machine, {}, seccomp.ALLOW)
            buffer = ctypes.create_string_buffer(everything, len(everything))
            import struct
            fprog = struct.pack("@HP", len(everything) // 8, ctypes.addressof(buffer))
            assert libc.syscall(machine.seccomp, 1, 0, fprog) == 0
            ready.release(); stop.acquire()
        _thread.start_new_thread(other, ())
        ready.acquire()
        try:
            seccomp.install(machine, seccomp.assemble(machine, allowed))
        except OSError as error:
            print(error.errno == errno.EBUSY, os.getppid() > 0)
        """
    )
    assert done.stdout == "True True\n"


@pytest.mark.parametrize("name", ["s390x", "armv7l", ""])
def test_unknown_machines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("uname", (), {"machine": name})
    monkeypatch.setattr(seccomp.os, "uname", fake)
    with pytest.raises(OSError, match="no table of system calls"):
        seccomp.machine()


@pytest.mark.parametrize("name", MACHINES)
def test_known_machines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Callable[[], object] = type("uname", (), {"machine": name})
    monkeypatch.setattr(seccomp.os, "uname", fake)
    assert seccomp.machine().name == name
