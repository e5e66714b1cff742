"""DHCPv6: the guest's global address or addresses, for whoever asks (RFC 8415).

As in :mod:`passt.userspace.services.dhcp` there is nothing to remember.  Unlike there, a
client that believes in another address is told that it does not belong here (NotOnLink), and
starts over.  Our identifier holds the time of our start, so a client notices when it talks to
another instance: its RENEW goes unanswered and its REBIND, which names no server, succeeds.

::

    SOLICIT                       ADVERTISE
    REQUEST, RENEW                REPLY, or NotOnLink        must name us
    CONFIRM                       REPLY, or NotOnLink        must name nobody
    REBIND                        REPLY                      may name nobody, or us
    INFORMATION-REQUEST           REPLY                      likewise; no IA in it
    RELEASE, DECLINE, others      nothing

Only what was asked for is assigned: the first IA_NA, which gets all addresses there are.  Options
about resolvers and names are sent whether asked for or not.
"""

from __future__ import annotations

import os

from passt.syscalls import bare_socket as socket
from passt.userspace.wire import Octets, dhcp6, drops, ipv6, names, udp
from passt.userspace.wire.checksum import pseudo_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from passt.userspace.config.model import Config

#: Bytes of a message in a packet of 1280 bytes.
MAX_MESSAGE = 1280 - 40 - 8

_NAMES = {
    dhcp6.SOLICIT: "SOLICIT",
    dhcp6.REQUEST: "REQUEST",
    dhcp6.CONFIRM: "CONFIRM",
    dhcp6.RENEW: "RENEW",
    dhcp6.REBIND: "REBIND",
    dhcp6.INFORMATION_REQUEST: "INFORMATION_REQUEST",
}
#: Types that must name us, and those that must not name a server at all.
_DIRECTED = (dhcp6.REQUEST, dhcp6.RENEW)
_UNDIRECTED = (dhcp6.SOLICIT, dhcp6.CONFIRM)
#: Types whose addresses are checked.
_CHECKED = (dhcp6.REQUEST, dhcp6.RENEW, dhcp6.CONFIRM)

_NOT_ON_LINK = b"Prefix not appropriate for link."


def offers(config: Config) -> dict[int, bytes]:
    """The options that ``config`` has to tell, by code.

    The value of CLIENT_FQDN has no flags yet: they depend on the request.
    """
    told: dict[int, bytes] = {}
    if config.dhcp_dns and config.v6.dns:
        told[dhcp6.RESOLVERS] = b"".join(config.v6.dns)
    if config.dhcp_search:
        search = names.encode_list(list(map(os.fsencode, config.search)), MAX_MESSAGE)
        if search:
            told[dhcp6.SEARCH_LIST] = search
    if config.fqdn:
        told[dhcp6.CLIENT_FQDN] = names.encode(os.fsencode(config.fqdn)) or b"\0"
    for code, value in config.dhcpv6_opts.items():
        if value is None:
            told.pop(code, None)
        else:
            told[code] = value
    return told


