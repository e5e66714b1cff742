"""ping, the program: near and far, small and large, and targets that do not answer."""

from __future__ import annotations

import re
import socket
import subprocess

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, run
from tests.system.kit.users import User

pytestmark = pytest.mark.system


Done = subprocess.CompletedProcess[str]


def ping(pasta: Pasta, version: int, target: str, *options: str) -> Done:
    """Ping *target* from inside; whatever the result."""
    words = ["ping", f"-{version}", "-n", "-W", "2", *options, target]
    return pasta.ns.run(words, check=False)


def counts(done: Done) -> tuple[int, int]:
    """Return how many requests were sent and how many answers received."""
    match = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    assert match, done.stdout + done.stderr
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("size", [0, 1, 56, 57, 1472, 1473, 8000, 60000])
def test_sizes(start_pasta: StartPasta, version: int, size: int) -> None:
    """Answers are complete: ping compares the content."""
    pasta = start_pasta()
    for target in (net.REMOTE, net.GATEWAY):
        done = ping(pasta, version, target[version], "-c2", "-i0.05", "-s", str(size))
        assert counts(done) == (2, 2), done.stdout
        assert "wrong data" not in done.stdout
        assert f"{size + 8} bytes from {target[version]}" in done.stdout


def test_spawned_command_can_ping(program: Program, host: Netns, user: User, version: int) -> None:
    """The first packet of a command started by pasta gets through."""
    words = ["ping", f"-{version}", "-c1", "-W2", net.FAR[version]]
    run(program, host, user, [], words)


def test_unprivileged_ping_in_the_namespace(start_pasta: StartPasta, version: int) -> None:
    """pasta opens the namespace's ping_group_range, so that ping sockets work there."""
    pasta = start_pasta()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    row = pasta.ns.run(["cat", "/proc/sys/net/ipv4/ping_group_range"]).stdout.split()
    assert row == ["0", "0"]
    script = (
        f"import socket; s = socket.socket({int(family)}, socket.SOCK_DGRAM, {protocol});"
        f"s.settimeout(3); s.sendto(bytes([{8 if version == 4 else 128}]) + bytes(7),"
        f" ({net.REMOTE[version]!r}, 0)); print(s.recv(100)[0])"
    )
    out = pasta.ns.run(["/usr/bin/python3", "-c", script]).stdout
    assert int(out) == (0 if version == 4 else 129)


@pytest.mark.parametrize("target", [net.UNREACHABLE, net.BLACKHOLE], ids=["rejected", "silent"])
def test_no_answer(start_pasta: StartPasta, version: int, target: dict[int, str]) -> None:
    """No answer is made up, and the program goes on."""
    pasta = start_pasta()
    done = ping(pasta, version, target[version], "-c2", "-i0.05", "-W0.5")
    assert done.returncode == 1
    assert counts(done)[1] == 0
    assert counts(ping(pasta, version, net.REMOTE[version], "-c1")) == (1, 1)


def test_unreachable_target_is_reported(
    ours_only: None, start_pasta: StartPasta, version: int
) -> None:
    """As on a real host: who said so, and what."""
    pasta = start_pasta()
    texts = {4: "Destination Host Unreachable", 6: "Destination unreachable: No route"}
    done = ping(pasta, version, net.UNREACHABLE[version], "-c1", "-W1")
    assert f"From {net.GATEWAY[version]} icmp_seq=1 {texts[version]}" in done.stdout


def test_link_local_neighbour(start_pasta: StartPasta, remote: Netns) -> None:
    pasta = start_pasta()
    shown = remote.run(["ip", "-6", "addr", "show", "dev", "eth0", "scope", "link"]).stdout
    match = re.search(r"inet6 (fe80:[0-9a-f:]+)/64", shown)
    assert match
    done = ping(pasta, 6, f"{match[1]}%eth0", "-c1")
    assert counts(done) == (1, 1), done.stdout


def test_many_at_once(start_pasta: StartPasta, version: int) -> None:
    """Several pings at a time, to several targets, and a flood: each gets its own answers."""
    pasta = start_pasta()
    targets = [net.REMOTE[version], net.FAR[version], net.GATEWAY[version], net.OWN[version]]
    running = [
        pasta.ns.popen(
            ["ping", f"-{version}", "-n", "-c20", "-i0.02", "-W2", "-q", target],
            stdout=subprocess.PIPE,
        )
        for target in targets * 2
    ]
    for process in running:
        out, _ = process.communicate(timeout=20)
        assert "20 packets transmitted, 20 received" in out
        assert "duplicates" not in out


def test_ping_group_range_excludes_us(
    program: Program, host: Netns, user: User, version: int
) -> None:
    """Requests go unanswered, the program goes on with everything else."""
    host.sysctl("net/ipv4/ping_group_range", "1 0")
    try:
        target = net.REMOTE[version]
        script = f"ping -{version} -c1 -W1 {target}; echo status $?"
        assert "status 1" in run(program, host, user, [], ["sh", "-c", script]).stdout
    finally:
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647")


def test_no_icmp(start_pasta: StartPasta, remote: Netns) -> None:
    pasta = start_pasta("--no-icmp")
    assert counts(ping(pasta, 4, net.REMOTE[4], "-c1", "-W0.5")) == (1, 0)
    with remote.listen(net.REMOTE[4], 7002):
        pasta.ns.connect(net.REMOTE[4], 7002).close()
