"""``--dhcp-opt``, ``--dhcpv6-opt`` and ``--ra-opt``: the grammar of values, and names on the wire.

A second reader of the grammar says which texts are values and what bytes they stand for.  What
is accepted must be decodable by whoever gets it, and no longer than the message has room for.

Input: a byte that chooses the option, then the text.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from random import Random

from passt.userspace.config import extras
from passt.userspace.config.errors import UsageError
from passt.userspace.wire import dhcp, ndp
from tests.fuzz.mutate import havoc
from tests.fuzz.one_resolvconf import decode, valid

MAX_LEN = 1200
DICTIONARY = (b"ip:", b"name:", b"str:", b"u8:", b"u16:", b"u32:", b"hex:", b"0x", b"192.0.2.1",
              b"2001:db8::1", b"::ffff:192.0.2.1", b"example.org", b",", b":", b"119:", b"25:",
              b"31:", b"65535:", b"254:", b"4294967295")  # fmt: skip

PROTOCOLS = extras.DHCP, extras.DHCPV6, extras.RA
#: By protocol: first and last code, bytes of a value.
_BOUNDS = ((1, 254, 255), (1, 65535, 1000), (1, 255, 2038))


def one(data: bytes) -> None:
    """Read the text."""
    which = (data[0] if data else 0) % 3
    protocol = PROTOCOLS[which]
    # What a command line cannot hold is not worth a thought.
    text = os.fsdecode(data[1:].replace(b"\0", b""))
    try:
        found = extras.read(protocol, text)
    except UsageError as error:
        line = str(error)
        assert line.startswith(f"Invalid {protocol.option} {text}: ")
        found = None
    assert found == reference(which, text)
    if found is None or found[1] is None:
        return
    code, value = found
    if protocol is extras.DHCP:
        assert dhcp._parse_options(bytes((code, len(value))) + value, 0, len(value) + 2) == {
            code: value
        }
    elif protocol is extras.RA:
        option = ndp.option(code, value)
        assert option[1] * 8 == len(option)
        assert option[2 : 2 + len(value)] == value
        assert not any(option[2 + len(value) :])
        check_room(code, value)


def check_room(code: int, value: bytes) -> None:
    """Options of advertisements are refused, or leave room for the others."""
    try:
        extras.check_ra({code: value, code % 255 + 1: value, 4: None})
    except UsageError:
        assert 2 * (len(value) + 9) > ndp.MAX_USER_OPTIONS
    else:
        assert 2 * len(value) <= ndp.MAX_USER_OPTIONS


# The second reader.


def c_number(text: str) -> int | None:
    """A number as in C, of no more digits than anybody would write."""
    if len(text) > 64:
        return None
    if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
        return int(text, 16)
    if re.fullmatch(r"0[0-7]*", text):
        return int(text, 8)
    return int(text) if re.fullmatch(r"[1-9][0-9]*", text, re.ASCII) else None


def reference(which: int, text: str) -> tuple[int, bytes | None] | None:
    """The code and its value; ``None`` if ``text`` is to be refused."""
    protocol, (first, last, longest) = PROTOCOLS[which], _BOUNDS[which]
    match = re.fullmatch(r"([^:]*):(.*)", text, re.DOTALL)
    code = c_number(match[1]) if match else None
    if match is None or code is None or not first <= code <= last or code in protocol.reserved:
        return None
    rest, kind = match[2], protocol.types.get(code)
    if not rest:
        return code, None
    typed = re.fullmatch(r"(ip|name|str|u8|u16|u32|hex):(.*)", rest, re.DOTALL)
    if typed:
        kind, rest = typed[1], typed[2]
    value = encoded(which, kind, rest)
    if not value:
        return None
    if which == 2 and kind != "hex":
        value = {25: b"\0\0" + b"\xff" * 4, 31: b"\0\0" + b"\xff" * 4, 5: b"\0\0"}.get(
            code, b""
        ) + value
    return (code, value) if len(value) <= longest else None


def encoded(which: int, kind: str | None, text: str) -> bytes | None:
    """The bytes of ``text`` read as ``kind``."""
    if kind == "str":
        return os.fsencode(text)
    if kind == "hex":
        digits = text.replace(":", "")
        # White space may be between bytes, as bytes.fromhex() has it.
        if not re.fullmatch(r"(\s*[0-9a-fA-F]{2})*\s*", digits, re.ASCII):
            return None
        return bytes(int(pair, 16) for pair in re.findall(r"[0-9a-fA-F]{2}", digits))
    if kind == "ip":
        return addresses(text, 6 if which else 4)
    if kind == "name":
        listed = [os.fsencode(name) for name in text.split(",")]
        told = valid(listed)
        if len(told) < len(listed):
            return None
        # Encoded by the product, as there are many ways to compress, and decoded here.
        encode = extras.names.encode_list if which else extras.names.compress_list
        wire = encode(listed, 1 << 16)
        assert decode(wire) == told
        return wire
    if kind in ("u8", "u16", "u32"):
        size = int(kind[1:]) // 8
        number = c_number(text)
        if number is not None and number < 1 << 8 * size:
            return number.to_bytes(size, "big")
    return None


def addresses(text: str, version: int) -> bytes | None:
    """Addresses separated by commas."""
    found = b""
    for each in text.split(","):
        try:
            address = ipaddress.ip_address(each)
        except ValueError:
            return None
        if address.version != version or "%" in each:
            return None
        found += address.packed
    return found


def seeds() -> Iterator[tuple[str, bytes]]:
    """Values of each type, and mistakes."""
    texts = {
        "dhcp": ("42:192.0.2.1,192.0.2.2", "119:a.example,b.a.example,b.a.example", "0x42:boot",
                 "23:64", "26:u16:0576", "51:4294967295", "224:hex:0a:0B 0c", "66:", "53:1",
                 "3:192.0.2.1,", "224:1", "300:x", "66", "119:x..y", "12:str:" + "h" * 256),
        "dhcpv6": ("23:2001:db8::1", "24:a,b.c", "7:255", "32:600", "65535:ip:::", "3:1", "0:",
                   "59:" + "u" * 1001, "23:192.0.2.1", "23:ip:fe80::1%lo"),
        "ra": ("5:1400", "25:2001:db8::1,::1", "31:a.example", "37:https://x", "38:hex:0000",
               "3:hex:00", "255:str:" + "r" * 500, "5:hex:01"),
    }  # fmt: skip
    for which, (name, some) in enumerate(texts.items()):
        for number, text in enumerate(some):
            yield f"{name}-{number}", bytes((which,)) + text.encode()


def mutate(data: bytes, rnd: Random) -> bytes:
    """Other words, digits or bytes."""
    if rnd.random() < 0.2:
        code = str(rnd.randrange(270)).encode()
        data = bytes((rnd.randrange(3),)) + code + b":" + data[1:].partition(b":")[2]
    return havoc(data, rnd, limit=MAX_LEN, dictionary=DICTIONARY)
