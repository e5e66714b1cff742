"""Real clients of the configuration services: dhclient, dhcpcd, udhcpc, and rarer ones.

They run as root in the guest's network namespace, and in a mount namespace where whatever they
keep in the file system is kept in memory. Each calls a *script* when something happens, ours:
it configures the address, so that renewals work as they should, and adds a line of all that the
client told it to a file, from which the test reads (:class:`Events`).

systemd-networkd runs without systemd: in its mount namespace sysfs is read-only, which tells it
that no udev is going to announce interfaces to it, and nobody answers on D-Bus.

NetworkManager does without D-Bus in the mode it has for initial RAM disks, where it also ends by
itself once everything is configured. It leaves taps alone, but takes a veth that is bridged to one.

NetworkManager, dibbler-client and dhcp6c (wide-dhcpv6-client) are used where somebody installed
them. Nothing here does: their packages start them on the machine's own interfaces.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .netns import Netns, wait_for

#: dhclient and udhcpc; both in terms of dhclient's variables where they differ.
_SCRIPT = """#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
reason=${reason:-${REASON:-$1}}
if [ -n "$new_ip_address" ]; then
    ip address replace "$new_ip_address/$new_subnet_mask" dev "$interface"
elif [ -n "$new_ip6_address" ]; then
    ip address replace "$new_ip6_address/128" dev "$interface" nodad
elif [ "$reason" != deconfig ] && [ -n "$ip" ]; then
    ip address replace "$ip/$mask" dev "$interface"
fi
# In one piece: a client may be ended at any time.
all=$(printf 'reason=%s\\n' "$reason"; env)
printf '%s\\n\\n' "$all" >>EVENTS
exit 0
"""

_PRIVATE = """
for folder in /var/lib/dhcp /var/lib/dhcpcd /var/lib/dhcpcd5 /var/lib/dhcpv6 \\
        /etc/dibbler /var/lib/dibbler /var/log/dibbler /run; do
    [ ! -d "$folder" ] || mount -t tmpfs tmpfs "$folder" || exit 1
done
exec "$@"
"""

NETWORKD = "/usr/lib/systemd/systemd-networkd"
_NETWORKD = """
mount -t sysfs -o ro sysfs /sys && mount -t tmpfs tmpfs /run || exit 1
[ ! -d /etc/systemd/network ] || mount -t tmpfs tmpfs /etc/systemd/network || exit 1
mkdir -p /run/systemd/network
cp "$1" /run/systemd/network/10-test.network
SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console exec "$0"
"""

_NETWORKMANAGER = """
set -e
tap=$1 folder=$2
ip link add bridge type bridge forward_delay 0
ip link add port type veth peer name guest0
for name in bridge port "$tap"; do echo 1 >/proc/sys/net/ipv6/conf/$name/disable_ipv6; done
ip link set "$tap" master bridge
ip link set port master bridge up
ip link set bridge up
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/NetworkManager /run/NetworkManager/system-connections
install -m 600 "$folder/nmconnection" /run/NetworkManager/system-connections/test.nmconnection
exec unshare --uts NetworkManager --config "$folder/NetworkManager.conf" --no-daemon --debug \\
    --configure-and-quit=initrd
"""
_NM_CONF = """
[main]
dhcp=internal
plugins=keyfile
dns=none
hostname-mode=none
no-auto-default=*
rc-manager=unmanaged
[keyfile]
unmanaged-devices=except:interface-name:guest0
[logging]
level=DEBUG
domains=ALL
"""
_NM_CONNECTION = """
[connection]
id=test
uuid=11111111-2222-3333-4444-555555555555
type=ethernet
interface-name=guest0
autoconnect=true
[ipv4]
method=auto
may-fail=false
[ipv6]
method=auto
may-fail=false
"""


class Events:
    """What a client told its script so far."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events"
        self.path.touch()
        self.script = folder / "script"
        self.script.write_text(_SCRIPT.replace("EVENTS", shlex.quote(str(self.path))))
        self.script.chmod(0o755)

    def all(self) -> list[dict[str, str]]:
        """The variables of each call, complete ones only."""
        calls = self.path.read_text().split("\n\n")[:-1]
        return [
            dict(line.split("=", 1) for line in reversed(call.split("\n")) if "=" in line)
            for call in calls
        ]

    def reasons(self) -> list[str]:
        """Why the script was called, in order."""
        return [call["reason"] for call in self.all()]

    def wait(self, reason: str, after: int = 0, timeout: float = 30.0) -> dict[str, str]:
        """The variables of the first call for *reason* behind *after* others, once there is one."""

        def find() -> dict[str, str]:
            return next((call for call in self.all()[after:] if call["reason"] == reason), {})

        return wait_for(find, timeout, f"{reason}, from {after} on")


