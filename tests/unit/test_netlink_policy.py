"""Which routing tables besides main a program's packets may be routed by, and what comes of it."""

from __future__ import annotations

import socket
import struct
from errno import EOPNOTSUPP, EPERM
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.kernel.netlink import policy
from passt.kernel.netlink.route_socket import NetlinkError, RouteSocket
from passt.kernel.netlink.template import Wish, survey
from passt.syscalls import bare_socket
from tests.unit.netlink_bytes import address, attr, pack_ip, route, u32

IPV4, IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
RULES, ROUTES, ADDRESSES = 34, 26, 22
TO_TABLE, BLACKHOLE, INVERT = 1, 6, 2


def rule(
    table: int,
    *extra: bytes,
    family: int = IPV4,
    src_len: int = 0,
    tos: int = 0,
    action: int = TO_TABLE,
    flags: int = 0,
    suppress: int = 0xFFFFFFFF,
) -> bytes:
    """An RTM_NEWRULE body as the kernel makes it."""
    header = struct.pack(
        "=BBBBBBBBI", family, 0, src_len, tos, table if table < 256 else 252, 0, 0, action, flags
    )
    return header + u32(15, table) + u32(14, suppress) + b"".join(extra)


OIF, IIF, IIF_LO = attr(17, b"eth0\0"), attr(3, b"eth0\0"), attr(3, b"lo\0")
MARK, MASK = u32(10, 0xCA6C), u32(16, 0xFFFFFFFF)
FROM = attr(2, pack_ip("192.0.2.0"))
TO = attr(1, pack_ip("10.0.0.0"))


class Host:
    """A kernel with rules, and routes in several tables; eth0 is 2, eth1 is 3."""

    def __init__(self) -> None:
        self.rules: list[bytes] = []
        self.routes: list[bytes] = []
        self.addresses: list[bytes] = []
        self.error = 0
        self.asked: list[int] = []

    def dump(self, kind: int, request: bytes) -> list[bytes]:
        self.asked.append(kind)
        if kind == RULES:
            if self.error:
                raise NetlinkError(self.error, "no")
            return self.rules
        # Unfiltered, as older kernels do it.
        return self.routes if kind == ROUTES else self.addresses

    def defaults(self, *own: str, index: int = 0) -> list[bytes]:
        """What stands in for the main table's default route."""
        sock = cast(RouteSocket, self)
        return policy.default_routes(sock, IPV4, index, [pack_ip(each) for each in own])


@pytest.fixture
def host() -> Host:
    made = Host()
    made.routes = [
        route("192.0.2.0/24", 2),
        route("default", 2, "192.0.2.1", table=100),
        route("default", 3, "198.51.100.1", table=51820),
        route("198.51.100.0/24", 3, table=51820),
    ]
    return made


def in_main(index: int, gateway: str) -> bytes:
    return route("default", index, gateway)


@pytest.mark.parametrize(
    ("extra", "fields", "applies"),
    [
        ((), {}, True),
        ((IIF_LO,), {}, True),
        ((IIF,), {}, False),
        ((OIF,), {}, False),
        ((MARK, MASK), {}, False),
        ((MARK, MASK), {"flags": INVERT}, True),
        ((OIF,), {"flags": INVERT}, True),
        ((), {"flags": INVERT}, False),
        ((FROM,), {"src_len": 24}, False),
        ((FROM,), {"src_len": 24, "flags": INVERT}, True),
        ((TO,), {}, False),
        ((TO,), {"flags": INVERT}, False),
        ((TO, MARK), {"flags": INVERT}, True),
        ((attr(22, b"\x06"),), {}, False),
        ((attr(20, bytes(8)),), {}, False),
        ((attr(19, b"\x01"),), {}, False),
        ((), {"tos": 8}, False),
        ((), {"suppress": 0}, False),
        ((), {"action": BLACKHOLE}, False),
        ((), {"family": IPV6}, False),
    ],
)
def test_rules_that_apply_to_a_plain_packet(
    host: Host, extra: tuple[bytes, ...], fields: dict[str, int], applies: bool
) -> None:
    host.rules = [rule(254), rule(100, *extra, **fields)]
    assert host.defaults() == ([in_main(2, "192.0.2.1")] if applies else [])


def test_tables_in_the_order_of_rules(host: Host) -> None:
    """All of the table comes along; its number may have more than eight bits."""
    host.rules = [rule(255), rule(9), rule(51820), rule(100)]
    assert host.defaults() == [in_main(3, "198.51.100.1"), route("198.51.100.0/24", 3)]
    host.rules.reverse()
    assert host.defaults() == [in_main(2, "192.0.2.1")]


def test_rules_for_addresses_of_a_named_interface(host: Host) -> None:
    host.rules = [rule(100, FROM, src_len=24), rule(51820)]
    assert host.defaults("192.0.2.2") == [in_main(2, "192.0.2.1")]
    assert host.defaults("198.51.100.2")[0] == in_main(3, "198.51.100.1")
    assert host.defaults("192.0.2.2", index=3)[0] == in_main(3, "198.51.100.1")
    assert host.defaults("192.0.2.2", index=4) == []


def test_prefix_longer_than_an_address_covers_nothing(host: Host) -> None:
    host.rules = [rule(100, FROM, src_len=33), rule(51820)]
    assert host.defaults("192.0.2.2")[0] == in_main(3, "198.51.100.1")


def test_table_without_default_route_is_passed_over(host: Host) -> None:
    host.routes[1:2] = [route("10.0.0.0/8", 2, "192.0.2.1", table=100)]
    host.routes.insert(0, route("default", 1, table=101))
    host.rules = [rule(100), rule(101), rule(51820)]
    assert host.defaults()[0] == in_main(3, "198.51.100.1")


def test_kernel_without_rules(host: Host) -> None:
    host.error = EOPNOTSUPP
    assert host.defaults() == []
    host.error = EPERM
    with pytest.raises(NetlinkError):
        host.defaults()


@given(st.binary(max_size=60))
def test_any_rule(data: bytes) -> None:
    host = Host()
    host.rules = [data, rule(7) + data]
    assert host.defaults("192.0.2.2") == []


# Template


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("", "lo", "eth0", "eth1")
    monkeypatch.setattr(bare_socket, "if_indextoname", names.__getitem__)
    monkeypatch.setattr(bare_socket, "if_nametoindex", names.index)


@pytest.mark.usefixtures("named")
def test_template_by_rules(host: Host) -> None:
    """Only if the main table has no default; then its interface and gateway count."""
    host.addresses = [address("192.0.2.2", 24), address("198.51.100.2", 24, index=3)]
    host.rules = [rule(51820)]
    sock = cast(RouteSocket, host)
    found, notes = survey(sock, Wish(IPV4))
    assert found is not None
    assert (found.name, found.address) == ("eth1", pack_ip("198.51.100.2"))
    assert (found.has_default, found.gateway) == (True, pack_ip("198.51.100.1"))
    assert ("info", "IPv4: default route by routing rules") in notes

    host.routes.append(route("default", 2, "192.0.2.9"))
    host.asked.clear()
    found, _ = survey(sock, Wish(IPV4))
    assert found is not None
    assert (found.name, found.gateway) == ("eth0", pack_ip("192.0.2.9"))
    assert RULES not in host.asked
    # An interface that was named has its own.
    found, _ = survey(sock, Wish(IPV4, interface="eth1"))
    assert found is not None
    assert found.gateway == pack_ip("198.51.100.1")
