"""The host's resolver configuration, as far as a guest has use for it (resolv.conf(5)).

Nameservers and search domains count, everything else is left to the host's own programs.
Lines are read the way the C library does: a keyword at the very start, blanks or tabs behind
it, and of several ``search`` lines the last one.  A ``#`` or ``;`` behind a blank starts a
comment.  ``domain`` is not looked at.

The file belongs to the host's administrator, but it is not worth trusting: it is read to a
limit, once, and lines that make no sense are passed over.
"""

from __future__ import annotations

import os

from passt.userspace.config import values

PATH = "/etc/resolv.conf"

#: Bytes of the file that are looked at.
MAX_SIZE = 64 << 10

#: Names of the search list that are kept.
MAX_SEARCH = 6

_COMMENT = (b"#", b";")


class ResolvConf:
    """What a resolv.conf says: addresses, packed and in order, and names of the search list."""

    __slots__ = ("nameservers", "search")

    def __init__(self, nameservers: list[bytes], search: list[str]) -> None:
        self.nameservers = nameservers
        self.search = search


def read(path: str = PATH) -> ResolvConf:
    """Read the file at ``path``; one that cannot be read says nothing."""
    try:
        # A FIFO put there must not hold us up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ResolvConf([], [])
    try:
        with open(fd, "rb", 0) as file:
            text = file.read(MAX_SIZE) or b""
    except OSError:
        text = b""
    return parse(text)


def parse(content: bytes) -> ResolvConf:
    """Interpret the ``content`` of a resolv.conf.

    The scope of a link-local address is cut off: it is an interface of the host.
    """
    nameservers: list[bytes] = []
    search: list[str] = []
    for line in content.split(b"\n"):
        if line[:1].isspace():
            continue
        words = _words(line)
        if len(words) < 2:
            continue
        if words[0] == b"nameserver":
            addr = values.address(os.fsdecode(words[1].partition(b"%")[0]))
            if addr is not None and any(values.unmapped(addr)):
                nameservers.append(values.unmapped(addr))
        elif words[0] == b"search":
            search = [os.fsdecode(word) for word in words[1 : 1 + MAX_SEARCH]]
    return ResolvConf(nameservers, search)


def _words(line: bytes) -> list[bytes]:
    """The words of ``line`` up to a comment."""
    words = line.split()
    for index, word in enumerate(words):
        if word.startswith(_COMMENT):
            return words[:index]
    return words
