"""Service goes on under the filter: everything the program can be made to do and say, at once.

All system tests run under it; this one has every kind of output switched on, and provokes what
is rarely said.  A missing system call, a late import or a late open() would end the program.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.system.conftest import StartGuest, StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.paths import ALL
from tests.system.kit.paths import Path as Way
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PESTO = [sys.executable, "-m", "passt.userspace.cli.pesto"]
UNREACHED = {4: "203.0.113.199", 6: "2001:db8:2::199"}


@pytest.fixture
def folder_of_user(tmp_path: Path) -> Path:
    """A folder that anybody can use."""
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    return tmp_path


def transfers(topology: Topology, instance: Pasta, version: int) -> None:
    """Connections and datagrams on every path: served, refused, and to nobody."""
    for name in ALL:
        way = Way(name, version, topology, instance)
        client, server = way.pair()
        with client, server:
            client.sendall(b"there")
            assert server.recv(5) == b"there"
            server.sendall(b"back" * 10000)
            server.shutdown(socket.SHUT_WR)
            received = 0
            while data := client.recv(65536):
                received += len(data)
            assert received == 40000
        with contextlib.suppress(OSError):
            way.connect(2.0).close()
        with way.udp_server() as server, way.udp_client() as client:
            client.send(b"there")
            data, source = server.recvfrom(100)
            server.sendto(b"back", source)
            assert (data, client.recv(100)) == (b"there", b"back")
            for _ in range(20):
                client.send(bytes(1400))
        with way.udp_client() as client:
            client.settimeout(0.3)
            client.send(b"nobody there")
            with contextlib.suppress(OSError):
                client.recv(100)


def pings(instance: Pasta, version: int) -> None:
    """Answered, not answered, and with a TTL too small."""
    for target, options in (
        (net.REMOTE[version], []),
        (UNREACHED[version], []),
        (net.REMOTE[version], ["-t", "1"]),
        (net.GATEWAY[version], ["-s", "3000"]),
    ):
        words = ["ping", f"-{version}", "-c", "1", "-W", "0.5", *options, target]
        instance.ns.run(words, check=False)


def rules(instance: Pasta, path: Path) -> None:
    """Add, replace and delete; ports that are taken, low, in large numbers; nonsense."""

    def pesto(*words: str) -> None:
        subprocess.run([*PESTO, *words, str(path)], capture_output=True, check=False, timeout=20)

    host = instance.host
    pesto("--show")
    pesto("-A", "-t", "7101-7400", "-u", "7101-7400", "-T", "7101-7120", "-U", "7101-7120")
    host.wait_listening(7400)
    pesto("-A", "-t", "82", "-T", "82", "-u", "82")
    with host.listen("0.0.0.0", 7444):
        pesto("-A", "-t", "7444")
    pesto("-D", "-t", "7101-7400")
    wait_for(lambda: not host.listens(7400))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.send(b"\xff" * 100)


@pytest.mark.parametrize("output", ["everything", "log", "system log"])
def test_everything(
    start_pasta: StartPasta, topology: Topology, folder_of_user: Path, output: str
) -> None:
    folder = folder_of_user
    control, log, capture = folder / "control", folder / "log", folder / "capture"
    options = ["-c", str(control), "-t", "7001", "-u", "7001", "-T", "7003", "-U", "7003"]
    options += {
        "everything": ["--trace", "--stats", "1", "-p", str(capture)],
        "log": ["--trace", "-l", str(log), "--log-size", "40960", "-p", "/dev/full"],
        "system log": ["-t", "auto,~7001", "-T", "auto,~7003", "-u", "auto,~7001"],
    }[output]
    if "--stats" in options:
        options.insert(0, "-f")
    instance = start_pasta(*options)
    for version in (4, 6):
        transfers(topology, instance, version)
        pings(instance, version)
    if output == "system log":
        with topology.host.listen("127.0.0.1", 7555), instance.ns.listen("127.0.0.1", 7556):
            instance.ns.wait_listening(7555)
            topology.host.wait_listening(7556)
    else:
        rules(instance, control)
    transfers(topology, instance, 4)
    assert instance.alive(), instance.messages()
    assert filter_of(instance.process.pid) == "2"
    if output == "everything":
        messages = instance.messages()
        assert "rounds of the event loop" in messages
        assert "Accepted configuration client" in messages
    if output == "log":
        for _ in range(10):
            if "log truncated at" in log.read_text():
                break
            transfers(topology, instance, 4)
        assert "log truncated at" in log.read_text()


def filter_of(pid: int) -> str:
    with open(f"/proc/{pid}/status") as file:
        return re.findall(r"^Seccomp:\s+(\d)$", file.read(), re.MULTILINE)[0]


def test_frames_of_every_kind(start_guest: StartGuest) -> None:
    """Nonsense from the guest, with messages about frames that are dropped."""
    guest = start_guest("--trace", "-p", "/dev/null")
    addresses = bytes.fromhex("9a559a559a55 020000000001")
    for kind in (0x0800, 0x86DD, 0x0806, 0x8100, 0x88CC, 0x0000):
        for body in (b"", b"\x45", b"\x45" + bytes(19), b"\x60" + bytes(39), b"\xff" * 100):
            guest.send(addresses + struct.pack("!H", kind) + body.ljust(46, b"\0"))
    source, target = (socket.inet_aton(table[4]) for table in (net.HOST, net.REMOTE))
    for protocol in range(256):
        header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, protocol, 0)
        guest.send(addresses + b"\x08\0" + header + source + target + bytes(20))
    guest.ready()
    assert guest.pasta.alive(), guest.pasta.messages()
    assert "Dropped from guest" in guest.pasta.messages()


def test_log_and_capture_are_complete_after_an_end_under_load(
    program: Program, topology: Topology, user: User, folder_of_user: Path
) -> None:
    log, capture = folder_of_user / "log", folder_of_user / "capture"
    words = ["--trace", "-l", str(log), "-p", str(capture)]
    instance = Pasta(program, topology.host, user, *words)
    way = Way("remote", 4, topology, instance)
    client, server = way.pair()

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                client.sendall(bytes(100000))

    def receive() -> None:
        with contextlib.suppress(OSError):
            while server.recv(100000):
                pass

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: capture.stat().st_size > 10_000_000)
        instance.process.terminate()
        assert instance.process.wait(10) == 0
    finally:
        os.kill(instance.command_pid, 9)
        for sock in (client, server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        client.close()
        server.close()
        instance.host.processes.stop(instance.process)
    text = log.read_text()
    assert text.startswith("pasta ")
    assert text.endswith("\n")
    data = capture.read_bytes()
    at = 24
    while at < len(data):
        (length,) = struct.unpack_from("=8xI", data, at)
        at += 16 + length
    assert at == len(data)
