"""``docs/seccomp.md``, made from the list of system calls.

``python -m passt.kernel.seccomp.document [FILE]`` writes it to FILE or to standard output.  The
page kept in ``docs/`` is the output of this program; a test compares the two.
"""

from __future__ import annotations

import sys

from passt.kernel.seccomp.follower import FOLLOWER, FOLLOWING
from passt.kernel.seccomp.groups import ACCELERATION, lookup
from passt.kernel.seccomp.profile import PROFILES, calls_on
from passt.syscalls.seccomp import MACHINES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.seccomp.groups import Group

_HEAD = """\
# System calls of the running program

This page is made from `kernel/seccomp/groups.py` by `python -m passt.kernel.seccomp.document`.
`pasta --print-seccomp` and `passt --print-seccomp` print the list for the machine they run on.

While pasta starts, it does what it needs to: opens files, forks, joins namespaces. Then, with
everything open and before the first packet, it installs a filter for all of its threads, for
good. What is allowed from then on is below: {counts}.
Any other call, and any call by way of another architecture's table (32-bit programs, x32), ends
the process by SIGSYS, and the kernel logs the call's number (`audit: type=1326 … sig=31
syscall=N`). The spawned command is not concerned: it was forked earlier.

## What whoever takes over the process can do

* Use the descriptors that are open: the tap, the sockets of connections, the log and the capture
  file, standard input and output in the foreground; the sockets of the system log and of pesto,
  which are unix sockets, and those by which it asks for listening ports, which are netlink ones.
* Make TCP, UDP and ping sockets, and do with them what any program of the user could do, in the
  host's network and, by asking the other thread, in the namespace's.

In passt there is neither a tap nor another thread, but the socket on which guests are waited for,
and that of the guest's connection.

## What is out of reach

* Files: no call takes a path, and the root directory is empty anyway.
* Programs: no execve, no fork, no new thread.
* Executable memory: neither mmap nor mprotect with `PROT_EXEC`.
* Other processes: no signals, not even to itself, no ptrace, no process_vm_readv.
* More of the kernel: no bpf but for elements of maps that are open, and that with acceleration
  only; no io_uring, keyctl, userfaultfd, perf_event_open, mount, unshare, setns, no new netlink,
  packet or unix sockets, no ioctl but four harmless requests.

## The process that follows the host's network

With `--follow`, which `--config-net` implies, there is a second process, to which nothing that a
guest or a peer sends ever gets. It has a list of its own, {follower}: that of the group
*following* below and of the interpreter. It can open files for reading, but sees no others than
those in the directories of the host's resolv.conf; and it has one capability, CAP_NET_ADMIN over
the namespace.

## Cost

For calls that are allowed whatever their arguments, Linux 5.11 and later do not run the filter at
all: a bitmap, filled when the filter is installed, says so. All calls that carry traffic are of
this kind. For those with conditions, a binary search takes some seven comparisons to find the
number, and a few more look at the arguments.

Measured on a virtual machine (Linux 6.18): having any filter makes a call 65 ns longer, a condition
adds 20 to 50 ns. A request and its answer, 6 to 7 calls of the 43 to 47 µs that they take at best,
come to 0.5 µs or 1 % more; throughput and the time to start do not change measurably.

## Machines

There are numbers for {machines},
and for 64-bit processes only. The tests run on x86_64; for the others, the numbers are compared
with those of the kernel's headers. On any other machine pasta does not start: a sandbox without
this wall would not be the one that this page describes.

## Adding a call

The system tests run under the filter, so a call that is missing shows soon: the process ends with
status 159 (128 + SIGSYS), and `dmesg` has the number. Add the call to the group that it belongs
to, with its reason, and its number to `syscalls/numbers.py`; then make this page anew.
"""

_TABLE = """
| Call | Why | Only with |
|---|---|---|
"""


def document() -> str:
    """The page."""
    counts = []
    for mode, profile in PROFILES.items():
        numbers = [
            f"{len(calls_on(machine, profile))} on {machine.name}" for machine in MACHINES.values()
        ]
        counts.append(f"{_and(numbers)} for {mode}")
    follower = _and(
        [f"{len(calls_on(machine, FOLLOWER))} on {machine.name}" for machine in MACHINES.values()]
    )
    machines = _and(list(MACHINES))
    parts = [_HEAD.format(counts="; ".join(counts), machines=machines, follower=follower)]
    shown: list[Group] = []
    for mode, profile in PROFILES.items():
        parts.append(f"\n# {mode}\n")
        before = [f"*{group.name}*" for group in profile if group in shown]
        if before:
            parts.append(f"\nThe groups {_and(before)}, as above, and what follows.\n")
        further = (lookup(0), ACCELERATION) if mode == "pasta" else ()
        parts += [_section(group) for group in (*profile, *further) if group not in shown]
        shown += profile
    parts.append("\n# The process that follows the host's network\n")
    parts.append(_section(FOLLOWING))
    return "".join(parts)


def _section(group: Group) -> str:
    """A group as a table."""
    rows = "".join(f"| {call.name} | {call.why} | {call.limits} |\n" for call in group.calls)
    return f"\n## {group.name}\n\n{group.purpose}\n{_TABLE}{rows}"


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def main(arguments: list[str]) -> int:
    """Write the page to the named file, or to standard output."""
    if not arguments:
        sys.stdout.write(document())
        return 0
    with open(arguments[0], "w", encoding="utf-8") as page:
        page.write(document())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
