"""Bulk TCP: iperf3, by every way, MTU, version, number of flows, delay and loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perf.cases.base import Case, Outcome, Work
from perf.results import Fact
from tests.system.kit.servers import iperf3, iperf3_server

MTUS = (1280, 1500, 9000, 65520)


def received(end: Mapping[str, Any]) -> Outcome:
    """What an iperf3 report says of data received, both ways together with ``--bidir``."""
    parts = [end[name] for name in ("sum_received", "sum_received_bidir_reverse") if name in end]
    rate = sum(part["bits_per_second"] for part in parts) / 1e9
    return Outcome({"rate": rate}, mib=sum(part["bytes"] for part in parts) / 2**20)


def transfer(work: Work, *options: str) -> Outcome:
    """One iperf3 run from the client to the server of the route, as far as options say no other."""
    route, settings = work.route, work.settings
    # Windows must grow first where there is a delay.
    omit = max(settings.warm_up, 2 if work.case.rtt and settings.seconds > 1 else 0)
    words = [*options, *(["-O", str(omit)] if omit else [])]
    iperf3_server(route.server, route.bind, route.port)
    with work.meter:
        end = iperf3(
            route.client, route.target, route.port, *words, seconds=settings.seconds + omit
        )
    outcome = received(end)
    # The subject also worked for what was omitted.
    scale = (settings.seconds + omit) / settings.seconds
    return Outcome(outcome.values, outcome.mib * scale)


def _case(name: str, title: str, options: list[str], **rest: Any) -> Case:
    return Case(name, title, "rate", lambda work: transfer(work, *options), **rest)


def _tap(way: str, route: str, mtu: int, version: int, flows: int, **rest: Any) -> Case:
    rtt, loss = rest.get("rtt", 0), rest.get("loss", 0.0)
    name = f"tap/tcp/{way}/{route}/mtu{mtu}/v{version}/x{flows}"
    title = f"TCP {way}, {route}, MTU {mtu}, IPv{version}, {flows} flow" + "s" * (flows > 1)
    if rtt or loss:
        name += f"/rtt{rtt}/loss{loss:g}"
        title += f", RTT {rtt} ms, loss {loss:g} %"
    options = (["-R"] if way == "in" else []) + (["-P", str(flows)] if flows > 1 else [])
    axes: dict[str, Fact] = {"way": way, "mtu": mtu, "rtt": rtt, "loss": loss, "flows": flows}
    axes |= {"route": route, "version": version}
    sets = _sets(way, route, mtu, version, flows, rtt, loss)
    return _case(
        name, title, options, route=route, version=version, mtu=mtu, axes=axes, sets=sets, **rest
    )


def _sets(
    way: str, route: str, mtu: int, version: int, flows: int, rtt: int, loss: float
) -> frozenset[str]:
    """Which sets have a case of the matrix; `full` varies one thing at a time."""
    sets = set()
    plain = version == 4 and flows == 1
    if route == "host" and plain:
        sets.add("full")
        if mtu in (1500, 65520):
            sets |= {"quick"}
        if mtu == 1500:
            sets |= {"ci"}
    if mtu == 1500 and route == "host" and (version, flows) in ((6, 1), (4, 8)):
        sets.add("full")
    if mtu == 65520 and route == "remote" and plain:
        if not loss:
            sets.add("full")
        if rtt == 0 and not loss:
            sets.add("quick")
        if loss and rtt in (0, 10):
            sets.add("full")
    return frozenset(sets)


def _splice() -> list[Case]:
    cases = []
    for name, title, route, options, sets in (
        ("in", "host → guest", "loopback-in", [], {"quick", "ci"}),
        ("in/reverse", "guest → host, connected by the host", "loopback-in", ["-R"], set()),
        ("out", "guest → host", "loopback-out", [], {"quick"}),
        ("out/reverse", "host → guest, connected by the guest", "loopback-out", ["-R"], set()),
        ("in/bidir", "both ways at once", "loopback-in", ["--bidir"], set()),
        ("in/x8", "host → guest, 8 flows", "loopback-in", ["-P", "8"], set()),
    ):
        axes: dict[str, Fact] = {"way": name}
        cases.append(
            _case(
                f"splice/tcp/{name}",
                f"TCP on loopback, {title}",
                options,
                route=route,
                axes=axes,
                sets=frozenset({"full"} | sets),
            )
        )
    return cases


def _inbound() -> list[Case]:
    return [
        _case(
            f"tap/tcp/{way}/inbound/mtu{mtu}/v4/x1",
            f"TCP {way}, connected from elsewhere, MTU {mtu}, IPv4, 1 flow",
            options,
            route="inbound",
            mtu=mtu,
            axes={"way": way, "mtu": mtu, "route": "inbound", "version": 4, "flows": 1},
            sets=frozenset({"full"} if mtu == 65520 else ()),
        )
        for mtu in (1500, 65520)
        for way, options in (("in", []), ("out", ["-R"]))
    ]


def _matrix() -> list[Case]:
    cases = []
    for way in ("out", "in"):
        for mtu in MTUS:
            for version in (4, 6):
                for flows in (1, 8):
                    cases.append(_tap(way, "host", mtu, version, flows))
                    cases += [
                        _tap(way, "remote", mtu, version, flows, rtt=rtt, loss=loss)
                        for rtt in (0, 10, 50)
                        for loss in (0.0, 0.1)
                    ]
    return cases


CASES = [*_splice(), *_matrix(), *_inbound()]
