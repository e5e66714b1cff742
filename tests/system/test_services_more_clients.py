"""Guests with rarer clients: systemd-networkd, NetworkManager and others (see kit/clients.py)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import StartPasta
from tests.system.kit import topology as net
from tests.system.kit.clients import NETWORKD, Clients
from tests.system.kit.netns import Netns, wait_for

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("folder")]

TOLD = ("--dhcp-dns", "--dhcp-search", "-D", "192.0.2.53", "-D", "2001:db8::53",
        "-S", "example.com", "-S", "foo.example.org")  # fmt: skip
MORE = "2001:db8:5::70"

Connect = Callable[..., Clients]


def needs(program: str) -> pytest.MarkDecorator:
    """Skip a test where a program is not installed."""
    there = os.access(program, os.X_OK) or shutil.which(program) is not None
    return pytest.mark.skipif(not there, reason=f"no {program}")


@pytest.fixture
def connect(start_pasta: StartPasta, tmp_path: Path) -> Iterator[Connect]:
    """A function that starts a pasta with these options, and gives clients of its interface.

    The interface is up, and its IPv6 link-local address usable; the kernel does not configure it.
    """

    def start(*options: str) -> Clients:
        pasta = start_pasta(*options, config_net=False)
        ns, name = pasta.ns_as_root, pasta.interface()
        ns.sysctl(f"net/ipv6/conf/{name}/accept_ra", 0)
        ns.ip(f"link set dev {name} up\n")
        wait_for(lambda: "tentative" not in shown(ns, name, "scope", "link"), what="link-local")
        return Clients(ns, name, tmp_path)

    yield start


def shown(ns: Netns, name: str, *words: str) -> str:
    """What ``ip address`` says of the IPv6 addresses of an interface, "tentative" if nothing."""
    out = ns.run(["ip", "-6", "-o", "address", "show", "dev", name, *words]).stdout
    return out or "tentative"


# systemd-networkd


@needs(NETWORKD)
def test_networkd(connect: Connect, ours_only: None) -> None:
    """DHCP, router discovery, and DHCPv6 as the router says, with several addresses of each."""
    clients = connect(*TOLD, "--mtu", "1400", "-a", MORE, "-a", net.HOST[6])
    clients.networkd("[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n[DHCPv4]\nUseMTU=yes\n")
    ns, name = clients.ns, clients.interface

    def configured() -> bool:
        # By both ways, of both prefixes; and found by nobody to be in use already.
        six = shown(ns, name, "scope", "global")
        words = six.split()
        prefixes = [word for word in words if word.startswith(("2001:db8:1:", "2001:db8:5:"))]
        return (
            "tentative" not in six
            and {f"{net.HOST[6]}/128", f"{MORE}/128"} <= set(prefixes)
            and sum(word.endswith("/64") for word in prefixes) == 2
        )

    wait_for(configured, 30, "addresses of IPv6")
    assert "dadfailed" not in shown(ns, name)
    four = ns.run(["ip", "-4", "address", "show", "dev", name]).stdout
    assert f"inet {net.HOST[4]}/24" in four and "mtu 1400" in four
    routes = ns.run(["ip", "route"]).stdout + ns.run(["ip", "-6", "route"]).stdout
    assert f"default via {net.GATEWAY[4]} dev {name} proto dhcp" in routes
    assert "default via fe80::" in routes and "proto ra" in routes
    log = "".join(line for line in clients.log().splitlines(True) if line.startswith(f"{name}:"))
    for wrong in ("nvalid", "malformed", "ailed", "gnoring"):
        assert wrong not in log, log
    for version in (4, 6):
        ns.run(["ping", f"-{version}", "-c", "1", "-W", "5", net.REMOTE[version]])


@needs(NETWORKD)
def test_networkd_renews(connect: Connect, ours_only: None) -> None:
    """By unicast, after two seconds, and goes on."""
    clients = connect("-4", "--dhcp-opt", "51:30", "--dhcp-opt", "58:2", "--dhcp-opt", "59:20")
    clients.networkd("[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n")
    wait_for(lambda: clients.log().count("DHCPv4 client: ACK") >= 3, 30, "renewals")
    assert "NAK" not in clients.log() and "lease lost" not in clients.log()
    assert "STATE: RENEWING" in clients.log() or "REQUEST (renewing)" in clients.log()


# NetworkManager


@needs("NetworkManager")
def test_networkmanager(connect: Connect, ours_only: None) -> None:
    """All services at once, for a guest behind a bridge; it ends when nothing is missing."""
    clients = connect(*TOLD, "-a", MORE, "-a", net.HOST[6])
    assert clients.networkmanager().wait(40) == 0, clients.log()
    log = clients.log()
    lease = log.partition("dhcp6 (guest0): state changed new lease, address=")[2].partition("\n")[0]
    assert set(lease.split()) == {net.HOST[6], MORE}
    for wanted in (
        f"dhcp4 (guest0): state changed new lease, address={net.HOST[4]}",
        "domain_name_servers  => '192.0.2.53'",
        "domain_search        => 'example.com foo.example.org'",
        "dhcp6_name_servers   => '2001:db8::53'",
        "dhcp6_domain_search  => 'example.com foo.example.org'",
        "addresses in the lease completed DAD",
        "dns_server 2001:db8::53 exp permanent",
        "dns_domain foo.example.org exp permanent",
        "route 2001:db8:1::/64",
        "route 2001:db8:5::/64",
        "device (guest0): state change: secondaries -> activated",
    ):
        assert wanted in log, wanted


# dibbler-client


@needs("dibbler-client")
def test_dibbler(connect: Connect) -> None:
    clients = connect(*TOLD)
    clients.dibbler("ia\noption dns-server\noption domain")
    log = wait_for(lambda: log_with(clients, "Setting up Domain foo.example.org"), 30, "answer")
    for wanted in (
        f"Address {net.HOST[6]}/128 added",
        "Setting up DNS server 2001:db8::53",
        "Setting up Domain example.com ",
        "Setting up Domain foo.example.org ",
        "Received ADVERTISE",
        "Received REPLY",
    ):
        assert wanted in log, log
    assert "Critical" not in log and "Error" not in log, log
    assert f"{net.HOST[6]}/128" in shown(clients.ns, clients.interface)


@needs("dibbler-client")
def test_dibbler_without_address(connect: Connect) -> None:
    """Asks for information only, and is assigned nothing."""
    clients = connect(*TOLD)
    clients.dibbler("option dns-server", mode="stateless")
    log = wait_for(lambda: log_with(clients, "Setting up DNS server 2001:db8::53"), 30, "answer")
    assert "INF-REQUEST" in log or "INFORMATION-REQUEST" in log or "INFREQUEST" in log, log
    assert "added to" not in log
    assert "inet6 2001:" not in shown(clients.ns, clients.interface)


def log_with(clients: Clients, text: str) -> str:
    """The log of a client once *text* is in it, else empty."""
    log = clients.log()
    return log if text in log else ""


# dhcp6c


@needs("dhcp6c")
def test_dhcp6c(connect: Connect) -> None:
    clients = connect(*TOLD)
    clients.dhcp6c("send ia-na 1; request domain-name-servers; request domain-name;")
    told = clients.events.wait("NBI")
    assert told["new_domain_name_servers"].split() == ["2001:db8::53"]
    assert told["new_domain_name"].split() == ["example.com.", "foo.example.org."]
    assert f"{net.HOST[6]}/128" in shown(clients.ns, clients.interface)
    assert "got an expected reply" in clients.log()


@needs("dhcp6c")
def test_dhcp6c_rapid_commit_is_not_insisted_on(connect: Connect) -> None:
    """We answer by an advertisement, and the client goes on with a request."""
    clients = connect(*TOLD)
    clients.dhcp6c("send ia-na 1; send rapid-commit;")
    clients.events.wait("NBI")
    log = clients.log()
    assert "advertise contains NoAddrsAvail" not in log
    assert log.index("send solicit") < log.index("send request"), log
    assert f"{net.HOST[6]}/128" in shown(clients.ns, clients.interface)
