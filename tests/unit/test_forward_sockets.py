"""How listening sockets are made, seen from the sockets that come out."""

from __future__ import annotations

import errno
import socket
from contextlib import closing

import pytest

from passt.kernel.sockets import SocketSpec, needed, open_sockets
from passt.syscalls import bare_socket
from passt.syscalls.sockopt import (
    IP_FREEBIND,
    IP_PKTINFO,
    IP_RECVERR,
    IPV6_FREEBIND,
    IPV6_RECVERR,
)
from passt.userspace.config.model import Config
from passt.userspace.flow.rules import IPPROTO_TCP, IPPROTO_UDP, Rule
from passt.userspace.forward.sockets import NO_IPV6, Here, plans
from passt.userspace.splice.pool import TCP_OPTIONS

T, U = IPPROTO_TCP, IPPROTO_UDP
ANY4, ANY6 = bytes(4), bytes(16)
LOOPBACK4, LOOPBACK6 = bytes((127, 0, 0, 1)), bytes(15) + b"\1"
LINK_LOCAL = bytes.fromhex("fe800000000000000000000000000001")


def config(*, v4: bool = True, v6: bool = True, freebind: bool = False) -> Config:
    made = Config("pasta")
    made.v4.enabled = v4
    made.v6.enabled = v6
    made.freebind = freebind
    return made


def rule(protocol: int, address: bytes | None = None, ifname: str = "") -> Rule:
    return Rule(protocol, 0, 0, 0, address, ifname)


def make(what: Rule, settings: Config | None = None, port: int = 0) -> socket.socket:
    made = Here().call([plans(what, settings or config(), 0)[0].spec(port)])[0]
    if isinstance(made, OSError):
        raise made
    return made


@pytest.mark.parametrize("protocol", [T, U])
def test_dual_stack_takes_both_versions(protocol: int) -> None:
    kind = socket.SOCK_STREAM if protocol == T else socket.SOCK_DGRAM
    with closing(make(rule(protocol))) as sock:
        assert sock.family == socket.AF_INET6
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert not sock.getblocking()
        if protocol == T:
            sock.listen()
        port = sock.getsockname()[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, kind) as client:
                client.connect((host, port))


@pytest.mark.parametrize("protocol", [T, U])
def test_single_version_wildcards_are_apart(protocol: int) -> None:
    with closing(make(rule(protocol, ANY4))) as four:
        port = four.getsockname()[1]
        with closing(make(rule(protocol, ANY6), port=port)) as six:
            assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            if protocol == T:
                four.listen()
                six.listen()


def test_wildcards_of_the_version_that_is_enabled() -> None:
    with closing(make(rule(T), config(v6=False))) as sock:
        assert sock.family == socket.AF_INET
    with closing(make(rule(T), config(v4=False))) as sock:
        assert sock.family == socket.AF_INET6
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_rules_of_a_disabled_version_cannot_be_opened() -> None:
    assert plans(rule(T, ANY4), config(v4=False), 0) == []
    assert plans(rule(T, LOOPBACK6), config(v6=False), 0) == []
    assert len(plans(rule(T, LOOPBACK4), config(v6=False), 0)) == 1


def test_ways_without_ipv6() -> None:
    first, second = plans(rule(T), config(), 0)
    assert first.spec(80).plain()[3] == ("::", 80, 0, 0)
    assert second.spec(80).plain()[3] == ("0.0.0.0", 80)
    assert errno.EAFNOSUPPORT in NO_IPV6


def test_link_local_addresses_have_a_scope_unless_a_device_says_it() -> None:
    def scopes(address: bytes, ifname: str = "") -> int:
        (plan,) = plans(rule(T, address, ifname), config(), 7)
        made = plan.spec(80).plain()[3]
        assert made is not None
        assert len(made) == 4
        return made[3]

    assert scopes(LINK_LOCAL) == 7
    assert scopes(LINK_LOCAL, "lo") == 0
    assert scopes(LOOPBACK6) == 0


@pytest.mark.parametrize("address", [None, ANY4, LOOPBACK4, LOOPBACK6])
def test_connections_inherit_what_they_need(address: bytes | None) -> None:
    with closing(make(rule(T, address))) as sock:
        sock.listen()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        host = "::1" if address == LOOPBACK6 else "127.0.0.1"
        with socket.create_connection((host, sock.getsockname()[1])):
            accepted, _ = bare_socket.accept(sock)
            with closing(accepted):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


@pytest.mark.parametrize("address", [None, ANY4, LOOPBACK6])
def test_datagrams_come_with_addresses_and_errors(address: bytes | None) -> None:
    with closing(make(rule(U, address))) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_RECVERR)
        if sock.family == socket.AF_INET:
            assert sock.getsockopt(socket.IPPROTO_IP, IP_PKTINFO)
        else:
            assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR)
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)


@pytest.mark.parametrize("protocol", [T, U])
def test_freebind(protocol: int) -> None:
    free = config(freebind=True)
    foreign = bytes((192, 0, 2, 77))
    with pytest.raises(OSError, match="Cannot assign requested address"):
        make(rule(protocol, foreign))
    with closing(make(rule(protocol, foreign), free)) as sock:
        assert sock.getsockname()[0] == "192.0.2.77"
        assert sock.getsockopt(socket.IPPROTO_IP, IP_FREEBIND)
    with closing(make(rule(protocol, bytes.fromhex("20010db8") + bytes(11) + b"\1"), free)) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND)


def test_devices() -> None:
    with closing(make(rule(T, ifname="lo"))) as sock:
        device = sock.getsockopt(socket.SOL_SOCKET, 25, 16)
        assert device.rstrip(b"\0") == b"lo"
    with pytest.raises(OSError, match="No such device"):
        make(rule(T, ifname="nope"))


def test_requests_are_served_at_once() -> None:
    made: list[socket.socket | OSError] = []
    spec = plans(rule(T, LOOPBACK4), config(), 0)[0].spec(0)
    bad = plans(rule(T, LOOPBACK4, "nope"), config(), 0)[0].spec(0)
    Here().request([spec, bad], made.extend)
    sock, error = made
    assert isinstance(sock, bare_socket.socket)
    assert isinstance(error, OSError)
    sock.close()


def test_large_rules_leave_the_options_of_connections_to_accepting() -> None:
    small, large = Rule(T, 20000, 20063, 20000), Rule(T, 20000, 20064, 20000)
    (nodelay, inline) = TCP_OPTIONS
    assert {nodelay, inline} <= set(plans(small, config(), 0)[0].spec(20000).plain()[2])
    assert not {nodelay, inline} & set(plans(large, config(), 0)[0].spec(20000).plain()[2])


def test_defaults_are_not_set_again() -> None:
    """But what differs from the kernel's default, which depends on the namespace, is."""
    v6only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    reuse = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket(socket.AF_INET6) as fresh:
        default = fresh.getsockopt(*v6only)
    for value in (0, 1):
        spec = SocketSpec(socket.AF_INET6, socket.SOCK_STREAM, options=(reuse, (*v6only, value)))
        assert needed(spec.plain()) == (reuse, (*v6only, value))[: 1 + (value != default)]
    plain = spec.plain()
    first, second = open_sockets([plain, plain])
    assert isinstance(first, bare_socket.socket)
    assert isinstance(second, bare_socket.socket)
    with closing(first), closing(second):
        for sock in first, second:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
            assert sock.getsockopt(*v6only) == 1
