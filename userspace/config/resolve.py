"""From what was asked for and what the host has to the one :class:`Config`.

For each enabled IP version the template interface gives address, prefix length, gateway and,
for IPv6, our own link-local address, unless options say otherwise.  Without a usable template
the version runs in *local mode* on link-local addresses of our choice (RFC 3927, RFC 4291)::

                     IPv4            IPv6
    guest address    169.254.2.1     none, learned from the guest
    prefix length    16              64
    gateway          169.254.2.2     fe80::1
    our link-local   –               fe80::1

Options count there too; what was found on an unusable interface does not.  Source: passt(1),
pasta(1): --address, --gateway, --map-host-loopback, --ns-ifname.
"""

from __future__ import annotations

from passt.kernel.netlink.worker import FamilyPlan, TemplateInfo
from passt.syscalls import bare_socket as socket
from passt.userspace.config import dns, resolvconf
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import Config, Family

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.netlink.worker import FamilyTemplate, Worker
    from passt.userspace.config.options import Options
    from passt.userspace.config.resolvconf import ResolvConf

    HostNetwork = Callable[[], tuple[tuple[bool, bool], TemplateInfo]]

_LOCAL_ADDR = {4: bytes((169, 254, 2, 1)), 6: None}
_LOCAL_GATEWAY = {4: bytes((169, 254, 2, 2)), 6: b"\xfe\x80" + b"\0" * 13 + b"\x01"}
PREFIX6 = 64
_LOCAL_PREFIX = {4: 16, 6: PREFIX6}

_DEFAULT_IFNAME = "tap0"

_SO_BINDTODEVICE = 25


def enabled_versions(options: Options) -> tuple[bool, bool]:
    """Whether IPv4 and IPv6 are to be served, by options and by what this kernel has.

    Raises UsageError if IPv6 is the only one wanted and is not there.
    """
    if options.ipv4_only:
        return True, False
    if _has_ipv6():
        return not options.ipv6_only, True
    if options.ipv6_only:
        raise UsageError("IPv6 not available but --ipv6-only given")
    return True, False


def begin_template(options: Options, worker: Worker) -> HostNetwork:
    """Have ``worker`` look for the templates that ``options`` want; returns what waits for them.

    That returns the versions in force, see :func:`enabled_versions`, and the templates.  It
    raises UsageError and WorkerError.
    """
    failure: UsageError
    try:
        v4, v6 = versions = enabled_versions(options)
    except UsageError as error:
        failure = error

        def fail() -> tuple[tuple[bool, bool], TemplateInfo]:
            raise failure

        return fail
    if options.splice_only:
        return lambda: (versions, TemplateInfo(None, None, []))
    wait = worker.begin_template(
        options.interface or None,
        options.outbound_if4 or None,
        options.outbound_if6 or None,
        ipv4=v4,
        ipv6=v6,
        has_address4=options.address_v4 is not None,
        has_address6=options.address_v6 is not None,
        has_link_local=is_link_local(options.gateway_v6),
    )
    return lambda: (versions, wait())


def can_bind_to_device() -> bool:
    """Whether this kernel lets us bind sockets to an interface (Linux 5.7 without privilege)."""
    with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"lo")
        except OSError:
            return False
    return True


def read_resolv_conf(options: Options) -> ResolvConf:
    """The host's resolver configuration, empty if ``options`` have no use for it."""
    return resolvconf.read() if dns.needs_file(options) else resolvconf.parse(b"")


