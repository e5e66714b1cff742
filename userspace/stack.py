"""The layer-2 input: every frame of the guest, checked and handed to who deals with it.

::

    link ─► Stack.receive ─┬─ TCP of a known connection, no options in IP ─► its flow
                           ├─ ARP, NDP, DHCP, DHCPv6 ─► services ─► link
                           ├─ IGMP, MLD ─► multicast
                           ├─ IPv4 ─► checks ─┬─ TCP, UDP ─► translators
                           └─ IPv6 ─► checks ─┴─ ICMP, ICMPv6 echo ─► translator

The first branch is what bulk traffic takes: one unpacking of Ethernet, IP and TCP headers
at their usual offsets, and one dictionary lookup with the slice of the header that holds
both addresses and ports.  A flow was checked when it was created, so its packets need no
check but those of length.
"""

from __future__ import annotations

import struct

from passt.userspace import log
from passt.userspace.wire import drops, ipv4, ipv6
from passt.userspace.wire.ethernet import format_mac
from passt.userspace.wire.ndp import is_ndp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.icmp import Icmp
    from passt.userspace.link.base import Link
    from passt.userspace.services.services import Services
    from passt.userspace.tcp.tcp import Tcp
    from passt.userspace.udp import Udp
    from passt.userspace.udp.flow import UdpFlow

    class Translator(Protocol):
        """What takes the packets of a protocol."""

        def input(self, buf: memoryview, off: int, l4: int, end: int, version: int) -> bool:
            """Take ``buf[l4:end]`` of the frame at ``off``; true if it must stay."""

    class Groups(Protocol):
        """What takes reports of group membership."""

        def igmp(self, buf: memoryview, l4: int, end: int) -> None:
            """Take the IGMP message ``buf[l4:end]``."""

        def mld(self, buf: memoryview, ip: int, l4: int, end: int) -> bool:
            """Take the ICMPv6 message ``buf[l4:end]`` if it is of MLD; IPv6 starts at ``ip``."""

        def renew(self) -> None:
            """The configuration changed."""


_ETHERNET = 14
_ARP = 0x0806
_IPV4 = 0x0800
_IPV6 = 0x86DD
_TCP = 6
_UDP = 17
_ICMP = 1
_ICMPV6 = 58
_IGMP = 2

#: Where IPv4 has the protocol.
_PROTOCOL4 = _ETHERNET + 9

_NO_MAC = bytes(6)
_SHORT = {_TCP: drops.TCP_SHORT, _UDP: drops.UDP_SHORT}

#: Ethernet source and type; IPv4 version and header length, total length, fragment,
#: protocol, addresses and ports; TCP sequence, acknowledgement, offset, flags, window.
_FAST4 = struct.Struct("!6x6sHBxH2xHxB2x12sIIBBH").unpack_from
#: Ethernet source and type; IPv6 payload length, next header, addresses and ports; TCP …
_FAST6 = struct.Struct("!6x6sHB3xHBx36sIIBBH").unpack_from
_FAST4_MIN = _ETHERNET + 40
_FAST6_MIN = _ETHERNET + 60


