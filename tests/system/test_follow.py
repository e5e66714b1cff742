"""Following the host's network: each event of a laptop's day, and what becomes of connections."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.kit.clients import Clients
from tests.system.kit.laptop import (
    HOST6,
    ROUTER6,
    ROUTER_A,
    ROUTER_B,
    ROUTER_VPN,
    SERVICE,
    VPN,
    A,
    B,
    Laptop,
)
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.servers import dnsmasq
from tests.system.kit.users import User
from tests.system.start.runner import alive, status, wait_gone

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ours_only")]

PORT = 7100

Start = Callable[..., Pasta]


@pytest.fixture
def laptop() -> Iterator[Laptop]:
    """A host without network."""
    with Laptop() as laptop:
        yield laptop


@pytest.fixture
def start(laptop: Laptop, program: Program, user: User) -> Iterator[Start]:
    """A function that starts a pasta on the laptop."""
    instances: list[Pasta] = []

    def start(*options: str, config_net: bool = True, resolv_conf: str = "") -> Pasta:
        instance = Pasta(
            program, laptop.host, user, *options, config_net=config_net, resolv_conf=resolv_conf
        )
        instances.append(instance)
        return instance

    yield start
    for instance in instances:
        instance.close()


def addresses(ns: Netns, version: int) -> list[str]:
    """Addresses of the namespace, with their prefix lengths; those without a lifetime last."""
    show = ns.run(["ip", f"-{version}", "-o", "addr", "show", "scope", "global"]).stdout
    rows = [line.split() for line in show.splitlines()]
    return [row[3] for row in sorted(rows, key=lambda row: "deprecated" in row)]


def default_routes(ns: Netns, version: int) -> list[str]:
    """Gateways of the default routes."""
    show = ns.run(["ip", f"-{version}", "route", "show", "default"]).stdout
    return [line.split()[2] for line in show.splitlines()]


def becomes(function: Callable[[], object], wanted: object) -> None:
    """Wait until *function* returns what is *wanted*."""
    seen: list[object] = [None]

    def same() -> bool:
        seen[0] = function()
        return seen[0] == wanted

    try:
        wait_for(same, 20.0, interval=0.05)
    except AssertionError:
        raise AssertionError(f"{seen[0]} does not become {wanted}") from None


class Service:
    """Accepts connections in *ns* and keeps them."""

    def __init__(self, ns: Netns, version: int, port: int = PORT) -> None:
        self.address = SERVICE[version]
        self.port = port
        self.listener = ns.listen(self.address, port)

    def connection(self, guest: Netns) -> tuple[socket.socket, socket.socket]:
        """A connection from *guest*: its end, and ours."""
        near = guest.connect(self.address, self.port)
        far, _ = self.listener.accept()
        far.settimeout(10.0)
        return near, far


def talks(near: socket.socket, far: socket.socket) -> None:
    """Fails unless both directions carry something."""
    for sender, receiver in ((near, far), (far, near)):
        sender.sendall(b"hello")
        assert receiver.recv(16) == b"hello"


def follower_of(pasta: Pasta) -> int:
    """The process that follows the host for *pasta*, once it is in its sandbox."""

    def find() -> int:
        with open(f"/proc/{pasta.process.pid}/task/{pasta.process.pid}/children") as file:
            for word in file.read().split():
                if int(word) != pasta.command_pid and status(int(word))["Seccomp"] == "2":
                    return int(word)
        return 0

    return wait_for(find, what="follower in its sandbox")


def test_network_appears(laptop: Laptop, start: Start) -> None:
    pasta = start()
    assert addresses(pasta.ns, 4) == ["169.254.2.1/16"]
    laptop.address_a()
    becomes(lambda: addresses(pasta.ns, 4), [f"{A}/24"])
    becomes(lambda: default_routes(pasta.ns, 4), [ROUTER_A])
    talks(*Service(laptop.world, 4).connection(pasta.ns))
    laptop.ipv6_appears()
    becomes(lambda: addresses(pasta.ns, 6), [f"{HOST6}/64"])
    becomes(lambda: default_routes(pasta.ns, 6), [ROUTER6])
    talks(*Service(laptop.world, 6).connection(pasta.ns))


def test_tunnel_comes_and_goes(laptop: Laptop, start: Start) -> None:
    """The host keeps its address meanwhile, and so connections from there."""
    laptop.address_a()
    pasta = start()
    service = Service(laptop.world, 4)
    before = service.connection(pasta.ns)
    laptop.vpn_up()
    becomes(lambda: addresses(pasta.ns, 4), [f"{VPN}/24", f"{A}/24"])
    becomes(lambda: default_routes(pasta.ns, 4), [ROUTER_VPN])
    talks(*before)
    during = service.connection(pasta.ns)
    assert during[0].getsockname()[0] == during[1].getpeername()[0] == VPN
    laptop.vpn_down()
    becomes(lambda: addresses(pasta.ns, 4), [f"{A}/24"])
    becomes(lambda: default_routes(pasta.ns, 4), [ROUTER_A])
    talks(*before)
    with pytest.raises(ConnectionResetError):
        during[0].recv(1)


def test_metrics_of_routes(laptop: Laptop, start: Start) -> None:
    """An MTU is one, and new routes are routes."""
    laptop.address_a()
    pasta = start()
    route = f"default via {ROUTER_A} dev wlan0 metric 600"
    laptop.host.ip(f"route change {route} mtu 1300\nroute add 10.9.0.0/16 via {ROUTER_A}\n")

    def routes() -> str:
        return pasta.ns.run(["ip", "route"]).stdout

    wait_for(lambda: "mtu 1300" in routes() and "10.9.0.0/16" in routes(), 20.0, "the routes")
    assert default_routes(pasta.ns, 4) == [ROUTER_A]
    laptop.host.ip(f"route change {route}\nroute del 10.9.0.0/16\n")
    wait_for(lambda: not ("mtu" in routes() or "10.9.0.0/16" in routes()), 20.0, "fewer routes")


def test_another_address(laptop: Laptop, start: Start) -> None:
    """Connections from the old one are reset, on the side of the guest at once."""
    laptop.address_a()
    pasta = start()
    service = Service(laptop.world, 4)
    near, _ = service.connection(pasta.ns)
    laptop.address_b()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    becomes(lambda: addresses(pasta.ns, 4), [f"{B}/24"])
    becomes(lambda: default_routes(pasta.ns, 4), [ROUTER_B])
    near, far = service.connection(pasta.ns)
    talks(near, far)
    assert near.getsockname()[0] == far.getpeername()[0] == B


def test_version_vanishes(laptop: Laptop, start: Start) -> None:
    """Which does not concern the other one."""
    laptop.address_a()
    laptop.ipv6_appears()
    pasta = start()
    near4, far4 = Service(laptop.world, 4).connection(pasta.ns)
    near6, _ = Service(laptop.world, 6).connection(pasta.ns)
    laptop.ipv6_vanishes()
    with pytest.raises(ConnectionResetError):
        near6.recv(1)
    becomes(lambda: addresses(pasta.ns, 6), [])
    becomes(lambda: default_routes(pasta.ns, 6), ["fe80::1"])
    talks(near4, far4)


def test_interruption_harms_nothing(laptop: Laptop, start: Start) -> None:
    """An address that is away for a moment, with all of its routes, is not taken from anybody."""
    laptop.address_a()
    pasta = start()
    near, far = Service(laptop.world, 4).connection(pasta.ns)
    follower_of(pasta)
    laptop.host.ip(f"addr del {A}/24 dev wlan0\n")
    time.sleep(0.5)
    laptop.host.ip(f"addr add {A}/24 dev wlan0\nroute add default via {ROUTER_A} metric 600\n")
    talks(near, far)
    assert addresses(pasta.ns, 4) == [f"{A}/24"]


def test_other_name_changes_nothing(laptop: Laptop, start: Start) -> None:
    laptop.address_a()
    pasta = start("-d")
    near, far = Service(laptop.world, 4).connection(pasta.ns)
    follower_of(pasta)
    laptop.renamed()
    wait_for(lambda: "by wlp3s0" in pasta.messages(), what="the new name")
    talks(near, far)
    assert addresses(pasta.ns, 4) == [f"{A}/24"]


def test_change_at_the_very_start_is_not_lost(laptop: Laptop, start: Start) -> None:
    """There is no follower yet that could be told of it."""
    laptop.address_a()
    pasta = start()
    laptop.address_b()
    becomes(lambda: addresses(pasta.ns, 4), [f"{B}/24"])


def test_what_the_guest_made_stays(laptop: Laptop, start: Start) -> None:
    laptop.address_a()
    pasta = start()
    device = pasta.interface()
    pasta.ns.ip(
        f"addr add 10.77.0.1/24 dev {device}\nroute add 10.78.0.0/16 via 10.77.0.9 dev {device}\n"
    )
    laptop.address_b()
    becomes(lambda: default_routes(pasta.ns, 4), [ROUTER_B])
    assert set(addresses(pasta.ns, 4)) == {"10.77.0.1/24", f"{B}/24"}
    assert "10.78.0.0/16 via 10.77.0.9" in pasta.ns.run(["ip", "route"]).stdout


@pytest.mark.parametrize("version", [4, 6])
def test_what_the_guest_removed_at_once_stays_away(
    laptop: Laptop, program: Program, user: User, version: int
) -> None:
    """The kernel's route to the subnet as well, which nobody asked for at start."""
    laptop.address_a()
    if version == 6:
        laptop.ipv6_appears()
    script = (
        f"flush() {{ ip -{version} $1 flush dev eth0 scope global; }}; flush addr; flush route;"
        # Until after the first look.
        f" sleep 1; ip -{version} route; ip -{version} addr show dev eth0 scope global"
    )
    words = [*program.argv, "--config-net", "--ns-ifname", "eth0", "--", "sh", "-c", script]
    assert laptop.host.run(words, prefix=user.prefix).stdout == ""


