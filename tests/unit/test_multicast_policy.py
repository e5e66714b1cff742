"""Which groups are joined, at which ports, and what of them is heard."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passt.userspace.multicast.filters import Filter
from passt.userspace.multicast.policy import is_joined, known_ports, leaves_host
from passt.userspace.multicast.sockets import Place, places
from passt.userspace.wire import membership
from tests.unit.fakes import config


def packed(address: str) -> bytes:
    """An address as bytes."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.mark.parametrize(
    ("group", "joined", "ports"),
    [
        ("224.0.0.1", False, ()),
        ("224.0.0.22", False, ()),
        ("224.0.0.31", False, ()),
        ("224.0.0.251", True, (5353,)),
        ("224.0.0.252", True, (5355,)),
        ("224.0.1.1", True, ()),
        ("224.1.0.1", True, ()),
        ("232.1.2.3", True, ()),
        ("239.255.255.250", True, (1900, 3702)),
        ("ff00::1234", False, ()),
        ("ff01::fb", False, (5353,)),
        ("ff02::1", False, ()),
        ("ff02::2", False, ()),
        ("ff02::16", False, ()),
        ("ff02::c", True, (1900, 3702)),
        ("ff02::fb", True, (5353,)),
        ("ff05::fb", True, (5353,)),
        ("ff02::1:2", False, ()),
        ("ff02::1:3", True, (5355,)),
        ("ff02::1:ff12:3456", False, ()),
        ("ff02::1:fe12:3456", True, ()),
        ("ff02::1234", True, ()),
        ("ff05::2", True, ()),
        ("ff0e::1", True, ()),
        ("ff35::8000:1234", True, ()),
        ("ff0f::1", False, ()),
    ],
)
def test_groups(group: str, joined: bool, ports: tuple[int, ...]) -> None:
    assert (is_joined(packed(group)), known_ports(packed(group))) == (joined, ports)


@pytest.mark.parametrize(
    ("group", "leaves"),
    [("224.0.0.1", True), ("ff00::1", False), ("ff01::1", False), ("ff02::1", True),
     ("ff12::1", True), ("ff11::1", False), ("ff0f::1", False)],
)  # fmt: skip
def test_scopes_that_end_at_the_host(group: str, leaves: bool) -> None:
    assert leaves_host(packed(group)) == leaves


def test_places() -> None:
    """The template's interface, or the outbound one; none where there is no link."""
    configuration = config()
    assert places(configuration) == {}
    configuration.v4.ifindex = configuration.v6.ifindex = 1
    configuration.v4.ifname = configuration.v6.ifname = "lo"
    assert places(configuration) == {}
    configuration.v4.ifindex, configuration.v4.ifname = 7, "eth0"
    configuration.v6.ifindex, configuration.v6.ifname = 8, "eth1"
    assert places(configuration) == {4: Place(True, 7, "eth0"), 16: Place(False, 8, "eth1")}
    configuration.v4.outbound_if = "eth2"
    assert places(configuration).keys() == {16}
    configuration.v4.outbound_index = 9
    assert places(configuration)[4] == Place(True, 9, "eth2", bound=True)
    configuration.v6.enabled = False
    assert places(configuration).keys() == {4}


SOURCE = st.integers(1, 6).map(lambda number: bytes((10, 0, 0, number)))
RECORDS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(SOURCE, max_size=4).map(tuple)), max_size=12
)
ALL = frozenset(bytes((10, 0, 0, number)) for number in range(9))


@given(RECORDS)
def test_filter_is_the_set_of_those_heard(records: list[tuple[int, tuple[bytes, ...]]]) -> None:
    """Whatever is reported, in any order: as if all sources there are were kept in a set."""
    filter_, heard = Filter(), frozenset[bytes]()
    for kind, sources in records:
        filter_ = filter_.apply(kind, sources)
        named = frozenset(sources)
        if kind in (membership.IS_INCLUDE, membership.TO_INCLUDE):
            heard = named
        elif kind in (membership.IS_EXCLUDE, membership.TO_EXCLUDE):
            heard = ALL - named
        elif kind == membership.ALLOW:
            heard |= named
        else:
            heard -= named
        assert {source for source in ALL if filter_.hears(source)} == heard
        assert filter_.is_empty == (not heard)
        assert len(set(filter_.sources)) == len(filter_.sources)


def test_sources_are_limited() -> None:
    many = tuple(bytes((10, 1, i >> 8, i & 255)) for i in range(1000))
    filter_ = Filter().apply(membership.ALLOW, many[:500]).apply(membership.ALLOW, many[500:])
    assert filter_.sources == many[: membership.MAX_SOURCES]
    filter_ = Filter().apply(membership.TO_EXCLUDE, many)
    assert not filter_.hears(many[0])
    assert filter_.hears(many[-1])


def test_equal_filters() -> None:
    one, two = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    assert Filter(True, (one, two)) == Filter(True, (two, one))
    assert Filter(True, (one,)) != Filter(False, (one,))
    assert Filter() != 0
