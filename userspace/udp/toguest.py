"""Datagrams from the host's sockets to the guest.

**Batches.**  One ``recvmmsg`` takes up to :data:`BATCH` datagrams of a socket, and with
UDP_GRO each of these may already be a train that the kernel joined (udp(7)).  Towards the
link, trains stay trains, and consecutive datagrams of equal size become one, if the link
takes UDP superframes and the guest's MTU admits the single datagrams.  Payload is gathered
from where it was received.  Anything else goes as one frame per datagram, of whatever size:
a tap device takes frames larger than the MTU, and the guest's stack does, too.

**Order.**  Datagrams of one client may reach three queues: the listening socket's until its
flow has a socket, that of *another* flow's socket in the moment between bind() and connect(),
and in the end its own.  Therefore a listening socket that brought a new client is read on
until it is empty; new sockets are drained at the end of the round, datagram by datagram as
listening sockets are, since they may hold anybody's; and only from then on a flow's socket
is trusted to bring nothing but datagrams of that flow.

Bounds: a listening socket is served for at most :data:`LISTEN_BATCHES` batches per event.
"""

from __future__ import annotations

from errno import EAGAIN

from passt.syscalls.cmsg import gro_size, pktinfo, space
from passt.syscalls.mmsg import RecvBatch
from passt.syscalls.sockaddr import unpack
from passt.userspace.flow.nat import unmap
from passt.userspace.link.base import MIN_FRAME
from passt.userspace.loop import EPOLLERR, EPOLLIN
from passt.userspace.udp.errors import UdpErrors
from passt.userspace.udp.flow import PORTS, split
from passt.userspace.udp.frames import HEADERS4, MAX_PAYLOAD4, Headers
from passt.userspace.udp.output import MAX_SEGMENTS
from passt.userspace.udp.sockets import set_pktinfo
from passt.userspace.wire import ipv4, ipv6, udp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.model import Config
    from passt.userspace.flow.nat import Nat
    from passt.userspace.flow.table import FlowTable
    from passt.userspace.link.base import Link
    from passt.userspace.loop import Loop
    from passt.userspace.udp.flow import UdpFlow
    from passt.userspace.udp.side import Listener, Receiver, Side

#: Datagrams (or trains joined by the kernel) per system call and event.
BATCH = 64

#: No datagram is longer, nor what UDP_GRO makes of several.
_SLOT = 65536

#: Packet information of either version, and the size of joined datagrams.
_CONTROL = space(20) + space(4)

#: Batches per event of a listening socket, 512 datagrams: the default receive buffer
#: (212992 bytes) never holds more than 277.
LISTEN_BATCHES = 8

#: Assumed where the guest's MTU is not ours to set.
_UNKNOWN_MTU = 1500

_PADDING = bytes(MIN_FRAME)

#: A train of fewer bytes would need padding, which a superframe cannot have.
_MIN_TRAIN = MIN_FRAME - HEADERS4