def test_what_the_user_set_stays(laptop: Laptop, start: Start) -> None:
    """And connections whose address on the host is gone are reset all the same."""
    laptop.address_a()
    pasta = start("-a", "10.0.2.15/24", "-g", "10.0.2.2")
    service = Service(laptop.world, 4)
    near, _ = service.connection(pasta.ns)
    follower_of(pasta)
    laptop.address_b()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert addresses(pasta.ns, 4) == ["10.0.2.15/24"]
    assert default_routes(pasta.ns, 4) == ["10.0.2.2"]
    near, far = service.connection(pasta.ns)
    talks(near, far)
    assert far.getpeername()[0] == B


def test_datagrams_and_pings_go_on(laptop: Laptop, start: Start) -> None:
    """The same sockets of the guest, from whatever address the host has now."""
    laptop.address_a()
    pasta = start("-a", "10.0.2.15/24", "-g", "10.0.2.2")
    service = laptop.world.udp(SERVICE[4], PORT)
    service.settimeout(0.2)
    sock = pasta.ns.udp("10.0.2.15")
    sock.connect((SERVICE[4], PORT))

    def source() -> str:
        """Where a datagram comes from, empty if none arrives or there is an error."""
        try:
            sock.send(b"query")
            return str(service.recvfrom(64)[1][0])
        except OSError:
            return ""

    assert source() == A
    laptop.address_b()
    becomes(source, B)
    pasta.ns.run(["ping", "-c1", "-W5", SERVICE[4]])


