"""What ICMP errors towards the guest have in common: where from, and which.

Errors that the host received come from a node that the guest must be able to place: the peer
is the address that the guest sent to, anything else is translated like the source of inbound
traffic (a router keeps its address, the host itself becomes the gateway).

What the host's kernel refuses to send for want of a route is answered by us in the role of
the guest's router (RFC 1812, 5.2.7.1; RFC 4443, 3.1): without that the guest would wait for
a time-out where a real host tells it at once.
"""

from __future__ import annotations

import errno

from passt.userspace.flow.nat import is_unicast, unmap
from passt.userspace.flow.sockname import is_scoped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat

#: errno of a refused send or connect → (type, code) of ICMP, of ICMPv6: no route, route of
#: kind "unreachable", route of kind "prohibit" or a firewall.  EINVAL is what IPv6 says of
#: link-local destinations where there is no interface whose neighbours they could be (and of
#: much else where a destination is another).
_REFUSALS: dict[int, tuple[tuple[int, int] | None, tuple[int, int]]] = {
    errno.ENETUNREACH: ((3, 0), (1, 0)),
    errno.EHOSTUNREACH: ((3, 1), (1, 3)),
    errno.EACCES: ((3, 13), (1, 1)),
    errno.EPERM: ((3, 13), (1, 1)),
    errno.EINVAL: (None, (1, 0)),
}


def refusal(error: OSError, to: bytes) -> tuple[int, int] | None:
    """Type and code that tell the guest of ``error``; ``None`` if it is of no concern to it.

    ``to`` is where the guest sent its packet.
    """
    number = error.errno or 0
    kinds = _REFUSALS.get(number)
    if kinds is None or (number == errno.EINVAL and not is_scoped(to)):
        return None
    return kinds[0 if len(to) == 4 else 1]


def router(config: Config, *, v4: bool) -> bytes | None:
    """Our address on the link in the role of the guest's router, ``None`` without one."""
    return config.v4.gateway if v4 else config.v6.gateway or config.v6.our_ll


def offender(nat: Nat, node: bytes, peer: bytes, seen: bytes) -> bytes | None:
    """The address that the guest is shown for ``node``, which reported an error.

    ``peer`` is where the packet went on the host's side, ``seen`` where the guest sent it.
    ``None`` if the node is unknown (an error of local origin) or has no address there, as none
    has that claims to be a group.
    """
    node = unmap(node)
    if len(node) != len(seen) or not is_unicast(node):
        return None
    return seen if node == peer else nat.inbound_source(node)
