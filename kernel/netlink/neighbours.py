"""The host's neighbours, ARP's and Neighbour Discovery's: what there is, and what changes.

Theory of operation
-------------------
Two sockets.  One is a member of the group RTNLGRP_NEIGH, so that the kernel sends it whatever
changes; the other one asks for all there is, as answers and changes in one queue could not be told
apart.  Subscribing comes first, so that nothing is missed between.  Neither takes privileges.  They
are made while we may still make such sockets, and used later on.

A network with many containers has many interfaces whose neighbours change all the time.  A filter
on the first socket (socket(7), SO_ATTACH_FILTER) has the kernel drop what is not about an interface
of ours, so that it does not even wake us.

If changes come faster than they are read, the kernel drops some and says so (ENOBUFS): then
everything has to be read anew.

An entry is valid while the kernel has a link-layer address that it would send to: permanent, or
confirmed, or used until that fails.

Sources: rtnetlink(7), netlink(7), linux/neighbour.h.
"""

from __future__ import annotations

import struct
import sys
from errno import EAGAIN, EMSGSIZE, ENOBUFS

from passt.syscalls import bare_socket as socket
from passt.syscalls.mmsg import Region
from passt.syscalls.sockopt import SO_ATTACH_FILTER, SO_DETACH_FILTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    #: Address, link-layer address (empty if there is none), and whether the latter is valid.
    Entry = tuple[bytes, bytes, bool]

_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_NEWNEIGH = 28
_RTM_DELNEIGH = 29
_RTM_GETNEIGH = 30
#: NLM_F_REQUEST and NLM_F_DUMP.
_DUMP = 0x301
#: Bit of RTNLGRP_NEIGH.
_GROUP = 1 << 2

_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_IFINDEX = 8
_RTN_UNICAST = 1

#: REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT.
_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80

#: Length, type, flags, sequence number, port.
_HEADER = struct.Struct("=IHHII")
#: Family, interface index, state, flags, type of the address.
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_BODY = _HEADER.size
_ATTRIBUTES = _BODY + _NEIGHBOUR.size
_REQUEST = struct.Struct("=IHHII B3xi4x HHI")

#: struct sock_filter, struct sock_fprog (linux/filter.h), and what is to be done.
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_INDEX_AT = _BODY + 4

_ADDRESS_LENGTH = {socket.AF_INET: 4, socket.AF_INET6: 16}

#: Larger than any message about one neighbour, and than what the kernel puts into an answer.
_CHANGE = 4096
_ANSWER = 1 << 16
#: Bytes of an answer: as many neighbours as no network has.
_LIMIT = 16 << 20

#: Changes read at once: more than a receive buffer of the default size holds.
MAX_CHANGES = 1024


