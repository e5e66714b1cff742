"""Rules for many ports behind one socket: which ports are open, who has to yield, and when."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from passt.kernel.ebpf.lookup import Claim
from passt.kernel.ebpf.lookup_layout import IPV4, IPV6, NUMBERS, OPEN, SLOTS, Place
from passt.userspace import log
from passt.userspace.flow.rules import (
    AUTO,
    BEST_EFFORT,
    HOST,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SPLICE,
    Rule,
    RuleTable,
)
from passt.userspace.forward.binding import MANY
from passt.userspace.forward.lookup import Gate
from passt.userspace.forward.portset import portset, runs_in, span
from passt.userspace.forward.side import ForwardError
from tests.unit.lookup_world import LookupWorld, serve_by

FIRST = 20000
LAST = FIRST + MANY - 1
LISTENER = 50001

MakeWorld = Callable[..., LookupWorld]


@pytest.fixture
def make_world(monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    def make(*rules: Rule, **options: Any) -> LookupWorld:
        made = LookupWorld(rules, **options)
        serve_by(monkeypatch, made)
        return made

    return make


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was logged, but for debugging."""
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda _key, _level, text, *args: lines.append(text % args))
    return lines


def tcp(first: int = FIRST, last: int = LAST, **fields: Any) -> Rule:
    return Rule(IPPROTO_TCP, first, last, fields.pop("to", first), **fields)


def replace(world: LookupWorld, rules: Sequence[Rule]) -> list[str]:
    """New rules on the host; what was told of them."""
    tables = [RuleTable(HOST, 0x3F), RuleTable(SPLICE, 0x3F)]
    tables[0].extend(rules)
    told: list[str] = []
    world.forwarder.replace(tables, told.extend)
    world.loop.run()
    return told


def test_one_socket_for_a_rule(make_world: MakeWorld) -> None:
    world = make_world(tcp()).start()
    assert world.host.listening(IPPROTO_TCP) == [LISTENER]
    assert world.maps.opened() == list(range(FIRST, LAST + 1))
    assert world.maps.admitted[0] is world.host.bound[IPPROTO_TCP, LISTENER]
    place = world.maps.places[0]
    assert (place.versions, place.address, place.ifindex) == (IPV4 | IPV6, b"", 0)
    assert not world.loop.timers


@pytest.mark.parametrize(
    "rule",
    [
        tcp(last=LAST - 1),
        tcp(flags=AUTO | BEST_EFFORT),
        Rule(IPPROTO_UDP, FIRST, LAST, FIRST),
    ],
    ids=["few", "automatic", "udp"],
)
def test_other_rules_have_sockets_of_their_own(make_world: MakeWorld, rule: Rule) -> None:
    world = make_world(rule).start()
    assert not world.maps.places
    ports = [] if rule.auto else list(range(rule.first, rule.last + 1))
    assert world.host.listening(rule.protocol) == ports


def test_rules_share_a_listener_if_they_listen_in_the_same_place(make_world: MakeWorld) -> None:
    one, two = tcp(to=1000), tcp(30000, 30999)
    here = tcp(40000, 40999, address=b"\x7f\0\0\1", ifname="eth0")
    world = make_world(one, two, here).start()
    assert world.maps.opened(0) == [*range(FIRST, LAST + 1), *range(30000, 31000)]
    assert world.maps.opened(1) == list(range(40000, 41000))
    assert len(world.maps.places) == len(world.host.listening(IPPROTO_TCP)) == 2


def test_each_place_has_its_listener(make_world: MakeWorld) -> None:
    world = make_world()
    world.start()

    def made(address: bytes | None, ifname: str = "") -> Place:
        replace(world, [tcp(address=address, ifname=ifname)])
        (place,) = world.maps.places.values()
        return place

    loopback6 = socket.inet_pton(socket.AF_INET6, "::1")
    for address, ifname, versions in (
        (b"\x7f\0\0\1", "", IPV4),
        (bytes(4), "", IPV4),
        (bytes(16), "", IPV6),
        (loopback6, "eth0", IPV6),
        (None, "eth0", IPV4 | IPV6),
    ):
        place = made(address, ifname)
        assert place.versions == versions
        assert place.address == (address if any(address or b"") else b"")
        assert place.ifindex == (7 if ifname else 0)


def test_connections_are_told_apart_by_port(make_world: MakeWorld) -> None:
    one, two = tcp(), tcp(30000, 30999)
    world = make_world(one, two).start()
    (find,) = world.finds
    assert [find(port) for port in (FIRST, LAST, 30999)] == [one, one, two]
    assert find(LAST + 1) is None
    assert find(LISTENER) is None


