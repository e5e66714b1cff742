"""passt and a real machine in QEMU, where there is one (kit/qemu.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.kit import stream
from tests.system.kit import topology as net
from tests.system.kit.machine import Passt
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Program
from tests.system.kit.qemu import VirtualMachine, missing
from tests.system.kit.servers import HTTP_PORT, Nginx
from tests.system.kit.users import User

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.time_limit(120),
]

SIZE = 20 << 20

SCRIPT = f"""
ip -4 -o addr show dev eth0 | sed 's/.*inet //;s/ .*//'
cat /sys/class/net/eth0/mtu
cat /etc/resolv.conf
ip -6 -o addr show dev eth0 scope global | grep -c inet6
ping -c1 -W5 -q {net.REMOTE[4]} >/dev/null; echo "ping $?"
ping -c1 -W5 -q {net.REMOTE[6]} >/dev/null; echo "ping6 $?"
wget -q -O - http://{net.REMOTE[4]}:{HTTP_PORT}/large | sha256sum
wget -q -O - http://[{net.REMOTE[6]}]:{HTTP_PORT}/large | sha256sum
dd if=/dev/urandom of=/www/made bs=1M count=10 2>/dev/null
sha256sum </www/made
"""


def test_boot_transfer_and_serve(
    program: Program,
    host: Netns,
    remote: Netns,
    user: User,
    sockets: str,
    tmp_path: Path,
) -> None:
    nginx = Nginx(remote, str(tmp_path / "nginx"), (4, 6))
    expected = stream.write_file(nginx.path("large"), SIZE)
    passt = Passt(program, host, user, sockets, "-t", "7001:8000", "-D", net.REMOTE[4])
    machine = VirtualMachine(host, passt.path, str(tmp_path), SCRIPT)
    lines = machine.output()
    address, mtu, resolver, count, ping, ping6, sum4, sum6, sum_made, *rest = lines
    assert address == f"{net.HOST[4]}/24"
    assert mtu == "65520"
    assert resolver == f"nameserver {net.REMOTE[4]}"
    assert int(count) >= 1
    assert (ping, ping6) == ("ping 0", "ping6 0")
    assert sum4.split()[0] == sum6.split()[0] == expected
    assert not rest
    made = tmp_path / "made"
    remote.run(["curl", "-s", "-f", "-o", str(made), f"http://{net.HOST[4]}:7001/made"])
    assert stream.file_digest(str(made)) == sum_made.split()[0]
    machine.turn_off()
    passt.said("Client connection closed")
    passt.close()
