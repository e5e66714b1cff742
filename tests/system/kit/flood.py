"""What a hostile guest does all day: frames of many connections that lead nowhere.

Run as a program in pasta's namespace: ``flood.py INTERFACE KIND TARGET [options]``. Frames go out
by a packet socket on the tap, so they enter pasta as frames of the guest, whose kernel knows
nothing of them. At most ``--rate`` frames are sent per second, in bursts of a few milliseconds;
every frame differs from the others in its source port, then in its destination port or identifier.

=========  ====================================================================================
``syn``    TCP SYNs to ports of TARGET; with ``--spread`` also to the addresses behind it
``udp``    one datagram each to ports of TARGET
``ping``   echo requests to TARGET with ever new identifiers
``spoof``  as ``syn``, and from ever new source addresses
=========  ====================================================================================

Prints ``ready`` before the first frame, and the number of frames sent when it ends, after
``--seconds`` or on SIGTERM.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator

ETH_P_ALL = 3
PORTS = struct.Struct("!HH")


def checksum(data: bytes) -> int:
    """The Internet checksum of *data* (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: bytes, target: bytes, protocol: int, l4: bytes) -> bytes:
    """An IP packet, version by the length of the addresses; *l4* has its checksum already."""
    if len(source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 0, 0x4000, 64, protocol, 0)
        field = checksum(head + source + target)
        return head[:10] + struct.pack("!H", field) + source + target + l4
    return struct.pack("!IHBB", 6 << 28, len(l4), protocol, 64) + source + target + l4


def l4_of(kind: str, source: bytes, target: bytes, first: int, second: int) -> tuple[int, bytes]:
    """Protocol number and L4 packet with the numbers *first* and *second* in it."""
    if kind == "ping":
        icmp_type, protocol = (8, 1) if len(source) == 4 else (128, 58)
        bare = struct.pack("!BBHHH", icmp_type, 0, 0, first, second)
        at = 2
    elif kind == "udp":
        bare = PORTS.pack(first, second) + struct.pack("!HH", 12, 0) + b"scan"
        protocol, at = 17, 6
    else:
        bare = PORTS.pack(first, second) + struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 64240, 0, 0)
        protocol, at = 6, 16
    pseudo = b""
    if kind != "ping" or len(source) == 16:
        pseudo = source + target + struct.pack("!II", len(bare), protocol)
    field = checksum(pseudo + bare) or 0xFFFF
    return protocol, bare[:at] + struct.pack("!H", field) + bare[at + 2 :]


def frames(
    kind: str, ethernet: bytes, source: bytes, target: bytes, port: int, spread: int
) -> Iterator[bytes]:
    """Endless frames, no two alike for a long time."""
    draw = random.Random(1)
    base = int.from_bytes(target, "big")
    origin = int.from_bytes(source, "big")
    size = len(target)
    for number in itertools.count():
        first = 1024 + number % 64000
        second = port or 1 + draw.randrange(65000)
        if kind == "ping":
            first, second = number & 0xFFFF, 1
        if spread:
            target = (base + number % spread).to_bytes(size, "big")
        if kind == "spoof":
            source = (origin + draw.randrange(1, 1 << 16)).to_bytes(size, "big")
        protocol, l4 = l4_of(kind, source, target, first, second)
        yield ethernet + packet(source, target, protocol, l4)


def main() -> None:
    """Run the flood as a program."""
    parser = argparse.ArgumentParser(description="A flood of frames from the guest")
    parser.add_argument("interface")
    parser.add_argument("kind", choices=("syn", "udp", "ping", "spoof"))
    parser.add_argument("target")
    parser.add_argument("--source", required=True)
    parser.add_argument("--port", type=int, default=0, help="destination port; 0: random ones")
    parser.add_argument("--spread", type=int, default=0, help="number of target addresses")
    parser.add_argument("--rate", type=float, default=5000.0, help="frames per second")
    parser.add_argument("--count", type=int, default=0, help="frames altogether; 0: no limit")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    target = ipaddress.ip_address(options.target)
    source = ipaddress.ip_address(options.source)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((options.interface, 0))
    mac = sock.getsockname()[4]
    ethertype = struct.pack("!H", 0x0800 if target.version == 4 else 0x86DD)
    ethernet = bytes.fromhex("9a559a559a55") + mac + ethertype
    stop = False

    def end(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    supply = frames(
        options.kind, ethernet, source.packed, target.packed, options.port, options.spread
    )
    # Building a frame takes longer than sending it: some are built in advance.
    stock = list(itertools.islice(supply, min(options.count or 50000, 50000)))
    print("ready", flush=True)
    started = time.monotonic()
    sent = 0
    while not stop:
        now = time.monotonic() - started
        if now > options.seconds or (options.count and sent >= options.count):
            break
        due = int(now * options.rate) - sent
        if options.count:
            due = min(due, options.count - sent)
        for _ in range(due):
            try:
                sock.send(stock[sent % len(stock)])
            except OSError:
                pass  # the queue is full: that is what floods are for
            sent += 1
        time.sleep(0.002)
    print(sent, flush=True)


if __name__ == "__main__":
    main()
