"""Many ports served by one listening socket: maps and programs for one network namespace.

``lookup.bpf.c`` says how, and what it takes: privilege to load programs, the network namespace, and
the root of all control groups, as whoever begins to listen on one of the ports must be seen.  From
a container that sees a branch of the control groups only, others in the same network
namespace could not be, and there is nothing to be had.

Both programs are attached by *links*, which end with the process, however it ends.  No privilege is
needed any more once they are there: listeners come and go by the maps.

That is also why there are no prepared maps of this kind (:mod:`.pins`).  For attaching a program of
this type to a network namespace the kernel asks for no privilege there: any user who has got hold
of it could take connections away from the system's own services.

Source: Documentation/bpf/prog_sk_lookup.rst of the kernel; bpf(2), cgroups(7).
"""

from __future__ import annotations

import os
import struct

from passt.kernel.ebpf import bytecode, kernels
from passt.kernel.ebpf.acquire import NO_PRIVILEGE, UnavailableError, accepted
from passt.kernel.ebpf.lookup_layout import (
    LISTENER_WORDS,
    NAMES,
    NUMBERS,
    OPEN,
    RING,
    SHAPES,
    SLOTS,
    VERSIONS_WORD,
    Place,
)
from passt.kernel.ebpf.lookup_probe import ProbeError, probe
from passt.kernel.ebpf.ring import RECORD, Ring
from passt.syscalls import bare_socket as socket
from passt.syscalls import bpf
from passt.syscalls.sockopt import SO_NETNS_COOKIE
from passt.syscalls.statfs import CGROUP2_SUPER_MAGIC, fs_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.ebpf.bytecode import Code

#: Where control groups are mounted: alone, or beside those of version 1.
CONTROL_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")

_PROGRAM = "passt_lookup"
_U32 = struct.Struct("=I")
_COOKIE = struct.Struct("=Q")
_OPEN = struct.pack("=H", OPEN)
_MANY = RING // RECORD - 1


