"""Address translation between the guest's view and the host's, and observed addresses.

The guest believes that it owns the host's address and that its router stands for the host.
These mappings make this come out right (``docs`` call them by the option that sets them):

============================  ==========================  ==============================
Address as the guest sees it   Address on the host         Option
============================  ==========================  ==============================
``dns_match``, port 53 or 853  the host's resolver         ``--dns-forward``
``map_host_loopback``         127.0.0.1, ::1              ``--map-host-loopback``
``map_guest_addr``            the guest's assigned one    ``--map-guest-addr``
the router, or our link-local  loopback, own addresses     (as source only)
anything else                 the same                    –
============================  ==========================  ==============================

A guest need not use the address it was assigned.  The source of what it sends is *observed*
and becomes the target of what comes in, unless the user fixed the address.  What cannot be the
guest's is never taken for it: groups, and our own addresses on the link, as a guest that is a
bridge may return frames of ours.

Addresses are packed bytes, 4 or 16 of them; a v4-mapped IPv6 address never gets here.
"""

from __future__ import annotations

from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from passt.userspace.config.model import Config

#: Where queries to a match address go to the host's resolver: DNS, and DNS over TLS.
DNS_PORTS = (53, 853)

LOOPBACK4 = b"\x7f\x00\x00\x01"
LOOPBACK6 = b"\x00" * 15 + b"\x01"
UNSPECIFIED4 = b"\x00" * 4
UNSPECIFIED6 = b"\x00" * 16
BROADCAST4 = b"\xff" * 4
V4_MAPPED = b"\x00" * 10 + b"\xff\xff"


def is_loopback(addr: bytes) -> bool:
    """True for 127.0.0.0/8 and ::1."""
    return addr[0] == 127 if len(addr) == 4 else addr == LOOPBACK6


def is_link_local(addr: bytes) -> bool:
    """True for fe80::/10 (IPv4 link-local addresses need no scope)."""
    return len(addr) == 16 and addr[0] == 0xFE and addr[1] & 0xC0 == 0x80


def is_multicast(addr: bytes) -> bool:
    """True for 224.0.0.0/4 and ff00::/8."""
    return addr[0] & 0xF0 == 0xE0 if len(addr) == 4 else addr[0] == 0xFF


def is_unspecified(addr: bytes) -> bool:
    """True for 0.0.0.0 and ::."""
    return addr in (UNSPECIFIED4, UNSPECIFIED6)


def is_unicast(addr: bytes) -> bool:
    """True for a specified address that is neither multicast nor 255.255.255.255."""
    return not (is_multicast(addr) or addr == BROADCAST4 or is_unspecified(addr))


def unmap(addr: bytes) -> bytes:
    """The 4-byte form of a v4-mapped IPv6 address, anything else unchanged."""
    return addr[12:] if len(addr) == 16 and addr.startswith(V4_MAPPED) else addr


def text(addr: bytes) -> str:
    """``addr`` in presentation form."""
    return socket.inet_ntop(socket.AF_INET if len(addr) == 4 else socket.AF_INET6, addr)


def endpoint(addr: bytes, port: int) -> str:
    """``addr`` and ``port`` as messages show them: ``[addr]:port``."""
    return f"[{text(addr)}]:{port}"


