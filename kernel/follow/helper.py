"""The follower itself: it takes its place, then waits for changes and brings things in step.

Taking its place, in this order: sockets of the host's network, the view of the directories of
resolv.conf, then the target's network namespace and a socket there; capabilities and system calls
go.  Afterwards it sleeps until a kernel, a directory or the program has something to say.

The first look is made without waiting for an event: whatever happened since the program read the
host's network at start shows in it as a difference.

Source: setns(2), poll(2).
"""

from __future__ import annotations

import gc
import marshal
import os
import select
from time import monotonic

from passt.kernel.follow import confine
from passt.kernel.follow.apply import Own, apply, own_of
from passt.kernel.follow.difference import wanted_addresses, wanted_routes
from passt.kernel.follow.host import read_host
from passt.kernel.follow.monitor import Monitor
from passt.kernel.follow.pace import Pace
from passt.kernel.follow.resolver import PATH, Resolver, directories
from passt.kernel.follow.settle import Settler
from passt.kernel.follow.start import Report, readable, send
from passt.kernel.netlink.channel import ChannelClosedError
from passt.kernel.netlink.route_socket import RouteSocket
from passt.kernel.netlink.template import Wish
from passt.kernel.netlink.uapi import AF_INET, AF_INET6
from passt.syscalls.ns import CLONE_NEWNET, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.follow.difference import AddressKey, RouteKey, Wanted
    from passt.kernel.follow.host import Host
    from passt.kernel.follow.start import Summary, Task
    from passt.syscalls import bare_socket as socket

#: Milliseconds for which the program may reset connections before their addresses go.
_LONGEST_WAIT = 1000
#: Looks that may fail in a row, for want of memory say, and seconds between them.
ATTEMPTS = 10
RETRY = 1.0
#: Addresses in a report; more than that at once are no host's.
_MOST = 100
#: Problems in a report.
_WORDS = 8


def follow(
    sock: socket.socket, task: Task, ifindex: int, families: list[int], files: list[int]
) -> None:
    """Do ``task`` until the program, at the other end of ``sock``, has ended.

    ``ifindex`` and ``families`` are of the namespace; ``files`` has the descriptor of the one
    that tells what was made there, if anything was.
    ChannelClosedError when that happens while something is told; OSError if the task cannot be
    done.
    """
    gc.disable()
    monitor = Monitor()
    host = RouteSocket()
    record = b""
    for fd in files:
        with open(fd, "rb") as file:
            file.seek(0)
            record = file.read()
    report = Report()
    folders = directories() if task.resolvers else []
    path = PATH
    folder, name = os.path.split(os.path.realpath(path))
    if not confine.enter_root(folders, folder, chroot_fallback=task.chroot_fallback):
        folders, path = ["/"], f"/{name}"
    resolver = None
    if task.resolvers:
        try:
            resolver = Resolver(folders, path)
        except OSError as error:
            report.notes.append(("warning", f"resolv.conf is not followed: {error.strerror}"))
    setns(task.netns, CLONE_NEWNET)
    os.close(task.netns)
    inside = RouteSocket()
    confine.give_up()
    following = Following(task, sock, ifindex, families, host, inside, record)
    if report.notes:
        send(sock, report)
    _serve(sock, following, monitor, resolver)


def _serve(
    sock: socket.socket, following: Following, monitor: Monitor, resolver: Resolver | None
) -> None:
    """Wait and look until the program has ended."""
    network, names = Pace(), Pace()
    failures = 0
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    poll.register(monitor.fileno(), select.POLLIN)
    if resolver is not None:
        poll.register(resolver.fileno(), select.POLLIN)
        names.event(0.0)
    network.event(0.0)
    while True:
        times = [due for due in (network.due(), names.due(), following.due()) if due is not None]
        now = monotonic()
        wait = None if not times else max(0.0, min(times) - now)
        ready = [fd for fd, _ in poll.poll(None if wait is None else int(wait * 1000) + 1)]
        # A word to go on may come too late.
        if sock.fileno() in ready and not sock.recv(1):
            return
        now = monotonic()
        if monitor.fileno() in ready and monitor.drain():
            network.event(now)
        if resolver is not None and resolver.fileno() in ready and resolver.drain():
            names.event(now)
        if _is_due(network.due(), now) or _is_due(following.due(), now):
            try:
                following.look(now)
                failures = 0
            except OSError:
                failures += 1
                if failures > ATTEMPTS:
                    raise
            network.looked(now, monotonic())
            if failures:
                network.event(monotonic() + RETRY)
        if resolver is not None and _is_due(names.due(), now):
            report = Report()
            report.resolv_conf = resolver.read()
            names.looked(now, now)
            if report.resolv_conf is not None:
                send(sock, report)