class Clients:
    """Starts clients on *interface* of the namespace *ns*; *folder* is theirs."""

    def __init__(self, ns: Netns, interface: str, folder: Path) -> None:
        self.ns = ns
        self.interface = interface
        self.folder = folder
        self.events = Events(folder)

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a client, its output in the file ``log`` of the folder."""
        with open(self.folder / "log", "a") as log:
            return self.ns.popen(
                ["unshare", "--mount", "sh", "-c", _PRIVATE, "sh", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        """What the clients have printed."""
        return (self.folder / "log").read_text()

    def dhclient(self, version: int, conf: str = "") -> subprocess.Popen[str]:
        """Start dhclient in foreground; leases and identity stay in the folder."""
        path = self.folder / "dhclient.conf"
        path.write_text(conf)
        leases = self.folder / f"dhclient{version}.leases"
        leases.touch()
        return self.start(
            [
                *("dhclient", f"-{version}", "-d", "-v", "-cf", str(path), "-lf", str(leases)),
                *("-pf", str(self.folder / "pid"), "-sf", str(self.events.script)),
                self.interface,
            ]
        )

    def bound(self, version: int) -> None:
        """Wait until dhclient has told its script, and written the lease to its file."""
        self.events.wait("BOUND" if version == 4 else "BOUND6")
        leases = self.folder / f"dhclient{version}.leases"
        wait_for(lambda: leases.read_text().endswith("}\n"), 30, "lease")

    def udhcpc(self, *options: str) -> subprocess.Popen[str]:
        """Start udhcpc in foreground."""
        words = ["-f", "-i", self.interface, "-s", str(self.events.script), "-t", "10", "-T", "1"]
        return self.start(["udhcpc", *words, *options])

    def dhcpcd(self, version: int, *options: str) -> subprocess.Popen[str]:
        """Start dhcpcd in foreground; it configures the interface by itself."""
        conf = self.folder / "dhcpcd.conf"
        conf.write_text("duid\noption domain_name_servers, domain_search, interface_mtu\n")
        words = ["-B", "-d", f"-{version}", "-f", str(conf), "-c", str(self.events.script)]
        return self.start(["dhcpcd", *words, *options, self.interface])

    def networkd(self, conf: str) -> subprocess.Popen[str]:
        """Start systemd-networkd, which configures the interface as *conf* says, by itself."""
        path = self.folder / "networkd.network"
        path.write_text(f"[Match]\nName={self.interface}\n{conf}")
        return self.start(["sh", "-c", _NETWORKD, NETWORKD, str(path)])

    def dibbler(self, conf: str, *, mode: str = "") -> subprocess.Popen[str]:
        """Start dibbler-client in foreground; *conf* is what stands in the interface's block."""
        path = self.folder / "dibbler.conf"
        block = f"iface {self.interface} {{\n{conf}\n}}\n"
        path.write_text(f"log-level 8\nlog-mode short\n{mode}\n{block}")
        script = 'cp "$0" /etc/dibbler/client.conf && exec dibbler-client run'
        return self.start(["sh", "-c", script, str(path)])

    def dhcp6c(self, conf: str) -> subprocess.Popen[str]:
        """Start dhcp6c in foreground; *conf* is what stands in the interface's block."""
        path = self.folder / "dhcp6c.conf"
        block = f'interface {self.interface} {{ {conf} script "{self.events.script}"; }};'
        path.write_text(f"{block}\nid-assoc na 1 {{ }};\n")
        return self.start(["dhcp6c", "-f", "-D", "-c", str(path), self.interface])

    def networkmanager(self) -> subprocess.Popen[str]:
        """Start NetworkManager, which configures ``guest0``, behind a bridge on the interface."""
        (self.folder / "NetworkManager.conf").write_text(_NM_CONF)
        (self.folder / "nmconnection").write_text(_NM_CONNECTION)
        words = [self.interface, str(self.folder)]
        return self.start(["sh", "-c", _NETWORKMANAGER, "sh", *words])
