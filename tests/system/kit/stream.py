"""Reproducible content and its SHA-256, for files and for both ends of a stream.

The content of a given size and seed is always the same. Each MiB begins with its own index, so that
no block can stand for another: a repeated, lost, or misplaced block changes the hash.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
BLOCK = 1 << 20


def blocks(size: int, seed: int = 1) -> Iterator[bytes]:
    """Yield *size* bytes of content in pieces of at most 1 MiB."""
    body = random.Random(seed).randbytes(BLOCK)
    for index in range(0, size, BLOCK):
        yield (index.to_bytes(8, "big") + body[8:])[: size - index]


def digest(size: int, seed: int = 1) -> str:
    """Return the hexadecimal SHA-256 of the content."""
    state = hashlib.sha256()
    for block in blocks(size, seed):
        state.update(block)
    return state.hexdigest()


def write_file(path: str, size: int, seed: int = 1) -> str:
    """Write the content to *path*, readable by everybody; return its hash."""
    state = hashlib.sha256()
    with open(path, "wb") as file:
        for block in blocks(size, seed):
            file.write(block)
            state.update(block)
    os.chmod(path, 0o644)
    return state.hexdigest()


def file_digest(path: str) -> str:
    """Return the hash of the file *path*."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def send(sock: socket.socket, size: int, seed: int = 1, *, finish: bool = True) -> str:
    """Send the content, then (with *finish*) shut down writing; return its hash."""
    state = hashlib.sha256()
    for block in blocks(size, seed):
        state.update(block)
        sock.sendall(block)
    if finish:
        sock.shutdown(socket.SHUT_WR)
    return state.hexdigest()


def receive(sock: socket.socket) -> tuple[int, str]:
    """Read to the end of the stream; return number of bytes and their hash."""
    state = hashlib.sha256()
    size = 0
    buffer = bytearray(1 << 18)
    view = memoryview(buffer)
    while count := sock.recv_into(buffer):
        state.update(view[:count])
        size += count
    return size, state.hexdigest()


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read *size* bytes; EOFError if the stream ends before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def answer_with_hashes(listener: socket.socket) -> None:
    """Answer what each connection sends, once it has finished, with its SHA-256.

    To be run in a thread; ends when *listener* is shut down.
    """
    states: dict[int, tuple[socket.socket, hashlib._Hash]] = {}
    listener.setblocking(False)
    with select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError:  # shut down
                        return
                    poll.register(sock, select.EPOLLIN)
                    states[sock.fileno()] = sock, hashlib.sha256()
                    continue
                sock, state = states[fd]
                data = sock.recv(1 << 18)
                state.update(data)
                if not data:
                    sock.sendall(state.digest())
                    del states[fd]
                    sock.close()


class Background(threading.Thread, Generic[T]):
    """Run a function in a thread at once; :meth:`result` waits for it and passes exceptions on."""

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: list[T] = []
        self._error: list[BaseException] = []
        self.start()

    def run(self) -> None:
        """Body of the thread."""
        try:
            self._value.append(self._function())
        except BaseException as error:  # raised again by result()
            self._error.append(error)

    def result(self, timeout: float = 60.0) -> T:
        """Return the function's value; AssertionError if it does not end within *timeout* s."""
        self.join(timeout)
        if self.is_alive():
            raise AssertionError(f"{self._function} did not end in {timeout:g} s")
        if self._error:
            raise self._error[0]
        return self._value[0]
