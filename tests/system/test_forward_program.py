"""Port forwarding by the whole program: what opens, what cannot, and what is said about it."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Program, forwarding
from tests.system.kit.topology import Topology, veth_pair
from tests.system.kit.users import User

pytestmark = pytest.mark.system

GIVEN_UP = "\nCouldn't listen on requested ports\n"
EXHAUSTED = "Too many open files"
#: An address that the host does not have, in nobody's network.
FOREIGN = "192.0.2.77"
#: What upstream's says of the way in which it is started here.
WRONG_BUILD = "Can't run AVX2 build, using non-AVX2 version: No such file or directory\n"
MDNS, GROUP = 5353, "224.0.0.251"


def rows(ns: Netns, kind: str) -> list[int]:
    """Ports of the TCP listeners, or of UDP sockets for anyone, in one of the kernel's lists."""
    state = "0A" if kind.startswith("tcp") else "07"
    return [int(row[1].rpartition(":")[2], 16) for row in ns.table(kind) if row[3] == state]


def talk(listener: socket.socket, client: socket.socket) -> str:
    """A word each way between *client* and whom *listener* accepts; returns who that saw."""
    server, (peer, *_) = listener.accept()
    with client, server:
        client.sendall(b"query")
        assert stream.read_exactly(server, 5) == b"query"
        server.sendall(b"answer")
        assert stream.read_exactly(client, 6) == b"answer"
    return str(peer)


def ask(client: socket.socket, target: tuple[str, int], server: socket.socket) -> None:
    """A datagram each way; the answer is from whom the client asked."""
    client.sendto(b"query", target)
    data, source = server.recvfrom(100)
    assert data == b"query"
    server.sendto(b"answer", source)
    data, source = client.recvfrom(100)
    assert (data, source[:2]) == (b"answer", target)


