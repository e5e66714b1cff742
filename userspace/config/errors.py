"""The two ways in which reading a command line ends early.

Both leave the decision of where to write and with which status to exit to the program:
:func:`passt.userspace.config.usage.report` does what the command line tools do.
"""

from __future__ import annotations


class UsageError(Exception):
    """The command line cannot be accepted; exit status 1.

    ``message`` is what goes to standard error, usually one line naming the option or its
    value; a second line, after ``\\n``, names the forwarding rule concerned.  With
    ``show_usage`` the whole usage text follows, as for unknown options.
    """

    def __init__(self, message: str, show_usage: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.show_usage = show_usage


class ImmediateExit(Exception):  # noqa: N818  (not an error: exit status 0)
    """An option such as ``--version`` was met: write ``text`` on standard output, exit 0."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
