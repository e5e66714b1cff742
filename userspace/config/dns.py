"""Which resolvers and search domains the guest is told, and where its queries go.

Resolvers come from ``--dns``, for an IP version without from the host's resolv.conf.  Those
from the command line are given out as they are.  One from the file may be out of the guest's
reach: a loopback address is the guest itself there, and the address mapped to the host's
loopback (usually the router's) leads to 127.0.0.1, not to the resolver.  In their place the
guest is told a *match address*, that of ``--dns-forward`` or the mapped one, and what it sends
to port 53 or 853 of that address goes to the *host resolver*: ``--dns-host``, or the first of
the file (:meth:`passt.userspace.flow.nat.Nat.outbound_service`).

Source: passt(1), pasta(1): --dns, --dns-forward, --dns-host, --search.
"""

from __future__ import annotations

import os

from passt.userspace import log
from passt.userspace.wire import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config, Family
    from passt.userspace.config.options import Options
    from passt.userspace.config.resolvconf import ResolvConf

#: Resolvers of one IP version that are kept.
MAX_RESOLVERS = 3

_V6_LOOPBACK = bytes(15) + b"\x01"


def needs_file(options: Options) -> bool:
    """Whether anything in resolv.conf can matter."""
    if options.splice_only:
        return False
    return _open_versions(options) != [] or options.search is None


def settle(config: Config, options: Options, file: ResolvConf) -> None:
    """Fill in resolvers, match addresses and search list of ``config``.

    ``file`` is empty if it was not needed.
    """
    if options.splice_only:
        return
    config.dhcp_dns = options.dhcp_dns if config.mode == "pasta" else not options.no_dhcp_dns
    config.dhcp_search = (
        options.dhcp_search if config.mode == "pasta" else not options.no_dhcp_search
    )
    open_versions = _open_versions(options)
    for family in (config.v4, config.v6):
        version = family.version
        family.dns = list(getattr(options, f"dns_v{version}"))
        family.dns_match = getattr(options, f"dns_forward_v{version}")
        family.dns_host = getattr(options, f"dns_host_v{version}")
        if version in open_versions:
            length = 4 if version == 4 else 16
            _from_file(family, [addr for addr in file.nameservers if len(addr) == length])
    config.search = _usable(file.search if options.search is None else options.search)


def _open_versions(options: Options) -> list[int]:
    """The IP versions whose resolvers the command line left open."""
    if options.no_dns:
        return []
    return [version for version in (4, 6) if not getattr(options, f"dns_v{version}")]


def _from_file(family: Family, nameservers: list[bytes]) -> None:
    """Take the resolvers of one version from resolv.conf."""
    for addr in nameservers:
        if family.dns_host is None:
            family.dns_host = addr
        offered: bytes | None = addr
        if _is_loopback(addr) or addr == family.map_host_loopback:
            if family.dns_match is None:
                family.dns_match = family.map_host_loopback
            offered = family.dns_match
        if offered is not None and offered not in family.dns and len(family.dns) < MAX_RESOLVERS:
            family.dns.append(offered)


def _usable(search: list[str]) -> list[str]:
    """The names that can be put on the wire, without a dot at the end."""
    usable = []
    for name in search:
        if names.labels(os.fsencode(name)) is None:
            log.debug("Search domain %s is not a domain name, left out", name)
        else:
            usable.append(name.removesuffix("."))
    return usable


def warn(config: Config, options: Options) -> None:
    """Tell what the guest will have to do without."""
    families = [family for family in (config.v4, config.v6) if family.enabled]
    if options.no_dns or options.splice_only:
        return
    if not any(family.dns for family in families):
        log.warn("Couldn't get any nameserver address")
    if not config.dhcp_dns:
        return
    if config.v4.enabled and config.dhcp and not config.v4.dns:
        log.warn("No IPv4 nameserver available for DHCP")
    if config.v6.enabled and (config.ra or config.dhcpv6) and not config.v6.dns:
        log.warn("No IPv6 nameserver available for NDP/DHCPv6")


def _is_loopback(addr: bytes) -> bool:
    return addr[0] == 127 if len(addr) == 4 else addr == _V6_LOOPBACK
