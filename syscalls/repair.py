"""TCP repair mode: reading and rebuilding the state of a connection without its peer noticing.

Source: linux/tcp.h, tcp(7), CRIU's description of TCP_REPAIR, and observation on Linux 6.18.

Only `switch` needs CAP_NET_ADMIN, in the user namespace that owns the socket's network
namespace; the rest works for anyone once the mode is on, since it is a state of the socket.
The order that the kernel wants when rebuilding:

1. on; bind (repair mode allows an address in use); timestamp;
2. sequence numbers of both queues (refused once connected); connect, which sends nothing;
3. queue contents by send(2), into the queue selected;
4. options (refused once anything was transmitted); window; off.

While the mode is on, recv(2) must peek, send(2) transmits nothing and close(2) says nothing to
the peer.  It does *not* stop reception: what arrives is queued and acknowledged.  `freeze`
before reading the state does stop it, so that the peer keeps what it sends.
"""

from __future__ import annotations

import ctypes
import struct

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import SO_ATTACH_FILTER, SO_DETACH_FILTER, TCP_TIMESTAMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

TCP_REPAIR = 19
TCP_REPAIR_QUEUE = 20
TCP_QUEUE_SEQ = 21
TCP_REPAIR_OPTIONS = 22
TCP_REPAIR_WINDOW = 29

# Values of TCP_REPAIR.
TCP_REPAIR_ON = 1
TCP_REPAIR_OFF = 0
"""Off, and probe the peer's window, which makes it send an acknowledgement."""
TCP_REPAIR_OFF_NO_WP = -1
"""Off without probe, Linux 4.19."""

# Values of TCP_REPAIR_QUEUE.
TCP_NO_QUEUE = 0
TCP_RECV_QUEUE = 1
TCP_SEND_QUEUE = 2

# Codes of TCP_REPAIR_OPTIONS: the TCP option kinds.
TCPOPT_MSS = 2
TCPOPT_WINDOW = 3
TCPOPT_SACK_PERM = 4
TCPOPT_TIMESTAMP = 8

_TCP = socket.IPPROTO_TCP
_UINT = struct.Struct("=I")
_OPTION = struct.Struct("=II")
_WINDOW = struct.Struct("=5I")
# struct sock_filter: code, jt, jf, k.  BPF_RET | BPF_K returning 0 bytes drops the packet.
_DROP = struct.pack("=HBBI", 6, 0, 0, 0)

Window = tuple[int, int, int, int, int]


def switch(sock: socket.socket, value: int) -> None:
    """Set TCP_REPAIR to one of the three values; EPERM also for listening sockets."""
    sock.setsockopt(_TCP, TCP_REPAIR, value)


def enabled(sock: socket.socket) -> bool:
    """Whether repair mode is on."""
    return sock.getsockopt(_TCP, TCP_REPAIR) != 0


def select_queue(sock: socket.socket, queue: int) -> None:
    """Choose what `get_sequence`, `set_sequence`, send(2) and recv(2) refer to."""
    sock.setsockopt(_TCP, TCP_REPAIR_QUEUE, queue)


def _get_uint(sock: socket.socket, option: int) -> int:
    value: int = _UINT.unpack(sock.getsockopt(_TCP, option, _UINT.size))[0]
    return value


def get_sequence(sock: socket.socket) -> int:
    """Sequence number behind the last byte of the selected queue, a FIN sent counting as one."""
    return _get_uint(sock, TCP_QUEUE_SEQ)


def set_sequence(sock: socket.socket, sequence: int) -> None:
    """Sequence number at which the selected queue begins; EPERM once connected."""
    sock.setsockopt(_TCP, TCP_QUEUE_SEQ, _UINT.pack(sequence))


def get_timestamp(sock: socket.socket) -> int:
    """Present value of our timestamp option, opaque 32 bits: hand it to `set_timestamp`."""
    return _get_uint(sock, TCP_TIMESTAMP)


def set_timestamp(sock: socket.socket, value: int) -> None:
    """Make timestamps go on from `value`; EPERM without repair mode."""
    sock.setsockopt(_TCP, TCP_TIMESTAMP, _UINT.pack(value))


def window_scales(send: int, receive: int) -> int:
    """Value of TCPOPT_WINDOW: the peer's scale (applied to what it announces), then ours."""
    return send | receive << 16


def set_options(sock: socket.socket, options: Iterable[tuple[int, int]]) -> None:
    """Declare the options agreed upon in the handshake, as (code, value) pairs.

    MSS in bytes; window by `window_scales`; SACK and timestamps with value 0.  EPERM unless
    connected and nothing was transmitted; EFBIG for a scale above 14; EINVAL for other values
    or without repair mode.
    """
    data = b"".join(_OPTION.pack(code, value) for code, value in options)
    sock.setsockopt(_TCP, TCP_REPAIR_OPTIONS, data)


def get_window(sock: socket.socket) -> Window:
    """Return (snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup); windows in bytes, unscaled.

    snd_wl1 and rcv_wup are sequence numbers: of the segment that last updated the send window,
    and up to which the receive window was last announced.
    """
    data = sock.getsockopt(_TCP, TCP_REPAIR_WINDOW, _WINDOW.size)
    window: Window = _WINDOW.unpack(data)
    return window


def set_window(sock: socket.socket, window: Window) -> None:
    """Restore what `get_window` returned.

    EINVAL if max_window < snd_wnd, snd_wl1 is beyond rcv_nxt + rcv_wnd, or rcv_wup beyond
    rcv_nxt; EPERM without repair mode.
    """
    sock.setsockopt(_TCP, TCP_REPAIR_WINDOW, _WINDOW.pack(*window))


def freeze(sock: socket.socket) -> None:
    """Make the socket deaf: every packet for it is dropped by a filter, until `thaw`."""
    instructions = ctypes.create_string_buffer(_DROP, len(_DROP))
    program = struct.pack("@HP", 1, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def thaw(sock: socket.socket) -> None:
    """Undo `freeze`; ENOENT if the socket has no filter."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
