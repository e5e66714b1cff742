"""Frames that a guest might send, and ways to spoil them."""

from __future__ import annotations

import struct
from random import Random

from passt.userspace.wire.tcp_options import sack_option, syn_options
from tests.fuzz.mutate import havoc
from tests.fuzz.oracle import fold, ones_sum
from tests.unit import fakes
from tests.unit.fakes import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_MAC, OUR_MAC, ip_frame

FAR4 = bytes((198, 51, 100, 7))
FAR6 = bytes.fromhex("20010db8000000070000000000000007")
GUEST_LL = bytes.fromhex("fe80000000000000505400fffe00aa01")
GROUP6 = bytes.fromhex("ff020000000000000000000000000001")

#: Addresses and numbers that the product treats in some way of their own.
ADDRESSES4 = (
    GUEST4, GATEWAY4, FAR4, bytes(4), b"\xff" * 4, b"\x7f\0\0\1", b"\xe0\0\0\1", b"\xc0\0\2\xff",
)  # fmt: skip
ADDRESSES6 = (
    GUEST6, GATEWAY6, FAR6, GUEST_LL, fakes.OUR_LL, bytes(16), bytes(15) + b"\1", GROUP6,
    bytes(10) + b"\xff\xff\x7f\0\0\1", bytes(10) + b"\xff\xff" + FAR4,
)  # fmt: skip

DICTIONARY = (
    *ADDRESSES4,
    *ADDRESSES6,
    b"\x08\x00",
    b"\x08\x06",
    b"\x86\xdd",
    b"\x45\x00",
    b"\x60\x00\x00\x00",
    syn_options(1460, 7, True),
    bytes((0, 0, 0, 0, 0, 0, 0, 0)),
    bytes((44, 0, 0, 1, 0, 0, 0, 0)),
)

_TCP = struct.Struct("!HHIIBBHHH")


def segment(
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    payload: bytes = b"",
    *,
    window: int = 0x4000,
    options: bytes = b"",
    urgent: int = 0,
) -> bytes:
    """A TCP segment without checksum, as a kernel leaves it to the device."""
    size = 20 + len(options)
    header = _TCP.pack(sport, dport, seq, ack, size << 2, flags, window, 0, urgent)
    return header + options + payload


def arp(operation: int, sender: bytes, target: bytes, mac: bytes = GUEST_MAC) -> bytes:
    """An ARP message in a frame."""
    head = b"\xff" * 6 + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + mac + sender + bytes(6) + target


def neighbour(kind: int, src: bytes, target: bytes) -> bytes:
    """A message of Neighbour Discovery in a frame."""
    message = struct.pack("!BBHI", kind, 0, 0, 0)
    if kind >= 135:
        message += target
    return ip_frame(src, GROUP6, 58, message + b"\1\1" + GUEST_MAC, 255)


def dhcp(options: bytes, flags: int = 0) -> bytes:
    """A DHCP message in a frame."""
    fixed = struct.pack("!BBBB4sHH", 1, 1, 6, 0, b"xid0", 0, flags) + bytes(16)
    message = (fixed + GUEST_MAC).ljust(236, b"\0") + b"\x63\x82\x53\x63" + options
    return fakes.udp_frame(bytes(4), b"\xff" * 4, 68, 67, message)


def dhcp6_option(code: int, value: bytes) -> bytes:
    """An option of DHCPv6."""
    return struct.pack("!HH", code, len(value)) + value


def dhcp6(kind: int, *options: tuple[int, bytes]) -> bytes:
    """A DHCPv6 message in a frame."""
    message = bytes((kind,)) + b"xid" + b"".join(dhcp6_option(*option) for option in options)
    servers = bytes.fromhex("ff020000000000000000000000010002")
    return fakes.udp_frame(GUEST_LL, servers, 546, 547, message)


GROUP4 = bytes((239, 1, 2, 3))
GROUP6_FAR = bytes.fromhex("ff0500000000000000000000000000aa")


def records(*listed: tuple[int, bytes, tuple[bytes, ...]]) -> bytes:
    """The end of a report of IGMPv3 or MLDv2: how many records, and these."""
    body = struct.pack("!HH", 0, len(listed))
    for kind, group, sources in listed:
        body += struct.pack("!BBH", kind, 0, len(sources)) + group + b"".join(sources)
    return body


def igmp(kind: int, rest: bytes) -> bytes:
    """A message of IGMP in a frame: a group, or records, at its end."""
    message = bytes((kind, 0, 0, 0)) + rest
    frame = bytearray(ip_frame(GUEST4, b"\xe0\0\0\x16", 2, message, 1, b"\x94\4\0\0"))
    fix_sums(frame)
    return bytes(frame)


