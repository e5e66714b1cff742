"""What the program in the kernel and user space share: five maps, and a second program.

=======  =========  ============================================  ================================
map      kind       holds                                         written by
=======  =========  ============================================  ================================
ends     hash       slot of the socket with a cookie              user space
grants   array      bytes, packets, consumed, generation by slot  user space, in shared memory
counts   array      bytes, packets, passed, last by slot          the program
socks    sockhash   sockets, by slot                              user space
bell     ring       slots that need attention                     the program
=======  =========  ============================================  ================================

A connection has two slots, one beside the other, an even number first: the peer of slot n is
n ^ 1.  All numbers only grow, for as long as the maps exist, across the connections that use a
slot one after the other: whoever begins compares with what is there.  A *generation* is the number
of a connection in its slot; *last* has it in the upper 32 bits, as far as the program has seen
any of its data, and in the lower ones the sequence number behind these.

The other program, a socket filter, makes a socket *deaf*: all that comes for it is lost, as if on
the wire.  (Since Linux 6.18 it takes privileges to give a TCP socket a filter of classic BPF, but
not one that has been loaded before.)
"""

from __future__ import annotations

from passt.syscalls import bpf

#: Slots: twice as many as connections.
SLOTS = 8192
#: 64-bit words per slot in ``grants`` and ``counts``.
WORDS = 4

# Words of a grant.
GRANT_BYTES, GRANT_PACKETS, CONSUMED, GENERATION = 0, 1, 2, 3
# Words of a count.
BYTES, PACKETS, PASSED, LAST = 0, 1, 2, 3

#: With a slot in the ring: data of its socket were lost.
BROKEN = 1 << 31

#: Size of the ring in bytes; a record takes 16, and a slot has one there at a time, two while its
#: user changes.
RING = 1 << 18


class MapShape:
    """How a map is made: see bpf(2)."""

    __slots__ = ("entries", "flags", "key_size", "kind", "name", "value_size")

    def __init__(
        self, name: str, kind: int, key_size: int, value_size: int, entries: int, flags: int = 0
    ) -> None:
        self.name = name
        self.kind = kind
        self.key_size = key_size
        self.value_size = value_size
        self.entries = entries
        self.flags = flags


#: In the order in which the bytecode numbers them.
SHAPES = (
    MapShape("ends", bpf.MAP_TYPE_HASH, 8, 4, SLOTS, bpf.F_NO_PREALLOC),
    MapShape("grants", bpf.MAP_TYPE_ARRAY, 4, 8 * WORDS, SLOTS, bpf.F_MMAPABLE),
    MapShape("counts", bpf.MAP_TYPE_ARRAY, 4, 8 * WORDS, SLOTS, bpf.F_MMAPABLE),
    MapShape("socks", bpf.MAP_TYPE_SOCKHASH, 4, 8, SLOTS),
    MapShape("bell", bpf.MAP_TYPE_RINGBUF, 0, 0, RING),
)
NAMES = tuple(shape.name for shape in SHAPES)
#: Beside the maps, a set has a socket filter that lets nothing through.
DEAF = "deaf"