class NeighbourSocket:
    """Tells of neighbours on the interface ``index4`` over IPv4, and ``index6`` over IPv6.

    An index of 0 means none.  OSError if such sockets are not to be had.
    """

    __slots__ = ("_changes", "_indices", "_questions", "_sequence", "_told")

    def __init__(self, index4: int, index6: int) -> None:
        self._indices = _by_family(index4, index6)
        self._sequence = 0
        #: Interfaces that the kernel tells of; empty for all.
        self._told = frozenset(self._indices.values())
        self._changes = _open(_GROUP, tuple(self._told))
        try:
            self._questions = _open(0, ())
        except OSError:
            self._changes.close()
            raise

    def retarget(self, index4: int, index6: int) -> None:
        """Tell of these interfaces from now on, as the constructor has them.

        A filter cannot be replaced any more by then, so the kernel tells of all.
        """
        self._indices = _by_family(index4, index6)
        if self._told and not self._told.issuperset(self._indices.values()):
            self._told = frozenset()
            try:
                self._changes.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            except OSError:
                # There was none.
                pass

    def fileno(self) -> int:
        """Descriptor that is readable when something has changed."""
        return self._changes.fileno()

    def close(self) -> None:
        """Close the sockets."""
        self._changes.close()
        self._questions.close()

    def all(self) -> list[Entry]:
        """What there is, as of now; OSError."""
        entries: list[Entry] = []
        for family, index in self._indices.items():
            self._ask(family, index, entries)
        return entries

    def _ask(self, family: int, index: int, entries: list[Entry]) -> None:
        self._sequence += 1
        self._questions.send(
            _REQUEST.pack(
                *(_REQUEST.size, _RTM_GETNEIGH, _DUMP, self._sequence, 0),
                *(family, 0, _ATTRIBUTE.size + 4, _NDA_IFINDEX, index),
            )
        )
        left = _LIMIT
        while left > 0:
            # The kernel makes the answer while it is being read, so there is no waiting.
            datagram = self._questions.recv(_ANSWER)
            left -= len(datagram)
            if self._read(datagram, entries, self._sequence):
                return
        raise OSError(EMSGSIZE, "Too many neighbours")

    def changes(self) -> list[Entry] | None:
        """What has changed, at most :data:`MAX_CHANGES`; ``None`` if some was lost.

        In that case older changes are none that one should know of after having read all anew.
        """
        entries: list[Entry] = []
        lost = False
        for _ in range(MAX_CHANGES):
            try:
                datagram = self._changes.recv(_CHANGE)
            except OSError as error:
                if error.errno == EAGAIN:
                    break
                if error.errno != ENOBUFS:
                    raise
                lost = True
                continue
            self._read(datagram, entries, -1)
        return None if lost else entries

    def _read(self, datagram: bytes, entries: list[Entry], sequence: int) -> bool:
        """Add the entries in a datagram; true if it ends the answer ``sequence``."""
        at, end = 0, len(datagram)
        while end - at >= _HEADER.size:
            length, kind, _, number, _ = _HEADER.unpack_from(datagram, at)
            if length < _HEADER.size or length > end - at:
                return False
            if sequence in (-1, number):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return True
                if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
                    entry = self._entry(datagram, at, at + length, kind == _RTM_NEWNEIGH)
                    if entry is not None:
                        entries.append(entry)
            at += length + 3 & ~3
        return False

    def _entry(self, datagram: bytes, at: int, end: int, exists: bool) -> Entry | None:
        """The entry in the message at ``at``; ``None`` if it is not for us, or makes no sense."""
        at += _BODY
        if end - at < _NEIGHBOUR.size:
            return None
        family, index, state, _, kind = _NEIGHBOUR.unpack_from(datagram, at)
        if self._indices.get(family) != index or kind != _RTN_UNICAST:
            return None
        address = mac = b""
        at += _NEIGHBOUR.size
        while end - at >= _ATTRIBUTE.size:
            length, what = _ATTRIBUTE.unpack_from(datagram, at)
            if length < _ATTRIBUTE.size or length > end - at:
                return None
            if what == _NDA_DST:
                address = datagram[at + _ATTRIBUTE.size : at + length]
            elif what == _NDA_LLADDR:
                mac = datagram[at + _ATTRIBUTE.size : at + length]
            at += length + 3 & ~3
        if len(address) != _ADDRESS_LENGTH[family]:
            return None
        return address, mac, exists and state & _VALID != 0


def _by_family(index4: int, index6: int) -> dict[int, int]:
    found = {socket.AF_INET: index4, socket.AF_INET6: index6}
    return {family: index for family, index in found.items() if index}


def _open(groups: int, indices: tuple[int, ...]) -> socket.socket:
    """A socket in these groups, for messages about these interfaces; OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_ROUTE)
    try:
        if indices:
            _attach(sock, indices)
        sock.bind((0, groups))
        # Nobody but the kernel gets a message to a socket that is connected to it.
        sock.connect((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _attach(sock: socket.socket, indices: tuple[int, ...]) -> None:
    """Have the kernel keep messages about these interfaces only, if it can."""
    count = len(indices)
    program = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _INDEX_AT)]
    for i, index in enumerate(indices):
        # The filter reads words as if they came from a network.
        word = int.from_bytes(index.to_bytes(4, sys.byteorder), "big")
        program.append(_INSTRUCTION.pack(_JUMP_EQUAL, count - i, 0, word))
    program.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0))
    program.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF))
    region = Region(bytearray(b"".join(program)))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(program), region.address)
        )
    except OSError:
        # Then we are woken for others', and ignore them.
        pass
