"""What acceleration would be had here, and why: ``pasta --accel-status``.

Everything is tried, also what would not be needed any more, and undone.
"""

from __future__ import annotations

import os
import time

from passt.kernel.ebpf import acquire, bytecode, kernels, lookup, pins, tokens
from passt.kernel.ebpf.probe import ProbeError, probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.maps import MapSet


def report(*, compile_first: bool) -> tuple[str, bool]:
    """Lines for people, with newlines, and whether there is acceleration."""
    release = os.uname().release
    rows = [
        ("kernel", kernels.objection(release) or f"{release}, no objection"),
        ("program", _program(compile_first=compile_first)),
        ("own privileges", _own(compile_first=compile_first)),
        ("BPF token", _delegated()),
        ("prepared maps", _prepared()),
    ]
    rows.append(("large ranges", _ranges(compile_first=compile_first)))
    try:
        maps, how = acquire.acquire(compile_first=compile_first)
        maps.close()
        rows.append(("--accel=ebpf", f"available: {how}"))
        available = True
    except acquire.UnavailableError as why:
        rows.append(("--accel=ebpf", f"not available: {why}"))
        available = False
    return "".join(f"{name + ':':16}{text}\n" for name, text in rows), available


def _program(*, compile_first: bool) -> str:
    if compile_first:
        return "to be compiled"
    try:
        return f"as shipped, {len(bytecode.shipped()) // 8} instructions"
    except bytecode.BytecodeError as why:
        return f"to be compiled: {why}"


def _own(*, compile_first: bool) -> str:
    try:
        return _tried(acquire.own(compile_first=compile_first)[0])
    except PermissionError:
        return "do not suffice: CAP_BPF and CAP_NET_ADMIN of the initial user namespace"
    except acquire.UnavailableError as why:
        return str(why)
    except OSError as error:
        return f"kernel refuses: {error.strerror}"


def _delegated() -> str:
    try:
        return _tried(acquire.delegated()[0], "suffices")
    except (tokens.NoTokenError, acquire.UnavailableError) as why:
        return f"none: {why}"
    except OSError as error:
        return f"does not suffice: {error.strerror}"


def _prepared() -> str:
    try:
        return pins.describe(os.geteuid())
    except OSError as error:
        return f"fail: {error.strerror}"


def _ranges(*, compile_first: bool) -> str:
    """Whether there would be one socket for many ports."""
    try:
        ports, how = lookup.acquire(compile_first=compile_first)
    except acquire.UnavailableError as why:
        return f"a socket for each port: {why}"
    ports.close()
    return f"one socket, {how}"


def _tried(maps: MapSet, verb: str = "suffice") -> str:
    """What a trial with ``maps`` says, which are closed."""
    started = time.monotonic()
    try:
        probe(maps)
    except ProbeError as error:
        return f"{verb}, but the trial failed: {error}"
    finally:
        maps.close()
    return f"{verb}, and the trial succeeded ({(time.monotonic() - started) * 1e3:.1f} ms)"
