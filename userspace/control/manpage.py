"""The manual page pesto(1), made from the option table.

``python -m passt.userspace.control.manpage [FILE]`` writes it to FILE or to standard output.
The page kept in ``docs/`` is the output of this program; a test compares the two.
"""

from __future__ import annotations

import sys

from passt.userspace.config.manpage import entry
from passt.userspace.control.options import TABLE

_HEAD = r"""
.TH PESTO 1
.SH NAME
pesto \- show or change the forwarded ports of a running pasta or passt
.SH SYNOPSIS
.B pesto
.RI [ OPTION ]...
.I PATH
.SH DESCRIPTION
.B pesto
talks to the
.BR pasta (1)
or
.BR passt (1)
that was started with
.B \-\-conf\-path
.IR PATH .
Without options that change something, it prints the tables of forwarding rules, one for each side
that ports can be opened on.
.PP
Changes are made to a copy of the tables, one option after the other, and then sent as a whole.
If any of them is impossible, nothing changes at all.
Connections that exist are not affected by changes.
.PP
One client is served at a time, from reading the tables to sending them back, so that changes by
several callers add up; the others wait.
.SH OPTIONS
"""

_TAIL = r"""
.SH REPLACING, ADDING, DELETING
Without
.BR \-\-add ,
.B \-\-delete
and
.BR \-\-clear ,
specifiers say what is wanted in the place of what is there: the first one for a table removes all
its rules, TCP and UDP.
The other table stays as it is.
.PP
.RS
.B pesto \-t 8080:80 \-u 5353 PATH
.RE
.PP
leaves exactly these two rules for ports of the host.
.PP
.B \-\-add
and
.B \-\-delete
hold for the specifiers that follow, up to the next of them:
.PP
.RS
.B pesto \-A \-t 2000 \-D \-t 3000 \-U 5000 PATH
.RE
.PP
adds a rule for TCP port 2000, and deletes that for TCP port 3000 of the host, and that for UDP port
5000 of the namespace.
Adding what is already there is an error, and so is deleting what is not.
.B \-\-clear
empties a table where it stands, and does not change how specifiers are taken otherwise.
.PP
New rules keep the order in which they were given, behind those that are there.
.SH JSON
With
.BR \-\-json ,
one object is printed, with the members
.B path
and
.BR tables ,
and
.B previous
if wanted.
Tables are lists of objects with
.B pif
(the name),
.BR id ,
.B capabilities
and
.BR rules .
A rule has
.B protocol
(tcp or udp),
.B address
(* for both IP versions),
.B interface
(or null),
.B first
and
.B last
port,
.B target_address
(null if it follows from the connection),
.B target_first
and
.B target_last
port,
.B best_effort
and
.BR auto .
Members may be added in later versions.
.SH EXIT STATUS
.TP
.B 0
The tables were printed.
After changes: the new rules are in force, and all ports that must be open are.
.TP
.B 1
Something could not be done; messages on standard error say what.
If ports could not be opened, the new rules are in force nevertheless, and
.BR pasta (1)
keeps trying.
If the server did not answer in time the outcome is unknown.
In all other cases nothing has changed.
.PP
The original
.B pasta
and
.B passt
do not report ports that could not be opened: with them, exit status 0 means that the rules were
accepted.
.SH EXAMPLES
Forward one more port:
.PP
.RS
.B pesto \-\-add \-t 8443:443 /run/user/1000/pasta.sock
.RE
.PP
Move a service to another port of the host:
.PP
.RS
.B pesto \-D \-t 8080:80 \-A \-t 8081:80 /run/user/1000/pasta.sock
.RE
.PP
Print the TCP ports that the host listens on:
.PP
.RS
.B pesto \-\-json PATH | jq \(aq.tables[0].rules[] | select(.protocol == \(dqtcp\(dq) | .first\(aq
.RE
.SH SEE ALSO
.BR passt (1),
.BR pasta (1),
.BR unix (7)
"""


def manual_page() -> str:
    """Return the source of pesto(1)."""
    return "".join([_HEAD.lstrip("\n"), *map(entry, TABLE), _TAIL.lstrip("\n")])


def main(arguments: list[str]) -> int:
    """Write the page to the named file, or to standard output."""
    if not arguments:
        sys.stdout.write(manual_page())
        return 0
    with open(arguments[0], "w", encoding="utf-8") as page:
        page.write(manual_page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
