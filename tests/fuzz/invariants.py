"""What must hold of packets and flows, whatever happens: see :mod:`tests.fuzz.world`."""

from __future__ import annotations

from passt.userspace.tcp.const import MAX_WINDOW
from passt.userspace.tcp.flow import TcpFlow
from tests.fuzz import oracle


def is_service(packet: oracle.Incoming) -> bool:
    """Whether ``packet`` is for one of our services: NDP, DHCP or DHCPv6."""
    if packet.kind == oracle.ICMPV6:
        return 133 <= packet.l4[0] <= 136
    return packet.kind == oracle.UDP and packet.dport == (67 if len(packet.src) == 4 else 547)


def check_frame(frame: oracle.Outgoing, mtu: int) -> None:
    """A frame to a guest whose MTU is ``mtu``, decoded and found sound so far."""
    if frame.kind == "arp":
        return
    assert oracle.is_unicast(frame.src), f"from {frame.src.hex()}"
    assert not oracle.is_loopback(frame.src), f"from {frame.src.hex()}"
    assert not oracle.is_loopback(frame.dst), f"to {frame.dst.hex()}"
    v4 = len(frame.src) == 4
    error = (frame.kind == oracle.ICMP and frame.l4[0] in (3, 11, 12)) or (
        frame.kind == oracle.ICMPV6 and frame.l4[0] < 128
    )
    if error:
        assert frame.size <= (576 if v4 else 1280), f"error of {frame.size} bytes"
        assert oracle.is_unicast(frame.dst), "error to a group"
        oracle.check_quote(frame)
    if frame.kind == oracle.TCP:
        assert oracle.is_unicast(frame.dst), "TCP to a group"
        # IPv6 has no smaller links.
        most = max(mtu, 0 if v4 else 1280)
        assert frame.size <= most, f"{frame.size} bytes, more than the MTU"


def check_tcp(flow: TcpFlow) -> None:
    """Invariants of a TCP flow between events."""
    assert flow.head <= flow.snd_una + 1 or flow.state < 3, "head"
    assert flow.snd_una <= flow.snd_nxt <= flow.snd_max, "order of what is sent"
    assert flow.snd_max - flow.snd_una <= MAX_WINDOW + 1, "more in flight than any window"
    assert flow.told_ack <= flow.ack <= flow.rcv_nxt, "order of what is acknowledged"
    assert 0 <= flow.window_field <= 0xFFFF, "window"
    assert len(flow.tail) <= MAX_WINDOW, "tail"
    assert flow.rcv_nxt <= max(flow.rcv_edge, flow.told_ack) + 1, "more than was offered"
    assert len(flow.sacked) <= 128, "blocks"
    assert all(flow.snd_una <= a < b <= flow.snd_max for a, b in flow.sacked), "blocks"
    if flow.out_of_order is not None:
        assert flow.out_of_order.size <= MAX_WINDOW, "out of order"
