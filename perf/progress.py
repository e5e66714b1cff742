"""What is shown while a run goes on.

On a terminal a bar (rich), or if that is not installed, one line per measurement; elsewhere, in
continuous integration above all, nothing, unless asked for.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO


class Progress:
    """Shows nothing."""

    def start(self, total: int, seconds: float) -> None:
        """Announce *total* measurements, of some *seconds* in all."""

    def step(self, label: str) -> None:
        """Announce the next measurement."""

    def note(self, text: str) -> None:
        """Say something that stays."""

    def close(self) -> None:
        """End the display."""


class Lines(Progress):
    """One line per measurement."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._done = 0
        self._total = 0
        self._started = time.monotonic()

    def start(self, total: int, seconds: float) -> None:
        """Say how much there is to do."""
        self._total = total
        self.note(f"{total} measurements, about {duration(seconds)}")

    def step(self, label: str) -> None:
        """Say what is being measured."""
        self._done += 1
        elapsed = duration(time.monotonic() - self._started)
        self.note(f"[{self._done}/{self._total}] {elapsed} {label}")

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)


class Bar(Progress):
    """A bar with what is being measured, and the time that is left."""

    def __init__(self, rich_progress: Any) -> None:
        self._progress = rich_progress
        self._task: Any = None

    @classmethod
    def make(cls) -> Bar | None:
        """A bar on standard error, None if rich is not installed."""
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress
        except ImportError:
            return None
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        return cls(RichProgress(*columns, console=Console(stderr=True), transient=True))

    def start(self, total: int, seconds: float) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("", total=total)
        self._progress.start()
        self.note(f"{total} measurements, about {duration(seconds)}")

    def step(self, label: str) -> None:
        """The one before is done."""
        done = self._progress.tasks[0].description != ""
        self._progress.update(self._task, advance=1 if done else 0, description=label)

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def display(verbose: bool = False) -> Progress:
    """What fits standard error."""
    if sys.stderr.isatty() and not os.environ.get("CI"):
        return Bar.make() or Lines(sys.stderr)
    return Lines(sys.stderr) if verbose else Progress()
