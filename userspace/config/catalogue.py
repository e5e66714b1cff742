"""The table of options, in the order of the usage text.

Behaviour: passt(1) and pasta(1).  Each option is one row; nothing else in the program knows
its name, except the checks of :mod:`passt.userspace.config.parse` that concern several.
"""

from __future__ import annotations

from passt.userspace.config import values
from passt.userspace.config.actions import (
    MAX_ADDRESSES,
    address,
    dhcp_option,
    dhcpv6_option,
    dns,
    flag,
    guest_fd,
    netmask,
    nothing,
    path,
    per_family,
    ports,
    ra_option,
    remap,
    search,
    show_acceleration,
    show_capabilities,
    show_help,
    show_seccomp,
    show_version,
    socket_path,
    stats,
    value,
)
from passt.userspace.config.model import MAX_MTU
from passt.userspace.config.ports import TCP_NS, TCP_PORTS, UDP_NS, UDP_PORTS
from passt.userspace.config.resolvconf import MAX_SEARCH
from passt.userspace.config.table import ADD, FAMILY, PASST, PASTA, Option

PASTA_ONLY = (PASTA,)
PASST_ONLY = (PASST,)

_PORTS_DEFAULT = "auto in pasta, none in passt"
_PORTS_DETAILS = (
    "PORTS is `PORT` or `FIRST-LAST`, with `:TARGET` if the ports to connect to are others: "
    "`PORT`, `FIRST-LAST`, `ADDRESS`, or `ADDRESS/PORT` and `ADDRESS/FIRST-LAST`. `~PORT` and "
    "`~FIRST-LAST` leave out ports. `all` stands for all ports but ephemeral ones and those "
    "listed beside it, as far as they are free; exclusions alone mean the same, and "
    "`all:ADDRESS` has a target. With `auto` (pasta only), ports are forwarded only while "
    "something listens on them at the other side, which is looked up every second. LISTEN is "
    "`ADDRESS`, `%INTERFACE` or `ADDRESS%INTERFACE`; "
    "without it, the host listens on all its addresses of the enabled IP versions. IPv6 "
    "addresses may be put in brackets. Only `0.0.0.0` or an address can have an IPv4 target, "
    "only `::` or an address an IPv6 one."
)

_EXTRA_DETAILS = (
    "VALUE can be preceded by a type and a colon: {types}, `name` (domain names, likewise), "
    "`str`, `u8`, `u16`, `u32` (numbers of that many bits), `hex` (bytes in hexadecimal). It must "
    "be for codes whose type is not known to the program. With an empty VALUE the option is not "
    "told. Of several for one CODE the last counts."
)