class ToGuest(UdpErrors):
    """Serves sockets that have become readable."""

    def __init__(self, config: Config, nat: Nat, loop: Loop, link: Link, table: FlowTable) -> None:
        super().__init__(config, nat, loop, link, table)
        self._batch = RecvBatch(BATCH, _SLOT, _CONTROL)
        mtu = config.mtu or _UNKNOWN_MTU
        #: Largest datagrams (bytes of payload) that fit the guest's MTU, if trains are taken.
        self._limit4 = mtu - ipv4.HEADER_LEN - udp.HEADER_LEN if link.gso_udp else 0
        self._limit6 = mtu - ipv6.HEADER_LEN - udp.HEADER_LEN if link.gso_udp else 0

    # Events.

    def ready(self, flow: UdpFlow, events: int) -> None:
        """Serve the events of a flow's socket."""
        if events & EPOLLERR:
            self._flow_errors(flow)
        if not events & EPOLLIN or flow.index < 0:
            return
        if flow.fresh:
            # The draining at the end of the round it was made in hit its bound.
            self._drain(flow, self._host, flow.host_key)
            return
        count = self._batch.recv(flow.fd)
        if count > 0:
            flow.phantom_errors = 0
            self.deliver(flow, range(count))

    def listener_ready(self, listener: Listener, events: int) -> None:
        """Serve the events of a listening socket."""
        if events & EPOLLERR:
            self._listener_errors(listener)
        if events & EPOLLIN:
            self._read_any(listener.fd, listener.port, listener.side, listener)

    def _drain_fresh(self) -> None:
        """Drain the sockets made in this round, and those that this makes."""
        fresh = self._fresh
        # The list may grow meanwhile.
        for receiver, side, key in fresh:
            if receiver.index >= 0:
                self._drain(receiver, side, key)
        fresh.clear()

    def _drain(self, receiver: Receiver, side: Side, key: bytes) -> None:
        """Dispatch what a new socket holds, whoever sent it; ``key`` is that of its peer's."""
        own_port = PORTS.unpack_from(key, len(key) - 4)[1]
        if self._read_any(receiver.fd, own_port, side, None):
            receiver.fresh = False
            # From here on the sender is known: save the kernel the work.
            try:
                set_pktinfo(receiver.sock, False, v4=len(key) == 12)
            except OSError:
                # Then there is some work to do in vain.
                pass

    def _read_any(self, fd: int, port: int, side: Side, via: Listener | None) -> bool:
        """Dispatch datagrams to local ``port``; False if the bound was hit before the end."""
        batch = self._batch
        for _ in range(LISTEN_BATCHES):
            count = batch.recv(fd)
            if count == -EAGAIN:
                return True
            if count < 0:
                # A pending error, cleared by being reported; its details are in the queue.
                continue
            made = self._dispatch(port, side, via)
            if count < BATCH and not made:
                return True
        return False

    def _dispatch(self, port: int, side: Side, via: Listener | None) -> bool:
        """Deliver a batch of datagrams of any senders; True if it began a flow."""
        batch = self._batch
        flows = side.flows
        made = False
        found: dict[Receiver, list[int]] = {}
        for i, raw in enumerate(batch.names()):
            peer, peer_port, scope = unpack(raw)
            info = pktinfo(batch.control(i))
            if info is None or not peer:
                continue
            local = unmap(info[0])
            peer = unmap(peer)
            key = peer + local + PORTS.pack(peer_port, port)
            receiver = flows.get(key)
            if receiver is None:
                receiver = self.from_socket(side, key, info[1], scope, via)
                if receiver is None:
                    continue
                made = True
            found.setdefault(receiver, []).append(i)
        for receiver, indices in found.items():
            receiver.take(indices)
        return made

    # Frames.

    def deliver(self, flow: UdpFlow, indices: Sequence[int]) -> None:
        """Send these datagrams of the batch to the guest, in order."""
        flow.last = self._loop.now
        flow.host_active += 1
        headers = flow.headers
        if headers is None or headers.mac != self._link.guest_mac:
            headers = flow.headers = self._headers(flow.guest_key)
        self._send_batch(headers, indices, len(flow.guest_key) == 12)

    def _headers(self, guest_key: bytes) -> Headers:
        """Headers of frames to the guest, of datagrams that answer those with ``guest_key``."""
        return Headers(self._link, self._nat.mac_for(split(guest_key)[2]), guest_key)

    def _send_batch(self, headers: Headers, indices: Sequence[int], v4: bool) -> None:
        """Send these datagrams of the batch as frames with ``headers``, in order."""
        limit = self._limit4 if v4 else self._limit6
        batch = self._batch
        count = len(indices)
        if count == 1:
            i = indices[0]
            if not batch.control(i):
                length = batch.length(i)
                self._send_one(headers, batch.slots[i][:length], length)
                return
        lengths = batch.lengths()
        if count == len(lengths):
            # All of the batch is for this flow; in a stream, it is all of one size.
            length = lengths[0]
            if (
                0 < length <= limit
                and lengths.count(length) == count
                and not any(batch.control_lengths())
            ):
                step = min(MAX_SEGMENTS, MAX_PAYLOAD4 // length)
                for start in range(0, count, step):
                    train = [
                        slot[:length] for slot in batch.slots[start : min(start + step, count)]
                    ]
                    self._send_train(headers, train, length * len(train), length)
                return
        self._deliver_mixed(headers, indices, lengths, limit)

    def _deliver_mixed(
        self, headers: Headers, indices: Sequence[int], lengths: list[int], limit: int
    ) -> None:
        """Send datagrams, some of them joined by the kernel, forming trains where possible."""
        batch = self._batch
        slots = batch.slots
        train: list[memoryview] = []
        segment = total = 0
        for i in indices:
            length = lengths[i]
            joined = gro_size(batch.control(i))
            if 0 < joined < length:
                if train:
                    self._send_train(headers, train, total, segment)
                    train = []
                self._send_joined(headers, slots[i][:length], joined, limit)
                continue
            if train:
                if 0 < length <= segment and total + length <= MAX_PAYLOAD4:
                    train.append(slots[i][:length])
                    total += length
                    if length < segment or len(train) == MAX_SEGMENTS:
                        self._send_train(headers, train, total, segment)
                        train = []
                    continue
                self._send_train(headers, train, total, segment)
                train = []
            if 0 < length <= limit:
                train = [slots[i][:length]]
                segment = total = length
            else:
                self._send_one(headers, slots[i][:length], length)
        if train:
            self._send_train(headers, train, total, segment)

    def _send_one(self, headers: Headers, payload: memoryview, length: int) -> None:
        """Send one datagram as one frame."""
        header = headers.build(length)
        missing = MIN_FRAME - HEADERS4 - length
        if missing > 0 and len(header) - self._link.headroom == HEADERS4:
            self._link.sendv((header, payload, _PADDING[:missing]))
        else:
            self._link.sendv((header, payload))

    def _send_train(
        self, headers: Headers, train: list[memoryview], total: int, segment: int
    ) -> None:
        """Send datagrams of ``segment`` bytes, the last perhaps shorter, as one superframe."""
        if len(train) > 1 and total >= _MIN_TRAIN:
            self._link.sendv((headers.build(total, segment), *train))
            return
        for payload in train:
            self._send_one(headers, payload, len(payload))

    def _send_joined(self, headers: Headers, payload: memoryview, segment: int, limit: int) -> None:
        """Send a train that the kernel joined, as a train if possible."""
        total = len(payload)
        if (
            segment <= limit
            and _MIN_TRAIN <= total <= MAX_PAYLOAD4
            and total <= MAX_SEGMENTS * segment
        ):
            self._link.sendv((headers.build(total, segment), payload))
            return
        for start in range(0, total, segment):
            part = payload[start : start + segment]
            self._send_one(headers, part, len(part))
