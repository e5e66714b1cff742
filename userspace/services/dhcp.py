"""DHCP: the one address that the guest has, for whoever asks (RFC 2131, RFC 951).

There is nothing to remember and nobody to refuse.  Every client on the link is given the same
address for ever, and a client that believes in another one is told again: requests name an
address, a server or a lease in vain, and there is no NAK.  This is what lets a guest survive
a restart of ours, or a move to another host.

There is an exception where the host's network is followed (:mod:`passt.userspace.following`): who
asks for an address that it had from us, and that has been replaced, is refused, and so begins
anew.  A client that renews its lease would take another address in the answer for a mistake.

What is told follows from the configuration, is worked out once, and is sent whether asked
for or not.  The client's parameter request list (option 55) decides on the order only; the
message type comes first unless it is listed, as some boot loaders look there.
"""

from __future__ import annotations

import os
import struct

from passt.userspace.wire import Octets, dhcp, drops, ipv4, names, udp
from passt.userspace.wire.checksum import pseudo_sum
from passt.userspace.wire.ethernet import format_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from passt.userspace.config.model import Config

_BROADCAST = b"\xff\xff\xff\xff"

#: Canonical wire format (RFC 4702, 2.1), and two bytes that mean nothing any more.
_FQDN_FLAGS = b"\x04\xff\xff"
_INFINITE = b"\xff\xff\xff\xff"
_NOBODY = bytes(4)
_NOTES = {
    dhcp.OFFER: "DHCP: offer to discover",
    dhcp.ACK: "DHCP: ack to request",
}


def offers(config: Config, lease: bytes = _INFINITE) -> dict[int, bytes]:
    """The options that ``config`` has to tell, by code; it has an address and a gateway.

    ``lease`` is the value of the lease time.
    """
    family = config.v4
    addr, gateway = family.addr, family.gateway
    assert addr is not None and gateway is not None
    mask = _mask(family.prefix_len)
    told = {
        dhcp.MASK: mask.to_bytes(4, "big"),
        dhcp.ROUTER: gateway,
        dhcp.LEASE_TIME: lease,
        dhcp.SERVER_ID: gateway,
    }
    if config.dhcp_dns and family.dns:
        told[dhcp.RESOLVERS] = b"".join(family.dns)
    if config.hostname:
        told[dhcp.HOST_NAME] = os.fsencode(config.hostname)
    if config.mtu:
        told[dhcp.MTU] = struct.pack("!H", config.mtu)
    if config.fqdn:
        fqdn = _FQDN_FLAGS + (names.encode(os.fsencode(config.fqdn)) or b"\0")
        if len(fqdn) <= dhcp.MAX_VALUE:
            told[dhcp.CLIENT_FQDN] = fqdn
    if config.dhcp_search:
        search = names.compress_list(list(map(os.fsencode, config.search)), dhcp.MAX_VALUE)
        if search:
            told[dhcp.SEARCH_LIST] = search
    if (int.from_bytes(addr, "big") ^ int.from_bytes(gateway, "big")) & mask:
        # The router is not on the link as the client sees it: a route to it, then the default
        # route through it (RFC 3442).
        told[dhcp.ROUTES] = b"\x20" + gateway + bytes(4) + b"\0" + gateway
    for code, value in config.dhcp_opts.items():
        if value is None:
            told.pop(code, None)
        else:
            told[code] = value
    return told


def _mask(prefix_len: int) -> int:
    return 0xFFFFFFFF << (32 - prefix_len) & 0xFFFFFFFF