def resolve(
    options: Options,
    versions: tuple[bool, bool],
    template: TemplateInfo,
    resolvers: ResolvConf,
) -> Config:
    """Combine ``options``, ``template`` and ``resolvers`` for the ``versions`` in force.

    ``versions`` are IPv4 and IPv6.  Warns of resolvers that are missing.
    """
    config = Config(options.mode)
    for family, found in ((config.v4, template.ipv4), (config.v6, template.ipv6)):
        resolve_family(family, options, found)
        if family.outbound_if:
            family.outbound_index = _index(family.outbound_if)
    config.v4.enabled, config.v6.enabled = versions
    config.ns_ifname = options.ns_ifname or config.v4.ifname or config.v6.ifname or _DEFAULT_IFNAME
    config.mtu = options.mtu
    config.our_mac = options.mac_addr
    config.tcp = not options.no_tcp
    config.udp = not options.no_udp
    config.icmp = not options.no_icmp
    config.multicast = not options.no_multicast
    config.ndp = not options.no_ndp
    config.ra = not (options.no_ndp or options.no_ra or options.config_net)
    config.follow = options.follows
    settle_servers(config, options)
    config.hostname = options.hostname
    config.fqdn = options.fqdn
    config.dhcp_opts = options.dhcp_opts
    config.dhcpv6_opts = options.dhcpv6_opts
    config.ra_opts = options.ra_opts
    dns.settle(config, options, resolvers)
    dns.warn(config, options)
    config.config_net = options.config_net
    config.one_off = options.one_off or options.guest_fd >= 0
    config.foreground = options.foreground
    config.debug = options.debug
    config.quiet = options.quiet
    config.pcap_path = options.pcap
    config.pcap_size = options.pcap_size
    config.max_memory = options.max_memory
    config.stats_interval = options.stats
    config.conf_path = options.conf_path
    config.rules = options.rules
    config.rules_ns = options.rules_ns
    config.rule_caps = options.rule_caps
    config.freebind = options.freebind
    config.splice = not options.no_splice
    config.host_lo_to_ns_lo = options.host_lo_to_ns_lo
    config.splice_only = options.splice_only
    config.accel = options.accel
    config.accel_credit = options.accel_credit
    config.accel_budget = options.accel_budget
    return config


def settle_servers(config: Config, options: Options) -> None:
    """Decide which of DHCP and DHCPv6 have something to tell."""
    config.dhcp = config.v4.enabled and not options.no_dhcp and config.v4.gateway is not None
    # An address that is learned from the guest later on is none that we could assign.
    config.dhcpv6 = config.v6.enabled and not options.no_dhcpv6 and config.v6.addr is not None


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def resolve_family(family: Family, options: Options, template: FamilyTemplate | None) -> None:
    """Settle everything of one version; ``template`` is None in local mode."""
    version = family.version
    addr: bytes | None = getattr(options, f"address_v{version}")
    gateway: bytes | None = getattr(options, f"gateway_v{version}")
    prefix_len: int | None = getattr(options, f"prefix_v{version}")
    own = None
    if template is None:
        family.local = True
        family.addr = addr or _LOCAL_ADDR[version]
        family.gateway = gateway or _LOCAL_GATEWAY[version]
        family.prefix_len = prefix_len or _LOCAL_PREFIX[version]
    else:
        family.ifindex = template.ifindex
        family.ifname = template.ifname
        family.addr = addr or template.address
        family.gateway = gateway or template.gateway
        # A copied IPv6 address keeps its prefix; one that stands alone has a subnet's.
        family.prefix_len = prefix_len or (template.prefix_len if version == 4 else PREFIX6)
        own = template.link_local
    if version == 6:
        if is_link_local(family.gateway):
            own = family.gateway
        family.our_ll = own or _LOCAL_GATEWAY[6]
    family.addr_fixed = addr is not None
    given: list[tuple[bytes, int | None]] = getattr(options, f"more_v{version}")
    family.more = [(further, length or PREFIX6) for further, length in given]
    family.copy_addrs = not (family.local or addr or options.no_copy_addrs)
    family.copy_routes = not (family.local or gateway or options.no_copy_routes)
    family.outbound_addr = getattr(options, f"outbound_v{version}")
    family.outbound_if = getattr(options, f"outbound_if{version}")
    family.own = _own_addresses(family, template if options.config_net else None)
    family.map_guest_addr = getattr(options, f"map_guest_addr_v{version}")
    family.map_host_loopback = getattr(options, f"map_host_loopback_v{version}")
    if family.map_host_loopback is None and not options.no_map_gw:
        family.map_host_loopback = family.gateway


def _own_addresses(family: Family, copied: FamilyTemplate | None) -> frozenset[bytes]:
    """Every address that the guest has; ``copied`` is what addresses are copied from, if any."""
    own = {addr for addr, _ in family.more}
    if family.addr is not None:
        own.add(family.addr)
    if copied is not None and family.copy_addrs:
        own.update(copied.others)
    return frozenset(own)


def _index(name: str) -> int:
    """The index of an interface, 0 if there is none of that name (yet)."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def plan_of(family: Family) -> FamilyPlan | None:
    """What the namespace gets of one IP version with ``--config-net``."""
    if not family.enabled:
        return None
    return FamilyPlan(
        family.addr,
        family.prefix_len,
        family.gateway,
        local=family.local,
        copy_addresses=family.copy_addrs,
        copy_routes=family.copy_routes,
        more=family.more,
    )


def is_link_local(addr: bytes | None) -> bool:
    """Whether there is an address, and it is within fe80::/10."""
    return addr is not None and addr[0] == 0xFE and addr[1] & 0xC0 == 0x80
