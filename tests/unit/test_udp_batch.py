"""What the receive batch says about control data, which decides on the short path."""

from __future__ import annotations

import socket

from passt.syscalls.cmsg import gro_size, space
from passt.syscalls.mmsg import RecvBatch
from passt.syscalls.sockopt import UDP_GRO, UDP_SEGMENT


def test_control_lengths_tell_joined_datagrams() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sender.connect(receiver.getsockname())
        batch = RecvBatch(4, 65536, space(4))
        assert batch.control_lengths() == []
        sender.send(b"single")
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 10)
        sender.send(b"j" * 25)
        assert batch.recv(receiver.fileno()) == 2
        first, second = batch.control_lengths()
        assert (first, gro_size(batch.control(0))) == (0, 0)
        assert second > 0
        assert gro_size(batch.control(1)) == 10
        assert batch.lengths() == [6, 25]