def test_no_ipv6_here(make_world: MakeWorld) -> None:
    world = make_world(tcp())
    plain = world.host.call

    def call(specs: Any) -> Any:
        no = OSError(errno.EAFNOSUPPORT, "")
        return [no if s.plain()[0] == socket.AF_INET6 else plain([s])[0] for s in specs]

    world.host.call = call  # type: ignore[method-assign]
    world.start()
    assert world.maps.places[0].versions == IPV4
    assert len(world.maps.opened()) == MANY


# Who has to yield at start.


def test_port_of_a_program_is_an_error_for_a_fixed_rule(make_world: MakeWorld) -> None:
    world = make_world(tcp())
    world.host.others.add((IPPROTO_TCP, FIRST + 7))
    with pytest.raises(ForwardError) as caught:
        world.open()
    assert str(caught.value) == (
        f"Listen failed for HOST TCP port */{FIRST + 7}: Address already in use\n"
        "Couldn't listen on requested ports"
    )


def test_port_of_a_program_is_left_out_for_best_effort(
    make_world: MakeWorld, messages: list[str]
) -> None:
    world = make_world(tcp(flags=BEST_EFFORT))
    world.host.others.add((IPPROTO_TCP, FIRST + 7))
    world.start()
    free = [port for port in range(FIRST, LAST + 1) if port != FIRST + 7]
    assert world.maps.opened() == free
    world.loop.wait()
    assert world.maps.opened() == free
    world.host.others.clear()
    world.loop.wait()
    assert world.maps.opened() == list(range(FIRST, LAST + 1))
    assert not messages
    # That was all; nothing is looked at any more.
    assert not world.loop.timers


def test_bound_where_it_does_not_matter(make_world: MakeWorld) -> None:
    """A scan shows ports, whatever the address; binding decides."""
    world = make_world(tcp(address=b"\x7f\0\0\1"))
    world.scan.bound = lambda: span(FIRST, FIRST + 3)  # type: ignore[method-assign]
    world.start()
    assert len(world.maps.opened()) == MANY
    # One for the first port, by which we learn of privilege, and one for each of the four.
    tried = [spec.plain()[3] for spec in world.host.specs]
    assert tried.count(("127.0.0.1", FIRST)) == 2
    assert tried.count(("127.0.0.1", FIRST + 3)) == 1
    assert len(tried) == 6


def test_all_ports_are_taken(make_world: MakeWorld) -> None:
    world = make_world(tcp(flags=BEST_EFFORT))
    world.host.others = {(IPPROTO_TCP, port) for port in range(FIRST, LAST + 1)}
    with pytest.raises(ForwardError, match=f"All listens failed for HOST TCP \\*/{FIRST}-{LAST}"):
        world.open()


@pytest.mark.parametrize("start", [1, 2, 80, 900, 1024, 2000])
def test_low_ports_are_not_ours(make_world: MakeWorld, start: int) -> None:
    world = make_world(tcp(1, 1500, flags=BEST_EFFORT))
    world.host.errors = dict.fromkeys(range(1, start), errno.EACCES)
    if start > 1500:
        with pytest.raises(ForwardError, match="All listens failed"):
            world.open()
        return
    world.start()
    assert world.maps.opened() == list(range(start, 1501))
    # That does not change.
    assert not world.loop.timers


def test_low_ports_are_an_error_for_a_fixed_rule(make_world: MakeWorld) -> None:
    world = make_world(tcp(80, 1500))
    world.host.errors = dict.fromkeys(range(80, 1024), errno.EACCES)
    with pytest.raises(ForwardError, match=r"port \*/80: Permission denied"):
        world.open()


@pytest.mark.parametrize("last", [1000 + 50, 1999], ids=["few", "many"])
def test_low_ports_of_a_new_rule_stay_closed(
    make_world: MakeWorld, messages: list[str], last: int
) -> None:
    """They are tried again each second, as those of any fixed rule, and nobody else has them."""
    world = make_world().start()
    low = range(last - 999, 1024)
    world.host.errors = dict.fromkeys(low, errno.EACCES)
    replace(world, [tcp(low[0], last)])
    for _ in range(3):
        assert world.maps.opened() == list(range(1024, last + 1))
        world.loop.wait()
    assert len(messages) == len(low)
    # net.ipv4.ip_unprivileged_port_start changes.
    world.host.errors = dict.fromkeys(range(low[0], 1020), errno.EACCES)
    world.loop.wait()
    assert world.maps.opened() == list(range(max(1020, low[0]), last + 1))
    world.host.errors = {}
    world.loop.wait()
    assert world.maps.opened() == list(range(low[0], last + 1))


