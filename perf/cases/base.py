"""What a case is, and what it gets to measure with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from perf.results import CaseInfo, Fact
from perf.sampling import Meter
from perf.subjects import Instance, Route, Subject
from tests.system.kit.topology import Topology


@dataclass(frozen=True)
class Settings:
    """How long and how often."""

    rounds: int = 5
    seconds: int = 3  # of each transfer
    warm_up: int = 0  # seconds of each transfer that do not count, before it
    exchanges: int = 3000  # of each measurement of latency
    counting: bool = True  # count system calls, in a round of its own


@dataclass(frozen=True)
class Outcome:
    """What a measurement found."""

    values: dict[str, float]
    mib: float = 0.0
    exchanges: int = 0


@dataclass
class Work:
    """One measurement to make: of *case*, with a running *instance* (None if it starts its own)."""

    case: Case
    subject: Subject
    network: Topology
    settings: Settings
    meter: Meter
    instance: Instance | None = None

    @property
    def running(self) -> Instance:
        """The instance."""
        assert self.instance
        return self.instance

    @property
    def route(self) -> Route:
        """Both ends of the case's route."""
        return self.running.route(self.case.route, self.case.version)


@dataclass(frozen=True)
class Case:
    """One measurement, for all subjects alike."""

    name: str  # path/protocol/…
    title: str
    primary: str  # the metric that is compared
    measure: Callable[[Work], Outcome]
    route: str = "host"
    version: int = 4
    mtu: int = 65520
    rtt: int = 0  # ms between host and remote
    loss: float = 0.0  # %, each way
    sets: frozenset[str] = frozenset()
    axes: Mapping[str, Fact] = field(default_factory=dict)
    standing: bool = True  # measured on a running instance
    counted: bool = True  # system calls say something
    seconds: Callable[[Settings], float] = lambda settings: settings.seconds + settings.warm_up
    only: frozenset[str] = frozenset()  # subjects that it makes sense for; empty: all

    @property
    def group(self) -> str:
        """The first two parts of the name."""
        return "/".join(self.name.split("/")[:2])

    def info(self) -> CaseInfo:
        """What results remember."""
        return CaseInfo(self.title, self.group, self.primary, dict(self.axes))
