"""Sets of maps for the ordinary user, as `passt-accel` makes them, for --accel=ebpf."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from passt.kernel.ebpf import pins
from passt.kernel.ebpf.acquire import load
from passt.syscalls import bpf
from tests.system.kit.users import User

COOKIE_SIZE = 8


@contextmanager
def sets(user: User, count: int) -> Iterator[None]:
    """Prepare *count* sets for *user*, instead of those that there are."""
    pins.unpin(user.uid)
    _make(user, count)
    try:
        yield
    finally:
        pins.unpin(user.uid)


@contextmanager
def nothing(user: User) -> Iterator[None]:
    """Prepare nothing for *user*, and what there was again in the end."""
    count = len(pins.sets(user.uid))
    pins.unpin(user.uid)
    try:
        yield
    finally:
        pins.unpin(user.uid)
        _make(user, count)


def _make(user: User, count: int) -> None:
    for number in range(count):
        fds, _ = load(compile_first=False)
        pins.pin(fds, user.uid, user.gid, number)
        for fd in fds:
            os.close(fd)


def sockets(uid: int) -> int:
    """Return how many sockets are in the user's maps."""
    total = 0
    for each in pins.sets(uid):
        fd = bpf.obj_get(f"{each.path}/ends")
        total += len(bpf.map_keys(fd, COOKIE_SIZE))
        os.close(fd)
    return total
