"""Socket options that Python's socket module does not name, and probes for two of them.

Source: asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/udp.h; socket(7),
ip(7), ipv6(7), tcp(7), udp(7).  Options that `socket` does have are not repeated here.
"""

from __future__ import annotations

import struct

from passt.syscalls import bare_socket as socket

# Level SOL_SOCKET.
SO_DETACH_FILTER = 27
SO_ATTACH_FILTER = 26
SO_DETACH_BPF = 27
SO_RXQ_OVFL = 40
SO_PEEK_OFF = 42
SO_MEMINFO = 55
SO_ATTACH_BPF = 50
SO_COOKIE = 57
SO_NETNS_COOKIE = 71
SO_BUF_LOCK = 72  # Linux 5.14

# Level IPPROTO_IP.
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_RECVTTL = 12
IP_MTU = 14
IP_FREEBIND = 15
IP_MULTICAST_ALL = 49
IP_UNICAST_IF = 50
IP_LOCAL_PORT_RANGE = 51

# Levels IPPROTO_IP and IPPROTO_IPV6.
MCAST_JOIN_GROUP = 42
MCAST_MSFILTER = 48

# Level IPPROTO_IPV6.
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
IPV6_MULTICAST_ALL = 29
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IPV6_UNICAST_IF = 76
IPV6_FREEBIND = 78

# Values of IP_MTU_DISCOVER and IPV6_MTU_DISCOVER.
PMTUDISC_DONT = 0
PMTUDISC_WANT = 1
PMTUDISC_DO = 2
PMTUDISC_PROBE = 3
PMTUDISC_INTERFACE = 4
PMTUDISC_OMIT = 5

# Level IPPROTO_UDP.
UDP_NO_CHECK6_TX = 101
UDP_NO_CHECK6_RX = 102
UDP_SEGMENT = 103
UDP_GRO = 104

# Level IPPROTO_TCP; those of repair mode are in passt.syscalls.repair.
TCP_TIMESTAMP = 24
TCP_NOTSENT_LOWAT = 25

# Flags for recvmmsg(2) and sendmsg(2) missing from socket.
MSG_WAITFORONE = 0x10000

_LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)
_LARGE_SNDBUF = 1 << 30
_LARGE_SNDBUF_MIN = 4 << 20


def linger_reset(sock: socket.socket) -> None:
    """Make close() of a TCP socket send RST and drop its queues (SO_LINGER on, 0 s)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def linger_not(sock: socket.socket) -> None:
    """Undo `linger_reset`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)


def probe_peek_off(family: int) -> bool:
    """Whether SO_PEEK_OFF works for TCP sockets of `family` (AF_INET from Linux 6.9).

    The option is set on a scratch socket; then two peeks over a loopback connection must see
    consecutive bytes, as an accepted option that does nothing would corrupt every stream.  If
    no such connection can be made (loopback down), acceptance decides.  False if the kernel
    lacks the family.
    """
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return False
    client = socket.socket(family, socket.SOCK_STREAM)
    with socket.closing(listener), socket.closing(client):
        try:
            client.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
        client.settimeout(1)
        try:
            listener.bind((address, 0))
            listener.listen(1)
            client.connect(listener.getsockname())
            server, _ = socket.accept(listener)
        except OSError:
            return True
        with socket.closing(server):
            server.sendall(b"ab")
            try:
                seen = client.recv(1, socket.MSG_PEEK) + client.recv(1, socket.MSG_PEEK)
            except OSError:
                return False
            return seen == b"ab"


def probe_large_sndbuf() -> bool:
    """Whether net.core.wmem_max lets a socket have a send buffer of 4 MiB or more."""
    with socket.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGE_SNDBUF)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= _LARGE_SNDBUF_MIN
