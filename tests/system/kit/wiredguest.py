"""A guest with a kernel of its own, behind a bad wire that ends at pasta's tap.

::

    pasta's namespace                    wire                    guest
    tap ── bridge ── veth, no offloads ── a ═ wire.py ═ b ── veth ── eth0

Here it is pasta itself that meets loss, delay, duplication and reordering: between host and remote
it would be the host's kernel. The bridge is there because the kernel cuts superframes and completes
checksums when it sends them by an interface without offloads. It must not send frames of its own
(multicast snooping does): pasta takes the source address it saw last for the guest's. The guest's
interface gets the MAC address that the tap was given, and the addresses of the host, as pasta
assigns them.
"""

from __future__ import annotations

import json
import signal

from .netns import Netns
from .pasta import Pasta
from .topology import GATEWAY, HOST, Topology, offloads_off, start_wire, veth_pair


class WiredGuest:
    """Guest of *pasta* (started without ``config_net``); :attr:`ns` is its namespace."""

    def __init__(self, topology: Topology, pasta: Pasta, wire: list[str]) -> None:
        middle = topology.namespace("wire")
        self.ns: Netns = topology.namespace("guest")
        inner = pasta.ns_as_root
        tap = pasta.interface()
        for ns in (inner, middle):
            ns.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        inner.sysctl(f"net/ipv6/conf/{tap}/disable_ipv6", 1)
        shown = inner.run(["ip", "-json", "link", "show", "dev", tap]).stdout
        mac = json.loads(shown)[0]["address"]
        veth_pair(middle, "a", inner, "to-wire")
        veth_pair(middle, "b", self.ns, "eth0")
        offloads_off(inner, "to-wire")
        offloads_off(self.ns, "eth0")
        inner.ip(
            "link add dev bridge type bridge mcast_snooping 0\n"
            f"link set dev {tap} address 02:00:00:00:00:01 mtu 1500\n"
            f"link set dev {tap} master bridge up\n"
            "link set dev to-wire master bridge\n"
            "link set dev bridge multicast off arp off up\n"
        )
        self.ns.ip(
            f"link set dev eth0 address {mac}\n"
            f"addr add {HOST[4]}/24 dev eth0\n"
            f"addr add {HOST[6]}/64 dev eth0 nodad\n"
            f"route add default via {GATEWAY[4]}\n"
            f"route add default via {GATEWAY[6]}\n"
        )
        self.wire = start_wire(middle, "a", "b", wire)

    def close(self) -> dict[str, dict[str, int]]:
        """End the wire; return its counters, ``a`` towards the guest, ``b`` from it."""
        self.wire.send_signal(signal.SIGTERM)
        out, _ = self.wire.communicate(timeout=5)
        report: dict[str, dict[str, int]] = json.loads(out)
        assert all(count["oversize"] == 0 for count in report.values()), report
        return report
