"""Guests that configure themselves: real clients of DHCP, DHCPv6 and router discovery."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.clients import Clients
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("folder")]

RESOLVERS = ("--dhcp-dns", "--dhcp-search", "-D", "192.0.2.53", "-D", "2001:db8::53")
SEARCH = ("-S", "example.com", "-S", "foo.example.com")

Connect = Callable[..., tuple[Pasta, Clients]]


@pytest.fixture
def connect(start_pasta: StartPasta, tmp_path: Path) -> Iterator[Connect]:
    """A function that starts a pasta with these options, and gives clients of its interface.

    The interface is up, and its IPv6 link-local address usable.
    """

    def start(*options: str, router_discovery: bool = False) -> tuple[Pasta, Clients]:
        pasta = start_pasta(*options, config_net=False)
        ns = pasta.ns_as_root
        name = pasta.interface()
        if not router_discovery:
            ns.sysctl(f"net/ipv6/conf/{name}/accept_ra", 0)
        ns.ip(f"link set dev {name} up\n")
        wait_for(lambda: link_local(ns, name), what="link-local address")
        return pasta, Clients(ns, name, tmp_path)

    yield start


def link_local(ns: Netns, name: str) -> str:
    """The link-local address of an interface once it is usable, else empty."""
    out = ns.run(["ip", "-6", "-o", "address", "show", "dev", name, "scope", "link"]).stdout
    return "" if "tentative" in out or "fe80" not in out else out.split()[3].partition("/")[0]


def addresses(ns: Netns, name: str) -> str:
    """What ``ip address`` says of an interface."""
    return ns.run(["ip", "address", "show", "dev", name]).stdout


# DHCP


def test_dhclient(connect: Connect) -> None:
    _, clients = connect(*RESOLVERS, *SEARCH, "-H", "guest", "--mtu", "1400")
    clients.dhclient(4, "also request interface-mtu, domain-search;")
    told = clients.events.wait("BOUND")
    assert (told["new_ip_address"], told["new_subnet_mask"]) == (net.HOST[4], "255.255.255.0")
    assert told["new_routers"] == told["new_dhcp_server_identifier"] == net.GATEWAY[4]
    assert told["new_domain_name_servers"] == "192.0.2.53"
    assert told["new_domain_search"] == "example.com. foo.example.com."
    assert (told["new_host_name"], told["new_interface_mtu"]) == ("guest", "1400")
    assert told["new_dhcp_lease_time"] == "4294967295"


def test_options_of_the_user(connect: Connect, ours_only: None) -> None:
    """In DHCP, DHCPv6 and router advertisements, as their clients see them."""
    words = ["--dhcp-opt", "42:192.0.2.7", "--dhcp-opt", "66:boot.example", "--dhcp-opt", "26:"]
    words += ["--dhcpv6-opt", "31:2001:db8::7", "--ra-opt", "25:2001:db8::8"]
    _, clients = connect(*words)
    clients.dhclient(4, "also request ntp-servers, tftp-server-name, interface-mtu;")
    told = clients.events.wait("BOUND")
    assert (told["new_ntp_servers"], told["new_tftp_server_name"]) == ("192.0.2.7", "boot.example")
    assert "new_interface_mtu" not in told
    clients.dhclient(6, "also request dhcp6.sntp-servers;")
    assert clients.events.wait("BOUND6")["new_dhcp6_sntp_servers"] == "2001:db8::7"
    assert "2001:db8::8" in clients.ns.run(["rdisc6", "-1", clients.interface], check=False).stdout


def test_dhclient_renews_and_rebinds(connect: Connect, ours_only: None) -> None:
    """With a short lease, first by unicast, then by broadcast as unicast is made impossible."""
    _, clients = connect("--dhcp-opt", "51:30", "--dhcp-opt", "58:2", "--dhcp-opt", "59:6")
    clients.dhclient(4, "initial-interval 1; backoff-cutoff 2;")
    clients.events.wait("BOUND")
    assert clients.events.wait("RENEW")["new_ip_address"] == net.HOST[4]
    rules = """table ip test {
        chain output {
            type filter hook output priority 0
            udp dport 67 drop
        }
    }"""
    clients.ns.run(["nft", rules])
    before = len(clients.log())
    broadcast = f"DHCPREQUEST for {net.HOST[4]} on {clients.interface} to 255.255.255.255 port 67"
    answered = f"{broadcast}\nDHCPACK of {net.HOST[4]} from {net.GATEWAY[4]}"
    wait_for(lambda: answered in clients.log()[before:], 40, "answer to a client that rebinds")
    assert not {"EXPIRE", "FAIL", "TIMEOUT"} & set(clients.events.reasons())


def test_dhclient_reboots(connect: Connect) -> None:
    """A client that remembers its lease asks for it, one that remembers another gets ours."""
    pasta, clients = connect()
    first = clients.dhclient(4)
    clients.bound(4)
    pasta.host.processes.stop(first)
    second = clients.dhclient(4)
    assert clients.events.wait("REBOOT")["new_ip_address"] == net.HOST[4]
    pasta.host.processes.stop(second)
    leases = clients.folder / "dhclient4.leases"
    leases.write_text(
        leases.read_text().replace(f"fixed-address {net.HOST[4]}", "fixed-address 10.9.8.7")
    )
    before = len(clients.events.all())
    clients.dhclient(4)
    assert clients.events.wait("REBOOT", before)["new_ip_address"] == net.HOST[4]


def test_udhcpc(connect: Connect) -> None:
    _, clients = connect(*RESOLVERS, *SEARCH)
    process = clients.udhcpc("-O", "search", "-O", "mtu")
    told = clients.events.wait("bound")
    assert (told["ip"], told["mask"], told["router"]) == (net.HOST[4], "24", net.GATEWAY[4])
    assert (told["dns"], told["mtu"]) == ("192.0.2.53", "65520")
    assert told["search"] == "example.com foo.example.com"
    process.send_signal(signal.SIGUSR1)
    assert clients.events.wait("renew")["ip"] == net.HOST[4]


def test_udhcpc_learns_a_router_outside_of_its_subnet(connect: Connect) -> None:
    _, clients = connect("-a", "203.0.113.5/24")
    clients.udhcpc("-q", "-O", "staticroutes")
    told = clients.events.wait("bound")
    assert (told["ip"], told["router"]) == ("203.0.113.5", net.GATEWAY[4])
    gateway = net.GATEWAY[4]
    assert told["staticroutes"] == f"{gateway}/32 0.0.0.0 0.0.0.0/0 {gateway}"


def test_dhcpcd(connect: Connect) -> None:
    pasta, clients = connect(*RESOLVERS, *SEARCH, "--mtu", "1400")
    clients.dhcpcd(4, "--noarp")
    told = clients.events.wait("BOUND")
    assert (told["new_ip_address"], told["new_subnet_cidr"]) == (net.HOST[4], "24")
    assert told["new_domain_name_servers"] == "192.0.2.53"
    assert told["new_domain_search"] == "example.com foo.example.com"
    assert f"inet {net.HOST[4]}/24" in addresses(pasta.ns_as_root, clients.interface)


def test_dhcpcd_rapid_commit(connect: Connect) -> None:
    """One exchange instead of two; the address is probed before use, and nobody claims it."""
    _, clients = connect()
    clients.dhcpcd(4, "-o", "rapid_commit")
    clients.events.wait("BOUND")
    log = clients.log()
    assert f"acknowledged {net.HOST[4]}" in log and "DAD completed" in log
    assert "offered" not in log and "sending REQUEST" not in log


# DHCPv6


def test_dhclient_v6(connect: Connect) -> None:
    _, clients = connect(*RESOLVERS, *SEARCH)
    clients.dhclient(6)
    told = clients.events.wait("BOUND6")
    assert told["new_ip6_address"] == net.HOST[6]
    assert told["new_dhcp6_name_servers"] == "2001:db8::53"
    assert told["new_dhcp6_domain_search"] == "example.com. foo.example.com."
    assert told["new_max_life"] == "4294967295"


def test_dhclient_v6_confirms_its_address(connect: Connect, ours_only: None) -> None:
    """Or is told that it is not of this link, and starts over."""
    pasta, clients = connect()
    first = clients.dhclient(6)
    clients.bound(6)
    pasta.host.processes.stop(first)
    second = clients.dhclient(6)
    log = "message status code Success.\nPRC: Bound to lease"
    wait_for(lambda: log in clients.log(), 30, "confirmation")
    pasta.host.processes.stop(second)
    leases = clients.folder / "dhclient6.leases"
    leases.write_text(leases.read_text().replace(net.HOST[6], "2001:db8:9::9"))
    before = len(clients.events.all())
    clients.dhclient(6)
    wait_for(lambda: "message status code NotOnLink" in clients.log(), 30, "refusal")
    assert clients.events.wait("BOUND6", before)["new_ip6_address"] == net.HOST[6]


def test_dhcpcd_v6(connect: Connect) -> None:
    """Told by the router to ask for an address, as guests of the usual kind do."""
    pasta, clients = connect(*RESOLVERS, *SEARCH)
    clients.dhcpcd(6)
    told = clients.events.wait("BOUND6")
    assert told["new_dhcp6_name_servers"] == "2001:db8::53"
    assert told["new_dhcp6_domain_search"] == "example.com foo.example.com"
    wait_for(lambda: f"{net.HOST[6]}/128" in addresses(pasta.ns_as_root, clients.interface))


def test_dhcpcd_v6_renews_and_confirms(connect: Connect) -> None:
    """When told to by a signal, as its lease is for ever."""
    _, clients = connect()
    process = clients.dhcpcd(6)
    clients.events.wait("BOUND6")
    for number, reason, message in (
        (signal.SIGUSR1, "RENEW6", "RENEW6"),
        (signal.SIGHUP, "REBOOT6", "CONFIRM6"),
    ):

        def told(number: int = number, reason: str = reason) -> bool:
            # Signals are lost on it while it waits for the script.
            process.send_signal(number)
            return reason in clients.events.reasons()

        wait_for(told, 40, reason, interval=4.0)
        assert f"broadcasting {message}" in clients.log()
    assert net.HOST[6] in addresses(clients.ns, clients.interface)


# Neighbour discovery


def test_rdisc6(connect: Connect, ours_only: None) -> None:
    _, clients = connect(*RESOLVERS, *SEARCH, "--mtu", "1400")
    out = clients.ns.run(["rdisc6", "-1", clients.interface], check=False).stdout
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for wanted in (
        "Hop limit : 255 ( 0xff)",
        "Stateful address conf. : Yes",
        "Stateful other conf. : No",
        "Router preference : medium",
        "Router lifetime : 65535 (0x0000ffff) seconds",
        "Prefix : 2001:db8:1::/64",
        "On-link : Yes",
        "Autonomous address conf.: Yes",
        "Valid time : infinite (0xffffffff)",
        "Pref. time : infinite (0xffffffff)",
        "Source link-layer address: 9A:55:9A:55:9A:55",
        "MTU : 1400 bytes (valid)",
        "Recursive DNS server : 2001:db8::53",
        "DNS server lifetime : infinite (0xffffffff)",
        "DNS search list : example.com foo.example.com",
    ):
        assert wanted in lines, out


def test_ndisc6(connect: Connect) -> None:
    _, clients = connect()
    # The router's own address: the source of an answer must be its target for this program.
    router = router_address(clients)
    out = clients.ns.run(["ndisc6", "-1", router, clients.interface]).stdout
    assert "9A:55:9A:55:9A:55" in out


def router_address(clients: Clients) -> str:
    """Our link-local address, which is the source of router advertisements."""
    out = clients.ns.run(["rdisc6", "-1", clients.interface], check=False).stdout
    return out.split(" from ")[1].split()[0]


def test_kernel_configures_itself(connect: Connect) -> None:
    """Address, default route, MTU; then a ping."""
    _, clients = connect("--mtu", "1400", router_discovery=True)
    ns, name = clients.ns, clients.interface
    wait_for(lambda: "scope global" in addresses(ns, name), 30, "address by router discovery")
    wait_for(lambda: "tentative" not in addresses(ns, name), 30, "usable address")
    shown = addresses(ns, name)
    assert "inet6 2001:db8:1:" in shown and "valid_lft forever" in shown
    route = ns.run(["ip", "-6", "route", "show", "default"]).stdout
    assert "proto ra" in route and "hoplimit 255" in route
    conf = f"net/ipv6/conf/{name}/mtu"
    assert ns.call(lambda: Path(f"/proc/sys/{conf}").read_text()) == "1400\n"
    ns.run(["ping", "-6", "-c", "1", "-W", "5", net.REMOTE[6]])


@pytest.mark.parametrize("option", ["--no-ra", "--no-ndp"])
def test_no_router(connect: Connect, option: str) -> None:
    _, clients = connect(option)
    out = clients.ns.run(["rdisc6", "-1", "-r", "1", clients.interface], check=False)
    assert out.returncode != 0
    # The kernel as a client: an entry for a neighbour that nobody but us can answer for.
    clients.ns.ip(f"address add {net.HOST[6]}/64 dev {clients.interface} nodad\n")
    clients.ns.run(["ping", "-c", "1", "-W", "1", net.ABSENT[6]], check=False)
    entry = clients.ns.run(["ip", "neighbour", "show", "to", net.ABSENT[6]]).stdout
    assert ("lladdr 9a:55:9a:55:9a:55" in entry) is (option == "--no-ra")


def test_services_that_are_off(connect: Connect) -> None:
    _, clients = connect("--no-dhcp", "--no-dhcpv6")
    assert clients.udhcpc("-n", "-t", "2").wait(20) != 0
    process = clients.dhclient(6)
    with pytest.raises(AssertionError, match="timeout"):
        clients.events.wait("BOUND6", timeout=4)
    assert process.poll() is None


def test_tcpdump_finds_nothing_wrong(connect: Connect, folder: str) -> None:
    """A fourth reader of what we send; it names whatever it cannot make sense of."""
    path = Path(folder) / "services.pcap"
    path.unlink(missing_ok=True)
    writable = Path(folder)
    writable.chmod(0o777)
    pasta, clients = connect(*RESOLVERS, *SEARCH, "-p", str(path), "--fqdn", "guest.example")
    clients.dhclient(4)
    clients.events.wait("BOUND")
    clients.dhclient(6)
    clients.events.wait("BOUND6")
    clients.ns.run(["rdisc6", "-1", clients.interface], check=False)
    out = wait_for(lambda: _described(pasta, path), what="capture")
    for wanted in ("DHCP-Message (53), length 1: ACK", "dhcp6 advertise", "dhcp6 reply",
                   "router advertisement", "rdnss option", "dnssl option", "FQDN (81)",
                   "Unknown (119)", "example.com.", "DNS-server 2001:db8::53"):  # fmt: skip
        assert wanted.lower() in out.lower(), wanted
    for wrong in ("bad ", "incorrect", "invalid", "truncated", "[|"):
        assert wrong not in out, out


def _described(pasta: Pasta, path: Path) -> str:
    """What tcpdump says of a capture once all kinds of answers are in it, else empty."""
    words = ["tcpdump", "-n", "-vvv", "-r", str(path), "ether src 9a:55:9a:55:9a:55"]
    out = pasta.host.run(words, check=False).stdout
    return out if "router advertisement" in out and "dhcp6 reply" in out else ""
