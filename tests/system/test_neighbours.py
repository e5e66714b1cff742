"""The guest sees the host's neighbours by their true link-layer addresses, as they come and go."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import PcapReader

from tests.system.conftest import StartGuest, StartPasta
from tests.system.kit import topology as net
from tests.system.kit.netns import Netns, wait_for
from tests.system.kit.pasta import DEFAULT_MAC, Pasta
from tests.system.kit.rawguest import ICMP, UDP, IPv6, RawGuest

pytestmark = pytest.mark.system

#: On the host's link, as far as its kernel is told.
STRANGER = {4: "198.51.100.50", 6: "2001:db8:1::50"}
MACS = ["02:11:22:33:44:55", "02:11:22:33:44:66"]


@pytest.fixture
def stranger(host: Netns, version: int) -> Iterator[str]:
    """An address that is forgotten afterwards."""
    address = STRANGER[version]
    yield address
    host.run(["ip", "neigh", "del", address, "dev", "eth0"], check=False)


def put(host: Netns, address: str, mac: str, state: str = "reachable") -> None:
    """Have the host's kernel know a neighbour."""
    host.ip(f"neigh replace {address} lladdr {mac} dev eth0 nud {state}\n")


def mac_of(ns: Netns, interface: str = "eth0") -> str:
    """The MAC of an interface."""
    out = ns.run(["cat", f"/sys/class/net/{interface}/address"], prefix=_SYSFS).stdout
    return out.strip()


#: /sys shows the network namespace of who mounts it.
_SYSFS = ["unshare", "--mount", "sh", "-c", 'mount -t sysfs sysfs /sys && exec "$@"', "sh"]


def resolved(guest: RawGuest, version: int, address: str) -> str:
    """The MAC that the guest is told for ``address``, when it asks."""
    since = guest.position()
    if version == 4:
        question = ARP(op=1, hwsrc=guest.mac, psrc=guest.address[4], pdst=address)
        guest.send(Ether(src=guest.mac, dst="ff:ff:ff:ff:ff:ff") / question)
        answer = guest.expect(lambda p: ARP in p and p[ARP].psrc == address, since=since)
        return str(answer[0].packet[ARP].hwsrc)
    guest.send(IPv6(src=guest.link_local, dst=address, hlim=255) / ICMPv6ND_NS(tgt=address))
    answer = guest.expect(lambda p: ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == address, since=since)
    return str(answer[0].packet[ICMPv6NDOptDstLLAddr].lladdr)


def becomes(guest: RawGuest, version: int, address: str, mac: str) -> None:
    """Wait until the guest is told this MAC."""

    def told() -> bool:
        time.sleep(0.05)
        return resolved(guest, version, address) == mac

    wait_for(told, what=f"{address} at {mac}")


def test_neighbour_is_shown_by_its_mac(
    start_guest: StartGuest, host: Netns, remote: Netns, version: int, stranger: str
) -> None:
    """When the guest asks: at once for those known, later for others, until they are gone."""
    put(host, stranger, MACS[0])
    guest = start_guest()
    assert resolved(guest, version, stranger) == MACS[0]
    assert resolved(guest, version, net.REMOTE[version]) == mac_of(remote)
    # The router's address stands for the host, and nobody else may claim it.
    assert resolved(guest, version, net.GATEWAY[version]) == DEFAULT_MAC
    assert resolved(guest, version, net.ABSENT[version]) == DEFAULT_MAC
    put(host, stranger, MACS[1], "stale")
    becomes(guest, version, stranger, MACS[1])
    host.ip(f"neigh del {stranger} dev eth0\n")
    becomes(guest, version, stranger, DEFAULT_MAC)


def test_others_have_the_mac_of_the_router(
    start_guest: StartGuest, remote: Netns, version: int
) -> None:
    """If it does not stand for the host."""
    guest = start_guest("--no-map-gw")
    router = mac_of(remote)
    for address in (net.GATEWAY, net.FAR, net.ABSENT):
        assert resolved(guest, version, address[version]) == router


