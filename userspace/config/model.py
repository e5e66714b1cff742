"""The resolved configuration: what start-up decided, and what the translators read.

:mod:`passt.userspace.config.parse` turns words into options; start-up combines these with
what it learned of the host into one :class:`Config`.  From then on nothing here changes,
but for :data:`DERIVED` values and resolvers where the host's network is followed.  What is
*observed*, addresses and the guest's MAC, lives in :class:`passt.userspace.flow.nat.Nat` and in
the link.

Addresses are packed ``bytes`` in network order, 4 for IPv4 and 16 for IPv6; MACs are 6.
"""

from __future__ import annotations

from passt.userspace.flow.rules import IPPROTO_TCP, IPPROTO_UDP, Rule

__all__ = [
    "ACCEL_EBPF",
    "ACCEL_SPLICE",
    "DEFAULT_BUDGET",
    "DEFAULT_CREDIT",
    "DEFAULT_MAC",
    "DEFAULT_MAX_MEMORY",
    "DEFAULT_MTU",
    "DERIVED",
    "IPPROTO_TCP",
    "IPPROTO_UDP",
    "MAX_MTU",
    "MAX_SOCKET_PATH",
    "Config",
    "Family",
    "Rule",
]

#: Our own link-layer address unless the user gave one.
DEFAULT_MAC = bytes.fromhex("9a559a559a55")

#: 65535 (largest frame) less the Ethernet header.
MAX_MTU = 65521

#: Longest path of a socket in bytes: sun_path less the terminating NUL (unix(7)).
MAX_SOCKET_PATH = 107
DEFAULT_MTU = 65520

DEFAULT_MAX_MEMORY = 512 << 20

#: Attributes of :class:`Family` that follow from the host's network, and change with it.
DERIVED = (
    "addr",
    "copy_addrs",
    "copy_routes",
    "gateway",
    "ifindex",
    "ifname",
    "local",
    "map_host_loopback",
    "our_ll",
    "own",
    "prefix_len",
)

#: Ways to forward connections between loopback interfaces.
ACCEL_SPLICE, ACCEL_EBPF = "splice", "ebpf"
#: Bytes that the kernel forwards unseen.
DEFAULT_CREDIT = 1 << 20
DEFAULT_BUDGET = 64 << 20


class Family:
    """What is known and wanted of one IP version."""

    __slots__ = (
        "addr",
        "addr_fixed",
        "copy_addrs",
        "copy_routes",
        "dns",
        "dns_host",
        "dns_match",
        "enabled",
        "gateway",
        "ifindex",
        "ifname",
        "local",
        "map_guest_addr",
        "map_host_loopback",
        "more",
        "our_ll",
        "outbound_addr",
        "outbound_if",
        "outbound_index",
        "own",
        "prefix_len",
        "version",
    )

    def __init__(self, version: int) -> None:
        self.version = version
        #: False: every frame of this version is ignored.
        self.enabled = True
        #: The template interface on the host; 0 and empty in local mode.
        self.ifindex = 0
        self.ifname = ""
        #: No usable template: link-local addresses of our own choice.
        self.local = False
        #: The guest's assigned address, ``None`` if there is none (IPv6 in local mode).
        self.addr: bytes | None = None
        self.prefix_len = 24 if version == 4 else 64
        #: Further addresses that the user gave the guest, with prefix lengths.
        self.more: list[tuple[bytes, int]] = []
        #: All addresses that the guest was given, by whom or from where ever.
        self.own: frozenset[bytes] = frozenset()
        #: True if the user gave the address: the guest's traffic never changes it.
        self.addr_fixed = False
        #: The router address that the guest is given, ``None`` without default route.
        self.gateway: bytes | None = None
        #: Our own link-local address on the link (IPv6 only).
        self.our_ll: bytes | None = None
        #: With ``--config-net``: take all of the template's addresses and routes.
        self.copy_addrs = True
        self.copy_routes = True
        #: Source address and device of outbound sockets, ``None`` and empty for any.
        self.outbound_addr: bytes | None = None
        self.outbound_if = ""
        #: Its index, 0 if there is no such interface now.
        self.outbound_index = 0
        #: Guest-side address that stands for the host's loopback, ``None`` if unmapped.
        self.map_host_loopback: bytes | None = None
        #: Guest-side address that stands for the host's own (assigned) address.
        self.map_guest_addr: bytes | None = None
        #: Resolvers that the guest is told, as it sees them.
        self.dns: list[bytes] = []
        #: Guest-side address whose DNS ports stand for those of the host's resolver …
        self.dns_match: bytes | None = None
        #: … which is this one.
        self.dns_host: bytes | None = None

    @property
    def scope(self) -> int:
        """Index of the interface on whose link the guest is, as it were; 0 for none."""
        return self.outbound_index or self.ifindex