def mld(kind: int, rest: bytes) -> bytes:
    """A message of MLD in a frame."""
    message = bytes((kind, 0, 0, 0)) + rest
    routers = bytes.fromhex("ff020000000000000000000000000016")
    frame = bytearray(
        extended(b"\0\x3a\0\5\2\0\0\1\0", ip_frame(GUEST_LL, routers, 58, message, 1))
    )
    fix_sums(frame)
    return bytes(frame)


DUID = b"\0\3\0\1" + GUEST_MAC
OUR_DUID = struct.pack("!HHI", 1, 1, int(1.75e9) - 946684800) + OUR_MAC
_IA = b"iaid" + bytes(8)
_ADDRESS = GUEST6 + b"\xff" * 8


def extended(chain: bytes, frame: bytes) -> bytes:
    """An IPv6 ``frame`` with the extension headers ``chain``, whose first byte is the type of
    the first header."""
    l4 = chain[1:] + frame[54:]
    return frame[:18] + struct.pack("!HB", len(l4), chain[0]) + frame[21:54] + l4


def samples() -> dict[str, bytes]:
    """One frame of each kind."""
    udp6 = fakes.udp_frame(GUEST6, GATEWAY6, 5000, 53, b"question")
    syn = segment(40000, 80, 1000, 0, 2, options=syn_options(1460, 7, True))
    ack = segment(
        40000, 80, 1001, 7, 0x10, b"hello", options=b"\1\1" + sack_option([(1, 2), (5, 9)])[2:]
    )
    return {
        "arp-request": arp(1, GUEST4, GATEWAY4),
        "arp-probe": arp(1, bytes(4), GUEST4),
        "arp-announcement": arp(1, GUEST4, GUEST4),
        "arp-padded": arp(2, GUEST4, GATEWAY4).ljust(60, b"\0"),
        "solicitation": neighbour(135, GUEST6, GATEWAY6),
        "advertisement": neighbour(136, GUEST6, GUEST6),
        "router-solicitation": neighbour(133, GUEST_LL, b""),
        "echo4": fakes.echo_frame(GUEST4, GATEWAY4, 7, 1, b"data"),
        "echo6": fakes.echo_frame(GUEST6, GATEWAY6, 7, 1, b"data"),
        "unreachable4": fakes.echo_frame(GUEST4, FAR4, 0, 0, udp6[14:62], kind=3, code=3),
        "udp4": fakes.udp_frame(GUEST4, GATEWAY4, 5000, 53, b"question"),
        "udp4-empty-padded": fakes.udp_frame(GUEST4, FAR4, 68, 67, b"").ljust(60, b"\0"),
        "udp4-options": fakes.udp_frame(GUEST4, FAR4, 1, 2, b"x", options=b"\x94\4\0\0\1\1\1\0"),
        "udp4-group": fakes.udp_frame(GUEST4, b"\xef\xff\xff\xfa", 1900, 1900, b"M-SEARCH"),
        "udp6": udp6,
        "udp6-hop-by-hop": extended(b"\0\x11\0\5\2\0\0\1\0", udp6),
        "udp6-long-chain": extended(
            b"\x3c\x2b\0\1\4\0\0\0\0" + b"\x87\0\0\0\0\0\0\0" + b"\x33\0\0\0\0\0\0\0"
            + b"\x11\1\0\0" + bytes(8),
            udp6,
        ),
        "udp6-atomic-fragment": extended(b"\x2c\x11\0\0\0\0\0\0\7", udp6),
        "udp6-fragment": extended(b"\x2c\x11\0\0\1\0\0\0\7", udp6),
        "udp4-fragment": _at(fakes.udp_frame(GUEST4, FAR4, 1, 2, b"x" * 8), 20, b"\x20\0"),
        "tcp4-syn": ip_frame(GUEST4, GATEWAY4, 6, syn),
        "tcp6-syn": ip_frame(GUEST6, GATEWAY6, 6, syn),
        "tcp4-sack": ip_frame(GUEST4, GATEWAY4, 6, ack),
        "tcp4-urgent": ip_frame(
            GUEST4, GATEWAY4, 6, segment(40000, 80, 1001, 7, 0x38, b"abc", urgent=0xFFFF)
        ),
        "dhcp-discover": dhcp(b"\x35\1\1\x37\4\1\3\6\x0f\xff"),
        "dhcp-request": dhcp(b"\x35\1\3\x32\4\xc0\0\2\x0a\x50\0\xff".ljust(60, b"\0"), 0x8000),
        "bootp": dhcp(bytes(60)),
        "dhcp6-solicit": dhcp6(1, (1, DUID), (3, _IA), (6, b"\0\x17\0\x18"), (39, b"\1\1a\0")),
        "dhcp6-request": dhcp6(3, (1, DUID), (2, OUR_DUID), (3, _IA + dhcp6_option(5, _ADDRESS))),
        "dhcp6-information": dhcp6(11, (1, DUID), (8, b"\0\0")),
        "igmp-query": igmp(0x11, bytes(4)),
        "igmp1-report": igmp(0x12, GROUP4),
        "igmp2-leave": igmp(0x17, GROUP4),
        "igmp3-report": igmp(
            0x22, records((4, GROUP4, ()), (1, b"\xef\1\1\1", (FAR4, GATEWAY4)), (7, GROUP4, ()))
        ),
        "igmp3-change": igmp(0x22, records((6, GROUP4, (FAR4,)), (3, b"\xef\1\1\1", ()))),
        "mld1-report": mld(131, bytes(4) + GROUP6_FAR),
        "mld1-done": mld(132, bytes(4) + GROUP6_FAR),
        "mld2-report": mld(143, records((2, GROUP6_FAR, (FAR6,)), (5, GROUP6_FAR, (GATEWAY6,)))),
        "udp4-member": fakes.udp_frame(GUEST4, GROUP4, 5353, 5353, b"to all of us"),
        "udp6-member": fakes.udp_frame(GUEST6, GROUP6_FAR, 5000, 5353, b"to all of us"),
        "sctp": ip_frame(GUEST4, FAR4, 132, bytes(32)),
        "vlan": GUEST_MAC + OUR_MAC + b"\x81\x00\0\1" + udp6[12:],
    }  # fmt: skip


