"""A real virtual machine: QEMU, a Debian kernel, and busybox as everything else.

Nothing here is installed by the tests: ``GUEST_KERNEL`` names the folder of an unpacked kernel
package (``dpkg-deb -x linux-image-6.1.0-56-cloud-amd64_*.deb FOLDER``), and QEMU, cpio and a static
busybox must be there. The machine has a virtio network card and a serial console; it configures
itself by DHCP and Router Advertisements, runs the lines of a script, and serves /www by HTTP on
port 8000.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess

from .netns import Netns

VARIABLE = "GUEST_KERNEL"
#: In the order in which they need each other.
MODULES = (
    *("failover", "net_failover", "virtio_ring", "virtio", "virtio_pci_legacy_dev"),
    *("virtio_pci_modern_dev", "virtio_pci", "virtio_net"),
)

_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in MODULES; do insmod /modules/$module.ko; done
ip link set lo up; ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /lease >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    ip -6 addr show dev eth0 scope global | grep -q inet6 && break
    sleep 0.3
done
echo "== begin"
(
SCRIPT
) 2>&1
echo "== end"
httpd -f -p 8000 -h /www
"""
_LEASE = """#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
ip link set dev $interface mtu ${mtu:-1500}
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
"""


def missing() -> str:
    """Return what there is not for a machine, empty if all is there."""
    for program in ("qemu-system-x86_64", "busybox", "cpio"):
        if not shutil.which(program):
            return f"no {program}"
    if not glob.glob(os.path.join(os.environ.get(VARIABLE, "/nowhere"), "boot", "vmlinuz-*")):
        return f"no kernel: see {VARIABLE} in {os.path.basename(__file__)}"
    return ""


class VirtualMachine:
    """A machine that boots in *ns*, its card connected to the socket *path*, and runs *script*."""

    def __init__(self, ns: Netns, path: str, folder: str, script: str) -> None:
        self._ns = ns
        kernel = os.environ[VARIABLE]
        (image,) = glob.glob(os.path.join(kernel, "boot", "vmlinuz-*"))
        disk = self._initial_disk(kernel, folder, script)
        self.process = ns.popen(
            [
                # Not by KVM: nested, it is there but does not work everywhere.
                *("qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot"),
                *("-kernel", image, "-initrd", disk, "-append", "console=ttyS0 panic=-1 quiet"),
                *("-device", "virtio-net-pci,netdev=s,romfile="),
                *("-netdev", f"stream,id=s,server=off,addr.type=unix,addr.path={path}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> list[str]:
        """Wait for the end of the script; the lines that it printed."""
        assert self.process.stdout
        lines: list[str] = []
        while not lines or lines[-1] != "== end":
            line = self.process.stdout.readline()
            assert line, "\n".join(lines)
            lines.append(line.strip())
        return lines[lines.index("== begin") + 1 : -1]

    def turn_off(self) -> None:
        """As if by the switch."""
        self._ns.processes.stop(self.process)

    @staticmethod
    def _initial_disk(kernel: str, folder: str, script: str) -> str:
        """Make the initial RAM disk in *folder*."""
        root = os.path.join(folder, "root")
        for name in ("bin", "modules", "proc", "sys", "dev", "etc", "www"):
            os.makedirs(os.path.join(root, name))
        shutil.copy(shutil.which("busybox") or "", os.path.join(root, "bin", "busybox"))
        for module in MODULES:
            (file,) = glob.glob(f"{kernel}/lib/modules/**/{module}.ko", recursive=True)
            shutil.copy(file, os.path.join(root, "modules"))
        init = _INIT.replace("MODULES", " ".join(MODULES)).replace("SCRIPT", script)
        for name, text in (("init", init), ("lease", _LEASE)):
            with open(os.path.join(root, name), "w") as file:
                file.write(text)
            os.chmod(os.path.join(root, name), 0o755)
        disk = os.path.join(folder, "initrd")
        command = f"find . | cpio -o -H newc --quiet >{disk}"
        subprocess.run(["sh", "-c", command], cwd=root, check=True)
        return disk
