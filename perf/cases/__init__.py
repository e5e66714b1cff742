"""The measurements by name, and sets of them.

Names have parts: the path (``splice``: between loopback interfaces; ``tap``: through the guest's
interface), the protocol, the kind, and what varies.  Patterns are those of the shell: ``tap/tcp/*``
is all bulk TCP through the tap.

=========  ====================================================================================
``ci``     what a run of continuous integration can afford
``quick``  ten minutes for four subjects
``full``   the comparison of docs/performance.md
``loads``  whether our own programs that make traffic are fast enough
``all``    everything, which takes hours
=========  ====================================================================================
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from perf.cases import datagram, exchange, resource, stream
from perf.cases.base import Case

SETS = ("ci", "quick", "full", "loads", "all")
CASES = {
    case.name: case for case in (*resource.CASES, *stream.CASES, *exchange.CASES, *datagram.CASES)
}


class CaseError(Exception):
    """No case has such a name; the message says which."""


def choose(patterns: Sequence[str], set_name: str) -> list[Case]:
    """The cases that match any of *patterns*, or, without, those of a set; CaseError."""
    if not patterns:
        return [case for case in CASES.values() if set_name == "all" or set_name in case.sets]
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise CaseError(f"no case matches {pattern}")
    return [
        case
        for case in CASES.values()
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)
    ]
