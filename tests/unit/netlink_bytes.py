"""Building rtnetlink message bodies byte by byte, independently of the code under test."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

MAIN, KERNEL, BOOT, UNICAST = 254, 2, 3, 1
UNIVERSE, SITE, LINK_SCOPE = 0, 200, 253


def pack_ip(text: str) -> bytes:
    """An address of either version in network byte order."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    """One attribute holding a number."""
    return attr(kind, struct.pack("=I", value))


def hop(index: int, gateway: str | None = None, weight: int = 1, flags: int = 0) -> bytes:
    """One next hop of a multipath route."""
    nested = b"" if gateway is None else attr(5, pack_ip(gateway))
    return struct.pack("=HBBi", 8 + len(nested), flags, weight - 1, index) + nested


def route(
    dst: str = "default",
    index: int | None = None,
    gateway: str | None = None,
    *,
    family: int = socket.AF_INET,
    hops: Sequence[bytes] = (),
    table: int = MAIN,
    protocol: int = BOOT,
    scope: int = UNIVERSE,
    kind: int = UNICAST,
    flags: int = 0,
    metric: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """An RTM_NEWROUTE body."""
    length, attrs = 0, b""
    if dst != "default":
        prefix, _, digits = dst.partition("/")
        family = socket.AF_INET6 if ":" in prefix else socket.AF_INET
        length = int(digits)
        attrs += attr(1, pack_ip(prefix))
    if gateway is not None:
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        attrs += attr(5, pack_ip(gateway))
    attrs += u32(15, table)
    if metric is not None:
        attrs += u32(6, metric)
    if index is not None:
        attrs += u32(4, index)
    if hops:
        attrs += attr(9, b"".join(hops))
    header = struct.pack(
        "=BBBBBBBBI",
        family,
        length,
        0,
        0,
        table if table < 256 else 252,
        protocol,
        scope,
        kind,
        flags,
    )
    return header + attrs + extra


def address(
    local: str,
    prefix_len: int,
    *,
    index: int = 2,
    peer: str | None = None,
    scope: int = UNIVERSE,
    flags: int = 0x80,
    label: str | None = None,
    extra: bytes = b"",
) -> bytes:
    """An RTM_NEWADDR body; IPv6 without a peer has no IFA_LOCAL, as the kernel does it."""
    packed = pack_ip(local)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    attrs = attr(1, pack_ip(peer or local))
    if family == socket.AF_INET or peer is not None:
        attrs += attr(2, packed)
    if label is not None:
        attrs += attr(3, label.encode() + b"\0")
    attrs += u32(8, flags)
    header = struct.pack("=BBBBI", family, prefix_len, flags & 0xFF, scope, index)
    return header + attrs + extra


def message(kind: int, body: bytes, *, sequence: int, flags: int = 2) -> bytes:
    """A whole netlink message, padded."""
    header = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0)
    return header + body + b"\0" * (-len(body) % 4)