def test_frames_come_from_the_neighbours_mac(
    start_guest: StartGuest, remote: Netns, version: int
) -> None:
    """UDP of either side, echo replies, errors; our own MAC for who is beyond the router."""
    guest = start_guest("-u", "7001")
    mac = mac_of(remote)
    with remote.udp(net.REMOTE[version], 7002) as peer:
        guest.send(guest.ip(version, net.REMOTE[version]) / UDP(sport=5000, dport=7002) / b"ask")
        _, asker = peer.recvfrom(100)
        peer.sendto(b"answer", asker)
        frame = guest.expect(lambda p: UDP in p and p[UDP].sport == 7002)[0]
        assert frame.packet.src == mac
        peer.sendto(b"call", (net.HOST[version], 7001))
        frame = guest.expect(lambda p: UDP in p and p[UDP].dport == 7001)[0]
        assert frame.packet.src == mac
    guest.send(guest.ip(version, net.REMOTE[version]) / UDP(sport=5000, dport=9) / b"error")
    error = guest.expect(is_error)[0]
    assert error.packet.src == mac
    guest.send(guest.ip(version, net.FAR[version]) / UDP(sport=5001, dport=9) / b"error")
    error = guest.expect(lambda p: is_error(p) and p.payload.src == net.FAR[version])[0]
    assert error.packet.src == DEFAULT_MAC


def is_error(packet: Packet) -> bool:
    """Whether it is a port unreachable."""
    if ICMP in packet:
        return bool(packet[ICMP].type == 3)
    return IPv6 in packet and packet[IPv6].nh == 58 and bytes(packet[IPv6].payload)[0] == 1


def test_tcp_comes_from_the_neighbours_mac(
    start_pasta: StartPasta, remote: Netns, version: int
) -> None:
    """A guest that has its kernel's own stack, for a change; it sends to that MAC as well."""
    pasta = start_pasta("-t", "7001")
    with remote.listen(net.REMOTE[version], 7003) as listener:
        client = pasta.ns.connect(net.REMOTE[version], 7003)
        server, _ = listener.accept()
        server.sendall(b"from the neighbour")
        assert client.recv(100) == b"from the neighbour"
    shown = pasta.ns.run(["ip", "neigh", "show", net.REMOTE[version]]).stdout
    assert mac_of(remote) in shown


class Capture:
    """The frames that a pasta has exchanged so far."""

    def __init__(self, pasta: Pasta, path: str) -> None:
        self.pasta = pasta
        self.path = path

    def frames(self) -> list[Packet]:
        """All of them."""
        with PcapReader(self.path) as reader:
            return list(reader)

    def announcements(self, version: int, address: str) -> list[Packet]:
        """Those which say, unasked, that ``address`` is there."""
        if version == 4:
            return [
                p
                for p in self.frames()
                if ARP in p and p[ARP].op == 1 and p[ARP].psrc == p[ARP].pdst == address
            ]
        return [
            p
            for p in self.frames()
            if ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == address and p[IPv6].dst == "ff02::1"
        ]


@pytest.fixture
def capture(start_pasta: StartPasta, folder: str) -> Iterator[Capture]:
    path = os.path.join(folder, "pcap", "neighbours")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.chmod(os.path.dirname(path), 0o777)
    yield Capture(start_pasta("--pcap", path), path)
    os.unlink(path)


def check(version: int, announcement: Packet, address: str, mac: str, guest_mac: str) -> None:
    """An announcement as a neighbour would make it."""
    if version == 4:
        arp = announcement[ARP]
        assert (announcement.src, announcement.dst) == (mac, "ff:ff:ff:ff:ff:ff")
        assert (arp.hwsrc, arp.psrc, arp.pdst) == (mac, address, address)
        assert arp.hwdst == "00:00:00:00:00:00"
        return
    advertised = announcement[ICMPv6ND_NA]
    assert (announcement.src, announcement.dst) == (DEFAULT_MAC, guest_mac)
    assert announcement[ICMPv6NDOptDstLLAddr].lladdr == mac
    assert (announcement[IPv6].hlim, advertised.R, advertised.O) == (255, 1, 1)


