"""Gates for rules with many ports, at start: which sides want one, and what came of that.

Only with ``--accel=ebpf``.  Programs are loaded while we are who our caller is; a gate for the
namespace is attached once that exists.
"""

from __future__ import annotations

from passt.kernel.ebpf.acquire import UnavailableError
from passt.kernel.ebpf.lookup import acquire, claims
from passt.userspace import log
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.forward.binding import has_many
from passt.userspace.forward.lookup import Gate
from passt.userspace.forward.proclist import open_port_lists
from passt.userspace.forward.scan import scan_of
from passt.userspace.forward.sockets import Here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.ebpf.lookup import PortMaps
    from passt.kernel.netlink.worker import Worker
    from passt.userspace.config.model import Config
    from passt.userspace.forward.forwarder import Forwarder

_TITLE = "Large ranges of ports"
_OTHERWISE = "%s: a socket for each port, as sk_lookup is not available: %s"


class Gates:
    """The maps of those sides that want a gate and can have one."""

    __slots__ = ("_maps",)

    def __init__(self, config: Config, *, control: bool, compile_first: bool) -> None:
        """Load programs, and tell the user; with ``control`` rules may come later, on HOST."""
        self._maps: dict[int, PortMaps] = {}
        tables = {HOST: config.rules, SPLICE: config.rules_ns}
        needed = any(has_many(rule) for rules in tables.values() for rule in rules)
        pifs = [
            pif
            for pif, rules in tables.items()
            if any(map(has_many, rules)) or (control and pif == HOST)
        ]
        how = ""
        try:
            for pif in pifs:
                self._maps[pif], how = acquire(compile_first=compile_first)
        except UnavailableError as why:
            # No matter if nobody wants it yet.
            log.emit(log.WARNING if needed else log.INFO, _OTHERWISE, _TITLE, why)
        else:
            if how:
                log.info("%s: sk_lookup, %s", _TITLE, how)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._maps)

    def open_host(self, forwarder: Forwarder) -> None:
        """Give ``forwarder`` the gate of the host, which we are in."""
        maps = self._maps.get(HOST)
        if maps is not None:
            found = claims()
            if self._serves(HOST, maps.serve_own):
                scan = scan_of(open_port_lists(), Here().call)
                forwarder.scan(HOST, scan)
                forwarder.set_gate(HOST, Gate(maps, scan, found))

    def open_namespace(self, forwarder: Forwarder, worker: Worker, netns: int) -> None:
        """Give ``forwarder`` that of the namespace behind ``netns``, which ``worker`` is in."""
        maps = self._maps.get(SPLICE)
        if maps is not None and self._serves(SPLICE, lambda: maps.serve(netns)):
            scan = scan_of(worker.port_lists(), worker.sockets)
            forwarder.scan(SPLICE, scan)
            forwarder.set_gate(SPLICE, Gate(maps, scan))

    def _serves(self, pif: int, serve: Callable[[], None]) -> bool:
        """Attach the program; if the kernel refuses, there is a socket for each port."""
        try:
            serve()
        except OSError as error:
            self._maps.pop(pif).close()
            log.warn(_OTHERWISE, _TITLE, error.strerror)
            return False
        return True
