"""Messages to the user: standard error, the log file, or the system log.

Where a message goes depends on the phase of the process (pasta(1), "messages"):

=========================  ==================================  ===========================
phase                      standard error                      log file, or system log
=========================  ==================================  ===========================
before :func:`setup`       errors, warnings, information       nothing
after it                   selected level                      selected level
after :func:`detach`       nothing                             selected level
after                      selected level, with ``-d`` and     selected level
:func:`command_started`    without log file; else nothing
=========================  ==================================  ===========================

A log file replaces the system log, and so does ``-d``, which marks the lines on standard
error with the time since the start of the process instead.

Nothing here raises, or waits for who reads the system log or, after :func:`setup`, standard
error: a message that cannot be delivered is lost.  Messages are ``%`` formats, expanded only if
they are going anywhere; on hot paths the callers check :data:`debug_on` or :data:`trace_on`
first, which costs an attribute.  Control characters are escaped, since parts of a message may
come from the guest.

What guest, network or clients can provoke at will goes through :func:`limited`.
"""

from __future__ import annotations

import os
import select
import sys
from time import monotonic_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from passt.syscalls import bare_socket as socket
    from passt.userspace.logfile import LogFile

#: Levels: the severities of syslog(3), and one more for single packets.
ERR = 3
WARNING = 4
INFO = 6
DEBUG = 7
TRACE = 8

#: Messages of one source per window before suppression.
BURST = 5

#: True if messages of these levels go anywhere: to be checked where formatting arguments or
#: the call itself would cost too much.
debug_on = False
trace_on = False

_LABELS = {
    ERR: "ERROR:   ",
    WARNING: "WARNING: ",
    INFO: "info:    ",
    DEBUG: "         ",
    TRACE: "         ",
}

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}

_STDERR = 2
_PIPE_BUF = 4096
_SYSLOG_PATH = "/dev/log"

_started = monotonic_ns()
_threshold = INFO
_level = INFO
_debug = False
_stderr = True
_program = ""
_file: LogFile | None = None
_syslog: socket.socket | None = None
#: Tells whether standard error takes anything, ``None`` if it always does (a file), or must.
_watch: select.epoll | None = None
#: Per key: second in which the window began, messages in it, how many were suppressed.
_windows: dict[Hashable, list[int]] = {}


def setup(
    program: str,
    *,
    debug: bool = False,
    trace: bool = False,
    quiet: bool = False,
    path: str = "",
    size: int = 1 << 20,
    executable: str = "",
) -> None:
    """Begin the second phase: levels by options, log file ``path`` or the system log opened.

    ``program`` is ``passt`` or ``pasta``, ``size`` the limit of the log file in bytes,
    ``executable`` the path shown in its first line, by default that of the running script.
    Raises OSError if the log file cannot be opened; the system log may be absent.  Must run
    before the file system is given up.
    """
    global _debug, _level, _program, _file, _syslog, _watch
    _program = program
    _debug = debug or trace
    _level = TRACE if trace else DEBUG if debug else WARNING if quiet else INFO
    if path:
        # Only those who want a log file pay for the import.
        from passt.userspace.logfile import LogFile
        from passt.version import VERSION

        executable = executable or os.path.abspath(sys.argv[0])
        header = f"{program} {VERSION}: {executable} ({os.getpid()})"
        _file = LogFile(path, size, _encode(header))
    elif not _debug:
        _syslog = _open_syslog()
    _watch = _watch_stderr()
    _select()


def detach() -> None:
    """Begin the phase without standard error: the process is in background."""
    global _stderr
    _stderr = False
    _select()


def command_started() -> None:
    """Leave standard error to the command just started, unless the user wants to debug."""
    global _stderr
    _stderr = _debug and _file is None
    _select()


def close() -> None:
    """Flush the log file to disk: to be called before the process ends."""
    if _file is not None:
        _file.close()


def err(msg: str, *args: object) -> None:
    """Print an error: something was not done."""
    emit(ERR, msg, *args)


def warn(msg: str, *args: object) -> None:
    """Print a warning: something was done otherwise than wanted."""
    emit(WARNING, msg, *args)


def info(msg: str, *args: object) -> None:
    """Print what users may want to know."""
    emit(INFO, msg, *args)


