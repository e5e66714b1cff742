"""What automatic rules make of the ports that others listen on.

An automatic rule is to have a port open while something listens at its target on the other
side.  "Something" must not be ourselves: both tables together would else forward what they
opened for each other in a circle.  So of what is *heard* on a side, the ports that we have
open there by that moment, for whichever rule, are left out first.  This does not go by
address: a port that we listen on counts as ours.

For UDP, a TCP listener on the same port counts as well, since programs such as iperf3 start
to listen for datagrams only when a client has come by TCP.  Again, not our own.

That leaves a *tie*: port P may be heard on both sides, as when each has its own TCP listener
on P and UDP follows.  Opening P on both sides would make P ours on both, hence heard on
neither, and be undone the next time, and so on.  So what one side's rules forward to is not
opened for the other side's rules, unless it is open already; if both would be new, neither
is opened.

Ports are compared as numbers on their own side: a rule that translates ports is automatic by
its target ports.
"""

from __future__ import annotations

from passt.userspace.forward.portset import shifted, span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from passt.userspace.flow.rules import Rule


class Heard:
    """One side, for one protocol, as sets of ports.

    ``others``: listened on by others; ``ours``: open for our rules.
    """

    __slots__ = ("others", "ours")

    def __init__(self, heard: int, ours: int, tcp: Heard | None = None) -> None:
        """``heard`` is all that is listened on; for UDP, ``tcp`` is what was heard for TCP."""
        if tcp is not None:
            heard |= tcp.others
        self.others: int = heard & ~ours
        self.ours = ours


def wanted(
    inbound: Sequence[Rule], outbound: Sequence[Rule], host: Heard, namespace: Heard
) -> list[int]:
    """The set of ports that each rule is to have open: inbound rules, then outbound ones.

    ``inbound`` and ``outbound`` are automatic rules of one protocol; inbound rules listen on
    the host and lead to the namespace, outbound rules the other way round.
    """
    sets_in = [_listening(rule, namespace.others) for rule in inbound]
    sets_out = [_listening(rule, host.others) for rule in outbound]
    used_in = used_out = 0
    for rule, ports in zip(inbound, sets_in, strict=True):
        used_in |= shifted(ports, rule.to - rule.first)
    for rule, ports in zip(outbound, sets_out, strict=True):
        used_out |= shifted(ports, rule.to - rule.first)
    return [
        *(ports & (host.ours | ~used_out) for ports in sets_in),
        *(ports & (namespace.ours | ~used_in) for ports in sets_out),
    ]


def _listening(rule: Rule, heard: int) -> int:
    """Ports of ``rule`` whose targets are among ``heard``."""
    return shifted(heard, rule.first - rule.to) & span(rule.first, rule.last)
