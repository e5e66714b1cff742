"""Noticing that a namespace's entry is gone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from passt.kernel import nswatch
from passt.kernel.errors import SetupError
from passt.kernel.nswatch import NamespaceWatch
from passt.kernel.target import open_namespace
from passt.syscalls import getdents, inotify, statfs


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    for name in ("ns", "other", "third"):
        (tmp_path / name).touch()
    return tmp_path


def watch(directory: Path, name: str = "ns") -> NamespaceWatch:
    return NamespaceWatch(os.open(directory, os.O_PATH | os.O_DIRECTORY), name)


def test_deletion(entries: Path) -> None:
    watched = watch(entries)
    assert watched.fd >= 0
    assert not watched.events_show_end()
    (entries / "ns").unlink()
    assert watched.events_show_end()


def test_several_deletions_in_one_read(entries: Path) -> None:
    watched = watch(entries)
    for name in ("other", "ns", "third"):
        (entries / name).unlink()
    assert watched.events_show_end()


def test_other_deletion_rename_and_new_file_are_nothing(entries: Path) -> None:
    watched = watch(entries)
    (entries / "other").unlink()
    (entries / "ns").rename(entries / "new")
    (entries / "ns2").touch()
    assert not watched.events_show_end()


def test_lost_events_mean_looking(entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(entries)
    overflow = [(-1, inotify.IN_Q_OVERFLOW, 0, "")]
    monkeypatch.setattr(inotify, "read", lambda _fd: overflow)
    assert not watched.events_show_end()
    (entries / "ns").unlink()
    assert watched.events_show_end()


def test_procfs_needs_a_timer() -> None:
    watched = watch(Path("/proc/self/ns"), "net")
    assert watched.fd == -1
    assert watched.warning == ""
    assert not watched.looks_gone()


@pytest.mark.parametrize(("step", "call"), [("init1", "init"), ("add_watch", "add_watch")])
def test_inotify_limits_mean_a_timer(
    entries: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "inotify: no")

    monkeypatch.setattr(inotify, call, refuse)
    watched = watch(entries)
    assert watched.fd == -1
    assert watched.warning == f"inotify_{step}: No space left on device, use a timer"
    assert not watched.looks_gone()
    (entries / "ns").unlink()
    assert watched.looks_gone()


def test_unknown_file_system_means_a_timer(entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int) -> int:
        raise OSError(5, "fstatfs")

    monkeypatch.setattr(statfs, "fs_type", refuse)
    assert watch(entries).fd == -1


@pytest.mark.parametrize(("number", "gone"), [(13, False), (12, False), (2, True), (3, True)])
@pytest.mark.parametrize("readable", [True, False])
def test_failing_looks(
    entries: Path, monkeypatch: pytest.MonkeyPatch, number: int, gone: bool, readable: bool
) -> None:
    """EACCES is normal in procfs, and lack of memory says nothing; the rest does."""
    if not readable:
        monkeypatch.setattr(nswatch, "_READ", os.O_RDONLY | os.O_DIRECTORY | os.O_CREAT)
    watched = watch(entries)

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(getdents, "contains", fail)
    if not readable:
        monkeypatch.setattr(os, "stat", fail)
    assert watched.looks_gone() is gone


def test_directory_that_cannot_be_listed(entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be watched either, but looked into by name."""
    monkeypatch.setattr(nswatch, "_READ", os.O_RDONLY | os.O_DIRECTORY | os.O_CREAT)
    directory = os.open(entries, os.O_PATH | os.O_DIRECTORY)
    watched = NamespaceWatch(directory, "ns")
    assert watched.unlisted == directory
    assert not watched.looks_gone()
    (entries / "ns").unlink()
    assert watched.looks_gone()


def test_looks_take_no_new_descriptor(entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a path: the running program has neither."""
    watched = watch(entries)
    assert watched.unlisted == -1
    for name in ("open", "stat", "listdir", "dup"):
        monkeypatch.setattr(os, name, None)
    assert not watched.looks_gone()
    (entries / "ns").unlink()
    assert watched.looks_gone()


def test_end_of_a_process_shows_in_its_directory() -> None:
    process = subprocess.Popen(["sleep", "60"])
    watched = watch(Path(f"/proc/{process.pid}/ns"), "net")
    assert not watched.looks_gone()
    process.kill()
    process.wait()
    assert watched.looks_gone()


def test_entry_of_a_large_directory(tmp_path: Path) -> None:
    """More entries than fit into one buffer."""
    for number in range(2000):
        (tmp_path / f"{number:0100d}").touch()
    for name in (f"{0:0100d}", f"{1999:0100d}"):
        watched = watch(tmp_path, name)
        assert not watched.looks_gone()
        (tmp_path / name).unlink()
        assert watched.looks_gone()


def test_target_is_opened_in_its_directory(entries: Path) -> None:
    entry = open_namespace("network", f"{entries}/ns")
    assert entry.name == "ns"
    assert os.path.sameopenfile(entry.fd, os.open(entries / "ns", os.O_RDONLY))
    assert os.fstat(entry.directory).st_ino == entries.stat().st_ino


def test_entries_of_one_directory_share_it(entries: Path) -> None:
    """Even if the path meanwhile leads elsewhere, as that of a process id may."""
    first = open_namespace("user", f"{entries}/other")
    moved = entries.with_name("moved")
    entries.rename(moved)
    entries.mkdir()
    second = open_namespace("network", f"{entries}/ns", first)
    assert second.directory == first.directory
    assert os.path.sameopenfile(second.fd, os.open(moved / "ns", os.O_RDONLY))
    third = open_namespace("network", "/proc/self/ns/net", first)
    assert third.directory != first.directory


def test_paths_without_directory(entries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(entries)
    assert open_namespace("user", "ns").name == "ns"
    assert open_namespace("user", "./ns").folder == "."


def test_missing_targets(entries: Path) -> None:
    with pytest.raises(SetupError) as caught:
        open_namespace("network", f"{entries}/none")
    assert str(caught.value) == (
        f"Couldn't open network namespace {entries}/none: No such file or directory"
    )
    with pytest.raises(SetupError, match=r"^Couldn't open user namespace /none: No such file"):
        open_namespace("user", "/none")


def test_fifo_does_not_block(entries: Path) -> None:
    os.mkfifo(entries / "fifo")
    os.close(open_namespace("network", f"{entries}/fifo").fd)
