"""Further options of DHCP, DHCPv6 and Router Advertisements, by code: ``CODE:[TYPE:]VALUE``.

TYPE says how VALUE is put on the wire:

=============  ===========================================================================
``ip``         addresses, separated by commas, of the IP version of the protocol
``name``       domain names, separated by commas; in DHCP with compression (RFC 3397)
``str``        the bytes of the text as they are
``u8``         a number in one byte; ``u16``, ``u32``: two or four bytes, network order
``hex``        bytes in hexadecimal; colons between them may be there
=============  ===========================================================================

It can be left out for the usual codes, whose types are known here (RFC 2132 and the registries
of IANA).  An empty VALUE stands for leaving out what would be told otherwise.  Codes that
belong to the exchange itself, like message types, cannot be set.

Values of Router Advertisement options are what follows type and length; there the types
``u32``, ``ip`` and ``name`` are known to be preceded by reserved bytes or a lifetime where the
option has them (MTU, resolvers and search list: RFC 4861, RFC 8106).
"""

from __future__ import annotations

import os

from passt.syscalls import bare_socket as socket
from passt.userspace.config import values
from passt.userspace.config.errors import UsageError
from passt.userspace.wire import dhcp, names, ndp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_DHCPV6_VALUE = 1000
_MAX_RA_BODY = 255 * 8 - 2

_TYPES = ("ip", "name", "str", "u8", "u16", "u32", "hex")


def _by_code(**codes: str) -> dict[int, str]:
    """Types by code, from types with their codes: ``ip="3 6"``."""
    return {int(code): kind for kind, listed in codes.items() for code in listed.split()}


class Protocol:
    """What can be set in one protocol.

    ``option`` is the name of the command line option, ``family`` that of addresses,
    ``codes`` the usable codes, ``reserved`` those among them that cannot be set, ``types`` the
    known types by code, ``longest`` the largest value in bytes.
    """

    __slots__ = ("codes", "family", "longest", "option", "reserved", "types")

    def __init__(
        self,
        option: str,
        family: int,
        codes: range,
        reserved: frozenset[int],
        types: Mapping[int, str],
        longest: int,
    ) -> None:
        self.option = option
        self.family = family
        self.codes = codes
        self.reserved = reserved
        self.types = types
        self.longest = longest


DHCP = Protocol(
    "--dhcp-opt",
    socket.AF_INET,
    range(1, 255),
    # Requested address, overload, type, server, request list, client id, rapid commit, FQDN,
    # relay agent.
    frozenset((50, 52, 53, 54, 55, 61, 80, 81, 82)),
    _by_code(
        ip="1 3 4 5 6 7 8 9 10 11 16 21 28 32 33 41 42 44 45 48 49 65 68 69 70 71 72 73 74 75 76 "
        "85 112 138 150",
        name="119",
        str="12 14 15 17 18 40 47 62 64 66 67 86 87 100 101 113 114 252",
        u8="19 20 23 27 29 30 31 34 36 37 39 46 116",
        u16="13 22 26 117",
        u32="2 24 35 38 51 58 59 91 108",
    ),
    dhcp.MAX_VALUE,
)

DHCPV6 = Protocol(
    "--dhcpv6-opt",
    socket.AF_INET6,
    range(1, 65536),
    # Identifiers, associations, request list, relaying, authentication, status, rapid commit,
    # reconfiguration, prefixes, FQDN.
    frozenset((1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 14, 18, 19, 20, 25, 26, 39)),
    _by_code(
        ip="22 23 27 28 31 34 40",
        name="21 24 29 30 33 51 57 58 64",
        str="41 42 59 103",
        u8="7",
        u32="32 82 83",
    ),
    _MAX_DHCPV6_VALUE,
)

RA = Protocol(
    "--ra-opt",
    socket.AF_INET6,
    range(1, 256),
    # Link-layer addresses, prefix, redirected header.
    frozenset((1, 2, 3, 4)),
    _by_code(u32="5", ip="25", name="31", str="37"),
    _MAX_RA_BODY,
)


def read(protocol: Protocol, text: str) -> tuple[int, bytes | None]:
    """Read a value of the option: the code, and the bytes on the wire, or ``None`` for none."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"Invalid {protocol.option} {text}: {why}")

    number, colon, rest = text.partition(":")
    code = values.c_number(number)
    if code is None or not colon:
        raise refuse("not CODE:VALUE")
    if code not in protocol.codes:
        raise refuse(f"codes are {protocol.codes[0]} to {protocol.codes[-1]}")
    if code in protocol.reserved:
        raise refuse(f"code {code} cannot be set")
    if not rest:
        return code, None
    prefix, colon, typed = rest.partition(":")
    kind = protocol.types.get(code, "")
    if colon and prefix in _TYPES:
        kind, rest = prefix, typed
    if not kind:
        raise refuse(f"needs a type, one of {', '.join(_TYPES)}")
    value = _encode(protocol, kind, rest)
    if not value:
        raise refuse(f"not a value of type {kind}")
    if protocol is RA:
        value = _ra_body(code, kind, value)
    if len(value) > protocol.longest:
        raise refuse(f"longer than {protocol.longest} bytes")
    return code, value


def check_ra(options: Mapping[int, bytes | None]) -> None:
    """Refuse more options of Router Advertisements than leave room for the others."""
    size = sum(len(ndp.option(kind, body)) for kind, body in options.items() if body is not None)
    if size > ndp.MAX_USER_OPTIONS:
        raise UsageError(f"Options of --ra-opt are longer than {ndp.MAX_USER_OPTIONS} bytes")


def _encode(protocol: Protocol, kind: str, text: str) -> bytes | None:
    """``text`` as bytes on the wire; ``None`` or empty if it is no value of type ``kind``."""
    if kind == "str":
        return os.fsencode(text)
    if kind == "hex":
        try:
            return bytes.fromhex(text.replace(":", ""))
        except ValueError:
            return None
    if kind == "ip":
        try:
            return b"".join(socket.inet_pton(protocol.family, one) for one in text.split(","))
        except (OSError, ValueError):
            return None
    if kind == "name":
        listed = [os.fsencode(name) for name in text.split(",")]
        if any(names.encode(name) is None for name in listed):
            return None
        pack = names.compress_list if protocol is DHCP else names.encode_list
        # Rather too long than cut.
        return pack(listed, len(text) * 4)
    number = values.c_number(text)
    size = int(kind[1:]) // 8
    if number is None or number >> 8 * size:
        return None
    return number.to_bytes(size, "big")


def _ra_body(code: int, kind: str, value: bytes) -> bytes:
    """The body of a Router Advertisement option, with what precedes ``value`` in it."""
    if kind == "hex":
        return value
    if code in (ndp.RESOLVERS, ndp.SEARCH_LIST):
        return ndp.dns_body(value)
    return b"\0\0" + value if code == ndp.MTU else value
