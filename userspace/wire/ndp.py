"""Neighbour Discovery messages (RFC 4861): types, layouts, options.

Only what we read from a guest (targets of solicitations) and what we say to it.  All builders
return an ICMPv6 message with checksum 0, which :func:`passt.userspace.wire.icmp.frame6` fills
in together with the headers below it.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136

ROUTER_SOLICITATION_LEN = 8
NEIGHBOUR_SOLICITATION_LEN = 24

#: Where the target starts in a neighbour message.
TARGET_OFFSET = 8

#: Bytes of options that users may add to an advertisement.
MAX_USER_OPTIONS = 512

#: Lifetime that never ends, in options.
INFINITE = 0xFFFFFFFF

#: Bytes of a PREFIX_INFORMATION option.
PREFIX_LEN = 32

_SOURCE_LINK_LAYER = 1
_TARGET_LINK_LAYER = 2
PREFIX_INFORMATION = 3
MTU = 5
RESOLVERS = 25
SEARCH_LIST = 31

#: Type, code, checksum, flags (upper 3 bits of a word), target.
_NEIGHBOUR = struct.Struct("!BBHI16s")
#: Type, code, checksum, hop limit, flags, router lifetime, reachable time, retransmit timer.
_ROUTER = struct.Struct("!BBHBBHII")
#: Type, length / 8, prefix length, flags, valid and preferred lifetime, reserved, prefix.
_PREFIX = struct.Struct("!BBBBIII16s")
_LINK_LAYER = struct.Struct("!BB6s")
#: Reserved, MTU.
_MTU_BODY = struct.Struct("!HI")
#: Reserved, lifetime; of resolvers and search lists (RFC 8106).
_DNS_BODY = struct.Struct("!HI")

#: Flags of a neighbour advertisement.
_ROUTER_FLAG = 0x80000000
_SOLICITED = 0x40000000
_OVERRIDE = 0x20000000
#: On-link, autonomous address configuration.
_PREFIX_FLAGS = 0xC0
#: Managed address configuration: addresses are available by DHCPv6.
_MANAGED = 0x80

_HOP_LIMIT = 255
#: Seconds; the largest value (RFC 8319).
_ROUTER_LIFETIME = 65535


def is_ndp(kind: int) -> bool:
    """The ICMPv6 type is a router or neighbour message: never to be forwarded."""
    return ROUTER_SOLICITATION <= kind <= NEIGHBOUR_ADVERTISEMENT


def neighbour_solicitation(target: bytes) -> bytearray:
    """A solicitation without options."""
    return bytearray(_NEIGHBOUR.pack(NEIGHBOUR_SOLICITATION, 0, 0, 0, target))


def neighbour_advertisement(target: bytes, mac: bytes, *, solicited: bool = True) -> bytearray:
    """The answer of a router at ``mac`` to a solicitation for ``target``, overriding.

    If it is not ``solicited``, then its announcement.
    """
    flags = _ROUTER_FLAG | _OVERRIDE | (_SOLICITED if solicited else 0)
    message = bytearray(_NEIGHBOUR.pack(NEIGHBOUR_ADVERTISEMENT, 0, 0, flags, target))
    message += _LINK_LAYER.pack(_TARGET_LINK_LAYER, 1, mac)
    return message


def mtu_body(mtu: int) -> bytes:
    """The body of an MTU option."""
    return _MTU_BODY.pack(0, mtu)


def dns_body(content: bytes) -> bytes:
    """The body of a RESOLVERS or SEARCH_LIST option that is valid for ever."""
    return _DNS_BODY.pack(0, INFINITE) + content


def option(kind: int, body: bytes) -> bytes:
    """An option, filled up with zeroes to a multiple of 8 bytes; ``body`` fits 255 of these."""
    units = (len(body) + 9) // 8
    return bytes((kind, units)) + body.ljust(units * 8 - 2, b"\0")


def router_advertisement(
    mac: bytes, prefixes: Iterable[bytes], options: bytes, *, ending: bool = False
) -> bytearray:
    """An advertisement of the router at ``mac``.

    ``prefixes`` are the first 8 bytes of each /64 to announce, without limit of lifetime;
    ``options`` are further ones, complete.  With ``ending`` the router and the prefixes are not
    to be used any more (RFC 4861, 6.2.5).
    """
    router_lifetime = 0 if ending else _ROUTER_LIFETIME
    lifetime = 0 if ending else INFINITE
    message = bytearray(
        _ROUTER.pack(ROUTER_ADVERTISEMENT, 0, 0, _HOP_LIMIT, _MANAGED, router_lifetime, 0, 0)
    )
    for prefix in prefixes:
        message += _PREFIX.pack(
            PREFIX_INFORMATION,
            4,
            64,
            _PREFIX_FLAGS,
            lifetime,
            lifetime,
            0,
            prefix + b"\0" * 8,
        )
    message += _LINK_LAYER.pack(_SOURCE_LINK_LAYER, 1, mac)
    message += options
    return message
