"""Namespaces and mounts, and local errors on the error queue, in a child process each."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct

import pytest

from passt.syscalls import ns, sockopt, statfs
from passt.syscalls.errqueue import SO_EE_ORIGIN_LOCAL, ErrorQueue
from tests.system.syscalls_child import in_child

pytestmark = pytest.mark.system


def link(kind: str) -> str:
    return os.readlink(f"/proc/thread-self/ns/{kind}")


def test_unshare_and_setns() -> None:
    def body() -> None:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        before = link("net")
        ns.unshare(ns.CLONE_NEWNET)
        inside = link("net")
        assert inside != before
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        with pytest.raises(OSError, match="setns: ") as caught:
            ns.setns(home, ns.CLONE_NEWUTS)
        assert caught.value.errno == errno.EINVAL
        ns.setns(home, ns.CLONE_NEWNET)
        assert link("net") == before

    in_child(body)


def test_owner_and_parent() -> None:
    def body() -> None:
        outer = os.open("/proc/self/ns/user", os.O_RDONLY)
        ns.unshare(ns.CLONE_NEWUSER | ns.CLONE_NEWNET)
        net = os.open("/proc/self/ns/net", os.O_RDONLY)
        user = os.open("/proc/self/ns/user", os.O_RDONLY)
        owner = ns.owner(net)
        assert os.fstat(owner).st_ino == os.fstat(user).st_ino
        assert os.fstat(owner).st_ino != os.fstat(outer).st_ino
        assert not os.get_inheritable(owner)
        with pytest.raises(PermissionError, match="ioctl NS_GET_PARENT"):
            ns.parent(user)
        pid = os.open("/proc/self/ns/pid", os.O_RDONLY)
        with pytest.raises(PermissionError, match="ioctl NS_GET_USERNS"):
            ns.owner(pid)

    in_child(body)


def test_hostname() -> None:
    def body() -> None:
        before = os.uname().nodename
        ns.unshare(ns.CLONE_NEWUTS)
        ns.sethostname("pasta-" + "h" * 58)
        assert os.uname().nodename == "pasta-" + "h" * 58 != before
        with pytest.raises(OSError, match="sethostname: "):
            ns.sethostname("h" * 65)

    in_child(body)


def test_sandbox_by_pivot_root() -> None:
    """The sequence of a sandbox: private tree, tmpfs, pivot, old root gone."""

    def body() -> None:
        ns.unshare(ns.CLONE_NEWNS)
        ns.mount(None, "/", None, ns.MS_UNBINDABLE | ns.MS_REC)
        flags = ns.MS_NODEV | ns.MS_NOEXEC | ns.MS_NOSUID | ns.MS_RDONLY
        ns.mount("", "/tmp", "tmpfs", flags, "nr_inodes=2,nr_blocks=0")
        os.chdir("/tmp")
        ns.pivot_root(".", ".")
        ns.umount(".", ns.MNT_DETACH | ns.UMOUNT_NOFOLLOW)
        assert os.listdir("/") == []
        root = os.open("/", os.O_RDONLY)
        assert statfs.fs_type(root) == statfs.TMPFS_MAGIC
        try:
            os.mkdir("/x")
        except OSError as e:
            assert e.errno == errno.EROFS
        else:
            raise AssertionError("writable")

    in_child(body)


def test_mount_errors_are_named(tmp_path: object) -> None:
    def body() -> None:
        ns.unshare(ns.CLONE_NEWNS)
        with pytest.raises(OSError, match="mount: "):
            ns.mount("none", "/tmp", "no-such-type")
        with pytest.raises(OSError, match="umount2: "):
            ns.umount(str(tmp_path))
        with pytest.raises(OSError, match="pivot_root: "):
            ns.pivot_root(str(tmp_path), str(tmp_path))

    in_child(body)


def test_pidfd() -> None:
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(w)
        os.read(r, 1)
        os._exit(0)
    os.close(r)
    fd = ns.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], 0)[0] == []
        os.close(w)
        assert select.select([fd], [], [], 10)[0] == [fd]
    finally:
        os.close(fd)
        os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError, match="pidfd_open: "):
        ns.pidfd_open(pid)


def test_local_error_has_no_offender() -> None:
    """A datagram above the interface's MTU, fragmentation forbidden: EMSGSIZE of local origin."""

    def body() -> None:
        ns.unshare(ns.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            siocsifmtu, siocsifflags, iff_up = 0x8922, 0x8914, 1
            fcntl.ioctl(sock, siocsifmtu, struct.pack("16si20x", b"lo", 1400))
            fcntl.ioctl(sock, siocsifflags, struct.pack("16sh22x", b"lo", iff_up))
            sock.setsockopt(socket.IPPROTO_IP, sockopt.IP_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IP, sockopt.IP_MTU_DISCOVER, sockopt.PMTUDISC_DO)
            with pytest.raises(OSError, match="Message too long"):
                sock.sendto(bytes(2000), ("127.0.0.1", 9))
            report = ErrorQueue().read(sock.fileno())
        assert report is not None
        assert (report.errno, report.origin) == (errno.EMSGSIZE, SO_EE_ORIGIN_LOCAL)
        assert report.info == 1400
        assert report.offender == b""

    in_child(body)
