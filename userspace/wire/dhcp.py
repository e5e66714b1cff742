"""DHCP and BOOTP messages (RFC 2131, RFC 951, RFC 1533): what a client asks, what it is told.

::

     0  op, htype, hlen, hops     28  client hardware address (16 bytes)
     4  transaction id            44  server name (64), boot file (128)
     8  seconds, flags           236  magic cookie
    12  ciaddr, yiaddr,          240  options: code, length, value;
        siaddr, giaddr                code 0 is padding, code 255 the end

Server name and boot file are never used, for options neither (option 52).  Hardware type,
address and cookie are not checked but repeated in the answer.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SERVER_PORT = 67
CLIENT_PORT = 68

#: op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr.
_FIXED = struct.Struct("!BBBB4sHH4s4s4s4s16s")
_COOKIE_OFFSET = 236
OPTIONS_OFFSET = 240

_BOOTREQUEST = 1
_BOOTREPLY = 2

#: Flag of clients that cannot receive unicast before they have an address.
BROADCAST_FLAG = 0x8000

PAD = 0
MASK = 1
ROUTER = 3
RESOLVERS = 6
HOST_NAME = 12
MTU = 26
REQUESTED_ADDRESS = 50
LEASE_TIME = 51
MESSAGE_TYPE = 53
SERVER_ID = 54
REQUESTED = 55
RAPID_COMMIT = 80
CLIENT_FQDN = 81
SEARCH_LIST = 119
ROUTES = 121
END = 255

#: Values of MESSAGE_TYPE.
DISCOVER = 1
OFFER = 2
REQUEST = 3
ACK = 5
NAK = 6

#: Most bytes of an option's value.
MAX_VALUE = 255

#: Option area of a message: what BOOTP clients expect at least (RFC 1542, 2.1), and what every
#: client takes, a packet of 576 bytes (RFC 2131, 2).
MIN_AREA = 60
MAX_AREA = 308


class Request:
    """A client's message, with the last value of each option that it holds."""

    __slots__ = ("chaddr", "ciaddr", "cookie", "flags", "giaddr", "hlen", "htype", "options", "xid")

    def __init__(
        self,
        htype: int,
        hlen: int,
        xid: bytes,
        flags: int,
        ciaddr: bytes,
        giaddr: bytes,
        chaddr: bytes,
        cookie: bytes,
        options: dict[int, bytes],
    ) -> None:
        self.htype = htype
        self.hlen = hlen
        self.xid = xid
        self.flags = flags
        self.ciaddr = ciaddr
        self.giaddr = giaddr
        self.chaddr = chaddr
        self.cookie = cookie
        self.options = options


def parse(buf: Octets, off: int, end: int) -> Request | None:
    """The request that ``buf[off:end]`` is, ``None`` if it is malformed or no request."""
    if end - off < OPTIONS_OFFSET or buf[off] != _BOOTREQUEST:
        return None
    options = _parse_options(buf, off + OPTIONS_OFFSET, end)
    if options is None:
        return None
    _, htype, hlen, _, xid, _, flags, ciaddr, _, _, giaddr, chaddr = _FIXED.unpack_from(buf, off)
    cookie = bytes(buf[off + _COOKIE_OFFSET : off + OPTIONS_OFFSET])
    return Request(htype, hlen, xid, flags, ciaddr, giaddr, chaddr, cookie, options)


def _parse_options(buf: Octets, at: int, end: int) -> dict[int, bytes] | None:
    """The options in ``buf[at:end]``; ``None`` if one of them does not fit in there."""
    options: dict[int, bytes] = {}
    while at < end:
        code = buf[at]
        if code == PAD:
            at += 1
            continue
        if code == END:
            break
        if at + 2 > end:
            return None
        start = at + 2
        at = start + buf[at + 1]
        if at > end:
            return None
        options[code] = bytes(buf[start:at])
    return options


def reply(request: Request, yiaddr: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    """The answer to ``request`` that assigns ``yiaddr``, with ``options`` in their order.

    An option that does not fit any more is left out, later ones may still fit.
    """
    fixed = _FIXED.pack(
        _BOOTREPLY,
        request.htype,
        request.hlen,
        0,
        request.xid,
        0,
        request.flags,
        request.ciaddr,
        yiaddr,
        bytes(4),
        request.giaddr,
        request.chaddr,
    )
    area = bytearray()
    for code, value in options:
        if len(area) + 2 + len(value) < MAX_AREA:
            area += bytes((code, len(value)))
            area += value
    area.append(END)
    blank = bytes(_COOKIE_OFFSET - len(fixed))
    return b"".join((fixed, blank, request.cookie, bytes(area).ljust(MIN_AREA, b"\0")))
