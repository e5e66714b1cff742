"""Whole frames of all kinds through the whole stack, with everything that happens around them.

The input begins with a byte that chooses the surroundings, and goes on as a program
(:mod:`tests.fuzz.program`) of the operations in :mod:`tests.fuzz.run`.  Initial sequence
numbers are the same in every run, so an input can be a whole conversation of literal frames,
and its mutations are conversations that go wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from passt.userspace.config.model import Config
from tests.fuzz import conversations, frames, program
from tests.fuzz.mutate import havoc
from tests.fuzz.program import Step
from tests.fuzz.run import NUMBERS, OPERATIONS, execute
from tests.fuzz.world import World
from tests.unit.fakes import GATEWAY4, GATEWAY6

MAX_LEN = 8000
DICTIONARY = frames.DICTIONARY


def one(data: bytes) -> None:
    """Carry out a program in the surroundings that its first byte asks for."""
    first = data[0] if data else 0
    with World(
        mtu=576 if first & 1 else 1500,
        gso=not first & 2,
        peek_off=not first & 4,
        debug=bool(first & 8),
        memory=150000 if first >> 4 == 15 else 0,
        splices=first >> 4 in (13, 14),
        tap=first >> 4 in (3, 11, 15),
        groups=first >> 4 not in (1, 7),
        tweak=_TWEAKS[first >> 4],
    ) as world:
        execute(world, program.decode(data[1:], len(OPERATIONS)))


def _fixed(config: Config) -> None:
    config.v4.addr_fixed = config.v6.addr_fixed = True


def _unknown(config: Config) -> None:
    config.v6.addr = config.v6.gateway = config.v6.map_host_loopback = None
    config.v4.map_host_loopback = None


def _mapped(config: Config) -> None:
    config.v4.map_guest_addr = frames.FAR4
    config.v6.map_guest_addr = frames.FAR6


def _resolving(config: Config) -> None:
    """DNS of the gateway is forwarded, and everybody is told so."""
    config.v4.dns_match, config.v4.dns_host = GATEWAY4, b"\x7f\0\0\1"
    config.v6.dns_match, config.v6.dns_host = GATEWAY6, None
    config.v4.dns, config.v6.dns = [GATEWAY4], [GATEWAY6] * 3
    config.dhcp_dns = config.dhcp_search = True
    config.search = ["example.org", "a.b.example.org"]
    config.hostname, config.fqdn = "guest", "guest.example.org"


def _bypassing(config: Config) -> None:
    config.host_lo_to_ns_lo = True


def _without(*names: str) -> object:
    def tweak(config: Config) -> None:
        for name in names:
            if name in ("v4", "v6"):
                getattr(config, name).enabled = False
            else:
                setattr(config, name, False)

    return tweak


#: By the upper half of the first byte.
_TWEAKS: tuple = (
    None,
    _fixed,
    _unknown,
    _mapped,
    _without("v4"),
    _without("v6"),
    _without("tcp"),
    _without("udp"),
    _without("icmp"),
    _without("ndp"),
    _without("tcp", "udp", "icmp"),
    _resolving,
    _without("dhcp", "dhcpv6", "ra"),
    _bypassing,
    *(None,) * 2,
)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Conversations, and each kind of frame by itself."""
    for name, steps in conversations.all_of_them():
        yield name, b"\0" + program.encode(steps)
        if name in ("upload4", "download6", "datagrams4", "called6"):
            yield f"tap-{name}", b"\x30" + program.encode(steps)
    singles = list(frames.samples().values())
    yield "all", b"\0" + program.encode((NUMBERS["frame"], frame) for frame in singles)
    for version in (4, 6):
        steps = conversations.called(version)
        yield f"spliced{version}", b"\xe0" + program.encode(steps)
        yield f"spliced-stream{version}", b"\xe0" + program.encode(conversations.stream(version))
        yield f"bypass{version}", b"\xd0" + program.encode(steps)
    for first in range(16, 176, 16):
        steps = [(NUMBERS["frame"], frame) for frame in singles[first % 3 :: 3]]
        yield f"all-{first:02x}", bytes((first,)) + program.encode(steps)


def mutate(data: bytes, rnd: Random) -> bytes:
    """Another program, seldom in other surroundings."""
    first = data[:1] or b"\0"
    if rnd.random() < 0.1:
        first = rnd.randbytes(1)
    return first + program.mutate(data[1:], rnd, len(OPERATIONS), _change, _fresh)


_FRAMES = tuple(frames.samples().values())


def _change(step: Step, rnd: Random) -> Step:
    operation, operand = step
    if operation in (NUMBERS["frame"], NUMBERS["fixed"]):
        return operation, frames.mutate(operand, rnd)
    if operation == NUMBERS["superframe"]:
        return operation, _size(rnd) + frames.mutate(operand[2:], rnd)
    return operation, havoc(operand, rnd, limit=2000)


def _fresh(rnd: Random) -> Step:
    operation = rnd.randrange(len(OPERATIONS))
    if operation <= NUMBERS["superframe"]:
        frame = frames.mutate(rnd.choice(_FRAMES), rnd)
        return operation, frame if operation < 2 else _size(rnd) + frame
    return operation, rnd.randbytes(rnd.choice((4, 8, 24, 24, 60, 1500)))


def _size(rnd: Random) -> bytes:
    """Bytes of each datagram of a superframe."""
    return rnd.choice((1, 2, 8, 20, 500, 1472, 1500, rnd.randrange(65536))).to_bytes(2, "big")
