"""What the options of pesto(1) do to the tables, one after the other.

Without ``--add``, ``--delete`` or ``--clear`` the user states what is wanted in the place of
what is there: the first specifier for a table clears all of it, of both protocols, once.  As
soon as one of ``--add`` and ``--delete`` occurred, specifiers add to or delete from what is
there.  ``--clear`` empties a table on the spot and leaves that as it is.

Tables are found by name, as the server calls them.  All this happens to a copy: an error
leaves the server with what it has.
"""

from __future__ import annotations

from passt.userspace.config.errors import UsageError
from passt.userspace.config.ports import PORT_OPTIONS, add_rules, delete_rules
from passt.userspace.flow.rules import HOST, PIF_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.config.ports import PortOption
    from passt.userspace.flow.rules import RuleTable

ADD = "-A"
DELETE = "-D"
CLEAR = "-C"

_PORT_OPTIONS = {option.spelling: option for option in PORT_OPTIONS}


class Editor:
    """Changes ``tables`` in place."""

    __slots__ = ("_by_name", "_cleared", "_mode")

    def __init__(self, tables: Sequence[RuleTable]) -> None:
        self._by_name = {table.name: table for table in tables}
        self._mode = ""
        #: Names of the tables that specifiers need not clear any more.
        self._cleared: set[str] = set()

    def apply(self, spelling: str, value: str) -> None:
        """Carry out the option ``spelling`` (``-A``, ``-t``, …).

        Raises :class:`~passt.userspace.config.errors.UsageError`; the tables may have been
        changed in part then.
        """
        if spelling == CLEAR:
            table = self._by_name.get(value)
            if table is None:
                raise UsageError(f"Unsupported pif name {value}")
            self._clear(table)
        elif spelling in (ADD, DELETE):
            self._mode = spelling
        else:
            self._specifier(_PORT_OPTIONS[spelling], value)

    def _specifier(self, option: PortOption, text: str) -> None:
        table = self._by_name.get(PIF_NAMES[option.pif])
        if table is None:
            side = "inbound" if option.pif == HOST else "outbound"
            raise UsageError(f"Can't use {option.spelling}, no {side} interface")
        if self._mode == DELETE:
            delete_rules(table, option, text)
            return
        if not self._mode and table.name not in self._cleared:
            self._clear(table)
        add_rules(table, option, text)

    def _clear(self, table: RuleTable) -> None:
        table.clear()
        self._cleared.add(table.name)
