"""ARP for IPv4 over Ethernet (RFC 826; probes and announcements: RFC 5227)."""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, ethernet

#: Hardware type, protocol type, hardware and protocol address length, operation; sender's
#: hardware and protocol address; target's hardware and protocol address.
MESSAGE = struct.Struct("!HHBBH6s4s6s4s")
MESSAGE_LEN = 28

REQUEST = 1
REPLY = 2

_HARDWARE_ETHERNET = 1


def parse(buf: Octets, off: int, end: int) -> tuple[int, bytes, bytes, bytes] | None:
    """``(operation, sender MAC, sender address, target address)`` of the message at ``off``.

    ``None`` if it is truncated, or not about IPv4 over Ethernet.  Bytes behind the message
    are padding.  The target MAC is not returned: in requests it means nothing.
    """
    if end - off < MESSAGE_LEN:
        return None
    hardware, protocol, mac_len, addr_len, operation, sender_mac, sender, _, target = (
        MESSAGE.unpack_from(buf, off)
    )
    if (
        hardware != _HARDWARE_ETHERNET
        or protocol != ethernet.ETH_P_IP
        or mac_len != 6
        or addr_len != 4
    ):
        return None
    return operation, sender_mac, sender, target


def frame(
    dst_mac: bytes,
    src_mac: bytes,
    operation: int,
    sender_mac: bytes,
    sender: bytes,
    target_mac: bytes,
    target: bytes,
) -> bytes:
    """A complete Ethernet frame, padded to 60 bytes; addresses are 4 bytes, MACs 6."""
    message = MESSAGE.pack(
        _HARDWARE_ETHERNET,
        ethernet.ETH_P_IP,
        6,
        4,
        operation,
        sender_mac,
        sender,
        target_mac,
        target,
    )
    return ethernet.frame(dst_mac, src_mac, ethernet.ETH_P_ARP, message)