# -- what cannot be opened -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-t", "7100-7104"], "Listen failed for HOST TCP port */7103: Address already in use"),
        (["-t", "%nope/2222"], "Listen failed for HOST TCP port *%nope/2222: No such device"),
        (
            ["-u", f"{FOREIGN}/7100"],
            f"Listen failed for HOST UDP port {FOREIGN}/7100: Cannot assign requested address",
        ),
        (["-t", "~25,~1024-65535"], "All listens failed for HOST TCP */1-24"),
        (["-t", "20000-20999"], EXHAUSTED),
        (["-t", "all"], EXHAUSTED),
        (["-T", "20000-20999"], EXHAUSTED),
    ],
)
def test_failures(
    ours_only: None,
    program: Program,
    host: Netns,
    user: User,
    options: list[str],
    message: str,
) -> None:
    """Status 1, one line that names the port and one that names the consequence, no command run."""
    words = [*program.argv, "-q", *forwarding(options), "--", "echo", "ran"]
    with host.listen("127.0.0.1", 7103):
        limited = [*user.prefix, "prlimit", "--nofile=256:256", "--"]
        done = host.run(words, prefix=limited, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(message + GIVEN_UP)
    assert done.stderr.count("\n") == 2


def test_best_effort_is_silent(start_pasta: StartPasta, host: Netns) -> None:
    """Ports that an ordinary user cannot have are left out without a word, all in one rule."""
    pasta = start_pasta("-d", "-t", "~8080,~1100-65535")
    assert set(range(1024, 1100)) <= set(rows(host, "tcp6"))
    assert min(rows(host, "tcp6")) >= 1024
    if not pasta.program.upstream:  # which tells in debug messages
        assert "isten" not in pasta.messages().partition("Outbound forwarding rules")[2]


# -- what opens ----------------------------------------------------------------------------------


def test_thousands_of_ports(start_pasta: StartPasta, host: Netns, remote: Netns) -> None:
    """Ranges as container managers publish them: each port is open, and leads to its own."""
    pasta = start_pasta(
        *("-t", "20000-20999:30000-30999", "-u", "20000-20999:30000-30999"),
        *("-t", "64536-65535", "-u", "127.0.0.1/64536-65535:63536-64535"),
    )
    assert set(rows(host, "tcp6")) >= {*range(20000, 21000), *range(64536, 65536)}
    assert set(rows(host, "udp6")) >= set(range(20000, 21000))
    for port, target in ((20000, 30000), (20500, 30500), (20999, 30999), (65535, 65535)):
        for version in (4, 6):
            with pasta.ns.listen(net.HOST[version], target) as listener:
                talk(listener, host.connect(net.LOOPBACK[version], port))
                talk(listener, remote.connect(net.HOST[version], port))
    for port, target in ((20000, 30000), (20999, 30999)):
        for version in (4, 6):
            with pasta.ns.udp(net.HOST[version], target) as server:
                for ns, address in ((host, net.LOOPBACK), (remote, net.HOST)):
                    client = ns.udp(family=server.family)
                    ask(client, (address[version], port), server)
    with pasta.ns.udp(net.HOST[4], 64535) as server:
        ask(host.udp(family=server.family), ("127.0.0.1", 65535), server)


def test_one_version_only(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """Rules without address get sockets of the version that is enabled."""
    pasta = start_pasta(f"-{version}", "-t", "7110", "-u", "7111", "-T", "7112", "-U", "7113")
    used, unused = ("", "6") if version == 4 else ("6", "")
    for ns, tcp, udp in ((host, 7110, 7111), (pasta.ns, 7112, 7113)):
        assert tcp in rows(ns, f"tcp{used}")
        assert udp in rows(ns, f"udp{used}")
        assert tcp not in rows(ns, f"tcp{unused}")
        assert udp not in rows(ns, f"udp{unused}")
    with pasta.ns.listen(net.HOST[version], 7110) as listener:
        talk(listener, host.connect(net.LOOPBACK[version], 7110))


def test_low_ports_in_the_namespace(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """An ordinary user's pasta may have them there."""
    pasta = start_pasta("-T", "80:7080", "-U", "53:7053")
    loopback = net.LOOPBACK[version]
    with host.listen(loopback, 7080) as listener, host.udp(loopback, 7053) as server:
        talk(listener, pasta.ns.connect(loopback, 80))
        ask(pasta.ns.udp(family=server.family), (loopback, 53), server)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53", "::1"])
def test_loopback_addresses_are_kept(start_pasta: StartPasta, host: Netns, address: str) -> None:
    """Outwards always; inwards if asked to."""
    pasta = start_pasta("-T", "7120", "-t", "7121", "--host-lo-to-ns-lo")
    for client_ns, server_ns, port in ((pasta.ns, host, 7120), (host, pasta.ns, 7121)):
        with server_ns.listen(address, port) as listener:
            talk(listener, client_ns.connect(address, port))


def test_other_links_of_the_namespace(start_pasta: StartPasta, host: Netns, remote: Netns) -> None:
    """Outbound ports are not for those who reach the namespace by a link of its own, as a VPN."""
    pasta = start_pasta("-T", "7130", "-U", "7130")
    veth_pair(remote, "vpn0", pasta.ns_as_root, "vpn1")
    try:
        remote.ip("addr add 10.9.0.1/24 dev vpn0\n")
        pasta.ns_as_root.ip("addr add 10.9.0.2/24 dev vpn1\n")
        with host.listen("127.0.0.1", 7130), host.udp("127.0.0.1", 7130) as server:
            with pytest.raises(ConnectionRefusedError):
                remote.connect("10.9.0.2", 7130)
            with remote.udp("10.9.0.1") as client:
                client.connect(("10.9.0.2", 7130))
                client.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    client.recv(1)
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1)
    finally:
        remote.ip("link del vpn0\n")


def test_freebind(start_pasta: StartPasta, host: Netns, remote: Netns) -> None:
    """An address that the host gets later: served then, and answered from."""
    pasta = start_pasta("--freebind", "-t", f"{FOREIGN}/7140", "-u", f"{FOREIGN}/7140")
    host.ip(f"route add local {FOREIGN}/32 dev lo\n")
    remote.ip(f"route add {FOREIGN}/32 via {net.HOST[4]}\n")
    try:
        with pasta.ns.listen(net.HOST[4], 7140) as listener:
            talk(listener, remote.connect(FOREIGN, 7140))
        with pasta.ns.udp(net.HOST[4], 7140) as server:
            ask(remote.udp(family=server.family), (FOREIGN, 7140), server)
    finally:
        host.ip(f"route del local {FOREIGN}/32 dev lo\n")
        remote.ip(f"route del {FOREIGN}/32 via {net.HOST[4]}\n")


def test_map_guest_addr(start_pasta: StartPasta, host: Netns, version: int) -> None:
    """The host's own address, which the guest has as well, by another name."""
    mapped = {4: "192.0.2.78", 6: "2001:db8:9::78"}[version]
    pasta = start_pasta("--map-guest-addr", mapped)
    with host.listen(net.HOST[version], 7150) as listener:
        talk(listener, pasta.ns.connect(mapped, 7150))
    with host.udp(net.HOST[version], 7150) as server:
        ask(pasta.ns.udp(family=server.family), (mapped, 7150), server)


def test_multicast_by_loopback_goes_round_once(start_pasta: StartPasta, host: Netns) -> None:
    """A group's datagram keeps its destination on its way through the bypass, and is not echoed."""
    pasta = start_pasta("-u", f"0.0.0.0/{MDNS}")
    membership = struct.Struct("4s4s")

    def member(ns: Netns, address: str) -> socket.socket:
        sock = ns.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wanted = membership.pack(socket.inet_aton(GROUP), socket.inet_aton(address))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
        sock.bind((GROUP, MDNS))
        return sock

    inside = member(pasta.ns, net.HOST[4])
    outside = member(host, "127.0.0.1")
    with host.udp("127.0.0.1") as sender:
        loopback = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        sender.sendto(b"who is there?", (GROUP, MDNS))
        assert inside.recv(100) == b"who is there?"
        assert outside.recv(100) == b"who is there?"
        time.sleep(0.3)
        for sock in (inside, outside):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                raise AssertionError(sock.recvfrom(100))


# -- --splice-only -------------------------------------------------------------------------------


def test_splice_only_has_nothing_but_loopback(program: Program, host: Netns, user: User) -> None:
    """No interface, address, route or neighbour, whatever options say of them, and no word."""
    words = ["--splice-only", "-m", "60", "-a", "192.0.2.1", "-g", "192.0.2.2", "--config-net"]
    options = forwarding(words)
    show = "ip -o link; ip -o addr; ip route show table main; ip -6 route show table main"
    words = [*program.argv, "-q", *options, "--", "sh", "-c", show]
    done = host.run(words, prefix=user.prefix)
    assert done.stderr.replace(WRONG_BUILD, "") == ""
    lines = done.stdout.splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == ["lo"] * len(lines)
    assert "mtu 65536" in lines[0]
    assert "UP" in lines[0]


@pytest.mark.parametrize(
    "other",
    [
        "--no-splice",
        "--outbound-if4=lo",
        "--outbound-if6=lo",
        "--ns-ifname=x",
        "--ns-mac-addr=02:00:00:00:00:01",
    ],
)
def test_splice_only_excludes(
    ours_only: None, program: Program, host: Netns, user: User, other: str
) -> None:
    words = [*program.argv, "--splice-only", other, "--", "echo", "ran"]
    done = host.run(words, prefix=user.prefix, check=False)
    name = other.partition("=")[0]
    message = f"--splice-only is incompatible with {name}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_splice_only_refuses_strangers(start_pasta: StartPasta, topology: Topology) -> None:
    """A reset for a connection, nothing for a datagram; both are named, as is where they went."""
    pasta = start_pasta("-d", "--splice-only", "-t", "7160", "-u", "7160", config_net=False)
    target = net.HOST[4], 7160
    with (
        pytest.raises(ConnectionResetError),
        topology.remote.connect(*target, source=(net.REMOTE[4], 40007)) as client,
    ):
        client.recv(1)
    with topology.remote.udp(net.REMOTE[4], 40008) as stranger:
        stranger.sendto(b"x", target)
        for protocol, port in (("TCP", 40007), ("UDP", 40008)):
            text = f"No rules to forward HOST {protocol} [{net.REMOTE[4]}]:{port} -> "
            text += f"[{target[0]}]:{target[1]}\n"
            wait_for(lambda text=text: text in pasta.messages(), what=text)
        stranger.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stranger.recv(1)
