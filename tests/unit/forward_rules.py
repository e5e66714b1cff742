"""Rules for tests of forwarding, in short, and what is logged meanwhile."""

from __future__ import annotations

import pytest

from passt.userspace import log
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SPLICE,
    Rule,
    RuleTable,
)
from tests.unit.forward_world import World

T, U = IPPROTO_TCP, IPPROTO_UDP
LOCALHOST = bytes((127, 0, 0, 1))


def rule(
    first: int,
    last: int = 0,
    to: int = 0,
    protocol: int = T,
    address: bytes | None = None,
    ifname: str = "",
    flags: int = 0,
) -> Rule:
    return Rule(protocol, first, last or first, to or first, address, ifname, None, flags)


def auto(first: int = 1, last: int = 65535, protocol: int = T, to: int = 0) -> Rule:
    return rule(first, last, to, protocol, flags=AUTO | BEST_EFFORT)


def tables(world: World, inbound: list[Rule], outbound: list[Rule]) -> list[RuleTable]:
    made = []
    for pif, rules in ((HOST, inbound), (SPLICE, outbound)):
        table = RuleTable(pif, world.config.rule_caps)
        table.extend(rules)
        made.append(table)
    return made


def errors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as an error from now on."""
    lines: list[str] = []

    def limited(_key: object, level: int, msg: str, *args: object) -> None:
        assert level == log.ERR
        lines.append(msg % args)

    monkeypatch.setattr(log, "limited", limited)
    return lines
