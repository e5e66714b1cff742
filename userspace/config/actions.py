"""What happens when an option is met: the ``store`` column of the option table.

Each action takes the options so far and the value as text, and leaves the checked value in
the options.  :func:`flag`, :func:`value`, :func:`path` and :func:`per_family` make the
ordinary ones; the rest belong to a single option or two.
"""

from __future__ import annotations

from passt.userspace.config import extras, values
from passt.userspace.config.dns import MAX_RESOLVERS
from passt.userspace.config.errors import ImmediateExit, UsageError
from passt.userspace.config.resolvconf import MAX_SEARCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.config.options import Options
    from passt.userspace.config.ports import PortOption
    from passt.userspace.config.table import Store

#: Addresses of the guest by option, per IP version: so many prefixes fit an advertisement.
MAX_ADDRESSES = 8


def flag(attribute: str) -> Store:
    """Store True in ``attribute``."""

    def store(options: Options, _text: str) -> None:
        setattr(options, attribute, True)

    return store


def value(attribute: str, read: Callable[[str], object]) -> Store:
    """Store the value as read by ``read`` in ``attribute``."""

    def store(options: Options, text: str) -> None:
        setattr(options, attribute, read(text))

    return store


def per_family(attribute: str, read: Callable[[str], bytes]) -> Store:
    """Store an address in ``attribute_v4`` or ``attribute_v6``, by its length."""

    def store(options: Options, text: str) -> None:
        addr = read(text)
        setattr(options, f"{attribute}_v{4 if len(addr) == 4 else 6}", addr)

    return store


def path(attribute: str, name: str) -> Store:
    """Store a file name in ``attribute``; ``name`` says which in messages."""

    def store(options: Options, text: str) -> None:
        setattr(options, attribute, values.path(name, text))

    return store


def nothing(_options: Options, _text: str) -> None:
    """Store of an option that only has columns: a warning, for one."""


def stats(options: Options, text: str) -> None:
    """Take the interval of ``--stats``, which has nowhere to print to in background."""
    if not options.foreground:
        raise UsageError("Can't display statistics if not running in foreground")
    options.stats = values.stats_interval(text)


def show_help(options: Options, _text: str) -> None:
    """Answer ``--help``."""
    from passt.userspace.config.usage import usage_text

    raise ImmediateExit(usage_text(options.argv0))


def show_version(options: Options, _text: str) -> None:
    """Answer ``--version``."""
    from passt.userspace.config.usage import version_text

    raise ImmediateExit(version_text(options.mode))


def show_capabilities(_options: Options, _text: str) -> None:
    """Answer ``--print-capabilities``: what kind of vhost-user back-end this is, in JSON."""
    raise ImmediateExit('{\n  "type": "net"\n}\n')


def show_acceleration(options: Options, _text: str) -> None:
    """Answer ``--accel-status``: whether the kernel would forward, and why; tries it."""
    from passt.kernel.ebpf.status import report

    text, available = report(compile_first=options.accel_compile)
    raise ImmediateExit(text, 0 if available else 1)


def show_seccomp(options: Options, _text: str) -> None:
    """Answer ``--print-seccomp``: the system calls that the running program may make."""
    from passt.kernel.seccomp.profile import listing

    try:
        raise ImmediateExit(listing(options.mode))
    except OSError as error:
        raise UsageError(f"No system call filter for this machine: {error.strerror}") from None


def socket_path(options: Options, text: str) -> None:
    """Take the path to wait for the guest at; cancels an earlier ``--fd``."""
    options.socket_path = values.socket_path(text)
    options.guest_fd = -1


def guest_fd(options: Options, text: str) -> None:
    """Take the descriptor of the guest's connection; cancels an earlier ``--socket``."""
    options.guest_fd = values.descriptor(text)
    options.socket_path = ""


def address(options: Options, text: str) -> None:
    """Take an address of the guest, with or without prefix length.

    The last one of an IP version is *the* address of the guest, those before are further ones.
    """
    addr, length = values.guest_address(text)
    if length is not None:
        options.prefix_given = True
        _check_prefix_once(options)
    version = 4 if len(addr) == 4 else 6
    before: bytes | None = getattr(options, f"address_v{version}")
    more: list[tuple[bytes, int | None]] = getattr(options, f"more_v{version}")
    if before is not None and before != addr:
        more[:] = [entry for entry in more if entry[0] != addr]
        more.append((before, getattr(options, f"prefix_v{version}")))
        if len(more) == MAX_ADDRESSES:
            raise UsageError(f"Too many addresses (maximum {MAX_ADDRESSES}): {text}")
    setattr(options, f"address_v{version}", addr)
    setattr(options, f"prefix_v{version}", length)


def netmask(options: Options, text: str) -> None:
    """Take the IPv4 prefix length of the guest."""
    options.netmask = values.netmask(text)
    _check_prefix_once(options)


def _check_prefix_once(options: Options) -> None:
    """Refuse ``-n`` beside a length in ``-a``, even one of IPv6, in either order."""
    if options.prefix_given and options.netmask is not None:
        raise UsageError("Redundant prefix length specification")


def dhcp_option(options: Options, text: str) -> None:
    """Take a further option of DHCP."""
    code, content = extras.read(extras.DHCP, text)
    options.dhcp_opts[code] = content


def dhcpv6_option(options: Options, text: str) -> None:
    """Take a further option of DHCPv6."""
    code, content = extras.read(extras.DHCPV6, text)
    options.dhcpv6_opts[code] = content


def ra_option(options: Options, text: str) -> None:
    """Take a further option of Router Advertisements, which must stay within a packet."""
    code, content = extras.read(extras.RA, text)
    options.ra_opts[code] = content
    extras.check_ra(options.ra_opts)


def dns(options: Options, text: str) -> None:
    """Take a resolver for the guest; ``none`` forgets all about resolvers so far."""
    if text == "none":
        options.no_dns = True
        options.dns_v4, options.dns_v6 = [], []
        options.dns_forward_v4 = options.dns_forward_v6 = None
        options.dns_host_v4 = options.dns_host_v6 = None
        return
    addr = values.resolver(text)
    options.no_dns = False
    resolvers = options.dns_v4 if len(addr) == 4 else options.dns_v6
    if len(resolvers) < MAX_RESOLVERS:
        resolvers.append(addr)


def search(options: Options, text: str) -> None:
    """Take search domains, separated by blanks; ``none`` forgets those so far."""
    if text == "none":
        options.search = []
        return
    domains = text.split()
    if not domains:
        raise UsageError(f"Cannot use DNS search domain {text}")
    for domain in domains:
        options.search = options.search or []
        if len(options.search) == MAX_SEARCH:
            raise UsageError(f"Cannot use DNS search domain {domain}")
        options.search.append(domain)


def remap(attribute: str, none_implies: str = "") -> Store:
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


def ports(option: PortOption) -> Store:
    """Keep a specifier for when all options are known: rules depend on ``-4``, ``--no-tcp``."""

    def store(options: Options, text: str) -> None:
        options.port_specs.append((option, text))

    return store
