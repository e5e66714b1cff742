"""Stands for QEMU: carries frames between a tap and a stream socket, each way with their length.

``shuttle.py TAP SOCKET``: makes the tap TAP in the network namespace it runs in, brings it up,
connects to SOCKET, prints "ready", and carries frames until either side ends. The kernel of the
namespace is the guest: without offloads, so that its frames are complete, as those of a virtual
machine are.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000
LARGEST = 1 << 17


def main(tap: str, path: str) -> None:
    """Carry frames."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP_NO_PI))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    subprocess.run(["ip", "link", "set", "dev", tap, "up"], check=True)
    print("ready", flush=True)
    poll = select.poll()
    poll.register(device, select.POLLIN)
    poll.register(sock, select.POLLIN)
    pending = b""
    while True:
        for fd, _ in poll.poll():
            if fd == device:
                frame = os.read(device, LARGEST)
                sock.sendall(struct.pack("!I", len(frame)) + frame)
                continue
            data = sock.recv(1 << 20)
            if not data:
                return
            pending = deliver(device, pending + data)


def deliver(device: int, data: bytes) -> bytes:
    """Write the frames in *data* to the device; return the beginning of the next."""
    at = 0
    while len(data) - at >= 4:
        (size,) = struct.unpack_from("!I", data, at)
        if len(data) - at - 4 < size:
            break
        try:
            os.write(device, data[at + 4 : at + 4 + size])
        except BlockingIOError:
            pass  # a full queue drops, as everywhere
        at += 4 + size
    return data[at:]


if __name__ == "__main__":
    main(*sys.argv[1:])
