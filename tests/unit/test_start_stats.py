"""The lines that --stats prints."""

from __future__ import annotations

import pytest

from passt.userspace.flow.table import Flow, FlowTable
from passt.userspace.loop import Loop
from passt.userspace.stats import Statistics, header
from passt.userspace.wire import drops
from tests.unit.fakes import FakeLink


def statistics(interval: int) -> tuple[Statistics, Loop, FlowTable]:
    loop, table = Loop(), FlowTable()
    loop.now = 100.0
    link = FakeLink()
    link.rx_frames, link.tx_frames, link.tx_dropped = 12, 10, 3
    return Statistics(interval, loop, link, table), loop, table


def test_line_follows_the_interval(capfd: pytest.CaptureFixture[str]) -> None:
    stats, loop, table = statistics(2)
    table.add(Flow())
    dropped = sum(drops.counts)
    loop.now = 101.9
    stats.tick()
    assert capfd.readouterr().err == ""
    loop.now = 102.0
    stats.tick()
    *staircase, line = capfd.readouterr().err.splitlines()
    assert "\n".join(staircase) + "\n" == header()
    assert line.split() == ["2", "12", str(dropped), "10", "3", "1", "0"]
    assert len(line) == 8 * 7
    loop.now = 103.9
    stats.tick()
    assert capfd.readouterr().err == ""


def test_header_every_20_lines(capfd: pytest.CaptureFixture[str]) -> None:
    stats, loop, _ = statistics(1)
    for _ in range(41):
        loop.now += 1.0
        stats.tick()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 41 + 3 * 7
    assert lines[0].endswith("rounds of the event loop")


def test_columns_are_under_their_names() -> None:
    rows = header().splitlines()
    for column, row in enumerate(rows):
        assert row[8 * column + 7] not in " |"
        assert row[: 8 * column].count("|") == column
