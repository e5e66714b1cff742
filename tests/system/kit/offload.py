"""What a network card does on transmission: segmentation (TSO, USO) and checksums.

A program behind a tap device may hand over superframes with a virtio-net header that says how to
cut them, and with checksums only begun. Tests look at frames as they would be on a real wire, so
what is read with such a header is finished here first: whatever pasta wrote into header or frame
must lead to correct frames.

Layout of ``struct virtio_net_hdr`` (virtio 1.2, 5.1.6; little endian, 10 bytes): flags, gso type,
header length, gso size, checksum start, checksum offset. Segmentation follows the Linux kernel:
all segments but the last carry *gso size* bytes; IPv4 identification increases; of the TCP flags,
FIN and PSH stay on the last one, CWR on the first.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<BBHHHH")
NO_HEADER = bytes(HEADER.size)
F_NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
GSO_ECN = 0x80

IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17


def ones_sum(data: bytes, start: int = 0) -> int:
    """Return the folded one's complement sum of *data*, as 16-bit big-endian words."""
    if len(data) % 2:
        data += b"\0"
    total: int = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes, start: int = 0) -> int:
    """Return the Internet checksum (RFC 1071) of *data*."""
    return 0xFFFF - ones_sum(data, start)


def pseudo_header(packet: bytes, protocol: int, length: int) -> bytes:
    """Return the pseudo-header (RFC 9293, RFC 8200) for *length* bytes of L4 in *packet*."""
    if packet[0] >> 4 == 4:
        return packet[12:20] + struct.pack("!BBH", 0, protocol, length)
    return packet[8:40] + struct.pack("!IHBB", length, 0, 0, protocol)


def finish(header: bytes, frame: bytes) -> list[bytes]:
    """Return the Ethernet frames that *frame*, read with virtio-net *header*, stands for."""
    flags, kind, _, size, start, offset = HEADER.unpack(header)
    kind &= ~GSO_ECN
    if kind == GSO_NONE:
        if flags & F_NEEDS_CSUM:
            begun = frame[start:]
            value = checksum(begun) or (0xFFFF if offset == 6 else 0)
            where = start + offset
            frame = frame[:where] + struct.pack("!H", value) + frame[where + 2 :]
        return [frame]
    if not flags & F_NEEDS_CSUM:
        raise ValueError("superframe without checksum offload")
    return segment(frame, start, size, UDP if kind == GSO_UDP_L4 else TCP)


def segment(frame: bytes, l4: int, size: int, protocol: int) -> list[bytes]:
    """Cut *frame*, whose L4 header is at *l4*, into segments of *size* bytes of payload."""
    l4_length = 8 if protocol == UDP else (frame[l4 + 12] >> 4) * 4
    payload = frame[l4 + l4_length :]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    result = []
    for index, piece in enumerate(pieces):
        packet = bytearray(frame[14:l4])
        head = bytearray(frame[l4 : l4 + l4_length])
        total = l4_length + len(piece)
        if packet[0] >> 4 == 4:
            identification = struct.unpack_from("!H", packet, 4)[0]
            struct.pack_into("!HH", packet, 2, len(packet) + total, identification + index)
            packet[10:12] = b"\0\0"
            struct.pack_into("!H", packet, 10, checksum(bytes(packet)))
        else:
            struct.pack_into("!H", packet, 4, len(packet) - 40 + total)
        where = 6 if protocol == UDP else 16
        if protocol == UDP:
            struct.pack_into("!H", head, 4, total)
        else:
            sequence = struct.unpack_from("!I", head, 4)[0]
            struct.pack_into("!I", head, 4, (sequence + index * size) & 0xFFFFFFFF)
            if index < len(pieces) - 1:
                head[13] &= ~0x09 & 0xFF
            if index:
                head[13] &= ~0x80 & 0xFF
        head[where : where + 2] = b"\0\0"
        l4_bytes = bytes(head) + piece
        value = checksum(pseudo_header(bytes(packet), protocol, total) + l4_bytes)
        struct.pack_into("!H", head, where, value or (0xFFFF if protocol == UDP else 0))
        result.append(frame[:14] + bytes(packet) + bytes(head) + piece)
    return result


def verify(frame: bytes) -> str:
    """Return what is wrong with lengths and checksums of an IP *frame*, "" if nothing is.

    Padding behind the packet is allowed. A UDP checksum of 0 is right for IPv4, wrong for IPv6.
    """
    kind = struct.unpack_from("!H", frame, 12)[0]
    packet = frame[14:]
    if kind == IPV4:
        length = (packet[0] & 15) * 4
        total = struct.unpack_from("!H", packet, 2)[0]
        if total > len(packet) or length < 20 or length > total:
            return f"IPv4 lengths {length}, {total} in {len(packet)} bytes"
        if ones_sum(packet[:length]) != 0xFFFF:
            return "IPv4 header checksum"
        protocol = packet[9]
        l4 = packet[length:total]
    elif kind == IPV6:
        total = 40 + struct.unpack_from("!H", packet, 4)[0]
        if total > len(packet):
            return f"IPv6 length {total} in {len(packet)} bytes"
        protocol = packet[6]
        l4 = packet[40:total]
    else:
        return ""
    if protocol == UDP:
        if struct.unpack_from("!H", l4, 4)[0] != len(l4):
            return "UDP length"
        if l4[6:8] == b"\0\0":
            return "" if kind == IPV4 else "UDP checksum 0 with IPv6"
    if protocol == 1:
        return "" if ones_sum(l4) == 0xFFFF else "ICMP checksum"
    if protocol not in (TCP, UDP, 58):
        return ""
    right = ones_sum(pseudo_header(packet, protocol, len(l4)) + l4) == 0xFFFF
    return "" if right else f"checksum of protocol {protocol}"
