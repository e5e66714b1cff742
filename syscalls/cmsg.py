"""Control messages of sendmsg(2) and recvmsg(2): walking, and the kinds UDP needs.

Source: cmsg(3), ip(7), ipv6(7), udp(7), RFC 3542.  A control buffer is a sequence of
{size_t length, int level, int type, data}, each starting at a multiple of the size of a long;
the length counts the header but not the padding.  Readers stop at the first malformed header
as at the end.
"""

from __future__ import annotations

import struct

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import IP_PKTINFO, IPV6_PKTINFO, UDP_GRO, UDP_SEGMENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("@Nii")
HEADER_LEN = _HEADER.size
_ALIGN = struct.calcsize("l") - 1

_IPPROTO_IP = socket.IPPROTO_IP
_IPPROTO_IPV6 = socket.IPPROTO_IPV6
_IPPROTO_UDP = socket.IPPROTO_UDP

_unpack_header = _HEADER.unpack_from
_unpack_int = struct.Struct("=i").unpack_from
# struct in_pktinfo: index, specific destination, header destination.
_PKTINFO4 = struct.Struct("=i4s4s")
# struct in6_pktinfo: address, index.
_PKTINFO6 = struct.Struct("=16si")
_unpack_pktinfo4 = _PKTINFO4.unpack_from
_unpack_pktinfo6 = _PKTINFO6.unpack_from
_PKTINFO4_LEN = HEADER_LEN + _PKTINFO4.size
_PKTINFO6_LEN = HEADER_LEN + _PKTINFO6.size

_SEGMENT = struct.Struct("@NiiH")
_pack_segment = struct.Struct(
    f"@NiiH{((HEADER_LEN + 2 + _ALIGN) & ~_ALIGN) - HEADER_LEN - 2}x"
).pack


def space(length: int) -> int:
    """Bytes that a control message with `length` bytes of data takes in a buffer."""
    return (HEADER_LEN + length + _ALIGN) & ~_ALIGN


def pack(level: int, kind: int, data: bytes) -> bytes:
    """Make one control message, padded so that another may follow."""
    message = _HEADER.pack(HEADER_LEN + len(data), level, kind) + data
    return message.ljust(space(len(data)), b"\0")


def pack_segment(size: int) -> bytes:
    """UDP_SEGMENT for one send: the kernel cuts the payload into datagrams of `size` bytes."""
    return _pack_segment(_SEGMENT.size, _IPPROTO_UDP, UDP_SEGMENT, size)


def pack_pktinfo(source: bytes, ifindex: int = 0) -> bytes:
    """IP_PKTINFO or IPV6_PKTINFO for one send, by the length of the packed `source` address.

    The datagram leaves from `source` (all zeros: the kernel chooses) and, if `ifindex` is not
    0, through that interface.
    """
    if len(source) == 4:
        return pack(_IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(ifindex, source, bytes(4)))
    return pack(_IPPROTO_IPV6, IPV6_PKTINFO, _PKTINFO6.pack(source, ifindex))


def cmsg_iter(view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (level, type, data) of each message in received control data."""
    offset, end = 0, len(view)
    while offset + HEADER_LEN <= end:
        length, level, kind = _unpack_header(view, offset)
        if length < HEADER_LEN or length > end - offset:
            return
        yield level, kind, view[offset + HEADER_LEN : offset + length]
        offset += (length + _ALIGN) & ~_ALIGN


def gro_size(view: memoryview) -> int:
    """Size of the datagrams that the kernel joined into one receive (UDP_GRO).

    0 if it joined none.  The last of the datagrams may be shorter.
    """
    offset, end = 0, len(view)
    while offset + HEADER_LEN <= end:
        length, level, kind = _unpack_header(view, offset)
        if length < HEADER_LEN or length > end - offset:
            return 0
        if level == _IPPROTO_UDP and kind == UDP_GRO and length >= HEADER_LEN + 4:
            size: int = _unpack_int(view, offset + HEADER_LEN)[0]
            return size if size > 0 else 0
        offset += (length + _ALIGN) & ~_ALIGN
    return 0


def pktinfo(view: memoryview) -> tuple[bytes, int, bytes] | None:
    """Return (destination, interface index, local address), or None without packet info.

    The destination is the one in the packet's header, possibly multicast or broadcast; the
    local address is the one to answer from, and equal to the destination for IPv6.
    """
    offset, end = 0, len(view)
    while offset + HEADER_LEN <= end:
        length, level, kind = _unpack_header(view, offset)
        if length < HEADER_LEN or length > end - offset:
            return None
        if level == _IPPROTO_IP:
            if kind == IP_PKTINFO and length >= _PKTINFO4_LEN:
                ifindex, local, destination = _unpack_pktinfo4(view, offset + HEADER_LEN)
                return destination, ifindex, local
        elif level == _IPPROTO_IPV6 and kind == IPV6_PKTINFO and length >= _PKTINFO6_LEN:
            destination, ifindex = _unpack_pktinfo6(view, offset + HEADER_LEN)
            return destination, ifindex, destination
        offset += (length + _ALIGN) & ~_ALIGN
    return None