def test_no_socket_to_be_had(make_world: MakeWorld) -> None:
    world = make_world(tcp(ifname="eth0"))
    world.host.errors = {None: errno.ENODEV}
    with pytest.raises(ForwardError, match=rf"\*%eth0/{FIRST}: No such device"):
        world.open()
    assert len(world.maps.free) == SLOTS


def test_other_instances_were_there_first(make_world: MakeWorld) -> None:
    numbers = bytearray(NUMBERS)
    struct.pack_into("=H", numbers, 2 * (FIRST + 5), OPEN)
    claim = Claim(Place(IPV4), bytes(numbers))
    with pytest.raises(ForwardError, match=rf"\*/{FIRST + 5}: Address already in use"):
        make_world(tcp(), claims=[claim]).open()
    world = make_world(tcp(flags=BEST_EFFORT), claims=[claim])
    world.start()
    assert FIRST + 5 not in world.maps.opened()
    # The kernel asks them first anyway, so that it does no harm to be there when they end.
    world.loop.wait()
    assert FIRST + 5 in world.maps.opened()
    elsewhere = Claim(Place(IPV6), bytes(numbers))
    world = make_world(tcp(address=bytes(4)), claims=[elsewhere])
    world.start()
    assert len(world.maps.opened()) == MANY


# Who has to yield later.


def test_program_that_listens_later(make_world: MakeWorld, messages: list[str]) -> None:
    world = make_world(tcp()).start()
    port = FIRST + 9
    world.occupy(port)
    assert port not in world.maps.opened()
    assert len(world.maps.opened()) == MANY - 1
    assert messages == [f"Listen failed for HOST TCP port */{port}: Address already in use"]
    for _ in range(3):
        world.loop.wait()
    assert port not in world.maps.opened()
    assert len(messages) == 1
    world.host.others.clear()
    world.loop.wait()
    assert len(world.maps.opened()) == MANY


def test_program_that_listens_and_ends_at_once(make_world: MakeWorld, messages: list[str]) -> None:
    world = make_world(tcp()).start()
    world.maps.listens(FIRST)
    assert FIRST not in world.maps.opened()
    world.ring()
    assert len(world.maps.opened()) == MANY
    assert not messages


def test_low_port_is_ours_again(make_world: MakeWorld) -> None:
    """Privilege to bind is gone by then, so that trying shows no more than that."""
    world = make_world(tcp(1, 1500, flags=BEST_EFFORT)).start()
    world.host.errors = dict.fromkeys(range(1, 1024), errno.EACCES)
    world.occupy(80)
    world.loop.wait()
    assert 80 not in world.maps.opened()
    world.host.others.clear()
    world.loop.wait()
    assert 80 in world.maps.opened()


def test_bell_is_heard_some_times_per_second(make_world: MakeWorld) -> None:
    world = make_world(tcp()).start()
    world.maps.listens(FIRST)
    world.ring()
    looks = world.scan.looks
    for _ in range(100):
        world.maps.listens(FIRST)
        world.ring()
    assert world.scan.looks == looks
    assert FIRST not in world.maps.opened()
    world.loop.wait(0.06)
    world.ring()
    assert FIRST in world.maps.opened()


def test_bell_that_has_lost_something(make_world: MakeWorld) -> None:
    world = make_world(tcp()).start()
    for port in range(FIRST, FIRST + 50):
        world.maps.listens(port, ring=False)
    world.maps.more = True
    world.ring()
    assert len(world.maps.opened()) == MANY