class DhcpService:
    """Answers DHCP and BOOTP clients.

    ``our_addr`` is our address on the link, ``guest_addr`` the one to assign, ``told`` the
    options other than those of the protocol itself.  ``former`` are addresses that were assigned
    before.  ``note(text)`` is told of each answer.
    """

    __slots__ = ("_former", "_guest_addr", "_note", "_our_addr", "_our_mac", "_told")

    def __init__(
        self,
        our_mac: bytes,
        our_addr: bytes,
        guest_addr: bytes,
        told: dict[int, bytes],
        note: Callable[[str], None] | None = None,
        former: Container[bytes] = (),
    ) -> None:
        self._our_mac = our_mac
        self._our_addr = our_addr
        self._guest_addr = guest_addr
        self._told = told
        self._note = note
        self._former = former

    def handle(self, buf: Octets, off: int, end: int, guest_mac: bytes) -> bytes | None:
        """The answer to the datagram ``buf[off:end]``, UDP header included, or ``None``.

        At least that header is there; its ports and checksum are not looked at.
        """
        length = udp.HEADER.unpack_from(buf, off)[2]
        request = dhcp.parse(buf, off + udp.HEADER_LEN, end) if length == end - off else None
        if request is None:
            drops.bump(drops.DHCP_FORMAT)
            return None
        asked = request.options
        given_type = asked.get(dhcp.MESSAGE_TYPE, b"")
        kind = dhcp.ACK
        rapid = False
        if not given_type:
            note = "BOOTP: ack to request"
        elif given_type[0] == dhcp.DISCOVER:
            rapid = dhcp.RAPID_COMMIT in asked
            if rapid:
                note = "DHCP: ack to discover (Rapid Commit)"
            else:
                kind = dhcp.OFFER
                note = _NOTES[kind]
        elif given_type[0] == dhcp.REQUEST:
            if self._is_outdated(request):
                return self._refuse(request, guest_mac)
            note = _NOTES[kind]
        else:
            return None
        if self._note is not None:
            self._note(note)
            self._note(f"    from {format_mac(request.chaddr[:6])}")

        told = {**self._told, dhcp.MESSAGE_TYPE: bytes((kind,))}
        if rapid:
            told[dhcp.RAPID_COMMIT] = b""
        first = asked.get(dhcp.REQUESTED, b"")
        if dhcp.MESSAGE_TYPE not in first:
            first = bytes((dhcp.MESSAGE_TYPE,)) + first
        order = dict.fromkeys((*first, *sorted(told)))
        options = [(code, told[code]) for code in order if code in told]

        payload = dhcp.reply(request, self._guest_addr, options)
        broadcast = request.flags & dhcp.BROADCAST_FLAG
        return self._frame(payload, _BROADCAST if broadcast else self._guest_addr, guest_mac)

    def _is_outdated(self, request: dhcp.Request) -> bool:
        """Whether the client has, or wants, an address that was replaced."""
        wanted = request.options.get(dhcp.REQUESTED_ADDRESS, request.ciaddr)
        return wanted != self._guest_addr and wanted in self._former

    def _refuse(self, request: dhcp.Request, guest_mac: bytes) -> bytes:
        """The answer upon which a client gives up its address (RFC 2131, 4.3.2)."""
        if self._note is not None:
            self._note("DHCP: nak to request for a former address")
        options = [
            (dhcp.MESSAGE_TYPE, bytes((dhcp.NAK,))),
            (dhcp.SERVER_ID, self._told.get(dhcp.SERVER_ID, self._our_addr)),
        ]
        # It says nothing of any address (RFC 2131, table 3).
        request.ciaddr = _NOBODY
        return self._frame(dhcp.reply(request, _NOBODY, options), _BROADCAST, guest_mac)

    def _frame(self, payload: bytes, dst: bytes, guest_mac: bytes) -> bytes:
        """The frame that brings ``payload`` to the client at ``dst``."""
        src = self._our_addr
        pseudo = pseudo_sum(src, dst, udp.IPPROTO_UDP, 0)
        header = udp.header(dhcp.SERVER_PORT, dhcp.CLIENT_PORT, payload, pseudo)
        return ipv4.frame(guest_mac, self._our_mac, src, dst, udp.IPPROTO_UDP, header, payload)
