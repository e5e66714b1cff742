"""TUN/TAP requests on a real interface in a namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from passt.syscalls import ns, tun

pytestmark = pytest.mark.system

TAP = tun.IFF_TAP | tun.IFF_NO_PI


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Run the test in a new network namespace, then return."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    ns.unshare(ns.CLONE_NEWNET)
    try:
        yield
    finally:
        ns.setns(home, ns.CLONE_NEWNET)
        os.close(home)


@pytest.fixture
def fd() -> Iterator[int]:
    fd = tun.open_tun()
    yield fd
    os.close(fd)


def test_open_flags(fd: int) -> None:
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)


def test_set_and_get_iff(fd: int) -> None:
    with pytest.raises(OSError, match="ioctl TUNGETIFF") as caught:
        tun.get_iff(fd)
    assert caught.value.errno == errno.EBADFD
    assert tun.set_iff(fd, "tap7", TAP | tun.IFF_VNET_HDR) == "tap7"
    assert "tap7" in [name for _, name in socket.if_nameindex()]
    name, flags = tun.get_iff(fd)
    assert name == "tap7"
    assert flags & (TAP | tun.IFF_VNET_HDR) == TAP | tun.IFF_VNET_HDR
    assert not flags & tun.IFF_MULTI_QUEUE


def test_kernel_chooses_the_name(fd: int) -> None:
    assert tun.set_iff(fd, "", TAP) == "tap0"


def test_multi_queue_and_exclusive(fd: int) -> None:
    tun.set_iff(fd, "mq0", TAP | tun.IFF_MULTI_QUEUE)
    second, third = tun.open_tun(), tun.open_tun()
    try:
        assert tun.set_iff(second, "mq0", TAP | tun.IFF_MULTI_QUEUE) == "mq0"
        with pytest.raises(OSError, match="ioctl TUNSETIFF") as caught:
            tun.set_iff(third, "mq0", TAP | tun.IFF_MULTI_QUEUE | tun.IFF_TUN_EXCL)
        assert caught.value.errno == errno.EBUSY
    finally:
        os.close(second)
        os.close(third)


@pytest.mark.parametrize(
    ("name", "number"), [("a" * 16, errno.ENAMETOOLONG), ("a\0b", errno.EINVAL)]
)
def test_bad_names(fd: int, name: str, number: int) -> None:
    with pytest.raises(OSError, match="ioctl TUNSETIFF") as caught:
        tun.set_iff(fd, name, TAP)
    assert caught.value.errno == number


def test_longest_name(fd: int) -> None:
    assert tun.set_iff(fd, "a" * 15, TAP) == "a" * 15


def test_features(fd: int) -> None:
    known = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR | tun.IFF_MULTI_QUEUE
    assert tun.get_features(fd) & known == known


def test_persist(fd: int) -> None:
    tun.set_iff(fd, "keep0", TAP)
    tun.set_persist(fd, True)
    assert tun.get_iff(fd)[1] & tun.IFF_PERSIST
    tun.set_persist(fd, False)
    assert not tun.get_iff(fd)[1] & tun.IFF_PERSIST


def test_probe_offload(fd: int) -> None:
    tun.set_iff(fd, "tap0", TAP | tun.IFF_VNET_HDR)
    offloads = tun.probe_offload(fd)
    tso = tun.TUN_F_CSUM | tun.TUN_F_TSO4 | tun.TUN_F_TSO6
    assert offloads & tso == tso
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    uso = tun.TUN_F_USO4 | tun.TUN_F_USO6
    assert offloads & uso == (uso if version >= (6, 2) else 0)


def test_unknown_offload(fd: int) -> None:
    tun.set_iff(fd, "tap0", TAP | tun.IFF_VNET_HDR)
    with pytest.raises(OSError, match="ioctl TUNSETOFFLOAD") as caught:
        tun.set_offload(fd, 1 << 30)
    assert caught.value.errno == errno.EINVAL


def test_vnet_header_size(fd: int) -> None:
    tun.set_iff(fd, "tap0", TAP | tun.IFF_VNET_HDR)
    assert tun.get_vnet_hdr_size(fd) == tun.VNET_HDR_LEN == tun.VNET_HDR.size
    tun.set_vnet_hdr_size(fd, tun.VNET_HDR_MRG_LEN)
    assert tun.get_vnet_hdr_size(fd) == 12
    with pytest.raises(OSError, match="ioctl TUNSETVNETHDRSZ"):
        tun.set_vnet_hdr_size(fd, 4)


def test_vnet_le_and_sndbuf(fd: int) -> None:
    tun.set_iff(fd, "tap0", TAP | tun.IFF_VNET_HDR)
    tun.set_vnet_le(fd, True)
    tun.set_vnet_le(fd, False)
    tun.set_sndbuf(fd, 1 << 20)
    with pytest.raises(OSError, match="ioctl TUNSETSNDBUF") as caught:
        tun.set_sndbuf(fd, 0)
    assert caught.value.errno == errno.EINVAL
