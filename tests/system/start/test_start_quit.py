"""Ending with the namespace that is served."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.kit.netns import Netns, wait_for
from tests.system.start.runner import Runner, alive, wait_gone

pytestmark = pytest.mark.system


@pytest.fixture
def entry(host: Netns, tmp_path: Path) -> Iterator[Path]:
    """A network namespace bound to a file in a directory with other files."""
    for name in ("a", "ns", "z"):
        (tmp_path / name).touch()
    subprocess.run(["unshare", f"--net={tmp_path}/ns", "true"], check=True)
    yield tmp_path / "ns"
    subprocess.run(["umount", "-l", tmp_path / "ns"], check=False, capture_output=True)


def serve(pasta: Runner, folder: Path, *words: str) -> int:
    """Start pasta in the background, logging to a file in *folder*; its process id."""
    done = pasta("-P", f"{folder}/pid", "-l", f"{folder}/log", *words)
    assert done.returncode == 0, done.stderr
    return int((folder / "pid").read_text())


def unbind(path: Path) -> None:
    """Delete the entry as container managers do."""
    subprocess.run(["umount", "-l", path], check=True)
    path.unlink()


def test_deletion(root_pasta: Runner, entry: Path) -> None:
    pid = serve(root_pasta, entry.parent, "--config-net", "--netns", str(entry))
    time.sleep(0.2)
    assert alive(pid)
    unbind(entry)
    wait_gone(pid, 1)
    assert "Namespace ns is gone, exiting" in (entry.parent / "log").read_text()


def test_foreground_status(root_pasta: Runner, entry: Path) -> None:
    process = root_pasta.start("-f", "--netns", str(entry))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Inbound"):
            break
    time.sleep(0.3)
    unbind(entry)
    assert process.wait(3) == 0


def test_several_deletions_at_once(root_pasta: Runner, entry: Path) -> None:
    pid = serve(root_pasta, entry.parent, "--netns", str(entry))
    os.kill(pid, signal.SIGSTOP)
    (entry.parent / "a").unlink()
    unbind(entry)
    (entry.parent / "z").unlink()
    os.kill(pid, signal.SIGCONT)
    wait_gone(pid, 1)


def test_other_events_are_nothing(root_pasta: Runner, entry: Path) -> None:
    pid = serve(root_pasta, entry.parent, "--netns", str(entry))
    (entry.parent / "a").unlink()
    subprocess.run(["umount", "-l", entry], check=True)
    entry.rename(entry.parent / "renamed")
    (entry.parent / "renamed").unlink()
    time.sleep(1.5)
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


def test_told_to_stay(root_pasta: Runner, entry: Path) -> None:
    pid = serve(root_pasta, entry.parent, "--no-netns-quit", "--netns", str(entry))
    unbind(entry)
    time.sleep(1.5)
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


@pytest.mark.parametrize("form", ["pid", "path"])
def test_end_of_the_process(pasta: Runner, form: str) -> None:
    """Its directory in procfs tells nothing, so this is found out by looking."""
    target = pasta.sleeper("-Urn")
    ns = f"/proc/{target.pid}/ns"
    if form == "pid":
        words = [str(target.pid)]
    else:
        words = ["--userns", f"{ns}/user", "--netns", f"{ns}/net"]
    process = pasta.start("-f", *words)
    time.sleep(1.3)
    assert process.poll() is None
    target.kill()
    target.wait(3)
    assert process.wait(2) == 0
    assert process.stderr is not None
    assert process.stderr.read().endswith("Namespace net is gone, exiting\n")


def test_process_keeps_being_told_to_stay(pasta: Runner) -> None:
    target = pasta.sleeper("-Urn")
    process = pasta.start("-f", "--no-netns-quit", str(target.pid))
    time.sleep(0.5)
    target.kill()
    target.wait(3)
    time.sleep(1.5)
    assert process.poll() is None


def test_inotify_exhausted(user_pasta: Runner) -> None:
    """The limit is set in a user namespace of the test's own."""
    words = " ".join(user_pasta.program.argv)
    script = f"""
        d=$(mktemp -d) && cd $d && touch ns && unshare --net=ns true
        echo 0 >/proc/sys/user/max_inotify_instances
        {words} -q -P pid -l log --netns ./ns || exit
        echo ready
        sleep 1.2
        read pid <pid
        kill -0 $pid && echo stays
        umount -l ns; rm ns
        for i in 1 2 3 4 5 6 7 8; do
            sleep 0.25
            grep -q 'State:.[ZX]' /proc/$pid/status || [ ! -e /proc/$pid ] || continue
        done
        grep -q 'State:.[ZX]' /proc/$pid/status || [ ! -e /proc/$pid ] && echo gone
        cat log
    """
    done = user_pasta.run(["unshare", "-rmn", "--propagation", "private", "sh", "-c", script])
    lines = done.stdout.splitlines()
    assert lines[:3] == ["ready", "stays", "gone"], done.stdout + done.stderr
    assert "inotify_init1: Too many open files, use a timer\n" in done.stderr


def test_recycled_process_id_cannot_fool_us(user_pasta: Runner) -> None:
    """What is watched is the directory that was opened, not its name."""
    target = user_pasta.sleeper("-Urn")
    process = user_pasta.start("-f", str(target.pid))

    def target_of(fd: str) -> str:
        try:
            return os.readlink(f"/proc/{process.pid}/fd/{fd}")
        except FileNotFoundError:
            return ""  # still starting: closed since it was listed

    def watched() -> list[str]:
        links = [target_of(fd) for fd in os.listdir(f"/proc/{process.pid}/fd")]
        return [link for link in links if link == f"/proc/{target.pid}/ns"]

    assert wait_for(watched) == [f"/proc/{target.pid}/ns"]
