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


class ImmediateExit(Exception):  # noqa: N818  (not an error)
    """An option such as ``--version`` was met: write ``text`` on standard output, and exit.

    ``status`` is the exit status; other than 0 if the text is bad news.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
