"""Acceleration from outside: passt-accel and its sets, pasta as root and not, what it says and when
it is refused, and the end by SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator

import pytest

from passt.kernel.ebpf import pins
from tests.system.conftest import StartPasta
from tests.system.kit import prepared, stream
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.paths import OPTIONS, Path
from tests.system.kit.topology import Topology
from tests.system.kit.users import User
from tests.system.test_tcp_close import outcome

pytestmark = pytest.mark.system

MIB = 1 << 20
OWN = "Acceleration: ebpf, own maps, program as shipped"
PREPARED = "Acceleration: ebpf, prepared maps"
REFUSED = "Acceleration: splice, as ebpf is not available: "


def tool(program: Program, *words: str, prefix: list[str] | None = None) -> tuple[int, str, str]:
    """Run passt-accel; returns status, output, messages."""
    script = os.path.join(os.path.dirname(program.argv[-1]), "passt-accel")
    if not os.path.exists(script):
        # An installed copy has the script of pasta alone.
        python = os.path.join(os.path.dirname(program.argv[-1]), "python3")
        argv = [python, "-m", "passt.userspace.cli.accel"]
    else:
        argv = [script]
    done = subprocess.run(
        [*(prefix or []), *argv, *words],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def nothing_prepared(user: User) -> Iterator[None]:
    """The user has no sets, but has them again afterwards if they were there."""
    with prepared.nothing(user):
        yield


def run(
    program: Program, host: Netns, prefix: list[str], *words: str
) -> subprocess.CompletedProcess[str]:
    """Run pasta with a command that ends at once, and messages that are not only warnings."""
    argv = [*program.argv, "--config-net", "--debug", *words, "--", "true"]
    return host.run(argv, prefix=prefix, timeout=30, check=False)


def test_load_status_unload(program: Program, user: User, nothing_prepared: None) -> None:
    assert tool(program, "status", user.name) == (1, "", "")
    status, output, errors = tool(program, "load", "--sets", "2", user.name)
    assert (status, errors) == (0, "")
    assert output.count("program as shipped") == 2
    # As many as wanted, not more each time.
    assert tool(program, "load", "--sets", "2", str(user.uid)) == (0, "", "")
    lines = "".join(f"user {user.uid}, set {n}: free\n" for n in range(2))
    assert tool(program, "status", user.name) == (0, lines, "")
    for folder, folders, files in os.walk(pins.folder(user.uid)):
        for name, mode in [(folder, 0o700), *((f"{folder}/{file}", 0o600) for file in files)]:
            found = os.stat(name)
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (user.uid, mode), name
        assert folders or len(files) == 6
    assert tool(program, "unload", user.name) == (0, f"{user.name}: 2 sets removed\n", "")
    assert not os.path.exists(pins.folder(user.uid))
    assert tool(program, "unload", user.name) == (0, f"{user.name}: 0 sets removed\n", "")


def test_sets_of_another_version_are_replaced(
    program: Program, user: User, nothing_prepared: None
) -> None:
    tool(program, "load", "--sets", "1", user.name)
    (old,) = pins.sets(user.uid)
    os.rename(old.path, f"{pins.folder(user.uid)}/0-0123456789abcdef")
    assert "other version" in tool(program, "status", user.name)[1]
    assert tool(program, "load", "--sets", "1", user.name)[0] == 0
    assert [each.current for each in pins.sets(user.uid)] == [True]


def test_mistakes(program: Program, user: User) -> None:
    for words in (["load"], ["load", "no-such-user"], ["load", "--sets", "0", "root"], ["what"]):
        status, output, errors = tool(program, *words)
        assert (status, output) == (2, "")
        assert "passt-accel" in errors
    status, _, errors = tool(program, "load", user.name, prefix=user.prefix)
    assert status == 1
    assert errors.startswith("passt-accel: ")
    assert len(errors.splitlines()) == 1


def test_root_makes_its_own(program: Program, host: Netns) -> None:
    done = run(program, host, [], "--accel=ebpf")
    assert done.returncode == 0
    assert OWN in done.stderr
    assert (
        "0 connections accelerated, 0 now; 0 bytes from clients and 0 from servers by the kernel; "
        "credit used up 0 times; 0 returned to splicing; 0 not accelerated" in done.stderr
    )


def test_user_gets_what_is_prepared(program: Program, host: Netns, user: User,
                                    nothing_prepared: None) -> None:  # fmt: skip
    refused = run(program, host, user.prefix, "--accel=ebpf")
    assert refused.returncode == 0
    assert f"{REFUSED}no privilege to load a program, and no maps are prepared" in refused.stderr
    with prepared.sets(user, 1):
        done = run(program, host, user.prefix, "--accel=ebpf")
        assert done.returncode == 0
        assert PREPARED in done.stderr
        # Also as root of a user namespace, as Podman has it.
        done = run(program, host, [*user.prefix, "unshare", "-r", "--"], "--accel=ebpf")
        assert PREPARED in done.stderr


def test_sets_are_for_one_user_and_one_instance(
    program: Program, host: Netns, user: User, start_pasta: StartPasta, nothing_prepared: None
) -> None:
    with prepared.sets(user, 1):
        other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--"]
        assert f"{REFUSED}no privilege" in run(program, host, other, "--accel=ebpf").stderr
        start_pasta("--accel=ebpf")
        assert [each.used for each in pins.sets(user.uid)] == [True]
        done = run(program, host, user.prefix, "--accel=ebpf")
        assert "all prepared maps are in use" in done.stderr
        # Somebody else must not have a say in them.
        os.chmod(pins.sets(user.uid)[0].path, 0o770)
        assert "all prepared maps are in use" in run(
            program, host, user.prefix, "--accel=ebpf"
        ).stderr  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accel=warp"], "Invalid --accel: warp"),
        (["--accel-credit", "1M"], "--accel-credit needs --accel"),
        (["--accel=splice", "--accel-budget", "1M"], "--accel-budget needs --accel=ebpf"),
        (["--accel=splice", "--accel-compile"], "--accel-compile needs --accel=ebpf"),
        (["--accel=ebpf", "--accel-credit", "100"], "--accel-credit 100 too small (min 65536)"),
        (["--accel=ebpf", "--accel-budget", "1"], "--accel-budget 1 too small (min 1048576)"),
    ],
)
def test_options_that_make_no_sense(
    words: list[str], message: str, program: Program, host: Netns, user: User
) -> None:
    done = run(program, host, user.prefix, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith(message)


def test_compiling_takes_privilege(program: Program, host: Netns, user: User) -> None:
    done = run(program, host, user.prefix, "--accel=ebpf", "--accel-compile")
    assert done.returncode == 0
    assert f"{REFUSED}no privilege to load a program\n" in done.stderr


def exchange(path: Path, amount: int = MIB) -> None:
    client, server = path.pair()
    with client, server:
        sent = stream.Background(lambda: stream.send(client, amount))
        assert stream.read_exactly(server, amount)
        client.shutdown(socket.SHUT_WR)
        assert sent.result()


def test_works_again_after_sigkill(
    topology: Topology, program: Program, user: User, nothing_prepared: None
) -> None:
    """Both ends learn of it, and the next instance takes over the set."""
    with prepared.sets(user, 1):
        for _ in range(2):
            pasta = Pasta(program, topology.host, user, *OPTIONS, "--accel=ebpf")
            path = Path("fast-in", 4, topology, pasta)
            client, server = path.pair()
            server.settimeout(10)
            client.settimeout(10)
            writer = stream.Background(lambda sock=client: flood(sock))
            wait_for(lambda sock=server: len(sock.recv(MIB)), what="data")
            os.kill(pasta.process.pid, signal.SIGKILL)
            assert outcome(server) in ("EOF", "ECONNRESET")
            assert writer.result() in ("EPIPE", "ECONNRESET")
            client.close()
            server.close()
            pasta.process.wait(10)
            with pytest.raises(AssertionError, match="ended early"):
                pasta.close()
        pasta = Pasta(program, topology.host, user, *OPTIONS, "--accel=ebpf")
        # What the former instances left in the maps is gone.
        assert prepared.sockets(user.uid) == 0
        exchange(Path("fast-in", 6, topology, pasta))
        pasta.close()


def flood(sock: socket.socket) -> str:
    """Send until that is impossible, and return the error's name."""
    try:
        while True:
            sock.sendall(bytes(MIB))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def test_statistics(program: Program, host: Netns, topology: Topology, user: User,
                    prepared_maps: None) -> None:  # fmt: skip
    pasta = Pasta(program, host, user, *OPTIONS, "--accel=ebpf", "-f", "--stats", "1")
    path = Path("fast-in", 4, topology, pasta)
    client, server = path.pair()
    with client, server:
        for _ in range(128):
            client.sendall(bytes(MIB // 64))
            assert stream.read_exactly(server, MIB // 64)
            time.sleep(0.002)  # not as fast as bulk, which would be spliced

        def shown() -> bool:
            """Look for a row with connections on the fast path, and the 2 MiB that they carried."""
            # Something for the loop to do, as rows are printed after events.
            with path.listen():
                path.connect().close()
            rows = [line.split() for line in pasta.messages().splitlines() if line[-1:].isdigit()]
            return any(
                int(row[7]) >= 1 and int(row[8]) >= 1 and 1 <= int(row[9]) <= 3 for row in rows
            )

        wait_for(shown, what="statistics of the fast path", interval=0.3)
    assert "MiB from clients forwarded by the kernel" in pasta.messages()
    pasta.close()
