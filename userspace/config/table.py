"""What one command line option is: the columns of the option table.

An :class:`Option` says everything about an option once; the scanner, the checks made after
scanning, the usage text and the manual page are all read from it.

The ``store`` column is the function that takes the value as given, checks it, and leaves the
result in :class:`~passt.userspace.config.options.Options`.  It runs at the moment the option
is met, left to right: ``--version`` acts at once, and what an earlier option established can
be relied on.  They are made in :mod:`passt.userspace.config.actions`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.userspace.config.options import Options

    Store = Callable[[Options, str], None]

PASTA = "pasta"
PASST = "passt"
BOTH = (PASST, PASTA)

#: What happens if an option occurs again: the last value wins, one value is kept for each IP
#: version, or values accumulate.
LAST = "last"
FAMILY = "family"
ADD = "add"


class Option:
    """One row of the table.

    * ``long``, ``short``: names, without dashes; ``short`` may be empty.
    * ``arg``: name of the value, as shown to the user; empty for a flag.
    * ``modes``: the programs that have the option; in others it is an error.
    * ``repeat``: :data:`LAST`, :data:`FAMILY` or :data:`ADD`.
    * ``default``: what happens without the option, as text; empty for flags.
    * ``help``: a line or two for the usage text.  ``details``: further paragraphs for the
      manual page, with options in backquotes.
    * ``implies``, ``cancels``: attributes of Options that are set and cleared along.
    * ``needs``: long name of the option that must be given too, anywhere.
    * ``excludes``: long names of options that must not be given, anywhere.
    * ``deprecated``: warn that it will go away.
    * ``hidden``: in no usage text or manual page.
    """

    __slots__ = (
        "arg",
        "cancels",
        "default",
        "deprecated",
        "details",
        "excludes",
        "help",
        "hidden",
        "implies",
        "long",
        "modes",
        "needs",
        "repeat",
        "short",
        "store",
    )

    def __init__(
        self,
        long: str,
        short: str,
        arg: str,
        store: Store,
        *,
        help: str,  # noqa: A002  (the name it has everywhere in this trade)
        details: str = "",
        default: str = "",
        modes: tuple[str, ...] = BOTH,
        repeat: str = LAST,
        implies: tuple[str, ...] = (),
        cancels: tuple[str, ...] = (),
        needs: str = "",
        excludes: tuple[str, ...] = (),
        deprecated: bool = False,
        hidden: bool = False,
    ) -> None:
        self.long = long
        self.short = short
        self.arg = arg
        self.store = store
        self.help = help
        self.details = details
        self.default = default
        self.modes = modes
        self.repeat = repeat
        self.implies = implies
        self.cancels = cancels
        self.needs = needs
        self.excludes = excludes
        self.deprecated = deprecated
        self.hidden = hidden

    @property
    def spelling(self) -> str:
        """The name used in messages about the option: the short one if it has one."""
        return f"-{self.short}" if self.short else f"--{self.long}"
