"""Bulk UDP: as many datagrams as iperf3 can send, how many arrive, and what is lost.

There is no flow control: a sender that is faster than the path loses the difference, whatever the
path does.  What counts is what arrives.
"""

from __future__ import annotations

from typing import Any

from perf.cases.base import Case, Outcome, Work
from tests.system.kit.servers import iperf3, iperf3_server

#: Payload by name; `max` fits into one packet of MTU 65520 in both versions.
SIZES = {"64": 64, "1400": 1400, "8192": 8192, "max": 65472}


def received(total: dict[str, Any], size: int) -> Outcome:
    """What an iperf3 report says of datagrams of *size* bytes."""
    arrived = total["packets"] - total["lost_packets"]
    seconds = total["seconds"]
    return Outcome(
        {
            "rate": arrived * size * 8 / seconds / 1e9,
            "loss": total["lost_percent"],
            "packets": arrived / seconds / 1000,
        },
        mib=arrived * size / 2**20,
        exchanges=arrived,
    )


def datagrams(work: Work, size: int, reverse: bool) -> Outcome:
    """One iperf3 run."""
    route = work.route
    iperf3_server(route.server, route.bind, route.port)
    words = ["-u", "-b", "0", "-l", str(size), *(["-R"] if reverse else [])]
    with work.meter:
        end = iperf3(route.client, route.target, route.port, *words, seconds=work.settings.seconds)
    return received(end["sum"], size)


def _case(path: str, way: str, route: str, name: str, version: int, sets: set[str]) -> Case:
    size = SIZES[name]
    return Case(
        f"{path}/udp/{way}/{name}" + (f"/v{version}" if path == "tap" else ""),
        f"UDP {way}, {size} bytes" + (f", IPv{version}" if path == "tap" else ", on loopback"),
        "rate",
        lambda work: datagrams(work, size, reverse=way == "in" and path == "tap"),
        route=route,
        version=version,
        sets=frozenset(sets),
        axes={"way": way, "size": size},
    )


CASES = [
    *(
        _case(
            "splice", "in", "loopback-in", name, 4, {"full"} if name in ("1400", "max") else set()
        )
        for name in SIZES
    ),
    *(
        _case(
            "tap",
            way,
            "host",
            name,
            version,
            ({"full"} if version == 4 else set())
            | ({"quick"} if version == 4 and name == "1400" else set()),
        )
        for way in ("out", "in")
        for name in SIZES
        for version in (4, 6)
    ),
]
