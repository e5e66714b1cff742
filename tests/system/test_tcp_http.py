"""HTTP with curl and nginx: bulk both ways with a hash, and many requests at a time.

``PASTA_BULK_MB`` sets the size of the bulk transfers, 200 by default.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Program, run
from tests.system.kit.servers import HTTP_PORT, SMALL, Nginx
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

MIB = 1 << 20
BULK = int(os.environ.get("PASTA_BULK_MB", "200")) * MIB


def url(target: str, name: str, port: int = HTTP_PORT) -> str:
    """Return the URL of file *name* on *target*."""
    return f"http://[{target}]:{port}/{name}" if ":" in target else f"http://{target}:{port}/{name}"


@pytest.fixture(scope="module")
def bulk(folder: str) -> Iterator[str]:
    """A large file that the ordinary user can read."""
    path = os.path.join(folder, "bulk")
    stream.write_file(path, BULK)
    yield path
    os.unlink(path)


@pytest.fixture
def web(folder: str, topology: Topology) -> Iterator[Nginx]:
    """nginx in *remote*."""
    path = os.path.join(folder, "web")
    server = Nginx(topology.remote, path, (4, 6))
    yield server
    topology.processes.stop(server.process)
    shutil.rmtree(path)


def test_download(
    program: Program, host: Netns, user: User, web: Nginx, bulk: str, version: int
) -> None:
    """As users do it: the client is the command that pasta starts."""
    os.link(bulk, web.path("bulk"))
    fetch = f"curl -sSf --max-time 80 '{url(net.REMOTE[version], 'bulk')}' | sha256sum"
    done = run(program, host, user, [], ["sh", "-c", fetch], timeout=85)
    assert done.stdout.split()[0] == stream.digest(BULK)


def test_upload(
    program: Program, host: Netns, user: User, web: Nginx, bulk: str, version: int
) -> None:
    target = url(net.REMOTE[version], "stored")
    words = ["curl", "-sSf", "--max-time", "80", "-T", bulk, target]
    run(program, host, user, [], words, timeout=85)
    assert os.path.getsize(web.path("stored")) == BULK
    assert stream.file_digest(web.path("stored")) == stream.digest(BULK)


def fetch_small(ns: Netns, target: str, port: int = HTTP_PORT) -> None:
    """Make 200 requests, each by a connection of its own and all at once, for a small page."""
    words = ["curl", "-sSf", "--no-progress-meter", "-Z", "--parallel-immediate"]
    words += ["--parallel-max", "200", "-w", "%{http_code} %{num_connects}\\n"]
    for number in range(200):
        words += ["-o", "-", url(target, f"small?{number}", port)]
    out = ns.run(words).stdout
    assert out.count(SMALL.decode()) == 200
    rest = out.replace(SMALL.decode(), "").split("\n")
    assert sum(line.startswith("200 ") for line in rest) == 200


def test_200_parallel_requests(start_pasta: StartPasta, web: Nginx, version: int) -> None:
    fetch_small(start_pasta().ns, net.REMOTE[version])


@pytest.mark.parametrize("way", ["inbound", "splice-in", "splice-out"])
def test_forwarded(
    start_pasta: StartPasta, topology: Topology, folder: str, version: int, way: str
) -> None:
    """A server inside, from outside by the tap or from the host's loopback, and one on the host.

    Bulk both ways, hashed, and many requests at a time.
    """
    size = min(BULK, 50 * MIB)
    pasta = start_pasta("-t", f"8081:{HTTP_PORT}", "-T", f"8081:{HTTP_PORT}")
    path = os.path.join(folder, "inside")
    server = Nginx(topology.host if way == "splice-out" else pasta.ns_as_root, path, (4, 6))
    try:
        stream.write_file(server.path("content"), size, 7)
        source = server.path("content")
        ns, target = {
            "inbound": (topology.remote, net.HOST[version]),
            "splice-in": (topology.host, net.LOOPBACK[version]),
            "splice-out": (pasta.ns, net.LOOPBACK[version]),
        }[way]
        fetch_small(ns, target, 8081)
        fetch = f"curl -sSf '{url(target, 'content', 8081)}' | sha256sum"
        done = ns.run(["sh", "-c", fetch], timeout=60)
        assert done.stdout.split()[0] == stream.digest(size, 7)
        ns.run(["curl", "-sSf", "-T", source, url(target, "stored", 8081)], timeout=60)
        assert stream.file_digest(server.path("stored")) == stream.digest(size, 7)
    finally:
        topology.processes.stop(server.process)
        shutil.rmtree(path)