class Stack:
    """Connects a link to translators and services; either translator may be absent."""

    def __init__(
        self,
        config: Config,
        nat: Nat,
        link: Link,
        tcp: Tcp | None,
        udp: Udp | None,
        icmp: Icmp | None,
        services: Services,
        groups: Groups | None = None,
    ) -> None:
        self._config = config
        self._nat = nat
        self._link = link
        self._tcp = tcp
        self._udp = udp
        self._icmp = icmp
        self._services = services
        self._groups = groups
        #: By protocol number, as IPv4 and IPv6 have it.
        self._translators: dict[int, Translator] = {}
        if tcp is not None:
            self._translators[_TCP] = tcp
        if udp is not None:
            self._translators[_UDP] = udp
        if icmp is not None:
            self._translators[_ICMP] = self._translators[_ICMPV6] = icmp
        self._flows4 = tcp.ctx.flows4 if tcp and config.v4.enabled else {}
        self._flows6 = tcp.ctx.flows6 if tcp and config.v6.enabled else {}
        #: UDP flows of both versions, for packets without options or extension headers.
        self._datagrams: dict[bytes, UdpFlow] = udp.flows if udp else {}
        self._datagram = udp.datagram if udp else _no_datagram
        link.receiver = self.receive
        link.batch_end = self.batch_end

    def receive(self, buf: memoryview, off: int, end: int) -> object:
        """Handle the frame ``buf[off:end]``; true if ``buf`` must stay until the batch ends."""
        size = end - off
        if size >= _FAST4_MIN:
            (
                mac, ethertype, version, total, fragment, protocol, key, seq, ack, offset, flags,
                window,
            ) = _FAST4(buf, off)  # fmt: skip
            if mac != self._link.guest_mac:
                self._learn(mac)
            if ethertype == _IPV4:
                if version == 0x45 and protocol == _TCP and not fragment & 0xBFFF:
                    flow = self._flows4.get(key)
                    if flow is not None:
                        l4 = off + 34
                        start = l4 + (offset >> 4 << 2)
                        stop = off + _ETHERNET + total
                        if l4 + 20 <= start <= stop <= end:
                            if flow.guest_addr != self._nat.observed4:
                                self._nat.observe4(flow.guest_addr)
                            flow.segment(buf, seq, ack, flags, window, l4 + 20, start, stop)
                            return False
                elif protocol == _UDP and version == 0x45 and not fragment & 0xBFFF:
                    datagrams = self._datagrams.get(key)
                    if datagrams is not None:
                        start = off + 42
                        stop = off + _ETHERNET + total
                        if start <= stop <= end:
                            if datagrams.guest_addr != self._nat.observed4:
                                self._nat.observe4(datagrams.guest_addr)
                            return self._datagram(datagrams, buf, start, stop, buf[off + 22])
                return self._input4(buf, off, end)
            if ethertype == _IPV6:
                if size >= _FAST6_MIN:
                    _, _, version, total, protocol, key, seq, ack, offset, flags, window = _FAST6(
                        buf, off
                    )
                    if protocol == _TCP and version & 0xF0 == 0x60:
                        flow = self._flows6.get(key)
                        if flow is not None:
                            l4 = off + 54
                            start = l4 + (offset >> 4 << 2)
                            if l4 + 20 <= start <= end and total == end - l4:
                                if flow.guest_addr != self._nat.observed6:
                                    self._nat.observe6(flow.guest_addr)
                                flow.segment(buf, seq, ack, flags, window, l4 + 20, start, end)
                                return False
                    elif protocol == _UDP and version & 0xF0 == 0x60:
                        datagrams = self._datagrams.get(key)
                        if datagrams is not None and total == end - off - 54:
                            if datagrams.guest_addr != self._nat.observed6:
                                self._nat.observe6(datagrams.guest_addr)
                            return self._datagram(datagrams, buf, off + 62, end, buf[off + 21])
                return self._input6(buf, off, end)
            return self._other(buf, off, end, ethertype)
        if size < _ETHERNET:
            drops.bump(drops.FRAME_SHORT)
            return False
        mac = bytes(buf[off + 6 : off + 12])
        if mac != self._link.guest_mac:
            self._learn(mac)
        ethertype = buf[off + 12] << 8 | buf[off + 13]
        if ethertype == _IPV4:
            return self._input4(buf, off, end)
        if ethertype == _IPV6:
            return self._input6(buf, off, end)
        return self._other(buf, off, end, ethertype)

    def batch_end(self) -> None:
        """Let the translators finish what the batch brought."""
        if self._tcp is not None:
            self._tcp.batch_end()
        if self._udp is not None:
            self._udp.batch_end()

    def announce(self) -> None:
        """Ask the guest for its link-layer address, once the link can carry frames."""
        self._services.announce()

    def renew(self, former4: bytes | None) -> None:
        """The configuration changed: see :meth:`Services.renew`."""
        self._services.renew(former4)
        if self._groups is not None:
            self._groups.renew()

    def _learn(self, mac: bytes) -> None:
        """The guest uses another link-layer address than before.

        No station has a group's address, none, ours, or that of a neighbour we stand for: frames
        from those were made up, or are ours on their way back from a bridge, and say nothing of
        where the guest is.
        """
        if mac[0] & 1 or mac in (_NO_MAC, self._config.our_mac) or self._services.shows(mac):
            return
        log.limited("guest-mac", log.INFO, "New guest MAC address observed: %s", format_mac(mac))
        self._link.guest_mac = mac

    def _other(self, buf: memoryview, off: int, end: int, ethertype: int) -> bool:
        if ethertype == _ARP and self._config.v4.enabled:
            self._services.arp(buf, off, end)
        else:
            drops.bump(drops.FAMILY_DISABLED if ethertype == _ARP else drops.ETHERTYPE)
        return False

    def _input4(self, buf: memoryview, off: int, end: int) -> bool:
        if not self._config.v4.enabled:
            drops.bump(drops.FAMILY_DISABLED)
            return False
        protocol, l4, l4_end, _, src, _ = ipv4.parse(buf, off + _ETHERNET, end)
        if src and src != self._nat.observed4:
            self._nat.observe4(src)
        if protocol < 0:
            if protocol == -drops.IP4_PROTOCOL and buf[off + _PROTOCOL4] == _IGMP and self._groups:
                self._groups.igmp(buf, l4, l4_end)
            else:
                self._dropped(-protocol)
            return False
        if protocol == _UDP and l4_end - l4 >= 8 and self._services.udp4(buf, l4, l4_end):
            return False
        return self._pass_on(protocol, buf, off, l4, l4_end, 4)

    def _input6(self, buf: memoryview, off: int, end: int) -> bool:
        if not self._config.v6.enabled:
            drops.bump(drops.FAMILY_DISABLED)
            return False
        protocol, l4, l4_end, _, src, dst = ipv6.parse(buf, off + _ETHERNET, end)
        if src and src != self._nat.observed6:
            self._nat.observe6(src)
        if protocol < 0:
            self._dropped(-protocol)
            return False
        if l4_end - l4 >= 8:
            if protocol == _UDP and self._services.udp6(buf, l4, l4_end, src, dst):
                return False
            if protocol == _ICMPV6:
                if is_ndp(buf[l4]):
                    self._services.ndp(buf, l4, l4_end, src)
                    return False
                if self._groups and self._groups.mld(buf, off + _ETHERNET, l4, l4_end):
                    return False
        return self._pass_on(protocol, buf, off, l4, l4_end, 6)

    def _pass_on(
        self, protocol: int, buf: memoryview, off: int, l4: int, end: int, version: int
    ) -> bool:
        """Hand the L4 packet ``buf[l4:end]`` to its translator, if it has at least 8 bytes."""
        if end - l4 < 8:
            drops.bump(_SHORT.get(protocol, drops.ICMP_SHORT))
            return False
        translator = self._translators.get(protocol)
        if translator is None:
            drops.bump(drops.PROTOCOL_DISABLED)
            return False
        return translator.input(buf, off, l4, end, version)

    def _dropped(self, reason: int) -> None:
        """Count a packet dropped for ``reason``, and say so where users expect it."""
        drops.bump(reason)
        if reason in (drops.IP4_FRAGMENT, drops.IP6_FRAGMENT):
            version = 4 if reason == drops.IP4_FRAGMENT else 6
            log.limited(
                f"fragment{version}", log.WARNING,
                "Can't process IPv%d fragments (%d dropped)", version, drops.counts[reason],
            )  # fmt: skip
        elif log.debug_on:
            log.limited(f"drop{reason}", log.DEBUG, "Dropped from guest: %s", drops.NAMES[reason])


def _no_datagram(_flow: UdpFlow, _buf: memoryview, _start: int, _end: int, _ttl: int) -> bool:
    """Stands for the UDP translator where there is none: no flow leads here."""
    return False
