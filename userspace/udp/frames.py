"""Headers of UDP frames towards the guest, made from what is constant in a flow.

A frame is the link's prefix, Ethernet, IP and UDP headers, then the payload, which stays
where it was received: headers and payload are gathered by the system call that sends them.
Only lengths and what follows from them differ within a flow, and in a stream of equal
datagrams not even these, so the last headers are kept.

Two forms exist (RFC 768, RFC 791, RFC 8200):

* one datagram.  Over IPv4 the checksum is absent (0), as the payload comes from a kernel
  that verified it and goes to one on the same machine.  Over IPv6 a checksum is mandatory;
  it is left to the link.
* a *train*: datagrams of ``segment`` bytes of payload, the last possibly shorter, as one
  superframe that the receiver cuts (virtio 1.2, 5.1.6: VIRTIO_NET_HDR_GSO_UDP_L4).  Lengths
  in the headers are those of the whole, and the checksum is partial in both versions.
"""

from __future__ import annotations

import struct

from passt.userspace.link.base import GSO_UDP_L4
from passt.userspace.udp.flow import split
from passt.userspace.wire import ethernet, ipv4, ipv6, udp
from passt.userspace.wire.checksum import fold, pseudo_sum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.link.base import Link

#: Bytes in front of the payload, without the link's prefix.
HEADERS4 = ethernet.HEADER_LEN + ipv4.HEADER_LEN + udp.HEADER_LEN
HEADERS6 = ethernet.HEADER_LEN + ipv6.HEADER_LEN + udp.HEADER_LEN

#: Largest payload of one IPv4 packet, and of a train in either version.
MAX_PAYLOAD4 = 65535 - ipv4.HEADER_LEN - udp.HEADER_LEN

_CSUM_START4 = ethernet.HEADER_LEN + ipv4.HEADER_LEN
_CSUM_START6 = ethernet.HEADER_LEN + ipv6.HEADER_LEN

#: What follows the constant start: total length, identification to protocol, header
#: checksum, addresses and ports, UDP length, UDP checksum.
_TAIL4 = struct.Struct("!H6sH12sHH")
#: Payload length, next header and hop limit, addresses and ports, UDP length and checksum.
_TAIL6 = struct.Struct("!H2s36sHH")


class Headers:
    """Headers of the frames of one flow: ``source`` and so on as the guest shall see them.

    ``guest_key`` is that of the flow; the frames go the opposite way.
    """

    __slots__ = (
        "_bare",
        "_base",
        "_fixed",
        "_key",
        "_last",
        "_last_length",
        "_last_segment",
        "_link",
        "_prefix",
        "_prefix_segment",
        "_pseudo",
        "_start",
        "_v4",
        "mac",
    )

    def __init__(self, link: Link, source_mac: bytes, guest_key: bytes) -> None:
        guest, guest_port, ours, our_port = split(guest_key)
        self._link = link
        self._v4 = v4 = len(guest) == 4
        #: The guest's MAC when this was made; another one calls for new headers.
        self.mac = link.guest_mac
        if v4:
            ip = ipv4.template(ours, guest, ipv4.IPPROTO_UDP)
            self._base = ipv4.template_sum(ip)
            self._fixed = ip[4:10]
            self._start = self.mac + source_mac + b"\x08\x00" + ip[:2]
            #: Datagrams without checksum need no work of the link.
            self._bare = link.prefix() + self._start
        else:
            ip = ipv6.header(ours, guest, ipv6.IPPROTO_UDP, 0)
            self._base = 0
            self._fixed = ip[6:8]
            self._start = self.mac + source_mac + b"\x86\xdd" + ip[:4]
            self._bare = (
                link.prefix(csum_start=_CSUM_START6, csum_offset=udp.CHECKSUM_OFFSET) + self._start
            )
        self._key = ours + guest + struct.pack("!HH", our_port, guest_port)
        self._pseudo = pseudo_sum(ours, guest, udp.IPPROTO_UDP, 0)
        self._prefix = b""
        self._prefix_segment = 0
        self._last = b""
        self._last_length = -1
        self._last_segment = 0

    def build(self, length: int, segment: int = 0) -> bytes:
        """Prefix and headers for ``length`` bytes of payload; ``segment`` 0: one datagram."""
        if length == self._last_length and segment == self._last_segment:
            return self._last
        if segment:
            if segment != self._prefix_segment:
                self._prefix = self._train_prefix(segment)
                self._prefix_segment = segment
            start = self._prefix
        else:
            start = self._bare
        size = udp.HEADER_LEN + length
        if self._v4:
            field = fold(self._pseudo + size) if segment else 0
            total = ipv4.HEADER_LEN + size
            tail = _TAIL4.pack(
                total,
                self._fixed,
                ipv4.header_checksum(self._base, total),
                self._key,
                size,
                field,
            )
        else:
            tail = _TAIL6.pack(size, self._fixed, self._key, size, fold(self._pseudo + size))
        self._last = start + tail
        self._last_length = length
        self._last_segment = segment
        return self._last

    def _train_prefix(self, segment: int) -> bytes:
        """Everything up to the IP length in a train of datagrams of ``segment`` bytes."""
        prefix = self._link.prefix(
            GSO_UDP_L4,
            gso_size=segment,
            hdr_len=HEADERS4 if self._v4 else HEADERS6,
            csum_start=_CSUM_START4 if self._v4 else _CSUM_START6,
            csum_offset=udp.CHECKSUM_OFFSET,
        )
        return prefix + self._start
