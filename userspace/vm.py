"""Start-up of passt: for a virtual machine instead of a namespace.

The steps are those of :class:`passt.userspace.startup.Startup` and
:class:`passt.userspace.launch.Launch` that make sense here, in the same order::

    who, log, host's network      prepare        with the caller's identity
    listening sockets             open_ports
    guest's socket, other files   open_files
    groups, GID, UID, user ns     take_identity
    what came of it               show_summary
    loop, link, translators       assemble       the guest may come
    namespaces, empty root        isolate
    background, PID file          detach
    signals, garbage collector    settle
    capabilities, and the rest    drop

There is no other network namespace: no thread, no tap, nothing to be configured, and nothing for
traffic to bypass the link to.  The user namespace is there for the sandbox alone.

Source: passt(1).
"""

from __future__ import annotations

from passt.kernel.errors import reason
from passt.syscalls import bare_socket as socket
from passt.userspace import log
from passt.userspace.config.errors import UsageError
from passt.userspace.launch import Launch
from passt.userspace.link.guest import is_connected
from passt.userspace.socketpath import bind_first, bind_socket
from passt.userspace.startup import Startup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from passt.kernel.netlink.worker import Worker
    from passt.userspace.config.options import Options
    from passt.userspace.config.resolve import HostNetwork

#: Where the guest is waited for if the user does not say.
_PATHS = [f"/tmp/passt_{number}.socket" for number in range(1, 100)]

_HINT = """
You can now start qemu (>= 7.2, with commit 13c6be96618c):
    kvm ... -device virtio-net-pci,netdev=s \
-netdev stream,id=s,server=off,addr.type=unix,addr.path={path}"""


class MachineStartup(Startup):
    """One start of passt."""

    def __init__(self, options: Options, worker: Worker, host: HostNetwork, guest: int) -> None:
        """``guest`` is the descriptor of the connection that ``--fd`` names; −1 if there is none.

        That descriptor has another number by now.
        """
        super().__init__(options, worker, host)
        self._passed = guest
        self._path = ""

    def set_up(self) -> None:
        """Go through the steps of the first half."""
        self.prepare()
        self.open_ports()
        self.open_files()
        self.take_identity()
        self.show_summary()

    def launch(self) -> Launch:
        """The second half."""
        return MachineLaunch(self)

    def open_files(self) -> None:
        """Bind the guest's socket, or take what was passed; then what pasta opens, too."""
        options = self.options
        if options.guest_fd >= 0:
            self.guest = self._take_passed()
        elif options.socket_path:
            self._path = options.socket_path
            self.guest = bind_socket(self._path)
        else:
            self.guest, self._path = bind_first(_PATHS)
        if self._path:
            log.info("UNIX domain socket bound at %s", self._path)
        super().open_files()

    def _take_passed(self) -> socket.socket:
        """The connection that was passed to us; UsageError if it is none."""
        try:
            sock = socket.socket(fileno=self._passed)
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else "Bad file descriptor"
            raise UsageError(f"Invalid --fd: {self.options.guest_fd}: {why}") from None
        if sock.type != socket.SOCK_STREAM or not is_connected(sock):
            raise UsageError(
                f"Invalid --fd: {self.options.guest_fd}: not a connected stream socket"
            )
        return sock

    def show_summary(self) -> None:
        """Print the configuration, and how to start a guest, if that is wanted."""
        super().show_summary()
        if self.options.show_summary and self._path:
            for line in _HINT.format(path=self._path).split("\n"):
                log.info("%s", line)


class MachineLaunch(Launch):
    """The second half of one start of passt."""

    waits_for_children = False

    def run(self) -> None:
        """Go through all steps but the last."""
        self.release_worker()
        self.assemble(None)
        self.isolate()
        self.detach()
        self.settle()
        self.drop()
