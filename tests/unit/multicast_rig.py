"""The translator with multicast on the loopback interface, where IPv4 groups work, too.

Programs of the host are sockets there.  Those on 127.0.0.1 are the gateway to the guest.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from passt.syscalls.sockopt import IP_MULTICAST_ALL
from passt.userspace.multicast.sockets import Place, places
from passt.userspace.multicast.translator import Multicast
from passt.userspace.udp import Udp
from passt.userspace.wire.checksum import checksum
from tests.unit.udp_rig import Rig

if TYPE_CHECKING:
    from passt.userspace.splice.pool import SocketMaker

GROUP = bytes((239, 1, 2, 3))
GROUP_TEXT = "239.1.2.3"
_LO = 1


class MulticastRig(Rig):
    """Everything around the translator, with multicast where the configuration has it."""

    def translator(self, maker: SocketMaker | None, ns_ifindex: int) -> Udp:
        surroundings = self.config, self.nat, self.loop, self.link, self.table
        self.groups = Multicast(*surroundings, maker, ns_ifindex, self.places())
        return self.groups

    def places(self) -> dict[int, Place]:
        """The interfaces for it."""
        return places(self.config)


class GroupRig(MulticastRig):
    """The same on the loopback interface."""

    def places(self) -> dict[int, Place]:
        place = Place(True, _LO, "lo")
        #: The address of the loopback interface that is the kernel's choice.
        self.own = socket.inet_ntop(socket.AF_INET, place.source(GROUP, 9))
        return {4: place}

    def report(self, *records: tuple[int, bytes, tuple[bytes, ...]]) -> None:
        """The guest sends an IGMPv3 report."""
        message = igmp(*records)
        self.groups.igmp(memoryview(message), 0, len(message))

    def member(self, port: int, *, reuse: bool = True, group: str = GROUP_TEXT) -> socket.socket:
        """A program of the host that listens to the group, and gets no other's."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        via_lo = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), _LO)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, via_lo)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, via_lo)
        sock.bind(("", port))
        return sock

    def sender(self) -> socket.socket:
        """A program of the host that sends to groups on the loopback interface."""
        sock = self.socket(4)
        via_lo = struct.pack("=8xi", _LO)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, via_lo)
        return sock

    def ports(self, group: bytes = GROUP) -> set[int]:
        """Ports of the host at which ``group`` is received."""
        known = self.groups._groups.get(group)
        return set() if known is None else set(known.members)


def igmp(*records: tuple[int, bytes, tuple[bytes, ...]]) -> bytes:
    """An IGMPv3 report."""
    raw = bytearray(struct.pack("!BBHHH", 0x22, 0, 0, 0, len(records)))
    for kind, group, sources in records:
        raw += struct.pack("!BBH", kind, 0, len(sources)) + group + b"".join(sources)
    raw[2:4] = checksum(raw).to_bytes(2, "big")
    return bytes(raw)
