"""Request and answer between two processes: how long one exchange takes.

==========================================  ====================================================
``exchange.py serve ADDRESS PORT``          answer one TCP connection, then end
``exchange.py serve-each ADDRESS PORT``     answer one message on each TCP connection, for ever
``exchange.py serve-udp ADDRESS PORT``      send each datagram back, for ever
``exchange.py ask ADDRESS PORT N SIZE``     N exchanges on one TCP connection
``exchange.py connect ADDRESS PORT N SIZE`` N times: connect, one exchange, close
``exchange.py ask-udp ADDRESS PORT N SIZE`` N exchanges of datagrams
==========================================  ====================================================

Messages are SIZE bytes each way. The asking side makes a tenth as many exchanges to warm up, and
prints median and 99th percentile in microseconds as JSON. Blocking sockets, Nagle off: the time is
that of the path and of the wake-ups along it.
"""

from __future__ import annotations

import json
import socket
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
    if not read(sock, head):
        return
    buffer = bytearray(int.from_bytes(head, "big"))
    while read(sock, buffer):
        sock.sendall(buffer)


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


def measure(exchange: Callable[[], None], count: int) -> None:
    """Make the exchanges and print the result."""
    times = []
    for _ in range(count + count // 10):
        started = time.perf_counter()
        exchange()
        times.append(time.perf_counter() - started)
    times = sorted(times[count // 10 :])
    print(json.dumps({"p50": times[count // 2] * 1e6, "p99": times[count * 99 // 100] * 1e6}))


SERVERS = {"serve": serve, "serve-each": serve_each, "serve-udp": serve_udp}
CLIENTS = {"ask": ask, "connect": connect, "ask-udp": ask_udp}


if __name__ == "__main__":
    verb, where, port_number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if verb in SERVERS:
        SERVERS[verb](where, port_number)
    else:
        measure(CLIENTS[verb](where, port_number, int(sys.argv[5])), int(sys.argv[4]))
