"""Who reaches whom by TCP: mappings, forwarded ports, splicing and its limits, and who is seen."""

from __future__ import annotations

import copy
import socket
import time

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.paths import Path
from tests.system.kit.users import User

pytestmark = pytest.mark.system


def say(client: socket.socket, listener: socket.socket) -> tuple[str, int]:
    """Send a word from *client* to who accepts at *listener*; return who that sees."""
    server, peer = listener.accept()
    with server:
        client.sendall(b"hello")
        assert stream.read_exactly(server, 5) == b"hello"
    return peer[0], peer[1]


def test_peer_addresses(path: Path) -> None:
    """What the server sees as its client, for each way."""
    client, server = path.pair()
    with client, server:
        seen = server.getpeername()[0]
        expected = {
            "remote": net.HOST,
            "gateway": net.LOOPBACK,
            "own": net.OWN,
            "inbound": net.REMOTE,
            "splice-in": net.HOST,
            "splice-out": net.LOOPBACK,
        }[path.name]
        assert seen == expected[path.version]
        if path.name == "inbound":
            assert server.getpeername()[1] == client.getsockname()[1]


def test_ports_are_translated(
    start_pasta: StartPasta, host: Netns, remote: Netns, version: int
) -> None:
    """``-t 8080:80`` and ``-T`` at the same time: each uses its own namespace's port."""
    pasta = start_pasta("-t", "7080:80", "-T", "7081:7082")
    with pasta.ns.listen(net.HOST[version], 80) as web:
        for ns, target in ((remote, net.HOST[version]), (host, net.LOOPBACK[version])):
            with ns.connect(target, 7080) as client:
                server, _ = web.accept()
                with server:
                    client.sendall(b"in")
                    assert stream.read_exactly(server, 2) == b"in"
    with (
        host.listen(net.LOOPBACK[version], 7082) as service,
        pasta.ns.connect(net.LOOPBACK[version], 7081) as client,
    ):
        server, _ = service.accept()
        with server:
            client.sendall(b"out")
            assert stream.read_exactly(server, 3) == b"out"


def test_host_client_of_forwarded_port_by_tap(
    start_pasta: StartPasta, host: Netns, version: int
) -> None:
    """A host process that uses the host's own external address comes by the tap, as the gateway."""
    pasta = start_pasta("-t", "7001")
    with (
        pasta.ns.listen(net.HOST[version], 7001) as listener,
        host.connect(net.HOST[version], 7001) as client,
    ):
        server, peer = listener.accept()
        with server:
            assert peer[0] == net.GATEWAY[version]
            client.sendall(b"by the tap")
            assert stream.read_exactly(server, 10) == b"by the tap"


def test_no_map_gw(start_pasta: StartPasta, remote: Netns, host: Netns, version: int) -> None:
    """Without the mapping, the gateway is the gateway."""
    pasta = start_pasta("--no-map-gw")
    gateway = net.GATEWAY[version]
    with (
        remote.listen(gateway, 7002) as listener,
        host.listen(net.LOOPBACK[version], 7002),
        pasta.ns.connect(gateway, 7002) as client,
    ):
        server, _ = listener.accept()
        with server:
            client.sendall(b"router")
            assert stream.read_exactly(server, 6) == b"router"


def test_loopback_of_the_namespace_is_not_exposed(
    start_pasta: StartPasta, host: Netns, version: int
) -> None:
    """A service bound to the namespace's loopback is not reachable unless asked for."""
    pasta = start_pasta("-t", "7001")
    with (
        pasta.ns.listen(net.LOOPBACK[version], 7001),
        pytest.raises(ConnectionResetError),
        host.connect(net.LOOPBACK[version], 7001) as client,
    ):
        client.recv(1)


def test_other_loopback_addresses_are_spliced(start_pasta: StartPasta, host: Netns) -> None:
    pasta = start_pasta("-t", "7001")
    with pasta.ns.listen(net.HOST[4], 7001) as listener:
        for target, source in (("127.0.0.5", ""), ("127.0.0.1", "127.0.0.9")):
            with host.connect(target, 7001, source=(source, 0)) as client:
                assert say(client, listener)[0] == net.HOST[4]


def test_mapped_loopback_client_is_spliced(start_pasta: StartPasta, host: Netns) -> None:
    """An IPv6 socket that speaks IPv4."""
    pasta = start_pasta("-t", "7001")
    with (
        pasta.ns.listen(net.HOST[4], 7001) as listener,
        host.connect("::ffff:127.0.0.1", 7001) as client,
    ):
        assert say(client, listener)[0] == net.HOST[4]


