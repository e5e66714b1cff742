"""The running program: a loop, a link, the translators between them and the host, the bypass.

Sockets of rules come first, in :class:`passt.userspace.forward.forwarder.Forwarder`, some of
them before identity and namespaces change; :class:`Engine` is made once the tap exists.
Afterwards nothing is opened by path.
"""

from __future__ import annotations

import resource

from passt.kernel.descriptors import count_open
from passt.kernel.nsthread import NsThread
from passt.syscalls import bare_socket as socket
from passt.syscalls.tun import TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6, set_persist
from passt.userspace import log
from passt.userspace.config.table import PASST
from passt.userspace.flow.budget import of_process
from passt.userspace.flow.nat import Nat
from passt.userspace.flow.rules import SPLICE
from passt.userspace.flow.table import MAX_FLOWS, FlowTable
from passt.userspace.icmp import Icmp
from passt.userspace.link.null import NullLink
from passt.userspace.link.tap import TapLink
from passt.userspace.loop import EPOLLIN, Loop
from passt.userspace.pcap import Pcap
from passt.userspace.services.services import Services
from passt.userspace.splice.tcp import SpliceTcp
from passt.userspace.stack import Stack
from passt.userspace.stats import Statistics
from passt.userspace.tcp.accept import Acceptors
from passt.userspace.tcp.context import Context
from passt.userspace.tcp.tcp import Tcp
from passt.userspace.udp import Udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.maps import MapSet
    from passt.kernel.netlink.worker import Tap
    from passt.userspace.config.model import Config
    from passt.userspace.forward.binding import Owner
    from passt.userspace.forward.forwarder import Forwarder
    from passt.userspace.link.base import Link
    from passt.userspace.link.guest import Guest
    from passt.userspace.multicast.translator import Multicast
    from passt.userspace.services.neighbours import Neighbours

#: Index of the loopback interface.
_LOOPBACK = 1

_USO = TUN_F_USO4 | TUN_F_USO6


def preload(config: Config) -> None:
    """Import what assembly will need for ``config``, at a time when there is a wait anyway."""
    if config.conf_path:
        import passt.userspace.control.server
    if config.splice_only:
        return
    if config.mode == PASST:
        import passt.userspace.link.guest
    if config.follow:
        import passt.userspace.following
    later = config.follow and not config.config_net
    if config.dhcp or later:
        import passt.userspace.services.dhcp
    if config.dhcpv6 or later:
        import passt.userspace.services.dhcpv6
    if config.v4.scope or config.v6.scope or config.follow:
        import passt.kernel.netlink.neighbours
        import passt.userspace.services.neighbours

        if config.multicast and config.udp:
            import passt.userspace.multicast.sockets
            import passt.userspace.multicast.translator  # noqa: F401


