"""The manual pages pasta(1) and passt(1), made from the option table.

``python -m passt.userspace.config.manpage MODE [FILE]`` writes one to FILE or to standard output.
The pages kept in ``docs/`` are the output of this program; a test compares them.

The source language is man(7).  Details in the table may quote words in backquotes, which are
set in bold.
"""

from __future__ import annotations

import sys

from passt.userspace.config.catalogue import TABLE
from passt.userspace.config.table import PASST, PASTA
from passt.userspace.config.usage import repetition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.config.table import Option

_HEAD = r"""
.TH PASTA 1
.SH NAME
pasta \- unprivileged user\-mode networking for network namespaces
.SH SYNOPSIS
.B pasta
.RI [ OPTION "]... [" COMMAND " [" ARG ]...]
.br
.B pasta
.RI [ OPTION ]...
.I PID
.br
.B pasta
.RI [ OPTION ]...
.B \-\-netns
.IR PATH | NAME
.SH DESCRIPTION
.B pasta
gives a network namespace access to the networks of the host without any privileges there.
It presents a network interface to the namespace, and translates the traffic of that interface
to and from ordinary sockets of the host.
To the outside, the namespace appears with the addresses of the host.
.PP
Without further words,
.B pasta
runs a login shell, by
.B SHELL
or
.IR /bin/sh ,
in new network, user, PID, mount, IPC and UTS namespaces, and leaves when it ends.
A
.I COMMAND
is run in the same manner.
A single word of decimal digits is the
.I PID
of a process whose network namespace is to be served;
.B \-\-netns
names the namespace by itself.
In these two cases
.B pasta
goes to the background as soon as the network is usable, and leaves when the namespace is gone.
.PP
Options end at the first word that is not one, or at
.BR \-\- .
"""

_CONVENTIONS = r"""Long options can be abbreviated as long as they stay unique.
If an option is repeated the last value counts, unless stated otherwise.
Numbers of bytes and seconds can be decimal, hexadecimal
.RB ( 0x )
or octal
.RB ( 0 ).
"""

_TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
The namespace is gone, or the process was asked to end by SIGTERM or SIGQUIT.
In background mode, for the calling process: the network is ready.
.TP
.B 1
Something could not be done; a message on standard error says what.
.TP
.I N
The command ended with status
.IR N ,
or was killed by signal
.I N
\- 128.
.SH SANDBOX
Before it carries any traffic,
.B pasta
gives up what it needed in order to start.
It has namespaces of its own for mounts, IPC, host name and, in background, processes;
an empty root directory that cannot be written to;
no capabilities, but for binding low ports in the namespace; no core files;
and only those system calls that
.B \-\-print\-seccomp
lists, none of which opens files or starts programs.
Any other ends the process by SIGSYS.
If one of these steps fails,
.B pasta
does not start.
A command is not concerned: it keeps what it would have without
.BR pasta .
.SH ENVIRONMENT
.TP
.B SHELL
The shell to be run without a command.
.SH EXAMPLES
Run a shell with a configured interface:
.PP
.RS
.B pasta \-\-config\-net
.RE
.PP
Run a server and reach it by port 8080 of the host:
.PP
.RS
.B pasta \-\-config\-net \-t 8080:80 \-\- nginx \-g \(aqdaemon off;\(aq
.RE
.PP
Serve an existing network namespace:
.PP
.RS
.B pasta \-\-config\-net \-\-netns /run/user/1000/netns/demo
.RE
.SH SEE ALSO
.BR network_namespaces (7),
.BR user_namespaces (7),
.BR unshare (1),
.BR nsenter (1)
"""


_MACHINE_HEAD = r"""
.TH PASST 1
.SH NAME
passt \- unprivileged user\-mode networking for virtual machines
.SH SYNOPSIS
.B passt
.RI [ OPTION ]...
.SH DESCRIPTION
.B passt
gives a virtual machine access to the networks of the host without any privileges there.
It carries the frames of the machine's network interface over a socket, as QEMU's
.B \-netdev stream
does, and translates them to and from ordinary sockets of the host.
To the outside, the machine appears with the addresses of the host, which it is told by DHCP,
DHCPv6 and Router Advertisements.
.PP
The program waits for the machine at a path that it prints, and goes to the background as soon as
it can be connected to.
When the machine has gone, it waits for the next, unless
.B \-\-one\-off
is given.
.PP
"""

_MACHINE_TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
The guest has gone, with
.BR \-\-one\-off ,
or the process was asked to end by SIGTERM or SIGQUIT.
In background mode, for the calling process: the guest can connect.
.TP
.B 1
Something could not be done; a message on standard error says what.
.SH SANDBOX
Before it serves a guest,
.B passt
gives up what it needed in order to start.
It has namespaces of its own for users, mounts, IPC, host name and, in background, processes;
an empty root directory that cannot be written to;
no capabilities; no core files;
and only those system calls that
.B \-\-print\-seccomp
lists, none of which opens files or starts programs.
Any other ends the process by SIGSYS.
If one of these steps fails,
.B passt
does not start.
.SH EXAMPLES
Start a machine, and reach its SSH server by port 2222 of the host:
.PP
.RS
.B passt \-t 2222:22 \-\-socket /tmp/demo.socket
.br
.B qemu\-system\-x86_64 ... \-device virtio\-net\-pci,netdev=s
.B \-netdev stream,id=s,server=off,addr.type=unix,addr.path=/tmp/demo.socket
.RE
.SH SEE ALSO
.BR pasta (1),
.BR pesto (1),
.BR qemu (1),
.BR unix (7)
"""


_FRAMES = {PASTA: (_HEAD, _TAIL), PASST: (_MACHINE_HEAD, _MACHINE_TAIL)}


def manual_page(mode: str = PASTA) -> str:
    """Return the source of the page about ``mode``."""
    head, tail = _FRAMES[mode]
    parts = [head.lstrip("\n"), _CONVENTIONS, ".SH OPTIONS\n"]
    parts += [entry(option) for option in TABLE if mode in option.modes and not option.hidden]
    parts.append(tail.lstrip("\n"))
    return "".join(parts)


def entry(option: Option) -> str:
    """Return the source of the paragraph about an option."""
    names = [f"--{option.long}"]
    if option.short:
        names.insert(0, f"-{option.short}")
    head = ", ".join(_bold(name) for name in names)
    if option.arg:
        head += f" \\fI{_escape(option.arg)}\\fR"
    sentences = ["Deprecated." if option.deprecated else "", f"{option.help}."]
    sentences.append(_capitalised(repetition(option)))
    if option.default:
        sentences.append(f"Default: {option.default}.")
    sentences.append(option.details)
    text = " ".join(sentence for sentence in sentences if sentence)
    return f".TP\n{head}\n{_paragraph(text)}\n"


def _capitalised(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}." if note else ""


def _paragraph(text: str) -> str:
    """Set one paragraph, a sentence per line as man(7) wants, quoted words in bold."""
    pieces = text.split("`")
    for index, piece in enumerate(pieces):
        pieces[index] = _bold(piece) if index % 2 else _escape(piece)
    lines = "".join(pieces).replace(". ", ".\n").split("\n")
    # A dot or an apostrophe at the start of a line would make it a request.
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines)


def _bold(text: str) -> str:
    return f"\\fB{_escape(text)}\\fR"


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def main(arguments: list[str]) -> int:
    """Write the page about the mode named first to the file named next, or to standard output."""
    mode, *files = arguments
    if not files:
        sys.stdout.write(manual_page(mode))
        return 0
    with open(files[0], "w", encoding="utf-8") as page:
        page.write(manual_page(mode))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
