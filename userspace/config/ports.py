"""Port forwarding specifiers (``-t``, ``-u``) and the rules they stand for.

A specifier is ``none``, or a list ``PORT[:TARGET]{,PORT[:TARGET]}`` of listening ports and,
where they differ, the ports of the guest that connections go to.  Each chunk becomes one
:class:`~passt.userspace.config.model.Rule` on the wildcard address of every enabled version.

``none`` only says that nothing is wanted: it is accepted before other specifiers of its
letter, and an error after one that asked for something.

A specifier is read completely before any of its rules is added, so that an error of form is
reported as such, and not as that of a rule to its left.
"""

from __future__ import annotations

from passt.userspace.config import values
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import IPPROTO_TCP, Rule
from passt.userspace.flow.nat import UNSPECIFIED4, UNSPECIFIED6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_RULES = 255


def rule_text(rule: Rule, v4: bool, v6: bool) -> str:
    """Return the display form of ``rule``, where ``v4`` and ``v6`` tell the enabled versions."""
    if rule.address is None and not (v4 and v6):
        wildcard = UNSPECIFIED4 if v4 else UNSPECIFIED6
        rule = Rule(rule.protocol, rule.first, rule.last, rule.to, wildcard, rule.ifname)
    return str(rule)


def parse_spec(spec: str) -> list[tuple[int, int]]:
    """Read a specifier into ``(listening port, target port)`` pairs; empty for ``none``.

    Ports are 0 to 65535 here: that port 0 cannot be forwarded is for :func:`add_rule` to
    say.  Raises UsageError for any other form.
    """
    if spec == "none":
        return []
    pairs = []
    for chunk in spec.split(","):
        first, colon, last = chunk.partition(":")
        listen = values.decimal(first)
        target = values.decimal(last) if colon else listen
        if listen is None or target is None or listen > 65535 or target > 65535:
            raise UsageError(f"Invalid port specifier '{spec}'")
        pairs.append((listen, target))
    return pairs


def add_rule(rules: list[Rule], new: Rule, v4: bool, v6: bool) -> None:
    """Append ``new`` to ``rules`` unless it is impossible or in conflict with one of them."""
    shown = rule_text(new, v4, v6)
    problem = ""
    if new.first == 0:
        problem = "Forwarding rule attempts to map from port 0"
    elif new.to == 0:
        problem = "Forwarding rule attempts to map to port 0"
    else:
        for old in rules:
            if old.protocol == new.protocol and old.first <= new.last and new.first <= old.last:
                other = rule_text(old, v4, v6)
                problem = f"Forwarding configuration conflict: {shown} versus {other}"
                break
        else:
            if len(rules) >= MAX_RULES:
                problem = f"Too many rules (maximum {MAX_RULES})"
    if problem:
        raise UsageError(f"{problem}\nUnable to add rule {shown}")
    rules.append(new)


def rules_from(
    specs: Iterable[tuple[str, int, str]],
    v4: bool,
    v6: bool,
    disabled: Iterable[int] = (),
) -> list[Rule]:
    """Turn ``(option, protocol, specifier)`` triples, in order, into one table of rules.

    ``option`` is the spelling for messages (``-t``).  Rules of a protocol in ``disabled``
    are errors, ``none`` is not.
    """
    rules: list[Rule] = []
    for option, protocol, spec in specs:
        pairs = parse_spec(spec)
        if not pairs and any(rule.protocol == protocol for rule in rules):
            raise UsageError(f"{option} none conflicts with previous options")
        for listen, target in pairs:
            new = Rule(protocol, listen, listen, target)
            if protocol in disabled:
                name = "TCP" if protocol == IPPROTO_TCP else "UDP"
                raise UsageError(
                    f"Can't add {name} forwarding rule, {name} not enabled\n"
                    f"Unable to add rule {rule_text(new, v4, v6)}"
                )
            add_rule(rules, new, v4, v6)
    return rules
