"""Every message that guest, network or a client can provoke is limited: read from the source.

Messages that are not limited stand in a list, each with the reason why it cannot be repeated at
will.  Any other is a mistake, or has to be added.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from passt.userspace import log

TREE = Path(__file__).parents[2]

#: Functions that print without limit.
UNLIMITED = {
    "userspace/cli/main.py:_run": "start",
    "userspace/cli/pesto.py": "the client of the control socket, one run",
    "userspace/config/dns.py:warn": "start",
    "userspace/config/parse.py:_apply": "reading options",
    "userspace/config/ports.py": "reading options",
    "userspace/config/summary.py:print_summary": "start",
    "userspace/link/guest.py:_gone": "with --one-off, when it is limited by ending",
    "userspace/vm.py": "start",
    "userspace/config/summary.py:warn_mtu": "start",
    "userspace/config/usage.py:report": "reading options",
    "userspace/engine.py:_capture": "the start of a capture, and its end",
    "userspace/engine.py:ended": "the end of a capture",
    "userspace/engine.py:_link_died": "the end",
    "userspace/engine.py:_neighbours": "start",
    "userspace/engine.py:close": "the end",
    "userspace/control/server.py:announce": "a limit of its own, of lists",
    "userspace/following.py:_on_event": "the end of the process that follows the host",
    "userspace/forward/gates.py": "start",
    "userspace/forward/proclist.py:open_port_lists": "start",
    "userspace/launch.py": "start, and the end of the namespace",
    "userspace/startup.py": "start",
}

#: Keys that are not constants: how many there can be.
FORMATTED = {"fragment{version}": 2, "drop{reason}": "as many as there are reasons for drops"}

PRINTING = {"err", "warn", "info", "emit"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Place (FILE:FUNCTION), name of the function in log, and the call."""
    for folder in ("userspace", "kernel", "syscalls"):
        for path in sorted((TREE / folder).rglob("*.py")):
            module = ast.parse(path.read_text(encoding="utf-8"))
            name = str(path.relative_to(TREE))
            if name == "userspace/log.py":
                continue
            for node, function in walk(module, ""):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                target = node.func.value
                if isinstance(target, ast.Name) and target.id == "log":
                    yield f"{name}:{function}", node.func.attr, node


def walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """All nodes with the name of the innermost function that they are in."""
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef) else function
        yield child, inner
        yield from walk(child, inner)


def key_of(call: ast.Call) -> str:
    """The key of a limited message as in the source."""
    key = call.args[0]
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    assert isinstance(key, ast.JoinedStr), ast.unparse(call)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
        for part in key.values
    )


LIMITED = [(place, call) for place, name, call in calls() if name == "limited"]


def test_what_is_not_limited_cannot_be_repeated() -> None:
    places = {place for place, name, _ in calls() if name in PRINTING}
    unknown = {
        place
        for place in places
        if place not in UNLIMITED and place.partition(":")[0] not in UNLIMITED
    }
    assert not unknown
    files = {place.partition(":")[0] for place in places}
    assert not {entry for entry in UNLIMITED if entry not in places and entry not in files}


def test_keys_do_not_depend_on_input() -> None:
    """They are kept for good: there must be as many as there are places."""
    formatted = {key_of(call) for _, call in LIMITED if isinstance(call.args[0], ast.JoinedStr)}
    assert formatted == set(FORMATTED)


def test_keys_belong_to_one_place() -> None:
    """Or else one flood would hide another message."""
    texts: dict[str, set[str]] = {}
    for place, call in LIMITED:
        text = ast.unparse(call.args[2]) if len(call.args) > 2 else place
        texts.setdefault(key_of(call), set()).add(text)
    assert {key for key, different in texts.items() if len(different) > 1} == set()


def test_nothing_else_prints() -> None:
    """No print(), and standard error is written to by the log alone, once it runs."""
    found = Counter[str]()
    for folder in ("userspace", "kernel", "syscalls"):
        for path in sorted((TREE / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                text = ast.unparse(node)
                if text.startswith(("print(", "sys.stderr.", "sys.stdout.", "os.write(2,")):
                    found[str(path.relative_to(TREE))] += 1
    # The child that becomes the command, the parent of the daemon, what makes documents, and
    # programs of their own.
    allowed = {
        "kernel/command.py",
        "kernel/daemon.py",
        "kernel/ebpf/compile_bcc.py",
        "kernel/seccomp/document.py",
        "userspace/cli/accel.py",
        "userspace/config/manpage.py",
        "userspace/control/manpage.py",
    }
    assert set(found) <= allowed


@pytest.mark.parametrize("key", sorted({key_of(call) for _, call in LIMITED}))
def test_flood_of_each(
    key: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten thousand in ten seconds: as many lines as windows and bursts make."""
    now = 0
    monkeypatch.setattr(log, "_windows", {})
    monkeypatch.setattr(log, "monotonic_ns", lambda: now)
    for number in range(10000):
        now = number * 1_000_000
        log.limited(key, log.ERR, "message %d", number)
    lines = capfd.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 5 * (log.BURST + 2)
