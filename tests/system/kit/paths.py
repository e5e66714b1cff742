"""The ways a connection can take through pasta, with both ends in the hands of the test.

==============  =================================  ===========================================
name            client                             server
==============  =================================  ===========================================
``remote``      in the namespace, through the tap  in *remote*, at its own address
``gateway``     in the namespace, through the tap  host's loopback, reached as the gateway
``own``         in the namespace, through the tap  another address of the host
``inbound``     in *remote*, ``-t``, the tap       in the namespace
``splice-in``   host's loopback, ``-t``, splice    in the namespace, at its external address
``splice-out``  namespace's loopback, ``-T``       host's loopback
``fast-in``     as ``splice-in``, with ``--accel=ebpf``
``fast-out``    as ``splice-out``, with ``--accel=ebpf``
==============  =================================  ===========================================

For datagrams the same with ``-u`` and ``-U``.
"""

from __future__ import annotations

import socket

from . import prepared
from .netns import Netns, family_of, wait_for
from .pasta import Pasta
from .topology import GATEWAY, HOST, LOOPBACK, OWN, REMOTE, Topology

OUTBOUND = ("remote", "gateway", "own")
INBOUND = ("inbound",)
SPLICED = ("splice-in", "splice-out")
TAP = OUTBOUND + INBOUND
FAST = ("fast-in", "fast-out")
ALL = TAP + SPLICED
TCP = ALL + FAST

PORT_IN = 7001
PORT_OUT = 7002
PORT_SPLICE_OUT = 7003
TCP_OPTIONS = ("-t", str(PORT_IN), "-T", str(PORT_SPLICE_OUT))
UDP_OPTIONS = ("-u", str(PORT_IN), "-U", str(PORT_SPLICE_OUT))
OPTIONS = (*TCP_OPTIONS, *UDP_OPTIONS)


class Path:
    """One way, for one IP version, through a pasta started with at least OPTIONS."""

    def __init__(self, name: str, version: int, topology: Topology, pasta: Pasta) -> None:
        self.name = name
        self.version = version
        self.pasta = pasta
        ends: dict[str, tuple[Netns, dict[int, str], Netns, dict[int, str], int]] = {
            "remote": (pasta.ns, REMOTE, topology.remote, REMOTE, PORT_OUT),
            "gateway": (pasta.ns, GATEWAY, topology.host, LOOPBACK, PORT_OUT),
            "own": (pasta.ns, OWN, topology.host, OWN, PORT_OUT),
            "inbound": (topology.remote, HOST, pasta.ns, HOST, PORT_IN),
            "splice-in": (topology.host, LOOPBACK, pasta.ns, HOST, PORT_IN),
            "splice-out": (pasta.ns, LOOPBACK, topology.host, LOOPBACK, PORT_SPLICE_OUT),
        }
        self.fast = name in FAST
        if self.fast:
            ends[name] = ends[name.replace("fast", "splice")]
            assert "Acceleration: splice" not in pasta.messages()
        self.client_ns, targets, self.server_ns, addresses, self.port = ends[name]
        self.target = targets[version]
        self.address = addresses[version]
        # Remote has two addresses in that network; elsewhere the kernel has no choice.
        self.source = REMOTE[version] if name == "inbound" else ""

    def listen(self, backlog: int = 128) -> socket.socket:
        """Return the listening socket of the server's side."""
        return self.server_ns.listen(self.address, self.port, backlog=backlog)

    def connect(self, timeout: float = 10.0, source_port: int = 0) -> socket.socket:
        """Return a socket connected to the server by this way."""
        return self.client_ns.connect(
            self.target, self.port, timeout=timeout, source=(self.source, source_port)
        )

    def connect_many(self, count: int) -> list[socket.socket]:
        """Return *count* sockets that are being connected, non-blocking."""
        sockets = []
        for _ in range(count):
            sock = self.client_ns.new_socket(family_of(self.target), socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.connect_ex((self.target, self.port))
            sockets.append(sock)
        return sockets

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return the two ends, client and server, of a new connection."""
        with self.listen() as listener:
            client = self.connect()
            server, _ = listener.accept()
            server.settimeout(10.0)
            if self.fast:
                self.wait_accelerated(2)
            return client, server

    def wait_accelerated(self, sockets: int) -> None:
        """Wait until at least so many sockets are on the fast path."""
        wait_for(lambda: self.accelerated() >= sockets, what="connections to be accelerated")

    def accelerated(self) -> int:
        """Return how many sockets are on the fast path, of all instances of the user."""
        return prepared.sockets(self.pasta.user.uid)

    def udp_server(self) -> socket.socket:
        """Return the server's datagram socket."""
        sock = self.server_ns.udp(self.address, self.port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return sock

    def udp_client(self, source_port: int = 0) -> socket.socket:
        """Return a datagram socket connected to the server by this way."""
        sock = self.client_ns.udp(family=family_of(self.target))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if self.source or source_port:
            sock.bind((self.source, source_port))
        sock.connect((self.target, self.port))
        return sock
