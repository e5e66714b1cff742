"""A UDP flow between the host's loopback interface and the target namespace.

It bypasses the link: two connected sockets, one on each side, and what arrives on one is sent
by the other.  Each socket with what belongs to it is a :class:`Half`; the *near* one faces the
client, who sent the first datagram, and the *far* one the server::

    client ──► near half (bound to what the client sent to, connected to the client)
                 │ recvmmsg
                 ▼ sendmmsg, or one train
               far half (bound to the client's port, connected to the server) ──► server

The key of a half is that of the datagrams which arrive there: see
:mod:`passt.userspace.udp.flow`.
"""

from __future__ import annotations

from passt.userspace.flow.expiry import Expiring
from passt.userspace.flow.nat import endpoint
from passt.userspace.flow.rules import PIF_NAMES
from passt.userspace.loop import EPOLLIN
from passt.userspace.udp.flow import pair, split
from passt.userspace.udp.output import send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.syscalls import bare_socket as socket
    from passt.userspace.flow.sockname import SockName
    from passt.userspace.loop import Loop
    from passt.userspace.udp.side import Listener, Side
    from passt.userspace.udp.splice import Splice


#: Datagrams read one by one before it is seen whether there is more than one again.
SINGLES = 15


class Half:
    """One of the two sockets of a spliced flow.

    ``sock`` is its own, or, with ``via``, that of the listening socket it came in by.
    """

    __slots__ = (
        "_buffer",
        "_loop",
        "_receive",
        "_send",
        "_singles",
        "active",
        "ancillary",
        "fd",
        "flow",
        "fresh",
        "gso_limit",
        "joins",
        "key",
        "other",
        "peer",
        "phantom_errors",
        "side",
        "sock",
        "via",
    )

    def __init__(self, flow: SplicedFlow, side: Side, sock: socket.socket, key: bytes) -> None:
        self.flow = flow
        self.side = side
        self.sock = sock
        self.fd = sock.fileno()
        self.key = key
        #: The half that sends what arrives here; itself until there are two.
        self.other = self
        #: Made in this round: datagrams of others may be in the socket's queue.
        self.fresh = True
        #: Listening socket in place of an own one; then the peer's address and the packet
        #: information with our source address go along with each datagram.
        self.via: Listener | None = None
        self.peer: SockName | None = None
        self.ancillary: list[tuple[int, int, bytes]] = []
        #: Datagrams up to this many bytes can leave as a train (UDP_SEGMENT).
        self.gso_limit = 65535
        #: The kernel may join datagrams that arrive (UDP_GRO).
        self.joins = False
        #: Wake-ups that brought datagrams.
        self.active = 0
        #: Error events in a row for which no error was found.
        self.phantom_errors = 0
        # To read one by one: how many times still, where to, and what is called, looked up
        # once and for all.
        self._singles = 0
        self._buffer = memoryview(b"")
        self._receive = sock.recv_into
        self._send = sock.send
        self._loop: Loop | None = None

    def pair(self, other: Half, buffer: memoryview, loop: Loop) -> None:
        """Make this half and ``other`` those of one flow; ``buffer`` is scratch memory."""
        for one, two in ((self, other), (other, self)):
            one.other = two
            one._buffer = buffer
            one._send = two.sock.send
            one._loop = loop

    def read_singly(self) -> None:
        """Receive datagrams by single calls for a while, if they can be sent so."""
        if self.other.peer is None:
            self._singles = SINGLES

    @property
    def index(self) -> int:
        """That of the flow, −1 once it has ended."""
        return self.flow.index

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        loop = self._loop
        if not self._singles or events != EPOLLIN or loop is None:
            self.flow.owner.half_ready(self, events)
            return
        self._singles -= 1
        try:
            length = self._receive(self._buffer)
        except OSError:
            # An error that was pending, reported in place of a datagram, or nothing.
            return
        payload = self._buffer[:length]
        try:
            self._send(payload)
        except OSError:
            send(self.other, payload)
        self.flow.last = loop.now
        self.active += 1
        self.phantom_errors = 0

    def take(self, indices: Sequence[int]) -> None:
        """Send these datagrams of the batch on."""
        self.flow.owner.relay(self, indices)

    def end(self) -> None:
        """End the flow."""
        self.flow.owner.end_spliced(self.flow)

    def __str__(self) -> str:
        return str(self.flow)


class SplicedFlow(Expiring):
    """One pseudo-connection between two sockets, begun on ``side`` by a datagram of ``key``."""

    __slots__ = ("far", "key", "last", "near", "owner", "side")

    kind = "UDP flow"
    cost = 3072
    sockets = 2

    def __init__(self, owner: Splice, side: Side, key: bytes) -> None:
        super().__init__()
        self.owner = owner
        self.side = side
        self.key = key
        self.near: Half | None = None
        self.far: Half | None = None
        #: Monotonic seconds of the last datagram.
        self.last = 0.0

    @property
    def answered(self) -> bool:  # type: ignore[override]
        """The server has sent something."""
        return self.far is not None and self.far.active > 0

    def idle_since(self, when: float) -> bool:
        """Whether nothing has been sent after ``when``."""
        return self.last <= when

    def give_up(self) -> None:
        """Make room for another flow; what is sent next begins a new one."""
        self.owner.end_spliced(self)

    def describe(self) -> str:
        """Both endpoint pairs, the initiating side first."""
        begin = f"{PIF_NAMES[self.side.pif]} {pair(self.key)}"
        if self.far is None:
            return begin
        peer, peer_port, local, local_port = split(self.far.key)
        return (
            f"{begin} => {PIF_NAMES[self.far.side.pif]} "
            f"{endpoint(local, local_port)} -> {endpoint(peer, peer_port)}"
        )
