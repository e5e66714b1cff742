"""Events of the host's kernel, as far as they mean that something changed.

Much of what the kernel tells is no change: lifetimes of addresses are renewed by every router
advertisement, wireless drivers report each scan as an event of the link.  So the last state of
links and addresses is remembered, just enough to tell; whoever listens is not woken for nothing.
What an event says is not used beyond that: the change is found by reading everything anew.

A queue that overflowed is a change.  Messages that do not come from the kernel are dropped.

Source: rtnetlink(7), netlink(7) (ENOBUFS).
"""

from __future__ import annotations

import struct
from errno import ENOBUFS

from passt.kernel.netlink import uapi
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.records import (
    LINK_HEADER,
    ROUTE_FLAGS,
    ROUTE_HEADER,
    ROUTE_TABLE,
    parse_address,
    parse_link,
)
from passt.syscalls import bare_socket as socket

GROUPS = (
    uapi.RTMGRP_LINK
    | uapi.RTMGRP_IPV4_IFADDR
    | uapi.RTMGRP_IPV4_ROUTE
    | uapi.RTMGRP_IPV6_IFADDR
    | uapi.RTMGRP_IPV6_ROUTE
    | uapi.RTMGRP_IPV4_RULE
    | uapi.RTMGRP_IPV6_RULE
)
_HEADER = struct.Struct("=IHHII")
_BUFFER = 64 << 10
#: Datagrams taken per call: what is left wakes us once more.
_MOST = 256
#: Links and addresses that are remembered; beyond, everything is a change.
_REMEMBERED = 10000

_LINK_KINDS = (uapi.RTM_NEWLINK, uapi.RTM_DELLINK)
_ADDRESS_KINDS = (uapi.RTM_NEWADDR, uapi.RTM_DELADDR)
_ROUTE_KINDS = (uapi.RTM_NEWROUTE, uapi.RTM_DELROUTE)
_RULE_KINDS = (uapi.RTM_NEWRULE, uapi.RTM_DELRULE)


class Changes:
    """Tells changes from repetitions, given one message after the other."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], tuple[object, ...]] = {}

    def matters(self, kind: int, body: bytes) -> bool:
        """Whether the message says anything new; one that makes no sense might."""
        try:
            if kind in _LINK_KINDS:
                return self._link(kind, body)
            if kind in _ADDRESS_KINDS:
                return self._address(kind, body)
        except FormError:
            return True
        return kind in _RULE_KINDS or (kind in _ROUTE_KINDS and _leads_anywhere(body))

    def _link(self, kind: int, body: bytes) -> bool:
        link = parse_link(body)
        flags = LINK_HEADER.unpack_from(body)[3] & uapi.IFF_UP
        return self._news(("link", link.index), kind == uapi.RTM_NEWLINK, (link.name, flags))

    def _address(self, kind: int, body: bytes) -> bool:
        address = parse_address(body)
        key = ("address", address.index, address.local, address.prefix_len)
        return self._news(key, kind == uapi.RTM_NEWADDR, (address.flags, address.scope))

    def _news(self, key: tuple[object, ...], there: bool, state: tuple[object, ...]) -> bool:
        if not there:
            self._seen.pop(key, None)
            return True
        if self._seen.get(key) == state:
            return False
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[key] = state
        return True


def _leads_anywhere(body: bytes) -> bool:
    """Whether a route concerns us: those to the host itself do not, and cached ones come and go."""
    if len(body) < ROUTE_HEADER.size:
        return True
    cloned = ROUTE_HEADER.unpack_from(body)[ROUTE_FLAGS] & uapi.RTM_F_CLONED
    return body[ROUTE_TABLE] != uapi.RT_TABLE_LOCAL and not cloned


class Monitor:
    """A subscription in the network namespace that it was made in, wherever it is read."""

    __slots__ = ("_changes", "_socket")

    def __init__(self) -> None:
        """OSError as of socket(2) and bind(2)."""
        self._changes = Changes()
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            uapi.NETLINK_ROUTE,
        )
        self._socket.bind((0, GROUPS))
        # Nobody but the kernel can reach it then (netlink(7)).
        self._socket.connect((0, 0))

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take the events that are there; whether any of them means a change."""
        changed = False
        for _ in range(_MOST):
            try:
                datagram, sender = self._socket.recvfrom(_BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                changed = True
                continue
            if sender[0] == 0:
                for kind, body in _messages(datagram):
                    changed = self._changes.matters(kind, body) or changed
        return changed


def _messages(datagram: bytes) -> list[tuple[int, bytes]]:
    """Type and body of each whole message in a datagram."""
    found = []
    start, end = 0, len(datagram)
    while end - start >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, start)
        if length < _HEADER.size or length > end - start:
            break
        found.append((kind, datagram[start + _HEADER.size : start + length]))
        start += (length + 3) & ~3
    return found
