"""Carries a run out: A B A B, not A A B B.

For each round, for each case, one subject after the other.  Round 0 warms up: all once, in the
shortest time, and nothing of it is kept.  After the last round each case is measured briefly once
more for each subject while its system calls are counted, which costs time, so no other figure of
that is kept.  A measurement that fails is noted with its reason, and the run goes on.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Sequence

from perf.cases.base import Case, Outcome, Settings, Work
from perf.facts import collect, interface_offloads
from perf.lab import TREE, Lab
from perf.progress import Progress
from perf.results import Count, Failure, Results, Sample, SubjectInfo
from perf.sampling import Counter, Meter, counting_tool
from perf.subjects import Subject, UnsupportedError
from tests.system.kit.topology import Topology

#: What may go wrong with a measurement without being wrong with the suite.
FAILURES = (
    AssertionError,
    OSError,
    KeyError,
    ValueError,
    subprocess.SubprocessError,
    RuntimeError,
)

#: Seconds that it takes to start and end an instance and the load.
OVERHEAD = 0.8


def estimate(cases: Sequence[Case], subjects: int, settings: Settings) -> float:
    """Seconds that a run takes, more or less."""
    total = 0.0
    brief = short(settings)
    for case in cases:
        count = min(subjects, len(case.only) or subjects)
        each = settings.rounds * (case.seconds(settings) + OVERHEAD)
        each += case.seconds(brief) + OVERHEAD
        if settings.counting and case.counted:
            each += case.seconds(brief) + OVERHEAD
        total += count * each
    return total


def brief(text: str, limit: int = 2000) -> str:
    """The beginning and the end of a long text: a traceback says at its end what it is about."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n…\n{text[-limit // 2 :]}"


def short(settings: Settings) -> Settings:
    """The same for a measurement that need not be exact."""
    return dataclasses.replace(
        settings, seconds=1, warm_up=0, exchanges=min(300, settings.exchanges)
    )


class Run:
    """One run; :attr:`results` grow."""

    def __init__(
        self,
        lab: Lab,
        subjects: Sequence[Subject],
        cases: Sequence[Case],
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.lab = lab
        self.subjects = subjects
        self.cases = cases
        self.settings = settings
        self.progress = progress
        self.results = Results(
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            facts=collect(TREE),
            settings=dict(dataclasses.asdict(settings)),
            subjects={s.name: SubjectInfo(s.command, s.version) for s in subjects},
            cases={case.name: case.info() for case in cases},
        )
        self._hopeless: set[tuple[str, str]] = set()
        self._bare = {each.name for each in subjects if not each.process}
        self._round = 0

    def all(self) -> Results:
        """Make all rounds."""
        pairs = self.pairs()
        counted = 0
        if self._can_count():
            counted = sum(case.counted and each.name not in self._bare for case, each in pairs)
        self.progress.start(len(pairs) * (self.settings.rounds + 1) + counted, self.estimate())
        self.warm_up()
        for _ in range(self.settings.rounds):
            self.round(pairs)
        if counted:
            self.count()
        self._facts()
        return self.results

    def warm_up(self) -> None:
        """Everything once; learn what is not supported."""
        for case, subject in self.pairs():
            self.progress.step(f"warm-up: {case.name}, {subject.name}")
            self._measure(case, subject, short(self.settings), Meter)

    def round(self, pairs: Sequence[tuple[Case, Subject]] | None = None) -> None:
        """One round, of all or of some."""
        self._round += 1
        for case, subject in self.pairs() if pairs is None else pairs:
            self.progress.step(f"round {self._round}: {case.name}, {subject.name}")
            found = self._measure(case, subject, self.settings, Meter)
            if found is None:
                continue
            outcome, meter = found
            sample = Sample(
                case.name,
                subject.name,
                self._round,
                outcome.values,
                meter.cpu,
                meter.elapsed,
                outcome.mib,
                outcome.exchanges,
            )
            self.results.samples.append(sample)

    def count(self) -> None:
        """Count system calls of all subjects that are processes."""
        for case, subject in self.pairs():
            if not case.counted or subject.name in self._bare:
                continue
            self.progress.step(f"system calls: {case.name}, {subject.name}")
            found = self._measure(case, subject, short(self.settings), Counter)
            if found is None:
                continue
            outcome, meter = found
            if isinstance(meter, Counter):
                count = Count(
                    case.name,
                    subject.name,
                    meter.tool,
                    meter.calls,
                    meter.switches,
                    outcome.mib,
                    outcome.exchanges,
                )
                self.results.counts.append(count)

    def estimate(self) -> float:
        """Seconds that all of it takes, more or less."""
        return estimate(self.cases, len(self.subjects), self.settings)

    def pairs(self) -> list[tuple[Case, Subject]]:
        """What is measured in a round, in this order."""
        return [
            (case, subject)
            for case in self.cases
            for subject in self.subjects
            if not case.only or subject.name in case.only
        ]

    def _can_count(self) -> bool:
        return self.settings.counting and bool(counting_tool())

    def _measure(
        self,
        case: Case,
        subject: Subject,
        settings: Settings,
        make_meter: Callable[[Sequence[int]], Meter],
    ) -> tuple[Outcome, Meter] | None:
        """One measurement with an instance of its own; None if there is no result."""
        if (case.name, subject.name) in self._hopeless:
            return None
        reason = ""
        try:
            network = self.lab.network(case.rtt, case.loss)
            before = network.processes.running
            try:
                return _measure(case, subject, network, settings, make_meter)
            finally:
                network.processes.stop_all(keep=before)
        except UnsupportedError as error:
            self._hopeless.add((case.name, subject.name))
            reason = f"unsupported: {error}"
        except FAILURES as error:
            reason = str(error) or type(error).__name__
        self.results.failures.append(Failure(case.name, subject.name, self._round, brief(reason)))
        self.progress.note(f"failed: {case.name}, {subject.name}: {reason[:300]}")
        return None

    def _facts(self) -> None:
        """What can only be known with networks and instances: offloads, and the load at the end."""
        facts = self.results.facts
        facts |= self.lab.facts()
        network = self.lab.network()
        facts["offloads: veth"] = interface_offloads(network.host, "eth0")
        for subject in self.subjects:
            try:
                instance = subject.start(network, 65520)
            except FAILURES:
                continue
            try:
                interface = instance.offloads_of()
                if interface:
                    facts[f"offloads: {subject.name}"] = interface_offloads(*interface)
            finally:
                instance.close()
        facts["load average at end"] = round(os.getloadavg()[0], 2)


def _measure(
    case: Case,
    subject: Subject,
    network: Topology,
    settings: Settings,
    make_meter: Callable[[Sequence[int]], Meter],
) -> tuple[Outcome, Meter]:
    """One measurement with an instance of its own."""
    if not case.standing:
        work = Work(case, subject, network, settings, Meter([]))
        return case.measure(work), work.meter
    instance = subject.start(network, case.mtu)
    running = network.processes.running
    try:
        meter = make_meter(instance.pids) if instance.pids else Meter([])
        work = Work(case, subject, network, settings, meter, instance)
        return case.measure(work), work.meter
    finally:
        network.processes.stop_all(keep=running)
        instance.close()
