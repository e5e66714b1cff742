"""System call filters: seccomp(2), and an assembler for the programs that they are.

Theory of operation
-------------------
A filter is a program of the classic Berkeley packet filter, run by the kernel before each
system call on this record, and its result says what becomes of the call::

    0  number      4  architecture      8  instruction pointer      16  six arguments, 64 bits each

:func:`assemble` makes one from a list of what is allowed; everything else, and every call by
way of another architecture's table (32-bit, x32), ends the process by SIGSYS.  Numbers are
found by binary search over the intervals in which the answer is the same, so that the length
of the list hardly matters.

It matters less still for numbers that are allowed whatever the arguments: the kernel (5.11 and
later) runs a new filter once per number, with everything else unknown, notes those for which
the answer does not depend on arguments in a bitmap, and never runs the filter for them.

Tests of arguments look at the low 32 bits: the kernel itself takes no more of descriptors,
requests, flags and the like.  What an argument points to cannot be looked at.

Sources: seccomp(2), linux/seccomp.h, linux/filter.h, linux/audit.h,
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from passt.syscalls.libc import check, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KILL_PROCESS = 0x80000000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

_SET_MODE_FILTER = 1
_TSYNC = 1

# Operation codes: load a word of the record, and, return; jumps: always, if =, if >=.
_LD, _AND, _RET = 0x20, 0x54, 0x06
_JA, _JEQ, _JGE = 0x05, 0x15, 0x35
_INSTRUCTION = struct.Struct("=HBBI")
_FPROG = struct.Struct("@HP")

_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_LOW = 0 if struct.pack("=H", 1) == b"\1\0" else 4

_LONGEST_JUMP = 255
_EVERY_BIT = 0xFFFFFFFF

#: One instruction: operation, distance if true and if false, constant.
_Code = list[tuple[int, int, int, int]]


class Machine:
    """An architecture: its name as of uname(2), and what a filter must know of it.

    ``audit``: AUDIT_ARCH_ constant; ``seccomp``: number of seccomp(2); ``first_foreign``: from
    this number on, calls belong to another table, 0 if there is none; ``column``: the
    architecture's in a table of numbers.
    """

    __slots__ = ("audit", "column", "first_foreign", "name", "seccomp")

    def __init__(
        self, name: str, audit: int, column: int, seccomp: int, first_foreign: int = 0
    ) -> None:
        self.name = name
        self.audit = audit
        self.column = column
        self.seccomp = seccomp
        self.first_foreign = first_foreign


#: Columns of tables of numbers: that of x86-64, and that which newer architectures share.
X86_64, GENERIC = 0, 1

#: On x86-64, bit 30 marks the calls of x32.
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("x86_64", 0xC000003E, X86_64, 317, 0x40000000),
        Machine("aarch64", 0xC00000B7, GENERIC, 277),
        Machine("riscv64", 0xC00000F3, GENERIC, 277),
        Machine("loongarch64", 0xC0000102, GENERIC, 277),
    )
}


def machine() -> Machine:
    """The machine that this process runs on; OSError ENOSYS if it is not among MACHINES.

    A 32-bit process on a 64-bit machine is on none of them.
    """
    found = MACHINES.get(os.uname().machine)
    if found is None or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, "seccomp: no table of system calls")
    return found


class Argument:
    """The low 32 bits of argument ``argument`` (from 0 on), and ``mask``, are among ``values``."""

    __slots__ = ("argument", "mask", "values")

    def __init__(self, argument: int, values: Sequence[int], mask: int = _EVERY_BIT) -> None:
        self.argument = argument
        self.values = tuple(values)
        self.mask = mask


#: What a call's arguments must be: all of one of these alternatives.  Without
#: any alternative, there is no condition.
Condition = tuple[tuple[Argument, ...], ...]


def assemble(
    machine: Machine, allowed: Mapping[int, Condition], otherwise: int = KILL_PROCESS
) -> bytes:
    """The program that allows calls by number, under conditions, on ``machine`` alone.

    ``otherwise`` is the result for all others on that machine.  ValueError if a condition is
    too long to be jumped over.
    """
    # Where the answer changes: from this number on, it is that.
    answers: list[tuple[int, _Code]] = [(0, [(_RET, 0, 0, otherwise)])]

    def add(first: int, code: _Code) -> None:
        if answers[-1][0] == first:
            answers.pop()
        if not answers or answers[-1][1] != code:
            answers.append((first, code))

    for number in sorted(allowed):
        add(number, _conditional(allowed[number], otherwise))
        add(number + 1, [(_RET, 0, 0, otherwise)])
    if machine.first_foreign:
        add(machine.first_foreign, [(_RET, 0, 0, KILL_PROCESS)])
    code = [
        (_LD, 0, 0, _AT_ARCH),
        (_JEQ, 1, 0, machine.audit),
        (_RET, 0, 0, KILL_PROCESS),
        (_LD, 0, 0, _AT_NUMBER),
        *_search(answers),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _search(answers: list[tuple[int, _Code]]) -> _Code:
    """Find the last of ``answers`` that begins at or below the number."""
    if len(answers) == 1:
        return answers[0][1]
    middle = len(answers) // 2
    below, above = _search(answers[:middle]), _search(answers[middle:])
    first = answers[middle][0]
    if len(below) <= _LONGEST_JUMP:
        return [(_JGE, len(below), 0, first), *below, *above]
    return [(_JGE, 0, 1, first), (_JA, 0, 0, len(below)), *below, *above]


def _conditional(condition: Condition, otherwise: int) -> _Code:
    """Allow if the condition holds."""
    allow: _Code = [(_RET, 0, 0, ALLOW)]
    if not condition:
        return allow
    code: _Code = []
    for tests in condition:
        rest = allow
        for test in reversed(tests):
            rest = _test(test, len(rest)) + rest
        code += rest
    return [*code, (_RET, 0, 0, otherwise)]


def _test(test: Argument, skip: int) -> _Code:
    """Go on if ``test`` holds, and else ``skip`` the instructions that follow."""
    code: _Code = [(_LD, 0, 0, _AT_ARGUMENTS + 8 * test.argument + _LOW)]
    if test.mask != _EVERY_BIT:
        code.append((_AND, 0, 0, test.mask))
    left = len(test.values)
    if left > _LONGEST_JUMP or skip > _LONGEST_JUMP:
        raise ValueError("condition too long")
    for value in test.values:
        left -= 1
        code.append((_JEQ, left, 0 if left else skip, value))
    return code


def install(machine: Machine, program: bytes) -> None:
    """Put the filter ``program`` in force for all threads of this process, for good.

    Takes no_new_privs or CAP_SYS_ADMIN (OSError EACCES).  EINVAL: a kernel without filters, or
    no valid program; EBUSY: another thread has a filter that this one has not.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    fprog = ctypes.create_string_buffer(_FPROG.pack(count, ctypes.addressof(buffer)))
    thread = check(
        syscall(machine.seccomp, _SET_MODE_FILTER, _TSYNC, ctypes.addressof(fprog)), "seccomp"
    )
    if thread:
        raise OSError(errno.EBUSY, f"seccomp: thread {thread} has another filter")
