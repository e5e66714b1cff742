"""What the command line asked for: typed, checked, but not yet compared with the host.

:class:`Options` has an attribute for each option, two where an option keeps a value for each
IP version.  :class:`Target` is what the words after the options said.
"""

from __future__ import annotations

from passt.userspace.config.model import (
    ACCEL_SPLICE,
    DEFAULT_BUDGET,
    DEFAULT_CREDIT,
    DEFAULT_MAC,
    DEFAULT_MAX_MEMORY,
    DEFAULT_MTU,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.ports import PortOption
    from passt.userspace.flow.rules import Rule

#: Kinds of :class:`Target`.
SHELL = "shell"
COMMAND = "command"
PID = "pid"
NETNS = "netns"
MACHINE = "machine"

DEFAULT_LOG_SIZE = 1 << 20


class Target:
    """The network namespace to serve, and the user namespace to do it from (pasta(1)).

    * :data:`SHELL`, :data:`COMMAND`: a new network namespace with ``argv`` running in it;
      ``executable`` is searched for in PATH if it has no slash.
    * :data:`PID`, :data:`NETNS`: the existing network namespace at path ``netns``.
    * :data:`MACHINE`: none, but a virtual machine (passt(1)).

    ``userns`` is the path of the user namespace to join; if it is empty, a new one is created
    with ``new_userns``, and the current one is kept without.
    """

    __slots__ = ("argv", "executable", "kind", "netns", "new_userns", "pid", "userns")

    def __init__(
        self,
        kind: str,
        *,
        executable: str = "",
        argv: list[str] | None = None,
        pid: int = 0,
        netns: str = "",
        userns: str = "",
        new_userns: bool = False,
    ) -> None:
        self.kind = kind
        self.executable = executable
        self.argv = argv or []
        self.pid = pid
        self.netns = netns
        self.userns = userns
        self.new_userns = new_userns

    @property
    def spawns(self) -> bool:
        """Whether a command is started, as opposed to joining an existing namespace."""
        return self.kind in (SHELL, COMMAND)


class Options:
    """The options of one invocation.

    Strings are empty and addresses ``None`` where the option was not given.  Addresses are
    packed bytes in network order (4 or 16), MACs 6 bytes, MTU and log size in bytes.
    """

    __slots__ = (
        "accel",
        "accel_budget",
        "accel_compile",
        "accel_credit",
        "address_v4",
        "address_v6",
        "argv0",
        "chroot_fallback",
        "conf_path",
        "config_net",
        "debug",
        "dhcp_dns",
        "dhcp_opts",
        "dhcp_search",
        "dhcpv6_opts",
        "dns_forward_v4",
        "dns_forward_v6",
        "dns_host_v4",
        "dns_host_v6",
        "dns_v4",
        "dns_v6",
        "follow",
        "foreground",
        "fqdn",
        "freebind",
        "gateway_v4",
        "gateway_v6",
        "guest_fd",
        "host_lo_to_ns_lo",
        "hostname",
        "interface",
        "ipv4_only",
        "ipv6_only",
        "log_file",
        "log_size",
        "mac_addr",
        "map_guest_addr_v4",
        "map_guest_addr_v6",
        "map_host_loopback_v4",
        "map_host_loopback_v6",
        "max_memory",
        "mode",
        "more_v4",
        "more_v6",
        "mtu",
        "netmask",
        "netns",
        "netns_only",
        "no_copy_addrs",
        "no_copy_routes",
        "no_dhcp",
        "no_dhcp_dns",
        "no_dhcp_search",
        "no_dhcpv6",
        "no_dns",
        "no_follow",
        "no_icmp",
        "no_map_gw",
        "no_multicast",
        "no_ndp",
        "no_netns_quit",
        "no_pidns",
        "no_ra",
        "no_splice",
        "no_tcp",
        "no_udp",
        "ns_ifname",
        "ns_mac_addr",
        "one_off",
        "outbound_if4",
        "outbound_if6",
        "outbound_v4",
        "outbound_v6",
        "pcap",
        "pcap_size",
        "pid",
        "port_specs",
        "prefix_given",
        "prefix_v4",
        "prefix_v6",
        "quiet",
        "ra_opts",
        "rule_caps",
        "rules",
        "rules_ns",
        "runas",
        "search",
        "socket_path",
        "splice_only",
        "stats",
        "target",
        "trace",
        "userns",
    )

    def __init__(self, argv0: str, mode: str) -> None:
        self.argv0 = argv0
        #: ``"passt"`` or ``"pasta"``.
        self.mode = mode
        self.debug = False
        self.trace = False
        self.quiet = False
        #: Also set, once parsing is over, if a command is to be run.
        self.foreground = False
        #: Seconds between lines of statistics, 0 for none.
        self.stats = 0
        self.log_file = ""
        self.log_size = DEFAULT_LOG_SIZE
        #: UID and GID to run as.
        self.runas: tuple[int, int] | None = None
        self.chroot_fallback = False
        self.pcap = ""
        #: Bytes, 0 for no limit, ``None`` for what the file system suggests.
        self.pcap_size: int | None = None
        #: Bytes that the process may take, see passt.userspace.flow.budget.
        self.max_memory = DEFAULT_MAX_MEMORY
        self.pid = ""
        #: Path of the control socket.
        self.conf_path = ""
        #: 0: the guest's MTU is left alone.
        self.mtu = DEFAULT_MTU
        self.address_v4: bytes | None = None
        self.address_v6: bytes | None = None
        #: Further addresses of the guest, in the order given, with their prefix lengths if any.
        self.more_v4: list[tuple[bytes, int | None]] = []
        self.more_v6: list[tuple[bytes, int | None]] = []
        #: Prefix lengths wanted by ``-a`` or ``-n``; once parsing is over, an IPv4 address
        #: without a length has that of its class.  ``None``: as on the host, 64 for IPv6.
        self.prefix_v4: int | None = None
        self.prefix_v6: int | None = None
        #: An ``-a`` so far had a length, which excludes ``-n``.
        self.prefix_given = False
        #: ``-n``: 0 to 32, where 0 means the same as ``None``.
        self.netmask: int | None = None
        self.gateway_v4: bytes | None = None
        self.gateway_v6: bytes | None = None
        self.interface = ""
        self.outbound_v4: bytes | None = None
        self.outbound_v6: bytes | None = None
        self.outbound_if4 = ""
        self.outbound_if6 = ""
        self.mac_addr = DEFAULT_MAC
        self.ipv4_only = False
        self.ipv6_only = False
        self.hostname = ""
        self.fqdn = ""
        self.map_host_loopback_v4: bytes | None = None
        self.map_host_loopback_v6: bytes | None = None
        self.map_guest_addr_v4: bytes | None = None
        self.map_guest_addr_v6: bytes | None = None
        self.no_map_gw = False
        #: Resolvers for the guest, three per version at most; empty: as on the host, or none
        #: at all with ``no_dns``.
        self.dns_v4: list[bytes] = []
        self.dns_v6: list[bytes] = []
        self.no_dns = False
        self.dns_forward_v4: bytes | None = None
        self.dns_forward_v6: bytes | None = None
        self.dns_host_v4: bytes | None = None
        self.dns_host_v6: bytes | None = None
        #: ``None``: as on the host.
        self.search: list[str] | None = None
        #: What pasta tells the guest only if asked to, and passt unless told not to.
        self.dhcp_dns = False
        self.dhcp_search = False
        self.no_dhcp_dns = False
        self.no_dhcp_search = False
        self.no_tcp = False
        self.no_udp = False
        self.no_icmp = False
        self.no_multicast = False
        self.no_ndp = False
        self.no_ra = False
        self.no_dhcp = False
        self.no_dhcpv6 = False
        #: Values of further options of DHCP, DHCPv6 and router advertisements by code, ``None``
        #: for those to leave out.
        self.dhcp_opts: dict[int, bytes | None] = {}
        self.dhcpv6_opts: dict[int, bytes | None] = {}
        self.ra_opts: dict[int, bytes | None] = {}
        #: ``-t``, ``-u``, ``-T`` and ``-U`` in order, with their specifiers.
        self.port_specs: list[tuple[PortOption, str]] = []
        #: Set once parsing is over: the rules that ``port_specs`` and defaults amount to, for
        #: listening on the host and in the namespace, and what tables of rules can do.
        self.rules: list[Rule] = []
        self.rules_ns: list[Rule] = []
        self.rule_caps = 0
        self.freebind = False
        self.no_splice = False
        self.host_lo_to_ns_lo = False
        self.splice_only = False
        self.accel = ACCEL_SPLICE
        self.accel_credit = DEFAULT_CREDIT
        self.accel_budget = DEFAULT_BUDGET
        self.accel_compile = False
        self.ns_ifname = ""
        #: Paths of namespaces to join.
        self.userns = ""
        self.netns = ""
        self.netns_only = False
        self.no_netns_quit = False
        self.no_pidns = False
        self.config_net = False
        self.follow = False
        self.no_follow = False
        self.no_copy_routes = False
        self.no_copy_addrs = False
        self.ns_mac_addr: bytes | None = None
        #: Of passt: where to wait for the guest, empty for a path that is free; or the number of
        #: the descriptor of its connection, −1 for none.
        self.socket_path = ""
        self.guest_fd = -1
        self.one_off = False
        #: Set once parsing is over.
        self.target: Target | None = None

    @property
    def follows(self) -> bool:
        """Whether changes of the host's network are followed."""
        return (self.follow or self.config_net) and not (self.no_follow or self.splice_only)

    @property
    def show_summary(self) -> bool:
        """Whether the configuration is printed at start: not with a command, unless ``-d``."""
        if self.target is not None and self.target.spawns:
            return self.debug
        return not self.quiet
