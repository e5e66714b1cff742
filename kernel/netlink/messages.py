"""Composing rtnetlink messages with pyroute2.

Theory of operation
-------------------
`import pyroute2` runs the whole package: 165 ms on the development machine, most of it for event
loops and protocols that nobody here uses.  The message classes in its subpackages are
independent of that, and importing only them takes a tenth.  So, if the package is not loaded
yet, an empty stand-in with its search path takes its place while the submodules load; it goes
away right after, so that anybody may import the real one later.  Should that ever fail, with
another layout of the package, the plain import is used.

The link message is declared here on pyroute2's base class: the package's own pulls in plug-ins
for every kind of link, which doubles the time.

Bodies returned are without netlink header, ready for `route_socket`.

Source: rtnetlink(7); https://docs.pyroute2.org/netlink.html.
"""

from __future__ import annotations

import sys
from types import ModuleType

from passt.kernel.netlink import uapi
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_PACKAGE = "pyroute2"
_NLMSG_HEADER_SIZE = 16
# What pyroute2's message classes import of the standard library, as far as it takes long.
_STEPS = ("typing", "traceback", "logging")


class _Codec:
    """The message classes in use."""

    __slots__ = ("address", "link", "route")

    def __init__(self) -> None:
        from pyroute2.netlink import nlmsg
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        class LinkMessage(nlmsg):  # type: ignore[misc]
            fields = (
                ("family", "B"),
                ("__align", "x"),
                ("ifi_type", "H"),
                ("index", "i"),
                ("flags", "I"),
                ("change", "I"),
            )
            nla_map = (
                (uapi.IFLA_ADDRESS, "IFLA_ADDRESS", "l2addr"),
                (uapi.IFLA_MTU, "IFLA_MTU", "uint32"),
            )

        self.address = ifaddrmsg
        self.link = LinkMessage
        self.route = rtmsg


_codec: _Codec | None = None


def load() -> _Codec:
    """Import the message classes, once; ImportError if pyroute2 is not installed."""
    global _codec
    if _codec is None:
        _codec = _load_without_package() or _Codec()
    return _codec


def load_in_steps() -> Iterator[None]:
    """Do as `load` in steps of a few milliseconds, for somebody who must stay responsive."""
    for name in _STEPS:
        __import__(name)
        yield
    load()


def _load_without_package() -> _Codec | None:
    """Import with a stand-in for the package; None if the ordinary way is to be taken."""
    if _PACKAGE in sys.modules:
        return None
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return None
    stand_in = ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    stand_in.__spec__ = spec
    sys.modules[_PACKAGE] = stand_in
    try:
        return _Codec()
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.startswith(_PACKAGE + ".")]:
            del sys.modules[name]
        return None
    finally:
        del sys.modules[_PACKAGE]


def _encode(message: Any, fields: dict[str, int], attrs: list[tuple[str, Any]]) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data[_NLMSG_HEADER_SIZE:])


def link(
    index: int, flags: int = 0, change: int = 0, mtu: int | None = None, mac: bytes | None = None
) -> bytes:
    """Body for RTM_NEWLINK that sets those `flags` of interface `index` that `change` selects.

    `mtu` in bytes and `mac` (six bytes) are left alone if None.
    """
    attrs: list[tuple[str, Any]] = []
    if mtu is not None:
        attrs.append(("IFLA_MTU", mtu))
    if mac is not None:
        attrs.append(("IFLA_ADDRESS", mac.hex(":")))
    return _encode(load().link(), {"index": index, "flags": flags, "change": change}, attrs)


def address(family: int, index: int, packed: bytes, prefix_len: int) -> bytes:
    """Body for RTM_NEWADDR: one permanent address of global scope, no broadcast address.

    `packed` in network byte order.  IPv6 skips duplicate address detection.
    """
    text = socket.inet_ntop(family, packed)
    flags = uapi.IFA_F_NODAD if family == uapi.AF_INET6 else 0
    fields = {"family": family, "prefixlen": prefix_len, "flags": flags, "index": index}
    # Without IFA_LOCAL the kernel would take an IPv4 address for the peer's.
    attrs = [("IFA_LOCAL", text), ("IFA_ADDRESS", text), ("IFA_FLAGS", flags)]
    return _encode(load().address(), fields, attrs)


def default_route(family: int, index: int, gateway: bytes | None, onlink: bool) -> bytes:
    """Body for RTM_NEWROUTE: main table, protocol boot, everything through `index`.

    Without `gateway` (packed) all destinations are neighbours.  `onlink` has the kernel take a
    gateway outside every subnet.
    """
    scope = uapi.RT_SCOPE_UNIVERSE
    if gateway is None and family == uapi.AF_INET:
        scope = uapi.RT_SCOPE_LINK
    fields = {
        "family": family,
        "table": uapi.RT_TABLE_MAIN,
        "proto": uapi.RTPROT_BOOT,
        "scope": scope,
        "type": uapi.RTN_UNICAST,
        "flags": uapi.RTNH_F_ONLINK if onlink else 0,
    }
    attrs: list[tuple[str, Any]] = [("RTA_OIF", index)]
    if gateway is not None:
        attrs.append(("RTA_GATEWAY", socket.inet_ntop(family, gateway)))
    return _encode(load().route(), fields, attrs)
