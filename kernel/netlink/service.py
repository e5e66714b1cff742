"""The netlink worker's own side: serving calls until the program hangs up.

Theory of operation
-------------------
The worker starts in the namespaces and with the privileges the program was started with.  What
composes messages is loaded while no call is waiting: the template needs none of it.  Calls come
one at a time, each answered by a result or by one line of text with an errno.  Between calls it
keeps what the host's dumps gave (`template`), so that the namespace is filled from the same
snapshot the template was chosen from, and, after `enter`, a netlink socket and the tap's index
in the target namespace.

It ends when the socket closes, or by signal when the program dies.  Joining a user namespace
changes credentials, and the kernel then forgets the signal, so it is asked for again.

Source: prctl(2) PR_SET_PDEATHSIG, setns(2).
"""

from __future__ import annotations

import gc
import marshal
import os
import select
from errno import EINVAL

from passt.kernel.netlink import channel, messages, namespace, sockets
from passt.kernel.netlink.attributes import FormError
from passt.kernel.netlink.records import read_link
from passt.kernel.netlink.route_socket import RouteSocket
from passt.kernel.netlink.tap import open_tap
from passt.kernel.netlink.template import Wish, survey
from passt.syscalls import bare_signal as signal
from passt.syscalls import bare_socket as socket
from passt.syscalls import ns
from passt.syscalls.prctl import set_pdeathsig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from passt.kernel.netlink.template import Note, Source
    from passt.kernel.sockets import PlainSpec

_RESET_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGHUP)
_LOADED = object()


def serve(sock: socket.socket, parent: int) -> None:
    """Answer calls on `sock` until it closes; `parent` is the program's process id."""
    for number in _RESET_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        return
    _close_inherited(sock.fileno())
    gc.disable()  # lists of routes would be searched over and over, and we do not live long
    calls = _Calls()
    loading = messages.load_in_steps()
    while True:
        while not select.select((sock,), (), (), 0)[0] and next(loading, _LOADED) is not _LOADED:
            pass
        try:
            (name, arguments), calls.received = channel.receive(sock)
        except channel.ChannelClosedError:
            return
        calls.returned = []
        answer: tuple[bool, Any]
        try:
            answer = True, getattr(calls, name)(*arguments)
        except OSError as e:
            answer = False, (e.strerror or str(e), e.errno or 0)
        except Exception as e:
            answer = False, (f"Network configuration failed: {type(e).__name__}: {e}", 0)
        try:
            channel.send(sock, answer, calls.returned)
        except channel.ChannelClosedError:
            return
        for fd in (*calls.received, *calls.returned):
            os.close(fd)


def _close_inherited(keep: int) -> None:
    """Let go of the program's descriptors: its peers must see them closed when it closes them."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the directory


class _Calls:
    """What can be called, by name; arguments and results are plain values, as `worker` sends.

    `received` holds the descriptors that came with the call, `returned` those to send back;
    both are closed here afterwards.
    """

    __slots__ = ("_index", "_netlink", "_sources", "received", "returned")

    def __init__(self) -> None:
        self.received: list[int] = []
        self.returned: list[int] = []
        self._sources: dict[int, Source] = {}
        self._netlink: RouteSocket | None = None
        self._index = 0

    def template(self, *wishes: tuple[Any, ...]) -> tuple[list[Any], list[Note]]:
        """One template or None per wish, and notes."""
        netlink = RouteSocket()
        found: list[Any] = []
        notes: list[Note] = []
        try:
            for arguments in wishes:
                wish = Wish(*arguments)
                source, told = survey(netlink, wish)
                notes += told
                if source is not None:
                    self._sources[wish.family] = source
                found.append(source and source.summary())
        finally:
            netlink.close()
        return found, notes

    def enter(self, join_user: bool, tap: str | None) -> tuple[Any, ...] | None:
        """Join the namespaces (user first, network last of `received`) and make the tap."""
        try:
            if join_user and not _is_own_user_namespace(self.received[0]):
                ns.setns(self.received[0], ns.CLONE_NEWUSER)
            ns.setns(self.received[-1], ns.CLONE_NEWNET)
        except OSError as e:
            reason = os.strerror(e.errno or 0)
            raise OSError(e.errno, f"Couldn't switch to pasta namespaces: {reason}") from None
        set_pdeathsig(signal.SIGKILL)
        self._netlink = RouteSocket()
        if tap is None:
            return None
        fd, name, offloads, vnet_header = open_tap(tap)
        self.returned.append(fd)
        self._index = socket.if_nametoindex(name)
        return name, self._index, self._mac(), offloads, vnet_header

    def loopback_up(self) -> None:
        namespace.loopback_up(self._inside())

    def set_mac(self, mac: bytes) -> bytes:
        """The tap's address as the kernel has it afterwards."""
        namespace.set_mac(self._inside(), self._index, mac)
        return self._mac()

    def configure(
        self, mtu: int, record: bool, *plans: tuple[Any, ...]
    ) -> tuple[list[int], bytes | None, list[Note]]:
        """Families in force, link-local address, notes.

        With `record` a file comes along that tells what was made: family, bodies of addresses,
        of routes, and of routes that were there, for each plan.  There may be more of them than a
        message holds.
        """
        netlink = self._inside()
        complete = []
        for family, local, *rest in plans:
            source = None if local else self._sources.get(family)
            complete.append(namespace.Plan(family, local, source, *rest))
        result = namespace.configure(netlink, self._index, mtu, complete)
        if record:
            made = [
                (plan.family, plan.made_addresses, plan.made_routes, plan.found_routes)
                for plan in complete
            ]
            fd = os.memfd_create("made")
            self.returned.append(fd)
            with open(fd, "wb", closefd=False) as file:
                marshal.dump(made, file)
        return result

    def sockets(self, *specs: PlainSpec) -> list[int]:
        """Make sockets in the namespace; errno or 0 for each."""
        self._inside()
        errors, fds = sockets.make(specs)
        self.returned += fds
        return errors

    def port_lists(self) -> list[bool]:
        """Open the namespace's lists of ports; which there are."""
        self._inside()
        present, fds = sockets.open_port_lists()
        self.returned += fds
        return present

    def _inside(self) -> RouteSocket:
        if self._netlink is None:
            raise OSError(EINVAL, "No namespace entered yet")
        return self._netlink

    def _mac(self) -> bytes:
        try:
            return read_link(self._inside(), self._index).mac
        except (OSError, FormError) as e:
            reason = (isinstance(e, OSError) and e.strerror) or e
            raise OSError(EINVAL, f"Couldn't get MAC address in namespace: {reason}") from None


def _is_own_user_namespace(fd: int) -> bool:
    """Joining the namespace one is in already is refused by the kernel."""
    try:
        own, other = os.stat("/proc/self/ns/user"), os.fstat(fd)
    except OSError:
        return False
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)
