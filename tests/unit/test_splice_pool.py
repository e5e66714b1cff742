"""Stocks of sockets, and pipes to be lent."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing

import pytest

from passt.syscalls.splice import get_pipe_size
from passt.userspace.splice import pipes
from passt.userspace.splice.pipes import LIMIT, PIPE_SIZE, SPARE, Pipe, PipePool
from passt.userspace.splice.pool import REFILL, STOCK, SocketPool, tcp_spec
from tests.unit.splice_kit import LocalMaker


def pool_of(maker: LocalMaker) -> SocketPool:
    return SocketPool(maker, tcp_spec(socket.AF_INET))


def test_stock_is_ordered_and_used() -> None:
    maker = LocalMaker()
    pool = pool_of(maker)
    pool.fill()
    assert [len(specs) for specs, _ in maker.requests] == [STOCK]
    maker.deliver()
    with closing(pool.take()) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        assert not os.get_inheritable(sock.fileno())
        with pytest.raises(BlockingIOError):
            sock.connect(("192.0.2.1", 9))
    assert not maker.calls
    pool.close()


def test_more_are_ordered_once_when_few_are_left() -> None:
    maker = LocalMaker()
    pool = pool_of(maker)
    pool.fill()
    maker.deliver()
    for left in range(STOCK - 1, 0, -1):
        pool.take().close()
        assert len(maker.requests) == (left <= REFILL)
    maker.deliver()
    assert not maker.calls
    pool.close()


def test_burst_beyond_the_stock_is_served_at_once() -> None:
    maker = LocalMaker()
    pool = pool_of(maker)
    pool.fill()
    maker.deliver()
    taken = [pool.take() for _ in range(STOCK + 8)]
    assert len({sock.fileno() for sock in taken}) == STOCK + 8
    assert maker.calls == 8
    for sock in taken:
        sock.close()


def test_no_sockets_to_be_had() -> None:
    maker = LocalMaker()
    maker.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    pool = pool_of(maker)
    with pytest.raises(OSError, match="Too many open files"):
        pool.take()
    pool.fill()
    maker.deliver()
    maker.error = None
    pool.take().close()
    pool.fill()
    maker.deliver()
    pool.take().close()
    assert maker.calls == 2
    pool.close()


def test_pipe_is_large_and_does_not_block() -> None:
    pool = PipePool()
    pipe = pool.take()
    assert pipe is not None
    assert pipe.size == get_pipe_size(pipe.reader)
    assert pipe.size >= 1 << 16
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 1)
    for fd in (pipe.reader, pipe.writer):
        assert not os.get_inheritable(fd)
    pool.give_back(pipe)
    assert pool.take() is pipe
    pool.discard(pipe)


def is_open(pipe: Pipe | None) -> bool:
    assert pipe is not None
    try:
        os.fstat(pipe.reader)
        os.fstat(pipe.writer)
    except OSError:
        return False
    return True


def test_few_pipes_are_kept() -> None:
    pool = PipePool()
    taken = [pool.take() for _ in range(SPARE + 4)]
    for pipe in taken:
        assert pipe is not None
        pool.give_back(pipe)
    assert [is_open(pipe) for pipe in taken] == [True] * SPARE + [False] * 4
    pool.close()
    assert not any(is_open(pipe) for pipe in taken)


def test_number_of_pipes_is_limited() -> None:
    pool = PipePool()
    taken = [pool.take() for _ in range(LIMIT)]
    assert all(is_open(pipe) for pipe in taken)
    assert pool.take() is None
    for pipe in taken[:3]:
        assert pipe is not None
        pool.discard(pipe)
        assert not is_open(pipe)
    taken[:3] = [pool.take() for _ in range(3)]
    assert pool.take() is None
    for pipe in taken:
        assert pipe is not None
        pool.give_back(pipe)
    pool.close()


@pytest.mark.parametrize("limit", [PIPE_SIZE // 2, 1 << 17, 1 << 16, 0])
def test_smaller_pipes_where_the_quota_says_so(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pipes.set_pipe_size

    def limited(fd: int, size: int) -> int:
        if size > limit:
            raise PermissionError
        return real(fd, size)

    monkeypatch.setattr(pipes, "set_pipe_size", limited)
    pool = PipePool()
    pipe = pool.take()
    assert pipe is not None
    # No attempt below the default, which is 16 pages, or two for those beyond their quota.
    assert pipe.size == get_pipe_size(pipe.reader)
    assert pipe.size == max(limit, get_pipe_size(pipe.reader))
    pool.discard(pipe)


def test_no_pipe_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    assert PipePool().take() is None
