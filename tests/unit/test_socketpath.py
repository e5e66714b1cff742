"""The path of a socket: whose it is, and what is found there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from passt.kernel.errors import SetupError
from passt.syscalls import bare_socket
from passt.userspace.socketpath import bind_first, bind_private, bind_socket


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    old = os.umask(0)
    yield str(tmp_path / "control")
    assert os.umask(old) == 0


def refusal(path: str) -> str:
    with pytest.raises(SetupError) as caught:
        bind_private(path)
    return str(caught.value)


def connect(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(path)


def test_only_the_owner_may_connect(path: str) -> None:
    with closing(bind_private(path)) as sock:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert not sock.getblocking()
        assert not os.get_inheritable(sock.fileno())


def test_nobody_is_there_before_it_listens(path: str) -> None:
    with closing(bind_private(path)) as sock:
        assert connect(path) == errno.ECONNREFUSED
        sock.listen(0)
        assert connect(path) == 0


def test_a_socket_that_will_listen_stays(path: str) -> None:
    """Its program is about to start; two at the same time must not take each other's path."""
    with closing(bind_private(path)) as sock:
        assert refusal(path) == f"Socket path {path} already in use"
        sock.listen(0)
        assert refusal(path) == f"Socket path {path} already in use"
        with pytest.raises(BlockingIOError):
            bare_socket.accept(sock)


def test_dead_socket_is_replaced(path: str) -> None:
    bind_private(path).close()
    with closing(bind_private(path)) as sock:
        sock.listen(0)
        assert connect(path) == 0


@pytest.mark.parametrize("waiting", [0, 1])
def test_socket_in_use_stays(path: str, waiting: int) -> None:
    with closing(bind_private(path)) as sock:
        sock.listen(0)
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(waiting)]
        for client in clients:
            client.connect(path)
        assert refusal(path) == f"Socket path {path} already in use"
        for client in clients:
            bare_socket.accept(sock)[0].close()
            client.close()
        assert stat.S_ISSOCK(os.stat(path).st_mode)


def test_regular_file_stays(path: str) -> None:
    Path(path).write_text("precious")
    assert refusal(path) == f"{path} exists and is not a socket"
    assert Path(path).read_text() == "precious"


def test_link_to_a_dead_socket_stays(path: str) -> None:
    bind_private(path + ".real").close()
    os.symlink(path + ".real", path)
    assert refusal(path) == f"{path} exists and is not a socket"
    assert os.path.islink(path)


def test_paths_that_cannot_be(path: str) -> None:
    long = "/" + "x" * 107
    assert refusal(long) == f'Invalid socket path "{long}"'
    assert refusal("") == 'Invalid socket path ""'
    text = "Failed to bind UNIX domain socket: No such file or directory"
    assert refusal(f"{path}/nowhere") == text


def test_longest_path(tmp_path: Path) -> None:
    name = str(tmp_path / "x")
    name += "x" * (107 - len(name))
    with closing(bind_private(name)):
        assert os.path.exists(name)


def test_the_umask_decides_elsewhere(path: str) -> None:
    os.umask(0o027)
    try:
        with closing(bind_socket(path)):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o750
    finally:
        os.umask(0)


def test_first_free_path_is_taken(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"passt_{number}.socket") for number in range(1, 5)]
    Path(paths[0]).write_text("precious")
    bind_socket(paths[2]).close()
    with closing(bind_socket(paths[1])) as first:
        first.listen(0)
        second, path = bind_first(paths)
        with closing(second):
            assert path == paths[2]
            assert second.getsockname() == paths[2]


def test_no_path_is_free(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"passt_{number}.socket") for number in (1, 2)]
    for path in paths:
        Path(path).write_text("precious")
    with pytest.raises(SetupError) as caught:
        bind_first(paths)
    assert str(caught.value) == f"{paths[1]} exists and is not a socket"
