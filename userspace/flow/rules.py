"""Forwarding rules, and the tables they live in.

A rule listens on a range of ports on one side and says where connections to them go on the
other.  Sides are *pifs*, passt interfaces: sockets of the host (:data:`HOST`), the guest's
link (:data:`TAP`), and sockets of the target namespace (:data:`SPLICE`, pasta only).  There is
a table for each pif that listens: HOST is filled by ``-t`` and ``-u``, SPLICE by ``-T`` and
``-U``, and both can be replaced while we run, over the control socket.

A table admits a rule only after the checks of :meth:`RuleTable.add`, in an order that users
see in messages.  What a table can do at all, its *capabilities*, is fixed at start.

On the wire of the control protocol, version 2, a rule has 56 bytes, integers big-endian::

     0  listening address, IPv6 or IPv4-mapped; all zero with the dual-stack flag or for ``::``
    16  target address likewise; all zero for none
    32  interface name, padded with NUL
    48  first port      50  last port      52  target port of the first
    54  protocol        55  flags

Source: passt(1), pasta(1), pesto(1).
"""

from __future__ import annotations

import os
import struct

from passt.userspace.flow.nat import (
    BROADCAST4,
    UNSPECIFIED4,
    UNSPECIFIED6,
    V4_MAPPED,
    is_multicast,
    text,
    unmap,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Pifs, as numbered by the control protocol.
HOST = 1
TAP = 2
SPLICE = 3
PIF_NAMES = {HOST: "HOST", TAP: "TAP", SPLICE: "SPLICE"}

IPPROTO_TCP = 6
IPPROTO_UDP = 17
PROTOCOL_NAMES = {IPPROTO_TCP: "TCP", IPPROTO_UDP: "UDP"}
_OTHER_PROTOCOLS = {1: "ICMP", 58: "ICMPv6"}

#: Flags of a rule.  Dual stack: one wildcard for IPv4 and IPv6.  Best effort: ports that
#: cannot be bound are no error.  Auto: only ports that something listens on at the target.
DUAL_STACK = 1
BEST_EFFORT = 2
AUTO = 4
_FLAGS = DUAL_STACK | BEST_EFFORT | AUTO

#: Capabilities of a table.  The last: the kernel lets us bind sockets to interfaces.
CAP_IPV4 = 0x01
CAP_IPV6 = 0x02
CAP_TCP = 0x04
CAP_UDP = 0x08
CAP_AUTO = 0x10
CAP_IFNAME = 0x20

_CAP_PROTOCOL = {IPPROTO_TCP: CAP_TCP, IPPROTO_UDP: CAP_UDP}

MAX_RULES = 255
#: Every port of every rule counts, also those of automatic rules that are closed.
MAX_SOCKETS = 5 << 16
MAX_PORT = 65535

#: Longest interface name in bytes: IFNAMSIZ less the terminating NUL.
MAX_IFNAME = 15

WIRE_SIZE = 56
_WIRE = struct.Struct("!16s16s16sHHHBB")
assert _WIRE.size == WIRE_SIZE


def capabilities(*, v4: bool, v6: bool, tcp: bool, udp: bool, auto: bool, ifname: bool) -> int:
    """Return the ``CAP_…`` bits of a table that can do what is true."""
    bits = (CAP_IPV4, CAP_IPV6, CAP_TCP, CAP_UDP, CAP_AUTO, CAP_IFNAME)
    return sum(bit for bit, has in zip(bits, (v4, v6, tcp, udp, auto, ifname), strict=True) if has)


class RuleError(Exception):
    """A rule cannot be added or deleted; the text, of one or two lines, is for the user."""


class RuleFormatError(Exception):
    """Bytes from the control protocol are not a rule; the text is for the log."""


class Rule:
    """Ports ``first`` to ``last`` on one side lead to ``to`` and following on the other.

    * ``protocol``: 6 (TCP) or 17 (UDP) once it is in a table.
    * ``address``: listening address, packed (4 or 16 bytes); ``None`` for the wildcard of
      both IP versions, which sets :data:`DUAL_STACK`.
    * ``target``: address to connect to, packed; ``None`` if it is to be chosen by address
      translation, which an unspecified one asks for, too.
    * ``ifname``: interface that listening sockets are bound to, or empty.
    * ``flags``: any of :data:`DUAL_STACK`, :data:`BEST_EFFORT`, :data:`AUTO`.

    Rules do not change.  Two are equal if their forms on the wire are.
    """

    __slots__ = (
        "_wire",
        "address",
        "first",
        "flags",
        "ifname",
        "last",
        "protocol",
        "target",
        "to",
    )

    def __init__(
        self,
        protocol: int,
        first: int,
        last: int,
        to: int,
        address: bytes | None = None,
        ifname: str = "",
        target: bytes | None = None,
        flags: int = 0,
    ) -> None:
        if address is None:
            flags |= DUAL_STACK
        self.protocol = protocol
        self.first = first
        self.last = last
        self.to = to
        self.address = address
        self.target = target if target and any(target) else None
        self.ifname = ifname
        self.flags = flags
        self._wire = _WIRE.pack(
            _mapped(address), _mapped(target), os.fsencode(ifname), first, last, to, protocol, flags
        )

    @classmethod
    def unpack(cls, wire: bytes) -> Rule:
        """Read the 56 bytes of a rule, which is not checked otherwise.

        Raises :class:`RuleFormatError` for an interface name without terminating NUL.
        """
        address, target, name, first, last, to, protocol, flags = _WIRE.unpack(wire)
        if name[MAX_IFNAME]:
            raise RuleFormatError("Interface name was not NULL terminated")
        dual_stack = flags & DUAL_STACK and address == UNSPECIFIED6
        return cls(
            protocol,
            first,
            last,
            to,
            None if dual_stack else unmap(address),
            os.fsdecode(name.partition(b"\0")[0]),
            None if target == UNSPECIFIED6 else unmap(target),
            flags,
        )

    def pack(self) -> bytes:
        """Return the 56 bytes of the rule."""
        return self._wire

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self._wire == other._wire

    def __hash__(self) -> int:
        return hash(self._wire)

    @property
    def auto(self) -> bool:
        """Whether a port is only open while something listens on it at the target."""
        return self.flags & AUTO != 0

    @property
    def best_effort(self) -> bool:
        """Whether ports that cannot be bound are left out silently."""
        return self.flags & BEST_EFFORT != 0

    @property
    def sockets(self) -> int:
        """The number of ports."""
        return self.last - self.first + 1

    def target_port(self, port: int) -> int:
        """The port that ``port``, one of the rule's, leads to."""
        return self.to + port - self.first

    def accepts(self, address: bytes) -> bool:
        """Whether the rule listens on the packed ``address``."""
        own = self.address
        return own is None or own == address or (not any(own) and len(own) == len(address))

    def overlaps(self, other: Rule) -> bool:
        """Whether both rules would listen on one address and port (interfaces do not count)."""
        if self.protocol != other.protocol or self.first > other.last or other.first > self.last:
            return False
        mine, theirs = self.address, other.address
        return mine is None or theirs is None or self.accepts(theirs) or other.accepts(mine)

    def listen_name(self) -> str:
        """Listening address and interface as in messages about sockets: ``ADDRESS%IFNAME``."""
        address = "*" if self.address is None else text(self.address)
        return f"{address}%{self.ifname}" if self.ifname else address

    def __str__(self) -> str:
        """The display form, upstream's to the blank: one always follows the target port."""
        address = "*" if self.address is None else text(self.address)
        device = f"%{self.ifname}" if self.ifname else ""
        protocol = PROTOCOL_NAMES.get(self.protocol) or _protocol_name(self.protocol)
        host = f"{text(self.target)}:" if self.target is not None else ""
        ports, target = str(self.first), str(self.to)
        if self.last != self.first:
            ports += f"-{self.last}"
            target += f"-{self.target_port(self.last)}"
        words = f"{protocol} [{address}]{device}:{ports}  =>  {host}{target} "
        if self.best_effort:
            words += " (best effort)"
        if self.auto:
            words += " (auto-scan)"
        return words

    __repr__ = __str__


class RuleTable:
    """The rules of one listening pif, in order, free of conflicts.

    ``caps`` are the table's capabilities, any of ``CAP_…``; ``sockets`` is the number of
    ports that its rules cover.
    """

    __slots__ = ("_rules", "caps", "pif", "sockets")

    def __init__(self, pif: int, caps: int) -> None:
        self.pif = pif
        self.caps = caps
        self.sockets = 0
        self._rules: list[Rule] = []

    def __len__(self) -> int:
        return len(self._rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    @property
    def name(self) -> str:
        """Name of the pif."""
        return PIF_NAMES[self.pif]

    def rules(self) -> list[Rule]:
        """A copy of the rules."""
        return self._rules[:]

    def serves(self, protocol: int) -> bool:
        """Whether rules of ``protocol`` are possible at all."""
        return self.caps & _CAP_PROTOCOL.get(protocol, 0) != 0

    def copy(self) -> RuleTable:
        """A table of its own with the same rules."""
        other = RuleTable(self.pif, self.caps)
        other._rules = self._rules[:]
        other.sockets = self.sockets
        return other

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()
        self.sockets = 0

    def add(self, rule: Rule) -> None:
        """Append ``rule`` if it is sound; :class:`RuleError` says what is wrong otherwise."""
        problem = self._problem(rule)
        if problem:
            raise RuleError(problem)
        for old in self._rules:
            if rule.overlaps(old):
                raise RuleError(f"Forwarding configuration conflict: {rule} versus {old}")
        if len(self._rules) >= MAX_RULES:
            raise RuleError(f"Too many rules (maximum {MAX_RULES})")
        if self.sockets + rule.sockets > MAX_SOCKETS:
            raise RuleError(f"Rules require too many listening sockets (maximum {MAX_SOCKETS})")
        self._rules.append(rule)
        self.sockets += rule.sockets

    def extend(self, rules: Iterable[Rule]) -> None:
        """Append each of ``rules``; RuleError at the first unsound one, those before stay."""
        for rule in rules:
            self.add(rule)

    def delete(self, rule: Rule) -> None:
        """Remove the rule that equals ``rule``.

        Raises :class:`RuleError` if there is none, or if one before it overlaps.
        """
        for index, old in enumerate(self._rules):
            if old == rule:
                del self._rules[index]
                self.sockets -= rule.sockets
                return
            if old.overlaps(rule):
                raise RuleError(
                    f"Specifier {rule} conflicts with rule {old}, but doesn't match it, "
                    "can't delete"
                )
        raise RuleError(f"Couldn't find forwarding rule to delete: {rule}")

    def _problem(self, rule: Rule) -> str:
        """What is wrong with ``rule`` by itself or in this table, empty if nothing."""
        if rule.first > rule.last:
            return f"Rule has invalid port range {rule.first}-{rule.last}"
        if rule.first == 0:
            return "Forwarding rule attempts to map from port 0"
        if rule.to == 0 or rule.target_port(rule.last) > MAX_PORT:
            return "Forwarding rule attempts to map to port 0"
        unknown = rule.flags & ~_FLAGS
        if unknown:
            return f"Rule has invalid flags 0x{unknown:x}"
        return (
            self._family_problem(rule)
            or self._protocol_problem(rule)
            or _target_problem(rule)
            or self._feature_problem(rule)
        )

    def _family_problem(self, rule: Rule) -> str:
        """Whether the table's IP versions include those of the listening address."""
        address = rule.address
        if address is not None:
            if rule.flags & DUAL_STACK:
                return f"Dual stack rule has non-wildcard address {text(address)}"
            if len(address) == 4:
                return "" if self.caps & CAP_IPV4 else "IPv4 forward, but IPv4 not enabled"
            return "" if self.caps & CAP_IPV6 else "IPv6 forward, but IPv6 not enabled"
        if not self.caps & CAP_IPV4:
            return "Dual stack forward, but IPv4 not enabled"
        return "" if self.caps & CAP_IPV6 else "Dual stack forward, but IPv6 not enabled"

    def _protocol_problem(self, rule: Rule) -> str:
        """Whether the table has the protocol."""
        name = PROTOCOL_NAMES.get(rule.protocol)
        if name is None:
            return (
                f"Unsupported protocol 0x{rule.protocol:x} ({_protocol_name(rule.protocol)}) "
                "for forwarding rule"
            )
        if self.serves(rule.protocol):
            return ""
        return f"Can't add {name} forwarding rule, {name} not enabled"

    def _feature_problem(self, rule: Rule) -> str:
        """Whether the table can scan for ports and bind to interfaces, if the rule asks."""
        if rule.auto and not self.caps & CAP_AUTO:
            return "'auto' port forwarding is only allowed for pasta"
        if rule.ifname:
            if not is_ifname(rule.ifname):
                return f"Invalid interface name: {rule.ifname!a}"
            if not self.caps & CAP_IFNAME:
                return "Device binding unsupported (requires kernel 5.7+)"
        return ""


def is_ifname(name: str) -> bool:
    """Tell whether the kernel would accept ``name`` for a new interface (dev_valid_name())."""
    if not name or name in (".", "..") or len(os.fsencode(name)) > MAX_IFNAME:
        return False
    return not any(char in "/:\0" or char.isspace() for char in name)


def _mapped(address: bytes | None) -> bytes:
    """The 16-byte form of a packed address, IPv4-mapped if need be; zeros for ``None``."""
    if address is None:
        return UNSPECIFIED6
    return V4_MAPPED + address if len(address) == 4 else address


def _protocol_name(protocol: int) -> str:
    return _OTHER_PROTOCOLS.get(protocol, "<unknown protocol>")


def _target_problem(rule: Rule) -> str:
    """Whether the target address can be reached from the listening one."""
    target = rule.target
    if target is None:
        return ""
    if is_multicast(target) or target == BROADCAST4:
        return f"Multicast target address {text(target)} for forwarding rule"
    address = rule.address
    version = "IPv4" if len(target) == 4 else "IPv6"
    if address is None:
        instead = text(UNSPECIFIED4) if len(target) == 4 else f"[{text(UNSPECIFIED6)}]"
        return (
            f"Dual stack forward to {version} address {text(target)} unsupported\n"
            f"Did you mean {instead}/... instead?"
        )
    if len(address) != len(target):
        own = "IPv4" if len(address) == 4 else "IPv6"
        return f"Forward from {own} ({text(address)}) to {version} ({text(target)}) unsupported"
    return ""
