"""TCP connections that bypass the link: which they are, and where they go.

A connection that a local process makes to a forwarded port need not become segments: we
accept it on one side, connect to the target on the other, and move bytes between the two
sockets (:mod:`passt.userspace.splice.flow`).  The kernel has completed the client's
handshake before we can know whether somebody listens; if nobody does, the client is reset.

============  ==================================  =====================================
accepted on   if                                  connected to
============  ==================================  =====================================
the host      source is loopback, the rule has    the guest's address, as observed; with
              no target, not ``--no-splice``      ``--host-lo-to-ns-lo`` the loopback
                                                  address that the client used
namespace     source and destination are          the same loopback address on the host,
              loopback                            or the rule's target
============  ==================================  =====================================

The port is the rule's, the source is the choice of the kernel on the far side.

Source: pasta(1), "Handling of local traffic in pasta".
"""

from __future__ import annotations

import errno
import os

from passt.kernel.sockets import open_socket
from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.flow.accept import local_name
from passt.userspace.flow.nat import is_link_local, is_loopback
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.flow.sockname import name
from passt.userspace.splice.flow import SplicedTcp, Splicing
from passt.userspace.splice.pipes import PipePool
from passt.userspace.splice.pool import SocketPool, tcp_spec
from passt.userspace.tcp.accept import refuse, refuse_without_rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.maps import MapSet
    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.rules import Rule
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.loop import Loop
    from passt.userspace.splice.accel import Accelerator
    from passt.userspace.splice.pool import SocketMaker

#: First byte of struct tcp_info: the state (tcp(7), linux/tcp.h, net/tcp_states.h).
_ESTABLISHED = b"\1"

#: Groups of flows in the flow table, by pif.
_GROUPS = {
    HOST: "spliced TCP connections to the namespace",
    SPLICE: "spliced TCP connections of the namespace",
}


class SpliceTcp:
    """Takes accepted connections, and connects them to the other side."""

    __slots__ = ("_config", "_host_specs", "_nat", "_ns_ifindex", "_pools", "_shared", "_table")

    def __init__(
        self,
        config: Config,
        nat: Nat,
        loop: Loop,
        table: FlowTable,
        maker: SocketMaker,
        ns_ifindex: int = 0,
        maps: MapSet | None = None,
    ) -> None:
        """``maker`` makes sockets in the namespace; ``ns_ifindex`` is the link's index there.

        With ``maps`` connections are accelerated.

        The sockets to begin with are ordered at once, and arrive by way of the loop.
        """
        self._config = config
        self._nat = nat
        self._ns_ifindex = ns_ifindex
        self._table = table
        self._shared = Splicing(loop, table, PipePool())
        if maps is not None:
            from passt.userspace.splice import accel

            self._shared.accelerator = accel.Accelerator(
                loop, maps, config.accel_credit, config.accel_budget
            )
        #: By length of the target address: how to make sockets here, stocks of those there.
        specs = {4: tcp_spec(socket.AF_INET), 16: tcp_spec(socket.AF_INET6)}
        self._host_specs = {length: spec.plain() for length, spec in specs.items()}
        self._pools = {length: SocketPool(maker, spec) for length, spec in specs.items()}
        for family in (config.v4, config.v6):
            if family.enabled:
                self._pools[4 if family.version == 4 else 16].fill()

    @property
    def accelerator(self) -> Accelerator | None:
        """Who has connections accelerated, if they are."""
        return self._shared.accelerator

    def takes(self, rule: Rule, source: bytes, pif: int) -> bool:
        """Whether a connection from ``source`` accepted for ``rule`` is for :meth:`accepted`.

        Otherwise the guest gets it by its link.
        """
        if pif == SPLICE:
            return True
        config = self._config
        return config.splice_only or (config.splice and rule.target is None and is_loopback(source))

    def accepted(
        self, sock: socket.socket, peer: tuple[bytes, int], rule: Rule, port: int, pif: int
    ) -> bool:
        """Connect ``sock`` to where ``rule`` leads from ``port``; False if the table is full.

        ``sock``, which is ours from here on, is non-blocking and has the options
        :data:`~passt.userspace.splice.pool.TCP_OPTIONS`.  It was accepted on ``pif``
        from ``peer``: packed address, IPv4 if v4-mapped, and port.
        """
        source, source_port = peer
        target = self._target(sock, source, rule, pif)
        if target is None:
            refuse_without_rule(sock, peer, pif)
            return True
        target_port = rule.to + port - rule.first
        group = _GROUPS[pif]
        if not self._table.admits(SplicedTcp, group, source):
            refuse(sock)
            return False
        try:
            server = self._server_socket(target, pif)
        except OSError as error:
            log.limited("splice-socket", log.ERR, "TCP socket for spliced connection: %s",
                        error.strerror)  # fmt: skip
            refuse(sock)
            return True
        endpoints = pif, source, source_port, target, target_port
        flow = SplicedTcp(self._shared, sock, server, endpoints)
        # The number of a socket from the stock is one of other times.
        if not self._table.add(flow, group, source, flow.client.fd):
            refuse(sock)
            server.close()
            return False
        if log.debug_on:
            log.debug("%s: new", flow)
        try:
            number = server.connect_ex(name(target, target_port, self._scope(target, pif)))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            # Local handshakes are complete, as a rule, when connect() returns.
            state = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            flow.start(connected=state == _ESTABLISHED)
        except OSError as error:
            flow.reset(error.strerror)
        return True

    def close(self) -> None:
        """Release what is held ready; connections are the loop's affair."""
        for pool in self._pools.values():
            pool.close()
        self._shared.pipes.close()

    def _target(self, sock: socket.socket, source: bytes, rule: Rule, pif: int) -> bytes | None:
        """The address to connect to, ``None`` if the connection is to be refused."""
        if not is_loopback(source):
            # Only here if nothing else may have it (--splice-only, or the namespace's own).
            return None
        if pif == SPLICE:
            local = local_name(sock)[0]
            return (rule.target or local) if is_loopback(local) else None
        if rule.target is not None:
            return None
        if self._config.host_lo_to_ns_lo:
            local = local_name(sock)[0]
            if is_loopback(local):
                return local
        nat = self._nat
        if len(source) == 4:
            return nat.observed4
        return nat.observed6 or nat.observed_ll

    def _server_socket(self, target: bytes, pif: int) -> socket.socket:
        """An unconnected socket on the side opposite to ``pif``; OSError if there is none."""
        if pif == HOST:
            return self._pools[len(target)].take()
        return open_socket(self._host_specs[len(target)])

    def _scope(self, target: bytes, pif: int) -> int:
        """Interface index for a link-local target, on the side opposite to ``pif``."""
        if not is_link_local(target):
            return 0
        return self._ns_ifindex if pif == HOST else self._nat.scope_id(target)
