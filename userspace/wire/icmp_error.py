"""ICMP errors about packets of the guest (RFC 792, RFC 4443, RFC 1812 4.3.2.3).

The host's kernel received the error and hands over type, code, and MTU, plus the datagram's
payload as far as it was quoted.  What the guest gets is built anew, since addresses, and
perhaps ports, were translated: the quoted headers show the datagram *as the guest sent it*.

======================  ===========================  ======================================
Quoted                  IPv4                         IPv6
======================  ===========================  ======================================
IP header               id 0, DF, TTL 255            hop limit 255, a flow label
its length field        28 + quoted payload          8 + quoted payload
UDP length              8 + quoted payload           8 + quoted payload
UDP checksum            0 (absent)                   valid for the quote
payload                 up to 8 bytes (RFC 792)      up to 1184: the error is at most 1280
                                                     bytes long (RFC 4443, 2.4c)
======================  ===========================  ======================================

The second word of the ICMP header is zero except for the next-hop MTU of *fragmentation
needed* (low half) and *packet too big*; the kernel does not tell the pointer of parameter
problems.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets, icmp, ipv4, ipv6, tcp, udp
from passt.userspace.wire.checksum import pseudo_sum

#: Type, code, checksum, the rest of the header.
_HEADER = struct.Struct("!BBHI")

#: Quoted payload: the 64 bits of RFC 792, less the UDP header, were too few for some.
MAX_QUOTE4 = 8

#: What fits into the minimum MTU with two IPv6 headers, one of ICMPv6 and one of UDP.
MAX_QUOTE6 = 1280 - 2 * ipv6.HEADER_LEN - icmp.HEADER_LEN - udp.HEADER_LEN


def udp_error4(
    dst_mac: bytes,
    src_mac: bytes,
    offender: bytes,
    guest: tuple[bytes, int],
    peer: tuple[bytes, int],
    kind: int,
    code: int,
    mtu: int,
    payload: Octets,
) -> bytes:
    """The frame of an ICMP error from ``offender`` about a datagram from ``guest`` to ``peer``.

    Endpoints are (address, port) as the guest knows them.  ``kind`` and ``code`` are copied;
    ``mtu`` (bytes) is used for *fragmentation needed* only.  ``payload`` is as much of the
    datagram as is known; its first 8 bytes are quoted.
    """
    quote = payload[:MAX_QUOTE4]
    needs_mtu = kind == icmp.UNREACHABLE and code == icmp.FRAGMENTATION_NEEDED
    message = bytearray(_HEADER.pack(kind, code, 0, mtu & 0xFFFF if needs_mtu else 0))
    message += ipv4.header(guest[0], peer[0], ipv4.IPPROTO_UDP, udp.HEADER_LEN + len(quote))
    message += udp.header(guest[1], peer[1], quote)
    message += quote
    return icmp.frame4(dst_mac, src_mac, offender, guest[0], message)


def udp_error6(
    dst_mac: bytes,
    src_mac: bytes,
    offender: bytes,
    guest: tuple[bytes, int],
    peer: tuple[bytes, int],
    kind: int,
    code: int,
    mtu: int,
    payload: Octets,
    label: int = 0,
) -> bytes:
    """The frame of an ICMPv6 error, as :func:`udp_error4`.

    ``mtu`` is used for *packet too big* only.  At most 1184 bytes of ``payload`` are quoted,
    under the flow label ``label``.
    """
    quote = payload[:MAX_QUOTE6]
    message = bytearray(
        _HEADER.pack(kind, code, 0, mtu & 0xFFFFFFFF if kind == icmp.PACKET_TOO_BIG6 else 0)
    )
    length = udp.HEADER_LEN + len(quote)
    message += ipv6.header(guest[0], peer[0], ipv6.IPPROTO_UDP, length, label)
    pseudo = pseudo_sum(guest[0], peer[0], ipv6.IPPROTO_UDP, 0)
    message += udp.header(guest[1], peer[1], quote, pseudo)
    message += quote
    return icmp.frame6(dst_mac, src_mac, offender, guest[0], message)


def syn_error4(
    dst_mac: bytes,
    src_mac: bytes,
    offender: bytes,
    guest: tuple[bytes, int],
    peer: tuple[bytes, int],
    kind: int,
    code: int,
    seq: int,
) -> bytes:
    """The frame of an ICMP error from ``offender`` about a SYN with sequence number ``seq``.

    Otherwise as :func:`udp_error4`.
    """
    message = bytearray(_HEADER.pack(kind, code, 0, 0))
    message += ipv4.header(guest[0], peer[0], tcp.IPPROTO_TCP, tcp.HEADER_LEN)
    message += _syn(guest[1], peer[1], seq)
    return icmp.frame4(dst_mac, src_mac, offender, guest[0], message)


def syn_error6(
    dst_mac: bytes,
    src_mac: bytes,
    offender: bytes,
    guest: tuple[bytes, int],
    peer: tuple[bytes, int],
    kind: int,
    code: int,
    seq: int,
) -> bytes:
    """The frame of an ICMPv6 error, as :func:`syn_error4`."""
    message = bytearray(_HEADER.pack(kind, code, 0, 0))
    message += ipv6.header(guest[0], peer[0], tcp.IPPROTO_TCP, tcp.HEADER_LEN)
    message += _syn(guest[1], peer[1], seq)
    return icmp.frame6(dst_mac, src_mac, offender, guest[0], message)


def _syn(sport: int, dport: int, seq: int) -> bytes:
    """The fixed header of a SYN."""
    return tcp.HEADER.pack(sport, dport, seq, 0, tcp.HEADER_LEN << 2, tcp.SYN, 0, 0, 0)
