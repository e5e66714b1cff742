"""Real servers and clients in a namespace: nginx, redis, dnsmasq, iperf3."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from .netns import Netns

HTTP_PORT = 8080
SMALL = b"a small page\n"


class Nginx:
    """nginx serving *folder* on port 8080 of all addresses; PUT stores files there as well."""

    def __init__(self, ns: Netns, folder: str, versions: Sequence[int]) -> None:
        self.folder = folder
        files = os.path.join(folder, "files")
        os.makedirs(os.path.join(folder, "body"), exist_ok=True)
        os.makedirs(files, exist_ok=True)
        with open(os.path.join(files, "small"), "wb") as file:
            file.write(SMALL)
        listen = "".join(
            f"listen {address}:{HTTP_PORT} backlog=511;"
            for address in [{4: "0.0.0.0", 6: "[::]"}[version] for version in versions]
        )
        path = os.path.join(folder, "nginx.conf")
        with open(path, "w") as file:
            file.write(
                f"user root; daemon off; worker_processes 1; pid {folder}/pid;"
                f"error_log {folder}/error.log warn;"
                "events { worker_connections 1024; }"
                "http { access_log off; sendfile on; keepalive_timeout 60;"
                f"client_max_body_size 0; client_body_temp_path {folder}/body;"
                f"server {{ {listen} root {files}; location / {{ dav_methods PUT; }} }} }}"
            )
        self.process = ns.popen(["nginx", "-c", path, "-p", folder], stderr=subprocess.DEVNULL)
        ns.wait_listening(HTTP_PORT)

    def path(self, name: str) -> str:
        """Return the path of the served or stored file *name*."""
        return os.path.join(self.folder, "files", name)


def redis(ns: Netns, folder: str, addresses: Sequence[str], port: int) -> subprocess.Popen[str]:
    """Start a redis server without files on *addresses*; *folder* takes a link.

    The package of redis-benchmark has the server as well, by the name of another tool of its.
    """
    program = os.path.join(folder, "redis-server")
    if not os.path.lexists(program):
        os.symlink(shutil.which("redis-check-rdb") or "redis-check-rdb is missing", program)
    process = ns.popen(
        [
            program,
            "--port",
            str(port),
            "--bind",
            *addresses,
            "--save",
            "",
            "--protected-mode",
            "no",
        ],
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    ns.wait_listening(port)
    return process


def dnsmasq(
    ns: Netns, addresses: Sequence[str], options: Sequence[str], port: int = 53
) -> subprocess.Popen[str]:
    """Start dnsmasq on *addresses* only, with no data but what *options* give."""
    listen = [f"--listen-address={address}" for address in addresses]
    base = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    base += ["--user=root", "--pid-file"]
    process = ns.popen(
        [*base, "--bind-interfaces", f"--port={port}", *listen, *options],
        stderr=subprocess.DEVNULL,
    )
    ns.wait_listening(port, "udp")
    ns.wait_listening(port, "tcp")
    return process


_HOLD = """
import socket, sys
held = []
for port in range(int(sys.argv[2]), int(sys.argv[3])):
    held.append(socket.create_server((sys.argv[1], port), backlog=1))
print("ready", flush=True)
sys.stdin.read()
"""


def hold_ports(ns: Netns, address: str, ports: range) -> subprocess.Popen[str]:
    """Start a process that listens on all *ports*, by TCP, and never accepts anything."""
    process = ns.popen(
        [sys.executable, "-S", "-c", _HOLD, address, str(ports.start), str(ports.stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def iperf3_server(ns: Netns, address: str, port: int) -> subprocess.Popen[str]:
    """Start an iperf3 server for one test on *address* and *port*."""
    process = ns.popen(
        ["iperf3", "-s", "-1", "-B", address, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ns.wait_listening(port)
    return process


def iperf3(ns: Netns, address: str, port: int, *options: str, seconds: int = 1) -> Any:
    """Run an iperf3 client; return the ``end`` section of its JSON report."""
    done = ns.run(
        ["iperf3", "-J", "-c", address, "-p", str(port), "-t", f"{seconds}", *options],
        timeout=seconds + 30,
        check=False,
    )
    report = json.loads(done.stdout)
    if "error" in report:
        raise AssertionError(f"iperf3: {report['error']}")
    return report["end"]