def _at(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def mutate(frame: bytes, rnd: Random) -> bytes:
    """``frame`` with something changed: a field, an address, its length, or any byte."""
    kind = rnd.randrange(8)
    if kind == 0 or len(frame) < 34:
        return havoc(frame, rnd, limit=4000, dictionary=DICTIONARY)
    out = bytearray(frame)
    v6 = out[12:14] == b"\x86\xdd"
    if kind == 1:
        # An address, of either end.
        size, start = (16, 22) if v6 else (4, 26)
        at = start + size * rnd.randrange(2)
        out[at : at + size] = rnd.choice(ADDRESSES6 if v6 else ADDRESSES4)
    elif kind == 2:
        # A byte or word of the IP header.
        at = rnd.randrange(14, 54 if v6 else 34)
        out[at : at + 1] = rnd.randbytes(1)
    elif kind == 3:
        # … of the L4 header.
        at = (54 if v6 else 34) + rnd.randrange(24)
        out[at : at + 2] = rnd.choice((b"\0\0", b"\xff\xff", rnd.randbytes(2)))
    elif kind == 4:
        out = out[: rnd.randrange(len(out))]
    elif kind == 5:
        out += rnd.randbytes(rnd.choice((1, 2, 7, 60, 1400)))
    elif kind == 6 and v6:
        chain = bytes((rnd.choice((0, 43, 44, 51, 60, 135, 59, 50)),))
        for _ in range(rnd.choice((0, 0, 1, 2, 17))):
            chain += bytes((rnd.choice((0, 43, 44, 51, 60, 139)), 0, 0, 0, 0, 0, 0, 0))
        chain += bytes((out[20], rnd.choice((0, 0, 0, 1, 255)))) + bytes(6)
        out = bytearray(extended(chain, bytes(out)))
    else:
        tail = bytes(out[34:])
        out[34:] = havoc(tail, rnd, limit=2000)
    if rnd.random() < 0.7:
        fix_lengths(out)
    return bytes(out)


def fix_sums(frame: bytearray) -> None:
    """Make the checksum of IGMP or MLD right, which are the only ones that are looked at."""
    start, total = len(frame), 0
    if len(frame) >= 42 and frame[12:14] == b"\x08\x00" and frame[23] == 2:
        start = 14 + (frame[14] & 15) * 4
    elif len(frame) >= 70 and frame[12:14] == b"\x86\xdd" and frame[20] == 0 and frame[54] == 58:
        start = 62 + frame[55] * 8
        total = ones_sum(frame[22:54]) + 58 + len(frame) - start
    if start + 8 <= len(frame):
        frame[start + 2 : start + 4] = bytes(2)
        total = fold(total + ones_sum(frame[start:]))
        frame[start + 2 : start + 4] = (~total & 0xFFFF).to_bytes(2, "big")


def fix_lengths(frame: bytearray) -> None:
    """Make the lengths in IP and UDP headers those of the frame, which may be anything."""
    fix_sums(frame)
    if len(frame) >= 34 and frame[12:14] == b"\x08\x00":
        frame[16:18] = min(len(frame) - 14, 65535).to_bytes(2, "big")
        udp = 34 if frame[14] == 0x45 and frame[23] == 17 else len(frame)
    elif len(frame) >= 54 and frame[12:14] == b"\x86\xdd":
        frame[18:20] = min(len(frame) - 54, 65535).to_bytes(2, "big")
        udp = 54 if frame[20] == 17 else len(frame)
    else:
        return
    if len(frame) >= udp + 8:
        frame[udp + 4 : udp + 6] = min(len(frame) - udp, 65535).to_bytes(2, "big")
