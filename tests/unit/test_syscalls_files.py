"""splice, inotify, fstatfs and close_range on ordinary files and pipes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from passt.syscalls import closerange, inotify, splice, statfs

# splice


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    r, w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield r, w
    for fd in (r, w):
        try:
            os.close(fd)
        except OSError:
            pass


def test_splice_socket_to_socket(pipe: tuple[int, int]) -> None:
    r, w = pipe
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    with a, b, c, d:
        b.setblocking(False)
        data = bytes(range(256)) * 8
        a.sendall(data)
        assert splice.splice(b.fileno(), w, 1 << 20) == len(data)
        assert splice.splice(b.fileno(), w, 1 << 20) == -errno.EAGAIN
        assert splice.splice(r, c.fileno(), 1 << 20) == len(data)
        assert splice.splice(r, c.fileno(), 1 << 20) == -errno.EAGAIN
        assert d.recv(4096) == data
        a.shutdown(socket.SHUT_WR)
        assert splice.splice(b.fileno(), w, 1 << 20) == 0


def test_splice_errors(pipe: tuple[int, int]) -> None:
    r, w = pipe
    assert splice.splice(-1, w, 1) == -errno.EBADF
    a, b = socket.socketpair()
    with a, b:
        assert splice.splice(a.fileno(), b.fileno(), 1) == -errno.EINVAL
        os.write(w, b"x")
        b.close()
        assert splice.splice(r, a.fileno(), 1) == -errno.EPIPE


def test_splice_full_pipe(pipe: tuple[int, int]) -> None:
    r, w = pipe
    size = splice.set_pipe_size(w, 4096)
    with open("/dev/zero", "rb", buffering=0) as zero:
        assert splice.splice(zero.fileno(), w, 4 * size) == size
        assert splice.splice(zero.fileno(), w, 1) == -errno.EAGAIN
    assert len(os.read(r, 2 * size)) == size


def test_pipe_size(pipe: tuple[int, int]) -> None:
    r, w = pipe
    page = os.sysconf("SC_PAGESIZE")
    assert splice.set_pipe_size(w, 3 * page) == 4 * page
    assert splice.get_pipe_size(r) == 4 * page
    os.write(w, bytes(2 * page))
    with pytest.raises(OSError, match="fcntl F_SETPIPE_SZ: ") as caught:
        splice.set_pipe_size(r, page)
    assert caught.value.errno == errno.EBUSY


# inotify


def test_several_events_in_one_read(tmp_path: Path) -> None:
    longest = "n" * 255
    names = ["a", "bb", longest, "é"]
    for name in names:
        (tmp_path / name).touch()
    fd = inotify.init()
    try:
        watch = inotify.add_watch(fd, str(tmp_path), inotify.IN_DELETE | inotify.IN_ONLYDIR)
        assert inotify.read(fd) == []
        for name in names:
            (tmp_path / name).unlink()
        assert inotify.read(fd) == [(watch, inotify.IN_DELETE, 0, name) for name in names]
        assert inotify.read(fd) == []
    finally:
        os.close(fd)


def test_create_and_own_events(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    fd = inotify.init()
    try:
        mask = inotify.IN_CREATE | inotify.IN_DELETE_SELF
        watch = inotify.add_watch(fd, str(directory), mask)
        (directory / "sub").mkdir()
        (directory / "sub").rmdir()
        directory.rmdir()
        assert inotify.read(fd) == [
            (watch, inotify.IN_CREATE | inotify.IN_ISDIR, 0, "sub"),
            (watch, inotify.IN_DELETE_SELF, 0, ""),
            (watch, inotify.IN_IGNORED, 0, ""),
        ]
    finally:
        os.close(fd)


def test_watch_by_descriptor_and_removal(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fd = inotify.init()
    try:
        watch = inotify.add_watch(fd, f"/proc/self/fd/{directory}", inotify.IN_CREATE)
        (tmp_path / "x").touch()
        assert inotify.read(fd) == [(watch, inotify.IN_CREATE, 0, "x")]
        inotify.rm_watch(fd, watch)
        assert inotify.read(fd) == [(watch, inotify.IN_IGNORED, 0, "")]
    finally:
        os.close(fd)
        os.close(directory)


def test_inotify_errors(tmp_path: Path) -> None:
    fd = inotify.init()
    try:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        with pytest.raises(FileNotFoundError, match="inotify_add_watch"):
            inotify.add_watch(fd, str(tmp_path / "none"), inotify.IN_CREATE)
        with pytest.raises(OSError, match="inotify_rm_watch"):
            inotify.rm_watch(fd, 99)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="inotify_init1"):
        inotify.init(1)


def test_parse_cut_events() -> None:
    event = struct.pack("=iIII", 1, 2, 3, 4) + b"ab\0\0"
    assert list(inotify.parse(event)) == [(1, 2, 3, "ab")]
    for cut in range(len(event)):
        assert list(inotify.parse(event + event[:cut])) == [(1, 2, 3, "ab")]
    assert list(inotify.parse(struct.pack("=iIII", 1, 2, 3, 0xFFFFFFFF))) == []


# fstatfs


@pytest.mark.parametrize(
    ("path", "magic"),
    [
        ("/proc", statfs.PROC_SUPER_MAGIC),
        ("/sys", statfs.SYSFS_MAGIC),
        ("/dev/pts", statfs.DEVPTS_SUPER_MAGIC),
        ("/dev/shm", statfs.TMPFS_MAGIC),
        ("/proc/self/ns/net", statfs.NSFS_MAGIC),
    ],
)
def test_fs_type(path: str, magic: int) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        pytest.skip(f"no {path}")
    if not path.startswith("/proc/") and not os.path.ismount(path):
        os.close(fd)
        pytest.skip(f"{path} is not a mount here")
    try:
        assert statfs.fs_type(fd) == magic
    finally:
        os.close(fd)


def test_fs_type_of_anonymous_inode_and_error() -> None:
    fd = inotify.init()
    try:
        assert statfs.fs_type(fd) == statfs.ANON_INODE_FS_MAGIC
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="fstatfs: ") as caught:
        statfs.fs_type(-1)
    assert caught.value.errno == errno.EBADF


# close_range

BASE = 500


@pytest.fixture
def high() -> Iterator[list[int]]:
    """Descriptors BASE … BASE + 9, beyond any that the test runner has."""
    fds = [os.dup2(1, BASE + i, inheritable=True) for i in range(10)]
    yield fds
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def opened() -> list[int]:
    return [i for i in range(10) if is_open(BASE + i)]


def test_close_range(high: list[int]) -> None:
    closerange.close_range(BASE + 2, BASE + 4)
    assert opened() == [0, 1, 5, 6, 7, 8, 9]
    closerange.close_range(BASE + 7, BASE + 6)  # an empty range
    assert opened() == [0, 1, 5, 6, 7, 8, 9]


def test_close_range_cloexec(high: list[int]) -> None:
    closerange.close_range(BASE + 1, BASE + 2, closerange.CLOSE_RANGE_CLOEXEC)
    assert [os.get_inheritable(fd) for fd in high[:4]] == [True, False, False, True]
    assert opened() == list(range(10))


def test_close_range_bad_flags() -> None:
    with pytest.raises(OSError, match="close_range: ") as caught:
        closerange.close_range(BASE, BASE, 1 << 20)
    assert caught.value.errno == errno.EINVAL


KEEP = [BASE, BASE + 3, BASE + 4, BASE + 9, 1]
LEFT = [0, 3, 4, 9]


def test_close_from(high: list[int]) -> None:
    assert closerange.close_from(BASE, keep=KEEP)
    assert opened() == LEFT
    assert closerange.close_from(BASE)
    assert opened() == []
    assert is_open(1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_close_from_without_the_call(
    high: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(first: int, last: int = 0, flags: int = 0) -> None:
        raise OSError(number, "close_range")

    monkeypatch.setattr(closerange, "close_range", refuse)
    assert not closerange.close_from(BASE, keep=KEEP)
    assert opened() == LEFT


def test_close_from_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(first: int, last: int = 0, flags: int = 0) -> None:
        raise OSError(errno.EIO, "close_range")

    monkeypatch.setattr(closerange, "close_range", refuse)
    with pytest.raises(OSError, match="close_range"):
        closerange.close_from(BASE)
