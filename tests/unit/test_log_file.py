"""The log file stays within its size, whole lines, header first, whatever the file system."""

from __future__ import annotations

import os
import re
import threading
from errno import EINVAL, ENOSPC, EOPNOTSUPP
from pathlib import Path

import pytest

from passt.syscalls.fallocate import collapse_range
from passt.userspace import logfile
from passt.userspace.logfile import MAX_ENTRY, LogFile

LIMIT = 40960
HEADER = b"pasta 1.0: /usr/bin/pasta (7)"


@pytest.fixture(params=["collapse", "move"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with either way of cutting; the first as far as the file system can."""
    if request.param == "move":

        def refuse(fd: int, offset: int, length: int) -> None:
            raise OSError(EOPNOTSUPP, "fallocate")

        monkeypatch.setattr(logfile, "collapse_range", refuse)
    return str(request.param)


def fill(log: LogFile, first: int, last: int) -> None:
    for number in range(first, last):
        log.write(f"{number}.0000", b"entry %06d %s\n" % (number, b"x" * (number % 150)))


def numbers(lines: list[bytes]) -> list[int]:
    found = [re.fullmatch(rb"entry (\d{6}) (x*)", line) for line in lines]
    assert all(match and len(match[2]) == int(match[1]) % 150 for match in found)
    return [int(match[1]) for match in found if match]


def test_header_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("from an earlier run")
    path.chmod(0o600)
    log = LogFile(str(path), LIMIT, HEADER)
    log.write("1.0000", b"one\n")
    log.close()
    assert path.read_bytes() == HEADER + b"\none\n"
    LogFile(str(tmp_path / "new"), LIMIT, HEADER).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("limit", [LIMIT, 65536, 100_000])
def test_flood(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), limit, HEADER)
    written = 0
    for last in range(50, 5000, 50):
        fill(log, written, last)
        written = last
        size = path.stat().st_size
        assert size <= limit
        header, *lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert re.fullmatch(re.escape(HEADER) + rb"( - log truncated at \d+\.\d{4} *)?", header)
        # No gaps: only the oldest entries are missing.
        kept = numbers(lines)
        assert kept == list(range(kept[0], written))
    assert header != HEADER
    assert size > limit // 2
    log.close()


@pytest.mark.usefixtures("cut")
def test_longest_entries(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), LIMIT, HEADER)
    for _ in range(20):
        log.write("1.0000", b"y" * 20000 + b"\n")
        assert path.stat().st_size <= LIMIT
    lines = path.read_bytes().split(b"\n")
    assert {len(line) for line in lines[1:-1]} == {MAX_ENTRY - 1}


@pytest.mark.usefixtures("cut")
def test_long_header(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), LIMIT, b"h" * 20000)
    fill(log, 0, 3000)
    header, *lines = path.read_bytes().split(b"\n")
    assert header.startswith(b"h" * 4096 + b" - log truncated at ")
    assert numbers(lines[:-1])[-1] == 2999
    assert path.stat().st_size <= LIMIT


def test_disk_full_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), LIMIT, HEADER)
    real = os.pwrite

    def short(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data[:3], offset)

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(ENOSPC, "pwrite")

    log.write("1.0000", b"one\n")
    for broken in (short, full):
        monkeypatch.setattr(os, "pwrite", broken)
        log.write("2.0000", b"lost\n")
    monkeypatch.setattr(os, "pwrite", real)
    log.write("3.0000", b"two\n")
    assert path.read_bytes() == HEADER + b"\none\ntwo\n"


def test_full_device() -> None:
    log = LogFile("/dev/full", LIMIT, HEADER)
    log.write("1.0000", b"lost\n")
    assert not log._regular
    log.close()


def test_fifo_without_reader_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    log = LogFile(str(path), LIMIT, HEADER)
    for _ in range(100):
        log.write("1.0000", b"z" * 8000 + b"\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, len(HEADER) + 1) == HEADER + b"\n"
    os.close(reader)
    log.close()


def test_closing_flushes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "log"
    log = LogFile(str(path), LIMIT, HEADER)
    log.close()
    log.close()
    log.write("1.0000", b"too late\n")
    assert len(synced) == 1
    assert path.read_bytes() == HEADER + b"\n"


@pytest.mark.usefixtures("cut")
def test_two_threads(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path), LIMIT, HEADER)
    threads = [threading.Thread(target=fill, args=(log, 0, 2000)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().split(b"\n")
    assert numbers(lines[1:-1])
    assert path.stat().st_size <= LIMIT


def test_collapse_range(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 4096 + b"b" * 4096 + b"c")
    with path.open("r+b") as file:
        try:
            collapse_range(file.fileno(), 0, 4096)
        except OSError as error:
            # tmpfs and overlays without it say so and change nothing.
            assert error.errno in (EOPNOTSUPP, EINVAL)
            assert path.stat().st_size == 8193
        else:
            assert path.read_bytes() == b"b" * 4096 + b"c"
        with pytest.raises(OSError, match="fallocate"):
            collapse_range(file.fileno(), 1, 1)
