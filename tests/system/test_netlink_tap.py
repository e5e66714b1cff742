"""Making the tap in a namespace and attaching to one that exists."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from passt.kernel.netlink.worker import FamilyPlan, WorkerError
from passt.syscalls import tun
from tests.system.netlink_lab import Lab

pytestmark = pytest.mark.system

VNET_HDR_LEN, ETHERTYPE_ARP = 10, b"\x08\x06"
REFUSED = (
    "Failed to set up tap device in namespace: TUNSETIFF ioctl on /dev/net/tun failed: "
    "Invalid argument"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


def test_frames_come_with_the_virtio_header(lab: Lab) -> None:
    tap = lab.enter("net0")
    assert (tap.name, tap.vnet_header) == ("net0", True)
    assert tap.offloads & tun.TUN_F_CSUM and tap.offloads & tun.TUN_F_TSO4
    assert not os.get_blocking(tap.fd) and not os.get_inheritable(tap.fd)
    address = socket.inet_aton("192.0.2.9")
    lab.configure(FamilyPlan(address, 24, None))
    with lab.guest.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("192.0.2.1", 9))
    frames = []
    while select.select([tap.fd], [], [], 5)[0]:
        frames.append(os.read(tap.fd, 70000))
        if frames[-1][VNET_HDR_LEN + 12 :][:2] == ETHERTYPE_ARP:
            break
    request = frames[-1][VNET_HDR_LEN:]
    assert request[6:12] == tap.mac
    assert request[38:42] == socket.inet_aton("192.0.2.1")


@pytest.mark.parametrize("options", ["", "multi_queue", "vnet_hdr", "multi_queue vnet_hdr"])
def test_attaching_to_a_persistent_tap(lab: Lab, options: str) -> None:
    lab.guest.run(
        f"ip tuntap add dev tap0 mode tap {options}\n"
        "ip link set tap0 up address 02:00:00:00:00:77\n"
        "ip addr add 192.0.2.9/24 dev tap0; ip addr add 2001:db8::9/64 dev tap0\n"
        "ip route add default via 192.0.2.1\n"
    )
    tap = lab.enter()
    assert tap.mac == bytes.fromhex("020000000077")
    assert tap.vnet_header and tun.get_vnet_hdr_size(tap.fd) == VNET_HDR_LEN
    done = lab.configure(
        FamilyPlan(socket.inet_aton("192.0.2.9"), 24, socket.inet_aton("192.0.2.1")),
        FamilyPlan(socket.inet_pton(socket.AF_INET6, "2001:db8::9"), 64, None),
    )
    assert done.ipv4 and done.ipv6
    assert [r["dst"] for r in lab.guest.routes()] == ["default", "192.0.2.0/24"]
    (own,) = lab.guest.link_local("tap0")
    assert own["nodad"] is True


@pytest.mark.parametrize(
    "made",
    [
        "ip link add tap0 type veth",
        "ip tuntap add dev tap0 mode tun",
        "ip link add tap0 type bridge",
    ],
)
def test_name_taken_by_something_else(lab: Lab, made: str) -> None:
    lab.guest.run(made)
    with pytest.raises(WorkerError) as caught:
        lab.enter()
    assert str(caught.value) == REFUSED


def test_tap_in_use(lab: Lab) -> None:
    with lab.guest.inside():
        other = tun.open_tun()
        tun.set_iff(other, "tap0", tun.IFF_TAP | tun.IFF_NO_PI)
    try:
        with pytest.raises(WorkerError, match="Device or resource busy"):
            lab.enter()
    finally:
        os.close(other)


def test_impossible_names(lab: Lab) -> None:
    for name in ("a" * 16, "a/b", "a b"):
        with pytest.raises(WorkerError, match="Failed to set up tap device in namespace"):
            lab.enter(name)
