"""Programs with the command line of pasta: ours and upstream."""

from __future__ import annotations

import time
from collections.abc import Sequence

from perf.facts import first_line
from perf.subjects.base import FORWARDED, PORT_HOST, PORT_IN, PORT_OUT, Instance, Route, Subject
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, forwarding
from tests.system.kit.topology import Topology
from tests.system.kit.users import User


class PastaInstance(Instance):
    """A pasta and its namespace."""

    def __init__(self, network: Topology, pasta: Pasta) -> None:
        super().__init__(network)
        self.pasta = pasta

    def routes(self, version: int) -> dict[str, Route]:
        """All."""
        guest, host, remote = self.pasta.ns, self.network.host, self.network.remote
        here, there, lo = net.HOST[version], net.REMOTE[version], net.LOOPBACK[version]
        return {
            "host": Route(guest, net.GATEWAY[version], host, lo, PORT_HOST),
            "remote": Route(guest, there, remote, there, PORT_HOST),
            "inbound": Route(remote, here, guest, here, PORT_IN),
            "loopback-in": Route(host, lo, guest, here, PORT_IN),
            "loopback-out": Route(guest, lo, host, lo, PORT_OUT),
        }

    @property
    def pids(self) -> list[int]:
        """The process of pasta."""
        return [self.pasta.process.pid]

    def offloads_of(self) -> tuple[Netns, str] | None:
        """The tap device."""
        return self.pasta.ns_as_root, self.pasta.interface()

    def close(self) -> None:
        """End it."""
        self.pasta.close()


class PastaSubject(Subject):
    """Any program with pasta's command line."""

    def __init__(
        self, name: str, command: str, program: Program, options: Sequence[str], user: User
    ) -> None:
        super().__init__(name, command)
        self.program = program
        self.options = list(options)
        self.user = user
        self.version = first_line([*program.argv, "--version"])

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        """Start it, with a shell in its namespace."""
        words = ["--mtu", str(mtu)]
        words += [word for flag, port in FORWARDED for word in (flag, str(port))]
        pasta = Pasta(self.program, network.host, self.user, *words, *self.options, *options)
        return PastaInstance(network, pasta)

    def start_time(self, network: Topology, options: Sequence[str]) -> float:
        """From its start to the end of `true` and of itself."""
        words = [*self.program.argv, *forwarding([*self.options, *options])]
        started = time.perf_counter()
        network.host.run([*words, "--config-net", "--", "true"], prefix=self.user.prefix)
        return time.perf_counter() - started
