"""Option scanning with the conventions and the words of GNU getopt_long(3).

Callers depend on both.  Podman looks for ``unrecognized option '--map-guest-addr`` to find
out what an older program lacks, and scripts write ``--opt=value``, ``--opt value``,
``-ovalue``, ``-o value``, clusters (``-fd``) and abbreviations (``--foregr``).

Scanning stops at the first word that is not an option, or after ``--``: what follows belongs
to the command to be run (the ``+`` mode of getopt).  A lone ``-`` is such a word.  Programs that
take options behind other words, too, go on with another scanner, unless there was a ``--``.

Python's own :mod:`getopt` words its messages differently and reads the whole line before
anything can act, whereas here ``--version`` must act where it stands, after the errors to
its left and before those to its right.  Hence :class:`Scanner` is an iterator.
"""

from __future__ import annotations

from passt.userspace.config.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    from passt.userspace.config.table import Option


class Scanner:
    """Iterates over ``(option, value)`` pairs; ``value`` is empty for options without one.

    ``name`` starts each message (getopt uses ``argv[0]`` as it is).  Once the iteration has
    ended, :attr:`operands` holds the remaining words, and :attr:`ended_by_dashes` tells whether
    they come after ``--``.  Iterating raises
    :class:`~passt.userspace.config.errors.UsageError` with ``show_usage`` set at the first
    word that fits no option.
    """

    def __init__(self, name: str, words: Sequence[str], table: Sequence[Option]) -> None:
        self._name = name
        self._words = words
        self._by_long = {option.long: option for option in table}
        self._by_short = {option.short: option for option in table if option.short}
        self.operands: list[str] = []
        self.ended_by_dashes = False

    def __iter__(self) -> Iterator[tuple[Option, str]]:
        words = self._words
        index = 0
        while index < len(words):
            word = words[index]
            if word == "--":
                index += 1
                self.ended_by_dashes = True
                break
            if len(word) < 2 or word[0] != "-":
                break
            index += 1
            if word[1] == "-":
                option, value = self._long(word)
                if value is None:
                    if option.arg:
                        if index == len(words):
                            self._fail(f"option '--{option.long}' requires an argument")
                        value = words[index]
                        index += 1
                    else:
                        value = ""
                yield option, value
                continue
            position = 1
            while position < len(word):
                letter = word[position]
                position += 1
                found = self._by_short.get(letter)
                if found is None:
                    self._fail(f"invalid option -- '{letter}'")
                value = ""
                if found.arg:
                    value = word[position:]
                    position = len(word)
                    if not value:
                        if index == len(words):
                            self._fail(f"option requires an argument -- '{letter}'")
                        value = words[index]
                        index += 1
                yield found, value
        self.operands = list(words[index:])

    def _long(self, word: str) -> tuple[Option, str | None]:
        """Resolve ``--name`` or ``--name=value``; an exact name wins over longer ones."""
        name, equals, text = word[2:].partition("=")
        option = self._by_long.get(name)
        if option is None:
            candidates = [long for long in self._by_long if long.startswith(name)]
            if not candidates:
                self._fail(f"unrecognized option '{word}'")
            shown = [long for long in candidates if not self._by_long[long].hidden]
            # Another name of the same option does not make it ambiguous.
            candidates = shown or candidates
            if len(candidates) > 1:
                names = " ".join(f"'--{long}'" for long in candidates)
                self._fail(f"option '{word}' is ambiguous; possibilities: {names}")
            option = self._by_long[candidates[0]]
        if not equals:
            return option, None
        if not option.arg:
            self._fail(f"option '--{option.long}' doesn't allow an argument")
        return option, text

    def _fail(self, text: str) -> NoReturn:
        raise UsageError(f"{self._name}: {text}", show_usage=True)
