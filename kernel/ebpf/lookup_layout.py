"""What the programs of ``lookup.bpf.c`` and user space share: five maps.

=========  =========  ==========================================  ==================================
map        kind       holds                                       written by
=========  =========  ==========================================  ==================================
listeners  array      where each of our listeners is              user space, in shared memory
open       array      by listener, a number for each port         user space, in shared memory
taken      array      the same                                    the program ``listening``
socks      sockmap    the listeners' sockets                      user space
bell       ring       listener and port that was taken            the program ``listening``
=========  =========  ==========================================  ==================================

A port is open for a listener if its number in ``open`` is that in ``taken``, together with
:data:`OPEN`.
"""

from __future__ import annotations

import struct

from passt.kernel.ebpf.layout import MapShape
from passt.syscalls import bpf

#: Listeners.
SLOTS = 4
PORTS = 65536
#: Bytes of the numbers of one listener.
NUMBERS = 2 * PORTS
OPEN = 0x8000
#: What numbers are modulo, less one.
COUNT = 0x7FFF
#: Size of the ring in bytes: 256 records.
RING = 4096

# IP versions.
IPV4 = 1
IPV6 = 2

#: struct listener: namespace, versions, interface and its mask, own port, address and its mask.
_LISTENER = struct.Struct("=QIIII16sI4x")
#: Where the versions are, in 32-bit words.
VERSIONS_WORD = 2
LISTENER_WORDS = _LISTENER.size // 4
_ALL = 0xFFFFFFFF

SHAPES = (
    MapShape("listeners", bpf.MAP_TYPE_ARRAY, 4, _LISTENER.size, SLOTS, bpf.F_MMAPABLE),
    MapShape("open", bpf.MAP_TYPE_ARRAY, 4, NUMBERS, SLOTS, bpf.F_MMAPABLE),
    MapShape("taken", bpf.MAP_TYPE_ARRAY, 4, NUMBERS, SLOTS, bpf.F_MMAPABLE),
    MapShape("socks", bpf.MAP_TYPE_SOCKMAP, 4, 4, SLOTS),
    MapShape("bell", bpf.MAP_TYPE_RINGBUF, 0, 0, RING),
)
NAMES = tuple(shape.name for shape in SHAPES)


class Place:
    """Where a socket listens, apart from the port.

    ``versions``: :data:`IPV4`, :data:`IPV6` or both; ``address``: packed, empty for the wildcard;
    ``ifindex``: 0 for any interface.
    """

    __slots__ = ("address", "ifindex", "versions")

    def __init__(self, versions: int, address: bytes = b"", ifindex: int = 0) -> None:
        self.versions = versions
        self.address = address if any(address) else b""
        self.ifindex = ifindex

    def pack(self, netns: int, port: int) -> bytes:
        """The element of ``listeners`` for a socket here, bound to ``port``.

        ``netns`` is the cookie of the network namespace.
        """
        return _LISTENER.pack(
            netns,
            self.versions,
            self.ifindex,
            _ALL if self.ifindex else 0,
            port,
            self.address,
            _ALL if self.address else 0,
        )

    @classmethod
    def unpack(cls, element: bytes) -> Place:
        """The place in an element of ``listeners``."""
        _, versions, ifindex, _, _, address, _ = _LISTENER.unpack(element)
        return cls(versions, address[:4] if versions == IPV4 else address, ifindex)

    def meets(self, other: Place) -> bool:
        """Whether there is something that arrives in both places."""
        return bool(
            self.versions & other.versions
            and (not self.address or not other.address or self.address == other.address)
            and (not self.ifindex or not other.ifindex or self.ifindex == other.ifindex)
        )
