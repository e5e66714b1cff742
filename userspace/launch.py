"""From a namespace on its way to a running loop: the second half of start-up.

It goes on where :class:`passt.userspace.startup.Startup` ended, in the same manner::

    tap, addresses, routes        finish_network
    ports in the namespace        open_namespace_ports
    loop, link, translators       assemble
    namespaces, empty root        isolate        nothing is opened by path after this
    background, PID file          detach
    thread in the namespace       enter_namespace
    signals, garbage collector    settle
    capabilities, and the rest    drop
    release the command, loop     serve

The netlink process, forked before all this, is told to end by ``open_namespace_ports`` and gone
with ``isolate``; nothing is forked after ``detach``, and until then there is one thread.
"""

from __future__ import annotations

import gc
import os

from passt.kernel import capabilities, sandbox
from passt.kernel.daemon import daemonise
from passt.kernel.errors import SetupError, reason
from passt.kernel.nswatch import PERIOD
from passt.kernel.signals import SignalPipe
from passt.syscalls import bare_socket as socket
from passt.userspace import fault, log
from passt.userspace.engine import Engine, preload
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.forward.proclist import open_port_lists
from passt.userspace.forward.scan import scan_of
from passt.userspace.forward.sockets import Here
from passt.userspace.loop import EPOLLIN
from passt.userspace.startup import tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.worker import Tap
    from passt.kernel.nswatch import NamespaceWatch
    from passt.userspace.startup import Startup

#: Objects made in the loop before the collector looks at them: cycles are rare there.
_GC_THRESHOLD = 10000


