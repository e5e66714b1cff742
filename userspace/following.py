"""Following the host's network, as far as the running program is concerned.

A process of its own (:mod:`passt.kernel.follow`) watches the host, and changes addresses and routes
of the namespace.  Here its reports are put into practice:

* the configuration is settled anew from options, template and resolv.conf, in the way it was at
  start (:mod:`passt.userspace.config.resolve`); what options fixed comes out as it was;
* address translation takes it from there; flows that exist keep what they were made with;
* services tell the new, Router Advertisements at once;
* flows whose address is gone, on either side, are reset, a bounded number per round.

The reports are from a process that nobody outside can talk to, but they are few, and each is
handled whole: nothing that a guest does leads here.
"""

from __future__ import annotations

from passt.userspace import log
from passt.userspace.config import dns, resolvconf
from passt.userspace.config.followed import AF_INET, AF_INET6, settled
from passt.userspace.config.model import DERIVED
from passt.userspace.config.resolve import settle_servers
from passt.userspace.config.values import address_text
from passt.userspace.flow.rules import HOST
from passt.userspace.loop import EPOLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.follow.start import Follower, Report, Summary
    from passt.userspace.config.model import Config, Family
    from passt.userspace.config.options import Options
    from passt.userspace.config.resolvconf import ResolvConf
    from passt.userspace.engine import Engine
    from passt.userspace.flow.table import Flow
    from passt.userspace.forward.forwarder import Forwarder

#: Flows looked at per round.
_BATCH = 256

_LEVELS = {"warning": log.WARNING, "info": log.INFO, "debug": log.DEBUG}


class Following:
    """Puts into practice what the follower reports."""

    __slots__ = (
        "_config",
        "_ending",
        "_engine",
        "_follower",
        "_forwarder",
        "_options",
        "_resolvers",
        "_waits",
    )

    def __init__(
        self,
        options: Options,
        engine: Engine,
        forwarder: Forwarder,
        resolvers: ResolvConf,
        follower: Follower,
    ) -> None:
        """``resolvers`` is what resolv.conf said at start.  OSError if epoll refuses."""
        self._options = options
        self._engine = engine
        self._config: Config = engine.config
        self._forwarder = forwarder
        self._resolvers = resolvers
        self._follower = follower
        #: Flows still to be looked at, and with which addresses.
        self._ending: list[tuple[list[Flow], frozenset[bytes], frozenset[bytes]]] = []
        self._waits = False
        engine.loop.add(follower.fileno(), EPOLLIN, self._on_event)

    def _on_event(self, _events: int) -> None:
        if self._follower.fileno() < 0:
            # Closed in this very round, as the program ends.
            return
        report = self._follower.receive()
        if report is None:
            log.warn("The host's network is not followed any more")
            self._engine.loop.close(self._follower, self._follower.fileno())
            return
        self.take(report)

    def take(self, report: Report) -> None:
        """Put ``report`` into practice; the follower may go on when flows have been looked at."""
        for level, text in report.notes:
            log.limited("follow-note", _LEVELS[level], "%s", text)
        config = self._config
        before = _view(config)
        former = config.v4.addr
        replaced = set(report.withdrawn)
        for family, template in report.templates.items():
            live = config.v4 if family == AF_INET else config.v6
            if live.enabled:
                if config.config_net and live.addr is not None:
                    replaced.add(live.addr)
                self._settle(live, template)
        if report.resolv_conf is not None:
            self._resolvers = resolvconf.parse(report.resolv_conf)
        settle_servers(config, self._options)
        dns.settle(config, self._options, self._resolvers)
        after = _view(config)
        if after != before:
            self._tell(before, after)
            self._engine.nat.renew(replaced)
            self._forwarder.set_scope(HOST, config.v6.ifindex)
            if self._engine.stack is not None:
                self._engine.stack.renew(former if former != config.v4.addr else None)
        self._strand(report)

    def _settle(self, live: Family, template: Summary | None) -> None:
        """Take over what follows from ``template``, but for what was learned from the guest."""
        family = AF_INET if live.version == 4 else AF_INET6
        now = settled(self._options, family, template)
        if now.addr is None and live.local:
            now.addr = live.addr
        if now.gateway is None:
            # A tunnel has none, but who connects from the host has to be somebody.
            now.gateway = live.gateway
            now.map_host_loopback = now.map_host_loopback or live.map_host_loopback
        for attribute in DERIVED:
            setattr(live, attribute, getattr(now, attribute))

    def _tell(self, before: dict[str, object], after: dict[str, object]) -> None:
        for version in (4, 6):
            family = self._config.v4 if version == 4 else self._config.v6
            name = f"v{version}"
            if before[name] == after[name]:
                continue
            if family.local:
                log.limited(
                    "follow-local",
                    log.INFO,
                    "IPv%d: no external interface as template any more, use local mode",
                    version,
                )
                continue
            addr, gateway = family.addr, family.gateway
            log.limited(
                "follow-network",
                log.INFO,
                "IPv%d follows the host: %s, router %s, by %s",
                version,
                "no address" if addr is None else f"{address_text(addr)}/{family.prefix_len}",
                "none" if gateway is None else address_text(gateway),
                family.ifname,
            )
        if before["dns"] != after["dns"]:
            log.limited("follow-resolvers", log.INFO, "Resolvers follow the host")

    # Flows whose addresses are gone.

    def _strand(self, report: Report) -> None:
        self._waits = self._waits or report.waits
        if report.lost or report.withdrawn:
            flows = self._engine.table.flows()
            flows.reverse()
            work = (flows, frozenset(report.lost), frozenset(report.withdrawn))
            self._ending.append(work)
        self._strand_some()

    def _strand_some(self) -> None:
        """Look at some flows per round, as the others have to go on."""
        left = _BATCH
        while self._ending and left:
            flows, lost, withdrawn = self._ending[0]
            for flow in flows[-left:][::-1]:
                if flow.index >= 0:
                    flow.strand(lost, withdrawn)
            done = min(left, len(flows))
            del flows[len(flows) - done :]
            left -= done
            if not flows:
                del self._ending[0]
        if self._ending:
            self._engine.loop.again(self._strand_some)
        elif self._waits:
            self._waits = False
            self._follower.proceed()


def _view(config: Config) -> dict[str, object]:
    """What can change, to be compared."""
    view: dict[str, object] = {
        f"v{family.version}": tuple(getattr(family, attribute) for attribute in DERIVED)
        for family in (config.v4, config.v6)
    }
    view["dns"] = [
        (tuple(family.dns), family.dns_match, family.dns_host) for family in (config.v4, config.v6)
    ] + [tuple(config.search)]
    return view
