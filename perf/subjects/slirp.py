"""slirp4netns(1), as rootless containers start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from perf.facts import first_line
from perf.lab import Lab
from perf.subjects.base import PORT_HOST, PORT_IN, Instance, Route, Subject, UnsupportedError
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

_SLIRP_HOST = {4: "10.0.2.2", 6: "fd00::2"}
_SLIRP_GUEST = "10.0.2.100"


class SlirpInstance(Instance):
    """A namespace, and slirp4netns that serves it."""

    def __init__(self, network: Topology, argv: list[str], user: User, mtu: int, api: str) -> None:
        super().__init__(network)
        host, self._api = network.host, api
        holder = ["unshare", "--user", "--map-root-user", "--net"]
        self.holder = host.popen(
            [*holder, "sh", "-c", "echo ready; read -r line"],
            prefix=user.prefix,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "ready\n", "no namespace for slirp4netns"
        pid = self.holder.pid
        reading, writing = os.pipe()
        words = ["--configure", "-6", f"--mtu={mtu}", f"--api-socket={api}"]
        self.process = host.popen(
            [*argv, *words, f"--ready-fd={writing}", str(pid), "tap0"],
            prefix=user.prefix,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            cwd="/",
        )
        os.close(writing)
        ready = os.read(reading, 1)
        os.close(reading)
        assert ready == b"1", "slirp4netns does not start"
        enter = ["nsenter", f"--target={pid}", "--user", "--preserve-credentials", "--net", "--"]
        path = f"/proc/{pid}/ns/net"
        self.guest = Netns("slirp", path, host.processes, prefix=[*user.prefix, *enter])
        self.guest_as_root = Netns("slirp-root", path, host.processes)
        for protocol in ("tcp", "udp"):
            self._forward(protocol)

    def _forward(self, protocol: str) -> None:
        request = {
            "execute": "add_hostfwd",
            "arguments": {
                "proto": protocol,
                "host_addr": "0.0.0.0",
                "host_port": PORT_IN,
                "guest_addr": _SLIRP_GUEST,
                "guest_port": PORT_IN,
            },
        }
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(self._api)
            sock.sendall(json.dumps(request).encode())
            sock.shutdown(socket.SHUT_WR)
            answer = json.loads(sock.recv(65536))
        assert "error" not in answer, f"slirp4netns: {answer}"

    def _wait_for_router(self) -> None:
        """Its Router Advertisement makes the guest's default route."""

        def has_route() -> bool:
            return "default" in self.guest.run(["ip", "-6", "route"]).stdout

        try:
            wait_for(has_route, 5.0)
        except AssertionError:
            raise UnsupportedError("no default route for IPv6") from None

    def routes(self, version: int) -> dict[str, Route]:
        """No bypass from the guest's loopback; IPv6 is not forwarded to the guest."""
        if version == 6:
            self._wait_for_router()
        host, remote = self.network.host, self.network.remote
        there, lo = net.REMOTE[version], net.LOOPBACK[version]
        found = {
            "host": Route(self.guest, _SLIRP_HOST[version], host, lo, PORT_HOST),
            "remote": Route(self.guest, there, remote, there, PORT_HOST),
        }
        if version == 4:
            found["inbound"] = Route(remote, net.HOST[4], self.guest, _SLIRP_GUEST, PORT_IN)
            found["loopback-in"] = Route(host, lo, self.guest, _SLIRP_GUEST, PORT_IN)
        return found

    @property
    def pids(self) -> list[int]:
        """The process of slirp4netns."""
        return [self.process.pid]

    def offloads_of(self) -> tuple[Netns, str] | None:
        """The tap device."""
        return self.guest_as_root, "tap0"

    def close(self) -> None:
        """End both processes."""
        ended = self.process.poll()
        self.network.processes.stop(self.process)
        self.network.processes.stop(self.holder)
        if os.path.exists(self._api):
            os.unlink(self._api)
        if ended is not None:
            raise AssertionError(f"slirp4netns ended early, status {ended}")


class Slirp(Subject):
    """slirp4netns, as rootless containers start it."""

    def __init__(self, name: str, command: str, argv: list[str], lab: Lab) -> None:
        super().__init__(name, command)
        self.argv = argv
        self.user = lab.user
        self._api = os.path.join(lab.writable, f"{name}.sock")
        self.version = first_line([*argv, "--version"])

    def start(self, network: Topology, mtu: int, options: Sequence[str] = ()) -> Instance:
        """Start it on a namespace."""
        if options:
            raise UnsupportedError("has no such options")
        return SlirpInstance(network, self.argv, self.user, mtu, self._api)

    def start_time(self, network: Topology, options: Sequence[str]) -> float:
        """Until the namespace is connected, and ended again."""
        started = time.perf_counter()
        self.start(network, 65520, options).close()
        return time.perf_counter() - started