def debug(msg: str, *args: object) -> None:
    """Print what developers may want to know."""
    if debug_on:
        emit(DEBUG, msg, *args)


def trace(msg: str, *args: object) -> None:
    """Print something about a single packet."""
    if trace_on:
        emit(TRACE, msg, *args)


def limited(key: Hashable, level: int, msg: str, *args: object) -> None:
    """Print a message of which there may be thousands: at most five per window and ``key``.

    ``key`` names the place in the program and must not depend on input, since keys are kept.
    The window starts with a message, and again with the first message two whole seconds
    later, which is followed by the number of those suppressed meanwhile.
    """
    if level > _threshold:
        return
    now = monotonic_ns() // 1_000_000_000
    window = _windows.get(key)
    if window is None:
        window = _windows[key] = [now, 0, 0]
    missed = 0
    if now - window[0] > 1:
        missed = window[2]
        window[:] = (now, 0, 0)
    if window[1] < BURST:
        window[1] += 1
        emit(level, msg, *args)
        if missed:
            emit(level, "(suppressed %d similar messages)", missed)
        return
    if not window[2]:
        emit(level, "(suppressing further similar messages)")
    window[2] += 1


def emit(level: int, msg: str, *args: object) -> None:
    """Print ``msg % args`` (``msg`` as it is without arguments) if ``level`` is selected."""
    if level > _threshold:
        return
    if args:
        try:
            msg %= args
        except (TypeError, ValueError):
            msg = f"{msg} {args!r}"
    if not msg.isprintable():
        msg = msg.translate(_ESCAPES)
    _deliver(level, msg, _stderr)


def fault(lines: list[str]) -> None:
    """Print what should not happen: on standard error even after the command has started."""
    for line in lines:
        _deliver(ERR, line if line.isprintable() else line.translate(_ESCAPES), True)


def _deliver(level: int, msg: str, on_stderr: bool) -> None:
    """Bring a line, which is fit to be printed, to where it goes."""
    ticks = (monotonic_ns() - _started) // 100_000
    stamp = f"{ticks // 10_000}.{ticks % 10_000:04d}"
    if on_stderr:
        timed = _debug and _file is None
        to_stderr(_encode(f"{stamp}: {msg}\n" if timed else f"{msg}\n"))
    if _file is not None:
        _file.write(stamp, _encode(f"{stamp}: {_LABELS[level]}{msg}\n"))
    elif _syslog is not None:
        try:
            _syslog.send(_encode(f"<{level}> {_program}: {msg}\n"))
        except OSError:
            # Nobody reads, or the reader was replaced: there is no way back to its path.
            pass


def to_stderr(data: bytes) -> None:
    """Write ``data`` to standard error, unless whoever reads it has stopped to.

    A terminal that was stopped, or a pipe that is full, must not stop us.  What is written at
    once fits if anything does (pipe(7), PIPE_BUF).
    """
    watch = _watch
    while data and (watch is None or watch.poll(0, 1)):
        if not write_fully(_STDERR, data[:_PIPE_BUF]):
            return
        data = data[_PIPE_BUF:]


def write_fully(fd: int, data: bytes) -> bool:
    """Write ``data`` to ``fd``; False if that failed, however far it got."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return False
    return True


def _select() -> None:
    """Work out what is worth formatting, now that a sink came or went."""
    global debug_on, trace_on, _threshold
    anywhere = _stderr or _file is not None or _syslog is not None
    _threshold = _level if anywhere else 0
    debug_on = _threshold >= DEBUG
    trace_on = _threshold >= TRACE


def _watch_stderr() -> select.epoll | None:
    """Something that tells when standard error can be written to without waiting."""
    watch = select.epoll()
    try:
        watch.register(_STDERR, select.EPOLLOUT)
    except OSError:
        # A regular file, which never makes us wait, or nothing at all.
        watch.close()
        return None
    return watch


def _open_syslog() -> socket.socket | None:
    """Connect to the system log while its path is still in reach; ``None`` if there is none."""
    from passt.syscalls import bare_socket as socket

    sock = None
    try:
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        sock.connect(_SYSLOG_PATH)
    except OSError:
        if sock is not None:
            sock.close()
        return None
    return sock


def _encode(text: str) -> bytes:
    """Encode for any sink: bytes of file names come out as they went in."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
