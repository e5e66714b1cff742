"""Netlink sockets in a namespace whose root is somebody else, who may send messages to any port.

None of them may be taken for the kernel's, or keep us from hearing what the kernel says.
"""

from __future__ import annotations

import socket

import pytest

from passt.kernel.netlink.records import read_link
from passt.kernel.netlink.route_socket import RouteSocket
from passt.kernel.sockdiag import SPEC, SocketDiag
from passt.kernel.sockets import open_socket
from passt.userspace.flow.rules import IPPROTO_TCP
from tests.system.kit.netns import Netns

pytestmark = pytest.mark.system


def stranger(netns: Netns, protocol: int) -> socket.socket:
    """A netlink socket of that namespace's root."""
    return netns.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))


def test_lists_of_sockets(host: Netns) -> None:
    sock = host.call(lambda: open_socket(SPEC.plain()))
    sock.bind((0, 0))
    port = sock.getsockname()[0]
    with stranger(host, 4) as other, host.listen("127.0.0.1", 7031):
        # Before it is connected they may.
        assert other.sendto(bytes(16), (port, 0)) == 16
        diag = SocketDiag(sock)
        with pytest.raises(ConnectionRefusedError):
            other.sendto(bytes(16), (port, 0))
        assert 7031 in diag.ports(socket.AF_INET, IPPROTO_TCP, 10)
    diag.close()


def test_configuration(host: Netns) -> None:
    netlink = host.call(RouteSocket)
    port = netlink._socket.getsockname()[0]
    with stranger(host, 0) as other, pytest.raises(ConnectionRefusedError):
        other.sendto(bytes(16), (port, 0))
    assert read_link(netlink, 1).name == "lo"
    netlink.close()
