"""A wire between two Ethernet interfaces that can be made bad: loss, delay, duplication, …

Theory of operation: one packet socket (packet(7)) per interface, promiscuous, own transmissions
ignored. A frame read from one side draws its fate from a seeded generator, one per direction, so
that the n-th frame of a direction meets the same fate in every run, and goes to a heap ordered by
the time it is due on the other side. The distributions follow tc-netem(8): delay ± jitter
uniformly, loss and duplication independently per frame. A *reordered* frame is held back by
``--reorder-delay`` in addition, so that later ones overtake it; without jitter no other frame
overtakes. ``--rate`` serialises a direction, with a queue of ``--queue`` frames and tail drop.

Offloads must be off on the far ends, so that frames are no longer than the MTU: larger ones are
counted (``oversize``) and dropped.

Run as a program in a namespace: ``wire.py IFA IFB [options]``; prints ``ready``, and on SIGTERM or
SIGINT one JSON object of counters per direction, then exits 0.
"""

from __future__ import annotations

import argparse
import errno
import heapq
import json
import random
import select
import signal
import socket
import struct
import time

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
SO_RCVBUFFORCE = 33

COUNTERS = ("frames", "lost", "duplicated", "reordered", "overflow", "oversize", "sent")


def open_port(interface: str) -> socket.socket:
    """Return a non-blocking packet socket that receives every frame arriving at *interface*."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    index = socket.if_nametoindex(interface)
    membership = struct.pack("iHH8s", index, PACKET_MR_PROMISC, 0, bytes(8))
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    sock.bind((interface, ETH_P_ALL))
    sock.setblocking(False)
    return sock


class Direction:
    """The fate of frames in one direction; :meth:`plan` says when each copy is due."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.random = random.Random(seed)
        self.count = dict.fromkeys(COUNTERS, 0)
        self.free_at = 0.0
        self.latest = 0.0

    def plan(self, now: float, length: int) -> list[float]:
        """Return the due times of the copies of a frame of *length* bytes that arrived *now*."""
        options, draw, count = self.options, self.random.random, self.count
        count["frames"] += 1
        # Always the same number of draws per frame: options do not shift each other's fate.
        lose, twice, late, spread = draw(), draw(), draw(), draw()
        if lose < options.loss:
            count["lost"] += 1
            return []
        start = now
        if options.rate:
            start = max(now, self.free_at)
            if (start - now) * options.rate > options.queue * 1500:
                count["overflow"] += 1
                return []
            start += length / options.rate
            self.free_at = start
        due = start + options.delay + options.jitter * (2 * spread - 1)
        if late < options.reorder:
            count["reordered"] += 1
            due += options.reorder_delay
        else:
            if not options.jitter:
                due = max(due, self.latest)
            self.latest = due
        if twice < options.duplicate:
            count["duplicated"] += 1
            return [due, due]
        return [due]


def transmit(sock: socket.socket, frame: bytes, count: dict[str, int]) -> None:
    """Send *frame*; what the interface refuses is counted, not raised."""
    try:
        sock.send(frame)
        count["sent"] += 1
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            count["oversize"] += 1
        elif error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO):
            count["overflow"] += 1
        else:
            raise


def forward(ports: list[socket.socket], directions: list[Direction], waker: socket.socket) -> None:
    """Forward frames between the two *ports* until *waker* becomes readable."""
    poll = select.epoll()
    poll.register(waker, select.EPOLLIN)
    by_descriptor = {}
    for index, port in enumerate(ports):
        poll.register(port, select.EPOLLIN)
        by_descriptor[port.fileno()] = index
    queue: list[tuple[float, int, int, bytes]] = []
    serial = 0
    while True:
        patience = -1.0 if not queue else max(0.0, queue[0][0] - time.monotonic())
        events = poll.poll(patience)
        for descriptor, _ in events:
            if descriptor == waker.fileno():
                return
            index = by_descriptor[descriptor]
            for _ in range(64):
                try:
                    frame = ports[index].recv(65536)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.ENETDOWN):
                        break
                    raise
                for due in directions[index].plan(time.monotonic(), len(frame)):
                    serial += 1
                    heapq.heappush(queue, (due, serial, index, frame))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, index, frame = heapq.heappop(queue)
            transmit(ports[1 - index], frame, directions[index].count)


def main() -> None:
    """Run the wire as a program."""
    parser = argparse.ArgumentParser(description="A bad Ethernet wire between two interfaces")
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--loss", type=float, default=0.0, help="probability per frame")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds around the delay")
    parser.add_argument("--duplicate", type=float, default=0.0, help="probability per frame")
    parser.add_argument("--reorder", type=float, default=0.0, help="probability per frame")
    parser.add_argument("--reorder-delay", type=float, default=0.004, help="seconds held back")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes per second; 0: no limit")
    parser.add_argument("--queue", type=int, default=1000, help="frames, with --rate")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # Signals arrive as bytes on a socket, so that the wait for frames ends with them.
    waker, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    ports = [open_port(options.a), open_port(options.b)]
    directions = [Direction(options, options.seed), Direction(options, options.seed + 1)]
    print("ready", flush=True)
    forward(ports, directions, waker)
    print(
        json.dumps(dict(zip((options.a, options.b), (d.count for d in directions), strict=True))),
        flush=True,
    )


if __name__ == "__main__":
    main()