class PortMaps:
    """The maps of one network namespace, and what is attached to it."""

    __slots__ = ("_bell", "_fds", "_free", "_links", "_listeners", "_open", "_program", "_socks",
                 "_taken", "_words")  # fmt: skip

    def __init__(self, fds: list[int], program: int, link: int) -> None:
        """Descriptors of maps in the order of NAMES, of the program that is to be attached, and
        of the link of the other one; ours from here on.  OSError."""
        self._fds = fds
        self._program = program
        self._links = [link]
        by_name = dict(zip(NAMES, fds, strict=True))
        self._socks = by_name["socks"]
        size = 4 * LISTENER_WORDS * SLOTS
        self._listeners = bpf.map_memory(by_name["listeners"], size, writable=True).cast("B")
        self._words = self._listeners.cast("I")
        numbers = SLOTS * NUMBERS
        #: 16-bit words; those of listener n begin at byte n * NUMBERS.
        self._open = bpf.map_memory(by_name["open"], numbers, writable=True).cast("B")
        self._taken = bpf.map_memory(by_name["taken"], numbers, writable=False).cast("B")
        self._bell = Ring(by_name["bell"], RING)
        self._free = list(reversed(range(SLOTS)))

    def fileno(self) -> int:
        """Descriptor that is readable when :meth:`rung` has something to tell."""
        return self._fds[NAMES.index("bell")]

    def serve(self, netns: int) -> None:
        """Attach to the network namespace behind descriptor ``netns``; OSError."""
        self._links.append(bpf.link_create(self._program, netns, bpf.SK_LOOKUP))

    def serve_own(self) -> None:
        """Attach to the network namespace of this thread; OSError."""
        netns = own_namespace()
        try:
            self.serve(netns)
        finally:
            os.close(netns)

    def leave(self) -> None:
        """Undo the last :meth:`serve`."""
        os.close(self._links.pop())

    def take(self) -> int | None:
        """The number of a listener, ours until :meth:`vacate`; None if there are no more."""
        return self._free.pop() if self._free else None

    def settle(self, slot: int, place: Place, sock: socket.socket) -> None:
        """Say where a listener is, from now on: ``sock``, bound to a port of its own.

        Others who begin to listen there are counted from now on.  OSError.
        """
        (netns,) = _COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, _COOKIE.size))
        element = place.pack(netns, sock.getsockname()[1])
        at = slot * len(element)
        # Last of all what has the programs look at the rest.
        versions = slot * LISTENER_WORDS + VERSIONS_WORD
        self._words[versions] = 0
        self._listeners[at : at + len(element)] = Place(0).pack(0, 0)
        first = VERSIONS_WORD * 4
        self._listeners[at : at + first] = element[:first]
        self._listeners[at + first + 4 : at + len(element)] = element[first + 4 :]
        self._words[versions] = place.versions

    def admit(self, slot: int, sock: socket.socket) -> None:
        """Lead connections to ``sock``, which listens; OSError."""
        bpf.map_update(self._socks, _U32.pack(slot), _U32.pack(sock.fileno()))

    def vacate(self, slot: int) -> None:
        """Close all ports of a listener, which is no more."""
        self._words[slot * LISTENER_WORDS + VERSIONS_WORD] = 0
        self._open[slot * NUMBERS : (slot + 1) * NUMBERS] = bytes(NUMBERS)
        self._free.append(slot)

    def numbers(self, slot: int) -> bytes:
        """How many others have begun to listen so far, by port, to be given to :meth:`open`."""
        return bytes(self._taken[slot * NUMBERS : (slot + 1) * NUMBERS])

    def open(self, slot: int, first: int, last: int, numbers: bytes) -> None:
        """Open the ports ``first`` to ``last``, which were found free after ``numbers``."""
        chunk = numbers[2 * first : 2 * last + 2]
        bits = int.from_bytes(chunk, "little")
        bits |= int.from_bytes(_OPEN * (last - first + 1), "little")
        at = slot * NUMBERS
        self._open[at + 2 * first : at + 2 * last + 2] = bits.to_bytes(len(chunk), "little")

    def shut(self, slot: int, first: int, last: int) -> None:
        """Close the ports ``first`` to ``last``."""
        at = slot * NUMBERS
        self._open[at + 2 * first : at + 2 * last + 2] = bytes(2 * (last - first + 1))

    def overtaken(self, slot: int, port: int) -> bool:
        """Whether ``port``, which was opened, is closed as somebody else began to listen."""
        at = slot * NUMBERS + 2 * port
        wanted, found = self._open[at : at + 2], self._taken[at : at + 2]
        (number,) = struct.unpack("=H", wanted)
        return bool(number) and wanted != struct.pack("=H", OPEN | struct.unpack("=H", found)[0])

    def all_overtaken(self, slot: int) -> list[int]:
        """All ports of a listener that :meth:`overtaken` is true of."""
        at = slot * NUMBERS
        wanted = self._open[at : at + NUMBERS].cast("H").tolist()
        found = self._taken[at : at + NUMBERS].cast("H").tolist()
        return [
            port
            for port, (want, have) in enumerate(zip(wanted, found, strict=True))
            if want and want != OPEN | have
        ]

    def rung(self) -> tuple[list[tuple[int, int]], bool]:
        """Listeners and ports that others began to listen on since the last time.

        And whether there may have been more.
        """
        records = self._bell.read()
        return [divmod(record, 1 << 16) for record in records], len(records) >= _MANY

    def close(self) -> None:
        """Detach the programs, and give the maps up."""
        for memory in (self._words, self._listeners, self._open, self._taken):
            memory.release()
        self._bell.close()
        for fd in (*self._links, self._program, *self._fds):
            os.close(fd)


class Claim:
    """Ports that another instance has open in a place: its numbers in ``open``."""

    __slots__ = ("numbers", "place")

    def __init__(self, place: Place, numbers: bytes) -> None:
        self.place = place
        self.numbers = numbers


