"""Values of options: text in, checked and typed value out, or one line saying what is wrong.

Each reader takes the text as given and returns the value, raising
:class:`~passt.userspace.config.errors.UsageError` otherwise.  The wording of the messages is
upstream's, since managers show it to their users.  Texts are words of a command line, so
they hold no NUL, and bytes that are not UTF-8 as surrogates (:func:`os.fsdecode`).

Addresses are packed bytes in network order, 4 for IPv4 and 16 for IPv6.  An IPv4-mapped IPv6
address (``::ffff:192.0.2.1``) counts as IPv4 wherever it is accepted.

Numbers are ASCII digits without blanks or sign.  "C" numbers are also taken in hexadecimal
(``0x…``) and octal (``0…``), as strtoul(3) does with base 0.
"""

from __future__ import annotations

import os

from passt.syscalls import bare_socket as socket
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import ACCEL_EBPF, ACCEL_SPLICE, MAX_MTU, MAX_SOCKET_PATH
from passt.userspace.flow.rules import is_ifname
from passt.userspace.wire.names import labels

MAX_DESCRIPTOR = 0x7FFFFFFF

#: Longest host name in bytes (RFC 1035, 2.3.4, less length octets).
MAX_HOSTNAME = 253

#: Smallest log file: five entries of the longest kind, so that a cut always makes room.
MIN_LOG_SIZE = 5 * 8192

#: Least memory ceiling: the process itself needs about half of it.
MIN_MEMORY = 48 << 20

#: Smallest capture: the file's header and one frame of the usual size.
MIN_PCAP = 4096

#: Bytes: less would have the kernel ask all the time.
MIN_CREDIT = 1 << 16
MIN_BUDGET = 1 << 20

_SUFFIXES = {"K": 10, "M": 20, "G": 30}

_V4_MAPPED = bytes(10) + b"\xff\xff"
_V4_BROADCAST = b"\xff\xff\xff\xff"
_V6_LOOPBACK = bytes(15) + b"\x01"

_OCTAL = frozenset("01234567")
_HEX = frozenset("0123456789abcdefABCDEF")

#: More digits than any number here needs; int() itself refuses thousands of them.
_MAX_DIGITS = 64

#: UINT32_MAX stands for "no such id" in the kernel.
_NO_ID = 0xFFFFFFFF


def decimal(text: str) -> int | None:
    """Read a plain decimal number; ``None`` for anything else."""
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return None


def c_number(text: str) -> int | None:
    """Read a decimal, ``0x`` hexadecimal or ``0`` octal number; ``None`` for anything else."""
    if len(text) > _MAX_DIGITS:
        return None
    if text[:2] in ("0x", "0X"):
        digits = text[2:]
        return int(digits, 16) if digits and _HEX.issuperset(digits) else None
    if text[:1] == "0":
        return int(text, 8) if _OCTAL.issuperset(text) else None
    return decimal(text)


def mtu(text: str) -> int:
    """Read an MTU in bytes, 0 for "leave it alone"."""
    number = c_number(text)
    if number is None:
        raise UsageError(f"Invalid MTU: {text}")
    if number > MAX_MTU:
        raise UsageError(f"MTU {text} too large (max {MAX_MTU})")
    return number


def size(name: str, text: str, least: int) -> int:
    """Read a number of bytes, at least ``least``, for the option ``name``.

    A suffix K, M or G multiplies by 1024, its square or its cube.
    """
    shift = _SUFFIXES.get(text[-1:].upper(), 0)
    number = c_number(text[:-1] if shift else text)
    if number is None or number << shift >= 1 << 63:
        raise UsageError(f"Invalid {name}: {text}")
    if number << shift < least:
        raise UsageError(f"{name} {text} too small (min {least})")
    return number << shift


def max_memory(text: str) -> int:
    """Read a memory ceiling in bytes."""
    return size("--max-memory", text, MIN_MEMORY)


def accel(text: str) -> str:
    """Read a way to forward loopback connections."""
    if text not in (ACCEL_SPLICE, ACCEL_EBPF):
        raise UsageError(f"Invalid --accel: {text}")
    return text


def accel_credit(text: str) -> int:
    """Read the credit of one direction in bytes."""
    return size("--accel-credit", text, MIN_CREDIT)


def accel_budget(text: str) -> int:
    """Read the credit of all connections together in bytes."""
    return size("--accel-budget", text, MIN_BUDGET)


