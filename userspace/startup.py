"""From a parsed command line to a running loop: the steps of start-up, in their order.

The order is dictated by who may do what.  Files, ports and namespaces are opened while we
are who our caller is; then identity and user namespace change for good; then the network is
made ready; and only when everything is in place does the command run, or the parent of the
daemon end.  Each step is a method, called by :meth:`Startup.run` in the order of the text::

    who, log, host's network      prepare        with the caller's identity
    listening sockets             open_ports
    files and namespaces          open_files
    maps and program, if any      open_acceleration
    groups, GID, UID, user ns     take_identity
    child with the command        spawn_command
    tap, addresses, routes        configure
    ports in the namespace        open_namespace_ports
    loop, link, translators       assemble
    namespaces, empty root        isolate        nothing is opened by path after this
    background, PID file          detach
    thread in the namespace       enter_namespace
    signals, garbage collector    settle
    capabilities, and the rest    drop
    release the command, loop     serve

The netlink process, forked before all this, ends with ``open_namespace_ports``; nothing is
forked after ``detach``, and until then there is one thread.

Failures are :class:`~passt.kernel.errors.SetupError` and its like, whose text is the one
line that the user sees; the exit status is 1, and a command that was waiting never runs.
Source: pasta(1), user_namespaces(7).
"""

from __future__ import annotations

import gc
import os
import resource

from passt.kernel import capabilities, identity, interpreter, sandbox, userns
from passt.kernel.command import Command
from passt.kernel.daemon import PidFile, daemonise
from passt.kernel.errors import SetupError, reason
from passt.kernel.netlink.worker import FamilyPlan, TemplateInfo, WorkerError
from passt.kernel.nswatch import PERIOD, NamespaceWatch
from passt.kernel.signals import SignalPipe
from passt.kernel.sockdiag import SPEC, SocketDiag
from passt.kernel.spawn import spawn
from passt.kernel.target import open_namespace
from passt.userspace import fault, log
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import ACCEL_EBPF
from passt.userspace.config.resolve import enabled_versions, read_resolv_conf, resolve
from passt.userspace.config.summary import print_summary, warn_mtu
from passt.userspace.control.path import bind_socket
from passt.userspace.engine import Engine
from passt.userspace.flow.rules import HOST, SPLICE
from passt.userspace.forward.forwarder import Forwarder
from passt.userspace.forward.proclist import open_port_lists
from passt.userspace.forward.scan import PortScan
from passt.userspace.forward.sockets import Here
from passt.userspace.loop import EPOLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from passt.kernel.daemon import Readiness
    from passt.kernel.ebpf.maps import MapSet
    from passt.kernel.netlink.worker import Tap, Worker
    from passt.kernel.spawn import Child
    from passt.kernel.target import Entry
    from passt.userspace.config.model import Config, Family
    from passt.userspace.config.options import Options, Target
    from passt.userspace.forward.side import Make

#: Objects made in the loop before the collector looks at them: cycles are rare there.
_GC_THRESHOLD = 10000

_FATAL = (SetupError, WorkerError, UsageError)

_LEVELS = {"warning": log.WARNING, "info": log.INFO, "debug": log.DEBUG}


