"""Request and answer between two processes: how long one exchange takes.

==========================================  ====================================================
``exchange.py serve ADDRESS PORT``          answer one TCP connection, then end
``exchange.py serve-each ADDRESS PORT``     answer one message on each TCP connection, for ever
``exchange.py serve-udp ADDRESS PORT``      send each datagram back, for ever
``exchange.py ask ADDRESS PORT N SIZE``     N exchanges on one TCP connection
``exchange.py connect ADDRESS PORT N SIZE`` N times: connect, one exchange, close
``exchange.py ask-udp ADDRESS PORT N SIZE`` N exchanges of datagrams
``exchange.py ping ADDRESS 0 N SIZE``       N echo requests; takes raw sockets
==========================================  ====================================================

Messages are SIZE bytes each way. The asking side makes a tenth as many exchanges to warm up, and
prints percentiles in microseconds as JSON. Blocking sockets, Nagle off: the time is
that of the path and of the wake-ups along it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable


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


def family(address: str) -> socket.AddressFamily:
    """Return the family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def prepare(sock: socket.socket) -> socket.socket:
    """Turn Nagle's algorithm off; return the socket."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# -- servers -------------------------------------------------------------------------------------


def answer(sock: socket.socket) -> None:
    """Learn the size of the messages on a connection, and send each one back."""
    head = bytearray(4)
    try:
        if not read(sock, head):
            return
        buffer = bytearray(int.from_bytes(head, "big"))
        while read(sock, buffer):
            sock.sendall(buffer)
    except ConnectionError:
        # The program in between ended first, as it may once the asking side has finished.
        return


def serve(address: str, port: int) -> None:
    """Answer one connection."""
    with socket.create_server((address, port), family=family(address)) as listener:
        sock, _ = listener.accept()
    answer(prepare(sock))


def serve_each(address: str, port: int) -> None:
    """Answer one connection after the other."""
    with socket.create_server((address, port), family=family(address)) as listener:
        while True:
            sock, _ = listener.accept()
            with prepare(sock):
                answer(sock)


def serve_udp(address: str, port: int) -> None:
    """Send datagrams back."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            sock.sendto(*sock.recvfrom(65536))


# -- clients -------------------------------------------------------------------------------------


def ask(address: str, port: int, size: int) -> Callable[[], None]:
    """Return what makes one exchange on a connection made here."""
    sock = prepare(socket.create_connection((address, port), timeout=30))
    sock.sendall(size.to_bytes(4, "big"))
    message, buffer = bytes(size), bytearray(size)

    def exchange() -> None:
        sock.sendall(message)
        read(sock, buffer)

    return exchange


def connect(address: str, port: int, size: int) -> Callable[[], None]:
    """Return what connects, makes one exchange, and closes."""
    message, buffer = size.to_bytes(4, "big") + bytes(size), bytearray(size)

    def exchange() -> None:
        with prepare(socket.create_connection((address, port), timeout=30)) as sock:
            sock.sendall(message)
            read(sock, buffer)

    return exchange


def ask_udp(address: str, port: int, size: int) -> Callable[[], None]:
    """Return what sends a datagram and waits for the answer."""
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.settimeout(30)
    sock.connect((address, port))
    message, buffer = bytes(size), bytearray(65536)

    def exchange() -> None:
        sock.send(message)
        sock.recv_into(buffer)

    return exchange


def ping(address: str, _port: int, size: int) -> Callable[[], None]:
    """Return what sends an echo request and waits for its answer (RFC 792, RFC 4443)."""
    identifier = os.getpid() & 0xFFFF
    version_6 = ":" in address
    protocol = socket.IPPROTO_ICMPV6 if version_6 else socket.IPPROTO_ICMP
    request, reply, header = (128, 129, 0) if version_6 else (8, 0, 20)
    sock = socket.socket(family(address), socket.SOCK_RAW, protocol)
    sock.settimeout(30)
    sock.connect((address, 0))
    buffer, payload, numbers = bytearray(65536), bytes(size), itertools.count()

    def exchange() -> None:
        number = next(numbers) & 0xFFFF
        packet = struct.pack(">BBHHH", request, 0, 0, identifier, number) + payload
        sum_ = checksum(packet)  # for IPv6 the kernel's business
        sock.send(packet[:2] + sum_ + packet[4:])
        expected = struct.pack(">HH", identifier, number)
        while True:
            sock.recv_into(buffer)
            if buffer[header] == reply and buffer[header + 4 : header + 8] == expected:
                return

    return exchange


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071) of data of even length."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def percentiles(times: list[float]) -> dict[str, float]:
    """Percentiles of *times* in seconds, in microseconds."""
    ordered = sorted(times)
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    last = len(ordered) - 1
    return {
        name: ordered[min(last, int(len(ordered) * p))] * 1e6
        for name, p in points.items()
        if len(ordered) * (1 - p) >= 1  # as many as say something
    }


def measure(exchange: Callable[[], None], count: int) -> None:
    """Make the exchanges and print the result."""
    times = []
    for _ in range(count + count // 10):
        started = time.perf_counter()
        exchange()
        times.append(time.perf_counter() - started)
    print(json.dumps(percentiles(times[count // 10 :])))


SERVERS = {"serve": serve, "serve-each": serve_each, "serve-udp": serve_udp}
CLIENTS = {"ask": ask, "connect": connect, "ask-udp": ask_udp, "ping": ping}


if __name__ == "__main__":
    verb, where, port_number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if verb in SERVERS:
        SERVERS[verb](where, port_number)
    else:
        measure(CLIENTS[verb](where, port_number, int(sys.argv[5])), int(sys.argv[4]))
