"""Resolvers of the host that the guest cannot reach as such: dig through pasta to dnsmasq."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Program, with_resolv_conf
from tests.system.kit.servers import dnsmasq
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

#: A loopback address that is not the one the router address is mapped to, where there is one.
RESOLVER = {4: "127.0.0.53", 6: "::1"}
FORWARD = {4: "169.254.1.1", 6: "2001:db8:53::1"}
TRANSPORTS = pytest.mark.parametrize("transport", ["+notcp", "+tcp"])

WriteConf = Callable[[str], str]


@pytest.fixture
def resolv_conf(folder: str, request: pytest.FixtureRequest) -> WriteConf:
    """A function that returns the path of a resolv.conf with the given content."""

    def write(content: str) -> str:
        path = Path(folder) / "resolv.conf"
        path.write_text(content)
        path.chmod(0o644)
        return str(path)

    return write


def serve(ns: Netns, *addresses: str, answer: str = "192.0.2.53") -> None:
    """Start a resolver in *ns* that answers ``test.example`` with *answer*."""
    dnsmasq(ns, addresses, [f"--address=/test.example/{answer}"])


def ask(ns: Netns, server: str, *words: str) -> str:
    """Return the answer for ``test.example`` by *server*, empty if there is none."""
    words = ("+tries=1", "+time=3", "+short", f"@{server}", *words, "test.example")
    done = ns.run(["dig", *words], check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


@TRANSPORTS
def test_router_address_stands_for_a_loopback_resolver(
    start_pasta: StartPasta, resolv_conf: WriteConf, host: Netns, version: int, transport: str
) -> None:
    serve(host, RESOLVER[version])
    conf = resolv_conf(f"nameserver {RESOLVER[version]}\n")
    pasta = start_pasta(resolv_conf=conf)
    assert ask(pasta.ns, net.GATEWAY[version], transport) == "192.0.2.53"


@TRANSPORTS
def test_forward_address(
    start_pasta: StartPasta, resolv_conf: WriteConf, host: Netns, version: int, transport: str
) -> None:
    serve(host, RESOLVER[version])
    conf = resolv_conf(f"nameserver {RESOLVER[version]}\n")
    pasta = start_pasta("--dns-forward", FORWARD[version], "--no-map-gw", resolv_conf=conf)
    assert "nameserver" not in pasta.messages()
    assert ask(pasta.ns, FORWARD[version], transport) == "192.0.2.53"


def test_explicit_host_resolver(
    start_pasta: StartPasta, resolv_conf: WriteConf, remote: Netns, version: int
) -> None:
    serve(remote, net.REMOTE[version])
    conf = resolv_conf("nameserver 192.0.2.254\nnameserver 2001:db8::254\n")
    options = ("--dns-forward", FORWARD[version], "--dns-host", net.REMOTE[version])
    pasta = start_pasta(*options, resolv_conf=conf)
    assert ask(pasta.ns, FORWARD[version]) == "192.0.2.53"
    # The resolver itself is reached by its own address as well, and answers from there.
    assert ask(pasta.ns, net.REMOTE[version]) == "192.0.2.53"


def test_router_that_is_the_resolver(
    start_pasta: StartPasta, resolv_conf: WriteConf, topology: Topology, version: int
) -> None:
    """Its address stands for the host's loopback, but not when it is asked."""
    serve(topology.remote, net.GATEWAY[version], answer="192.0.2.1")
    serve(topology.host, net.LOOPBACK[version], answer="192.0.2.2")
    pasta = start_pasta(resolv_conf=resolv_conf(f"nameserver {net.GATEWAY[version]}\n"))
    assert ask(pasta.ns, net.GATEWAY[version]) == "192.0.2.1"


def test_ports_of_a_resolver(
    start_pasta: StartPasta, resolv_conf: WriteConf, host: Netns, version: int
) -> None:
    """DNS over TLS is forwarded, the next port belongs to whom the address belongs."""
    listeners = [host.listen(RESOLVER[version], port) for port in (53, 853)]
    conf = resolv_conf(f"nameserver {RESOLVER[version]}\n")
    pasta = start_pasta("--dns-forward", net.REMOTE[version], resolv_conf=conf)
    for listener in listeners:
        port = listener.getsockname()[1]
        with pasta.ns.connect(net.REMOTE[version], port) as client:
            server, _ = listener.accept()
            server.sendall(b"x")
            assert client.recv(1) == b"x"
            server.close()
    with pytest.raises(ConnectionRefusedError):
        pasta.ns.connect(net.REMOTE[version], 54)


def test_no_resolver_of_that_version(
    start_pasta: StartPasta, resolv_conf: WriteConf, host: Netns, version: int, ours_only: None
) -> None:
    """Refused at once; the host's loopback is not asked instead."""
    serve(host, net.LOOPBACK[version])
    conf = resolv_conf(f"nameserver {RESOLVER[10 - version]}\n")
    pasta = start_pasta("--dns-forward", FORWARD[version], resolv_conf=conf)
    with pytest.raises(ConnectionRefusedError):
        pasta.ns.connect(FORWARD[version], 53)
    client = pasta.ns.udp(family=socket.AF_INET if version == 4 else socket.AF_INET6)
    client.connect((FORWARD[version], 53))
    client.send(b"query")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)


def test_outbound_address_and_loopback_resolver(
    start_pasta: StartPasta, resolv_conf: WriteConf, host: Netns, ours_only: None
) -> None:
    serve(host, RESOLVER[4])
    conf = resolv_conf(f"nameserver {RESOLVER[4]}\n")
    options = ("-o", net.OWN[4], "--outbound-if4", "eth0")
    pasta = start_pasta(*options, resolv_conf=conf)
    for transport in ("+notcp", "+tcp"):
        assert ask(pasta.ns, net.GATEWAY[4], transport) == "192.0.2.53"


def test_podman(
    topology: Topology, program: Program, user: User, resolv_conf: WriteConf, tmp_path: Path
) -> None:
    """Podman's words; it logs whatever is printed, so nothing may be."""
    host = topology.host
    serve(host, RESOLVER[4])
    conf = resolv_conf(f"nameserver {RESOLVER[4]}\n")
    holder = host.popen([*user.prefix, "unshare", "-U", "-r", "-n", "sleep", "60"])
    path = f"/proc/{holder.pid}/ns/net"
    wait_for(lambda: Path(path).readlink() != Path("/proc/self/ns/net").readlink())
    wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
    enter = [*user.prefix, "nsenter", f"--target={holder.pid}", "--user", "--preserve-credentials"]
    words = ["--config-net", "--dns-forward", "169.254.1.1", "-t", "none", "-u", "none"]
    words += ["-T", "none", "-U", "none", "--no-map-gw", "--quiet", "--netns", path]
    words += ["--map-guest-addr", "169.254.1.2"]
    done = host.run([*program.argv, *words], prefix=[*with_resolv_conf(conf), *enter], check=False)
    # The upstream program may complain of the processor.
    printed = [line for line in done.stderr.splitlines() if "AVX2" not in line]
    assert (done.returncode, done.stdout, printed) == (0, "", [])
    inside = Netns("container", path, topology.processes)
    for transport in ("+notcp", "+tcp"):
        assert ask(inside, "169.254.1.1", transport) == "192.0.2.53"
