"""Profiles: the groups of calls that a mode is allowed, as a filter and as text."""

from __future__ import annotations

from passt.kernel.seccomp import groups
from passt.syscalls import seccomp
from passt.syscalls.numbers import NUMBERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from passt.kernel.seccomp.groups import Call, Group
    from passt.syscalls.seccomp import Condition, Machine

PROFILES: dict[str, tuple[Group, ...]] = {
    "pasta": (
        groups.LOOP,
        groups.TRAFFIC,
        groups.SOCKETS,
        groups.FILES,
        groups.INTERPRETER,
        groups.NAMESPACE,
    ),
    "passt": (
        groups.LOOP,
        groups.TRAFFIC,
        groups.SOCKETS,
        groups.FILES,
        groups.INTERPRETER,
        groups.MACHINE,
    ),
}


def profile(mode: str, directory: int = -1, *, accelerated: bool = False) -> tuple[Group, ...]:
    """The groups of ``mode``; ``directory`` as of :func:`.groups.lookup`, −1 for none."""
    chosen = PROFILES[mode]
    if directory >= 0:
        chosen = (*chosen, groups.lookup(directory))
    if accelerated:
        chosen = (*chosen, groups.ACCELERATION)
    return chosen


def calls_on(machine: Machine, profile: Iterable[Group]) -> list[tuple[int, Call]]:
    """The calls of ``profile`` that ``machine`` has, with their numbers there, by name."""
    found = []
    for group in profile:
        for call in group.calls:
            number = NUMBERS[call.name][machine.column]
            if number is not None:
                found.append((number, call))
    return sorted(found, key=lambda item: item[1].name)


def program(
    machine: Machine, profile: Iterable[Group], otherwise: int = seccomp.KILL_PROCESS
) -> bytes:
    """The filter for ``profile`` on ``machine``."""
    allowed: dict[int, Condition] = {}
    for number, call in calls_on(machine, profile):
        # In several groups: what any of them allows.
        before = allowed.get(number, call.condition)
        if before is call.condition:
            allowed[number] = before
        else:
            allowed[number] = (*before, *call.condition) if before and call.condition else ()
    return seccomp.assemble(machine, allowed, otherwise)


def confine(profile: Iterable[Group]) -> None:
    """Restrict this process, all of its threads, to ``profile`` for good; OSError."""
    machine = seccomp.machine()
    seccomp.install(machine, program(machine, profile))


def listing(mode: str) -> str:
    """What ``--print-seccomp`` prints: a call per line, with its conditions."""
    machine = seccomp.machine()
    calls = calls_on(machine, profile(mode))
    lines = [f"# {mode} on {machine.name}: {len(calls)} system calls"]
    lines += [f"{call.name}  {call.limits}".rstrip() for _, call in calls]
    return "\n".join(lines) + "\n"