def pcap_size(text: str) -> int:
    """Read the largest size of a capture in bytes, 0 for "no limit"."""
    return 0 if text == "0" else size("--pcap-size", text, MIN_PCAP)


def log_size(text: str) -> int:
    """Read a log file size in bytes."""
    number = c_number(text)
    if number is None or not MIN_LOG_SIZE <= number < 1 << 63:
        raise UsageError(f"Invalid --log-size: {text}")
    return number


def stats_interval(text: str) -> int:
    """Read a number of seconds, 0 for "off"."""
    number = c_number(text)
    if number is None:
        raise UsageError(f"Invalid --stats: {text}")
    return number


def path(name: str, text: str) -> str:
    """Return the file name ``text`` if it can be one; ``name`` says which, in the message."""
    if not text:
        raise UsageError(f"Invalid {name}: {text}")
    return text


def socket_path(text: str) -> str:
    """Return the path of a socket of at most 107 bytes."""
    if not 0 < len(os.fsencode(text)) <= MAX_SOCKET_PATH:
        raise UsageError(f"Invalid socket path: {text}")
    return text


def descriptor(text: str) -> int:
    """Read the number of a descriptor."""
    number = c_number(text)
    if number is None or number > MAX_DESCRIPTOR:
        raise UsageError(f"Invalid --fd: {text}")
    return number


def netns(text: str) -> str:
    """Return the path of a network namespace: a word without ``/`` is a name in /run/netns."""
    path("--netns", text)
    return text if "/" in text else f"/run/netns/{text}"


def hostname(text: str) -> str:
    """Return a host name of at most 253 bytes; an empty one stands for none."""
    if len(os.fsencode(text)) > MAX_HOSTNAME:
        raise UsageError(f"Invalid hostname: {text}")
    return text


def fqdn(text: str) -> str:
    """Return a fully qualified domain name without a dot at its end; empty stands for none."""
    encoded = os.fsencode(text)
    if len(encoded) > MAX_HOSTNAME or (text and labels(encoded) is None):
        raise UsageError(f"Invalid FQDN: {text}")
    return text.removesuffix(".")


def ifname(text: str) -> str:
    """Return the name of an interface, which need not exist."""
    if not is_ifname(text):
        raise UsageError(f"Invalid interface name: {text}")
    return text


def existing_ifname(text: str) -> str:
    """Return the name of an interface that exists in the current network namespace."""
    try:
        socket.if_nametoindex(text)
    except (OSError, ValueError):
        raise UsageError(f"Invalid interface name {text}: No such device") from None
    return text


def mac(text: str) -> bytes:
    """Read six groups of exactly two hexadecimal digits, joined by colons; 6 bytes."""
    groups = text.split(":")
    if len(groups) != 6 or not all(len(g) == 2 and _HEX.issuperset(g) for g in groups):
        raise UsageError(f"Invalid MAC address: {text}")
    return bytes.fromhex("".join(groups))


def address(text: str) -> bytes | None:
    """Read an IPv4 or IPv6 address as inet_pton(3) does; ``None`` if it is neither.

    IPv4-mapped addresses come back as IPv6: whether they count as IPv4 is up to the option.
    """
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return None


def unmapped(addr: bytes) -> bytes:
    """Return the IPv4 address within an IPv4-mapped one, any other address as it is."""
    return addr[12:] if len(addr) == 16 and addr.startswith(_V4_MAPPED) else addr


def address_text(addr: bytes) -> str:
    """Return the usual text of a packed address."""
    return socket.inet_ntop(socket.AF_INET if len(addr) == 4 else socket.AF_INET6, addr)


def _is_unspecified(addr: bytes) -> bool:
    return not any(addr)


def _is_loopback(addr: bytes) -> bool:
    return addr[0] == 127 if len(addr) == 4 else addr == _V6_LOOPBACK


def _is_multicast(addr: bytes) -> bool:
    return addr[0] & 0xF0 == 0xE0 if len(addr) == 4 else addr[0] == 0xFF


def guest_address(text: str) -> tuple[bytes, int | None]:
    """Read ``ADDR[/LEN]``, brackets allowed around ADDR; the length is ``None`` if absent.

    The length after an IPv4-mapped address includes its 96-bit prefix.  An IPv4 length of 0
    is returned as it is; see :func:`class_prefix_len` for what it means.
    """
    host, slash, suffix = text.partition("/")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
    given = address(host)
    length = decimal(suffix)
    if given is None or (slash and length is None):
        raise UsageError(f"Invalid guest address: {text}")
    addr = unmapped(given)
    if _is_unspecified(addr) or _is_loopback(addr) or _is_multicast(addr) or addr == _V4_BROADCAST:
        raise UsageError(f"Invalid guest address: {text}")
    if length is None:
        return addr, None
    length -= 8 * (len(given) - len(addr))
    if not 0 <= length <= 8 * len(addr):
        raise UsageError(f"Invalid prefix length: {text}")
    return addr, length


