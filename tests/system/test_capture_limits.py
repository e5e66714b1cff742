"""A capture on a file system that is too small for it: one message, and the network goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.kit import topology as net
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Program, forwarding
from tests.system.kit.users import User

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ours_only")]

SPACE = 256 << 10

#: Run the words that follow with a file system of that size in $0, then save what it holds.
SCRIPT = f"""
mount -t tmpfs -o size={SPACE},mode=777 none "$0" || exit 99
"$@"
status=$?
cp "$0"/capture "$0".saved
exit $status
"""


def capture(
    program: Program, host: Netns, user: User, folder: Path, *options: str
) -> tuple[bytes, list[str]]:
    """Send some megabytes of pings, with options for the capture; returns it, and the log."""
    folder.chmod(0o777)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o755)
    small = folder / "small"
    small.mkdir()
    log = folder / "log"
    pings = ["ping", "-q", "-c", "300", "-i", "0.002", "-s", "8000", net.REMOTE[4]]
    words = [*program.argv, *forwarding(()), "--config-net", "--log-file", str(log)]
    words += ["--pcap", str(small / "capture"), *options, "--", *pings]
    done = host.run(
        words, prefix=["unshare", "--mount", "sh", "-c", SCRIPT, str(small), *user.prefix]
    )
    # A busy machine may lose one.
    received = int(done.stdout.partition(" packets transmitted, ")[2].split()[0])
    assert received >= 295, done.stdout
    return (folder / "small.saved").read_bytes(), log.read_text().splitlines()


def errors(log: list[str]) -> list[str]:
    return [line.partition("ERROR:   ")[2] for line in log if "ERROR" in line]


def test_half_of_the_space_by_default(
    program: Program, host: Netns, user: User, tmp_path: Path
) -> None:
    data, log = capture(program, host, user, tmp_path)
    assert SPACE // 4 < len(data) <= SPACE // 2
    assert errors(log) == ["Capture file has reached its size limit"]


def test_full_file_system(program: Program, host: Netns, user: User, tmp_path: Path) -> None:
    data, log = capture(program, host, user, tmp_path, "--pcap-size", "0")
    assert SPACE * 3 // 4 < len(data) <= SPACE
    assert errors(log) == ["Cannot write to capture file: No space left on device"]


def test_size_as_given(program: Program, host: Netns, user: User, tmp_path: Path) -> None:
    data, log = capture(program, host, user, tmp_path, "--pcap-size", "50K")
    assert 30 << 10 < len(data) <= 50 << 10
    assert errors(log) == ["Capture file has reached its size limit"]