class Launch:
    """The second half of one start."""

    #: The end of a child matters; otherwise we may not even ask for it.
    waits_for_children = True

    def __init__(self, start: Startup) -> None:
        self.start = start
        preload(start.config)
        self.engine: Engine
        self._command_ended = False
        #: The guest's IPv6 link-local address, if it is known.
        self.guest_link_local: bytes | None = None

    def run(self) -> None:
        """Go through all steps but the last."""
        tap = self.finish_network()
        self.open_namespace_ports()
        self.assemble(tap)
        self.isolate()
        self.detach()
        self.enter_namespace()
        self.settle()
        self.drop()

    def finish_network(self) -> Tap | None:
        """Wait for the tap, if there is to be one, and see what the namespace was given."""
        start = self.start
        tap, configured = start.network()
        if tap is not None:
            self.start.forwarder.set_scope(SPLICE, tap.ifindex)
        if configured is not None:
            tell(configured.notes)
            self.start.config.v4.enabled = configured.ipv4
            self.start.config.v6.enabled = configured.ipv6
            self.guest_link_local = configured.link_local
        if start.follower is not None and tap is not None:
            v4, v6 = start.config.v4, start.config.v6
            families = [socket.AF_INET] * v4.enabled + [socket.AF_INET6] * v6.enabled
            record = -1 if configured is None else configured.record
            start.follower.begin(tap.ifindex, families, record)
        elif configured is not None and configured.record >= 0:
            os.close(configured.record)
        return tap

    def open_namespace_ports(self) -> None:
        """Open what rules want in the namespace; then the netlink process has done its work."""
        forwarder, worker = self.start.forwarder, self.start.worker
        if self.start.gates is not None:
            self.start.gates.open_namespace(forwarder, worker, self.start.netns)
        forwarder.open_fixed(SPLICE, worker.sockets)
        automatic = any(
            rule.auto for rule in (*self.start.config.rules, *self.start.config.rules_ns)
        )
        if automatic or self.start.control is not None:
            if not forwarder.scans(HOST):
                forwarder.scan(HOST, scan_of(open_port_lists(), Here().call))
            if not forwarder.scans(SPLICE):
                forwarder.scan(SPLICE, scan_of(worker.port_lists(), worker.sockets))
            forwarder.open_auto({HOST: Here().call, SPLICE: worker.sockets})
        self.release_worker()

    def release_worker(self) -> None:
        """Have the netlink process end, and forget the user namespace, which we are in."""
        self.start.worker.hang_up()
        if self.start.userns >= 0:
            os.close(self.start.userns)

    def assemble(self, tap: Tap | None) -> None:
        """Make the loop and everything in it; from here on, connections queue up."""
        try:
            self.engine = engine = Engine(
                self.start.config,
                tap,
                self.start.forwarder,
                self.start.control,
                self.start.maps,
                self.start.guest,
            )
            engine.nat.observed_ll = self.guest_link_local
            if self.start.watch is not None:
                self._attach_watch(self.start.watch)
            if self.start.follower is not None:
                from passt.userspace.following import Following

                Following(
                    self.start.options,
                    engine,
                    self.start.forwarder,
                    self.start.resolvers,
                    self.start.follower,
                )
        except OSError as error:
            raise SetupError(f"Failed to set up event loop: {reason(error)}") from None
        if self.start.config.config_net and engine.stack is not None:
            engine.stack.announce()

    def _attach_watch(self, watch: NamespaceWatch) -> None:
        loop = self.engine.loop

        def gone() -> None:
            log.info(f"Namespace {watch.name} is gone, exiting")
            loop.stop(0)

        def on_event(_events: int) -> None:
            if watch.events_show_end():
                gone()

        def look() -> None:
            if watch.looks_gone():
                gone()
            else:
                loop.call_at(loop.now + PERIOD, look)

        if watch.fd >= 0:
            loop.add(watch.fd, EPOLLIN, on_event)
        else:
            loop.call_at(loop.now, look)

    def isolate(self) -> None:
        """Leave the system behind, but for what is open; give up what only that took."""
        options = self.start.options
        self.start.worker.close()
        fault.install()
        message = sandbox.leave(pid=not options.foreground, chroot_fallback=options.chroot_fallback)
        if message:
            log.warn(message)
        capabilities.empty_other_sets()
        capabilities.keep(capabilities.SANDBOXED)

    def detach(self) -> None:
        """Go to the background unless told otherwise; write the PID file."""
        try:
            if self.start.options.foreground:
                if self.start.pid_file is not None:
                    self.start.pid_file.write(os.getpid())
            else:
                self.start.readiness = daemonise(self.start.pid_file, self.start.null)
                log.detach()
        except OSError as error:
            raise SetupError(f"Failed to go to the background: {reason(error)}") from None
        os.close(self.start.null)

    def enter_namespace(self) -> None:
        """Start the thread that makes sockets in the namespace, where it may bind low ports."""
        assert self.engine.nsthread is not None
        try:
            self.engine.nsthread.start(self.start.netns, capabilities.NAMESPACE)
        except OSError as error:
            raise SetupError(f"Couldn't switch to pasta namespaces: {reason(error)}") from None
        # A namespace must not outlive its users on our account.
        os.close(self.start.netns)

    def settle(self) -> None:
        """Have signals come to the loop; what has been made so far stays for good."""
        loop = self.engine.loop
        signals = SignalPipe(children=self.waits_for_children)

        def on_signal(_events: int) -> None:
            ending, child_ended = signals.take()
            if ending:
                loop.stop(0)
            elif child_ended:
                self._reap()

        loop.add(signals.fileno(), EPOLLIN, on_signal)
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        gc.enable()

    def drop(self) -> None:
        """Give up the remaining privileges, and what else can be given up."""
        capabilities.keep(capabilities.RUNNING)
        sandbox.harden(
            self.start.options.mode,
            -1 if self.start.watch is None else self.start.watch.unlisted,
            accelerated=self.start.maps is not None or bool(self.start.gates),
        )

    def serve(self) -> int:
        """Let the command run, tell the waiting parent, and run the loop to its end."""
        if self.start.child is not None:
            self.start.child.release()
            log.command_started()
            self._reap()
        if self.start.readiness is not None:
            self.start.readiness.announce()
        status = self.engine.loop.run()
        if self._command_ended and not self.start.options.no_pidns:
            # It was the first process of its PID namespace, so the others have ended, too.
            self.engine.leave_tap()
        if self.start.follower is not None:
            self.start.follower.end()
        self.engine.close()
        return status

    def _reap(self) -> None:
        """Collect children that ended; the command's end is ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.start.child is not None and pid == self.start.child.pid:
                self._command_ended = True
                if self.start.follower is not None:
                    # It ends while we do.
                    self.start.follower.close()
                code = os.waitstatus_to_exitcode(status)
                self.engine.loop.stop(code if code >= 0 else 128 - code)
