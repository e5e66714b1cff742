"""Sockets of the host for multicast (ip(7), ipv6(7), RFC 3678).

**To send.**  A socket of the guest's port that is not connected: answers to what goes to a group
come from elsewhere.  So it takes whatever arrives for its port, and must not take what is meant
for others on this host.  Therefore the port is tried *without* SO_REUSEADDR first, which fails if
anybody has it who gets unicast there.  The option is set for the socket itself, so that nobody is
kept from the port later on (the kernel then gives him what arrives, as he came last).  If
somebody has the port:

* where it is also the port of the group, as 5353 is that of mDNS, the socket is bound to the
  *group*, and shares the port.  It sends from that port and from the host's address, as is
  needed there, and no unicast ever arrives at it.
* Otherwise another port serves as well.

**To receive.**  One socket for each group and port, bound to the group itself: the kernel delivers
nothing else to it.  Datagrams to groups go to *all* sockets that want them, so that nobody on
the host loses any by it.

IP_MULTICAST_ALL is off everywhere: without that, the kernel would deliver what *others* joined.
Datagrams are looped back, as programs on the host may want what the guest sends.
"""

from __future__ import annotations

import errno
import struct

from passt.kernel.sockets import open_socket
from passt.syscalls import bare_socket as socket
from passt.syscalls import sockaddr
from passt.syscalls.sockopt import (
    IP_MULTICAST_ALL,
    IPV6_MULTICAST_ALL,
    MCAST_JOIN_GROUP,
    MCAST_MSFILTER,
)
from passt.userspace.flow.nat import UNSPECIFIED4, UNSPECIFIED6
from passt.userspace.flow.sockname import is_scoped, name, packed
from passt.userspace.udp.sockets import PORT_TAKEN, flow_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.model import Config
    from passt.userspace.flow.sockname import SockName

#: Sizes of struct sockaddr_storage and of what precedes it: an interface index, aligned.
_STORAGE = 128
_START = struct.Struct("=I4x")
#: Filter mode and number of sources.
_FILTER = struct.Struct("=II")
_INCLUDE, _EXCLUDE = 1, 0

#: struct ip_mreqn: no group, no address, interface index.
_MREQN = struct.Struct("=8xi")


#: Index of the loopback interface, in every network namespace.
_LOOPBACK = 1


class Place:
    """Where multicast of one IP version is: an interface, to which sockets are bound or not."""

    __slots__ = ("_device", "_v4", "ifindex", "ifname")

    def __init__(self, v4: bool, ifindex: int, ifname: str, *, bound: bool = False) -> None:
        self._v4 = v4
        self.ifindex = ifindex
        self.ifname = ifname
        self._device = ifname if bound else ""

    def __eq__(self, other: object) -> bool:
        mine = self.ifindex, self.ifname, self._device
        return isinstance(other, Place) and mine == (other.ifindex, other.ifname, other._device)

    __hash__ = None  # type: ignore[assignment]

    def _open(self) -> socket.socket:
        """An unbound socket whose multicast is this interface's; OSError."""
        family = socket.AF_INET if self._v4 else socket.AF_INET6
        sock = open_socket(flow_spec(family, device=self._device, shared=False).plain())
        try:
            if self._v4:
                index = _MREQN.pack(self.ifindex)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, index)
                sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.ifindex)
                _ignore_others6(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def name(self, group: bytes, port: int) -> SockName:
        """``group`` and ``port`` as the socket module wants them."""
        return name(group, port, self.ifindex if is_scoped(group) else 0)

    def source(self, group: bytes, port: int) -> bytes:
        """The address that datagrams to ``group`` leave from; OSError if they cannot."""
        with socket.closing(self._open()) as sock:
            sock.connect(self.name(group, port))
            return packed(sock.getsockname())

    def sender(
        self, group: bytes, group_port: int, source: bytes, port: int, *, fixed: bool
    ) -> tuple[socket.socket, bool]:
        """A socket to send to ``group`` with, from ``port`` if possible, see the module's text.

        ``source`` is the address that datagrams leave from; it is bound to that with ``fixed``,
        else to any.  True beside it if it shares the port.  OSError if there is none.
        """
        own = source if fixed else UNSPECIFIED4 if self._v4 else UNSPECIFIED6
        refused = self._refused(source, port)
        ways = [] if refused else [(own, port)]
        if refused != errno.EACCES and port == group_port:
            ways.append((group, port))
        sock = self._open()
        try:
            for address, number in (*ways, (own, 0)):
                # A port that the kernel chooses has to be nobody else's.
                _share(sock, number != 0)
                try:
                    sock.bind(self.name(address, number))
                except OSError as error:
                    if error.errno not in PORT_TAKEN:
                        raise
                    continue
                _share(sock)
                return sock, address == group
        except OSError:
            sock.close()
            raise
        sock.close()
        raise OSError(errno.EADDRINUSE, "No port")

    def _refused(self, source: bytes, port: int) -> int:
        """Why ``port`` is not to be had by us alone, 0 if it is; OSError for other reasons.

        Asked for ``source``, so that members of groups, our own among them, do not count.
        """
        with socket.closing(self._open()) as sock:
            try:
                sock.bind(self.name(source, port))
            except OSError as error:
                if error.errno not in PORT_TAKEN:
                    raise
                return error.errno or errno.EADDRINUSE
        return 0

    def receiver(self, group: bytes, port: int) -> socket.socket:
        """A member of ``group`` that receives what is sent to ``port`` of it; OSError."""
        sock = self._open()
        try:
            _share(sock)
            sock.bind(self.name(group, port))
            sock.setsockopt(self._level, MCAST_JOIN_GROUP, self._group(group))
        except OSError:
            sock.close()
            raise
        return sock

    def restrict(
        self, sock: socket.socket, group: bytes, exclude: bool, sources: tuple[bytes, ...]
    ) -> None:
        """Have a member of ``group`` receive from these sources alone, or all others; OSError.

        The kernel takes a limited number (net.ipv4.igmp_max_msf, net.ipv6.mld_max_msf).
        """
        words = [self._group(group), _FILTER.pack(_EXCLUDE if exclude else _INCLUDE, len(sources))]
        words += [_storage(source) for source in sources]
        sock.setsockopt(self._level, MCAST_MSFILTER, b"".join(words))

    @property
    def _level(self) -> int:
        return socket.IPPROTO_IP if self._v4 else socket.IPPROTO_IPV6

    def _group(self, group: bytes) -> bytes:
        """struct group_req, which is also how struct group_filter begins."""
        return _START.pack(self.ifindex) + _storage(group)


def places(config: Config) -> dict[int, Place]:
    """Where multicast is to be, by length of addresses: the outbound interface, or the template.

    There is none of a version in which the guest is on no link of the host's.
    """
    found = {}
    for family in (config.v4, config.v6):
        if not family.enabled:
            continue
        if family.outbound_if and not family.outbound_index:
            # There is no such interface, yet.
            continue
        ifindex, ifname = family.scope, family.outbound_if or family.ifname
        if ifindex > _LOOPBACK:
            v4 = family.version == 4
            found[4 if v4 else 16] = Place(v4, ifindex, ifname, bound=bool(family.outbound_if))
    return found


def _storage(address: bytes) -> bytes:
    return sockaddr.pack(address, 0).ljust(_STORAGE, b"\0")


def _share(sock: socket.socket, shared: bool = True) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)


def _ignore_others6(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
    except OSError:
        # Linux < 4.20: what others joined arrives, too, and is told by its destination.
        pass
