"""Frames with TCP segments for the guest, one template per flow.

Everything constant of a flow's frames (prefix of the link, Ethernet, IP addresses, ports,
partial sums) is computed once.  A segment then is a single ``pack_into`` right in front of
its payload in the link's transmit space.

IPv4: DF set, identification 0, TTL 255, TOS 0.  IPv6: hop limit 255, flow label the flow's
own.  The TCP checksum is left to the link: its field holds the folded pseudo-header sum.
"""

from __future__ import annotations

import struct

from passt.userspace.link.base import GSO_TCPV4, GSO_TCPV6
from passt.userspace.tcp.const import MASK
from passt.userspace.wire.checksum import fold, pseudo_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.link.base import Link

_TCP = 6
_ETHERNET = 14
_CSUM_OFFSET = 16

#: Largest TCP payload in one IPv4 or IPv6 packet without options.
MAX_PAYLOAD4 = 65535 - 40
MAX_PAYLOAD6 = 65535 - 20


class Template:
    """Writes the segments of one flow into ``link.tx`` and sends them.

    ``ours`` and ``theirs`` are the packed addresses of our side of the link and the guest's.
    ``label`` is the IPv6 flow label.
    """

    __slots__ = (
        "_addresses",
        "_data",
        "_eth",
        "_header_len",
        "_ip4_sum",
        "_link",
        "_mac",
        "_pack",
        "_prefix",
        "_prefix_gso",
        "_pseudo",
        "_v4",
        "header",
        "max_payload",
        "mss",
    )

    def __init__(
        self,
        link: Link,
        source_mac: bytes,
        ours: bytes,
        our_port: int,
        theirs: bytes,
        their_port: int,
        label: int,
    ) -> None:
        self._link = link
        self._mac = link.guest_mac
        self._v4 = len(ours) == 4
        ports = struct.pack("!HH", our_port, their_port)
        if self._v4:
            self._eth = link.guest_mac + source_mac + b"\x08\x00\x45\x00"
            self._addresses = ours + theirs + ports
            self._ip4_sum = fold(
                0x4500
                + 0x4000
                + 0xFF06
                + int.from_bytes(ours, "big")
                + int.from_bytes(theirs, "big")
            )
            self._header_len = _ETHERNET + 20 + 20
        else:
            version = struct.pack("!HI", 0x86DD, 0x60000000 | (label & 0xFFFFF))
            self._eth = link.guest_mac + source_mac + version
            self._addresses = b"\x06\xff" + ours + theirs + ports
            self._ip4_sum = 0
            self._header_len = _ETHERNET + 40 + 20
        self._pseudo = fold(pseudo_sum(ours, theirs, _TCP, 0))
        #: Bytes in front of the payload, the link's headroom included.
        self.header = link.headroom + self._header_len
        self._prefix = link.prefix(
            hdr_len=self._header_len,
            csum_start=self._header_len - 20,
            csum_offset=_CSUM_OFFSET,
        )
        self._pack = _packer(link.headroom, v4=self._v4)
        self._prefix_gso = self._prefix
        self.mss = 0
        self.max_payload = 0
        self.set_mss(536)

    def set_mss(self, mss: int) -> None:
        """Segments carry at most ``mss`` bytes; superframes a multiple of it."""
        link = self._link
        largest = MAX_PAYLOAD4 if self._v4 else MAX_PAYLOAD6
        self.mss = mss = min(mss, largest)
        gso = link.gso_tcp4 if self._v4 else link.gso_tcp6
        self.max_payload = largest // mss * mss if gso else mss
        if gso:
            self._prefix_gso = link.prefix(
                gso_type=GSO_TCPV4 if self._v4 else GSO_TCPV6,
                gso_size=mss,
                hdr_len=self._header_len,
                csum_start=self._header_len - 20,
                csum_offset=_CSUM_OFFSET,
            )

    def data(self, length: int, seq: int, ack: int, flags: int, window: int) -> bool:
        """Send the ``length`` bytes that lie at ``link.tx[header:]``; False if dropped.

        ``window`` is the 16-bit field; ``seq`` may exceed 32 bits.
        """
        link = self._link
        if link.guest_mac is not self._mac:
            # Compared by identity, as learning an address makes a new object.
            self._mac = link.guest_mac
            self._eth = self._mac + self._eth[6:]
        tx = link.tx
        prefix = self._prefix_gso if length > self.mss else self._prefix
        partial = self._pseudo + 20 + length
        partial = (partial & 0xFFFF) + (partial >> 16)
        if self._v4:
            ip_len = 40 + length
            total = self._ip4_sum + ip_len
            total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            self._pack(
                tx, 0, prefix, self._eth, ip_len, b"\0\0\x40\0\xff\x06", total, self._addresses,
                seq & MASK, ack & MASK, 0x5000 + flags, window, partial,
            )  # fmt: skip
            if length < 6:
                # The Ethernet minimum: what earlier frames left there must not leak.
                end = self.header + length
                tx[end : end + 6 - length] = bytes(6 - length)
                return link.send(self.header + 6)
        else:
            self._pack(
                tx, 0, prefix, self._eth, 20 + length, self._addresses,
                seq & MASK, ack & MASK, 0x5000 + flags, window, partial,
            )  # fmt: skip
        return link.send(self.header + length)

    def control(self, seq: int, ack: int, flags: int, window: int, options: bytes = b"") -> bool:
        """Send a segment without payload; ``options`` must be padded to a multiple of 4 bytes."""
        length = len(options)
        if length:
            link = self._link
            end = self.header + length
            link.tx[self.header : end] = options
            # The data offset grows with the options, which else are handled as payload.
            flags |= length >> 2 << 12
        return self.data(length, seq, ack, flags, window)


#: Packing functions, shared by all flows of a link.
_packers: dict[tuple[int, bool], Callable[..., None]] = {}


def _packer(headroom: int, *, v4: bool) -> Callable[..., None]:
    """Writes prefix, Ethernet, IP and TCP headers from constant and varying parts."""
    pack = _packers.get((headroom, v4))
    if pack is None:
        layout = f"!{headroom}s16sH6sH12sIIHHH2x" if v4 else f"!{headroom}s18sH38sIIHHH2x"
        pack = _packers[headroom, v4] = struct.Struct(layout).pack_into
    return pack