_BY_HAND = "Without pasta's `--config-net` the guest has to configure itself accordingly."


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
        help="Do not run in background; implied if pasta starts a command",
        details="Without this option, the calling process returns with status 0 as soon as "
        "everything is in place: addresses, routes, listening sockets, that of passt's guest.",
    ),
    Option(
        "stats",
        "",
        "DELAY",
        stats,
        default="off",
        help="Print event counters, at most every DELAY seconds; needs --foreground before it",
        details="Counters are cumulative, one column for each kind of event source. Nothing "
        "is printed while nothing happens. 0 turns the statistics off.",
    ),
    Option(
        "stderr",
        "e",
        "",
        nothing,
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
    Option(
        "chroot-fallback",
        "",
        "",
        flag("chroot_fallback"),
        help="Make do with chroot(2) where the root file system cannot be exchanged",
        details="The process ends up in an empty root directory, for which it uses "
        "pivot_root(2). The kernel refuses that in an initial RAM disk and in a changed root; "
        "without this option, so does the program.",
    ),
    Option(
        "conf-path",
        "c",
        "PATH",
        path("conf_path", "configuration path"),
        default="none",
        help="Path of a socket over which pesto(1) can change forwarded ports",
    ),
    Option("help", "h", "", show_help, help="Print this text and exit"),
    Option("version", "", "", show_version, help="Print the version and exit"),
    Option(
        "print-capabilities",
        "",
        "",
        show_capabilities,
        hidden=True,
        help="Print what management software wants to know and exit",
    ),
    Option(
        "print-seccomp",
        "",
        "",
        show_seccomp,
        help="Print the system calls allowed while running, and exit",
        details="One per line, with what their arguments must be, where that matters. Any other "
        "call ends the process by SIGSYS.",
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
        "pcap-size",
        "",
        "BYTES",
        value("pcap_size", values.pcap_size),
        default="half of what is free on its file system at the start",
        help="Largest size of the capture; 0 for no limit",
        details="BYTES may end in `K`, `M` or `G`. The capture ends with the last frame that "
        "fits, or when a write fails, for want of space for one, and a message says so. "
        "What is not a regular file has no limit by default.",
    ),
    Option(
        "max-memory",
        "",
        "BYTES",
        value("max_memory", values.max_memory),
        default="512M",
        help=f"Memory that the process may take, at least {values.MIN_MEMORY >> 20}M",
        details="BYTES may end in `K`, `M` or `G`. When little is left windows of TCP "
        "connections shrink, then new connections and flows are refused; those which exist "
        "go on. Not included is what the kernel keeps in sockets and pipes, which a control "
        "group can bound (`memory.max`), with the process's own memory and a margin.",
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
        address,
        repeat=ADD,
        default="from the host's interface",
        help="Address of the guest",
        details="The last one of each IP version is the address that DHCP assigns, that the "
        "namespace prefers as a source, and that incoming connections go to, whatever the "
        f"guest's traffic looks like. Those before, {MAX_ADDRESSES - 1} at most, are further "
        "addresses of the guest: with pasta's `--config-net` its interface gets them as well, and "
        "DHCPv6 and router advertisements offer them. An IPv4 address without a length gets the "
        f"prefix of its class, 8, 16 or 24 bits, unless `--netmask` is given. {_BY_HAND}",
    ),
    Option(
        "netmask",
        "n",
        "MASK",
        netmask,
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
        details="Hosts on the link of the interface that addresses and routes are taken from are "
        "seen by their own, as far as the host's kernel knows them, and others by the router's, "
        "unless its address stands for the host (`--map-host-loopback`).",
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
        details="If the main routing table has no default route, one that the host's routing rules "
        "lead to counts instead; of a default route over several interfaces the guest gets the "
        "hops through this one. It decides on what the guest is told only: its connections leave "
        "by whatever way the host's routing has for them, unless `--outbound`, `--outbound-if4` or "
        "`--outbound-if6` says otherwise.",
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
        default='none; that of a command of pasta is "pasta-" and the old name',
        help="Host name for the guest",
        details="It is told by DHCP, if given.",
    ),
    Option(
        "fqdn",
        "",
        "NAME",
        value("fqdn", values.fqdn),
        default="none",
        help="Fully qualified domain name for the guest, told by DHCP and DHCPv6",
    ),
    Option(
        "no-dhcp",
        "",
        "",
        flag("no_dhcp"),
        help="Do not answer DHCP and BOOTP clients",
        details="There is an answer only if there is a router address to tell.",
    ),
    Option(
        "no-dhcpv6",
        "",
        "",
        flag("no_dhcpv6"),
        help="Do not answer DHCPv6 clients",
        details="There is an answer only if there is an address to assign.",
    ),
    Option(
        "dhcp-opt",
        "",
        "CODE:VALUE",
        dhcp_option,
        repeat=ADD,
        excludes=("no-dhcp",),
        help="Further option for DHCP, or another value for one",
        details=_EXTRA_DETAILS.format(types="`ip` (IPv4 addresses, separated by commas)")
        + " It is left out of an answer if it does not fit into a packet of 576 bytes. "
        "Examples: `42:192.0.2.1,192.0.2.2`, `66:boot.example`, `51:3600`, `224:hex:0a0b`.",
    ),
    Option(
        "dhcpv6-opt",
        "",
        "CODE:VALUE",
        dhcpv6_option,
        repeat=ADD,
        excludes=("no-dhcpv6",),
        help="Further option for DHCPv6, or another value for one",
        details=_EXTRA_DETAILS.format(types="`ip` (IPv6 addresses, separated by commas)"),
    ),
    Option(
        "ra-opt",
        "",
        "CODE:VALUE",
        ra_option,
        repeat=ADD,
        excludes=("no-ra", "no-ndp", "no-icmp", "config-net"),
        help="Further option for Router Advertisements, or another value for one",
        details=_EXTRA_DETAILS.format(types="`ip` (IPv6 addresses, separated by commas)")
        + " Bytes in hexadecimal are what follows type and length, and are filled up to a multiple "
        "of 8.",
    ),
    Option(
        "dhcp-dns",
        "",
        "",
        flag("dhcp_dns"),
        modes=PASTA_ONLY,
        help="Tell resolvers by DHCP, DHCPv6 and Router Advertisements",
    ),
    Option(
        "dhcp-search",
        "",
        "",
        flag("dhcp_search"),
        modes=PASTA_ONLY,
        help="Tell search domains by DHCP, DHCPv6 and Router Advertisements",
        details="Router Advertisements hold them only together with resolvers.",
    ),
    Option(
        "no-dhcp-dns",
        "",
        "",
        flag("no_dhcp_dns"),
        modes=PASST_ONLY,
        help="Do not tell resolvers by DHCP, DHCPv6 and Router Advertisements",
    ),
    Option(
        "no-dhcp-search",
        "",
        "",
        flag("no_dhcp_search"),
        modes=PASST_ONLY,
        help="Do not tell search domains by DHCP, DHCPv6 and Router Advertisements",
    ),
    Option(
        "dns",
        "D",
        "ADDR|none",
        dns,
        repeat=ADD,
        default="from the host's /etc/resolv.conf",
        help="Resolver for the guest, up to three for each IP version",
        details="The address is given out as it is, further ones are ignored. With `none`, which "
        "also cancels earlier `--dns-forward` and `--dns-host`, there are no resolvers at all, "
        "and /etc/resolv.conf is not read for them. A resolver found there that the guest cannot "
        "reach, as its address is a loopback address or stands for the host's loopback address, "
        "is replaced by the address of `--dns-forward` or `--map-host-loopback`.",
    ),
    Option(
        "dns-forward",
        "",
        "ADDR",
        per_family("dns_forward", values.dns_forward),
        repeat=FAMILY,
        default="that of --map-host-loopback, if it replaces a resolver",
        help="Address by which the guest reaches the host's resolver",
        details="This is for TCP and UDP to ports 53 and 853. Without a resolver of the same IP "
        "version, on the host or by `--dns-host`, queries are refused.",
    ),
    Option(
        "dns-host",
        "",
        "ADDR",
        per_family("dns_host", values.dns_host),
        repeat=FAMILY,
        default="the first in /etc/resolv.conf",
        help="The host's resolver, for queries sent to the address of --dns-forward",
    ),
    Option(
        "search",
        "S",
        "LIST|none",
        search,
        repeat=ADD,
        default="from the host's /etc/resolv.conf",
        help=f"Domains where the guest looks for short names, up to {MAX_SEARCH}",
        details="Several domains in one LIST are separated by blanks. `none` forgets those given "
        "so far, and what is in /etc/resolv.conf.",
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
        "no-multicast",
        "",
        "",
        flag("no_multicast"),
        help="Do not forward multicast, nor join groups that the guest listens to",
        details="What the guest sends to groups leaves, by the interface that addresses and routes "
        "are taken from, with its TTL or hop limit, and what answers comes back. Groups that the "
        "guest reports by IGMP or MLD are joined on that interface, up to 64 of them, and what "
        "arrives there is delivered, at the ports that belong to the group by its protocol (mDNS, "
        "LLMNR, SSDP, WS-Discovery, CoAP), those that the guest has sent to in this group, and "
        "those forwarded by `--udp-ports`. Programs on the host are not disturbed.",
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
        help="Do not send Router Advertisements; implied by pasta's --config-net",
    ),
    Option(
        "map-host-loopback",
        "",
        "ADDR|none",
        remap("map_host_loopback", "no_map_gw"),
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
        remap("map_guest_addr"),
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
        ports(TCP_PORTS),
        repeat=ADD,
        default=_PORTS_DEFAULT,
        help="Forward TCP ports of the host: none, or [LISTEN/]PORTS[,PORTS]...",
        details=_PORTS_DETAILS,
    ),
    Option(
        "udp-ports",
        "u",
        "SPEC",
        ports(UDP_PORTS),
        repeat=ADD,
        default=_PORTS_DEFAULT,
        help="Forward UDP ports of the host, likewise",
        details="With `auto`, a port is also forwarded while something listens on it for TCP.",
    ),
    Option(
        "tcp-ns",
        "T",
        "SPEC",
        ports(TCP_NS),
        modes=PASTA_ONLY,
        repeat=ADD,
        default=_PORTS_DEFAULT,
        help="Forward TCP ports of the namespace's loopback interface to the host",
        details="As `--tcp-ports`, but without `LISTEN`: any loopback address of the "
        "namespace will do. Connections go to the same loopback address of the host.",
    ),
    Option(
        "udp-ns",
        "U",
        "SPEC",
        ports(UDP_NS),
        modes=PASTA_ONLY,
        repeat=ADD,
        default=_PORTS_DEFAULT,
        help="Forward UDP ports of the namespace's loopback interface, likewise",
    ),
    Option(
        "freebind",
        "",
        "",
        flag("freebind"),
        help="Let forwarded ports listen on addresses that the host does not have",
        details="Forwarding starts to work when the address is configured.",
    ),
    Option(
        "no-splice",
        "",
        "",
        flag("no_splice"),
        help="Forward connections to the host's loopback addresses over the link, too",
        details="Otherwise pasta takes a short cut for them, from socket to socket. In passt there "
        "is none.",
    ),
    Option(
        "host-lo-to-ns-lo",
        "",
        "",
        flag("host_lo_to_ns_lo"),
        modes=PASTA_ONLY,
        excludes=("no-splice",),
        help="Forward the host's loopback addresses to those of the namespace",
        details="Otherwise such connections go to the namespace's own address, and what "
        "listens on loopback only is out of their reach.",
    ),
    Option(
        "splice-only",
        "",
        "",
        flag("splice_only"),
        modes=PASTA_ONLY,
        implies=("host_lo_to_ns_lo", "no_icmp", "no_ndp", "no_ra", "no_dhcp", "no_dhcpv6"),
        excludes=(
            "no-splice",
            "outbound-if4",
            "outbound-if6",
            "ns-ifname",
            "ns-mac-addr",
            "follow",
            "dhcp-opt",
            "dhcpv6-opt",
            "ra-opt",
        ),
        help="Forward loopback connections only, and create no interface in the namespace",
        details="Implies `--host-lo-to-ns-lo` and `--no-icmp`. Connections from elsewhere are "
        "refused. Options about addresses, MTU, resolvers and names are accepted without effect, "
        "and so is `--config-net`, which callers may give in any case: there is nothing to "
        "configure but the loopback interface, which is always brought up.",
    ),
    Option(
        "accel",
        "",
        "splice|ebpf",
        value("accel", values.accel),
        modes=PASTA_ONLY,
        default="splice",
        help="How to forward TCP between loopback interfaces: by splicing, or by the kernel alone",
        details="With `ebpf`, the kernel forwards connections that carry messages back and forth "
        "without waking pasta, which saves most of their latency. This takes a recent kernel, and "
        "root, or maps that root has prepared for the user with `passt-accel`(1). Where it cannot "
        "be had, a message says why, and connections are spliced. As root, TCP forwarding of a "
        "thousand ports or more in one rule takes one socket, instead of one for each port; "
        "programs of the host that listen on such a port later on have it first.",
    ),
    Option(
        "accel-credit",
        "",
        "BYTES",
        value("accel_credit", values.accel_credit),
        modes=PASTA_ONLY,
        needs="accel",
        default="1048576, 1 MiB",
        help="With --accel=ebpf, bytes on their way in one direction, at least "
        f"{values.MIN_CREDIT}",
        details="The kernel has them in its memory if they are not read. Half of the send buffer "
        "is a limit, too. A suffix K, M or G stands for powers of 1024.",
    ),
    Option(
        "accel-budget",
        "",
        "BYTES",
        value("accel_budget", values.accel_budget),
        modes=PASTA_ONLY,
        needs="accel",
        default="67108864, 64 MiB",
        help="With --accel=ebpf, bytes on their way in all connections, at least "
        f"{values.MIN_BUDGET}",
        details="Connections that do not fit in are spliced.",
    ),
    Option(
        "accel-compile",
        "",
        "",
        flag("accel_compile"),
        modes=PASTA_ONLY,
        needs="accel",
        help="With --accel=ebpf, compile the program instead of using the one that is shipped",
        details="This takes bcc and the headers of a kernel, and root.",
    ),
    Option(
        "accel-status",
        "",
        "",
        show_acceleration,
        modes=PASTA_ONLY,
        help="Show what --accel=ebpf would give this user on this machine, and why, and exit",
        details="A line for each condition: the kernel, the three ways to privilege, the program, "
        "a trial. The exit status is 0 if connections would be accelerated, 1 if not.",
    ),
    Option(
        "socket",
        "s",
        "PATH",
        socket_path,
        modes=PASST_ONLY,
        default="the first of /tmp/passt_1.socket to /tmp/passt_99.socket that is free",
        help="Wait for the guest on a socket at this path",
        details="QEMU connects to it with `-netdev stream,id=s,addr.type=unix,addr.path=PATH`. A "
        "socket found at PATH that nobody listens on is replaced; anything else there is an "
        "error. The umask decides who may connect. One guest is served at a time, others are "
        "refused; when it has gone, the next may come, and finds connections and ports as they "
        "were. Cancels an earlier `--fd`.",
    ),
    Option(
        "socket-path",
        "",
        "PATH",
        socket_path,
        modes=PASST_ONLY,
        hidden=True,
        help="The same as --socket",
    ),
    Option(
        "fd",
        "F",
        "FD",
        guest_fd,
        modes=PASST_ONLY,
        help="The guest is at the other end of this descriptor, a connected stream socket",
        details="It is taken over from the calling process; 0 to 2 are possible, too. Implies "
        "`--one-off`. Cancels an earlier `--socket`.",
    ),
    Option(
        "one-off",
        "1",
        "",
        flag("one_off"),
        modes=PASST_ONLY,
        help="Quit when the guest has closed its connection",
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
        "follow",
        "",
        "",
        flag("follow"),
        modes=PASTA_ONLY,
        cancels=("no_follow",),
        default="with --config-net",
        help="Follow changes of the host's network",
        details="When addresses, routes or the default interface of the host change, the namespace "
        "gets what it would get if it was started then, and is told of new resolvers. Connections "
        "go on if the addresses at both of their ends still exist, and are reset otherwise. What "
        "options set stays as it is. Without `--config-net` nothing is changed in the namespace "
        "itself: it learns of changes by Router Advertisements, at once, and by DHCP, whose leases "
        "last five minutes then. A process of its own, with no other privileges than for the "
        "namespace's network, does this. Cancels an earlier `--no-follow`.",
    ),
    Option(
        "no-follow",
        "",
        "",
        flag("no_follow"),
        modes=PASTA_ONLY,
        cancels=("follow",),
        help="Keep to the host's network as it was at start",
        details="Cancels an earlier `--follow`.",
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
