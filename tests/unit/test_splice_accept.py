"""Accepting: who the peer is, and what the socket inherits from its listener."""

from __future__ import annotations

import os
import select
import socket
from contextlib import closing

import pytest

from passt.userspace.flow.accept import accept
from passt.userspace.splice.pool import TCP_OPTIONS

DUAL_STACK = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


@pytest.mark.parametrize(
    ("family", "wildcard", "address", "expected"),
    [
        (socket.AF_INET, "0.0.0.0", "127.0.0.5", "7f000005"),
        (socket.AF_INET6, "::", "127.0.0.5", "7f000005"),
        (socket.AF_INET6, "::", "::1", "0" * 31 + "1"),
    ],
)
def test_peer(family: socket.AddressFamily, wildcard: str, address: str, expected: str) -> None:
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(*DUAL_STACK)
        for option in TCP_OPTIONS:
            listener.setsockopt(*option)
        listener.bind((wildcard, 0))
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            accept(listener, family)
        port = listener.getsockname()[1]
        with socket.create_connection((address, port), source_address=(address, 0)) as client:
            assert select.select([listener], [], [], 10)[0]
            sock, peer, peer_port = accept(listener, family)
            with closing(sock):
                assert peer.hex() == expected
                assert peer_port == client.getsockname()[1]
                assert sock.family == family
                assert sock.getpeername()[1] == peer_port
                assert not os.get_inheritable(sock.fileno())
                for level, name, _ in TCP_OPTIONS:
                    assert sock.getsockopt(level, name)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
