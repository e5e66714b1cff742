"""Inputs that are programs: a list of steps, each an operation and its operand.

A step is one byte of operation, two of length, and so many of operand.  Any bytes are a
program: the operation is taken modulo the number that there are, a length beyond the end is cut,
and what follows the last of :data:`MAX_STEPS` is ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from random import Random

Step = tuple[int, bytes]

MAX_STEPS = 80

_HEAD = struct.Struct("!BH")


def decode(data: bytes, operations: int) -> list[Step]:
    """The steps of a program."""
    steps: list[Step] = []
    at = 0
    while at + _HEAD.size <= len(data) and len(steps) < MAX_STEPS:
        operation, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        steps.append((operation % operations, data[at : at + size]))
        at += size
    return steps


def encode(steps: Iterable[Step]) -> bytes:
    """The program of ``steps``."""
    return b"".join(_HEAD.pack(operation, len(operand)) + operand for operation, operand in steps)


def mutate(
    data: bytes,
    rnd: Random,
    operations: int,
    change: Callable[[Step, Random], Step],
    fresh: Callable[[Random], Step],
) -> bytes:
    """The program ``data`` with steps changed, added, left out, repeated or exchanged.

    ``change(step, rnd)`` makes another step of one, ``fresh(rnd)`` a new one.
    """
    steps = decode(data, operations)
    for _ in range(1 << rnd.randrange(3)):
        kind = rnd.randrange(8)
        if not steps or kind == 0:
            steps.insert(rnd.randint(0, len(steps)), fresh(rnd))
            continue
        at = rnd.randrange(len(steps))
        if kind == 1:
            del steps[at]
        elif kind == 2:
            steps.insert(rnd.randint(0, len(steps)), steps[at])
        elif kind == 3:
            other = rnd.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        else:
            steps[at] = change(steps[at], rnd)
    return encode(steps)
