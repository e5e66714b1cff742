"""Whether connections to open ports are led where they should on this kernel, shown with our own.

On the loopback interface, with one port that another socket of ours is bound to, so that it is
nobody else's:

* it is closed before it is opened, and so is the port of the listener itself;
* once open, a connection arrives at the listener, and says for which port it was meant;
* as soon as the other socket listens, the next connection is that one's, and the bell has rung.
"""

from __future__ import annotations

from passt.kernel.ebpf.lookup_layout import IPV4, Place
from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import linger_reset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.ebpf.lookup import PortMaps

#: Seconds to wait for what takes microseconds.
_PATIENCE = 2.0
_HOST = "127.0.0.1"


class ProbeError(Exception):
    """Connections are not led where they should; the text says what happened."""


def probe(maps: PortMaps) -> None:
    """Raise ProbeError if connections do not arrive as they should, or OSError.

    ``maps`` are attached to our network namespace, and nothing of them is in use.
    """
    slot = maps.take()
    assert slot is not None
    try:
        with socket.closing(_bound()) as listener, socket.closing(_bound()) as other:
            port = other.getsockname()[1]
            maps.settle(slot, Place(IPV4, socket.inet_aton(_HOST)), listener)
            listener.listen()
            maps.admit(slot, listener)
            for closed in (port, listener.getsockname()[1]):
                if _connects(closed):
                    raise ProbeError("a closed port is open")
            maps.open(slot, port, port, maps.numbers(slot))
            _expect(port, listener, "no connection")
            other.listen()
            _expect(port, other, "a program that listens itself is passed over")
            if maps.rung()[0] != [(slot, port)]:
                raise ProbeError("no bell")
    finally:
        maps.vacate(slot)


def _bound() -> socket.socket:
    """A socket bound to some port of the loopback interface; OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(_PATIENCE)
        sock.bind((_HOST, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _connects(port: int) -> bool:
    with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
        client.settimeout(_PATIENCE)
        try:
            client.connect((_HOST, port))
        except ConnectionRefusedError:
            return False
        linger_reset(client)
        return True


def _expect(port: int, server: socket.socket, otherwise: str) -> None:
    """Connect to ``port``, which is to lead to ``server``."""
    server.setblocking(False)
    if not _connects(port):
        raise ProbeError(otherwise)
    try:
        sock, _ = socket.accept(server)
    except BlockingIOError:
        raise ProbeError(otherwise) from None
    with socket.closing(sock):
        if sock.getsockname()[1] != port:
            raise ProbeError("the port of a connection is another")