class Startup:
    """One start of pasta; attributes are what steps leave for later ones."""

    def __init__(self, options: Options, target: Target, worker: Worker) -> None:
        self.options = options
        self.target = target
        self.worker = worker
        self.config: Config
        self.identity: identity.Identity
        self.forwarder: Forwarder
        self.control: socket.socket | None = None
        self.maps: MapSet | None = None
        self.engine: Engine
        #: Descriptors of the namespaces to serve, and of /dev/null.
        self.netns = -1
        self.userns = -1
        self.null = -1
        self.watch: NamespaceWatch | None = None
        self.pid_file: PidFile | None = None
        self.command: Command | None = None
        self.child: Child | None = None
        self.readiness: Readiness | None = None
        #: The guest's IPv6 link-local address, if it is known.
        self.guest_link_local: bytes | None = None

    def run(self) -> int:
        """Go through all steps and the loop; returns the exit status."""
        try:
            self.prepare()
            self.open_ports()
            self.open_files()
            self.open_acceleration()
            self.take_identity()
            self.spawn_command()
            tap = self.configure()
            self.open_namespace_ports()
            self.assemble(tap)
            self.isolate()
            self.detach()
            self.enter_namespace()
            self.settle()
            self.drop()
        except (*_FATAL, OSError) as error:
            for line in str(error).split("\n"):
                log.err(line)
            if self.child is not None:
                self.child.abandon()
            if self.readiness is not None:
                self.readiness.fail(str(error))
            return 1
        return self.serve()

    def prepare(self) -> None:
        """Decide who we will be, open the log, read the host's network, settle everything."""
        options = self.options
        try:
            log.setup(
                options.mode,
                debug=options.debug,
                trace=options.trace,
                quiet=options.quiet or self.target.spawns,
                path=options.log_file,
                size=options.log_size,
            )
        except OSError as error:
            raise SetupError(f"Couldn't open log file {options.log_file}: {reason(error)}") from (
                None
            )
        self.identity, warning = identity.chosen(options.runas)
        if warning:
            log.warn(warning)
        v4, v6 = versions = enabled_versions(options)
        template = (
            TemplateInfo(None, None, [])
            if options.splice_only
            else self.worker.template(
                options.interface or None,
                options.outbound_if4 or None,
                options.outbound_if6 or None,
                ipv4=v4,
                ipv6=v6,
                has_address4=options.address_v4 is not None,
                has_address6=options.address_v6 is not None,
                has_link_local=_is_link_local(options.gateway_v6),
            )
        )
        _tell(template.notes)
        self.config = resolve(options, versions, template, read_resolv_conf(options))
        if not self.config.splice_only:
            warn_mtu(self.config)

    def open_ports(self) -> None:
        """Bind the sockets of inbound rules, low ports included; they do not listen yet."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.target.spawns:
            self.command = Command(self.target.executable, self.target.argv, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        self.forwarder = Forwarder(self.config)
        self.forwarder.set_scope(HOST, self.config.v6.ifindex)
        self.forwarder.open_fixed(HOST, Here().call)

    def open_files(self) -> None:
        """Open what belongs to our caller: the PID file, existing namespaces, their watch."""
        options = self.options
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if options.pid:
            try:
                self.pid_file = PidFile(options.pid)
            except OSError as error:
                raise SetupError(f"Couldn't open PID file {options.pid}: {reason(error)}") from None
        if options.conf_path:
            self.control = bind_socket(options.conf_path)
            log.info("UNIX domain socket bound at %s", options.conf_path)
        user = None
        if self.target.userns:
            user = open_namespace("user", self.target.userns)
            self.userns = user.fd
        if self.target.netns:
            net = open_namespace("network", self.target.netns, user)
            self.netns = net.fd
            if not options.no_netns_quit:
                self._watch(net)

    def open_acceleration(self) -> None:
        """Get what it takes to have the kernel forward, if that is wanted and possible."""
        if self.options.accel != ACCEL_EBPF:
            return
        from passt.kernel.ebpf.acquire import UnavailableError, acquire

        try:
            self.maps, how = acquire(compile_first=self.options.accel_compile)
            log.info("Acceleration: ebpf, %s", how)
        except UnavailableError as why:
            log.warn(f"Acceleration: splice, as ebpf is not available: {why}")

    def _watch(self, net: Entry) -> None:
        """Watch the entry of the network namespace, which must still be there."""
        self.watch = watch = NamespaceWatch(net.directory, net.name)
        if watch.warning:
            log.warn(watch.warning)
        if watch.looks_gone():
            raise SetupError(f"Namespace {net.name} is gone, exiting")

    def take_identity(self) -> None:
        """Become who we will be, in the user namespace we will be in."""
        identity.drop_groups()
        if self.target.new_userns:
            self.userns, warning = userns.create(self.identity.uid, self.identity.gid)
            if warning:
                log.warn(warning)
            identity.switch(0, 0, " in userns")
        else:
            identity.become(self.identity)
            capabilities.keep(capabilities.EARLY)
            if self.userns >= 0:
                userns.join(self.userns, self.target.userns)
        fallback = capabilities.CHROOT if self.options.chroot_fallback else 0
        capabilities.keep(capabilities.SETUP | fallback)

    def spawn_command(self) -> None:
        """Start the child that holds the new network namespace and waits to run the command."""
        if self.command is None:
            return
        options = self.options
        self.child = spawn(self.command, options.hostname, not options.no_pidns)
        self.netns = self.child.netns
        for warning in self.child.warnings:
            log.warn(warning)

    def configure(self) -> Tap | None:
        """Have the tap made, if there is to be one, and the namespace configured."""
        config = self.config
        if self.options.show_summary:
            print_summary(config)
        worker = self.worker
        user_fd = self.userns if self.userns >= 0 else None
        tap = worker.enter(user_fd, self.netns, None if config.splice_only else config.ns_ifname)
        worker.loopback_up()
        if tap is None:
            return None
        self.forwarder.set_scope(SPLICE, tap.ifindex)
        if self.options.ns_mac_addr is not None:
            tap.mac = worker.set_mac(self.options.ns_mac_addr)
        if config.config_net:
            done = worker.configure(config.mtu, _plan(config.v4), _plan(config.v6))
            _tell(done.notes)
            config.v4.enabled = done.ipv4
            config.v6.enabled = done.ipv6
            self.guest_link_local = done.link_local
        return tap

    def open_namespace_ports(self) -> None:
        """Open what rules want in the namespace; the netlink process ends here."""
        forwarder, worker = self.forwarder, self.worker
        forwarder.open_fixed(SPLICE, worker.sockets)
        automatic = any(rule.auto for rule in (*self.config.rules, *self.config.rules_ns))
        if automatic or self.control is not None:
            forwarder.scan(HOST, PortScan(open_port_lists(), _diag(Here().call)))
            forwarder.scan(SPLICE, PortScan(worker.port_lists(), _diag(worker.sockets)))
            forwarder.open_auto({HOST: Here().call, SPLICE: worker.sockets})
        worker.close()
        if self.userns >= 0:
            os.close(self.userns)

    def assemble(self, tap: Tap | None) -> None:
        """Make the loop and everything in it; from here on, connections queue up."""
        try:
            self.engine = engine = Engine(self.config, tap, self.forwarder, self.control, self.maps)
            engine.nat.observed_ll = self.guest_link_local
            if self.watch is not None:
                self._attach_watch(self.watch)
        except OSError as error:
            raise SetupError(f"Failed to set up event loop: {reason(error)}") from None
        if self.config.config_net and engine.stack is not None:
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
        options = self.options
        fault.install()
        interpreter.end_perf_support()
        message = sandbox.leave(pid=not options.foreground, chroot_fallback=options.chroot_fallback)
        if message:
            log.warn(message)
        capabilities.empty_other_sets()
        capabilities.keep(capabilities.SANDBOXED)

    def enter_namespace(self) -> None:
        """Start the thread that makes sockets in the namespace, where it may bind low ports."""
        try:
            self.engine.nsthread.start(self.netns, capabilities.NAMESPACE)
        except OSError as error:
            raise SetupError(f"Couldn't switch to pasta namespaces: {reason(error)}") from None
        # A namespace must not outlive its users on our account.
        os.close(self.netns)

    def detach(self) -> None:
        """Go to the background unless told otherwise; write the PID file."""
        try:
            if self.options.foreground:
                if self.pid_file is not None:
                    self.pid_file.write(os.getpid())
            else:
                self.readiness = daemonise(self.pid_file, self.null)
                log.detach()
        except OSError as error:
            raise SetupError(f"Failed to go to the background: {reason(error)}") from None
        os.close(self.null)

    def settle(self) -> None:
        """Have signals come to the loop; what has been made so far stays for good."""
        loop = self.engine.loop
        signals = SignalPipe()

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
            self.options.mode,
            -1 if self.watch is None else self.watch.unlisted,
            accelerated=self.maps is not None,
        )

    def serve(self) -> int:
        """Let the command run, tell the waiting parent, and run the loop to its end."""
        if self.child is not None:
            self.child.release()
            log.command_started()
            self._reap()
        if self.readiness is not None:
            self.readiness.announce()
        status = self.engine.loop.run()
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
            if self.child is not None and pid == self.child.pid:
                code = os.waitstatus_to_exitcode(status)
                self.engine.loop.stop(code if code >= 0 else 128 - code)


def _plan(family: Family) -> FamilyPlan | None:
    """What the namespace gets of one IP version."""
    if not family.enabled:
        return None
    return FamilyPlan(
        family.addr,
        family.prefix_len,
        family.gateway,
        local=family.local,
        copy_addresses=family.copy_addrs,
        copy_routes=family.copy_routes,
        more=family.more,
    )


def _tell(notes: list[tuple[str, str]]) -> None:
    for level, text in notes:
        log.emit(_LEVELS[level], "%s", text)


def _is_link_local(addr: bytes | None) -> bool:
    return addr is not None and addr[0] == 0xFE and addr[1] & 0xC0 == 0x80


def _diag(make: Make) -> SocketDiag | None:
    """Means to ask the kernel about sockets where ``make`` makes some, if it has them."""
    sock = make([SPEC])[0]
    try:
        return None if isinstance(sock, OSError) else SocketDiag(sock)
    except OSError:
        return None
