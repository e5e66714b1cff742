"""C library binding and ioctl numbers, against calls that need no privileges."""

from __future__ import annotations

import ctypes
import errno
import os
import termios

import pytest

from passt.syscalls import ioctl, libc


def test_proto_declares_types() -> None:
    dup = libc.proto("dup", ctypes.c_int, ctypes.c_int)
    fd = dup(1)
    try:
        assert os.fstat(fd).st_ino == os.fstat(1).st_ino
    finally:
        os.close(fd)
    with pytest.raises(ctypes.ArgumentError):
        dup("one")


def test_proto_objects_are_independent() -> None:
    first = libc.proto("dup", ctypes.c_int, ctypes.c_int)
    libc.proto("dup", ctypes.c_int)
    assert first(-1) == -1


def test_check_names_the_call() -> None:
    close = libc.proto("close", ctypes.c_int, ctypes.c_int)
    with pytest.raises(OSError, match="close: Bad file descriptor") as caught:
        libc.check(close(-1), "close")
    assert caught.value.errno == errno.EBADF


def test_error_uses_subclasses() -> None:
    assert isinstance(libc.error(errno.EPERM, "x"), PermissionError)
    assert isinstance(libc.error(errno.EAGAIN, "x"), BlockingIOError)


def test_check_passes_other_values() -> None:
    assert [libc.check(n, "x") for n in (0, 7, -2)] == [0, 7, -2]


def test_hot_returns_int_and_errno() -> None:
    close = libc.hot("close")
    assert close(-1) == -1
    assert ctypes.get_errno() == errno.EBADF


def test_unknown_function() -> None:
    with pytest.raises(AttributeError):
        libc.proto("no_such_function_here", ctypes.c_int)


def test_raw_syscall() -> None:
    pidfd_open = 434
    fd = libc.check(libc.syscall(pidfd_open, os.getpid(), 0), "pidfd_open")
    os.close(fd)
    with pytest.raises(OSError, match="pidfd_open: ") as caught:
        libc.check(libc.syscall(pidfd_open, 0, 0), "pidfd_open")
    assert caught.value.errno == errno.EINVAL


def test_ioctl_numbers_match_the_c_library() -> None:
    # The terminal requests that encode a size, where the platform has them.
    if hasattr(termios, "TIOCGPTN"):
        assert ioctl.ior(ord("T"), 0x30, 4) == termios.TIOCGPTN
    if hasattr(termios, "TIOCSPTLCK"):
        assert ioctl.iow(ord("T"), 0x31, 4) == termios.TIOCSPTLCK
    assert ioctl.io(0xB7, 1) & 0xFFFF == 0xB701
    assert ioctl.iow(ord("T"), 202, 4) in (0x400454CA, 0x800454CA)
