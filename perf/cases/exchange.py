"""Latency: request and answer on a connection, whole connections, datagrams, echo requests."""

from __future__ import annotations

import json
import shutil
import subprocess

from perf.cases.base import Case, Outcome, Settings, Work
from perf.loads import EXCHANGE
from perf.metrics import PERCENTILES

SIZE = 64  # bytes each way

#: Verbs of the server and the client, and what share of the exchanges is made: some take longer.
KINDS = {
    "tcp/rr": ("serve", "ask", 1.0),
    "tcp/crr": ("serve-each", "connect", 0.25),
    "udp/rr": ("serve-udp", "ask-udp", 1.0),
}


def exchange(work: Work, kind: str) -> Outcome:
    """Exchanges between the ends of the route."""
    serve, ask, share = KINDS[kind]
    route = work.route
    count = max(20, int(work.settings.exchanges * share))
    serving = route.server.popen([*EXCHANGE, serve, route.bind, str(route.port)])
    route.server.wait_listening(route.port, "udp" if "udp" in serve else "tcp")
    words = [*EXCHANGE, ask, route.target, str(route.port), str(count), str(SIZE)]
    with work.meter:
        done = route.client.run(words, timeout=90)
    route.server.processes.stop(serving)
    return Outcome(json.loads(done.stdout), exchanges=count + count // 10)


def ping(work: Work) -> Outcome:
    """Echo requests, one after the other."""
    route, count = work.route, max(20, work.settings.exchanges // 4)
    words = [*EXCHANGE, "ping", route.target, "0", str(count), "56"]
    with work.meter:
        done = route.client.run(words, timeout=90)
    return Outcome(json.loads(done.stdout), exchanges=count + count // 10)


def sockperf(work: Work) -> Outcome:
    """The same as ``udp/rr`` by another program."""
    if not shutil.which("sockperf"):
        raise AssertionError("sockperf is not installed")
    route = work.route
    ends = ["--ip", route.bind, "--port", str(route.port)]
    quiet = subprocess.DEVNULL
    serving = route.server.popen(["sockperf", "server", *ends], stdout=quiet, stderr=quiet)
    route.server.wait_listening(route.port, "udp")
    words = ["sockperf", "ping-pong", *ends, "--msg-size", str(SIZE)]
    with work.meter:
        done = route.client.run([*words, "--time", str(work.settings.seconds), "--full-rtt"])
    route.server.processes.stop(serving)
    return Outcome(sockperf_percentiles(done.stdout))


def sockperf_percentiles(text: str) -> dict[str, float]:
    """The percentiles in what sockperf prints."""
    names = {"50.000": "p50", "90.000": "p90", "99.000": "p99", "99.900": "p999"}
    found = {}
    for line in text.splitlines():
        _, mark, rest = line.partition("percentile ")
        point, sign, value = rest.partition("=")
        if mark and sign and point.strip() in names:
            found[names[point.strip()]] = float(value)
    ordered = {name: found[name] for name in PERCENTILES if name in found}
    if "p50" not in ordered:
        raise AssertionError(f"sockperf prints no percentiles: {text[-300:]}")
    return ordered


def _seconds(settings: Settings) -> float:
    return 0.5 + settings.exchanges / 8000


def _case(path: str, kind: str, route: str, version: int, *sets: str) -> Case:
    suffix = f"/{route}/v{version}" if path == "tap" else "/" + route.removeprefix("loopback-")
    where = f", {route}, IPv{version}" if path == "tap" else f", on loopback, {suffix[1:]}"
    text = {
        "tcp/rr": "TCP request and answer",
        "tcp/crr": "TCP connection with one exchange",
        "udp/rr": "UDP request and answer",
    }[kind]
    return Case(
        f"{path}/{kind}{suffix}",
        text + where,
        "p50",
        lambda work: exchange(work, kind),
        route=route,
        version=version,
        sets=frozenset(sets),
        axes={"kind": kind},
        seconds=_seconds,
    )


CASES = [
    _case("splice", "tcp/rr", "loopback-in", 4, "full", "quick", "ci"),
    _case("splice", "tcp/rr", "loopback-out", 4),
    _case("splice", "tcp/crr", "loopback-in", 4, "full", "quick", "ci"),
    _case("splice", "udp/rr", "loopback-in", 4, "full", "quick"),
    *(
        _case("tap", kind, route, version, *(["full"] if version == 4 or kind == "tcp/rr" else []))
        for kind in KINDS
        for route in ("remote", "inbound")
        for version in (4, 6)
    ),
    _case("tap", "tcp/rr", "host", 4, "full", "quick", "ci"),
    _case("tap", "tcp/crr", "host", 4, "full", "quick", "ci"),
    _case("tap", "udp/rr", "host", 4, "full", "quick", "ci"),
    *(
        Case(
            f"tap/icmp/rr/remote/v{version}",
            f"echo request, IPv{version}",
            "p50",
            ping,
            route="remote",
            version=version,
            sets=frozenset({"full", "quick"} if version == 4 else {"full"}),
            axes={"kind": "icmp/rr"},
            seconds=_seconds,
        )
        for version in (4, 6)
    ),
    Case(
        "loads/udp/rr/own",
        "the load itself: UDP request and answer",
        "p50",
        lambda work: exchange(work, "udp/rr"),
        sets=frozenset({"full", "loads"}),
        seconds=_seconds,
        only=frozenset({"direct"}),
    ),
    Case(
        "loads/udp/rr/sockperf",
        "the same by sockperf",
        "p50",
        sockperf,
        sets=frozenset({"loads"}),
        only=frozenset({"direct"}),
    ),
]
