"""What ``--accel-status`` says, to whom; and privileges by a BPF token, a way to get some."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from passt.kernel.ebpf import kernels, pins
from tests.system.kit import prepared
from tests.system.kit.delegation import ENOUGH, Delegated
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.paths import OPTIONS, Path
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ours_only")]

NO_TOKEN = "/sys/fs/bpf is no bpffs", "/sys/fs/bpf: it "


@pytest.fixture(autouse=True)
def nothing_prepared(user: User) -> Iterator[None]:
    with prepared.nothing(user):
        yield


def status(program: Program, host: Netns, prefix: list[str], *words: str) -> tuple[int, list[str]]:
    """Exit status and rows of ``pasta --accel-status``."""
    argv = [*program.argv, *words, "--accel-status"]
    done: subprocess.CompletedProcess[str] = host.run(argv, prefix=prefix, timeout=30, check=False)
    assert done.stderr == ""
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert names == [
        "kernel", "program", "own privileges", "BPF token", "prepared maps", "large ranges",
        "--accel=ebpf",
    ]  # fmt: skip
    return done.returncode, [line.partition(":")[2].strip() for line in done.stdout.splitlines()]


def test_root(program: Program, host: Netns) -> None:
    number, (kernel, code, own, _token, _sets, ranges, result) = status(program, host, [])
    assert number == 0
    assert kernel == f"{os.uname().release}, no objection"
    assert code.startswith("as shipped, ")
    assert own.startswith("suffice, and the trial succeeded (")
    assert ranges == "one socket, program as shipped"
    assert result == "available: own maps, program as shipped"


def test_ordinary_user(program: Program, host: Netns, user: User) -> None:
    number, (_kernel, _code, own, token, sets, ranges, result) = status(program, host, user.prefix)
    assert number == 1
    assert own == "do not suffice: CAP_BPF and CAP_NET_ADMIN of the initial user namespace"
    assert token.startswith(tuple(f"none: {why}" for why in NO_TOKEN))
    assert sets == f"none for user {user.uid}"
    assert ranges == "a socket for each port: no privilege to load a program"
    assert result == (
        "not available: no privilege to load a program, "
        f"and no maps are prepared for user {user.uid}"
    )


def test_user_with_prepared_maps(program: Program, host: Netns, user: User) -> None:
    with prepared.sets(user, 2):
        number, (*_, sets, _ranges, result) = status(program, host, user.prefix)
        assert (number, result) == (0, "available: prepared maps")
        assert sets == f"2 for user {user.uid}, 2 free, 0 of another version"
        assert [each.used for each in pins.sets(user.uid)] == [False, False]


def test_compiling_takes_privilege(program: Program, host: Netns, user: User) -> None:
    words = "--accel=ebpf", "--accel-compile"
    number, (_kernel, code, *_, result) = status(program, host, user.prefix, *words)
    assert number == 1
    assert code == "to be compiled"
    assert result == "not available: no privilege to load a program"


@pytest.fixture
def delegated(
    request: pytest.FixtureRequest, program: Program, user: User, folder: str
) -> Iterator[Delegated]:
    """The user in a namespace that BPF is delegated to, as the parameter says, or enough of it."""
    if kernels.version(os.uname().release) < (6, 9, 0):
        pytest.skip("BPF tokens came with Linux 6.9")
    python = os.path.join(os.path.dirname(program.argv[-1]), "python3")
    made = Delegated(user, python, folder, getattr(request, "param", ENOUGH))
    yield made
    made.close()
    assert made.errors == []


def test_token(program: Program, host: Netns, delegated: Delegated) -> None:
    number, (_kernel, _code, own, token, _sets, _ranges, result) = status(
        program, host, delegated.prefix
    )
    assert number == 0
    assert own.startswith("do not suffice")
    assert token.startswith("suffices, and the trial succeeded (")
    assert result == "available: own maps by a BPF token, program as shipped"


@pytest.mark.parametrize(
    "delegated", [{**ENOUGH, "delegate_progs": "socket_filter"}], indirect=True
)
def test_token_that_does_not_suffice(program: Program, host: Netns, delegated: Delegated) -> None:
    number, (*_, token, _sets, _ranges, result) = status(program, host, delegated.prefix)
    assert number == 1
    assert token == "does not suffice: bpf PROG_LOAD: Operation not permitted"
    assert "the BPF token does not suffice: " in result


@pytest.mark.parametrize("delegated", [{}], indirect=True)
def test_nothing_is_delegated(program: Program, host: Netns, delegated: Delegated) -> None:
    number, (*_, token, _sets, _ranges, _result) = status(program, host, delegated.prefix)
    assert number == 1
    assert token == "none: /sys/fs/bpf: it delegates nothing"


@pytest.mark.parametrize("version", [4, 6])
def test_connection_by_a_token(
    program: Program, topology: Topology, delegated: Delegated, version: int
) -> None:
    """Maps made that way serve for as long as pasta runs, which has given up all privileges."""
    pasta = Pasta(program, topology.host, delegated, *OPTIONS, "--accel=ebpf", "--debug")
    path = Path("splice-in", version, topology, pasta)
    client, server = path.pair()
    with client, server:
        wait_for(lambda: "enters the fast path" in pasta.messages(), what="acceleration")
        assert "Acceleration: ebpf, own maps by a BPF token" in pasta.messages()
        for number in range(100):
            client.sendall(b"%03d" % number)
            assert server.recv(10) == b"%03d" % number
            server.sendall(b"%03d" % number * 2)
            assert client.recv(10) == b"%03d" % number * 2
        assert "leaves" not in pasta.messages()
    pasta.close()
