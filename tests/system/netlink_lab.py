"""Two network namespaces for the tests of host reading and namespace configuration.

*host* has two interfaces to configure at will, *guest* starts empty.  The worker must be forked
from within *host* by the test's own thread, since its life is tied to the thread that forked it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from passt.kernel.netlink.worker import Configured, FamilyPlan, Tap, TemplateInfo, Worker
from passt.syscalls import ns


class Net:
    """A network namespace, held by a process that ends with us and was started by `unshare`."""

    def __init__(self, *unshare: str) -> None:
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.pid = self._holder.pid

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    def run(self, script: str) -> str:
        """Output of a shell script in the namespace, which must succeed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", "sh", "-ec", script],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def ip(self, arguments: str) -> list[dict[str, Any]]:
        """What `ip -j ARGUMENTS` shows."""
        found: list[dict[str, Any]] = json.loads(self.run(f"ip -j {arguments}") or "[]")
        return found

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread work in the namespace."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        other = self.fd()
        try:
            ns.setns(other, ns.CLONE_NEWNET)
            yield
        finally:
            ns.setns(own, ns.CLONE_NEWNET)
            os.close(own)
            os.close(other)

    def fd(self, kind: str = "net") -> int:
        """A new descriptor of the namespace, or of the holder's one of another kind."""
        return os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY)

    def addresses(self, interface: str) -> dict[str, dict[str, Any]]:
        """Address attributes by `ADDRESS/LENGTH`, without the link-local one."""
        shown = self.ip(f"addr show dev {interface}")
        return {
            f"{a['local']}/{a['prefixlen']}": a
            for link in shown
            for a in link.get("addr_info", ())
            if a["scope"] != "link" or a["family"] == "inet"
        }

    def link_local(self, interface: str) -> list[dict[str, Any]]:
        """The IPv6 link-local addresses of an interface."""
        shown = self.ip(f"-6 addr show dev {interface} scope link")
        return [a for link in shown for a in link.get("addr_info", ()) if a]

    def routes(self, version: int = 4) -> list[dict[str, Any]]:
        """Main table, without fe80::/64."""
        shown = self.ip(f"-{version} route show")
        return [r for r in shown if r["dst"] != "fe80::/64"]


class Lab:
    """host with eth0 and eth1 up, guest, a worker started on the first call that needs it."""

    def __init__(self) -> None:
        self.host = Net("unshare", "-n")
        self.guest = Net("unshare", "-n")
        self.tap: Tap | None = None
        self._worker: Worker | None = None
        self.host.run(
            "sysctl -qw net.ipv6.conf.default.accept_dad=0\n"
            "sysctl -qw net.ipv6.conf.default.router_solicitations=0\n"
            "ip link set lo up\n"
            "for i in 0 1; do ip link add eth$i type veth peer name far$i\n"
            "sysctl -qw net.ipv6.conf.far$i.disable_ipv6=1\n"
            "ip link set eth$i up; ip link set far$i up; done\n"
        )
        # Link-local addresses come once the carrier has been noticed.
        deadline = time.monotonic() + 10
        while not (self.host.link_local("eth0") and self.host.link_local("eth1")):
            assert time.monotonic() < deadline, "no link-local addresses"
            time.sleep(0.02)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self.tap is not None:
            os.close(self.tap.fd)
        self.guest.close()
        self.host.close()

    @property
    def worker(self) -> Worker:
        if self._worker is None:
            with self.host.inside():
                self._worker = Worker.start()
        return self._worker

    def template(self, *names: str | None, **options: bool) -> TemplateInfo:
        return self.worker.template(*names, **options)

    def enter(self, name: str = "tap0", user: bool = False) -> Tap:
        fds = [self.guest.fd("user")] if user else []
        fds.append(self.guest.fd())
        try:
            self.tap = self.worker.enter(fds[0] if user else None, fds[-1], name)
        finally:
            for fd in fds:
                os.close(fd)
        assert self.tap is not None
        return self.tap

    def configure(
        self, ipv4: FamilyPlan | None = None, ipv6: FamilyPlan | None = None, mtu: int = 65520
    ) -> Configured:
        """Enter if not done yet, then configure."""
        if self.tap is None:
            self.enter()
        self.worker.loopback_up()
        return self.worker.configure(mtu, ipv4, ipv6)

    def copy(self, *names: str | None) -> Configured:
        """Find the template and copy everything of both IP versions."""
        info = self.template(*names)
        plans = [
            found
            and FamilyPlan(
                found.address,
                found.prefix_len,
                found.gateway,
                copy_addresses=True,
                copy_routes=True,
            )
            for found in (info.ipv4, info.ipv6)
        ]
        return self.configure(*plans)
