"""What can happen to a :class:`~tests.fuzz.world.World`, as operations of a program.

Every method of :class:`Run` that :data:`OPERATIONS` lists takes the operand of a step.  An
operand that is too short does nothing.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Any

from passt.userspace.flow.nat import V4_MAPPED
from passt.userspace.flow.rules import HOST, SPLICE, Rule
from passt.userspace.icmp.flow import EchoFlow
from passt.userspace.multicast.members import Member
from passt.userspace.tcp.flow import TcpFlow
from passt.userspace.udp.flow import UdpFlow
from passt.userspace.udp.spliced import SplicedFlow
from tests.fuzz.confined import FAULT_NAMES, FAULTS, LOOPBACK, Confined, abandon
from tests.fuzz.frames import fix_lengths, segment
from tests.fuzz.standins import MAX_SENT
from tests.fuzz.world import MASK, World
from tests.unit.fakes import ip_frame

#: Sequence numbers are around the right one by so much.
DELTAS = (0, 0, 0, 1, -1, 5, -5, 1460, -1460, 65536, 1 << 24, 1 << 31)


class Run:
    """One program and its world."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Datagrams that arrived at the sinks: sink, content, source.
        self.arrived: list[tuple[socket.socket, bytes, Any]] = []
        self.clients: list[socket.socket] = []
        self.listeners: list[socket.socket] = []

    def close(self) -> None:
        """Close what the program opened."""
        udp = self.world.udp
        for side in (udp._host, udp._namespace) if udp is not None else ():
            for listeners in list(side.listeners.values()):
                for listener in list(listeners):
                    udp.detach_listener(listener)
        for sock in self.clients:
            sock.close()

    # Operations: methods with the operand as argument.

    def frame(self, operand: bytes) -> None:
        """A frame as it is."""
        self.world.feed(operand)

    def fixed(self, operand: bytes) -> None:
        """A frame whose lengths are corrected."""
        out = bytearray(operand)
        fix_lengths(out)
        self.world.feed(bytes(out))

    def superframe(self, operand: bytes) -> None:
        """The size of its pieces, and a frame whose lengths are corrected."""
        out = bytearray(operand[2:])
        fix_lengths(out)
        self.world.feed(bytes(out), int.from_bytes(operand[:2], "big"))

    def end(self, _operand: bytes) -> None:
        """The batch is over; everybody does what there is to do."""
        self.world.settle()
        self.arrived = (self.arrived + self.world.net.received())[-64:]

    def peer(self, operand: bytes) -> None:
        """The far end of a TCP connection sends, reads, shuts, closes, or resets."""
        peers = [peer for some in self.world.peers.values() for peer in some]
        peers = [peer for peer in peers if peer.sock.fileno() >= 0]
        if not peers or len(operand) < 4:
            return
        peer = peers[operand[0] % len(peers)]
        amount = int.from_bytes(operand[2:4], "big")
        sock = peer.sock
        action = operand[1] % 6
        try:
            if action == 0 and peer.sent < MAX_SENT:
                peer.sent += sock.send(peer.stream(peer.sent, amount))
            elif action == 1:
                peer.got += sock.recv(amount + 1)
            elif action == 2:
                sock.shutdown(socket.SHUT_WR)
            elif action == 3:
                sock.close()
            elif action == 4:
                abandon(sock)
            elif action == 5 and peer.sent < MAX_SENT:
                peer.sent += sock.send(peer.stream(peer.sent, 1), socket.MSG_OOB)
        except OSError:
            pass

    def answer(self, operand: bytes) -> None:
        """Somebody answers one of the datagrams that arrived."""
        if not self.arrived or not operand:
            return
        sink, content, source = self.arrived[operand[0] % len(self.arrived)]
        if source[1] in self.world.net.mute:
            return
        answer = operand[1:]
        if content[:1] in (b"\x08", b"\x80") and len(answer) % 2:
            # A ping socket gets a reply, if not always the right one.
            answer = bytes((0 if content[0] == 8 else 129,)) + content[1:] + answer
        try:
            sink.sendto(answer, source)
        except OSError:
            pass

    def clock(self, operand: bytes) -> None:
        """Time passes: a mantissa and an exponent."""
        if len(operand) >= 2:
            seconds = (operand[0] + 1) * 10.0 ** (operand[1] % 6 - 4)
            self.world.advance(min(seconds, 8000.0))

    def fault(self, operand: bytes) -> None:
        """Calls fail: which, after how many, how, and how often."""
        if len(operand) < 4:
            return
        name = FAULT_NAMES[operand[0] % len(FAULT_NAMES)]
        numbers = (*FAULTS[name], -1)
        queue = self.world.net.faults.setdefault(name, deque())
        queue.clear()
        queue.extend([0] * (operand[1] % 8))
        queue.extend([numbers[operand[2] % len(numbers)]] * (operand[3] % 4 + 1))

    def refuse(self, operand: bytes) -> None:
        """From here on nobody listens, or somebody does again."""
        self.world.net.refuse = bool(operand[:1] and operand[0] & 1)

    def call(self, operand: bytes) -> None:
        """A host connects to a forwarded port, from any address."""
        world = self.world
        if world.tcp is None or len(operand) < 19 or world.table.count > 20:
            return
        v4 = operand[0] & 1
        family = socket.AF_INET if v4 else socket.AF_INET6
        world.meet()
        with world.net.calm():
            sock = Confined(world.net, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex((LOOPBACK[family], 1))
        far = world.net.accept()
        source = operand[1:5] if v4 else operand[1:17]
        if source.startswith(V4_MAPPED):
            # Whoever accepts has seen to that.
            source = source[12:]
        rule = Rule(socket.IPPROTO_TCP, 8000, 8000, 80)
        before = set(map(id, world.tcp_flows()))
        port = int.from_bytes(operand[17:19], "big")
        if not world.tcp.accepted(sock, (source, port), rule, 8000):
            sock.close()
        made = [flow for flow in world.tcp_flows() if id(flow) not in before]
        for other in far:
            if made:
                world.introduce(made[0].key, other)
            else:
                abandon(other)

    def send(self, operand: bytes) -> None:
        """A host sends a datagram to a forwarded port: which of four clients, and content.

        Where there is a namespace, clients 4 to 7 are in there.
        """
        udp, net = self.world.udp, self.world.net
        if udp is None or not operand:
            return
        if not self.listeners:
            with net.calm():
                self._listen()
        which = operand[0] % len(self.clients)
        sock = self.clients[which]
        target = self.listeners[which // 2].getsockname()
        net.open_ports |= {sock.getsockname()[1], target[1]}
        try:
            sock.sendto(operand[1:], target)
        except OSError:
            pass

    def _listen(self) -> None:
        """Open a forwarded port of either version, and clients that will use it."""
        udp = self.world.udp
        assert udp is not None
        families = (socket.AF_INET, socket.AF_INET6)
        pifs = (HOST, SPLICE) if self.world.splices else (HOST,)
        for pif, family in ((pif, family) for pif in pifs for family in families):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.bind((LOOPBACK[family], 0))
            port = sock.getsockname()[1]
            self.listeners.append(sock)
            udp.attach_listener(sock, Rule(socket.IPPROTO_UDP, port, port, 53), port, pif)
            for _ in range(2):
                client = socket.socket(family, socket.SOCK_DGRAM)
                client.bind((LOOPBACK[family], 0))
                client.setblocking(False)
                self.clients.append(client)

    def tell(self, operand: bytes) -> None:
        """Somebody sends to a group that the guest listens to."""
        members = [flow for flow in self.world.table.flows() if isinstance(flow, Member)]
        if not members or not operand:
            return
        member = members[operand[0] % len(members)]
        sink = self.world.net.datagrams[member.sock.family]
        try:
            sink.sendto(operand[1:], socket.socket.getsockname(member.sock))
        except OSError:
            pass

    def renew(self, operand: bytes) -> None:
        """The host's network is another one."""
        if operand:
            self.world.renew(operand[0])

    def link(self, operand: bytes) -> None:
        """The link takes frames, or does not."""
        self.world.link.accept = not (operand[:1] and operand[0] & 1)

    def segment(self, operand: bytes) -> None:
        """A TCP segment that is more or less plausible on one of the connections."""
        flows = self.world.tcp_flows()
        if not flows or len(operand) < 8:
            return
        which, flags, seq, ack, window, options = struct.unpack_from("!BBBBHH", operand)
        flow = flows[which % len(flows)]
        size = (options & 7) * 4
        l4 = segment(
            flow.guest_port,
            flow.our_port,
            (flow.rcv_nxt + DELTAS[seq % len(DELTAS)]) & MASK,
            (flow.snd_nxt + DELTAS[ack % len(DELTAS)]) & MASK,
            flags,
            operand[8 + size :],
            window=window,
            options=operand[8 : 8 + size].ljust(size, b"\1"),
        )
        self.world.feed(ip_frame(flow.guest_addr, flow.our_addr, socket.IPPROTO_TCP, l4))

    def events(self, operand: bytes) -> None:
        """A flow is told of events that there may or may not be."""
        flows = self.world.table.flows()
        if not flows or len(operand) < 2:
            return
        flow = flows[operand[0] % len(flows)]
        # IN, PRI, OUT, ERR, HUP and RDHUP.
        mask = operand[1] & 0x1F | (0x2000 if operand[1] & 0x20 else 0)
        if isinstance(flow, TcpFlow):
            flow.on_event(mask)
        elif isinstance(flow, (UdpFlow, EchoFlow, Member)):
            flow.ready(mask)
        elif isinstance(flow, SplicedFlow):
            half = flow.near if operand[1] & 0x40 else flow.far
            if half is not None:
                half.ready(mask)


OPERATIONS = (
    Run.frame,
    Run.fixed,
    Run.superframe,
    Run.end,
    Run.peer,
    Run.answer,
    Run.clock,
    Run.fault,
    Run.refuse,
    Run.call,
    Run.send,
    Run.link,
    Run.segment,
    Run.events,
    Run.tell,
    Run.renew,
)

#: By name of the method, for those who write programs.
NUMBERS = {operation.__name__: number for number, operation in enumerate(OPERATIONS)}


def execute(world: World, steps: list[tuple[int, bytes]]) -> None:
    """Carry out the steps of a program in ``world``, and settle."""
    run = Run(world)
    try:
        for operation, operand in steps:
            OPERATIONS[operation](run, operand)
        world.settle()
    finally:
        run.close()