def test_thousands_of_ports_are_taken(make_world: MakeWorld, messages: list[str]) -> None:
    """They are tried by turns, and those that nobody has are open at once."""
    world = make_world(tcp(1000, 3999, flags=BEST_EFFORT)).start()
    world.host.others = {(IPPROTO_TCP, port) for port in range(1000, 3500)}
    for port in range(1000, 3500):
        world.maps.listens(port, ring=False)
    world.maps.more = True
    world.ring()
    assert world.maps.opened() == list(range(3500, 4000))
    world.host.specs.clear()
    world.loop.wait()
    assert 0 < len(world.host.specs) <= 64
    # All of them are elsewhere, really, and a scan cannot tell.
    others, world.host.others = world.host.others, set()
    world.scan.bound = lambda: portset(port for _, port in others)  # type: ignore[method-assign]
    for _ in range(2500 // 64 + 1):
        world.loop.wait()
    assert len(world.maps.opened()) == 3000
    assert not messages


def test_bell_for_what_is_not_open_any_more(make_world: MakeWorld) -> None:
    world = make_world(tcp()).start()
    world.maps.records = [(0, FIRST), (0, 7), (SLOTS - 1, FIRST)]
    looks = world.scan.looks
    world.ring()
    assert world.scan.looks == looks


# The listener's own port.


def test_own_port_among_those_of_a_rule(make_world: MakeWorld) -> None:
    world = make_world(tcp(LISTENER - 10, LISTENER + MANY)).start()
    assert LISTENER in world.maps.opened()
    world.ring()
    world.loop.wait()
    assert LISTENER in world.maps.opened()


def test_own_port_is_not_opened_in_the_namespace(make_world: MakeWorld) -> None:
    world = make_world(
        tcp(), outbound=[Rule(IPPROTO_TCP, 1, 65535, 1, flags=AUTO | BEST_EFFORT, ifname="lo")]
    )
    world.start()
    world.loop.wait()
    assert world.ns.listening(IPPROTO_TCP) == []


# Rules that come and go.


def test_rules_come_and_go(make_world: MakeWorld) -> None:
    one, two = tcp(), tcp(30000, 30999)
    world = make_world(one).start()
    listener = world.host.bound[IPPROTO_TCP, LISTENER]
    assert replace(world, [one, two]) == []
    assert world.maps.opened() == [*range(FIRST, LAST + 1), *range(30000, 31000)]
    assert replace(world, [two]) == []
    assert world.maps.opened() == list(range(30000, 31000))
    assert world.host.bound == {(IPPROTO_TCP, LISTENER): listener}
    assert replace(world, []) == []
    assert not world.maps.places
    assert not world.host.bound
    assert len(world.maps.free) == SLOTS
    assert replace(world, [one]) == []
    assert len(world.maps.opened()) == MANY


def test_new_rule_meets_a_program(make_world: MakeWorld) -> None:
    world = make_world().start()
    world.host.others.add((IPPROTO_TCP, FIRST))
    told = replace(world, [tcp()])
    assert told == [f"Listen failed for HOST TCP port */{FIRST}: Address already in use"]
    assert len(world.maps.opened()) == MANY - 1


def test_more_places_than_listeners(make_world: MakeWorld) -> None:
    """What finds no listener has sockets."""
    world = make_world().start()
    rules = [tcp(address=bytes([127, 0, 0, n])) for n in range(1, SLOTS + 2)]
    replace(world, rules)
    assert len(world.maps.places) == SLOTS
    assert len(world.host.listening(IPPROTO_TCP)) == SLOTS + MANY


def test_listener_that_cannot_be_served(
    monkeypatch: pytest.MonkeyPatch, make_world: MakeWorld
) -> None:
    world = make_world(tcp())
    world.tcp.refuse[LISTENER] = errno.ENOSPC
    world.open()
    with pytest.raises(ForwardError, match=rf"\*/{FIRST}: No space left"):
        world.attach()
    assert not world.maps.places
    assert not world.host.bound


def test_listener_of_a_new_rule_that_cannot_be_served(make_world: MakeWorld) -> None:
    world = make_world().start()
    world.tcp.refuse[LISTENER] = errno.ENOSPC
    told = replace(world, [tcp(flags=BEST_EFFORT)])
    assert told == [f"All listens failed for HOST TCP */{FIRST}-{LAST}"]
    assert not world.maps.places
    assert not world.host.bound
    # It is tried again, as for any port that fails.
    world.tcp.refuse.clear()
    world.loop.wait()
    assert len(world.maps.opened()) == MANY


def test_claims_are_of_the_start(make_world: MakeWorld) -> None:
    numbers = struct.pack("=H", OPEN) * (NUMBERS // 2)
    world = make_world(claims=[Claim(Place(IPV4), numbers)]).start()
    assert isinstance(world.gate, Gate)
    assert replace(world, [tcp()]) == []
    assert len(world.maps.opened()) == MANY


def test_runs_of_ports() -> None:
    assert portset(range(5, 9)) == portset([5, 6, 7, 8]) == span(5, 8)
    assert portset(range(5, 9, 2)) == portset([5, 7])
    assert portset(range(5, 5)) == 0
    assert runs_in(0) == []
    assert runs_in(1 << 65535) == [(65535, 65535)]
    assert runs_in(span(1, 5) | span(7, 7) | span(9, 10)) == [(1, 5), (7, 7), (9, 10)]
    assert runs_in(span(0, 65535)) == [(0, 65535)]
