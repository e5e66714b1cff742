"""How listening sockets of a rule are made: family, options, address.

A rule without address listens on both IP versions through one socket: IPv6, wildcard, with
IPV6_V6ONLY explicitly off, whatever ``net.ipv6.bindv6only`` says.  If only one version is
enabled, or the kernel turns out to have no IPv6, it is a socket of the other one.

TCP sockets are bound here, and listen when their translator takes them: connections are not
to be accepted by a kernel whose program cannot serve them yet.

Sources: socket(7), ip(7), ipv6(7), tcp(7), udp(7).
"""

from __future__ import annotations

import errno

from passt.kernel.sockets import SocketSpec, open_sockets
from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import (
    IP_FREEBIND,
    IP_PKTINFO,
    IP_RECVERR,
    IPV6_FREEBIND,
    IPV6_RECVERR,
)
from passt.userspace.flow.nat import UNSPECIFIED4, UNSPECIFIED6, is_link_local, text
from passt.userspace.flow.rules import IPPROTO_TCP
from passt.userspace.splice.pool import TCP_OPTIONS, inherits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from passt.kernel.sockets import Option
    from passt.userspace.config.model import Config
    from passt.userspace.flow.rules import Rule

    Made = list[socket.socket | OSError]

#: A dual-stack socket fails with these if there is no IPv6 here.
NO_IPV6 = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))

_REUSE = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
#: IPv4 options also concern IPv6 sockets, if datagrams arrive there over IPv4.
_UDP_OPTIONS = {
    socket.AF_INET: (
        (socket.IPPROTO_IP, IP_RECVERR, 1),
        (socket.IPPROTO_IP, IP_PKTINFO, 1),
    ),
    socket.AF_INET6: (
        (socket.IPPROTO_IP, IP_RECVERR, 1),
        (socket.IPPROTO_IPV6, IPV6_RECVERR, 1),
        (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1),
    ),
}
_FREEBIND = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_FREEBIND, 1),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_FREEBIND, 1),
}


class Plan:
    """One way to make the sockets of a rule; only the port is open."""

    __slots__ = ("_host", "_scope", "_template", "_v4")

    def __init__(
        self,
        rule: Rule,
        address: bytes,
        *,
        dual_stack: bool = False,
        scope: int = 0,
        freebind: bool = False,
    ) -> None:
        """``address`` is packed; ``scope`` an interface index, for link-local addresses."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        options: tuple[Option, ...] = (_REUSE,)
        if address == UNSPECIFIED6:
            options += ((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack)),)
        tcp = rule.protocol == IPPROTO_TCP
        if not tcp:
            options += _UDP_OPTIONS[family]
        elif inherits(rule):
            options += TCP_OPTIONS
        if freebind:
            options += (_FREEBIND[family],)
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        self._template = SocketSpec(
            family, kind | socket.SOCK_NONBLOCK, options=options, device=rule.ifname
        )
        self._v4 = family == socket.AF_INET
        self._host = text(address)
        self._scope = scope

    def spec(self, port: int) -> SocketSpec:
        """The specification of the socket for ``port``."""
        if self._v4:
            return self._template.at((self._host, port))
        return self._template.at((self._host, port, 0, self._scope))


def plans(rule: Rule, config: Config, scope: int) -> list[Plan]:
    """The ways to make sockets of ``rule``, best first; none if its IP version is disabled.

    ``scope`` is the index of the interface that link-local addresses are taken to be on,
    unless the rule names one.
    """
    address = rule.address
    freebind = config.freebind
    if address is not None:
        if not (config.v4 if len(address) == 4 else config.v6).enabled:
            return []
        if rule.ifname or not is_link_local(address):
            scope = 0
        return [Plan(rule, address, scope=scope, freebind=freebind)]
    dual_stack = config.v4.enabled and config.v6.enabled
    ways = []
    if config.v6.enabled:
        ways.append(Plan(rule, UNSPECIFIED6, dual_stack=dual_stack, freebind=freebind))
    if config.v4.enabled:
        ways.append(Plan(rule, UNSPECIFIED4, freebind=freebind))
    return ways


class Here:
    """Makes sockets in the network namespace of the caller, at once."""

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        """Make a socket for each of ``specs``, or return the error."""
        return open_sockets(spec.plain() for spec in specs)

    def request(self, specs: Sequence[SocketSpec], done: Callable[[Made], object]) -> None:
        """Make sockets and call ``done`` with them."""
        done(self.call(specs))
