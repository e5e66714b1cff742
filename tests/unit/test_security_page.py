"""The tests that docs/security.md names exist, and numbers in it are those of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from passt.userspace.config.options import Options
from passt.userspace.flow import budget, pending, table
from passt.userspace.icmp import translator
from passt.userspace.tcp import connects, const
from passt.userspace.udp import base

TREE = Path(__file__).parents[2]
PAGE = (TREE / "docs" / "security.md").read_text(encoding="utf-8")


def named() -> list[tuple[str, str]]:
    """Files and functions, the latter empty where the whole file is meant."""
    return re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)


def test_tests_that_are_named_exist() -> None:
    assert len(named()) > 60
    for path, function in named():
        module = ast.parse((TREE / path).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
        assert any(name.startswith("test_") for name in functions), path
        assert not function or function in functions, f"{path}::{function}"


def test_links_lead_somewhere() -> None:
    for page in (TREE / "SECURITY.md", TREE / "docs" / "security.md"):
        for target in re.findall(r"\]\(([\w./]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target


def test_numbers() -> None:
    options = Options("pasta", "pasta")
    for number in (
        f"| flows | {table.MAX_FLOWS} |",
        f"the hard limit, less {table.RESERVE} or a quarter",
        f"| the guest's connections without answer | {connects.LIMIT},",
        f"{connects.REPEATED} more for SYNs that are repeated",
        f"| connections that the guest does not answer | {const.OFFERS} |",
        f"| UDP flows without answer | {base.UNANSWERED} ",
        f"| pings without answer | {translator.UNANSWERED} |",
        f"`--max-memory` ({options.max_memory >> 20} MiB)",
        f"a quarter of that, {budget.MAX_DATA >> 20} MiB at most",
        "`--log-size` (1 MiB)",
        f"one attempt in {const.ACCEPT_PAUSE} s",
    ):
        assert number in PAGE, number
    assert options.log_size == 1 << 20
    assert table.FAIR == 8
    assert pending.GRACE == 1.0