def acquire(*, compile_first: bool) -> tuple[PortMaps, str]:
    """Maps and programs that were tried in our network namespace, and how they came about.

    They are not attached to it any more.  Raises UnavailableError.
    """
    objection = kernels.too_old(os.uname().release)
    if objection:
        raise UnavailableError(objection)
    group = _control_groups()
    try:
        maps, how = _load(group, compile_first=compile_first)
    except PermissionError:
        raise UnavailableError(NO_PRIVILEGE) from None
    except OSError as error:
        raise UnavailableError(f"kernel refuses: {error.strerror}") from None
    finally:
        os.close(group)
    try:
        maps.serve_own()
        probe(maps)
        maps.leave()
    except (OSError, ProbeError) as error:
        maps.close()
        raise UnavailableError(f"probe failed: {error}") from None
    return maps, how


def own_namespace() -> int:
    """A descriptor of the network namespace of this thread; OSError."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def claims() -> list[Claim]:
    """What other instances have open in the network namespace of this thread.

    As far as we may know: without CAP_SYS_ADMIN, nothing.
    """
    found: list[Claim] = []
    try:
        netns = own_namespace()
        try:
            for number in bpf.prog_query(netns, bpf.SK_LOOKUP):
                found += _claims_of(number)
        finally:
            os.close(netns)
    except OSError:
        pass
    return found


def _claims_of(number: int) -> list[Claim]:
    """What the program of this number has open, if it is one of ours; OSError."""
    program = bpf.prog_by_id(number)
    try:
        name, maps = bpf.prog_info(program)
    finally:
        os.close(program)
    if name != _PROGRAM:
        return []
    sizes = {shape.name: shape.value_size for shape in SHAPES}
    values: dict[str, list[bytes]] = {}
    for each in maps:
        fd = bpf.map_by_id(each)
        try:
            info = bpf.map_info(fd)
            if info.name in ("listeners", "open") and info.value_size == sizes[info.name]:
                values[info.name] = [
                    bpf.map_lookup(fd, _U32.pack(slot), info.value_size)
                    for slot in range(info.entries)
                ]
        finally:
            os.close(fd)
    pairs = zip(values.get("listeners", ()), values.get("open", ()), strict=False)
    found = [Claim(Place.unpack(element), numbers) for element, numbers in pairs]
    return [claim for claim in found if claim.place.versions]


def _control_groups() -> int:
    """A descriptor of the root of all control groups; UnavailableError."""
    for path in CONTROL_GROUPS:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        if fs_type(fd) == CGROUP2_SUPER_MAGIC:
            if _is_root(fd):
                return fd
            os.close(fd)
            raise UnavailableError("the root of control groups is out of reach")
        os.close(fd)
    raise UnavailableError("no control groups of version 2")


def _is_root(group: int) -> bool:
    """Whether a control group is the root of all, for certain: only that one has no type."""
    try:
        os.stat("cgroup.type", dir_fd=group)
    except FileNotFoundError:
        return True
    except OSError:
        # Somebody keeps us from looking.
        pass
    return False


def _load(group: int, *, compile_first: bool) -> tuple[PortMaps, str]:
    """Make maps and load programs, one of them attached to the control group; OSError."""
    fds: list[int] = []
    try:
        for shape in SHAPES:
            sizes = shape.key_size, shape.value_size, shape.entries
            fds.append(bpf.map_create(shape.kind, *sizes, flags=shape.flags, name=shape.name))
        programs: list[int] = []

        def use(instructions: Callable[[Code], bytes]) -> None:
            for code, kind, attach_type, name in (
                (bytecode.LOOKUP, bpf.PROG_TYPE_SK_LOOKUP, bpf.SK_LOOKUP, _PROGRAM),
                (bytecode.LISTENING, bpf.PROG_TYPE_SOCK_OPS, bpf.CGROUP_SOCK_OPS, "passt_listen"),
            ):
                bound = bytecode.bind(instructions(code), fds)
                programs.append(bpf.prog_load(kind, bound, attach_type=attach_type, name=name))

        try:
            how = accepted(use, compile_first=compile_first)
            lookup, listening = programs[-2:]
            link = bpf.link_create(listening, group, bpf.CGROUP_SOCK_OPS)
        except BaseException:
            for program in programs:
                os.close(program)
            raise
        for program in programs:
            if program != lookup:
                os.close(program)
        return PortMaps(fds, lookup, link), how
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
