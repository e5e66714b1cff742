"""Configuring the tap in the namespace.

Theory of operation
-------------------
The order matters.  The MTU comes before the link goes up, and with IPv6 the link goes up
flagged as one without address resolution (NOARP): on such a link the kernel takes its link-local
address without duplicate address detection, which would keep it unusable for a second or two.
That address is then taken out and put back as one that needs no detection, so that it is usable
at once, the flag goes, and everything after is ordinary.

Addresses come before routes, because gateways must be on a known subnet.  Routes may depend on
each other in any order (a gateway reached through another route), so those refused for lack of a
way to their gateway are tried again until a round brings nothing new.  What then remains has its
gateway behind another interface of the host and is left out.  The subnets' own routes are made
by the kernel with the addresses; copying them as well would only list them twice.

IPv6 that the namespace does not want (disable_ipv6) or have is switched off for the program, not
an error: IPv4 goes on.

Router advertisements and sysctls are not touched.

Sources: rtnetlink(7), ip-sysctl; `man pasta`, --config-net.
"""

from __future__ import annotations

from errno import EACCES, EAFNOSUPPORT, EEXIST, EHOSTUNREACH, ENETUNREACH, EOPNOTSUPP

from passt.kernel.netlink import messages, uapi
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.records import read_addresses, read_routes
from passt.kernel.netlink.retarget import connected_key, retarget_address, retarget_route
from passt.kernel.netlink.route_socket import NetlinkError
from passt.kernel.netlink.template import DEBUG, INFO, WARNING, copied_addresses, is_link_local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.kernel.netlink.records import Address
    from passt.kernel.netlink.route_socket import RouteSocket
    from passt.kernel.netlink.template import Note, Source
    from passt.kernel.netlink.worker import FamilyPlan

_NAMES = {uapi.AF_INET: "IPv4", uapi.AF_INET6: "IPv6"}
_UNSUPPORTED = (EACCES, EAFNOSUPPORT, EOPNOTSUPP)
_NO_WAY_YET = (ENETUNREACH, EHOSTUNREACH)
_ADD = uapi.NLM_F_CREATE | uapi.NLM_F_REPLACE
# Appending keeps the host's order among routes with the same destination and metric.
_ADD_ROUTE = uapi.NLM_F_CREATE | uapi.NLM_F_APPEND


class Plan:
    """What the namespace gets for one IP version.

    `local`: local mode, addresses are of our own making.  `source`: where to copy from, None if
    there is nothing.  `address`, `gateway`: packed or None, used for what is not copied, and so
    is `more`, further addresses with their prefix lengths.  `made_addresses`, `made_routes`:
    bodies of the requests that made something; `found_routes`: of those whose route was
    there, as the kernel makes some along with addresses.
    """

    __slots__ = (
        "address",
        "copy_addresses",
        "copy_routes",
        "family",
        "found_routes",
        "gateway",
        "local",
        "made_addresses",
        "made_routes",
        "more",
        "prefix_len",
        "source",
    )

    def __init__(
        self,
        family: int,
        local: bool,
        source: Source | None,
        copy_addresses: bool,
        copy_routes: bool,
        address: bytes | None,
        prefix_len: int,
        gateway: bytes | None,
        more: Sequence[tuple[bytes, int]] = (),
    ) -> None:
        self.family = family
        self.local = local
        self.source = source
        self.copy_addresses = copy_addresses
        self.copy_routes = copy_routes
        self.address = address
        self.prefix_len = prefix_len
        self.gateway = gateway
        self.more = more
        self.made_addresses: list[bytes] = []
        self.made_routes: list[bytes] = []
        self.found_routes: list[bytes] = []


def loopback_up(sock: RouteSocket) -> None:
    """Bring up lo; NetlinkError if that fails."""
    flags = uapi.IFF_UP
    try:
        sock.request(uapi.RTM_NEWLINK, 0, messages.link(uapi.LOOPBACK_INDEX, flags, flags))
    except NetlinkError as e:
        raise _explain(e, "Couldn't bring up loopback interface in namespace") from None


def set_mac(sock: RouteSocket, index: int, mac: bytes) -> None:
    """Give interface `index` the hardware address; NetlinkError if the kernel refuses it."""
    try:
        sock.request(uapi.RTM_NEWLINK, 0, messages.link(index, mac=mac))
    except NetlinkError as e:
        raise _explain(e, "Couldn't set MAC address in namespace") from None


def configure(
    sock: RouteSocket, index: int, mtu: int, plans: list[Plan]
) -> tuple[list[int], bytes | None, list[Note]]:
    """Set the MTU (bytes, 0 leaves it), bring interface `index` up, carry out the plans.

    Returns the families in force, the interface's IPv6 link-local address (packed, or None),
    and what to tell.  NetlinkError with a complete message otherwise.
    """
    notes: list[Note] = []
    ipv6 = any(plan.family == uapi.AF_INET6 for plan in plans)
    if mtu:
        try:
            sock.request(uapi.RTM_NEWLINK, 0, messages.link(index, mtu=mtu))
        except NetlinkError as e:
            notes.append((DEBUG, f"Couldn't set MTU in namespace: {e.strerror}"))
    own = None
    try:
        if ipv6:
            up = uapi.IFF_UP | uapi.IFF_NOARP
            sock.request(uapi.RTM_NEWLINK, 0, messages.link(index, up, up))
            own = _settle_link_local(sock, index)
            sock.request(uapi.RTM_NEWLINK, 0, messages.link(index, 0, uapi.IFF_NOARP))
        else:
            sock.request(uapi.RTM_NEWLINK, 0, messages.link(index, uapi.IFF_UP, uapi.IFF_UP))
    except NetlinkError as e:
        raise _explain(e, "Couldn't bring up tap device in namespace") from None
    families = []
    for plan in plans:
        try:
            _carry_out(sock, index, plan, notes)
        except NetlinkError as e:
            if e.errno not in _UNSUPPORTED or not (plan.local or plan.family == uapi.AF_INET6):
                raise
            text = f"{_NAMES[plan.family]} not supported, disabling"
            notes.append((INFO if plan.local else WARNING, text))
        else:
            families.append(plan.family)
    return families, own, notes