class Engine:
    """Everything that runs in the loop."""

    def __init__(
        self,
        config: Config,
        tap: Tap | None,
        forwarder: Forwarder,
        control: socket.socket | None,
        maps: MapSet | None = None,
        guest: socket.socket | None = None,
    ) -> None:
        """Assemble the parts; sockets of rules start to listen.

        ``tap`` is ``None`` with ``--splice-only``, and in passt mode, where ``guest`` is the socket
        to wait for the guest on, or that of its connection; ``control`` is the bound socket for
        pesto; with ``maps`` spliced connections are accelerated.
        OSError if epoll refuses, ForwardError if a socket cannot listen.
        """
        self.config = config
        self.loop = loop = Loop()
        self._pcap: Pcap | None = None
        self._tap = tap
        self.nat = nat = Nat(config)
        self.table = table = FlowTable(MAX_FLOWS, of_process(config.max_memory))
        table.limit_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0], count_open())
        #: To be started in the namespace, if there is one, after the last fork.
        self.nsthread: NsThread | None = None
        self._splice: SpliceTcp | None = None
        self._guest: Guest | None = None
        ifindex = 0 if tap is None else tap.ifindex
        if guest is None:
            self.nsthread = nsthread = NsThread()
            loop.add(nsthread.fileno(), EPOLLIN, nsthread.on_event)
            self._splice = SpliceTcp(config, nat, loop, table, nsthread, ifindex, maps)
            forwarder.use(SPLICE, nsthread)
        link = self._make_link(tap, guest)
        udp: Udp | None = None
        tcp: Tcp | None = None
        self.stack: Stack | None = None
        if isinstance(link, NullLink):
            if config.udp:
                udp = Udp(config, nat, loop, link, table, self.nsthread)
        else:
            neighbours = self._neighbours(link)
            udp = groups = self._multicast(link, ifindex)
            if udp is None and config.udp:
                udp = Udp(config, nat, loop, link, table, self.nsthread, ifindex)
            tcp = Tcp(Context(config, nat, loop, link, table)) if config.tcp else None
            icmp = Icmp(config, nat, loop, link, table) if config.icmp else None
            services = Services(config, nat, link, loop, neighbours)
            self.stack = Stack(config, nat, link, tcp, udp, icmp, services, groups)
        if config.stats_interval:
            accelerator = self._splice.accelerator if self._splice is not None else None
            statistics = Statistics(config.stats_interval, loop, link, table, accelerator)
            loop.every_round(statistics.tick)
        owners: dict[int, Owner] = {}
        if config.tcp:
            owners[socket.IPPROTO_TCP] = Acceptors(loop, tcp, self._splice)
        if udp is not None:
            owners[socket.IPPROTO_UDP] = udp
        forwarder.attach(loop, owners)
        if self._guest is not None and self.stack is not None:
            self._guest.start(self.stack.announce)
        self._control = None
        if control is not None:
            from passt.userspace.control.server import ControlServer

            self._control = ControlServer(loop, control, forwarder.tables, forwarder.replace)
            self._control.start()

    def close(self) -> None:
        """Bring the capture to disk, and tell what there is to tell."""
        accelerator = self._splice.accelerator if self._splice is not None else None
        if accelerator is not None:
            log.info("%s", accelerator.summary())
            accelerator.close()
        if self._pcap is not None:
            self._pcap.close()

    def leave_tap(self) -> None:
        """Leave the tap to its namespace, which ends with us; for when nobody is in there.

        To take it down by closing it would keep us for the 15 ms that the kernel waits until
        no processor can still be looking at it.  With the namespace it does that by itself.
        """
        if self._tap is not None:
            try:
                set_persist(self._tap.fd, True)
            except OSError as error:
                log.debug("Leaving the tap: %s", error.strerror)

    def _neighbours(self, link: Link) -> Neighbours | None:
        """The host's neighbours, as they are now, and watched; if the guest can have any."""
        v4, v6 = self.config.v4, self.config.v6
        index4, index6 = (family.ifindex if family.enabled else 0 for family in (v4, v6))
        if max(index4, index6) <= _LOOPBACK and not self.config.follow:
            return None
        from passt.kernel.netlink.neighbours import NeighbourSocket
        from passt.userspace.services.neighbours import Neighbours

        try:
            source = NeighbourSocket(index4, index6)
        except OSError as error:
            log.info("Neighbours of the host are not known: %s", error.strerror)
            return None
        neighbours = Neighbours(self.config, self.nat, link, self.loop, source)
        self.nat.mac_for = neighbours.mac_for
        neighbours.start()
        return neighbours

    def _multicast(self, link: Link, ifindex: int) -> Multicast | None:
        """The UDP translator with multicast, if that is wanted and there can be a link for it.

        ``ifindex`` is that of the link's interface in the namespace.
        """
        config = self.config
        if not (config.multicast and config.udp):
            return None
        if not (config.v4.scope or config.v6.scope or config.follow):
            return None
        from passt.userspace.multicast.sockets import places
        from passt.userspace.multicast.translator import Multicast

        surroundings = config, self.nat, self.loop, link, self.table
        return Multicast(*surroundings, self.nsthread, ifindex, places(config))

    def _make_link(self, tap: Tap | None, guest: socket.socket | None) -> Link:
        """What carries frames, and the capture of them."""
        link: Link
        if guest is not None:
            from passt.userspace.link.guest import Guest

            self._guest = Guest(self.loop, guest, one_off=self.config.one_off)
            link = self._guest.link
        elif tap is not None:
            link = self._tap_link(tap)
        else:
            return NullLink()
        if self.config.pcap_path:
            self._capture(self.config.pcap_path, link)
        return link

    def _tap_link(self, tap: Tap) -> TapLink:
        """The link over the tap device, read by the loop."""
        offloads = tap.offloads
        link = TapLink(
            tap.fd,
            self.loop,
            vnet_hdr=tap.vnet_header,
            gso_tcp4=bool(offloads & TUN_F_TSO4),
            gso_tcp6=bool(offloads & TUN_F_TSO6),
            gso_udp=offloads & _USO == _USO,
            on_dead=self._link_died,
        )
        link.guest_mac = tap.mac
        self.loop.add(tap.fd, EPOLLIN, link.on_event)
        return link

    def _capture(self, path: str, link: Link) -> None:
        """Record all frames in the file ``path``; failing to open it is not fatal."""

        def ended(why: str) -> None:
            log.err(why)
            # Frames need not be copied any more.
            link.capture = None

        try:
            self._pcap = pcap = Pcap.open(path, ended, self.config.pcap_size)
        except OSError as error:
            log.err(f"Couldn't open pcap file {path}: {error.strerror}")
            return
        link.capture = pcap.frame
        self.loop.every_round(pcap.flush)

    def _link_died(self, why: str) -> None:
        log.err(why)
        self.loop.stop(1)