def test_namespace_listener_serves_loopback_only(
    start_pasta: StartPasta, host: Netns, version: int
) -> None:
    pasta = start_pasta("-T", "7003")
    with (
        host.listen(net.LOOPBACK[version], 7003),
        pytest.raises(ConnectionRefusedError),
    ):
        pasta.ns.connect(net.HOST[version], 7003)


def test_no_splice(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """The host's loopback clients come by the tap as well, from the gateway's address."""
    pasta = start_pasta("-t", "7001", "--no-splice")
    with (
        pasta.ns.listen(net.HOST[version], 7001) as listener,
        host.connect(net.LOOPBACK[version], 7001) as client,
    ):
        assert say(client, listener)[0] == net.GATEWAY[version]


def test_splice_only(start_pasta: StartPasta, host: Netns, remote: Netns, version: int) -> None:
    """No interface; the host's loopback is served, others are reset."""
    pasta = start_pasta("-t", "7001", "--splice-only", config_net=False)
    assert [name for _, name in pasta.ns.call(socket.if_nameindex)] == ["lo"]
    with pasta.ns.listen(net.LOOPBACK[version], 7001) as listener:
        with host.connect(net.LOOPBACK[version], 7001) as client:
            say(client, listener)
        with (
            pytest.raises(ConnectionResetError),
            remote.connect(net.HOST[version], 7001) as client,
        ):
            client.recv(1)


def test_low_target_ports(
    start_pasta: StartPasta, host: Netns, remote: Netns, version: int
) -> None:
    """The user may not bind port 80 on the host; connecting to it is another matter."""
    pasta = start_pasta()
    for ns, address, target in (
        (host, net.LOOPBACK[version], net.GATEWAY[version]),
        (host, net.OWN[version], net.OWN[version]),
        (remote, net.REMOTE[version], net.REMOTE[version]),
    ):
        with ns.listen(address, 80) as listener, pasta.ns.connect(target, 80) as client:
            say(client, listener)


def test_nonlocal_bind(start_pasta: StartPasta, host: Netns, remote: Netns, version: int) -> None:
    """On a host where foreign addresses can be bound, no target is mistaken for a local one."""
    key = f"net/ipv{version}/ip_nonlocal_bind"
    host.sysctl(key, 1)
    try:
        pasta = start_pasta()
        with (
            remote.listen(net.REMOTE[version], 7002) as listener,
            pasta.ns.connect(net.REMOTE[version], 7002) as client,
        ):
            say(client, listener)
    finally:
        host.sysctl(key, 0)


def test_specific_listening_address(start_pasta: StartPasta, remote: Netns, version: int) -> None:
    """``-t ADDRESS/PORT``: there, and nowhere else."""
    pasta = start_pasta("-t", f"{net.OWN[version]}/7001")
    with pasta.ns.listen(net.HOST[version], 7001) as listener:
        with remote.connect(net.OWN[version], 7001) as client:
            say(client, listener)
        with pytest.raises(ConnectionRefusedError):
            remote.connect(net.HOST[version], 7001)


def test_no_descriptors_left(ours_only: None, program: Program, host: Netns, user: User) -> None:
    """More connections than descriptors: no busy loop, and service when some are free again."""
    limited = copy.copy(user)
    limited.prefix = [*user.prefix, "prlimit", "--nofile=256:256", "--"]
    pasta = Pasta(program, host, limited, "-t", "7001")
    with pasta.ns.listen(net.HOST[4], 7001, backlog=512) as listener:
        clients = []
        for _ in range(300):
            client = host.new_socket(socket.AF_INET, socket.SOCK_STREAM)
            client.setblocking(False)
            client.connect_ex((net.HOST[4], 7001))
            clients.append(client)
        time.sleep(0.5)
        before = pasta.cpu_seconds()
        time.sleep(0.7)
        assert pasta.cpu_seconds() - before < 0.2, "busy while nothing can be accepted"
        assert pasta.alive()
        for client in clients:
            client.close()

        def served() -> bool:
            listener.settimeout(0.0)
            try:
                while True:
                    listener.accept()[0].close()
            except BlockingIOError:
                pass
            listener.settimeout(2.0)
            try:
                with host.connect(net.HOST[4], 7001, timeout=2.0) as client:
                    client.sendall(b"hello")
                    while True:
                        server, _ = listener.accept()
                        with server:
                            if server.recv(5) == b"hello":
                                return True
            except OSError:
                return False

        wait_for(served, 10.0, "service after the shortage")
    pasta.close()
