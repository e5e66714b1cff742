"""An interpreter of filter programs (linux/filter.h), as far as ours go."""

from __future__ import annotations

import struct

from passt.syscalls.seccomp import Machine


class ArgumentReadError(Exception):
    """The program asked for an argument where there is none to be known."""


def run(
    program: bytes, machine: Machine, number: int, arguments: tuple[int, ...] | None = ()
) -> int:
    """The result of *program* for a call; ``None`` stands for arguments that are not known."""
    code = list(struct.iter_unpack("=HBBI", program))
    known = () if arguments is None else arguments
    padded = (*known, *(0,) * (6 - len(known)))
    record = struct.pack("=IIQ6Q", number, machine.audit, 0, *padded)
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            if constant >= 8 and arguments is None:
                raise ArgumentReadError
            (accumulator,) = struct.unpack_from("=I", record, constant)
        elif operation == 0x54:
            accumulator &= constant
        elif operation == 0x06:
            return int(constant)
        elif operation == 0x05:
            at += constant
        elif operation == 0x15:
            at += if_true if accumulator == constant else if_false
        elif operation == 0x35:
            at += if_true if accumulator >= constant else if_false
        else:
            raise AssertionError(f"operation {operation:#x}")
