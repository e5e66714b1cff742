"""ARP: we claim every address except the guest's own (RFC 826).

All of the guest's IPv4 traffic comes to us, whatever its routes call on-link, so a request
for *any* address is answered.  The exceptions avoid false alarms of duplicate detection
(RFC 5227):

* a request for an address that the guest was given, from anybody: it is probed before use;
* an announcement (sender = target): the host legitimately has the same address, and an
  answer would look like a conflict.

Probes (sender 0.0.0.0) for other addresses are answered: those addresses *are* taken.

The address claimed belongs to us or to a neighbour of the host, whose true MAC is shown.
"""

from __future__ import annotations

from passt.userspace.wire import Octets, arp, drops
from passt.userspace.wire.ethernet import BROADCAST, HEADER_LEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNSPECIFIED = b"\0" * 4


class ArpService:
    """Answers requests from the guest.

    ``our_mac`` is our link-layer address; ``our_addr`` ours on the link (the guest's
    gateway), ``None`` if there is none; ``guest_addr`` the address assigned to the guest,
    which may be changed later, ``more`` are further ones of its.  ``mac_for(address)`` gives
    the MAC to show for an address; without it that is ours.
    """

    __slots__ = ("_mac_for", "_more", "_our_addr", "_our_mac", "guest_addr")

    def __init__(
        self,
        our_mac: bytes,
        our_addr: bytes | None,
        guest_addr: bytes | None,
        mac_for: Callable[[bytes], bytes] | None = None,
        more: frozenset[bytes] = frozenset(),
    ) -> None:
        self._our_mac = our_mac
        self._our_addr = our_addr
        self.guest_addr = guest_addr
        self._more = more
        self._mac_for = mac_for

    def handle(self, buf: Octets, off: int, end: int) -> bytes | None:
        """The reply to the Ethernet frame ``buf[off:end]`` of type ARP, or ``None``.

        The frame has a whole Ethernet header.  The reply goes to that header's source.
        """
        message = arp.parse(buf, off + HEADER_LEN, end)
        if message is None:
            drops.bump(drops.ARP_FORMAT)
            return None
        operation, sender_mac, sender, target = message
        if operation != arp.REQUEST or target == self.guest_addr or target in self._more:
            return None
        if sender == target and sender != _UNSPECIFIED:
            return None
        our_mac = self._our_mac
        mac = our_mac if self._mac_for is None else self._mac_for(target)
        asker = bytes(buf[off + 6 : off + 12])
        return arp.frame(asker, our_mac, arp.REPLY, mac, target, sender_mac, sender)

    def initial_request(self) -> bytes | None:
        """A broadcast request for the guest's address, to learn its MAC from the answer.

        ``None`` if one of the addresses is unknown: with sender 0.0.0.0 it would be a probe,
        and tell the guest that its address is in use.
        """
        if self._our_addr is None or self.guest_addr is None:
            return None
        return arp.frame(
            BROADCAST,
            self._our_mac,
            arp.REQUEST,
            self._our_mac,
            self._our_addr,
            BROADCAST,
            self.guest_addr,
        )
