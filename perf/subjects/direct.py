"""Nothing between guest and host but the kernel: loopback, or a veth pair."""

from __future__ import annotations

import time
from collections.abc import Sequence

from perf.subjects.base import PORT_HOST, Instance, Route, Subject
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.topology import Topology, veth_pair
from tests.system.kit.users import User

_GUEST = {4: "10.55.0.2", 6: "fd55::2"}  # behind the veth pair
_ROUTER = {4: "10.55.0.1", 6: "fd55::1"}


class DirectInstance(Instance):
    """The host itself instead of a guest."""

    def routes(self, version: int) -> dict[str, Route]:
        """Loopback, or the veth pair."""
        host, remote = self.network.host, self.network.remote
        here, there, lo = net.HOST[version], net.REMOTE[version], net.LOOPBACK[version]
        loopback = Route(host, lo, host, lo, PORT_HOST)
        return {
            "host": loopback,
            "remote": Route(host, there, remote, there, PORT_HOST),
            "inbound": Route(remote, here, host, here, PORT_HOST),
            "loopback-in": loopback,
            "loopback-out": loopback,
        }


class Direct(Subject):
    """No guest."""

    process = False

    def __init__(self, name: str, command: str, user: User) -> None:
        super().__init__(name, command)
        self.user = user

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        """Nothing to start."""
        return DirectInstance(network)

    def start_time(self, network: Topology, options: Sequence[str]) -> float:
        """What namespaces cost that nobody connects."""
        words = ["unshare", "--user", "--map-root-user", "--net", "true"]
        started = time.perf_counter()
        network.host.run(words, prefix=self.user.prefix)
        return time.perf_counter() - started


class VethInstance(Instance):
    """A guest behind a veth pair, and the host as its router."""

    def __init__(self, network: Topology, mtu: int) -> None:
        super().__init__(network)
        self.guest = network.namespace("guest")
        host, remote = network.host, network.remote
        try:
            veth_pair(host, "guest0", self.guest, "eth0", mtu)
            host.sysctl("net/ipv4/ip_forward", 1)
            host.sysctl("net/ipv6/conf/all/forwarding", 1)
            for version, bits, nodad in ((4, 24, ""), (6, 64, "nodad")):
                guest, router = _GUEST[version], _ROUTER[version]
                host.ip(f"addr add {router}/{bits} dev guest0 {nodad}\n")
                self.guest.ip(
                    f"addr add {guest}/{bits} dev eth0 {nodad}\nroute add default via {router}\n"
                )
                remote.ip(f"route replace {guest} via {net.HOST[version]}\n")
                self.guest.run(["ping", f"-{version}", "-c1", "-W2", router])
        except BaseException:
            network.remove(self.guest)
            raise

    def routes(self, version: int) -> dict[str, Route]:
        """By the veth pair; there is no way by loopback."""
        host, remote = self.network.host, self.network.remote
        guest, router, there = _GUEST[version], _ROUTER[version], net.REMOTE[version]
        return {
            "host": Route(self.guest, router, host, router, PORT_HOST),
            "remote": Route(self.guest, there, remote, there, PORT_HOST),
            "inbound": Route(remote, guest, self.guest, guest, PORT_HOST),
        }

    def offloads_of(self) -> tuple[Netns, str] | None:
        """The guest's end."""
        return self.guest, "eth0"

    def close(self) -> None:
        """Remove the guest, and so the pair."""
        self.network.remove(self.guest)


class Veth(Subject):
    """A guest that needs root, and no program."""

    process = False

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        """Make the guest."""
        return VethInstance(network, mtu)