def test_not_following(laptop: Laptop, start: Start) -> None:
    laptop.address_a()
    pasta = start("--no-follow")
    with open(f"/proc/{pasta.process.pid}/task/{pasta.process.pid}/children") as file:
        assert file.read().split() == [str(pasta.command_pid)]
    laptop.address_b()
    time.sleep(1.0)
    assert addresses(pasta.ns, 4) == [f"{A}/24"]


def test_namespace_that_configures_itself(laptop: Laptop, start: Start) -> None:
    """It is left alone, but told."""
    laptop.address_a()
    pasta = start("--follow", "-d", config_net=False)
    laptop.address_b()
    wait_for(lambda: f"{B}/24" in pasta.messages(), what="the new address")
    assert addresses(pasta.ns, 4) == []


def test_clients_hear_of_it(laptop: Laptop, start: Start, tmp_path: Path) -> None:
    """The kernel's router discovery by itself, and DHCP when the lease is renewed."""
    laptop.address_a()
    pasta = start("--follow", "-d", config_net=False)
    ns, device = pasta.ns_as_root, pasta.interface()
    ns.sysctl(f"net/ipv6/conf/{device}/accept_ra", 1)
    ns.sysctl(f"net/ipv6/conf/{device}/router_solicitation_delay", 0)
    ns.ip(f"link set dev {device} up\n")
    clients = Clients(ns, device, tmp_path)
    client = clients.udhcpc("-O", "lease")
    bound = clients.events.wait("bound")
    assert (bound["ip"], bound["lease"]) == (A, "300")
    becomes(lambda: len(default_routes(ns, 6)), 1)
    assert addresses(ns, 6) == []

    laptop.ipv6_appears()
    prefix = HOST6.rpartition("::")[0]
    becomes(lambda: [a.startswith(prefix) for a in addresses(ns, 6)], [True])

    laptop.address_b()
    wait_for(lambda: f"{B}/24" in pasta.messages(), what="the new address")
    seen = len(clients.events.all())
    client.send_signal(signal.SIGUSR1)
    assert clients.events.wait("bound", after=seen)["ip"] == B
    assert "deconfig" in clients.events.reasons()[seen:]


