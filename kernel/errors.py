"""The exception of everything that start-up asks of the kernel."""

from __future__ import annotations

import os


class SetupError(Exception):
    """A step of start-up failed; the text is one complete line for the user."""


def reason(error: OSError) -> str:
    """The system's words for what ``error`` stands for, without names of calls or paths."""
    return os.strerror(error.errno or 0)
