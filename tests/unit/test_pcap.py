"""Capture files: format, time stamps, batching, short writes, limits and failing writes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from scapy.utils import rdpcap

from passt.userspace import pcap
from passt.userspace.pcap import Pcap


def unexpected(text: str) -> None:
    """Fails the test when a capture complains."""
    raise AssertionError(text)


def records(data: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """All records of a complete file: seconds, microseconds, captured, original, content."""
    assert struct.unpack_from("=IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    at = 24
    found = []
    while at < len(data):
        seconds, micros, captured, original = struct.unpack_from("=IIII", data, at)
        at += 16 + captured
        assert at <= len(data)
        found.append((seconds, micros, captured, original, data[at - captured : at]))
    return found


def test_scapy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    frames = [bytes((n,)) * size for n, size in enumerate((14, 60, 61, 65589))]
    capture = Pcap.open(str(path), unexpected)
    for frame in frames:
        capture.frame(frame)
    capture.close()
    # Scapy itself reads at most 65535 bytes of a frame.
    assert [bytes(packet) for packet in rdpcap(str(path))] == [frame[:65535] for frame in frames]
    assert [record[2:4] for record in records(path.read_bytes())] == [
        (len(frame), len(frame)) for frame in frames
    ]


def test_created_privately_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    Pcap.open(str(path), unexpected).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"x" * 100000)
    capture = Pcap.open(str(path), unexpected)
    assert path.stat().st_size == 24
    capture.close()
    assert records(path.read_bytes()) == []


def test_open_failure_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Pcap.open(str(tmp_path / "missing" / "capture"), unexpected)


def test_descriptor_is_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real_open = os.open

    def recording(path: str, flags: int, mode: int) -> int:
        opened.append(real_open(path, flags, mode))
        return opened[-1]

    monkeypatch.setattr(os, "open", recording)
    capture = Pcap.open(str(tmp_path / "capture"), unexpected)
    assert [os.get_inheritable(fd) for fd in opened] == [False]
    capture.close()
    assert [fd_is_open(fd) for fd in opened] == [False]


def fd_is_open(fd: int) -> bool:
    """The descriptor exists."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_parts_make_one_record(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.frame(b"head", memoryview(b"..body")[2:], bytearray(b"tail"), b"")
    capture.close()
    assert [record[4] for record in records(path.read_bytes())] == [b"headbodytail"]


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (1_000_000_000_000_000_000, (1_000_000_000, 0)),
        (1_234_567_890_999_999_999, (1_234_567_890, 999_999)),
        (1_234_567_890_000_000_999, (1_234_567_890, 0)),
        (1_234_567_890_000_001_000, (1_234_567_890, 1)),
        (5_000_000_000_999_999_500, (5_000_000_000 - (1 << 32), 999_999)),
    ],
)
def test_microseconds_are_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nanoseconds: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(pcap, "time_ns", lambda: nanoseconds)
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.frame(b"frame")
    capture.close()
    assert records(path.read_bytes())[0][:2] == expected


def test_records_wait_for_the_flush(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.frame(b"one")
    capture.frame(b"two")
    assert path.stat().st_size == 24
    capture.flush()
    assert [record[4] for record in records(path.read_bytes())] == [b"one", b"two"]
    capture.close()


def test_buffer_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = os.write

    def recording(fd: int, data: memoryview) -> int:
        sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", recording)
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    frames = [n.to_bytes(2, "big") * 5000 for n in range(100)]
    for frame in frames:
        capture.frame(frame)
    capture.close()
    assert [record[4] for record in records(path.read_bytes())] == frames
    assert max(sizes) <= 262144 + 16
    assert 4 <= len(sizes) <= 10


@pytest.mark.parametrize("parts", [1, 3])
def test_content_is_cut_at_the_snapshot_length(tmp_path: Path, parts: int) -> None:
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.frame(*[b"x" * 300000] * parts)
    capture.frame(b"next")
    capture.close()
    first, second = records(path.read_bytes())
    assert first[2:] == (262144, 300000 * parts, b"x" * 262144)
    assert second[4] == b"next"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.frame(b"a frame that takes several writes")
    capture.close()
    assert records(path.read_bytes())[0][4] == b"a frame that takes several writes"


def test_synchronised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "capture"
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _fd: seen.append(path.stat().st_size))
    capture = Pcap.open(str(path), unexpected)
    capture.frame(b"0123456789")
    capture.close()
    assert seen == [24 + 16 + 10]


def test_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    capture = Pcap(writer, unexpected)
    capture.frame(b"through a pipe")
    capture.close()
    with os.fdopen(reader, "rb") as stream:
        assert records(stream.read())[0][4] == b"through a pipe"


def test_reader_gone(tmp_path: Path) -> None:
    reports: list[str] = []
    reader, writer = os.pipe()
    capture = Pcap(writer, reports.append)
    os.close(reader)
    for _ in range(3):
        capture.frame(b"lost")
        capture.flush()
    capture.close()
    assert reports == ["Cannot write to capture file: Broken pipe"]
    assert not fd_is_open(writer)


@pytest.mark.parametrize("size", [10, 5000])
def test_full_disk_is_reported_once(size: int) -> None:
    reports: list[str] = []
    capture = Pcap(os.open("/dev/full", os.O_WRONLY), reports.append)
    for _ in range(200):
        capture.frame(b"x" * size)
    capture.flush()
    capture.close()
    assert reports == [f"Cannot write to capture file: {os.strerror(errno.ENOSPC)}"]


def test_full_disk_found_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[str] = []
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), reports.append)

    def failing(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", failing)
    for _ in range(100):
        capture.frame(b"x" * 60000)
    capture.close()
    assert reports == ["Cannot write to capture file: full"]
    assert path.stat().st_size == 24


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EINVAL, []), (errno.EIO, ["Cannot write to capture file: why"])],
)
def test_failing_synchronisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: list[str]
) -> None:
    def failing(_fd: int) -> None:
        raise OSError(number, "why")

    monkeypatch.setattr(os, "fsync", failing)
    reports: list[str] = []
    Pcap.open(str(tmp_path / "capture"), reports.append).close()
    assert reports == expected


def test_size_limit(tmp_path: Path) -> None:
    reports: list[str] = []
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), reports.append, limit=24 + 2 * (16 + 100))
    for _ in range(5):
        capture.frame(b"x" * 100)
    capture.close()
    assert path.stat().st_size == 24 + 2 * (16 + 100)
    assert len(records(path.read_bytes())) == 2
    assert reports == ["Capture file has reached its size limit"]


class Space:
    """What fstatvfs() says of a file system."""

    f_frsize = 512

    def __init__(self, free: int) -> None:
        self.f_bavail = free // self.f_frsize


@pytest.mark.parametrize(("free", "frames"), [(1 << 20, 4), (8192, 0), (0, 0)])
def test_default_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, frames: int
) -> None:
    """Half of what is free: never more, not even where nothing is."""
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: Space(free))
    reports: list[str] = []
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), reports.append, None)
    for _ in range(10):
        capture.frame(bytes(130000))
    capture.close()
    assert len(records(path.read_bytes())) == frames
    assert path.stat().st_size <= max(free // 2, 24)
    assert reports == ["Capture file has reached its size limit"]


def test_no_limit_where_there_is_no_file() -> None:
    capture = Pcap.open("/dev/null", unexpected, None)
    for _ in range(10):
        capture.frame(bytes(200000))
    capture.close()


def test_everything_after_close_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    capture = Pcap.open(str(path), unexpected)
    capture.close()
    capture.frame(b"late")
    capture.flush()
    capture.close()
    assert path.stat().st_size == 24
