"""Which ports are listened on in a network namespace, by protocol.

The kernel is asked by netlink (:mod:`passt.kernel.sockdiag`), which is cheap, or if it does not
answer that way, the files of /proc/net are read (:mod:`passt.userspace.forward.proclist`).
Both work from anywhere by descriptors that were opened in the namespace.
"""

from __future__ import annotations

from passt.kernel.sockdiag import SPEC, SocketDiag
from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.flow.rules import IPPROTO_TCP, IPPROTO_UDP
from passt.userspace.forward.portset import portset
from passt.userspace.forward.proclist import PORT_LISTS, PortList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.forward.side import Make

#: States of sockets that anyone can talk to (net/tcp_states.h); datagram sockets that are
#: not connected are "closed".
_LISTENING = {IPPROTO_TCP: 10, IPPROTO_UDP: 7}
#: TCP sockets that are bound, and neither listen nor are connected (Linux 6.8).
_BOUND = 13

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class PortScan:
    """Looks into one namespace.

    ``fds`` are descriptors of its files, in the order of
    :data:`~passt.userspace.forward.proclist.PORT_LISTS`, ``None`` for missing ones; ``diag``
    is there if the kernel may be asked.  All are ours from here on.
    """

    __slots__ = ("_diag", "_found", "_lists")

    def __init__(self, fds: Sequence[int | None], diag: SocketDiag | None = None) -> None:
        self._diag = diag
        #: The last answers of the kernel, and the sets made of them.
        self._found: dict[tuple[int, int, int], tuple[frozenset[int], int]] = {}
        self._lists: dict[int, list[PortList]] = {IPPROTO_TCP: [], IPPROTO_UDP: []}
        for name, fd in zip(PORT_LISTS, fds, strict=True):
            if fd is not None:
                tcp = name.startswith("tcp")
                protocol = IPPROTO_TCP if tcp else IPPROTO_UDP
                self._lists[protocol].append(PortList(fd, tcp=tcp, v6=name.endswith("6")))

    def ports(self, protocol: int) -> int:
        """The set of ports listened on for ``protocol``, over either IP version.

        For UDP: ports of sockets that take datagrams from anyone.
        """
        if self._diag is not None:
            try:
                return self._ask(self._diag, protocol, _LISTENING[protocol])
            except OSError as error:
                log.debug("Listening ports by sock_diag: %s, using /proc/net", error.strerror)
                self._diag.close()
                self._diag = None
        bits = 0
        for ports in self._lists[protocol]:
            bits |= ports.ports()
        return bits

    def bound(self) -> int:
        """The set of ports that TCP sockets listen on, or are about to, where the kernel tells."""
        bits = self.ports(IPPROTO_TCP)
        if self._diag is not None:
            try:
                bits |= self._ask(self._diag, IPPROTO_TCP, _BOUND)
            except OSError as error:
                log.debug("Bound ports by sock_diag: %s", error.strerror)
        return bits

    def close(self) -> None:
        """Close everything."""
        if self._diag is not None:
            self._diag.close()
        for lists in self._lists.values():
            for ports in lists:
                ports.close()

    def _ask(self, diag: SocketDiag, protocol: int, state: int) -> int:
        bits = 0
        for family in _FAMILIES:
            ports = diag.ports(family, protocol, state)
            last = self._found.get((family, protocol, state))
            if last is None or last[0] is not ports:
                last = self._found[family, protocol, state] = ports, portset(ports)
            bits |= last[1]
        return bits


def scan_of(fds: Sequence[int | None], make: Make) -> PortScan:
    """Looks where the files ``fds`` are of, and where ``make`` makes sockets."""
    sock = make([SPEC])[0]
    try:
        return PortScan(fds, None if isinstance(sock, OSError) else SocketDiag(sock))
    except OSError:
        return PortScan(fds)
