"""A configured set of services on a recorded link, and what reads its answers."""

from __future__ import annotations

import socket
from collections.abc import Callable

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from passt.userspace.config.model import Config
from passt.userspace.flow.nat import Nat
from passt.userspace.loop import Loop
from passt.userspace.services.services import Services
from passt.userspace.stack import Stack
from passt.userspace.wire.checksum import checksum, pseudo_sum
from tests.unit.fakes import GUEST_MAC, FakeLink, config

#: As the guest's frames have it, and as scapy prints it.
MAC_TEXT = GUEST_MAC.hex(":")


def ip(text: str) -> bytes:
    """``text`` packed."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class Rig:
    """Everything between a link and the services; there are no translators."""

    def __init__(self, tweak: Callable[[Config], None] | None = None) -> None:
        self.config = config()
        if tweak is not None:
            tweak(self.config)
        self.time = 1000.0
        self.loop = Loop(lambda: self.time)
        self.link = FakeLink()
        self.nat = Nat(self.config)
        self.services = Services(self.config, self.nat, self.link, self.loop)
        self.stack = Stack(self.config, self.nat, self.link, None, None, None, self.services)

    def close(self) -> None:
        """Close the loop's descriptor."""
        self.loop._epoll.close()

    def advance(self, seconds: float) -> None:
        """Let time pass, and timers expire."""
        self.time += seconds
        self.loop.round(0.0)

    def send(self, frame: Packet | bytes) -> list[bytes]:
        """The complete frames of the answers to a frame from the guest."""
        raw = bytes(frame)
        buf = memoryview(bytearray(10) + raw + bytes(70))
        self.stack.receive(buf, 10, 10 + len(raw))
        self.stack.batch_end()
        answers = [sent for _, sent in self.link.sent]
        self.link.sent.clear()
        return answers

    def ask(self, frame: Packet | bytes) -> Packet | None:
        """The answer to a frame, checked for what is common to all, or ``None``."""
        answers = self.send(frame)
        assert len(answers) <= 1
        return dissect(answers[0]) if answers else None

    def dhcp(self, *options: object, src: str = "0.0.0.0", **fields: object) -> Packet | None:
        """The answer to a DHCP message of these options and header fields."""
        return self.ask(dhcp_frame(*options, src=src, **fields))


def dhcp_frame(
    *options: object, src: str = "0.0.0.0", dst: str = "255.255.255.255", **fields: object
) -> Packet:
    """A frame with a DHCP message, with a transaction id and the guest's MAC in it."""
    fields = {"xid": 0x12345678, "chaddr": GUEST_MAC, "secs": 7, **fields}
    return (
        Ether(src=MAC_TEXT, dst="ff:ff:ff:ff:ff:ff")
        / IP(src=src, dst=dst)
        / UDP(sport=68, dport=67)
        / BOOTP(**fields)
        / DHCP(options=[*options, "end"])
    )


def dissect(raw: bytes) -> Packet:
    """A frame as scapy sees it; AssertionError if a length or checksum is wrong."""
    assert len(raw) >= 60
    frame = Ether(raw)
    assert (frame.dst, frame.src) == (MAC_TEXT, "9a:55:9a:55:9a:55")
    if IP in frame:
        packet = frame[IP]
        assert checksum(raw[14:34]) == 0
        assert (packet.ttl, packet.flags, packet.id, packet.tos) == (255, "DF", 0, 0)
        l4 = raw[34 : 14 + packet.len]
        assert packet.len >= 28 and len(raw) == max(60, 14 + packet.len)
        pseudo = pseudo_sum(raw[26:30], raw[30:34], packet.proto, len(l4))
        assert checksum(l4, pseudo) == 0
    elif IPv6 in frame:
        packet = frame[IPv6]
        assert (packet.hlim, packet.tc) == (255, 0)
        assert len(raw) == 54 + packet.plen
        pseudo = pseudo_sum(raw[22:38], raw[38:54], packet.nh, packet.plen)
        assert checksum(raw[54:], pseudo) == 0
    return frame
