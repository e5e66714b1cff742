"""The guest's side of the tap device, frame by frame, without a kernel in between.

pasta is started without ``--config-net``, so that the tap in its namespace has no address; the kit
brings it up with IPv6 disabled, and the kernel there has nothing to say on it. A packet socket then
*is* the guest: what is sent through it enters pasta as frames from the guest, and every frame pasta
sends is recorded with its time of arrival.

pasta may send superframes and leave checksums to the receiver; packet(7)'s ``PACKET_VNET_HDR``
tells so, and offload.py turns them into what a wire would have carried. Lengths and checksums of
all frames are verified when the guest is closed: no test needs to do it, and every test does.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from . import offload
from .netns import wait_for
from .pasta import DEFAULT_MAC, Pasta
from .topology import HOST

SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33

__all__ = ["ARP", "ICMP", "IP", "TCP", "UDP", "Ether", "Frame", "IPv6", "Packet", "RawGuest"]


class Frame:
    """A frame from pasta: its *raw* bytes, *time* of arrival (monotonic s), dissected *packet*."""

    def __init__(self, raw: bytes, when: float) -> None:
        self.raw = raw
        self.time = when
        self._packet: Packet | None = None

    @property
    def packet(self) -> Packet:
        """The frame as scapy sees it."""
        if self._packet is None:
            self._packet = Ether(self.raw)
        return self._packet

    def __repr__(self) -> str:
        return f"<Frame {self.packet.summary()}>"


class RawGuest:
    """The guest of *pasta*, which must have been started with ``config_net=False``.

    Its addresses are those pasta assigns, the host's: ``address[4]``, ``address[6]``, and
    ``link_local``, made from the tap's MAC address.
    """

    def __init__(self, pasta: Pasta) -> None:
        self.pasta = pasta
        self.frames: list[Frame] = []
        self.faults: list[str] = []
        self._arrived = threading.Condition()
        ns = pasta.ns_as_root
        self.interface = pasta.interface()
        disable = f"net/ipv6/conf/{self.interface}/disable_ipv6"
        ns.sysctl(disable, 1)
        ns.ip(f"link set dev {self.interface} mtu 65520 txqueuelen 10000 up\n")
        self.socket = ns.new_socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.bind((self.interface, ETH_P_ALL))
        self.mac = ":".join(f"{byte:02x}" for byte in self.socket.getsockname()[4])
        self.address = dict(HOST)
        self.link_local = link_local(self.mac)
        self.socket.settimeout(0.05)
        self._stop = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop receiving. AssertionError if any frame had wrong lengths or checksums."""
        self._stop = True
        self._thread.join()
        self.socket.close()
        assert not self.faults, self.faults[:10]

    def _receive(self) -> None:
        size = offload.HEADER.size
        while not self._stop:
            try:
                data = self.socket.recv(1 << 17)
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno == errno.ENETDOWN:
                    continue
                raise
            now = time.monotonic()
            try:
                frames = offload.finish(data[:size], data[size:])
            except (ValueError, IndexError) as error:
                self.faults.append(f"{error}: {data[:64].hex()}")
                continue
            with self._arrived:
                for raw in frames:
                    if fault := offload.verify(raw):
                        self.faults.append(f"{fault}: {Ether(raw).summary()}")
                    self.frames.append(Frame(raw, now))
                self._arrived.notify_all()

    # -- sending ---------------------------------------------------------------------------------

    def send(self, *packets: Packet | bytes) -> None:
        """Send whole frames (bytes, Ether), or IP packets, which get Ethernet addresses."""
        for packet in packets:
            self.socket.send(offload.NO_HEADER + self.frame(packet))

    def frame(self, packet: Packet | bytes) -> bytes:
        """Return *packet* as the bytes of a frame, from our address to pasta's."""
        if isinstance(packet, bytes):
            return packet
        if not isinstance(packet, Ether):
            packet = Ether(src=self.mac, dst=DEFAULT_MAC) / packet
        return bytes(packet)

    def ip(self, version: int, target: str, **fields: object) -> Packet:
        """Return the IP header of a packet from the guest to *target*."""
        layer = IP if version == 4 else IPv6
        return layer(**{"src": self.address[version], "dst": target, **fields})

    # -- receiving -------------------------------------------------------------------------------

    def position(self) -> int:
        """Return the number of frames received so far, for *since*."""
        return len(self.frames)

    def matching(self, predicate: Callable[[Packet], object], since: int = 0) -> list[Frame]:
        """Return the frames received after *since* whose packet satisfies *predicate*."""
        return [frame for frame in self.frames[since:] if predicate(frame.packet)]

    def expect(
        self,
        predicate: Callable[[Packet], object],
        timeout: float = 3.0,
        since: int = 0,
        count: int = 1,
    ) -> list[Frame]:
        """Return frames that satisfy *predicate*, as soon as there are *count*."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while True:
                found = self.matching(predicate, since)
                if len(found) >= count:
                    return found
                if not self._arrived.wait(deadline - time.monotonic()):
                    seen = [frame.packet.summary() for frame in self.frames[since:][:20]]
                    raise AssertionError(
                        f"{len(found)} of {count} frames in {timeout:g} s; seen: {seen}"
                    )

    def expect_none(
        self, predicate: Callable[[Packet], object], timeout: float = 0.3, since: int = 0
    ) -> None:
        """AssertionError if a frame that satisfies *predicate* arrives within *timeout*."""
        time.sleep(timeout)
        found = self.matching(predicate, since)
        assert not found, [frame.packet.summary() for frame in found]

    def ready(self) -> None:
        """Wait until pasta answers an ARP request: it reads frames, and it knows our address."""

        def asked() -> bool:
            since = self.position()
            request = ARP(hwsrc=self.mac, psrc=self.address[4], pdst="198.51.100.77")
            self.send(Ether(src=self.mac, dst="ff:ff:ff:ff:ff:ff") / request)
            time.sleep(0.02)
            return bool(self.matching(lambda p: ARP in p and p[ARP].op == 2, since))

        wait_for(asked, what="answer to ARP")


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address with the modified EUI-64 (RFC 4291) of *mac*."""
    first, *rest = (int(part, 16) for part in mac.split(":"))
    eui = bytes([first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]])
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + eui)