def _is_due(due: float | None, now: float) -> bool:
    return due is not None and due <= now


class Following:
    """Looks at the host, and brings the namespace in step with it."""

    __slots__ = (
        "_addresses",
        "_host",
        "_ifindex",
        "_inside",
        "_own",
        "_settlers",
        "_sock",
        "_summaries",
        "_task",
        "_wishes",
    )

    def __init__(
        self,
        task: Task,
        sock: socket.socket,
        ifindex: int,
        families: list[int],
        host: RouteSocket,
        inside: RouteSocket,
        record: bytes,
    ) -> None:
        """``host`` and ``inside`` ask the two kernels; ``record`` is what was made at start.

        Reports go to ``sock``.
        """
        self._task = task
        self._sock = sock
        self._ifindex = ifindex
        self._host = host
        self._inside = inside
        wishes = [Wish(*arguments) for arguments in task.wishes]
        self._wishes = [wish for wish in wishes if wish.family in families]
        self._settlers = {wish.family: Settler(task.grades[wish.family]) for wish in self._wishes}
        self._own = {wish.family: Own(wish.family) for wish in self._wishes}
        for family, *made in marshal.loads(record) if record else ():
            if family in self._own:
                self._own[family] = own_of(family, *made)
        #: What the program was told of each version; nothing yet.
        self._summaries: dict[int, Summary | None] | None = None
        #: Addresses of the host that connections may come from.
        self._addresses = set(task.addresses)

    def due(self) -> float | None:
        """When to look without an event, monotonic seconds; ``None`` for never."""
        times = [settler.due() for settler in self._settlers.values()]
        return min((due for due in times if due is not None), default=None)

    def look(self, now: float) -> None:
        """Look at the host at ``now``, bring the namespace in step, and report it.

        ChannelClosedError if the program has ended.
        """
        host = read_host(self._host, self._wishes)
        settled = [
            family
            for family, settler in self._settlers.items()
            if settler.consider(now, host.sources[family])
        ]
        summaries: dict[int, Summary | None] = {}
        for family, settler in self._settlers.items():
            if family in settled:
                summaries[family] = settler.source.summary() if settler.source else None
            elif self._summaries is not None:
                summaries[family] = self._summaries[family]
        if summaries.keys() != self._settlers.keys():
            # One version had become worse between start and now: what it was is not known here.
            return
        report = Report()
        report.lost = self._lost(host, settled)
        if summaries != self._summaries:
            report.templates = self._summaries = summaries
        steps = self._steps(host, settled, summaries)
        report.withdrawn = [
            key[0] for own, addresses, _ in steps for key in own.addresses if key not in addresses
        ][:_MOST]
        if report.withdrawn:
            # Before they go, so that the guest still hears of connections that are reset.
            report.waits = True
            send(self._sock, report)
            if readable(self._sock, _LONGEST_WAIT) and not self._sock.recv(1):
                raise ChannelClosedError
            withdrawn, report = report.withdrawn, Report()
            report.withdrawn = withdrawn
        for settler in self._settlers.values():
            if settler.source is not None:
                # There may be many, and the next look reads them anew.
                settler.source.routes.clear()
        for own, addresses, routes in steps:
            problems = apply(self._inside, self._ifindex, own, addresses, routes)
            report.notes += [
                ("debug", f"Following the host's network, {problem}")
                for problem in problems[:_WORDS]
            ]
        if report.templates or report.lost or report.withdrawn or report.notes:
            send(self._sock, report)

    def _lost(self, host: Host, settled: list[int]) -> list[bytes]:
        """Addresses that the host has no more, but for versions that may recover."""
        lost = [
            address
            for address in self._addresses - host.addresses
            if (AF_INET6 if len(address) == 16 else AF_INET) in settled
        ][:_MOST]
        self._addresses = (self._addresses | host.addresses).difference(lost)
        return lost

    def _steps(
        self, host: Host, settled: list[int], summaries: dict[int, Summary | None]
    ) -> list[tuple[Own, dict[AddressKey, Wanted], dict[RouteKey, bytes]]]:
        """What is ours in the namespace, and what is to be: addresses, and routes."""
        task = self._task
        if task.plan is None:
            return []
        plans = task.plan(summaries)
        steps = []
        for family in settled:
            own, source, plan = self._own[family], self._settlers[family].source, plans[family]
            addresses = wanted_addresses(
                plan, family, source, self._ifindex, own.addresses, host.addresses
            )
            steps.append((own, addresses, wanted_routes(plan, family, source, self._ifindex)))
        return steps
