"""Subjects, instances, and the routes that these know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.system.kit.netns import Netns
from tests.system.kit.topology import Topology

PORT_IN = 5301  # forwarded to the guest
PORT_HOST = 5302  # of servers on the host and in *remote*
PORT_OUT = 5303  # of the guest's loopback, forwarded to the host
FORWARDED = ("-t", PORT_IN), ("-u", PORT_IN), ("-T", PORT_OUT), ("-U", PORT_OUT)

#: Ways of a connection: name and who calls whom.
ROUTES = {
    "host": "from the guest, through its interface, to a service on the host's loopback",
    "remote": "from the guest, through its interface, to a service elsewhere",
    "inbound": "from elsewhere, through the guest's interface, to a service in the guest",
    "loopback-in": "from the host's loopback to a service in the guest",
    "loopback-out": "from the guest's loopback to a service on the host's",
}


class UnsupportedError(Exception):
    """A subject cannot do what a case needs; the message says what."""


class Route(NamedTuple):
    """Both ends of a connection."""

    client: Netns
    target: str  # address to connect to
    server: Netns
    bind: str  # address to listen on
    port: int


class Instance:
    """A running subject."""

    def __init__(self, network: Topology) -> None:
        self.network = network

    def routes(self, version: int) -> dict[str, Route]:
        """The routes that exist for an IP version."""
        raise NotImplementedError

    def route(self, name: str, version: int) -> Route:
        """The route *name*; UnsupportedError."""
        try:
            return self.routes(version)[name]
        except KeyError:
            raise UnsupportedError(f"no route {name} for IPv{version}") from None

    @property
    def pids(self) -> list[int]:
        """The processes whose use of the processor and memory counts."""
        return []

    def offloads_of(self) -> tuple[Netns, str] | None:
        """The guest's interface, if there is one."""
        return None

    def close(self) -> None:
        """End the instance; AssertionError if it had ended before or reported a fault."""


class Subject:
    """A command line, by name."""

    process = True  # instances are processes

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self.command = command
        self.version = ""

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        """Start an instance with a guest's interface of *mtu*, and PORTs forwarded."""
        raise NotImplementedError

    def start_time(self, network: Topology, options: Sequence[str]) -> float:
        """Seconds that it takes to get a connected guest, and do nothing in it."""
        raise UnsupportedError("no command to start")
