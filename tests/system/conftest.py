"""Fixtures of the system tests.

``topology`` is shared by all tests of a run, as building it costs more than most tests; what a test
starts in it is ended with the test. Tests that need another network build their own with
:class:`kit.topology.Topology` as a context manager.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.system.kit import paths, prepared
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.rawguest import RawGuest
from tests.system.kit.topology import Topology, remove_stale
from tests.system.kit.users import User, ordinary_user

StartPasta = Callable[..., Pasta]
TIME_LIMIT = 90


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers of these tests."""
    config.addinivalue_line(
        "markers",
        "paths(*names, versions): ways for the fixture `path`; pairs of name and version, too",
    )
    config.addinivalue_line("markers", "time_limit(seconds): instead of TIME_LIMIT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root when there is none."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.skip(reason="system tests need root"))


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End any test after TIME_LIMIT seconds, as a failure with the stack of what it waits for."""
    marker = request.node.get_closest_marker("time_limit")
    limit = int(marker.args[0]) if marker else TIME_LIMIT

    def expire(_number: int, _frame: object) -> None:
        raise AssertionError(f"test took more than {limit} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(limit)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def folder() -> Iterator[str]:
    """A folder that the ordinary user can read, gone after the run."""
    path = tempfile.mkdtemp(prefix="passt-systest-", dir="/var/tmp")
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def reachable_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have ordinary users reach the folders that tests make readable for them."""
    folder = tmp_path_factory.getbasetemp()
    while folder.parent != folder and folder.stat().st_mode & 0o077 == 0:
        folder.chmod(0o755)
        folder = folder.parent


@pytest.fixture(scope="session")
def user() -> User:
    """The ordinary user; /dev/net/tun is opened for it, as distributions have it."""
    os.chmod("/dev/net/tun", 0o666)
    return ordinary_user()


@pytest.fixture
def sockets(folder: str, user: User) -> Iterator[str]:
    """A folder in which the ordinary user may make sockets."""
    path = os.path.join(folder, "sockets")
    os.mkdir(path)
    os.chown(path, user.uid, user.gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def program(folder: str, user: User) -> Program:
    """The pasta under test."""
    return Program.from_environment(folder, user)


@pytest.fixture
def ours_only(program: Program) -> None:
    """Mark behaviour that upstream gets wrong: not tested there, unless asked for.

    With ``PASTA_RUN_DEFECTS`` in the environment such tests run against upstream as well, where
    they must fail: that shows that they test something.
    """
    if program.upstream and "PASTA_RUN_DEFECTS" not in os.environ:
        pytest.skip("known defect of the upstream program")


@pytest.fixture(scope="session")
def shared_topology() -> Iterator[Topology]:
    """The network of the run; tests use ``topology``."""
    remove_stale()
    with Topology() as topology:
        yield topology


@pytest.fixture
def topology(shared_topology: Topology) -> Iterator[Topology]:
    """The usual network, IPv4 and IPv6, with nothing running in it."""
    yield shared_topology
    shared_topology.processes.stop_all()


@pytest.fixture
def host(topology: Topology) -> Netns:
    """The namespace in which pasta runs."""
    return topology.host


@pytest.fixture
def remote(topology: Topology) -> Netns:
    """The namespace of the router and of remote services."""
    return topology.remote


@pytest.fixture
def start_pasta(topology: Topology, program: Program, user: User) -> Iterator[StartPasta]:
    """A function that starts a pasta in ``host`` as the ordinary user, with the given options.

    Each instance must still run at the end of the test, and must not have reported a fault.
    """
    instances: list[Pasta] = []

    def start(*options: str, config_net: bool = True, resolv_conf: str = "") -> Pasta:
        instance = Pasta(
            program, topology.host, user, *options, config_net=config_net, resolv_conf=resolv_conf
        )
        instances.append(instance)
        return instance

    yield start
    failures = []
    for instance in reversed(instances):
        try:
            instance.close()
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)


StartGuest = Callable[..., RawGuest]


@pytest.fixture
def start_guest(start_pasta: StartPasta) -> Iterator[StartGuest]:
    """A function that starts a pasta with the given options and returns its raw guest."""
    guests: list[RawGuest] = []

    def start(*options: str) -> RawGuest:
        guest = RawGuest(start_pasta(*options, config_net=False))
        guests.append(guest)
        guest.ready()
        return guest

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(start_guest: StartGuest) -> RawGuest:
    """A raw guest of a pasta that forwards the TCP and UDP ports 7001 to it."""
    return start_guest("-t", "7001", "-u", "7001")


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    """The IP version: the test runs for both."""
    return int(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that take ``path`` for all ways and IP versions, or those of their marker.

    ``@pytest.mark.paths("remote", "inbound", versions=(4,))`` chooses, or
    ``@pytest.mark.paths(("remote", 4), ("inbound", 6))``.
    """
    if "path" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("paths")
    names = marker.args if marker and marker.args else paths.ALL
    versions = marker.kwargs.get("versions", (4, 6)) if marker else (4, 6)
    choices = [
        choice
        for name in names
        for choice in ([name] if isinstance(name, tuple) else [(name, v) for v in versions])
    ]
    ids = [f"{name}-ipv{version}" for name, version in choices]
    metafunc.parametrize("path", choices, ids=ids, indirect=True)


@pytest.fixture(scope="session")
def prepared_maps(program: Program, user: User) -> Iterator[None]:
    """What pasta needs to accelerate connections of the ordinary user."""
    if program.upstream:
        pytest.skip("the upstream program has no --accel")
    with prepared.sets(user, 3):
        yield


@pytest.fixture
def path(request: pytest.FixtureRequest, topology: Topology, start_pasta: StartPasta) -> paths.Path:
    """A way through a pasta of its own, see paths.py."""
    name, version = request.param
    options = paths.OPTIONS
    if name in paths.FAST:
        request.getfixturevalue("prepared_maps")
        options = (*options, "--accel=ebpf")
    return paths.Path(name, version, topology, start_pasta(*options))