class Config:
    """Everything that the translators and services need to know."""

    __slots__ = (
        "accel",
        "accel_budget",
        "accel_credit",
        "conf_path",
        "config_net",
        "debug",
        "dhcp",
        "dhcp_dns",
        "dhcp_opts",
        "dhcp_search",
        "dhcpv6",
        "dhcpv6_opts",
        "follow",
        "foreground",
        "fqdn",
        "freebind",
        "host_lo_to_ns_lo",
        "hostname",
        "icmp",
        "max_memory",
        "mode",
        "mtu",
        "multicast",
        "ndp",
        "ns_ifname",
        "one_off",
        "our_mac",
        "pcap_path",
        "pcap_size",
        "quiet",
        "ra",
        "ra_opts",
        "rule_caps",
        "rules",
        "rules_ns",
        "search",
        "splice",
        "splice_only",
        "stats_interval",
        "tcp",
        "udp",
        "v4",
        "v6",
    )

    def __init__(self, mode: str) -> None:
        #: ``"pasta"`` or ``"passt"``.
        self.mode = mode
        self.v4 = Family(4)
        self.v6 = Family(6)
        #: MTU given to the guest in bytes, 0 if it is left alone.
        self.mtu = DEFAULT_MTU
        self.our_mac = DEFAULT_MAC
        #: Name of the tap interface in the target namespace.
        self.ns_ifname = ""
        self.tcp = True
        self.udp = True
        self.icmp = True
        #: What the guest sends to groups, and what it listens to there, is forwarded.
        self.multicast = True
        self.ndp = True
        self.ra = True
        self.dhcp = True
        self.dhcpv6 = True
        #: Resolvers and search list are told to the guest, by all services.
        self.dhcp_dns = False
        self.dhcp_search = False
        #: Domains to search for names without dots: valid ones, no dot at the end.
        self.search: list[str] = []
        #: Names that DHCP and DHCPv6 tell the guest, empty for none.
        self.hostname = ""
        self.fqdn = ""
        #: Values of options by the user, ``None`` for those to leave out.
        self.dhcp_opts: dict[int, bytes | None] = {}
        self.dhcpv6_opts: dict[int, bytes | None] = {}
        self.ra_opts: dict[int, bytes | None] = {}
        self.config_net = False
        #: What is derived from the host's network follows it, see passt.userspace.following.
        self.follow = False
        #: passt ends with its guest's connection.
        self.one_off = False
        self.foreground = False
        self.debug = False
        self.quiet = False
        self.pcap_path = ""
        #: Bytes that the capture may grow to, 0 for no limit, ``None`` for half of the space
        #: that is free when it begins.
        self.pcap_size: int | None = None
        #: Bytes of memory that the process may take.
        self.max_memory = DEFAULT_MAX_MEMORY
        #: Seconds between lines of event statistics, 0 for none.
        self.stats_interval = 0
        #: Path of the control socket, empty for none.
        self.conf_path = ""
        #: Inbound rules (``-t``, ``-u``) and outbound ones (``-T``, ``-U``), as given at start.
        self.rules: list[Rule] = []
        self.rules_ns: list[Rule] = []
        #: Capabilities of both tables of rules.
        self.rule_caps = 0
        #: Inbound rules may listen on addresses that the host does not have.
        self.freebind = False
        #: Connections from the host's loopback interface bypass the link …
        self.splice = True
        #: … and arrive on the loopback interface of the namespace, not on its own address.
        self.host_lo_to_ns_lo = False
        #: There is no link: loopback connections are all there is.
        self.splice_only = False
        #: How they are forwarded: :data:`ACCEL_SPLICE` or :data:`ACCEL_EBPF`; in the latter case,
        #: bytes on their way at most, in one direction of a connection, and altogether.
        self.accel = ACCEL_SPLICE
        self.accel_credit = DEFAULT_CREDIT
        self.accel_budget = DEFAULT_BUDGET
