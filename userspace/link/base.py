"""What a carrier of Ethernet frames offers to the translators.

A link moves frames between the guest and us.  Translators are written once, against this
interface, for every carrier: the tap device of a namespace, the stream socket of QEMU, the
rings of vhost-user.

**Receiving.**  The link reads a bounded batch of frames and hands each to
``receiver(buf, off, end)``: the frame is ``buf[off:end]``, ``buf`` a memoryview that stays
valid *and unchanged* during the call, and until :attr:`Link.batch_end` was called if the
receiver returned true ("held").  Frames may be superframes: a TCP segment or a train of
equal UDP datagrams larger than the MTU, if the link announced such an offload to the
guest.  ``gso_size`` of the frame being received is in :attr:`Link.rx_gso_size`.

**Sending.**  A frame is built in place in :attr:`Link.tx`, which starts with
:attr:`Link.headroom` bytes that belong to the link, followed by the Ethernet header.  The
first bytes must be a *prefix* made by :meth:`Link.prefix`: an opaque value that says which
checksum is left to the link and how a superframe is to be cut.  Translators keep prefixes
in their header templates, so one ``pack_into`` writes prefix and headers, and payload is
received right behind them: nothing is copied twice.

Checksums follow the kernel's CHECKSUM_PARTIAL convention: the L4 checksum field holds the
folded, not complemented sum of the pseudo-header, and the link (or whoever receives the
frame) completes it over ``frame[csum_start:]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Receiver = Callable[[memoryview, int, int], object]

#: Values of virtio_net_hdr.gso_type (virtio 1.2, 5.1.6).
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5

#: Largest Ethernet frame that we build: a maximum IP packet and its header.
MAX_FRAME = 65535 + 14 + 40

#: Shortest frame that leaves us, without frame check sequence (IEEE 802.3).
MIN_FRAME = 60


class Link(ABC):
    """Base of all carriers; counters are plain attributes, read by statistics."""

    #: Bytes before the Ethernet header that belong to the link.
    headroom: int = 0
    #: The link takes TCP superframes of the given version, and UDP ones.
    gso_tcp4: bool = False
    gso_tcp6: bool = False
    gso_udp: bool = False
    #: gso_size of the frame being received, 0 if it is an ordinary one.
    rx_gso_size: int = 0
    #: Where frames are built: headroom + MAX_FRAME bytes and some slack.
    tx: memoryview

    def __init__(self) -> None:
        self.receiver: Receiver = _discard
        #: Called after each batch of received frames.
        self.batch_end: Callable[[], None] = _nothing
        #: Called with complete frames, both ways, if capturing: ``capture(frame)``.
        self.capture: Callable[[memoryview], None] | None = None
        #: The guest's address: destination of all unicast frames that we send.
        self.guest_mac = b"\xff\xff\xff\xff\xff\xff"
        self.rx_frames = 0
        self.tx_frames = 0
        self.tx_dropped = 0

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor to watch for readability."""

    @abstractmethod
    def prefix(
        self,
        gso_type: int = GSO_NONE,
        gso_size: int = 0,
        hdr_len: int = 0,
        csum_start: int = 0,
        csum_offset: int = 0,
    ) -> bytes:
        """The :attr:`headroom` bytes that must precede a frame with these properties.

        All lengths are bytes counted from the start of the Ethernet header; ``csum_start``
        0 means that the frame needs no checksum.
        """

    @abstractmethod
    def send(self, length: int) -> bool:
        """Send ``tx[:length]`` (headroom included); False if the frame was dropped."""

    @abstractmethod
    def sendv(self, parts: Sequence[memoryview | bytes]) -> bool:
        """Send one frame gathered from ``parts``, the first starting with a prefix."""

    def send_frame(self, frame: bytes) -> bool:
        """Send a complete, fully checksummed Ethernet frame made by a service."""
        return self.sendv((self.prefix(), frame))


def _discard(_buf: memoryview, _off: int, _end: int) -> None:
    """Receiver of a link that nobody listens to yet."""


def _nothing() -> None:
    """Batch end of a link that nobody listens to yet."""
