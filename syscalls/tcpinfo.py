"""What the kernel tells about a TCP connection: TCP_INFO, SO_MEMINFO, queue lengths.

Source: struct tcp_info in linux/tcp.h (offsets are kernel ABI), linux/sock_diag.h for
SO_MEMINFO, tcp(7) for SIOCOUTQ and SIOCINQ.

`struct tcp_info` only ever grows at the end, and getsockopt returns as many bytes as the
kernel has.  Fields beyond the returned length read as 0; which ones a kernel reports does
not change while it runs, so `probe` asks once and the hot path does not look.
"""

from __future__ import annotations

import struct
from fcntl import ioctl
from termios import FIONREAD, TIOCOUTQ

from passt.syscalls import bare_socket as socket
from passt.syscalls.sockopt import SO_MEMINFO

# tcpi_state.
TCP_ESTABLISHED = 1
TCP_SYN_SENT = 2
TCP_SYN_RECV = 3
TCP_FIN_WAIT1 = 4
TCP_FIN_WAIT2 = 5
TCP_TIME_WAIT = 6
TCP_CLOSE = 7
TCP_CLOSE_WAIT = 8
TCP_LAST_ACK = 9
TCP_LISTEN = 10
TCP_CLOSING = 11

# tcpi_options.
TCPI_OPT_TIMESTAMPS = 1
TCPI_OPT_SACK = 2
TCPI_OPT_WSCALE = 4
TCPI_OPT_ECN = 8

MIN_RTT_UNKNOWN = 0xFFFFFFFF
"""min_rtt when the kernel has no sample yet."""

SIOCOUTQ = TIOCOUTQ
SIOCINQ = FIONREAD
SIOCOUTQNSD = 0x894B

# state 0, options 5, scales 6, snd_mss 16, last_data_sent 44, rtt 68, bytes_acked 120,
# min_rtt 148, delivery_rate 160, snd_wnd 228.
_INFO = struct.Struct("=B4xBB9xI24xI20xI48xQ20xI8xQ60xI")
_LENGTH = _INFO.size
_MEMINFO = struct.Struct("=12xI4xI12x")
_MEMINFO_LENGTH = _MEMINFO.size

_PEER_SCALE_LOW = struct.pack("=H", 1) == b"\1\0"

_unpack = _INFO.unpack
_unpack_int = struct.Struct("i").unpack
_IPPROTO_TCP = socket.IPPROTO_TCP
_TCP_INFO = socket.TCP_INFO
_SOL_SOCKET = socket.SOL_SOCKET

Info = tuple[int, int, int, int, int, int, int, int, int, int]


def read(sock: socket.socket) -> Info:
    """Read TCP_INFO of `sock`.

    Returns (state, options, scales, snd_mss [bytes], last_data_sent [ms ago], rtt [µs],
    bytes_acked, min_rtt [µs] or MIN_RTT_UNKNOWN, delivery_rate [bytes/s], snd_wnd [bytes,
    unscaled]).  `scales` holds the window scale announced by the peer and ours, to be split
    by `split_scales`.  Fields this kernel lacks are 0.  OSError as getsockopt(2).
    """
    data = sock.getsockopt(_IPPROTO_TCP, _TCP_INFO, _LENGTH)
    if len(data) < _LENGTH:
        data = data.ljust(_LENGTH, b"\0")
    return _unpack(data)


def split_scales(scales: int) -> tuple[int, int]:
    """Window scales (announced by the peer, announced by us) from the byte in `read`.

    The C structure has two bit fields, peer's first: that is the low half on little-endian
    machines and the high half on big-endian ones.
    """
    if _PEER_SCALE_LOW:
        return scales & 15, scales >> 4
    return scales >> 4, scales & 15


class Fields:
    """Which optional fields of TCP_INFO this kernel reports; `length` is what it returned."""

    __slots__ = ("bytes_acked", "delivery_rate", "length", "min_rtt", "snd_wnd")

    def __init__(self, length: int) -> None:
        self.length = length
        self.bytes_acked = length >= 128  # Linux 4.1
        self.min_rtt = length >= 152  # Linux 4.6
        self.delivery_rate = length >= 168  # Linux 4.9
        self.snd_wnd = length >= 232  # Linux 5.4


def probe() -> Fields:
    """Ask the running kernel which fields TCP_INFO has, by a scratch socket."""
    with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        return Fields(len(sock.getsockopt(_IPPROTO_TCP, _TCP_INFO, 1024)))


def meminfo(sock: socket.socket) -> tuple[int, int] | None:
    """Send buffer and queued write memory, both in bytes of memory, not payload (SO_MEMINFO).

    None where the kernel has no such option (before 4.12).
    """
    try:
        data = sock.getsockopt(_SOL_SOCKET, SO_MEMINFO, _MEMINFO_LENGTH)
    except OSError:
        return None
    if len(data) < _MEMINFO_LENGTH:
        return None
    sndbuf, wmem_queued = _MEMINFO.unpack(data)
    return sndbuf, wmem_queued


def _queue(fd: int, request: int) -> int:
    value = bytearray(4)
    ioctl(fd, request, value)
    length: int = _unpack_int(value)[0]
    return length


def outq(fd: int) -> int:
    """Bytes sent or to be sent and not acknowledged yet, a queued FIN counting 1 (SIOCOUTQ)."""
    return _queue(fd, SIOCOUTQ)


def outq_unsent(fd: int) -> int:
    """Bytes not sent yet, a queued FIN counting 1 (SIOCOUTQNSD)."""
    return _queue(fd, SIOCOUTQNSD)


def inq(fd: int) -> int:
    """Bytes in the receive queue (SIOCINQ)."""
    return _queue(fd, SIOCINQ)
