"""All that hostile flows can have kept in user space at a time, against the budget for it."""

from __future__ import annotations

import gc
import socket
import tracemalloc

from passt.userspace.flow.budget import Budget
from tests.unit.tcp_kit import ACK, SYN, Guest, Host

MIB = 1 << 20
LIMIT = 6 * MIB


def established(host: Host, port: int, source_port: int) -> Guest | None:
    guest = Guest(host, port, port=source_port)
    host.feed(guest.frame(SYN, options=guest.options))
    replies = host.take()
    if not replies:
        return None
    guest.ack = replies[-1].next_seq
    guest.our_scale = max(replies[-1].options.window_scale, 0)
    guest.send(ACK)
    return guest


def test_flows_and_data_of_a_hostile_guest() -> None:
    """As many connections as it gets, each with gaps, with single bytes and with all they take."""
    with Host(limit=100000) as host:
        listener = host.listener()
        listener.listen(4096)
        port = listener.getsockname()[1]
        budget = Budget(LIMIT)
        host.table.budget = host.ctx.budget = budget
        guests = [guest for n in range(100) if (guest := established(host, port, 2000 + n))]
        block = bytes(1400)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        try:
            for number, guest in enumerate(guests):
                if number % 2:
                    for at in range(5, 400, 2):
                        host.feed(guest.frame(ACK, b"x", seq=guest.isn + at))
                else:
                    for at in range(5, 60000, 1400):
                        host.feed(guest.frame(ACK, block, seq=guest.isn + at))
                host.link.sent.clear()
            refused = 0
            for number in range(4000):
                guest = established(host, port, 3000 + number)
                refused += guest is None
                if refused > 50:
                    break
            gc.collect()
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert refused > 50
        assert budget.flows + budget.data <= LIMIT
        assert budget.data_limit * 0.8 < budget.data <= budget.data_limit
        # The first hundred flows were there before.
        assert LIMIT / 4 < used <= LIMIT
        assert all(flow.sock.fileno() >= 0 for flow in host.flows())
        listener.settimeout(0)
        peer, _ = listener.accept()
        host.own(peer)
        first = guests[0]
        first.seq = (first.isn + 1) & 0xFFFFFFFF
        first.data(b"abcd")
        peer.settimeout(5)
        assert peer.recv(4, socket.MSG_WAITALL) == b"abcd"
