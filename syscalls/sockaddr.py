"""Raw socket addresses: sockaddr_in and sockaddr_in6 as the kernel reads and writes them.

Source: ip(7), ipv6(7).  The batch calls (`passt.syscalls.mmsg`) take and give addresses in
this form; a raw address is also a good key to look flows up by.  Ports are host integers,
addresses packed bytes in network order, scopes interface indices.
"""

from __future__ import annotations

import struct

from passt.syscalls import bare_socket as socket

SOCKADDR_IN_LEN = 16
SOCKADDR_IN6_LEN = 28

# The family and the scope are native, the rest is in network order.
_FAMILY_IN = struct.pack("=H", socket.AF_INET)
_FAMILY_IN6 = struct.pack("=H", socket.AF_INET6)
_pack_in = struct.Struct("!2sH4s8x").pack
_pack_in6 = struct.Struct("!2sHI16s4s").pack
_pack_scope = struct.Struct("=I").pack
_unpack_in = struct.Struct("!2xH4s").unpack_from
_unpack_in6 = struct.Struct("!2xH4x16s").unpack_from
_unpack_scope = struct.Struct("=I").unpack_from
_NO_SCOPE = bytes(4)


def pack(address: bytes, port: int, scope: int = 0) -> bytes:
    """Make a sockaddr_in of a 4-byte address, a sockaddr_in6 of a 16-byte one.

    struct.error for a port outside 0…65535; ValueError for another length of address.
    """
    length = len(address)
    if length == 4:
        return _pack_in(_FAMILY_IN, port, address)
    if length == 16:
        return _pack_in6(_FAMILY_IN6, port, 0, address, _pack_scope(scope) if scope else _NO_SCOPE)
    raise ValueError(f"{length}-byte address")


def unpack(raw: bytes | memoryview) -> tuple[bytes, int, int]:
    """Return (packed address, port, scope) of a raw address; scope is 0 for IPv4.

    Anything that is not a whole sockaddr_in or sockaddr_in6 gives (b"", 0, 0).
    """
    family = raw[:2]
    if family == _FAMILY_IN and len(raw) >= SOCKADDR_IN_LEN:
        port, address = _unpack_in(raw)
        return address, port, 0
    if family == _FAMILY_IN6 and len(raw) >= SOCKADDR_IN6_LEN:
        port, address = _unpack_in6(raw)
        return address, port, _unpack_scope(raw, 24)[0]
    return b"", 0, 0
