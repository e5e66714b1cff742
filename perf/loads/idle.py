"""Many TCP connections between two processes that do nothing.

``idle.py serve ADDRESS PORT`` accepts connections and answers the first byte of each with one;
``idle.py hold ADDRESS PORT COUNT`` makes up to COUNT, one after the other, as far as they are
answered and for half a minute, prints how many and the seconds that took, and keeps them until its
standard input ends.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time

PATIENCE = 5.0  # seconds for an answer
LIMIT = 30.0  # seconds for all of them


def serve(address: str, port: int) -> None:
    """Accept and answer; never ends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=4096)
    held = {listener.fileno(): listener}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                held[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif not answer(held[fd]):
                held.pop(fd).close()


def answer(sock: socket.socket) -> bool:
    """Answer a byte with another; False if the connection has ended, in whichever way."""
    try:
        return bool(sock.recv(1)) and sock.send(b"y") == 1
    except OSError:
        return False


def hold(address: str, port: int, count: int) -> None:
    """Make the connections and keep them."""
    held: list[socket.socket] = []
    started = time.monotonic()
    try:
        while len(held) < count and time.monotonic() - started < LIMIT:
            sock = socket.create_connection((address, port), timeout=PATIENCE)
            sock.send(b"x")
            if sock.recv(1) != b"y":
                break
            held.append(sock)
    except OSError:
        pass  # as many as there can be
    print(len(held), time.monotonic() - started, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        hold(sys.argv[2], *(int(word) for word in sys.argv[3:5]))
