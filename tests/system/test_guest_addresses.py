"""Which addresses the guest has, as it and we find out: before and after it is configured."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLDMultAddrRec,
    ICMPv6MLReport2,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)

from passt.syscalls.sockopt import IPV6_RECVERR
from tests.system.conftest import StartGuest, StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import Pasta, Program
from tests.system.kit.rawguest import IP, TCP, UDP, IPv6, Packet, RawGuest
from tests.system.kit.topology import Topology
from tests.system.kit.users import User

pytestmark = pytest.mark.system

PORT = 7310
ELSE = {4: "198.51.100.77", 6: "2001:db8:1::77"}


def test_nothing_is_said_on_an_interface_that_is_down(
    ours_only: None, start_pasta: StartPasta, remote: Netns, folder: str
) -> None:
    """Datagrams of before are lost, as on any network; whatever comes later arrives."""
    path = Path(folder) / "down.pcap"
    path.unlink(missing_ok=True)
    Path(folder).chmod(0o777)
    pasta = start_pasta("-d", "-u", str(PORT), "-p", str(path), config_net=False)
    client = remote.udp(net.REMOTE[4], 0)
    client.sendto(b"early", (net.HOST[4], PORT))
    wait_for(lambda: "UDP flow" in pasta.messages(), what="flow of a datagram")
    assert path.stat().st_size == 24, "frames in the capture"
    messages = pasta.messages().lower()
    assert "failed" not in messages and "input/output error" not in messages

    name = pasta.interface()
    pasta.ns_as_root.ip(
        f"link set dev {name} up\naddr add {net.HOST[4]}/24 dev {name}\n"
        f"route add default via {net.GATEWAY[4]}\n"
    )
    server = pasta.ns.udp("0.0.0.0", PORT)
    client.sendto(b"late", (net.HOST[4], PORT))
    assert server.recv(100) == b"late"


def test_duplicate_detection_of_the_hosts_own_address(start_pasta: StartPasta) -> None:
    """The guest may have it: nobody defends it, by Neighbour Discovery or ARP."""
    pasta = start_pasta(config_net=False)
    ns, name = pasta.ns_as_root, pasta.interface()
    ns.sysctl(f"net/ipv6/conf/{name}/accept_ra", 0)
    ns.sysctl(f"net/ipv6/conf/{name}/accept_dad", 2)
    ns.sysctl(f"net/ipv6/conf/{name}/enhanced_dad", 1)
    ns.ip(f"link set dev {name} up\naddr add {net.HOST[6]}/64 dev {name}\n")

    def settled() -> str:
        out = ns.run(["ip", "-6", "-o", "addr", "show", "dev", name]).stdout
        return out if "tentative" not in out and out.count("inet6") == 2 else ""

    assert "dadfailed" not in wait_for(settled, what="end of duplicate detection")


def inbound(guest: RawGuest, remote: Netns, version: int) -> str:
    """Where in the guest a connection to the host arrives; nobody answers it."""
    since = guest.position()
    client = remote.new_socket(
        socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM
    )
    client.setblocking(False)
    client.connect_ex((net.HOST[version], 7001))
    layer = IP if version == 4 else IPv6

    def offered(packet: Packet) -> bool:
        return layer in packet and TCP in packet and packet[TCP].dport == 7001

    (frame, *_) = guest.expect(offered, since=since)
    client.close()
    return str(frame.packet[layer].dst)


def test_reports_by_nobody_move_no_address(start_guest: StartGuest, remote: Netns) -> None:
    """A guest that comes up reports its groups before it has an address."""
    guest = start_guest("-t", "7001")
    report = ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=4, dst="ff02::1:ff00:2")])
    hops = IPv6ExtHdrHopByHop(options=[RouterAlert()])
    guest.send(IPv6(src="::", dst="ff02::16", hlim=1) / hops / report)
    assert inbound(guest, remote, 6) == net.HOST[6]


@pytest.mark.parametrize("fixed", [False, True])
def test_bystanders_behind_the_guest(
    start_guest: StartGuest, remote: Netns, version: int, fixed: bool
) -> None:
    """What it forwards for others moves its address, unless that was given."""
    options = ("-a", net.HOST[version]) if fixed else ()
    guest = start_guest("-t", "7001", *options)
    header = guest.ip(version, net.REMOTE[version], src=ELSE[version])
    listening = remote.udp(net.REMOTE[version], PORT)
    guest.send(header / UDP(sport=1234, dport=PORT) / b"x")
    assert listening.recv(10) == b"x"
    assert inbound(guest, remote, version) == (net.HOST if fixed else ELSE)[version]


def test_loopback_to_a_guest_that_has_a_link_local_address_only(
    ours_only: None, program: Program, user: User
) -> None:
    """In local mode: its interface is part of where the connection goes."""
    with Topology(bare=True) as topology:
        pasta = Pasta(program, topology.host, user, "-t", str(PORT), "-u", str(PORT), "-6")
        try:
            listener, datagrams = pasta.ns.listen("::", PORT), pasta.ns.udp("::", PORT)
            with topology.host.connect("::1", PORT) as client:
                served, _ = listener.accept()
                with served:
                    assert served.getsockname()[0].startswith("fe80:")
                    served.sendall(b"answer")
                    assert client.recv(10) == b"answer"
            asking = topology.host.udp("::1")
            asking.sendto(b"question", ("::1", PORT))
            _, peer = datagrams.recvfrom(100)
            datagrams.sendto(b"answer", peer)
            assert asking.recvfrom(100)[0] == b"answer"
        finally:
            pasta.close()


def test_link_local_destinations_of_a_host_without_interfaces(
    program: Program, user: User, ours_only: None
) -> None:
    """There are none, and that is said at once."""
    with Topology(bare=True) as topology:
        pasta = Pasta(program, topology.host, user, "-6")
        try:
            name = pasta.interface()
            scope = pasta.ns.call(lambda: socket.if_nametoindex(name))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                client = pasta.ns.new_socket(socket.AF_INET6, kind)
                client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
                with pytest.raises(OSError) as caught:
                    client.connect(("fe80::7", PORT, 0, scope))
                    client.send(b"question")
                    client.recv(100)
                assert caught.value.errno == errno.ENETUNREACH
        finally:
            pasta.close()
