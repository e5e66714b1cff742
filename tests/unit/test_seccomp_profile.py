"""The list of system calls: what is on it, what is not, and that documents agree."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from passt.kernel.seccomp import document, groups
from passt.kernel.seccomp.follower import FOLLOWER
from passt.kernel.seccomp.profile import PROFILES, calls_on, listing, profile, program
from passt.syscalls import seccomp
from passt.syscalls.numbers import NUMBERS
from passt.syscalls.seccomp import ALLOW, KILL_PROCESS, MACHINES, Machine
from passt.syscalls.tun import TUNSETPERSIST
from tests.unit.bpf import ArgumentReadError, run

PAGE = Path(__file__).parents[2] / "docs" / "seccomp.md"

#: Most calls that a profile may have.
AIM = {"pasta": 60, "passt": 50}

#: By purpose: new files, processes, privileges, namespaces, kernel interfaces, memory.
_NEVER = (
    "open openat openat2 creat open_by_handle_at name_to_handle_at link unlink rename symlink "
    "mkdir mknod chmod fchmod chown fchown truncate chdir chroot pivot_root mount umount2 "
    "fsopen clone clone3 fork vfork execve execveat kill tkill tgkill pidfd_send_signal "
    "rt_sigqueueinfo ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd setuid setgid "
    "setresuid setgroups capset prctl unshare setns seccomp personality bpf perf_event_open "
    "io_uring_setup userfaultfd keyctl add_key request_key memfd_create memfd_secret "
    "init_module finit_module kexec_load shmat shmget pkey_mprotect socketpair inotify_init1 "
    "inotify_add_watch fanotify_init epoll_create1 eventfd2 dup dup2 dup3 rt_sigaction "
    "sethostname reboot"
)
NEVER = set(_NEVER.split())

EVERYWHERE = pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
MODES = pytest.mark.parametrize("mode", PROFILES)


def names(mode: str) -> set[str]:
    return {call.name for group in profile(mode) for call in group.calls}


def answer(machine: Machine, name: str, *arguments: int, directory: int = -1) -> int:
    number = NUMBERS[name][machine.column]
    assert number is not None
    return run(program(machine, profile("pasta", directory)), machine, number, arguments)


@MODES
@EVERYWHERE
def test_length(mode: str, machine: Machine) -> None:
    calls = calls_on(machine, profile(mode))
    assert len({number for number, _ in calls}) == len(calls) <= AIM[mode]


@MODES
def test_dangerous_calls_are_not_on_it(mode: str) -> None:
    assert not names(mode) & set(NEVER)
    assert not names(mode) & {
        name for name in NUMBERS if "at" in name[-2:] and name != "newfstatat"
    }


@MODES
def test_every_call_once_and_with_its_reason(mode: str) -> None:
    calls = [call for group in profile(mode) for call in group.calls]
    assert len({call.name for call in calls}) == len(calls)
    for call in calls:
        assert call.why, call.name
        assert bool(call.limits) is bool(call.condition), call.name


def test_every_number_is_of_a_call_on_a_list() -> None:
    listed = {
        call.name
        for mode in PROFILES
        for group in profile(mode, 3, accelerated=True)
        for call in group.calls
    }
    listed |= {call.name for group in FOLLOWER for call in group.calls}
    assert listed == set(NUMBERS)


@MODES
@EVERYWHERE
def test_calls_that_carry_traffic_cost_nothing(mode: str, machine: Machine) -> None:
    """The kernel knows that they are allowed without looking at any argument."""
    code = program(machine, profile(mode))
    hot = {"getsockopt", "epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "close", "accept4"}
    hot |= {call.name for call in groups.TRAFFIC.calls}
    for number, call in calls_on(machine, profile(mode)):
        if call.name in hot:
            assert run(code, machine, number, None) == ALLOW
        elif call.condition:
            with pytest.raises(ArgumentReadError):
                run(code, machine, number, None)


@EVERYWHERE
def test_all_other_numbers_are_refused(machine: Machine) -> None:
    code = program(machine, profile("pasta"))
    allowed = {number for number, _ in calls_on(machine, profile("pasta"))}
    for number in set(range(600)) - allowed:
        assert run(code, machine, number, None) == KILL_PROCESS


@EVERYWHERE
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "allowed"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, 0, True),
        (socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0, True),
        (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, True),
        (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, True),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, False),
        (socket.AF_INET, socket.SOCK_SEQPACKET, 0, False),
        (socket.AF_INET, socket.SOCK_STREAM, 262, False),  # Multipath TCP
        (socket.AF_INET6, socket.SOCK_DGRAM, 136, False),  # UDP-Lite
        (socket.AF_UNIX, socket.SOCK_STREAM, 0, False),
        (socket.AF_NETLINK, socket.SOCK_DGRAM, 0, False),
        (socket.AF_PACKET, socket.SOCK_DGRAM, 0, False),
        (socket.AF_VSOCK, socket.SOCK_STREAM, 0, False),
        (38, socket.SOCK_STREAM, 0, False),  # AF_ALG
    ],
)
def test_sockets(machine: Machine, family: int, kind: int, protocol: int, allowed: bool) -> None:
    wanted = ALLOW if allowed else KILL_PROCESS
    assert answer(machine, "socket", family, kind, protocol) == wanted


@EVERYWHERE
def test_memory(machine: Machine) -> None:
    private, anonymous, minus_one = 2, 0x20, 0xFFFFFFFF
    for protection in range(8):
        wanted = KILL_PROCESS if protection & 4 else ALLOW
        assert answer(machine, "mprotect", 1 << 40, 4096, protection) == wanted
        flags = private | anonymous
        assert answer(machine, "mmap", 0, 4096, protection, flags, minus_one) == wanted
        assert answer(machine, "mmap", 0, 4096, protection, private, 3) == KILL_PROCESS


@EVERYWHERE
def test_requests(machine: Machine) -> None:
    for request, allowed in (
        (0x541B, True),  # FIONREAD
        (0x5411, True),  # TIOCOUTQ
        (0x5421, True),  # FIONBIO
        (0x5412, False),  # TIOCSTI
        (TUNSETPERSIST, True),
        (0x400454CA, False),  # TUNSETIFF
        (0x8912, False),  # SIOCGIFCONF
    ):
        wanted = ALLOW if allowed else KILL_PROCESS
        assert answer(machine, "ioctl", 5, request) == wanted
        # The kernel takes 32 bits of it, whatever the others are.
        assert answer(machine, "ioctl", 5, request | 1 << 63) == wanted
    assert answer(machine, "fcntl", 5, 1031, 1 << 20) == ALLOW
    for command in (0, 1, 2, 3, 4, 8, 10, 1024, 1033):  # F_DUPFD to F_ADD_SEALS
        assert answer(machine, "fcntl", 5, command) == KILL_PROCESS


@EVERYWHERE
def test_options(machine: Machine) -> None:
    level = socket.SOL_SOCKET
    assert answer(machine, "setsockopt", 5, level, socket.SO_LINGER) == ALLOW
    assert answer(machine, "setsockopt", 5, socket.IPPROTO_IPV6, 26) == ALLOW
    # A filter of packets may go, but not come.
    assert answer(machine, "setsockopt", 5, level, 27) == ALLOW
    for option in (26, 36, 62, 33):  # filters of packets, marks, priorities by force
        assert answer(machine, "setsockopt", 5, level, option) == KILL_PROCESS
    # An option of one level is none of another.
    assert answer(machine, "setsockopt", 5, socket.IPPROTO_TCP, 42) == KILL_PROCESS
    assert answer(machine, "setsockopt", 5, socket.IPPROTO_TCP, 19) == KILL_PROCESS


@EVERYWHERE
def test_lookup_is_of_one_directory(machine: Machine) -> None:
    """And not in ordinary profiles."""
    assert answer(machine, "newfstatat", 9, directory=9) == ALLOW
    assert answer(machine, "newfstatat", 8, directory=9) == KILL_PROCESS
    assert answer(machine, "newfstatat", -100 & 0xFFFFFFFF, directory=9) == KILL_PROCESS
    assert answer(machine, "newfstatat", 9) == KILL_PROCESS


@EVERYWHERE
def test_acceleration_adds_elements_of_maps_and_options(machine: Machine) -> None:
    """To what was allowed; and only where it is in force."""
    code = program(machine, profile("pasta", accelerated=True))
    level = socket.SOL_SOCKET

    def accelerated(name: str, *arguments: int) -> int:
        return run(code, machine, NUMBERS[name][machine.column] or 0, arguments)

    for command in range(40):
        wanted = ALLOW if command in (2, 3) else KILL_PROCESS  # BPF_MAP_UPDATE_ELEM, …DELETE…
        assert accelerated("bpf", command) == wanted
        assert answer(machine, "bpf", command) == KILL_PROCESS
    for option in (socket.SO_RCVBUF, 72, 50):  # SO_BUF_LOCK, SO_ATTACH_BPF
        assert accelerated("setsockopt", 5, level, option) == ALLOW
        assert answer(machine, "setsockopt", 5, level, option) == KILL_PROCESS
        assert accelerated("setsockopt", 5, socket.IPPROTO_TCP, option) == KILL_PROCESS
    assert accelerated("setsockopt", 5, socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP) == ALLOW
    for option, wanted in ((socket.SO_LINGER, ALLOW), (26, KILL_PROCESS), (36, KILL_PROCESS)):
        assert accelerated("setsockopt", 5, level, option) == wanted


FOLLOWERS = {"openat", "inotify_add_watch"}


@EVERYWHERE
def test_follower_reads_files_and_that_is_all(machine: Machine) -> None:
    """Of what the program itself never does it may do two things, one of them within limits."""
    names = {call.name for group in FOLLOWER for call in group.calls}
    assert names & NEVER == FOLLOWERS
    assert not names & {"socket", "connect", "bind", "write", "recvmsg", "ioctl", "setsockopt"}
    code = program(machine, FOLLOWER)
    number = NUMBERS["openat"][machine.column]
    assert number is not None
    here, read_only, directory = 0xFFFFFF9C, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, 3
    assert run(code, machine, number, (here, 0, read_only)) == ALLOW
    assert run(code, machine, number, (here | 1 << 63, 0, read_only)) == ALLOW
    assert run(code, machine, number, (directory, 0, read_only)) == KILL_PROCESS
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_PATH, os.O_TMPFILE):
        assert run(code, machine, number, (here, 0, flags)) == KILL_PROCESS
    for call, column in NUMBERS.items():
        if call not in names and column[machine.column] is not None:
            assert run(code, machine, column[machine.column] or 0, None) == KILL_PROCESS


def test_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document.document(), (
        "run: python -m passt.kernel.seccomp.document docs/seccomp.md"
    )


def test_page_states_counts_and_reasons(tmp_path: Path) -> None:
    page = tmp_path / "page"
    assert document.main([str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for machine in MACHINES.values():
        assert f"{len(calls_on(machine, profile('pasta')))} on {machine.name}" in text
    for group in profile("pasta", 3):
        for call in group.calls:
            assert f"| {call.name} | {call.why} | {call.limits} |" in text


def test_readme_states_the_count() -> None:
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    count = len(calls_on(MACHINES["x86_64"], profile("pasta")))
    assert f"[{count} system calls](docs/seccomp.md)" in text


def test_listing() -> None:
    lines = listing("pasta").splitlines()
    machine = seccomp.machine()
    calls = calls_on(machine, profile("pasta"))
    assert lines[0] == f"# pasta on {machine.name}: {len(calls)} system calls"
    assert lines[1:] == sorted(f"{call.name}  {call.limits}".rstrip() for _, call in calls)
