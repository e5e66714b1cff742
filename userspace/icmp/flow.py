"""A sequence of echo requests from the guest: one identifier, one destination, one socket."""

from __future__ import annotations

import struct

from passt.userspace.flow.expiry import Expiring
from passt.userspace.flow.nat import text, unmap
from passt.userspace.flow.sockname import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from passt.syscalls import bare_socket as socket
    from passt.userspace.flow.sockname import SockName
    from passt.userspace.icmp.translator import Icmp

_IDENTIFIER = struct.Struct("!H")


class EchoFlow(Expiring):
    """``key`` is source, destination and identifier as in the guest's packets."""

    __slots__ = (
        "answered",
        "fd",
        "guest",
        "identifier",
        "key",
        "last",
        "multicast",
        "name",
        "owner",
        "peer",
        "phantom_errors",
        "seen",
        "sock",
        "ttl",
        "v4",
    )

    kind = "ICMP ping sequence"
    cost = 1280

    def __init__(
        self,
        owner: Icmp,
        sock: socket.socket,
        key: bytes,
        peer: bytes,
        name: SockName,
        *,
        multicast: bool,
    ) -> None:
        super().__init__()
        size = (len(key) - 2) >> 1
        #: There was a reply, or an error in place of one.
        self.answered = False
        self.owner = owner
        self.sock = sock
        self.fd = sock.fileno()
        self.key = key
        self.guest = key[:size]
        #: The destination as the guest knows it, and as we do.
        self.seen = key[size : 2 * size]
        self.peer = peer
        #: ``peer`` as the socket module wants it.
        self.name = name
        self.identifier: int = _IDENTIFIER.unpack_from(key, 2 * size)[0]
        self.v4 = size == 4
        self.multicast = multicast
        #: TTL or hop limit last set on the socket; none of the possible values at first.
        self.ttl = -1
        #: Monotonic seconds of the last request.
        self.last = 0.0
        #: Error events in a row for which no error was found.
        self.phantom_errors = 0

    def describe(self) -> str:
        """The guest, the destination on both sides, and the identifier."""
        return (
            f"TAP [{text(self.guest)}]:{self.identifier} -> [{text(self.seen)}] "
            f"=> HOST [{text(self.peer)}]"
        )

    def ready(self, events: int) -> None:
        """Handler of the socket's events."""
        self.owner.ready(self, events)

    def idle_since(self, when: float) -> bool:
        """Whether there was no request after ``when``."""
        return self.last <= when

    def strand(self, lost: Container[bytes], withdrawn: Container[bytes]) -> None:
        """End if one of the addresses is not there any more: the next request begins anew."""
        gone = self.guest in withdrawn
        if not gone and lost:
            try:
                gone = unmap(packed(self.sock.getsockname())) in lost
            except OSError:
                # Who does not tell its address is not known to have lost it.
                return
        if gone:
            self.owner.end(self)

    def give_up(self) -> None:
        """Make room for another sequence; the next request begins a new one."""
        self.owner.end(self)


class EchoFlow6(EchoFlow):
    """The same for IPv6, under another name."""

    __slots__ = ()

    kind = "ICMPv6 ping sequence"
