"""Bound sockets of the inbound rules, opened before privileges are dropped.

Low ports so work for whoever may use them.  TCP sockets listen only when their translator
takes them: a connection must not be accepted by a kernel whose program cannot serve it yet.

A rule without address listens on both IP versions through one socket: IPv6, wildcard, with
IPV6_V6ONLY explicitly off, whatever ``net.ipv6.bindv6only`` says.  If only one version is
enabled, or the kernel has no IPv6, it is a socket of the other one.
"""

from __future__ import annotations

import errno
import os
import socket

from passt.userspace.flow.nat import UNSPECIFIED4, UNSPECIFIED6, is_link_local, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.config.model import Config, Rule

    #: Makes an unbound, non-blocking socket of a family, bound to a device if one is named.
    NewSocket = Callable[[int, str], socket.socket]

_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE))
_PROTOCOLS = {socket.IPPROTO_TCP: "TCP", socket.IPPROTO_UDP: "UDP"}


class ListenError(Exception):
    """A socket could not be opened; the text is the message for the user."""


def open_listeners(
    config: Config, protocol: int, new_socket: NewSocket
) -> list[tuple[Rule, int, socket.socket]]:
    """One bound socket for each port of each fixed rule of ``protocol`` in ``config.rules``.

    Raises :class:`ListenError` for the first that fails, after closing the others; for rules
    that are best effort, only if all fail, or if there are no more descriptors.
    """
    opened: list[tuple[Rule, int, socket.socket]] = []
    for rule in config.rules:
        if rule.protocol != protocol or rule.auto:
            continue
        before = len(opened)
        for port in range(rule.first, rule.last + 1):
            try:
                opened.append((rule, port, _open(config, rule, port, new_socket)))
            except OSError as error:
                last = port == rule.last and len(opened) == before
                if rule.best_effort and error.errno not in _EXHAUSTED and not last:
                    continue
                for _, _, sock in opened:
                    sock.close()
                where = _where(_address(config, rule), rule.ifname)
                reason = os.strerror(error.errno or 0)
                raise ListenError(
                    f"Listen failed for HOST {_PROTOCOLS[protocol]} port {where}/{port}: {reason}"
                ) from error
    return opened


def _address(config: Config, rule: Rule) -> bytes | None:
    """Address to listen on, ``None`` for both wildcards at once."""
    if rule.address is not None:
        return rule.address
    if not config.v6.enabled:
        return UNSPECIFIED4
    if not config.v4.enabled:
        return UNSPECIFIED6
    return None


def _where(address: bytes | None, ifname: str) -> str:
    """Address and interface as messages show them."""
    return ("*" if address is None else text(address)) + (f"%{ifname}" if ifname else "")


def _open(config: Config, rule: Rule, port: int, new_socket: NewSocket) -> socket.socket:
    """One bound listening socket; OSError if a step fails."""
    address = _address(config, rule)
    if address is None:
        try:
            return _bound(new_socket, UNSPECIFIED6, port, rule.ifname, dual_stack=True)
        except OSError as error:
            # No IPv6 in the kernel (not compiled in), or none in this namespace.
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            return _bound(new_socket, UNSPECIFIED4, port, rule.ifname)
    if not (config.v4 if len(address) == 4 else config.v6).enabled:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    scope = config.v6.ifindex if is_link_local(address) else 0
    return _bound(new_socket, address, port, rule.ifname, scope=scope)


def _bound(
    new_socket: NewSocket,
    address: bytes,
    port: int,
    ifname: str,
    *,
    scope: int = 0,
    dual_stack: bool = False,
) -> socket.socket:
    """A socket on ``address`` and ``port``; OSError if a step fails."""
    sock = new_socket(socket.AF_INET if len(address) == 4 else socket.AF_INET6, ifname)
    try:
        if address == UNSPECIFIED6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        if len(address) == 4:
            sock.bind((text(address), port))
        else:
            sock.bind((text(address), port, 0, scope))
    except OSError:
        sock.close()
        raise
    return sock
