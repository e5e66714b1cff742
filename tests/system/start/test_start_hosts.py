"""Starting on hosts that lack something: IPv6, IPv4, everything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.kit.pasta import Program
from tests.system.kit.topology import Topology
from tests.system.kit.users import User
from tests.system.start.runner import Runner

pytestmark = pytest.mark.system

SHOW = ("sh", "-c", "ip -br addr; ip route; ip -6 route")
BOTH_LOCAL = [
    f"IPv{version}: no external interface as template, use local mode" for version in (4, 6)
]


@pytest.fixture(scope="module")
def bare_host() -> Iterator[Topology]:
    """A host with nothing but loopback."""
    with Topology(bare=True) as topology:
        yield topology


@pytest.fixture(params=["root", "user"])
def bare(
    request: pytest.FixtureRequest, bare_host: Topology, program: Program, user: User
) -> Runner:
    """Pasta on that host, run by root and by an ordinary user."""
    who = user if request.param == "user" else User("root")
    return Runner(program, bare_host.host, who.prefix, who.uid)


def test_local_mode(bare: Runner) -> None:
    done = bare("--config-net", "--", *SHOW)
    assert done.returncode == 0, done.stderr
    assert "tap0" in done.stdout
    assert "169.254.2.1/16" in done.stdout
    assert "default via 169.254.2.2 dev tap0" in done.stdout
    assert "default via fe80::1 dev tap0" in done.stdout


def test_local_mode_keeps_what_the_user_gave(bare: Runner) -> None:
    """The gateway that we invent is outside the subnet then, and reached all the same."""
    options = ["-a", "192.0.2.1/24", "-a", "2001:db8::5/60"]
    done = bare("--config-net", *options, "--", *SHOW)
    assert done.returncode == 0, done.stderr
    assert "192.0.2.1/24" in done.stdout
    assert "default via 169.254.2.2 dev tap0 onlink" in done.stdout
    assert "2001:db8::5/60" in done.stdout


def test_local_mode_of_one_version_only(bare: Runner) -> None:
    done = bare("--config-net", "-4", "--", *SHOW)
    assert done.returncode == 0, done.stderr
    assert "169.254.2.1/16" in done.stdout
    assert "default via fe80::1" not in done.stdout
    done = bare("--config-net", "-6", "--", *SHOW)
    assert done.returncode == 0, done.stderr
    assert "169.254" not in done.stdout
    assert "default via fe80::1 dev tap0" in done.stdout


def test_local_mode_is_told(bare: Runner) -> None:
    target = bare.sleeper("-Urn")
    process = bare.start("-f", str(target.pid))
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line.rstrip())
        if line.startswith("Inbound"):
            break
    process.terminate()
    assert process.wait(3) == 0
    assert [line for line in told if "local mode" in line] == BOTH_LOCAL
    assert not any(line.startswith("Template interface") for line in told)
    assert "Namespace interface: tap0" in told


@pytest.mark.parametrize("version", [4, 6])
def test_host_without_the_other_version(program: Program, user: User, version: int) -> None:
    with Topology(ipv4=version == 4, ipv6=version == 6) as topology:
        runner = Runner(program, topology.host, user.prefix, user.uid)
        done = runner("--config-net", "--", *SHOW)
        assert done.returncode == 0, done.stderr
        present = {4: "198.51.100.2/24", 6: "2001:db8:1::2/64"}[version]
        assert present in done.stdout
        assert "eth0" in done.stdout
        local = {4: "default via fe80::1 dev eth0", 6: "169.254.2.1/16"}[version]
        assert local in done.stdout
