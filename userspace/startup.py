"""From a parsed command line to a namespace on its way: the steps of start-up, in their order.

The order is dictated by who may do what.  Files, ports and namespaces are opened while we
are who our caller is; then identity and user namespace change for good; then the network is
made ready; and only when everything is in place does the command run, or the parent of the
daemon end.  Each step is a method, called in the order of the text::

    who, log, host's network      prepare        with the caller's identity
    listening sockets             open_ports
    files and namespaces          open_files
    maps and program, if any      open_acceleration
    groups, GID, UID, user ns     take_identity
    child with the command        spawn_command
    tap, addresses, routes        begin_network
    who follows the host          follow_host

The rest is :mod:`passt.userspace.launch`.  What it imports, which are all the translators, is
imported while the netlink process works, and after the forks, which cost as much as there is
memory in use.

Failures are :class:`~passt.kernel.errors.SetupError` and its like, whose text is the one
line that the user sees; the exit status is 1, and a command that was waiting never runs.
Source: pasta(1), user_namespaces(7).
"""

from __future__ import annotations

import os
import resource

from passt.kernel import capabilities, identity, userns
from passt.kernel.command import Command
from passt.kernel.daemon import PidFile
from passt.kernel.errors import SetupError, reason
from passt.kernel.netlink.worker import WorkerError
from passt.kernel.spawn import spawn
from passt.userspace import log
from passt.userspace.config.errors import UsageError
from passt.userspace.config.model import ACCEL_EBPF
from passt.userspace.config.resolve import plan_of, read_resolv_conf, resolve
from passt.userspace.flow.rules import HOST
from passt.userspace.forward.binding import has_many
from passt.userspace.forward.forwarder import Forwarder
from passt.userspace.forward.sockets import Here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.daemon import Readiness
    from passt.kernel.ebpf.maps import MapSet
    from passt.kernel.follow.start import Follower
    from passt.kernel.netlink.worker import Configured, Tap, TemplateInfo, Worker
    from passt.kernel.nswatch import NamespaceWatch
    from passt.kernel.spawn import Child
    from passt.kernel.target import Entry
    from passt.syscalls import bare_socket as socket
    from passt.userspace.config.model import Config
    from passt.userspace.config.options import Options, Target
    from passt.userspace.config.resolvconf import ResolvConf
    from passt.userspace.config.resolve import HostNetwork
    from passt.userspace.forward.gates import Gates
    from passt.userspace.launch import Launch

_FATAL = (SetupError, WorkerError, UsageError)

_LEVELS = {"warning": log.WARNING, "info": log.INFO, "debug": log.DEBUG}


