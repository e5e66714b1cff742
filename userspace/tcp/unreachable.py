"""Connection attempts that the host refuses for want of a way: the reason, by ICMP.

A reset alone would make every failure look like "connection refused".  An error that quotes
the guest's SYN, sent in the role of its router and before the reset, lets the application see
the errno that it would see on the real network.
"""

from __future__ import annotations

import errno
import os

from passt.userspace.flow.unreachable import refusal, router
from passt.userspace.wire.icmp_error import syn_error4, syn_error6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.userspace.tcp.base import FlowBase

#: Errors of connect() that mean the same to the guest as another one does.
_SAME = {
    errno.ETIMEDOUT: errno.EHOSTUNREACH,
    errno.EHOSTDOWN: errno.EHOSTUNREACH,
    errno.ENETDOWN: errno.ENETUNREACH,
}


def report(flow: FlowBase, number: int) -> None:
    """Tell the guest that its SYN for ``flow`` met with errno ``number``, if ICMP has a word.

    ``flow.ack`` is still what would acknowledge the SYN.
    """
    ctx = flow.ctx
    v4 = len(flow.our_addr) == 4
    number = _SAME.get(number, number)
    kind = refusal(OSError(number, os.strerror(number)), flow.our_addr)
    offender = router(ctx.config, v4=v4)
    if kind is None or offender is None or not ctx.config.icmp:
        return
    build = syn_error4 if v4 else syn_error6
    ctx.link.send_frame(
        build(
            ctx.link.guest_mac,
            ctx.nat.mac_for(offender),
            offender,
            (flow.guest_addr, flow.guest_port),
            (flow.our_addr, flow.our_port),
            *kind,
            flow.ack - 1 & 0xFFFFFFFF,
        )
    )
