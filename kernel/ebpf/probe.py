"""Whether the maps do what they should on this kernel, shown with data over connections of our own.

Kernels have had many faults around sockets in maps, and distributions mend them without telling by
their version.  So before a user's data goes that way, ours does, through two loopback connections
that are spliced as any other::

    client ── left   right ── server

* data that has arrived before the sockets entered is not lost, and comes first;
* what is granted arrives by itself, and wakes the receiver;
* what is not waits in our socket, rings, and stops the sender;
* after it was moved by hand, the kernel goes on forwarding, in order;
* the program sees sequence numbers, which it needs to tell what was sent again;
* the end of file is seen, behind the data.
"""

from __future__ import annotations

import os
import select
import struct

from passt.kernel.ebpf.layout import (
    CONSUMED,
    GENERATION,
    GRANT_BYTES,
    GRANT_PACKETS,
    LAST,
    PASSED,
    SLOTS,
    WORDS,
)
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.maps import MapSet

#: Seconds to wait for what takes microseconds.
_PATIENCE = 2.0
_SIZE = 60000
_PACKETS = 1 << 40
_BUFFER = 1 << 16
_TOO_MUCH = 1 << 21
#: The last connection's slots, which are used last.
_SLOT = SLOTS - 2
_LINGER = struct.pack("ii", 1, 0)


class ProbeError(Exception):
    """The maps do not do what they should; the text says what."""


def probe(maps: MapSet) -> None:
    """Raise ProbeError if data forwarded by ``maps`` does not arrive as it should.

    Whatever goes wrong is a reason not to use them: maps that an administrator prepared may be
    changed, or filled with nonsense, at the same time.
    """
    try:
        with Rig(maps) as rig:
            rig.run()
    except ProbeError:
        raise
    except OSError as error:
        raise ProbeError(f"{type(error).__name__}: {error.strerror or 'timed out'}") from None
    except Exception as error:
        raise ProbeError(f"{type(error).__name__}: {error}") from None


class Rig:
    """Two connections, and the steps that data takes through them."""

    def __init__(self, maps: MapSet) -> None:
        self._maps = maps
        self._sockets: list[socket.socket] = []
        self._filling = b""
        try:
            self.client, self.left = self._pair(small=True)
            self.right, self.server = self._pair()
        except OSError:
            self._close()
            raise

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for slot, sock in enumerate((self.left, self.right), _SLOT):
            self._maps.leave(sock, slot)
        self._close()

    def run(self) -> None:
        """All steps."""
        maps = self._maps
        early, granted, passed, after = (os.urandom(_SIZE) for _ in range(4))
        self.client.sendall(early[:100])
        for slot, sock in enumerate((self.left, self.right), _SLOT):
            at = slot * WORDS
            maps.grants[at + GRANT_BYTES] = 0
            maps.grants[at + CONSUMED] = maps.counts[at + PASSED]
            maps.grants[at + GENERATION] += 1
            maps.enter(sock, slot)
        self.client.sendall(early[100:])
        self._move(_SIZE, "early data")
        self._expect(early, "early data")

        last = self._last()
        self._grant(_SIZE)
        self.client.sendall(granted)
        self._expect(granted, "data")
        if self._last() != (last + _SIZE) % (1 << 32):
            raise ProbeError("no sequence numbers")
        maps.rung()

        self.client.sendall(passed)
        readable, _, _ = select.select([maps.fileno()], [], [], _PATIENCE)
        if not readable or _SLOT not in maps.rung():
            raise ProbeError("no bell")
        if select.select([self.server], [], [], 0)[0]:
            raise ProbeError("data beyond what was granted")
        self._fill()
        self._move(self._unread(), "data held back")
        self._expect(passed + self._filling, "data held back")

        self._grant(_SIZE)
        self.client.sendall(after)
        self._expect(after, "data after a pause")
        self.client.shutdown(socket.SHUT_WR)
        self.left.settimeout(_PATIENCE)
        if self.left.recv(1):
            raise ProbeError("no end of file")

    def _pair(self, *, small: bool = False) -> tuple[socket.socket, socket.socket]:
        """Both ends of a new connection."""
        with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
            if small:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._sockets.append(one)
            if small:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            one.settimeout(_PATIENCE)
            one.connect(listener.getsockname())
            listener.settimeout(_PATIENCE)
            other, _ = socket.accept(listener)
            self._sockets.append(other)
            other.settimeout(_PATIENCE)
        return one, other

    def _grant(self, size: int) -> None:
        at = _SLOT * WORDS
        self._maps.grants[at + GRANT_PACKETS] = _PACKETS
        self._maps.grants[at + GRANT_BYTES] = self._maps.counts[at] + size

    def _last(self) -> int:
        """The sequence number behind what the program has seen."""
        return self._maps.counts[_SLOT * WORDS + LAST] & 0xFFFFFFFF

    def _unread(self) -> int:
        at = _SLOT * WORDS
        return self._maps.counts[at + PASSED] - self._maps.grants[at + CONSUMED]

    def _fill(self) -> None:
        """Send until the sender is stopped, as it must be once the small buffers are full."""
        chunk = bytes(1 << 14)
        self.client.setblocking(False)
        try:
            while len(self._filling) < _TOO_MUCH:
                self._filling += chunk[: self.client.send(chunk)]
        except BlockingIOError:
            self.client.settimeout(_PATIENCE)
            return
        raise ProbeError("no back-pressure")

    def _move(self, size: int, what: str) -> None:
        """Forward by hand what waits in our socket, until all is through."""
        at = _SLOT * WORDS
        while size or self._unread():
            data = self.left.recv(1 << 16)
            if not data:
                raise ProbeError(f"end of file in {what}")
            self.right.sendall(data)
            self._maps.grants[at + CONSUMED] += len(data)
            size -= min(size, len(data))

    def _expect(self, data: bytes, what: str) -> None:
        """Read, as a program that polls would, what must be ``data``."""
        poll = select.epoll()
        with poll:
            poll.register(self.server.fileno(), select.EPOLLIN)
            got = b""
            while len(got) < len(data):
                if not poll.poll(_PATIENCE):
                    raise ProbeError(f"{what} missing")
                more = self.server.recv(len(data) - len(got))
                if not more:
                    raise ProbeError(f"end of file before {what}")
                got += more
        if got != data:
            raise ProbeError(f"{what} damaged")

    def _close(self) -> None:
        for sock in self._sockets:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            except OSError:
                pass
            sock.close()
