"""The program's handle on its netlink worker.

Theory of operation
-------------------
`Worker.start` forks; that must happen while the process has one thread and before it gives up
privileges or namespaces, and pays most if done first of all: the child's imports then run beside
the program's own.  Each method is one call and waits for its answer.  The order of calls is
`template`, `enter`, `loopback_up`, `set_mac`, `configure`, `sockets` and `port_lists`, `close`;
`template` works on the network the program was started in, the others on the namespace entered.

Answers come in the order of the calls, so a program with something else to do need not wait:
`begin_template` and `begin_network` only send their calls, and return what waits.

Nothing here imports pyroute2 or more than the smallest part of this package.

Source: `man pasta`, `man passt`; see the package's text for the parts.
"""

from __future__ import annotations

import errno
import os

from passt.kernel.netlink import channel
from passt.syscalls import bare_socket as socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from passt.kernel.sockets import SocketSpec

#: Sockets made per call: as many descriptors fit into one answer.
SOCKET_BATCH = 100

_IPV4, _IPV6 = int(socket.AF_INET), int(socket.AF_INET6)


class WorkerError(Exception):
    """A call failed: the text is one complete line for the user, `errno` 0 if there is none."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class FamilyTemplate:
    """What serves as template for one IP version, on the host.

    `ifindex`, `ifname`: the interface.  `address`: the future guest's, packed, or None if the
    interface has none to give; `prefix_len` its prefix length.  `gateway`: packed, None if there
    is no default route or it has no gateway.  `link_local`: the interface's own, packed (IPv6).
    `others`: further addresses that are copied, packed; hundreds at most.
    """

    __slots__ = ("address", "gateway", "ifindex", "ifname", "link_local", "others", "prefix_len")

    def __init__(
        self,
        ifindex: int,
        ifname: str,
        address: bytes | None,
        prefix_len: int,
        gateway: bytes | None,
        link_local: bytes | None,
        others: Sequence[bytes] = (),
    ) -> None:
        self.ifindex = ifindex
        self.ifname = ifname
        self.address = address
        self.prefix_len = prefix_len
        self.gateway = gateway
        self.link_local = link_local
        self.others = others


class TemplateInfo:
    """Templates by IP version, None for a version in local mode or not asked for.

    `notes`: (level, text) with level `warning`, `info` or `debug`, in order.
    """

    __slots__ = ("ipv4", "ipv6", "notes")

    def __init__(
        self,
        ipv4: FamilyTemplate | None,
        ipv6: FamilyTemplate | None,
        notes: list[tuple[str, str]],
    ) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.notes = notes


class Tap:
    """The tap device: `fd` (non-blocking, close-on-exec, the caller's), name, index, address.

    `offloads`: the TUN_F_ flags in force; `vnet_header`: whether each frame is preceded by a
    10-byte virtio_net_hdr in the machine's byte order.
    """

    __slots__ = ("fd", "ifindex", "mac", "name", "offloads", "vnet_header")

    def __init__(
        self, fd: int, name: str, ifindex: int, mac: bytes, offloads: int, vnet_header: bool
    ) -> None:
        self.fd = fd
        self.name = name
        self.ifindex = ifindex
        self.mac = mac
        self.offloads = offloads
        self.vnet_header = vnet_header


class FamilyPlan:
    """What `configure` does for one IP version.

    `local`: local mode, nothing is copied, and a gateway outside the subnet is taken as on-link.
    `copy_addresses`, `copy_routes`: take over the template's.  Where not: `address` (packed, or
    None for no address) with `prefix_len`, and those in `more`, with theirs; one default route
    through `gateway` (packed; None for none, or for one without gateway if the template's has
    none).
    """

    __slots__ = (
        "address",
        "copy_addresses",
        "copy_routes",
        "gateway",
        "local",
        "more",
        "prefix_len",
    )

    def __init__(
        self,
        address: bytes | None,
        prefix_len: int,
        gateway: bytes | None,
        *,
        local: bool = False,
        copy_addresses: bool = False,
        copy_routes: bool = False,
        more: Sequence[tuple[bytes, int]] = (),
    ) -> None:
        self.address = address
        self.prefix_len = prefix_len
        self.gateway = gateway
        self.local = local
        self.copy_addresses = copy_addresses
        self.copy_routes = copy_routes
        self.more = more


class Configured:
    """What came of it: IP versions in force, the tap's link-local address (packed), notes.

    `record`: descriptor of a file that tells what was made, the caller's to close; −1 if none
    was asked for.
    """

    __slots__ = ("ipv4", "ipv6", "link_local", "notes", "record")

    def __init__(
        self,
        ipv4: bool,
        ipv6: bool,
        link_local: bytes | None,
        notes: list[tuple[str, str]],
        record: int = -1,
    ) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.link_local = link_local
        self.notes = notes
        self.record = record


class Worker:
    """A running worker.  Methods raise WorkerError; afterwards it can still be used or closed."""

    __slots__ = ("_pid", "_socket")

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self._pid = pid
        self._socket = sock

    @classmethod
    def start(cls) -> Worker:
        """Fork the worker.  OSError as fork(2) and socketpair(2)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run(theirs, ours, parent)
        theirs.close()
        return cls(pid, ours)

    def fileno(self) -> int:
        """Descriptor of the channel, for a program that closes all others."""
        return self._socket.fileno()

    def template(
        self,
        interface: str | None = None,
        outbound4: str | None = None,
        outbound6: str | None = None,
        **given: bool,
    ) -> TemplateInfo:
        """As `begin_template`, and wait."""
        return self.begin_template(interface, outbound4, outbound6, **given)()

    def begin_template(
        self,
        interface: str | None = None,
        outbound4: str | None = None,
        outbound6: str | None = None,
        *,
        ipv4: bool = True,
        ipv6: bool = True,
        has_address4: bool = False,
        has_address6: bool = False,
        has_link_local: bool = False,
    ) -> Callable[[], TemplateInfo]:
        """Begin to look for the templates for the wanted IP versions on the host.

        `interface`: named for both versions (-i); `outbound4`, `outbound6`: per version.
        `has_address…`: the user gave an address, the host need not; `has_link_local`: the user
        gave a link-local IPv6 gateway.  WorkerError, of the function returned: `Invalid
        interface name …`, `External interface not usable`.
        """
        wishes = []
        if ipv4:
            wishes.append((_IPV4, interface, outbound4, has_address4, False))
        if ipv6:
            wishes.append((_IPV6, interface, outbound6, has_address6, has_link_local))
        self._send("template", *wishes)

        def wait() -> TemplateInfo:
            (found, notes), _ = self._receive()
            templates = [None if each is None else FamilyTemplate(*each) for each in found]
            first = templates.pop(0) if ipv4 else None
            return TemplateInfo(first, templates.pop(0) if ipv6 else None, notes)

        return wait

    def enter(self, user_fd: int | None, net_fd: int, tap: str | None) -> Tap | None:
        """Have the worker join the namespaces behind these descriptors and make the tap there.

        `user_fd` None: the network namespace is joined from the present user namespace.
        `tap`: the interface's name; None makes none.  WorkerError: `Couldn't switch to pasta
        namespaces: …`, `Failed to set up tap device in namespace: …`.
        """
        self._send_enter(user_fd, net_fd, tap)
        return self._receive_tap()

    def loopback_up(self) -> None:
        """Bring up lo in the namespace."""
        self._call("loopback_up")

    def set_mac(self, mac: bytes) -> bytes:
        """Set the tap's MAC address (six bytes), return the one it has then.

        WorkerError: `Couldn't set MAC address in namespace: …`.
        """
        now, _ = self._call("set_mac", mac)
        return bytes(now)

    def configure(
        self, mtu: int, ipv4: FamilyPlan | None, ipv6: FamilyPlan | None, *, record: bool = False
    ) -> Configured:
        """Set the MTU in bytes (0: leave it), bring the tap up, set addresses and routes.

        A plan of None leaves that IP version alone.  A version that the namespace's kernel
        refuses altogether is reported as not in force.  WorkerError: `Couldn't set IPv4
        address(es) in namespace: …`, `Couldn't set IPv4 route(s) in guest: …`, or IPv6.
        """
        self._send_configure(mtu, ipv4, ipv6, record)
        return self._receive_configured()

    def begin_network(
        self,
        user_fd: int | None,
        net_fd: int,
        tap: str | None,
        mac: bytes | None,
        plans: tuple[int, FamilyPlan | None, FamilyPlan | None] | None,
        *,
        record: bool = False,
    ) -> Callable[[], tuple[Tap | None, Configured | None]]:
        """Begin `enter`, `loopback_up`, `set_mac` unless `mac` is None, `configure` unless so.

        `plans`, `record`: arguments of `configure`.  WorkerError, of the function returned, as
        those.
        """
        self._send_enter(user_fd, net_fd, tap)
        self._send("loopback_up")
        if mac is not None:
            self._send("set_mac", mac)
        if plans is not None:
            self._send_configure(*plans, record)

        def wait() -> tuple[Tap | None, Configured | None]:
            made = self._receive_tap()
            self._receive()
            if mac is not None and made is not None:
                made.mac = bytes(self._receive()[0])
            return made, None if plans is None else self._receive_configured()

        return wait

    def _send_enter(self, user_fd: int | None, net_fd: int, tap: str | None) -> None:
        fds = [net_fd] if user_fd is None else [user_fd, net_fd]
        self._send("enter", user_fd is not None, tap, fds=fds)

    def _receive_tap(self) -> Tap | None:
        made, returned = self._receive()
        return None if made is None else Tap(returned[0], *made)

    def _send_configure(
        self, mtu: int, ipv4: FamilyPlan | None, ipv6: FamilyPlan | None, record: bool
    ) -> None:
        plans = [
            (
                family,
                plan.local,
                plan.copy_addresses,
                plan.copy_routes,
                plan.address,
                plan.prefix_len,
                plan.gateway,
                plan.more,
            )
            for family, plan in ((_IPV4, ipv4), (_IPV6, ipv6))
            if plan is not None
        ]
        self._send("configure", mtu, record, *plans)

    def _receive_configured(self) -> Configured:
        (families, link_local, notes), fds = self._receive()
        return Configured(_IPV4 in families, _IPV6 in families, link_local, notes, *fds)

    def sockets(self, specs: Sequence[SocketSpec]) -> list[socket.socket | OSError]:
        """Make sockets in the namespace entered: one for each specification, or its error.

        When there are no descriptors left for a batch, that is the error of all that remain.
        """
        made: list[socket.socket | OSError] = []
        for start in range(0, len(specs), SOCKET_BATCH):
            batch = [spec.plain() for spec in specs[start : start + SOCKET_BATCH]]
            try:
                errors, fds = self._call("sockets", *batch)
            except WorkerError as failure:
                if failure.errno != errno.EMFILE:
                    raise
                exhausted = OSError(failure.errno, os.strerror(failure.errno))
                made += [exhausted] * (len(specs) - start)
                break
            descriptors = iter(fds)
            for error in errors:
                if error:
                    made.append(OSError(error, os.strerror(error)))
                else:
                    made.append(socket.socket(fileno=next(descriptors)))
        return made

    def port_lists(self) -> list[int | None]:
        """Open /proc/net/tcp, tcp6, udp and udp6 of the namespace entered, in this order.

        Descriptors to be read from offset 0, as often as needed; None for a missing file.
        """
        present, fds = self._call("port_lists")
        descriptors = iter(fds)
        return [next(descriptors) if there else None for there in present]

    def hang_up(self) -> None:
        """Have the worker end, which takes it a moment; calling it again does nothing."""
        if self._socket.fileno() >= 0:
            # Closing alone would not do: children forked since may hold copies.
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def close(self) -> None:
        """Hang up and wait until the worker is gone; calling it again does nothing."""
        pid, self._pid = self._pid, 0
        if pid:
            self.hang_up()
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # reaped by a SIGCHLD handler

    def _call(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        self._send(name, *arguments)
        return self._receive()

    def _send(self, name: str, *arguments: Any, fds: Sequence[int] = ()) -> None:
        try:
            channel.send(self._socket, (name, arguments), fds)
        except channel.ChannelClosedError:
            pass  # it may have left word before it went

    def _receive(self) -> tuple[Any, Any]:
        """The answer to the first call that has none yet: value and descriptors."""
        try:
            (success, value), returned = channel.receive(self._socket)
        except channel.ChannelClosedError:
            raise WorkerError("Network configuration process died", 0) from None
        except OSError as error:
            text = f"Network configuration: {error.strerror}"
            raise WorkerError(text, error.errno or 0) from None
        if not success:
            raise WorkerError(*value)
        return value, returned


def _run(sock: socket.socket, parents_end: socket.socket, parent: int) -> None:
    """Be the worker; never returns."""
    status = 1
    try:
        parents_end.close()
        try:
            from passt.kernel.netlink.service import serve

            serve(sock, parent)
            status = 0
        except Exception as e:
            text = f"Couldn't start network configuration: {type(e).__name__}: {e}"
            channel.send(sock, (False, (text, 0)))
    finally:
        # No exit handlers, no flushing of buffers that are the program's.
        os._exit(status)
