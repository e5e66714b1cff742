"""Ethernet II framing (IEEE 802.3, RFC 894, RFC 2464): destination, source, EtherType.

Frames have no check sequence here: neither tap devices nor virtual machines carry one.
VLAN tags are EtherTypes that we do not handle.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, drops

#: Destination, source, EtherType.
HEADER = struct.Struct("!6s6sH")
HEADER_LEN = 14

#: Shortest frame on the wire, without check sequence; what is shorter is padded with zeroes.
MIN_FRAME = 60

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD

BROADCAST = b"\xff" * 6

_SHORT = (-drops.FRAME_SHORT, b"", b"")
_HEX = frozenset("0123456789abcdefABCDEF")


def parse(buf: Octets, off: int, end: int) -> tuple[int, bytes, bytes]:
    """``(EtherType, source, destination)`` of the frame ``buf[off:end]``.

    A frame of less than 14 bytes gives a negative reason instead of the EtherType.
    """
    if end - off < HEADER_LEN:
        return _SHORT
    destination, source, ethertype = HEADER.unpack_from(buf, off)
    return ethertype, source, destination


def frame(destination: bytes, source: bytes, ethertype: int, *payload: Octets) -> bytes:
    """A complete frame around the concatenated ``payload``, padded to 60 bytes."""
    header = HEADER.pack(destination, source, ethertype)
    return b"".join((header, *payload)).ljust(MIN_FRAME, b"\0")


def parse_mac(text: str) -> bytes:
    """The six bytes of ``text``, which must be six two-digit hexadecimal groups with colons.

    Raises ValueError for anything else.
    """
    groups = text.split(":")
    if len(groups) != 6 or any(len(group) != 2 or not _HEX.issuperset(group) for group in groups):
        raise ValueError(f"Invalid MAC address: {text}")
    return bytes.fromhex("".join(groups))


def format_mac(mac: bytes) -> str:
    """``mac`` as lower-case hexadecimal groups with colons."""
    return mac.hex(":")
