"""The test network: *host*, where pasta runs, *remote*, its router and peer, and *far* behind it.

::

      host                            remote                            far
    ┌──────────────────┐            ┌─────────────────────┐           ┌────────────────┐
    │ eth0 .2 ─────────┼── veth* ───┼─ eth0 .1 .3   eth1 ─┼── veth ───┼─ eth0          │
    │ lo   OWN         │ 198.51.100 │  router; unreachable│ 203.0.113 │ 203.0.113.2    │
    └──────────────────┘            │  prefixes live here │           └────────────────┘
                                    └─────────────────────┘

    (* or two veth pairs with a ``wire`` namespace between them, see wire.py)

The address .1 is the host's default gateway, which pasta maps to the loopback of the host: to reach
*remote* itself from inside pasta, use .3. OWN is an address of the host which pasta does not copy,
so that it is reached through the tap. Duplicate address detection is off (addresses work at
once), and so are the limits for ICMP errors. Nothing of this leaves the machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import TracebackType

from .netns import Netns, Processes

# Index 4 and 6: by IP version.
HOST = {4: "198.51.100.2", 6: "2001:db8:1::2"}
GATEWAY = {4: "198.51.100.1", 6: "2001:db8:1::1"}
REMOTE = {4: "198.51.100.3", 6: "2001:db8:1::3"}
ABSENT = {4: "198.51.100.99", 6: "2001:db8:1::99"}  # on the link, but nobody has it
OWN = {4: "192.0.2.2", 6: "2001:db8:3::2"}
FAR = {4: "203.0.113.2", 6: "2001:db8:2::2"}
UNREACHABLE = {4: "198.18.1.1", 6: "2001:db8:dea1::1"}
PROHIBITED = {4: "198.18.2.1", 6: "2001:db8:dea2::1"}
BLACKHOLE = {4: "198.18.3.1", 6: "2001:db8:dea3::1"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}

_PREFIX = "pt"
# Not by unreachable routes, as their errors are rate-limited for the whole machine.
_REJECT = f"""
table inet test {{
    chain forward {{
        type filter hook forward priority 0
        ip daddr {UNREACHABLE[4]} reject with icmp type host-unreachable
        ip6 daddr {UNREACHABLE[6]} reject with icmpv6 type no-route
        ip daddr {PROHIBITED[4]} reject with icmp type admin-prohibited
        ip6 daddr {PROHIBITED[6]} reject with icmpv6 type admin-prohibited
    }}
}}
"""


class Topology:
    """The network above. Use as a context manager; leaving it ends all processes in it.

    *ipv4*, *ipv6*: leave one version out; *ipv6=False* also disables IPv6 in the host's kernel
    settings. *bare*: the host has nothing but loopback. *mtu*: of the link between host and
    remote. *wire*: options for wire.py, put between host and remote.
    """

    _count = 0

    def __init__(
        self,
        *,
        ipv4: bool = True,
        ipv6: bool = True,
        bare: bool = False,
        mtu: int = 1500,
        wire: list[str] | None = None,
    ) -> None:
        self.versions = [v for v, wanted in ((4, ipv4), (6, ipv6)) if wanted and not bare]
        self.bare = bare
        self.mtu = mtu
        self.wire_options = wire
        self.processes = Processes()
        self._namespaces: list[str] = []
        Topology._count += 1
        self._stem = f"{_PREFIX}{os.getpid()}-{Topology._count}"
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Topology:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def namespace(self, role: str) -> Netns:
        """Return a new, empty namespace with ``lo`` up that is removed with the topology."""
        name = f"{self._stem}-{role}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._namespaces.append(name)
        ns = Netns(role, f"/run/netns/{name}", self.processes)
        for scope in ("all", "default"):
            ns.sysctl(f"net/ipv6/conf/{scope}/accept_dad", 0)
            ns.sysctl(f"net/ipv6/conf/{scope}/router_solicitations", 0)
        ns.sysctl("net/ipv4/icmp_ratelimit", 0)
        ns.sysctl("net/ipv4/icmp_msgs_per_sec", 100000)
        ns.sysctl("net/ipv6/icmp/ratelimit", 0)
        ns.sysctl("net/ipv4/ping_group_range", "0 2147483647")
        ns.ip("link set lo up\n")
        return ns

    def remove(self, ns: Netns) -> None:
        """Remove a namespace made by :meth:`namespace` before the topology goes."""
        name = os.path.basename(ns.path)
        self._namespaces.remove(name)
        subprocess.run(["ip", "netns", "del", name], check=False)

    def close(self) -> None:
        """End all processes, remove all namespaces."""
        self.processes.stop_all()
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._namespaces.clear()

    def _build(self) -> None:
        self.host = self.namespace("host")
        self.remote = self.namespace("remote")
        self.far = self.namespace("far")
        if 6 not in self.versions and not self.bare:
            for scope in ("all", "default"):
                self.host.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        if self.bare:
            return
        if self.wire_options is None:
            self._join(self.host, "eth0", self.remote, "eth0", self.mtu)
        else:
            self._join_by_wire(self.wire_options)
        self._join(self.remote, "eth1", self.far, "eth0", 1500)
        self.remote.sysctl("net/ipv4/ip_forward", 1)
        self.remote.sysctl("net/ipv6/conf/all/forwarding", 1)
        self.remote.run(["nft", "-f", "-"], text=_REJECT)
        for version in self.versions:
            self._address(version)

    def _address(self, version: int) -> None:
        on_link, host = (24, 32) if version == 4 else (64, 128)
        nodad = "" if version == 4 else "nodad"
        # Not preferred as a source: the router's ICMP errors come from its .1 in both versions.
        secondary = "" if version == 4 else "nodad preferred_lft 0"
        option = f"-{version}"
        far_router = FAR[version][:-1] + "1"
        self.remote.ip(
            f"addr add {GATEWAY[version]}/{on_link} dev eth0 {nodad}\n"
            f"addr add {REMOTE[version]}/{on_link} dev eth0 {secondary}\n"
            f"addr add {far_router}/{on_link} dev eth1 {nodad}\n"
            f"route add {UNREACHABLE[version]}/{host} via {FAR[version]}\n"
            f"route add {PROHIBITED[version]}/{host} via {FAR[version]}\n"
            f"route add blackhole {BLACKHOLE[version]}/{host}\n"
            f"route add {OWN[version]}/{host} via {HOST[version]}\n"
        )
        self.host.ip(
            f"addr add {HOST[version]}/{on_link} dev eth0 {nodad}\n"
            f"addr add {OWN[version]}/{host} dev lo {nodad}\n"
            f"route add default via {GATEWAY[version]}\n"
        )
        self.far.ip(
            f"addr add {FAR[version]}/{on_link} dev eth0 {nodad}\n"
            f"route add default via {far_router}\n"
        )
        # The neighbours are learned now, so that no test meets the delay of the first packet.
        ping = ["ping", option, "-c1", "-W2", "-q"]
        for address in (REMOTE[version], FAR[version]):
            for _ in range(10):  # a bad wire may lose some
                if self.host.run([*ping, address], check=False).returncode == 0:
                    break
            else:
                raise RuntimeError(f"{address} does not answer in {self._stem}")

    def _join(self, a: Netns, name_a: str, b: Netns, name_b: str, mtu: int) -> None:
        veth_pair(a, name_a, b, name_b, mtu)

    def _join_by_wire(self, options: list[str]) -> None:
        middle = self.namespace("wire")
        for scope in ("all", "default"):
            middle.sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        self._join(self.host, "eth0", middle, "a", self.mtu)
        self._join(self.remote, "eth0", middle, "b", self.mtu)
        for ns in (self.host, self.remote):
            offloads_off(ns, "eth0")
        self.wire = start_wire(middle, "a", "b", options)


def veth_pair(a: Netns, name_a: str, b: Netns, name_b: str, mtu: int = 1500) -> None:
    """Join two namespaces by a veth pair, both ends up. *b* may be one known by process only."""
    name = os.path.basename(b.path)
    peer = name if b.path.startswith("/run/netns/") else re.sub(r"\D", "", b.path)
    a.ip(
        f"link add dev {name_a} mtu {mtu} type veth peer name {name_b} mtu {mtu} netns {peer}\n"
        f"link set dev {name_a} up\n"
    )
    b.ip(f"link set dev {name_b} up\n")


def offloads_off(ns: Netns, interface: str) -> None:
    """Make *interface* send frames of at most its MTU, with checksums complete."""
    ns.run(
        ["ethtool", "-K", interface]
        + [word for name in ("tx", "sg", "tso", "gso", "gro") for word in (name, "off")]
    )


def start_wire(ns: Netns, a: str, b: str, options: list[str]) -> subprocess.Popen[str]:
    """Start wire.py between two interfaces of *ns*; SIGTERM makes it print its counters."""
    program = os.path.join(os.path.dirname(__file__), "wire.py")
    process = ns.popen(
        [sys.executable, "-S", program, a, b, *options],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    line = process.stdout.readline()
    if line != "ready\n":
        raise RuntimeError(f"wire did not start: {line!r}")
    return process


def remove_stale() -> None:
    """Remove namespaces (and processes in them) left by a test run that was killed."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        match = re.fullmatch(rf"{_PREFIX}(\d+)-\d+-\w+", name)
        if match is None or os.path.exists(f"/proc/{match[1]}"):
            continue
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in listed.stdout.split():
            subprocess.run(["kill", "-9", pid], check=False)
        subprocess.run(["ip", "netns", "del", name], check=False)
