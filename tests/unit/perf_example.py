"""Made-up results of a full run of the performance suite, the same each time."""

from __future__ import annotations

import random
import re

from perf.cases import choose
from perf.results import Count, Failure, Results, Sample, SubjectInfo

#: How fast subjects are, compared with the first.
SPEEDS = {"direct": 1.0, "veth": 0.95, "ours": 0.6, "upstream": 0.3, "slirp4netns": 0.1}
#: Enough for every plot, and soon drawn.
FEW = r"start/plain|(tcp|udp)/in|tcp/out/(host/mtu1500|remote)|rr/in$|udp/out/1400|icmp.*v4"
NASTY = '<script>alert("&")</script>'


def example(rounds: int = 3, pattern: str = "") -> Results:
    """The cases of the set `full` whose names match a regular expression."""
    rnd = random.Random(1)
    results = Results(
        "2026-01-01T00:00:00+0000",
        {"kernel": "6.18", "processor": NASTY, "processors": 2, "commit": "abcdef"},
        {"rounds": rounds, "seconds": 3},
        {name: SubjectInfo(name, "1.0") for name in SPEEDS},
    )
    for case in choose([], "full"):
        if not re.search(pattern, case.name):
            continue
        results.cases[case.name] = case.info()
        for subject, speed in SPEEDS.items():
            for number in range(1, rounds + 1):
                faster = speed * rnd.lognormvariate(0, 0.1)
                if case.primary == "rate":
                    values = {"rate": 13 * faster / (1 + case.rtt / 5)}
                elif case.primary == "p50":
                    tail = zip(("p50", "p90", "p99", "p999"), (1, 1.5, 3, 40), strict=True)
                    values = {name: 20 / faster * factor for name, factor in tail}
                else:
                    values = {case.primary: 100 / faster}
                results.samples.append(
                    Sample(case.name, subject, number, values, 0.5, 1.0, 100.0, 1000)
                )
            results.counts.append(Count(case.name, subject, "perf", 500, 50, 100.0, 1000))
    results.failures = [Failure("start/plain", "veth", 0, f"unsupported: {NASTY}")]
    return results
