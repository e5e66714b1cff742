"""Nothing is imported, and no path is used, by what runs once the root is empty.

These tests read the source of all modules that a running pasta has loaded.  Imports inside of
functions, and calls that take a path, belong to start-up; the few there are stand in the lists
below, each with the reason why it cannot come late.  Any other is a mistake, or has to be added.
The system tests then show that it is so, by running under the filter.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TREE = Path(__file__).parents[2]

#: Functions that import.
IMPORTS = {
    "kernel.follow.start:_run": "the process that follows the host, before its own sandbox",
    "kernel.identity:nobody": "choosing an identity",
    "kernel.interpreter:start_anew_without_compiler": "the very first step",
    "kernel.netlink.worker:_run": "the netlink process, which ends during start-up",
    "userspace.cli.main:_run": "the first steps",
    "userspace.cli.main:_guest_descriptor": "the first steps",
    "userspace.cli.main:main": "log and fault, which are loaded by then",
    "userspace.config.values:runas": "reading options",
    "userspace.engine:__init__": "assembly",
    "userspace.engine:preload": "before assembly",
    "userspace.engine:_make_link": "assembly",
    "userspace.engine:_multicast": "assembly",
    "userspace.engine:_neighbours": "assembly",
    "userspace.services.services:__init__": "assembly",
    "userspace.splice.tcp:__init__": "assembly",
    "userspace.launch:assemble": "assembly",
    "userspace.startup:_open_namespaces": "opened with the caller's identity",
    "userspace.startup:_watch": "opened with the caller's identity",
    "userspace.startup:follow_host": "start-up",
    "userspace.startup:_open_gates": "opened with the caller's identity",
    "userspace.startup:open_acceleration": "opened with the caller's identity",
    "userspace.startup:open_files": "opened with the caller's identity",
    "userspace.startup:prepare": "the first step of start-up",
    "userspace.startup:launch": "the second half of start-up",
    "userspace.startup:show_summary": "start-up",
    "userspace.startup:take_identity": "the second half of start-up",
    "userspace.log:_open_syslog": "log.setup",
    "userspace.log:setup": "log.setup",
}

#: Functions that use a path, or ask a service that does.
PATHS = {
    "kernel.command:original_environment": "taken before the child is forked",
    "kernel.command:_try": "the child, which was forked before",
    "kernel.daemon:__init__": "opened with the caller's identity",
    "kernel.descriptors:close_inherited": "the first step",
    "kernel.descriptors:count_open": "assembly",
    "kernel.descriptors:fill_standard": "the second step",
    "kernel.identity:in_initial_userns": "choosing an identity",
    "kernel.identity:nobody": "choosing an identity",
    "kernel.interpreter:start_anew_without_compiler": "the very first step",
    "kernel.nswatch:__init__": "opened with the caller's identity",
    "kernel.nswatch:looks_gone": "relative to a descriptor, which the filter then allows",
    "kernel.sandbox:_empty_root": "the step itself",
    "kernel.spawn:_enter_namespaces": "the child, which was forked before",
    "kernel.target:open_namespace": "opened with the caller's identity",
    "kernel.userns:_hold": "the child that makes the user namespace",
    "kernel.userns:_write_maps": "before the user namespace is joined",
    "kernel.userns:is_ours": "before the user namespace is joined",
    "syscalls.closerange:_close_listed": "the child, which was forked before",
    "syscalls.tun:open_tun": "the netlink process, which ends during start-up",
    "userspace.config.resolve:_index": "settling the configuration",
    "userspace.config.resolvconf:read": "settling the configuration",
    "userspace.config.values:existing_ifname": "reading options",
    "userspace.config.values:runas": "reading options",
    "userspace.socketpath:_remove_dead": "opened with the caller's identity",
    "userspace.flow.budget:resident": "assembly",
    "userspace.forward.proclist:open_port_lists": "start-up",
    "userspace.logfile:__init__": "log.setup",
    "userspace.pcap:open": "assembly",
    "userspace.startup:open_files": "opened with the caller's identity",
    "userspace.startup:open_to_all": "start-up",
    "userspace.tcp.context:_sysctl": "assembly",
    "userspace.udp.base:_read_seconds": "assembly",
}

#: Calls of these modules, or builtins, that open or look at something by name.
OPENING = frozenset(
    [
        *("open", "listdir", "scandir", "stat", "lstat", "access", "readlink", "unlink"),
        *("rename", "mkdir", "chdir", "chroot", "execve", "execv", "getpwnam", "getpwuid"),
        *("getgrnam", "getaddrinfo", "gethostbyname", "getnameinfo"),
        *("if_nametoindex", "if_indextoname", "if_nameindex"),
    ]
)
MODULES = ("os", "socket", "pwd", "grp")

LOADED = """
import sys
import passt.userspace.launch, passt.userspace.cli.main, passt.userspace.logfile
import passt.userspace.control.server, passt.userspace.vm
import passt.userspace.config.summary, passt.kernel.target, passt.userspace.following
import passt.kernel.netlink.neighbours, passt.userspace.services.neighbours
import passt.userspace.multicast.sockets, passt.userspace.multicast.translator
print(*sorted(name for name in sys.modules if name.startswith("passt.")))
"""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of each module that a running pasta may have loaded."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOADED], cwd=TREE, capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert "passt.userspace.tcp.flow" in names
    for name in names:
        path = TREE / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        yield name.removeprefix("passt."), ast.parse(file.read_text(encoding="utf-8"))


def functions_with(wanted: Callable[[ast.AST], bool]) -> set[str]:
    """MODULE:FUNCTION of all functions in which *wanted* is true of some piece of syntax."""
    return {
        f"{name}:{function.name}"
        for name, module in modules()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef) and any(map(wanted, ast.walk(function)))
    }


def uses_a_path(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id in MODULES and function.attr in OPENING
    return isinstance(function, ast.Name) and function.id in OPENING


def test_imports_in_functions_are_those_of_start_up() -> None:
    assert functions_with(lambda node: isinstance(node, ast.Import | ast.ImportFrom)) == set(
        IMPORTS
    )


def test_paths_are_those_of_start_up() -> None:
    assert functions_with(uses_a_path) == set(PATHS)


def test_modules_for_running_are_loaded_with_start_up() -> None:
    """What main() imports at the end is there, whatever the options."""
    names = [name for name, _ in modules()]
    assert {"userspace.fault", "userspace.log", "kernel.seccomp.groups"} <= set(names)
