"""The command lines that are compared, and instances of them.

A subject is given by one word, or by ``NAME=WORDS``, where the first of the words is one of

================  ==============================================================================
``direct``        nothing: loopback, or the veth pair to *remote*. What the machine can do.
``veth``          a namespace joined to the host by a veth pair, with routes: the physical limit
``ours``          this package, as installed with the interpreter that runs this
``ebpf``          ``ours --accel=ebpf``
``tree:SOURCE``   this package from the source tree SOURCE, or of the git revision SOURCE
``upstream``      the pasta of the Debian tree of ``--peers``, otherwise of the system's PATH
``slirp4netns``   that of the system's PATH, otherwise of the tree of ``--peers``
a path            any program with pasta's command line
================  ==============================================================================

and the others are options of it.  All run as the same ordinary user in the same network, and what
they are asked for is the same: an :class:`Instance` knows, for each :data:`ROUTES`, who the
client is, whom it has to call, and where the server listens.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from perf.facts import first_line
from perf.lab import Lab
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program, forwarding, peer_command
from tests.system.kit.topology import Topology, veth_pair
from tests.system.kit.users import User

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

_GUEST = {4: "10.55.0.2", 6: "fd55::2"}  # behind the veth pair
_ROUTER = {4: "10.55.0.1", 6: "fd55::1"}
_SLIRP_HOST = {4: "10.0.2.2", 6: "fd00::2"}
_SLIRP_GUEST = "10.0.2.100"


class UnsupportedError(Exception):
    """A subject cannot do what a case needs; the message says what."""


class SubjectError(Exception):
    """A subject that is not understood or not there; the message says why."""


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


# -- nothing, and a veth pair ----------------------------------------------------------------------


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


# -- pasta -----------------------------------------------------------------------------------------


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


# -- slirp4netns -----------------------------------------------------------------------------------


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


# -- names -----------------------------------------------------------------------------------------

ALIASES = {"ebpf": ["ours", "--accel=ebpf"]}
NAMES = ("direct", "veth", "ours", "ebpf", "upstream", "slirp4netns")


def split(text: str) -> tuple[str, list[str]]:
    """Name and words of a subject's text; SubjectError."""
    name, sign, rest = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.+-]+", name):
        name, rest = text, text
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise SubjectError(f"{text}: {error}") from None
    if not words:
        raise SubjectError(f"{text!r}: no command")
    if words[0] in ALIASES:
        words[:1] = ALIASES[words[0]]
    return name, words


def make(text: str, lab: Lab, peers: str = "") -> Subject:
    """The subject that *text* describes; SubjectError if there is no such program."""
    name, words = split(text)
    first, options = words[0], words[1:]
    command = shlex.join(words)
    if first in ("direct", "veth"):
        if options:
            raise SubjectError(f"{first} has no options: {text}")
        return Veth(name, command) if first == "veth" else Direct(name, command, lab.user)
    if first == "slirp4netns":
        if options:
            raise SubjectError(f"options of slirp4netns are not supported: {text}")
        return Slirp(name, command, _slirp(peers), lab)
    program = _program(first, lab, peers)
    if any(word.startswith("--accel") and "splice" not in word for word in options):
        lab.prepare_acceleration()
    return PastaSubject(name, command, program, options, lab.user)


def _program(first: str, lab: Lab, peers: str) -> Program:
    if first == "ours":
        return lab.installed()
    if first.startswith("tree:"):
        return lab.program(first.removeprefix("tree:"))
    if first == "upstream":
        return _upstream(peers)
    path = shutil.which(first)
    if path is None or "/" not in first:
        raise SubjectError(f"no such subject or program: {first}; known: {', '.join(NAMES)}")
    return Program([os.path.abspath(path)])


def _upstream(peers: str) -> Program:
    if peers:
        words = peer_command(peers)
        if not os.path.exists(words[-1]):
            raise SubjectError(f"no pasta in {peers}")
        return Program(words)
    for folder in ("/usr/local/bin", "/usr/bin"):  # not our own, of a virtual environment
        path = os.path.join(folder, "pasta")
        if os.access(path, os.X_OK) and Program([path]).upstream:
            return Program([path])
    raise SubjectError(
        "no upstream pasta in PATH; --peers takes the root of a Debian tree with one"
    )


def _slirp(peers: str) -> list[str]:
    path = shutil.which("slirp4netns")
    if path:
        return [path]
    if peers and os.path.exists(f"{peers}/usr/bin/slirp4netns"):
        return peer_command(peers, "slirp4netns")
    raise SubjectError("no slirp4netns in PATH, nor in the tree of --peers")