def test_idle_costs_nothing(laptop: Laptop, start: Start) -> None:
    """Neither process wakes up, nor do events that are no changes wake the program."""
    laptop.address_a()
    pasta = start("-4")
    # Its kernel has something to say on a new link now and then.
    pasta.ns_as_root.sysctl("net/ipv6/conf/all/disable_ipv6", 1)
    pid = follower_of(pasta)

    def switches() -> int:
        return sum(int(status(each)["voluntary_ctxt_switches"]) for each in (pid, main))

    main = pasta.process.pid
    # Its start shall not stand in the way of connections.
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, main)
    # The first look is over when it sleeps without a limit.
    wait_for(lambda: _settled(switches), 20.0, "two quiet seconds")
    before = int(status(main)["voluntary_ctxt_switches"])
    for _ in range(5):
        laptop.host.ip(f"addr change {A}/24 dev wlan0 valid_lft 3000 preferred_lft 2000\n")
    time.sleep(1.0)
    assert int(status(main)["voluntary_ctxt_switches"]) == before


def _settled(switches: Callable[[], int]) -> bool:
    before = switches()
    time.sleep(2.0)
    return switches() == before


def test_end_of_the_program_is_its_end(laptop: Laptop, program: Program, user: User) -> None:
    laptop.address_a()
    pasta = Pasta(program, laptop.host, user)
    pid = follower_of(pasta)
    os.kill(pasta.process.pid, signal.SIGKILL)
    wait_gone(pid, 10.0)
    laptop.topology.processes.stop(pasta.process)
    if alive(pasta.command_pid):
        os.kill(pasta.command_pid, signal.SIGKILL)


def test_program_outlives_it(laptop: Laptop, start: Start) -> None:
    laptop.address_a()
    pasta = start("-d")
    os.kill(follower_of(pasta), signal.SIGKILL)
    wait_for(lambda: "not followed any more" in pasta.messages(), what="a warning")
    talks(*Service(laptop.world, 4).connection(pasta.ns))


@pytest.fixture
def named() -> Iterator[str]:
    """A network namespace with a name."""
    name = f"pt-follow-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_namespace_of_somebody_else_in_background(
    laptop: Laptop, program: Program, named: str, tmp_path: Path
) -> None:
    """Root's, whose program is nobody afterwards."""
    laptop.address_a()
    path = tmp_path / "pid"
    none = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
    laptop.host.run([*program.argv, "-q", "--config-net", *none, "-P", path, "--netns", named])
    try:
        ns = Netns("named", f"/run/netns/{named}", laptop.topology.processes)
        assert addresses(ns, 4) == [f"{A}/24"]
        laptop.address_b()
        becomes(lambda: addresses(ns, 4), [f"{B}/24"])
        subprocess.run(["ip", "netns", "del", named], check=True)
        wait_gone(int(path.read_text()), 10.0)
    finally:
        if alive(int(path.read_text())):
            os.kill(int(path.read_text()), signal.SIGTERM)


# Resolvers.


def serve(ns: Netns, address: str, answer: str) -> None:
    dnsmasq(ns, [address], [f"--address=/test.example/{answer}"])


def ask(ns: Netns, server: str) -> str:
    words = ["dig", "+tries=1", "+time=2", "+short", f"@{server}", "test.example"]
    return ns.run(words, check=False).stdout.strip()