class Dhcp6Service:
    """Answers DHCPv6 clients.

    ``our_ll`` is our link-local address, ``guest_addrs`` the addresses to assign, ``told`` are
    options about other things, ``started`` is our start in seconds of Unix time, ``lease`` the
    seconds for which addresses are assigned.  ``note(text)`` is told of each answer.
    """

    __slots__ = ("_guest_addrs", "_lease", "_note", "_our_ll", "_our_mac", "_server_id", "_told")

    def __init__(
        self,
        our_mac: bytes,
        our_ll: bytes,
        guest_addrs: Sequence[bytes],
        told: dict[int, bytes],
        started: float,
        note: Callable[[str], None] | None = None,
        lease: int = dhcp6.INFINITE,
    ) -> None:
        self._our_mac = our_mac
        self._our_ll = our_ll
        self._guest_addrs = guest_addrs
        self._told = told
        self._lease = lease
        self._server_id = dhcp6.duid_llt(our_mac, started)
        self._note = note

    def handle(
        self, buf: Octets, off: int, end: int, src: bytes, dst: bytes, guest_mac: bytes
    ) -> bytes | None:
        """The answer to the datagram ``buf[off:end]``, UDP header included, or ``None``.

        At least that header is there; ``src`` and ``dst`` are the addresses of the packet.
        """
        length = udp.HEADER.unpack_from(buf, off)[2]
        message = dhcp6.parse(buf, off + udp.HEADER_LEN, end) if length == end - off else None
        if message is None or dst[0] != 0xFF or src[0] == 0xFF or src == ipv6.UNSPECIFIED:
            drops.bump(drops.DHCPV6_FORMAT)
            return None
        kind = message.kind
        if kind not in _NAMES or not self._concerns_us(message):
            return None
        if kind in _CHECKED:
            payload = self._misplaced(message)
            if payload is not None:
                return self._frame(payload, src, guest_mac)
        answer = dhcp6.ADVERTISE if kind == dhcp6.SOLICIT else dhcp6.REPLY
        self._tell(
            f"DHCPv6: received {'REQUEST/RENEW/CONFIRM' if kind in _CHECKED else _NAMES[kind]}, "
            f"sending {'ADVERTISE' if answer == dhcp6.ADVERTISE else 'REPLY'}"
        )
        return self._frame(self._answer(message, answer), src, guest_mac)

    def _concerns_us(self, message: dhcp6.Message) -> bool:
        """Whether ``message`` names the server that its type should (RFC 8415, 16)."""
        named = message.server_id
        if message.kind in _DIRECTED:
            return named == self._server_id
        if message.kind in _UNDIRECTED:
            return named is None
        if message.kind == dhcp6.INFORMATION_REQUEST and message.associations:
            return False
        return named is None or named == self._server_id

    def _misplaced(self, message: dhcp6.Message) -> bytes | None:
        """The answer to a client that has another address than ours, else ``None``."""
        for association in message.associations:
            for addr in association.addresses:
                if addr in self._guest_addrs:
                    continue
                text = socket.inet_ntop(socket.AF_INET6, addr)
                self._tell(f"DHCPv6: requested address {text} not on link")
                status = dhcp6.status(dhcp6.NOT_ON_LINK, _NOT_ON_LINK)
                payload = b"".join(
                    (
                        dhcp6.header(dhcp6.REPLY, message.xid),
                        dhcp6.option(dhcp6.SERVER_ID, self._server_id),
                        dhcp6.option(association.code, association.fixed + status),
                        dhcp6.option(dhcp6.CLIENT_ID, message.client_id),
                    )
                )
                # A client that asks for confirmation looks for the status of the message, not
                # of the association, and else keeps its address (RFC 8415, 18.3.3).
                return payload + status if message.kind == dhcp6.CONFIRM else payload
        return None

    def _answer(self, message: dhcp6.Message, kind: int) -> bytes:
        """A message of type ``kind`` that gives ``message`` what it asks for."""
        payload = dhcp6.header(kind, message.xid)
        payload += dhcp6.option(dhcp6.SERVER_ID, self._server_id)
        wanted = message.non_temporary
        if message.kind == dhcp6.CONFIRM:
            payload += dhcp6.status(dhcp6.SUCCESS)
        elif wanted is not None:
            payload += dhcp6.lease(wanted.fixed[:4], self._guest_addrs, self._lease)
        payload += dhcp6.option(dhcp6.CLIENT_ID, message.client_id)
        for code, value in sorted(self._told.items()):
            if code == dhcp6.CLIENT_FQDN:
                # The client may want us to enter its name in DNS, which we do not.
                flags = dhcp6.FQDN_O if (message.fqdn_flags or 0) & dhcp6.FQDN_S else 0
                value = bytes((flags,)) + value
            if len(payload) + 4 + len(value) <= MAX_MESSAGE:
                payload += dhcp6.option(code, value)
        return payload

    def _frame(self, payload: bytes, dst: bytes, guest_mac: bytes) -> bytes:
        """The frame that brings ``payload`` to the client at ``dst``."""
        src = self._our_ll
        pseudo = pseudo_sum(src, dst, udp.IPPROTO_UDP, 0)
        header = udp.header(dhcp6.SERVER_PORT, dhcp6.CLIENT_PORT, payload, pseudo)
        return ipv6.frame(guest_mac, self._our_mac, src, dst, udp.IPPROTO_UDP, header, payload)

    def _tell(self, text: str) -> None:
        if self._note is not None:
            self._note(text)
