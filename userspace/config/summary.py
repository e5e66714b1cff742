"""What is printed at start: the configuration as it came out, and doubts about it.

People read this, programs should not; the layout is upstream's.
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.config.values import address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config, Family

#: Smallest MTU of each version in bytes (RFC 791; RFC 8200, section 5).
_MIN_MTU_V4 = 68
_MIN_MTU_V6 = 1280


def print_summary(config: Config) -> None:
    """Print the configuration at information level."""
    for line in summary_lines(config):
        log.info("%s", line)


def warn_mtu(config: Config) -> None:
    """Warn about an MTU too small for an enabled version; 0 means to leave it alone."""
    for family, minimum in ((config.v4, _MIN_MTU_V4), (config.v6, _MIN_MTU_V6)):
        if family.enabled and 0 < config.mtu < minimum:
            log.warn(
                "MTU %d is too small for IPv%d (minimum %d)", config.mtu, family.version, minimum
            )


def summary_lines(config: Config) -> list[str]:
    """Return the lines of the summary, without newlines."""
    lines = [f"Configuration socket: {config.conf_path}"] if config.conf_path else []
    if config.splice_only:
        lines += ["MAC:", f"    host: {config.our_mac.hex(':')}"]
    else:
        lines += _link_lines(config)
    lines.append("Inbound forwarding rules (HOST):")
    lines += [f"    {rule}" for rule in config.rules]
    if config.mode == "pasta":
        lines.append("Outbound forwarding rules (SPLICE):")
        lines += [f"    {rule}" for rule in config.rules_ns]
    return lines


def _link_lines(config: Config) -> list[str]:
    """The part about the link and what is beyond it."""
    families = (config.v4, config.v6)
    enabled = [family for family in families if family.enabled]
    lines = []

    templates = [(f.ifname, f.version) for f in enabled if f.ifname and not f.local]
    outbound = [(f.outbound_if, f.version) for f in enabled if f.outbound_if]
    for title, pairs in (("Template", templates), ("Outbound", outbound)):
        if pairs:
            names = ", ".join(f"{name} (IPv{version})" for name, version in pairs)
            lines.append(f"{title} interface: {names}")
    lines += [
        f"Outbound IPv{family.version} address: {address_text(family.outbound_addr)}"
        for family in families
        if family.outbound_addr is not None
    ]
    if config.mode == "pasta":
        lines.append(f"Namespace interface: {config.ns_ifname}")

    lines += ["MAC:", f"    host: {config.our_mac.hex(':')}"]
    if config.v4.enabled:
        lines += _mapped(config.v4, "127.0.0.1")
        if config.dhcp:
            mask = 0xFFFFFFFF << (32 - config.v4.prefix_len) & 0xFFFFFFFF
            lines += [
                "DHCP:",
                f"    assign: {_or_unspecified(config.v4.addr)}",
                f"    mask: {address_text(mask.to_bytes(4, 'big'))}",
                f"    router: {_or_unspecified(config.v4.gateway)}",
            ]
        lines += _dns_lines(config, config.v4)
    if config.v6.enabled:
        lines += _mapped(config.v6, "::1")
        servers = [name for name, on in (("NDP", config.ndp), ("DHCPv6", config.dhcpv6)) if on]
        if servers:
            lines += [
                f"{'/'.join(servers)}:",
                f"    assign: {_or_unspecified(config.v6.addr)}",
                *(f"    assign: {address_text(addr)}" for addr, _ in config.v6.more),
                f"    router: {_or_unspecified(config.v6.gateway)}",
                f"    our link-local: {_or_unspecified(config.v6.our_ll)}",
            ]
        lines += _dns_lines(config, config.v6)
    return lines


def _mapped(family: Family, loopback: str) -> list[str]:
    """The address that stands for the host's loopback address, if there is one."""
    if family.map_host_loopback is None:
        return []
    return [f"    NAT to host {loopback}: {address_text(family.map_host_loopback)}"]


def _dns_lines(config: Config, family: Family) -> list[str]:
    """Resolvers of one version, and the search list."""
    lines = []
    if family.dns:
        lines += ["DNS:", *(f"    {address_text(addr)}" for addr in family.dns)]
    if config.search:
        lines += ["DNS search list:", *(f"    {name}" for name in config.search)]
    return lines


def _or_unspecified(addr: bytes | None) -> str:
    return "::" if addr is None else address_text(addr)
