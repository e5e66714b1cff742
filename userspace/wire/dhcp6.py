"""DHCPv6 messages (RFC 8415): type, transaction id, options, and options within options.

::

    1 byte type, 3 bytes transaction id, then options:  2 bytes code, 2 bytes length, value

    Client and Server Identifier (1, 2)   a DUID
    IA_NA (3)      IAID, T1, T2 (4 bytes each), options
    IA_TA (4)      IAID, options
    IAADDR (5)     address, preferred and valid lifetime, options      within the former two
    Status (13)    2 bytes code, text

Options are read until one exceeds what it is in; the rest is ignored.  Their number is bounded.
"""

from __future__ import annotations

import struct

from passt.userspace.wire import Octets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVER_PORT = 547
CLIENT_PORT = 546

SOLICIT = 1
ADVERTISE = 2
REQUEST = 3
CONFIRM = 4
RENEW = 5
REBIND = 6
REPLY = 7
INFORMATION_REQUEST = 11

CLIENT_ID = 1
SERVER_ID = 2
IA_NA = 3
IA_TA = 4
IAADDR = 5
STATUS = 13
RESOLVERS = 23
SEARCH_LIST = 24
CLIENT_FQDN = 39

SUCCESS = 0
NOT_ON_LINK = 4

#: Bit of the flags of CLIENT_FQDN (RFC 4704, 4.1): the client wants the server to update DNS,
#: and what the server sets if it overrides that.
FQDN_S = 0x01
FQDN_O = 0x02

INFINITE = 0xFFFFFFFF

#: Bytes of a DUID of type LLT over Ethernet, and the most that we take from a client.
DUID_LLT_LEN = 14
MAX_DUID = 128

#: Options of a message, nested ones included; clients send about ten.
MAX_OPTIONS = 256

_HEADER_LEN = 4
_OPTION = struct.Struct("!HH")
_DUID_LLT = struct.Struct("!HHI6s")
_ADDRESS = struct.Struct("!16sII")
#: Bytes of an IA before its options, by code.
_IA_FIXED = {IA_NA: 12, IA_TA: 4}
#: 2000-01-01 UTC in seconds of Unix time.
_DUID_EPOCH = 946684800


class Association:
    """An IA_NA or IA_TA: its code, IAID and times as received, and addresses in it."""

    __slots__ = ("addresses", "code", "fixed")

    def __init__(self, code: int, fixed: bytes, addresses: list[bytes]) -> None:
        self.code = code
        #: IAID (4 bytes), in an IA_NA followed by T1 and T2.
        self.fixed = fixed
        self.addresses = addresses


class Message:
    """A client's message.

    ``client_id`` is the DUID; ``server_id`` is ``None`` if the option is missing, and so are
    ``fqdn_flags``.
    """

    __slots__ = ("associations", "client_id", "fqdn_flags", "kind", "server_id", "xid")

    def __init__(self, kind: int, xid: bytes, client_id: bytes) -> None:
        self.kind = kind
        self.xid = xid
        self.client_id = client_id
        self.server_id: bytes | None = None
        self.associations: list[Association] = []
        self.fqdn_flags: int | None = None

    @property
    def non_temporary(self) -> Association | None:
        """The first IA_NA."""
        return next((ia for ia in self.associations if ia.code == IA_NA), None)


def parse(buf: Octets, off: int, end: int) -> Message | None:
    """The message ``buf[off:end]``; ``None`` if it is malformed or does not say who sent it.

    Of identifiers and FQDN the first counts.
    """
    if end - off < _HEADER_LEN:
        return None
    message = Message(buf[off], bytes(buf[off + 1 : off + _HEADER_LEN]), b"")
    count = 0
    for code, start, stop in _options(buf, off + _HEADER_LEN, end):
        count += 1
        if code == CLIENT_ID and not message.client_id:
            if not 0 < stop - start <= MAX_DUID:
                return None
            message.client_id = bytes(buf[start:stop])
        elif code == SERVER_ID and message.server_id is None:
            if stop - start != DUID_LLT_LEN:
                return None
            message.server_id = bytes(buf[start:stop])
        elif code in _IA_FIXED and stop - start >= _IA_FIXED[code]:
            nested = start + _IA_FIXED[code]
            addresses = []
            for inner, at, inner_stop in _options(buf, nested, stop):
                count += 1
                if count > MAX_OPTIONS:
                    return None
                if inner == IAADDR and inner_stop - at >= _ADDRESS.size:
                    addresses.append(bytes(buf[at : at + 16]))
            message.associations.append(Association(code, bytes(buf[start:nested]), addresses))
        elif code == CLIENT_FQDN and message.fqdn_flags is None and stop > start:
            message.fqdn_flags = buf[start]
        if count > MAX_OPTIONS:
            return None
    return message if message.client_id else None


def _options(buf: Octets, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """``(code, start, stop)`` of the values of the options in ``buf[at:end]``."""
    while at + _OPTION.size <= end:
        code, length = _OPTION.unpack_from(buf, at)
        start = at + _OPTION.size
        at = start + length
        if at > end:
            return
        yield code, start, at


def duid_llt(mac: bytes, now: float) -> bytes:
    """A DUID from an Ethernet address and ``now``, seconds of Unix time (RFC 8415, 11.2)."""
    return _DUID_LLT.pack(1, 1, (int(now) - _DUID_EPOCH) & 0xFFFFFFFF, mac)


def option(code: int, value: Octets) -> bytes:
    """An option; ``value`` has less than 64 KiB."""
    return _OPTION.pack(code, len(value)) + bytes(value)


def header(kind: int, xid: bytes) -> bytes:
    """The start of a message of type ``kind`` with the 3 bytes of ``xid``."""
    return bytes((kind,)) + xid


def lease(iaid: bytes, addrs: Sequence[bytes], seconds: int = INFINITE) -> bytes:
    """An IA_NA that assigns ``addrs`` for so many ``seconds``, or for ever.

    It is to be renewed at half of that, by whatever server at four fifths (RFC 8415, 21.4).
    """
    times = (seconds // 2, seconds * 4 // 5) if seconds != INFINITE else (INFINITE, INFINITE)
    fixed = iaid + struct.pack("!II", *times)
    assigned = (option(IAADDR, _ADDRESS.pack(addr, seconds, seconds)) for addr in addrs)
    return option(IA_NA, fixed + b"".join(assigned))


def status(code: int, text: bytes = b"") -> bytes:
    """A status option."""
    return option(STATUS, code.to_bytes(2, "big") + text)
