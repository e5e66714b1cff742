"""The running program: a loop, a link, and the translators between them and the host.

:func:`open_listeners` comes first, while low ports are to be had; :class:`Engine` is made
once the tap exists.  Afterwards nothing is opened by path.
"""

from __future__ import annotations

from passt.kernel.errors import SetupError
from passt.syscalls.tun import TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6
from passt.userspace import log, tcp, udp
from passt.userspace.flow.listen import ListenError
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.table import FlowTable
from passt.userspace.icmp import Icmp
from passt.userspace.link.tap import TapLink
from passt.userspace.loop import EPOLLIN, Loop
from passt.userspace.pcap import Pcap
from passt.userspace.stack import Stack
from passt.userspace.stats import Statistics
from passt.userspace.tcp.accept import Acceptors
from passt.userspace.tcp.context import Context
from passt.userspace.tcp.tcp import Tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from passt.kernel.netlink.worker import Tap
    from passt.userspace.config.model import Config, Rule

    Listener = tuple[Rule, int, socket.socket]

_USO = TUN_F_USO4 | TUN_F_USO6


class Listeners:
    """Bound sockets of the inbound rules, with rule and port, by protocol."""

    __slots__ = ("tcp", "udp")

    def __init__(self, tcp_sockets: list[Listener], udp_sockets: list[Listener]) -> None:
        self.tcp = tcp_sockets
        self.udp = udp_sockets


def open_listeners(config: Config) -> Listeners:
    """Bind a socket for each port of each inbound rule; SetupError for the first failure."""
    try:
        return Listeners(
            tcp.open_listeners(config) if config.tcp else [],
            udp.open_listeners(config),
        )
    except ListenError as error:
        raise SetupError(f"{error}\nCouldn't listen on requested ports") from None


class Engine:
    """Everything that runs in the loop."""

    def __init__(self, config: Config, tap: Tap, listeners: Listeners) -> None:
        """Assemble the parts; the listeners start to listen.  OSError if epoll refuses."""
        self.loop = loop = Loop()
        self._pcap: Pcap | None = None
        offloads = tap.offloads
        link = TapLink(
            tap.fd,
            vnet_hdr=tap.vnet_header,
            gso_tcp4=bool(offloads & TUN_F_TSO4),
            gso_tcp6=bool(offloads & TUN_F_TSO6),
            gso_udp=offloads & _USO == _USO,
            on_dead=self._link_died,
        )
        link.guest_mac = tap.mac
        if config.pcap_path:
            self._capture(config.pcap_path, link)
        nat = Nat(config)
        table = FlowTable()
        tcp_side = Tcp(Context(config, nat, loop, link, table)) if config.tcp else None
        udp_side = udp.Udp(config, nat, loop, link, table) if config.udp else None
        icmp_side = Icmp(config, nat, loop, link, table) if config.icmp else None
        self.nat = nat
        self.stack = Stack(config, nat, link, tcp_side, udp_side, icmp_side)
        loop.add(tap.fd, EPOLLIN, link.on_event)
        if config.stats_interval:
            statistics = Statistics(config.stats_interval, loop, link, table)
            loop.every_round(statistics.tick)
        if tcp_side is not None:
            acceptors = Acceptors(loop, tcp_side, None)
            for rule, port, sock in listeners.tcp:
                acceptors.attach_listener(sock, rule, port)
        if udp_side is not None:
            for rule, port, sock in listeners.udp:
                udp_side.attach_listener(sock, rule, port)

    def close(self) -> None:
        """Bring the capture to disk."""
        if self._pcap is not None:
            self._pcap.close()

    def _capture(self, path: str, link: TapLink) -> None:
        """Record all frames in the file ``path``; failing to open it is not fatal."""
        try:
            self._pcap = pcap = Pcap.open(path, log.err)
        except OSError as error:
            log.err(f"Couldn't open pcap file {path}: {error.strerror}")
            return
        link.capture = pcap.frame
        self.loop.every_round(pcap.flush)

    def _link_died(self, why: str) -> None:
        log.err(why)
        self.loop.stop(1)
