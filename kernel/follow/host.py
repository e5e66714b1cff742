"""What the host's network looks like now, read over a socket that stayed there.

The process that reads is in another network namespace by then, and asks by netlink alone: names
of interfaces come from a dump, as everything else.  How the template is chosen is told in
:mod:`passt.kernel.netlink.template`.

An address whose duplicate detection has not ended, or found another owner, does not count yet.
"""

from __future__ import annotations

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError, pack_u32
from passt.kernel.netlink.policy import default_routes
from passt.kernel.netlink.records import (
    ADDRESS_HEADER,
    LINK_HEADER,
    parse_address,
    parse_link,
    read_routes,
)
from passt.kernel.netlink.template import Source, choose_interface, has_default, usable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.kernel.netlink.records import Address
    from passt.kernel.netlink.route_socket import RouteSocket
    from passt.kernel.netlink.template import Wish

_UNSETTLED = uapi.IFA_F_TENTATIVE | uapi.IFA_F_DADFAILED


class Host:
    """The host's network at one moment.

    ``sources``: the template by address family, ``None`` where no interface can be one.
    ``addresses``: all addresses of the host, packed.
    """

    __slots__ = ("addresses", "sources")

    def __init__(self, sources: dict[int, Source | None], addresses: set[bytes]) -> None:
        self.sources = sources
        self.addresses = addresses


def read_host(sock: RouteSocket, wishes: Sequence[Wish]) -> Host:
    """Read what there is for each of ``wishes``; OSError if the kernel does not answer."""
    names = _names(sock)
    addresses = _addresses(sock)
    sources = {wish.family: _choose(sock, wish, names, addresses) for wish in wishes}
    return Host(sources, {address.local for address in addresses})


def _names(sock: RouteSocket) -> dict[int, str]:
    """Interfaces by index."""
    request = LINK_HEADER.pack(0, 0, 0, 0, 0)
    request += pack_u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)
    names = {}
    for body in sock.dump(uapi.RTM_GETLINK, request):
        try:
            link = parse_link(body)
        except FormError:
            continue
        names[link.index] = link.name
    return names


def _addresses(sock: RouteSocket) -> list[Address]:
    """All addresses of both IP versions that are in use, in the kernel's order."""
    found = []
    for body in sock.dump(uapi.RTM_GETADDR, ADDRESS_HEADER.pack(0, 0, 0, 0, 0)):
        try:
            address = parse_address(body)
        except FormError:
            continue
        if not address.flags & _UNSETTLED:
            found.append(address)
    return found


def _choose(
    sock: RouteSocket, wish: Wish, names: dict[int, str], addresses: Sequence[Address]
) -> Source | None:
    """The template of one IP version."""
    family = wish.family
    wanted = wish.interface or wish.outbound
    index = 0
    if wanted is not None:
        index = next((number for number, name in names.items() if name == wanted), 0)
        if not index:
            return None
    routes = read_routes(sock, family)
    if not has_default(routes, index):
        own = [a.local for a in addresses if a.index == index and a.family == family]
        routes = default_routes(sock, family, index, own) + routes
    if not index:
        index, _ = choose_interface(routes, "")
    if index not in names:
        return None
    its = [a for a in addresses if a.index == index and a.family == family]
    source = Source(index, names[index], routes, its)
    return source if usable(source, wish) else None