def netmask(text: str) -> int:
    """Read an IPv4 prefix length, as a number (C) or as a contiguous dotted mask; 0 to 32."""
    length = c_number(text)
    if length is None and text.count(".") == 3:
        packed = address(text)
        if packed is not None and len(packed) == 4:
            mask = int.from_bytes(packed, "big")
            inverse = mask ^ 0xFFFFFFFF
            # Contiguous means that the inverse is all ones from some bit down.
            if inverse & (inverse + 1) == 0:
                length = 32 - inverse.bit_length()
    if length is None or length > 32:
        raise UsageError(f"Invalid prefix length: {text}")
    return length


def class_prefix_len(addr: bytes) -> int:
    """Return the prefix length that the class of an IPv4 address implies (RFC 790)."""
    first = addr[0]
    if first < 128:
        return 8
    if first < 192:
        return 16
    return 24 if first < 224 else 32


def gateway(text: str) -> bytes:
    """Read a router address."""
    given = address(text)
    addr = given and unmapped(given)
    if not addr or _is_unspecified(addr) or _is_loopback(addr) or addr == _V4_BROADCAST:
        raise UsageError(f"Invalid gateway address: {text}")
    return addr


def _unicast(text: str, complaint: str) -> bytes:
    """Read an address that a single host can have, even if only on its loopback interface."""
    given = address(text)
    addr = given and unmapped(given)
    if not addr or _is_unspecified(addr) or _is_multicast(addr) or addr == _V4_BROADCAST:
        raise UsageError(f"{complaint} {text}")
    return addr


def resolver(text: str) -> bytes:
    """Read the address of a resolver as the guest sees it, loopback (the guest's own) included."""
    return _unicast(text, "Cannot use DNS address")


def dns_host(text: str) -> bytes:
    """Read the address of a resolver of the host, often on its loopback interface."""
    return _unicast(text, "Invalid host nameserver address:")


def dns_forward(text: str) -> bytes:
    """Read the guest-side address that is to stand for the host's resolver."""
    addr = _unicast(text, "Invalid DNS forwarding address:")
    if _is_loopback(addr):
        raise UsageError(f"Invalid DNS forwarding address: {text}")
    return addr


def outbound(text: str) -> bytes:
    """Read a source address for outbound sockets; IPv4 loopback is fine, IPv6 is not."""
    addr = address(text)
    if (
        not addr
        or _is_unspecified(addr)
        or _is_multicast(addr)
        or addr in (_V4_BROADCAST, _V6_LOOPBACK)
        or addr.startswith(_V4_MAPPED)
        or (len(addr) == 16 and not any(addr[:12]))
    ):
        raise UsageError(f"Invalid or redundant outbound address: {text}")
    return addr


def remapped(text: str) -> bytes:
    """Read a guest-side address that is to stand for one of the host."""
    given = address(text)
    addr = given and unmapped(given)
    if (
        not addr
        or _is_unspecified(addr)
        or _is_loopback(addr)
        or _is_multicast(addr)
        or addr == _V4_BROADCAST
    ):
        raise UsageError(f"Invalid address to remap to host: {text}")
    return addr


def runas(text: str) -> tuple[int, int]:
    """Read ``UID``, ``UID:GID``, ``LOGIN`` or ``LOGIN:GROUP``; returns UID and GID.

    Numbers are C numbers.  A lone UID is also the GID, a lone login brings its primary
    group.  A login that turns out to be UID 0 is refused, a plain 0 is what it says.
    """
    user, colon, group = text.partition(":")
    uid = c_number(user)
    gid = uid
    if uid is None:
        import pwd

        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            entry = None
        if entry is None or entry.pw_uid == 0:
            raise UsageError(f"Invalid --runas option: {text}")
        uid, gid = entry.pw_uid, entry.pw_gid
    if colon:
        gid = c_number(group)
        if gid is None:
            import grp

            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                gid = None
    if gid is None or uid >= _NO_ID or gid >= _NO_ID:
        raise UsageError(f"Invalid --runas option: {text}")
    return uid, gid
