"""A UDP flow: one endpoint pair on the guest's side, one on the host's, and a socket.

UDP has no connections, so a flow is made by its first datagram and ends by silence.  Each
side is held as a *key*: source address, destination address, source port, destination port
as they stand in a datagram that **arrives** from that side, in network order (12 bytes for
IPv4, 36 for IPv6).  In an IP packet without options these bytes are contiguous, so the key
of a datagram from the guest is one slice of its frame.

=============  =====================  ========================
key            source                 destination
=============  =====================  ========================
``guest_key``  the guest              what the guest talks to
``host_key``   the peer on the host   our socket
=============  =====================  ========================

A flow never mixes IP versions.
"""

from __future__ import annotations

import struct

from passt.userspace.flow.expiry import Expiring
from passt.userspace.flow.nat import endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from passt.syscalls import bare_socket as socket
    from passt.userspace.flow.sockname import SockName
    from passt.userspace.udp.base import UdpBase
    from passt.userspace.udp.frames import Headers
    from passt.userspace.udp.side import Listener

#: Source and destination port at the end of a key.
PORTS = struct.Struct("!HH")


def split(key: bytes) -> tuple[bytes, int, bytes, int]:
    """Source address and port, destination address and port of ``key``."""
    size = (len(key) - 4) >> 1
    source_port, destination_port = PORTS.unpack_from(key, 2 * size)
    return key[:size], source_port, key[size : 2 * size], destination_port


def pair(key: bytes) -> str:
    """``[source]:port -> [destination]:port`` for messages."""
    source, source_port, destination, destination_port = split(key)
    return f"{endpoint(source, source_port)} -> {endpoint(destination, destination_port)}"


class Pair:
    """A key in a message that may never be printed: formatted only when it is."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __str__(self) -> str:
        return pair(self._key)


class UdpFlow(Expiring):
    """One pseudo-connection.

    ``sock`` is the flow's own connected socket, or, with ``via``, that of the listening socket
    it came in by (see :mod:`passt.userspace.udp.base`).
    """

    __slots__ = (
        "ancillary",
        "fd",
        "fresh",
        "from_guest",
        "gso_limit",
        "guest_active",
        "guest_addr",
        "guest_key",
        "headers",
        "host_active",
        "host_key",
        "last",
        "multicast",
        "owner",
        "parts",
        "peer",
        "phantom_errors",
        "room",
        "segment",
        "sock",
        "touched",
        "train_ttl",
        "ttl",
        "twin_next",
        "twin_previous",
        "via",
    )

    kind = "UDP flow"
    cost = 1792

    def __init__(
        self,
        owner: UdpBase,
        sock: socket.socket,
        guest_key: bytes,
        host_key: bytes,
        *,
        from_guest: bool,
    ) -> None:
        super().__init__()
        self.owner = owner
        self.sock = sock
        self.fd = sock.fileno()
        self.guest_key = guest_key
        self.guest_addr = guest_key[: (len(guest_key) - 4) >> 1]
        self.host_key = host_key
        #: True if the guest sent the first datagram.
        self.from_guest = from_guest
        #: Made in this round: datagrams of others may be in the socket's queue.
        self.fresh = True
        #: Listening socket in place of an own one; then the peer's address and the packet
        #: information with our source address go along with each datagram.
        self.via: Listener | None = None
        self.peer: SockName | None = None
        self.ancillary: list[tuple[int, int, bytes]] = []
        #: The peer is a group or broadcast address.
        self.multicast = False
        #: Frame headers towards the guest, made when first needed.
        self.headers: Headers | None = None
        #: TTL or hop limit last set on the socket; none of the possible values at first.
        self.ttl = -1
        #: Datagrams up to this many bytes can leave as a train (UDP_SEGMENT).
        self.gso_limit = 65535

        # Datagrams of the guest waiting for the end of the batch: one train of equal sizes.
        self.parts: list[memoryview] = []
        self.segment = 0
        #: How many datagrams of this size the train can still take.
        self.room = 0
        self.train_ttl = 0
        #: In the list of flows to serve at the end of the batch.
        self.touched = False

        #: Monotonic seconds of the last datagram.
        self.last = 0.0
        #: Wake-ups that brought datagrams from either side.
        self.guest_active = 0
        self.host_active = 0
        #: Error events in a row for which no error was found.
        self.phantom_errors = 0

        # Other flows with the same guest_key, see FlowIndex.
        self.twin_next: UdpFlow | None = None
        self.twin_previous: UdpFlow | None = None

    def describe(self) -> str:
        """Both endpoint pairs, the initiating side first."""
        ours, our_port, guest, guest_port = _reverse(self.guest_key)
        peer, peer_port, local, local_port = split(self.host_key)
        if self.from_guest:
            return (
                f"TAP {pair(self.guest_key)} => "
                f"HOST {endpoint(local, local_port)} -> {endpoint(peer, peer_port)}"
            )
        return (
            f"HOST {pair(self.host_key)} => "
            f"TAP {endpoint(ours, our_port)} -> {endpoint(guest, guest_port)}"
        )

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self.owner.ready(self, events)

    def take(self, indices: Sequence[int]) -> None:
        """Send these datagrams of the batch to the guest."""
        self.owner.deliver(self, indices)

    def end(self) -> None:
        """Remove the flow everywhere."""
        self.owner.end(self)

    # Before somebody answers.

    @property
    def answered(self) -> bool:  # type: ignore[override]
        """The side that did not begin has sent something."""
        return (self.host_active if self.from_guest else self.guest_active) > 0

    def idle_since(self, when: float) -> bool:
        """Whether neither side has sent anything after ``when``."""
        return self.last <= when

    def strand(self, lost: Container[bytes], withdrawn: Container[bytes]) -> None:
        """End if one of the addresses is not there any more: what comes next begins anew."""
        if self.guest_addr in withdrawn or split(self.host_key)[2] in lost:
            self.owner.end(self)

    def give_up(self) -> None:
        """Make room for another flow; what is sent next begins a new one."""
        self.owner.end(self)


def _reverse(key: bytes) -> tuple[bytes, int, bytes, int]:
    source, source_port, destination, destination_port = split(key)
    return destination, destination_port, source, source_port


class FlowIndex:
    """Flows by guest-side key; among several with one key the earliest is found.

    Several host clients may look the same to the guest (127.0.0.1, 127.0.0.7 and the host's
    own address all become the gateway).  Its answers go to the earliest flow, and once that
    has ended to the next: *twins* form a ring, in order of arrival, behind :attr:`first`.
    """

    __slots__ = ("first",)

    def __init__(self) -> None:
        #: Public for speed: the hot path looks up here.
        self.first: dict[bytes, UdpFlow] = {}

    def add(self, flow: UdpFlow) -> None:
        """Enter ``flow`` behind others with its key."""
        head = self.first.setdefault(flow.guest_key, flow)
        if head is flow:
            return
        tail = head.twin_previous or head
        flow.twin_previous = tail
        flow.twin_next = head
        tail.twin_next = flow
        head.twin_previous = flow

    def remove(self, flow: UdpFlow) -> None:
        """Take ``flow`` out; harmless if it is not in."""
        following = flow.twin_next
        previous = flow.twin_previous
        if following is None or previous is None:
            if self.first.get(flow.guest_key) is flow:
                del self.first[flow.guest_key]
            return
        if self.first.get(flow.guest_key) is flow:
            self.first[flow.guest_key] = following
        if following is previous:
            following.twin_next = following.twin_previous = None
        else:
            previous.twin_next = following
            following.twin_previous = previous
        flow.twin_next = flow.twin_previous = None