class Startup:
    """One start of pasta; attributes are what steps leave for later ones."""

    def __init__(self, options: Options, worker: Worker, host: HostNetwork) -> None:
        assert options.target is not None
        self.options = options
        self.target: Target = options.target
        self.worker = worker
        self.host = host
        self.config: Config
        self.identity: identity.Identity
        self.forwarder: Forwarder
        self.control: socket.socket | None = None
        #: In passt mode: to wait for the guest on, or its connection.
        self.guest: socket.socket | None = None
        self.maps: MapSet | None = None
        self.gates: Gates | None = None
        #: Descriptors of the namespaces to serve, and of /dev/null.
        self.netns = -1
        self.userns = -1
        self.null = -1
        self.watch: NamespaceWatch | None = None
        self.pid_file: PidFile | None = None
        self.command: Command | None = None
        self.child: Child | None = None
        self.readiness: Readiness | None = None
        #: Waits for the tap and what the namespace was given.
        self.network: Callable[[], tuple[Tap | None, Configured | None]]
        #: What was found on the host, and what its resolv.conf said.
        self.template: TemplateInfo
        self.resolvers: ResolvConf
        #: Follows the host's network, if that is wanted.
        self.follower: Follower | None = None

    def run(self) -> int:
        """Go through all steps and the loop; returns the exit status."""
        try:
            self.set_up()
            launch = self.launch()
            launch.run()
        except (*_FATAL, OSError) as error:
            for line in str(error).split("\n"):
                log.err(line)
            if self.child is not None:
                self.child.abandon()
            if self.readiness is not None:
                self.readiness.fail(str(error))
            return 1
        return launch.serve()

    def set_up(self) -> None:
        """Go through the steps of the first half."""
        self.prepare()
        self.open_ports()
        self.open_files()
        self.open_acceleration()
        self.take_identity()
        self.spawn_command()
        self.begin_network()
        self.follow_host()

    def launch(self) -> Launch:
        """The second half, which is imported late."""
        from passt.userspace.launch import Launch

        return Launch(self)

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
        versions, template = self.host()
        tell(template.notes)
        self.template = template
        self.resolvers = read_resolv_conf(options)
        self.config = resolve(options, versions, template, self.resolvers)
        if not self.config.splice_only:
            from passt.userspace.config.summary import warn_mtu

            warn_mtu(self.config)

    def open_ports(self) -> None:
        """Bind the sockets of inbound rules, low ports included; they do not listen yet."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.target.spawns:
            self.command = Command(self.target.executable, self.target.argv, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        self.forwarder = Forwarder(self.config)
        self.forwarder.set_scope(HOST, self.config.v6.ifindex)
        if self.options.accel == ACCEL_EBPF:
            rules = *self.config.rules, *self.config.rules_ns
            if self.options.conf_path or any(map(has_many, rules)):
                self._open_gates()
        self.forwarder.open_fixed(HOST, Here().call)

    def _open_gates(self) -> None:
        """Get what it takes to have one socket for many ports, if that is possible."""
        from passt.userspace.forward.gates import Gates

        options = self.options
        self.gates = Gates(
            self.config, control=bool(options.conf_path), compile_first=options.accel_compile
        )
        self.gates.open_host(self.forwarder)

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
            from passt.userspace.socketpath import bind_private

            self.control = bind_private(options.conf_path)
            log.info("UNIX domain socket bound at %s", options.conf_path)
        self._open_namespaces()

    def _open_namespaces(self) -> None:
        """Open the namespaces that exist already, if the user named some."""
        if not self.target.netns and not self.target.userns:
            return
        from passt.kernel.target import open_namespace

        user = None
        if self.target.userns:
            user = open_namespace("user", self.target.userns)
            self.userns = user.fd
        if self.target.netns:
            net = open_namespace("network", self.target.netns, user)
            self.netns = net.fd
            if not self.options.no_netns_quit:
                self._watch(net)

    def _watch(self, net: Entry) -> None:
        """Watch the entry of the network namespace, which must still be there."""
        from passt.kernel.nswatch import NamespaceWatch

        self.watch = watch = NamespaceWatch(net.directory, net.name)
        if watch.warning:
            log.warn(watch.warning)
        if watch.looks_gone():
            raise SetupError(f"Namespace {net.name} is gone, exiting")

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

    def take_identity(self) -> None:
        """Become who we will be, in the user namespace we will be in."""
        if self.identity.uid != os.geteuid():
            # Whoever we become may not read what is not imported yet.
            import passt.userspace.launch
            from passt.userspace.engine import preload

            preload(self.config)
            if self.config.follow and not open_to_all(os.path.dirname(capabilities.__file__)):
                # The other process would import for itself, later and beside everything else.
                import passt.kernel.follow.helper
                import passt.userspace.config.followed  # noqa: F401
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

    def show_summary(self) -> None:
        """Print the configuration, if that is wanted."""
        if self.options.show_summary:
            from passt.userspace.config.summary import print_summary

            print_summary(self.config)

    def begin_network(self) -> None:
        """Have the netlink process make the tap, if there is to be one, and configure it."""
        self.show_summary()
        config = self.config
        plans = None
        if config.config_net and not config.splice_only:
            plans = config.mtu, plan_of(config.v4), plan_of(config.v6)
        self.network = self.worker.begin_network(
            self.userns if self.userns >= 0 else None,
            self.netns,
            None if config.splice_only else config.ns_ifname,
            None if config.splice_only else self.options.ns_mac_addr,
            plans,
            record=config.follow,
        )

    def follow_host(self) -> None:
        """Fork the process that follows the host's network, if that is wanted."""
        if not self.config.follow:
            return
        from passt.kernel.follow.start import Follower
        from passt.userspace.config.followed import task_of

        try:
            self.follower = Follower.start(
                task_of(self.options, self.config, self.template, self.netns), self.null
            )
        except OSError as error:
            log.warn(f"Couldn't follow the host's network: {reason(error)}")


def open_to_all(folder: str) -> bool:
    """Whether anybody may list ``folder``, and get there, by the modes of folders."""
    folder = os.path.realpath(folder)
    wanted = 0o5
    while os.stat(folder).st_mode & wanted == wanted:
        wanted = 0o1
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
    return False


def tell(notes: list[tuple[str, str]]) -> None:
    """Log what the netlink process noticed."""
    for level, text in notes:
        log.emit(_LEVELS[level], "%s", text)
