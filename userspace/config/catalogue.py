"""The table of options, in the order of the usage text.

Behaviour: passt(1) and pasta(1).  Each option is one row; nothing else in the program knows
its name, except the checks of :mod:`passt.userspace.config.parse` that concern several.
"""

from __future__ import annotations

from passt.userspace.config import values
from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.config.model import IPPROTO_TCP, IPPROTO_UDP, MAX_MTU
from passt.userspace.config.table import (
    ADD,
    FAMILY,
    PASTA,
    Option,
    flag,
    path,
    per_family,
    value,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.options import Options
    from passt.userspace.config.table import Store

PASTA_ONLY = (PASTA,)

_BY_HAND = "Without `--config-net` the namespace has to configure itself accordingly."


def _nothing(_options: Options, _text: str) -> None:
    """Store of an option that only has columns: a warning, for one."""


def _stats(options: Options, text: str) -> None:
    if not options.foreground:
        raise UsageError("Can't display statistics if not running in foreground")
    options.stats = values.stats_interval(text)


def _show_help(options: Options, _text: str) -> None:
    from passt.userspace.config.usage import usage_text

    raise ImmediateExit(usage_text(options.argv0))


def _show_version(options: Options, _text: str) -> None:
    from passt.userspace.config.usage import version_text

    raise ImmediateExit(version_text(options.mode))


def _show_capabilities(_options: Options, _text: str) -> None:
    raise ImmediateExit('{\n  "type": "net"\n}\n')


def _address(options: Options, text: str) -> None:
    addr, length = values.guest_address(text)
    if length is not None:
        options.prefix_given = True
        _check_prefix_once(options)
    if len(addr) == 4:
        options.address_v4, options.prefix_v4 = addr, length
    else:
        options.address_v6, options.prefix_v6 = addr, length


def _netmask(options: Options, text: str) -> None:
    options.netmask = values.netmask(text)
    _check_prefix_once(options)


def _check_prefix_once(options: Options) -> None:
    if options.prefix_given and options.netmask is not None:
        raise UsageError("Redundant prefix length specification")


def _remap(attribute: str, none_implies: str = "") -> Store:
    """Store an address per IP version; ``none`` clears both and sets ``none_implies``."""
    store_address = per_family(attribute, values.remapped)

    def store(options: Options, text: str) -> None:
        if text != "none":
            store_address(options, text)
            return
        setattr(options, f"{attribute}_v4", None)
        setattr(options, f"{attribute}_v6", None)
        if none_implies:
            setattr(options, none_implies, True)

    return store


def _ports(spelling: str, protocol: int) -> Store:
    """Keep a specifier for when all options are known: rules depend on ``-4``, ``--no-tcp``."""

    def store(options: Options, text: str) -> None:
        options.port_specs.append((spelling, protocol, text))

    return store


TABLE: tuple[Option, ...] = (
    Option(
        "debug",
        "d",
        "",
        flag("debug"),
        cancels=("quiet",),
        help="Print debugging messages",
        details="Messages on standard error then start with the seconds since the start, and "
        "nothing is sent to the system log. Cancels an earlier `--quiet`.",
    ),
    Option(
        "trace",
        "",
        "",
        flag("trace"),
        implies=("debug",),
        cancels=("quiet",),
        help="Print debugging messages, also for single packets; implies --debug",
    ),
    Option(
        "quiet",
        "q",
        "",
        flag("quiet"),
        cancels=("debug", "trace"),
        help="Print warnings and errors only",
        details="Cancels an earlier `--debug` or `--trace`.",
    ),
    Option(
        "foreground",
        "f",
        "",
        flag("foreground"),
        help="Do not run in background; implied if a command is started",
        details="Without this option, the calling process returns with status 0 as soon as "
        "addresses, routes and listening sockets are in place.",
    ),
    Option(
        "stats",
        "",
        "DELAY",
        _stats,
        default="off",
        help="Print event counters, at most every DELAY seconds; needs --foreground before it",
        details="Counters are cumulative, one column for each kind of event source. Nothing "
        "is printed while nothing happens. 0 turns the statistics off.",
    ),
    Option(
        "stderr",
        "e",
        "",
        _nothing,
        deprecated=True,
        help="Accepted for compatibility, without effect",
    ),
    Option(
        "log-file",
        "l",
        "PATH",
        path("log_file", "--log-file"),
        default="messages go to the system log",
        help="Log to this file instead of the system log",
        details="The file is created with mode 0600, or truncated, before privileges are given up.",
    ),
    Option(
        "log-size",
        "",
        "BYTES",
        value("log_size", values.log_size),
        default="1048576, 1 MiB",
        help=f"Largest size of the log file, at least {values.MIN_LOG_SIZE}",
        details="When an entry would exceed the size, about 30% of the file is cut from its start.",
    ),
    Option(
        "runas",
        "",
        "USER[:GROUP]",
        value("runas", values.runas),
        default="the caller, or nobody instead of root in the initial user namespace",
        help="Run as this user and group, names or numbers",
        details="A numeric user alone is also used as group; a login name brings its primary "
        "group. Names of the superuser are refused, the number 0 is accepted.",
    ),
    Option("help", "h", "", _show_help, help="Print this text and exit"),
    Option("version", "", "", _show_version, help="Print the version and exit"),
    Option(
        "print-capabilities",
        "",
        "",
        _show_capabilities,
        hidden=True,
        help="Print what management software wants to know and exit",
    ),
    Option(
        "pcap",
        "p",
        "FILE",
        path("pcap", "pcap path"),
        default="no capture",
        help="Capture the frames exchanged with the guest to this file",
        details="The format is that of pcap(3). The file is created with mode 0600 or "
        "truncated, as the user given by `--runas`. Failing to open it is not fatal.",
    ),
    Option(
        "pid",
        "P",
        "FILE",
        path("pid", "PID file"),
        default="none",
        help="Write the process ID to this file",
        details="The number is valid in the PID namespace of the caller. The file is complete "
        "when the calling process returns, and it is not removed at exit.",
    ),
    Option(
        "mtu",
        "m",
        "MTU",
        value("mtu", values.mtu),
        default="65520",
        help=f"MTU of the guest's interface, up to {MAX_MTU}; 0 leaves it alone",
        details="The value is advertised to the guest, and set if pasta configures the "
        "interface. IPv4 needs at least 68 bytes, IPv6 1280.",
    ),
    Option(
        "address",
        "a",
        "ADDR[/LEN]",
        _address,
        repeat=FAMILY,
        default="from the host's interface",
        help="Address of the guest",
        details="An IPv4 address without a length gets the prefix of its class, 8, 16 or 24 "
        "bits, unless `--netmask` is given. Incoming connections go to this address, whatever "
        f"the guest's traffic looks like. {_BY_HAND}",
    ),
    Option(
        "netmask",
        "n",
        "MASK",
        _netmask,
        default="from the host's interface",
        help="IPv4 netmask of the guest, dotted or as a number of bits",
        details="Not together with a length in `--address`. 0 stands for the default.",
    ),
    Option(
        "mac-addr",
        "M",
        "ADDR",
        value("mac_addr", values.mac),
        default="9a:55:9a:55:9a:55",
        help="Our own MAC address, which the guest sees",
    ),
    Option(
        "gateway",
        "g",
        "ADDR",
        per_family("gateway", values.gateway),
        repeat=FAMILY,
        default="from the host's default route",
        help="Router address for the guest",
        details=f"A link-local IPv6 address also becomes our own one. {_BY_HAND}",
    ),
    Option(
        "interface",
        "i",
        "NAME",
        value("interface", values.existing_ifname),
        default="from --outbound-if4 and --outbound-if6, else that of the default route",
        help="Interface of the host that addresses and routes are taken from",
    ),
    Option(
        "outbound",
        "o",
        "ADDR",
        per_family("outbound", values.outbound),
        repeat=FAMILY,
        default="chosen by the kernel",
        help="Source address of outbound connections",
    ),
    Option(
        "outbound-if4",
        "",
        "NAME",
        value("outbound_if4", values.ifname),
        default="chosen by the kernel",
        help="Interface that outbound IPv4 sockets are bound to",
        details="Addresses and routes are also taken from it, unless `--interface` is given.",
    ),
    Option(
        "outbound-if6",
        "",
        "NAME",
        value("outbound_if6", values.ifname),
        default="chosen by the kernel",
        help="Interface that outbound IPv6 sockets are bound to",
        details="Addresses and routes are also taken from it, unless `--interface` is given.",
    ),
    Option(
        "ipv4-only",
        "4",
        "",
        flag("ipv4_only"),
        cancels=("ipv6_only",),
        help="Leave IPv6 alone; cancels an earlier -6",
    ),
    Option(
        "ipv6-only",
        "6",
        "",
        flag("ipv6_only"),
        cancels=("ipv4_only",),
        help="Leave IPv4 alone; cancels an earlier -4",
    ),
    Option(
        "hostname",
        "H",
        "NAME",
        value("hostname", values.hostname),
        default='"pasta-" and the old name',
        help="Host name of a started command",
    ),
    Option(
        "no-tcp",
        "",
        "",
        flag("no_tcp"),
        help="Do not forward TCP",
    ),
    Option(
        "no-udp",
        "",
        "",
        flag("no_udp"),
        help="Do not forward UDP",
    ),
    Option(
        "no-icmp",
        "",
        "",
        flag("no_icmp"),
        implies=("no_ndp",),
        help="Do not forward ICMP and ICMPv6 echo; implies --no-ndp",
    ),
    Option(
        "no-ndp",
        "",
        "",
        flag("no_ndp"),
        help="Do not answer Neighbour Discovery, router solicitations included",
    ),
    Option(
        "no-ra",
        "",
        "",
        flag("no_ra"),
        help="Do not send Router Advertisements; implied by --config-net",
    ),
    Option(
        "map-host-loopback",
        "",
        "ADDR|none",
        _remap("map_host_loopback", "no_map_gw"),
        repeat=FAMILY,
        default="the router address",
        help="Address by which the guest reaches the host's loopback address",
        details="With `none`, and for an IP version without address or router, the host's "
        "loopback address cannot be reached.",
    ),
    Option(
        "map-guest-addr",
        "",
        "ADDR|none",
        _remap("map_guest_addr"),
        repeat=FAMILY,
        default="none",
        help="Address by which the guest reaches the host's own address",
        details="Guest and host usually have the same address, so that the guest would find "
        "itself there.",
    ),
    Option(
        "no-map-gw",
        "",
        "",
        flag("no_map_gw"),
        help="Do not let the router address stand for the host's loopback address",
        details="Addresses given with `--map-host-loopback` are not affected.",
    ),
    Option(
        "tcp-ports",
        "t",
        "SPEC",
        _ports("-t", IPPROTO_TCP),
        repeat=ADD,
        default="none",
        help="Forward TCP ports to the guest: none, or PORT[:TARGET] separated by commas",
        details="The host listens on each PORT, on all its addresses of the enabled IP "
        "versions. Connections go to the same port of the guest, or to TARGET.",
    ),
    Option(
        "udp-ports",
        "u",
        "SPEC",
        _ports("-u", IPPROTO_UDP),
        repeat=ADD,
        default="none",
        help="Forward UDP ports to the guest, likewise",
    ),
    Option(
        "ns-ifname",
        "I",
        "NAME",
        value("ns_ifname", values.ifname),
        modes=PASTA_ONLY,
        default="the name of the host's interface, or tap0",
        help="Name of the interface in the namespace",
    ),
    Option(
        "userns",
        "",
        "PATH",
        path("userns", "userns"),
        modes=PASTA_ONLY,
        cancels=("netns_only",),
        default="a new one, or that of PID",
        help="User namespace to join; cancels an earlier --netns-only",
    ),
    Option(
        "netns",
        "",
        "PATH|NAME",
        value("netns", values.netns),
        modes=PASTA_ONLY,
        default="a new one, or that of PID",
        help="Network namespace to join; a NAME is looked up in /run/netns",
        details="A word without a slash is a name. Without `--userns`, `--netns-only` is "
        "implied. Not together with PID or a command.",
    ),
    Option(
        "netns-only",
        "",
        "",
        flag("netns_only"),
        modes=PASTA_ONLY,
        cancels=("userns",),
        help="Neither create nor join a user namespace; cancels an earlier --userns",
    ),
    Option(
        "no-netns-quit",
        "",
        "",
        flag("no_netns_quit"),
        modes=PASTA_ONLY,
        help="Keep running when the joined network namespace is gone",
    ),
    Option(
        "no-pidns",
        "",
        "",
        flag("no_pidns"),
        modes=PASTA_ONLY,
        help="Start the command in the current PID namespace",
        details="What the command leaves running then survives it. Not together with PID or "
        "`--netns`.",
    ),
    Option(
        "config-net",
        "",
        "",
        flag("config_net"),
        modes=PASTA_ONLY,
        implies=("no_ra",),
        help="Configure the interface in the namespace, and bring it up",
        details="The addresses and routes of the host's interface are copied. With "
        "`--address` or `--gateway`, that address or a default route is set instead, for the "
        "IP version concerned.",
    ),
    Option(
        "no-copy-routes",
        "",
        "",
        flag("no_copy_routes"),
        modes=PASTA_ONLY,
        needs="config-net",
        deprecated=True,
        help="With --config-net, set a default route instead of copying all routes",
    ),
    Option(
        "no-copy-addrs",
        "",
        "",
        flag("no_copy_addrs"),
        modes=PASTA_ONLY,
        needs="config-net",
        deprecated=True,
        help="With --config-net, set one address instead of copying all",
    ),
    Option(
        "ns-mac-addr",
        "",
        "ADDR",
        value("ns_mac_addr", values.mac),
        modes=PASTA_ONLY,
        default="chosen by the kernel",
        help="MAC address of the interface in the namespace",
    ),
)
