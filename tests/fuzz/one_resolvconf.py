"""resolv.conf: a file that users and programs write as they like.

What is taken from it goes to the guest, so addresses must be some, and names must be fit to be
encoded or left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from passt.userspace.config.resolvconf import MAX_SEARCH, parse
from passt.userspace.wire import names

MAX_LEN = 2000
DICTIONARY = (b"nameserver ", b"search ", b"domain ", b"\n", b"\t", b"#", b" ;", b"127.0.0.53",
              b"fe80::1%eth0", b"::ffff:192.0.2.1", b"example.org", b"0.0.0.0")  # fmt: skip


def one(data: bytes) -> None:
    """Read the file."""
    found = parse(data)
    assert len(found.nameservers) <= data.count(b"nameserver")
    for addr in found.nameservers:
        assert len(addr) in (4, 16)
        assert any(addr), "the resolver that is nobody"
        assert not addr.startswith(bytes(10) + b"\xff\xff"), "IPv4 in disguise"
    assert len(found.search) <= MAX_SEARCH
    for name in found.search:
        assert name
        assert not re.search(r"[ \t\n]", name)
    wire = [os.fsencode(name) for name in found.search]
    for encoded, limit in (
        (names.encode_list(wire, 255), 255),
        (names.compress_list(wire, 99), 99),
    ):
        assert len(encoded) <= limit
    told = valid(wire)
    assert decode(names.encode_list(wire, 1 << 16)) == told
    assert decode(names.compress_list(wire, 1 << 14)) == told
    some = decode(names.compress_list(wire, 99))
    assert some == told[: len(some)]


def valid(wire: list[bytes]) -> list[bytes]:
    """The names that are names, without a dot at the end."""
    found = []
    for name in wire:
        name = name.removesuffix(b".")
        parts = name.split(b".")
        if all(0 < len(part) < 64 for part in parts) and len(name) + 2 <= 255:
            found.append(name)
    return found


def decode(wire: bytes) -> list[bytes]:
    """The names in a list, pointers followed (RFC 1035, 4.1.4)."""
    found, at = [], 0
    while at < len(wire):
        parts, at = _name(wire, at)
        found.append(b".".join(parts))
    return found


def _name(wire: bytes, at: int) -> tuple[list[bytes], int]:
    parts: list[bytes] = []
    end = -1
    while wire[at]:
        if wire[at] >= 0xC0:
            target = (wire[at] & 0x3F) << 8 | wire[at + 1]
            assert target < at, "a pointer that does not lead back"
            end = at + 2 if end < 0 else end
            at = target
            continue
        parts.append(wire[at + 1 : at + 1 + wire[at]])
        at += 1 + wire[at]
    return parts, at + 1 if end < 0 else end


def seeds() -> Iterator[tuple[str, bytes]]:
    """Files as they are found."""
    yield "usual", b"# made by hand\nsearch example.org lan\nnameserver 127.0.0.53\noptions edns0\n"
    yield "both", b"nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n"
    yield "odd", b" nameserver 192.0.2.1\nnameserver\t::ffff:192.0.2.2 ; no\nnameserver 0.0.0.0\n"
    yield "suffixes", b"search a.b.example.org b.example.org example.org. org ..x " + b"y" * 64
    yield "nothing", b""