def test_resolv_conf_written_in_place(laptop: Laptop, start: Start, folder: str) -> None:
    laptop.address_a()
    serve(laptop.host, "127.0.0.53", "192.0.2.53")
    serve(laptop.host, "127.0.0.54", "192.0.2.54")
    path = Path(folder) / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\n")
    path.chmod(0o644)
    pasta = start(resolv_conf=str(path))
    assert ask(pasta.ns, ROUTER_A) == "192.0.2.53"
    path.write_text("nameserver 127.0.0.54\n")
    becomes(lambda: ask(pasta.ns, ROUTER_A), "192.0.2.54")


def test_resolv_conf_replaced(laptop: Laptop, program: Program, user: User, folder: str) -> None:
    """By renaming another over it, and by making a link of it."""
    laptop.address_a()
    for last in (53, 54, 55):
        serve(laptop.host, f"127.0.0.{last}", f"192.0.2.{last}")
    etc = Path(folder) / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    subprocess.run(["chmod", "0755", etc], check=True)

    def replace(last: int, name: str = "resolv.conf") -> None:
        fresh = etc / "resolv.conf.new"
        fresh.write_text(f"nameserver 127.0.0.{last}\n")
        fresh.chmod(0o644)
        fresh.rename(etc / name)

    replace(53)
    script = 'mount --bind "$0" /etc && exec "$@"'
    host = Netns(
        "host", laptop.host.path, laptop.topology.processes,
        prefix=[*laptop.host.prefix, "unshare", "--mount", "sh", "-c", script, str(etc)],
    )  # fmt: skip
    pasta = Pasta(program, host, user)
    try:
        assert ask(pasta.ns, ROUTER_A) == "192.0.2.53"
        replace(54)
        becomes(lambda: ask(pasta.ns, ROUTER_A), "192.0.2.54")
        replace(55, "other.conf")
        (etc / "link").symlink_to("other.conf")
        (etc / "link").rename(etc / "resolv.conf")
        becomes(lambda: ask(pasta.ns, ROUTER_A), "192.0.2.55")
        replace(53, "other.conf")
        becomes(lambda: ask(pasta.ns, ROUTER_A), "192.0.2.53")
    finally:
        pasta.close()
        shutil.rmtree(etc)


def test_multicast_and_neighbours_move(laptop: Laptop, start: Start) -> None:
    """To the interface that is the template now, and back."""
    group = "239.1.2.3"
    laptop.address_a()
    pasta = start("-u", "5004")
    guest = pasta.ns.udp("0.0.0.0", 5004)
    guest.setsockopt(
        socket.IPPROTO_IP,
        socket.IP_ADD_MEMBERSHIP,
        socket.inet_aton(group) + socket.inet_aton(A),
    )
    becomes(lambda: members(laptop.host, group), {"wlan0"})
    laptop.vpn_up()
    becomes(lambda: members(laptop.host, group), {"vpn0"})
    with laptop.world.udp(ROUTER_VPN) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(ROUTER_VPN))
        sender.sendto(b"by the tunnel", (group, 5004))
        assert guest.recvfrom(100) == (b"by the tunnel", sender.getsockname())
    other = "10.8.0.99"
    laptop.host.ip(f"neigh replace {other} lladdr 02:00:00:00:00:99 dev vpn0 nud reachable\n")

    def mac() -> str:
        pasta.ns_as_root.run(["ip", "neigh", "flush", other], check=False)
        pasta.ns.run(["ping", "-c1", "-W1", other], check=False)
        return pasta.ns.run(["ip", "neigh", "show", other]).stdout

    wait_for(lambda: "02:00:00:00:00:99" in mac(), 20, "the neighbour's MAC", interval=0.2)
    laptop.vpn_down()
    becomes(lambda: members(laptop.host, group), {"wlan0"})


def members(ns: Netns, group: str) -> set[str]:
    """The interfaces that have joined an IPv4 group."""
    wanted = f"{int.from_bytes(socket.inet_aton(group), 'little'):08X}"
    found, interface = set(), ""
    for row in ns.table("igmp"):
        if row[0].isdigit() and len(row) > 4:
            interface = row[1].rstrip(":")
        elif row[0] == wanted:
            found.add(interface)
    return found