class Nat:
    """Translates addresses for new flows, and remembers where the guest is."""

    __slots__ = (
        "_fixed4",
        "_fixed6",
        "_foreign",
        "_v4",
        "_v6",
        "mac_for",
        "observed4",
        "observed6",
        "observed_ll",
    )

    def __init__(self, config: Config) -> None:
        self._v4 = config.v4
        self._v6 = config.v6
        self._fixed4 = config.v4.addr_fixed
        self._fixed6 = config.v6.addr_fixed
        #: Addresses that are not the guest's, whoever sends from them.
        self._foreign: set[bytes] = set()
        self.observed4: bytes | None = config.v4.addr
        self.observed6: bytes | None = config.v6.addr
        self.observed_ll: bytes | None = None
        our_mac = config.our_mac
        #: The link-layer address of an address that the guest sees; ours, unless somebody knows
        #: the host's neighbours (:mod:`passt.userspace.services.neighbours`).
        self.mac_for: Callable[[bytes], bytes] = lambda _addr: our_mac
        self.renew(())

    def renew(self, withdrawn: Collection[bytes]) -> None:
        """Take note that addresses of the configuration changed.

        ``withdrawn`` are addresses that the guest does not have any more: what it was assigned
        instead takes their place until it is observed elsewhere.
        """
        v4, v6 = self._v4, self._v6
        self._foreign = {UNSPECIFIED4, UNSPECIFIED6, BROADCAST4}
        for family in (v4, v6):
            ours = {family.gateway, family.our_ll, family.map_host_loopback, family.map_guest_addr}
            guests = family.own | {family.addr}
            self._foreign |= {addr for addr in ours if addr is not None and addr not in guests}
        if self.observed4 is None or self.observed4 in withdrawn:
            self.observed4 = v4.addr
        if self.observed6 is None or self.observed6 in withdrawn:
            self.observed6 = v6.addr

    def observe4(self, source: bytes) -> None:
        """Take note of the IPv4 source of a frame from the guest (loopback never gets here)."""
        if not self._fixed4 and self._may_be_guest(source):
            self.observed4 = source

    def observe6(self, source: bytes) -> None:
        """Take note of the IPv6 source of a frame from the guest."""
        if not self._may_be_guest(source):
            return
        if is_link_local(source):
            self.observed_ll = source
            if not self._fixed6 and self.observed6 is None:
                self.observed6 = source
            if self._v6.addr is None:
                self._v6.addr = source
        elif not self._fixed6:
            self.observed6 = source

    def _may_be_guest(self, source: bytes) -> bool:
        """Whether a guest can have the address ``source``."""
        return source not in self._foreign and not is_multicast(source)

    def outbound(self, destination: bytes) -> bytes:
        """Where a packet of the guest to ``destination`` really goes on the host."""
        family = self._v4 if len(destination) == 4 else self._v6
        if destination == family.map_host_loopback:
            return LOOPBACK4 if family.version == 4 else LOOPBACK6
        if destination == family.map_guest_addr and family.addr is not None:
            return family.addr
        return destination

    def outbound_port(self, destination: bytes, port: int) -> bytes | None:
        """As :meth:`outbound` for a ``port`` of TCP or UDP, which may be that of a resolver.

        ``None`` if a query is meant for a resolver of the host, and none is known.
        """
        if port in DNS_PORTS:
            family = self._v4 if len(destination) == 4 else self._v6
            if destination == family.dns_match:
                return family.dns_host
        return self.outbound(destination)

    def inbound_source(self, source: bytes, target: bytes | None = None) -> bytes | None:
        """What the guest sees of a host-side ``source``; ``None`` if there is no such address.

        ``target`` is the explicit target address of the forwarding rule, if it has one.
        """
        if len(source) == 4:
            family = self._v4
            observed = self.observed4
            if source == LOOPBACK4 and family.map_host_loopback is not None:
                return family.map_host_loopback
        else:
            family = self._v6
            observed = self.observed6
            if source == LOOPBACK6 and family.map_host_loopback is not None:
                return family.map_host_loopback
        guests = source == family.addr or source in family.own
        if guests and family.map_guest_addr is not None:
            return family.map_guest_addr
        hidden = (
            guests
            or is_loopback(source)
            or is_unspecified(source)
            or source in (observed, self.observed_ll)
        )
        return self._fallback(source, target) if hidden else source

    def _fallback(self, source: bytes, target: bytes | None) -> bytes | None:
        """Our own address on the link, for sources that the guest could not answer to."""
        if len(source) == 4:
            return self._v4.gateway
        gateway = self._v6.gateway
        if (
            gateway is not None
            and not is_link_local(gateway)
            and (target is None or not is_link_local(target))
        ):
            return gateway
        return self._v6.our_ll

    def inbound_target(self, seen_source: bytes) -> bytes | None:
        """The guest address to contact from ``seen_source``, ``None`` if none is known."""
        if len(seen_source) == 4:
            return self.observed4
        if is_link_local(seen_source):
            return self.observed_ll
        return self.observed6

    def bind_device(self, host_destination: bytes) -> str:
        """Device that sockets towards ``host_destination`` are bound to, empty for any.

        A socket bound to a device cannot reach the host's loopback, so none is used there.
        """
        family = self._v4 if len(host_destination) == 4 else self._v6
        return "" if is_loopback(host_destination) else family.outbound_if

    def outbound_source(self, host_destination: bytes) -> bytes | None:
        """Source address that the user wants towards ``host_destination``, if any.

        The host's loopback is reached from there.
        """
        if is_loopback(host_destination):
            return None
        family = self._v4 if len(host_destination) == 4 else self._v6
        return family.outbound_addr

    def scope_id(self, address: bytes) -> int:
        """Interface index that a host-side ``address`` must be scoped with, usually 0."""
        return self.neighbours if is_link_local(address) else 0

    @property
    def neighbours(self) -> int:
        """Index of the interface whose neighbours link-local addresses stand for, 0 for none.

        Most networks without IPv6 have link-local addresses, so in local mode it is that of IPv4.
        """
        return self._v6.scope or self._v4.scope
