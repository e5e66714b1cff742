"""TCP request and answer between two processes: how long one exchange takes.

``exchange.py serve ADDRESS PORT`` answers one connection and ends; ``exchange.py ask ADDRESS PORT
COUNT SIZE`` makes COUNT exchanges of SIZE bytes each way, after a tenth as many to warm up, and
prints median and 99th percentile in microseconds as JSON. Blocking sockets, Nagle off: the time is
that of the path and of the wake-ups along it.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def read(sock: socket.socket, buffer: bytearray) -> bool:
    """Fill *buffer*; False at the end of the stream."""
    view = memoryview(buffer)
    filled = 0
    while filled < len(buffer):
        count = sock.recv_into(view[filled:])
        if not count:
            return False
        filled += count
    return True


def serve(address: str, port: int) -> None:
    """Accept one connection, learn the size of its messages, and send each one back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = bytearray(4)
    read(sock, head)
    buffer = bytearray(int.from_bytes(head, "big"))
    while read(sock, buffer):
        sock.sendall(buffer)


def ask(address: str, port: int, count: int, size: int) -> None:
    """Make the exchanges and print the result."""
    sock = socket.create_connection((address, port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(size.to_bytes(4, "big"))
    message, buffer = bytes(size), bytearray(size)
    times = []
    for _ in range(count + count // 10):
        started = time.perf_counter()
        sock.sendall(message)
        read(sock, buffer)
        times.append(time.perf_counter() - started)
    times = sorted(times[count // 10 :])
    print(json.dumps({"p50": times[count // 2] * 1e6, "p99": times[count * 99 // 100] * 1e6}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        ask(sys.argv[2], *(int(word) for word in sys.argv[3:6]))