def _explain(error: NetlinkError, what: str) -> NetlinkError:
    return NetlinkError(error.errno, f"{what}: {error.strerror}")


def _settle_link_local(sock: RouteSocket, index: int) -> bytes | None:
    """Make the kernel's link-local address usable at once; returns it, None if there is none."""
    found = [a for a in read_addresses(sock, uapi.AF_INET6, index) if is_link_local(a.local)]
    for address in found:
        if not address.flags & uapi.IFA_F_NODAD:
            # In place, the flag would be set but the address stay tentative for a while.
            sock.request(uapi.RTM_DELADDR, 0, address.body)
            sock.request(uapi.RTM_NEWADDR, _ADD, retarget_address(address, index))
    return found[0].local if found else None


def _carry_out(sock: RouteSocket, index: int, plan: Plan, notes: list[Note]) -> None:
    name = _NAMES[plan.family]
    try:
        _set_addresses(sock, index, plan)
    except NetlinkError as e:
        raise _explain(e, f"Couldn't set {name} address(es) in namespace") from None
    try:
        if plan.copy_routes and plan.source is not None:
            left_out = _copy_routes(sock, index, plan, plan.source)
            if left_out:
                notes.append((DEBUG, f"{left_out} {name} route(s) without way to gateway left out"))
        else:
            _set_default_route(sock, index, plan)
    except NetlinkError as e:
        raise _explain(e, f"Couldn't set {name} route(s) in guest") from None


def _set_addresses(sock: RouteSocket, index: int, plan: Plan) -> None:
    copied: list[Address] = []
    if plan.copy_addresses and plan.source is not None:
        copied = copied_addresses(plan.source.addresses)
    bodies = []
    for address in copied:
        try:
            bodies.append(retarget_address(address, index))
        except FormError:
            continue
    if not bodies and plan.address is not None:
        bodies = [
            messages.address(plan.family, index, address, prefix_len)
            for address, prefix_len in ((plan.address, plan.prefix_len), *plan.more)
        ]
    if plan.family == uapi.AF_INET6:
        # The kernel puts a new address before those of the same scope, reports in that order, and
        # prefers the first as a source.
        bodies.reverse()
    for error in sock.batch(uapi.RTM_NEWADDR, _ADD, bodies):
        if error is not None and error.errno != EEXIST:
            raise error
    plan.made_addresses = bodies


def _copy_routes(sock: RouteSocket, index: int, plan: Plan, source: Source) -> int:
    """Create the host's routes here; returns how many found no way to their gateway."""
    made = {connected_key(body) for body in read_routes(sock, plan.family, index)} - {None}
    pending = []
    for body in source.routes:
        copy = retarget_route(body, source.index, index)
        if copy is None:
            continue
        if made and connected_key(body) in made:
            plan.found_routes.append(copy)
        else:
            pending.append(copy)
    while pending:
        again = []
        for body, error in zip(
            pending, sock.batch(uapi.RTM_NEWROUTE, _ADD_ROUTE, pending), strict=True
        ):
            if error is None:
                plan.made_routes.append(body)
            elif error.errno in _NO_WAY_YET:
                again.append(body)
            elif error.errno == EEXIST:
                plan.found_routes.append(body)
            else:
                raise error
        if len(again) == len(pending):
            break
        pending = again
    return len(pending)


def _set_default_route(sock: RouteSocket, index: int, plan: Plan) -> None:
    gateway = plan.gateway
    if gateway is None and not (plan.source and plan.source.has_default):
        return
    # In local mode the gateway is ours to invent, so it may lie outside the given subnet.
    onlink = plan.local and gateway is not None and not reachable(gateway, plan)
    body = messages.default_route(plan.family, index, gateway, onlink)
    error = sock.batch(uapi.RTM_NEWROUTE, _ADD_ROUTE, [body])[0]
    if error is None:
        plan.made_routes.append(body)
    elif error.errno == EEXIST:
        plan.found_routes.append(body)
    else:
        raise error


def reachable(gateway: bytes, plan: Plan | FamilyPlan) -> bool:
    """Whether the gateway is on the subnet of an address of the plan, or IPv6 link-local."""
    if is_link_local(gateway):
        return True
    if plan.address is None:
        return False
    number = int.from_bytes(gateway, "big")
    return any(
        not (number ^ int.from_bytes(address, "big")) >> (8 * len(gateway) - prefix_len)
        for address, prefix_len in ((plan.address, plan.prefix_len), *plan.more)
    )
