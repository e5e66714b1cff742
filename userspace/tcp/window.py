"""How much more a socket's send buffer can take, in bytes of payload.

The kernel accounts for memory, not payload: each segment costs its buffer's overhead too.
``room`` estimates the overhead from what is queued now, so that everything the guest may
send within the advertised window will be accepted without waiting.
"""

from __future__ import annotations

_SMALL = 128 << 10
_LARGE = 4 << 20


def usable(sndbuf: int) -> int:
    """Bytes of a send buffer of ``sndbuf`` bytes that are put to use.

    All of a small one; three quarters of a large one, as the kernel grows it further only
    if it is kept full, while the rest absorbs overhead; linear in between.
    """
    if sndbuf <= _SMALL:
        return sndbuf
    if sndbuf >= _LARGE:
        return sndbuf // 4 * 3
    return sndbuf - sndbuf * (sndbuf - _SMALL) // (4 * (_LARGE - _SMALL))


def room(sndbuf: int, queued: int, outstanding: int, mss: int) -> int:
    """Payload bytes that a socket can still take.

    ``sndbuf`` and ``queued`` are memory (SO_MEMINFO: send buffer, queued write memory),
    ``outstanding`` is payload not acknowledged by the peer (SIOCOUTQ), ``mss`` the size of
    the guest's segments.
    """
    if queued >= sndbuf:
        return 0
    if outstanding <= 0 or queued <= outstanding:
        return max(usable(sndbuf) - queued, 0)
    overhead = (queued - outstanding) // max(outstanding // mss, 1)
    return (sndbuf - queued) // (mss + overhead) * mss
