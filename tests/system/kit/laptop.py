"""A host whose network changes: what a laptop goes through in a day.

::

      host                       world
    ┌───────────────┐          ┌──────────────────────┐
    │ wlan0 ────────┼── veth ──┼─ lan    .1 of each   │   A, B: networks of the place
    │ vpn0  ────────┼── veth ──┼─ vpn    10.8.0.1     │   of the tunnel
    └───────────────┘          │ lo     SERVICE       │   what there is to reach
                               └──────────────────────┘

The host begins with both interfaces down. Each method is one event, made with ip(8) in the order in
which a network manager would do it. The routers are resolvers as well: *resolv_conf*, the path of a
file, says which of them is the right one now. Nothing of this leaves the machine.
"""

from __future__ import annotations

from types import TracebackType

from .topology import Topology, veth_pair

SERVICE = {4: "192.0.2.80", 6: "2001:db8:80::80"}
A, ROUTER_A = "198.51.100.2", "198.51.100.1"
B, ROUTER_B = "203.0.113.7", "203.0.113.1"
VPN, ROUTER_VPN = "10.8.0.2", "10.8.0.1"
HOST6, ROUTER6 = "2001:db8:6::2", "2001:db8:6::1"


class Laptop:
    """The network above. Use as a context manager."""

    def __init__(self, resolv_conf: str = "") -> None:
        self.resolv_conf = resolv_conf
        self.topology = Topology(bare=True)
        self.host = self.topology.host
        self.world = self.topology.remote
        veth_pair(self.host, "wlan0", self.world, "lan")
        veth_pair(self.host, "vpn0", self.world, "vpn")
        self.host.ip("link set dev wlan0 down\nlink set dev vpn0 down\n")
        self.world.ip(
            f"addr add {SERVICE[4]}/32 dev lo\n"
            f"addr add {SERVICE[6]}/128 dev lo nodad\n"
            f"addr add {ROUTER_A}/24 dev lan\n"
            f"addr add {ROUTER_B}/24 dev lan\n"
            f"addr add {ROUTER6}/64 dev lan nodad\n"
            f"addr add {ROUTER_VPN}/24 dev vpn\n"
        )
        #: Name of the interface of the place.
        self.lan = "wlan0"

    def __enter__(self) -> Laptop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.topology.close()

    def _resolver(self, address: str) -> None:
        """The resolver is another one, if there is a file that says so."""
        if self.resolv_conf:
            with open(self.resolv_conf, "w") as file:
                file.write(f"nameserver {address}\n")

    def no_network(self) -> None:
        """What the day begins with."""

    def address_a(self) -> None:
        """DHCP has given an address and a router."""
        self.host.ip(
            f"link set dev {self.lan} up\n"
            f"addr add {A}/24 dev {self.lan}\n"
            f"route add default via {ROUTER_A} dev {self.lan} metric 600\n"
        )
        self._resolver(ROUTER_A)

    def vpn_up(self) -> None:
        """A tunnel takes the default route."""
        self.host.ip(
            "link set dev vpn0 up\n"
            f"addr add {VPN}/24 dev vpn0\n"
            f"route add default via {ROUTER_VPN} dev vpn0 metric 50\n"
        )
        self._resolver(ROUTER_VPN)

    def vpn_down(self) -> None:
        """And goes."""
        self.host.ip(f"addr del {VPN}/24 dev vpn0\nlink set dev vpn0 down\n")
        self._resolver(ROUTER_A)

    def address_b(self) -> None:
        """Another place."""
        self.host.ip(
            f"addr del {A}/24 dev {self.lan}\n"
            f"addr add {B}/24 dev {self.lan}\n"
            f"route add default via {ROUTER_B} dev {self.lan} metric 600\n"
        )
        self._resolver(ROUTER_B)

    def ipv6_appears(self) -> None:
        """As by a router advertisement."""
        self.host.ip(
            f"addr add {HOST6}/64 dev {self.lan} nodad\n"
            f"route add default via {ROUTER6} dev {self.lan}\n"
        )

    def ipv6_vanishes(self) -> None:
        """Its address and its route expire."""
        self.host.ip(
            f"route del default via {ROUTER6} dev {self.lan}\naddr del {HOST6}/64 dev {self.lan}\n"
        )

    def renamed(self) -> None:
        """The interface gets another name, while it is up."""
        self.host.ip(f"link set dev {self.lan} name wlp3s0\n")
        self.lan = "wlp3s0"