def test_new_neighbours_are_announced(
    capture: Capture, host: Netns, remote: Netns, version: int, stranger: str
) -> None:
    """At the start, and later; not what is ours, and not another MAC of a known one."""
    guest_mac = mac_of(capture.pasta.ns_as_root)
    wait_for(lambda: capture.announcements(version, net.REMOTE[version]), what="the first")
    (first,) = capture.announcements(version, net.REMOTE[version])
    check(version, first, net.REMOTE[version], mac_of(remote), guest_mac)
    assert not capture.announcements(version, net.GATEWAY[version])
    put(host, stranger, MACS[0])
    wait_for(lambda: capture.announcements(version, stranger), what="an announcement")
    put(host, stranger, MACS[1])
    time.sleep(1.2)
    (later,) = capture.announcements(version, stranger)
    check(version, later, stranger, MACS[0], guest_mac)
    host.ip(f"neigh del {stranger} dev eth0\n")
    time.sleep(1.2)
    put(host, stranger, MACS[1])
    wait_for(lambda: len(capture.announcements(version, stranger)) == 2, what="another one")
    check(version, capture.announcements(version, stranger)[1], stranger, MACS[1], guest_mac)


def test_announcement_is_not_solicited(ours_only: None, capture: Capture, host: Netns) -> None:
    wait_for(lambda: capture.announcements(6, net.REMOTE[6]), what="an announcement")
    assert capture.announcements(6, net.REMOTE[6])[0][ICMPv6ND_NA].S == 0


def test_busy_network_costs_next_to_nothing(
    ours_only: None, start_guest: StartGuest, host: Netns
) -> None:
    """Thousands of changes, on our interface and another; then the truth is known all the same."""
    guest = start_guest()
    host.ip("link add other type veth peer name more\nlink set other up\nlink set more up\n")
    try:
        before = guest.pasta.cpu_seconds()
        for round_ in range(10):
            lines = []
            for i in range(400):
                mac = f"02:00:00:{round_:02x}:{i >> 8:02x}:{i & 255:02x}"
                for device in ("eth0", "other"):
                    address = f"198.51.{101 + (i >> 8)}.{i & 255}"
                    lines.append(f"neigh replace {address} lladdr {mac} dev {device} nud stale")
            host.ip("\n".join(lines) + "\n")
        used = guest.pasta.cpu_seconds() - before
        assert used < 0.5, used
        put(host, STRANGER[4], MACS[0])
        host.ip("neigh flush dev eth0 nud stale to 198.51.101.0/24\n")

        def truth() -> bool:
            time.sleep(0.1)
            return (
                resolved(guest, 4, STRANGER[4]) == MACS[0]
                and resolved(guest, 4, "198.51.101.7") == DEFAULT_MAC
            )

        wait_for(truth, 20, "the table as it is in the end")
        idle = guest.pasta.cpu_seconds()
        time.sleep(0.5)
        assert guest.pasta.cpu_seconds() - idle <= 0.02
    finally:
        host.ip("link del other\n")
        host.run(["ip", "neigh", "flush", "nud", "stale", "to", "198.51.0.0/16"], check=False)
        host.run(["ip", "neigh", "del", STRANGER[4], "dev", "eth0"], check=False)


def test_start_while_neighbours_change(start_guest: StartGuest, host: Netns) -> None:
    """What is asked for is not mistaken for what is reported, nor the other way round."""
    lines = "".join(
        f"neigh replace 198.51.{101 + i // 250}.{i % 250} lladdr 02:00:00:00:00:{i % 200:02x} "
        "dev eth0 nud stale\n"
        for i in range(5000)
        if i // 250 < 3
    )
    changing = host.popen(["sh", "-c", "while true; do ip -batch /dev/stdin <<E\n$1E\ndone", "sh",
                           lines])  # fmt: skip
    try:
        put(host, STRANGER[4], MACS[0])
        guest = start_guest()
        becomes(guest, 4, STRANGER[4], MACS[0])
    finally:
        host.processes.stop(changing)
        host.run(["ip", "neigh", "flush", "nud", "stale", "to", "198.51.0.0/16"], check=False)
        host.run(["ip", "neigh", "del", STRANGER[4], "dev", "eth0"], check=False)


def test_no_neighbours_without_a_link(
    ours_only: None, start_pasta: StartPasta, version: int
) -> None:
    """The loopback interface has none; that is no reason to complain."""
    pasta = start_pasta("-a", "192.0.2.77/24", "-a", "2001:db8:77::2", "-i", "lo", "-I", "tap0")
    assert "eighbour" not in pasta.messages()
    sock = pasta.ns.udp(family=socket.AF_INET)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 3)
    try:
        sock.sendto(b"x", ("239.1.2.3", 9))
    except OSError:
        # The namespace has no route.
        pass
    assert pasta.alive()
