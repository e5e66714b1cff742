"""The client's end of the control socket, for a process with nothing else to do.

Calls wait, each at most :data:`PATIENCE` seconds without progress.  Waiting is normal before the
greeting: another client may be served, or the backlog be full.
"""

from __future__ import annotations

import os
import struct

from passt.syscalls import bare_socket as socket
from passt.userspace.control.protocol import (
    MAX_REPLY,
    REFUSED,
    ProtocolError,
    pack_request,
    read_greeting,
    read_tables,
    unpack_reply,
)
from passt.userspace.socketpath import is_socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from passt.userspace.control.protocol import ReceivedTable
    from passt.userspace.flow.rules import RuleTable

#: Seconds.  Opening all ports of both tables takes a few.
PATIENCE = 30

_TIMEVAL = struct.pack("@ll", PATIENCE, 0)


class ControlError(Exception):
    """The server cannot be reached or understood; the text is one line for the user."""


class Connection:
    """A connection to the control socket ``path``; raises :class:`ControlError`."""

    __slots__ = ("_sock",)

    def __init__(self, path: str) -> None:
        if not is_socket_path(path):
            raise ControlError(f'Invalid socket path "{path}"')
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Not settimeout(): a non-blocking connect() does not wait for room in the backlog.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise ControlError(f"Failed to connect to {path}: {_reason(error)}") from None

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def state(self) -> list[ReceivedTable]:
        """Return the server's tables, once per connection; raises :class:`ControlError`."""
        what = "Couldn't read server greeting"
        try:
            read_greeting(self._read)
            what = "Error reading from control socket"
            return read_tables(self._read)
        except ProtocolError as error:
            raise ControlError(str(error)) from None
        except OSError as error:
            raise ControlError(f"{what}: {_reason(error)}") from None

    def replace(self, tables: Iterable[RuleTable]) -> tuple[int, list[str]]:
        """Send ``tables`` to be put in force in the place of all tables.

        Returns 0 if the server is content, else the status of its reply (REFUSED,
        INCOMPLETE), and the lines that say why.  Raises :class:`ControlError` if the outcome
        remains unknown.
        """
        refused = REFUSED, ["New configuration was refused, nothing has changed"]
        try:
            self._sock.sendall(pack_request(tables))
            content: tuple[int, list[str]] = (0, [])
        except (BrokenPipeError, ConnectionResetError):
            # It closed the connection before the end.  A reply may be waiting nevertheless.
            content = refused
        except OSError as error:
            raise ControlError(f"Error writing to control socket: {_reason(error)}") from None
        try:
            reply = self._read(MAX_REPLY)
        except ConnectionResetError:
            # It left part of the request unread.
            return refused
        except OSError as error:
            raise ControlError(f"Configuration sent, outcome unknown: {_reason(error)}") from None
        return unpack_reply(reply) if reply else content

    def _read(self, size: int) -> bytes:
        """Return the next ``size`` bytes, or what there is up to the end of the stream."""
        data = bytearray()
        while len(data) < size:
            try:
                more = self._sock.recv(size - len(data))
            except ConnectionResetError:
                if not data:
                    raise
                break
            if not more:
                break
            data += more
        return bytes(data)


def _reason(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return f"no answer within {PATIENCE} seconds"
    return os.strerror(error.errno or 0)
