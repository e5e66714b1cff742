"""A thread that lives in the target namespace and makes sockets there.

Theory of operation
-------------------
setns(2) into a network namespace concerns one thread, descriptors belong to the process.
The thread enters the namespace when it starts, gives up the capabilities that this took, and
serves requests for the rest of the process's life: a request is a list of specifications,
its result a list of sockets, which the main thread then uses like any other.  Connecting,
sending and everything else on a socket works from any namespace.

:meth:`NsThread.request` returns at once; when the sockets are there, an eventfd that the
main loop watches becomes readable, and :meth:`NsThread.on_event` calls back, in the main
thread.  :meth:`NsThread.call` waits: that costs two thread switches, some 50 µs, and is for
start-up and for pools that ran empty.  Requests are served in their order.

The thread must be started after the last fork, since a child would not have it, and after
the user namespace was entered, since that takes a process with one thread.  Requests may be
made before, and wait.  The thread blocks all signals, so that they interrupt the main thread's
sleep.

The modules :mod:`threading` and :mod:`queue` would add nothing here but start-up time.

Sources: setns(2), network_namespaces(7), capabilities(7), eventfd(2), signal(7).
"""

from __future__ import annotations

import _thread
import errno
import os

from passt.kernel import capabilities
from passt.kernel.queues import SimpleQueue, deque
from passt.kernel.sockets import open_sockets
from passt.syscalls import bare_signal as signal
from passt.syscalls.ns import CLONE_NEWNET, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from passt.kernel.sockets import SocketSpec
    from passt.syscalls import bare_socket as socket

    Made = list[socket.socket | OSError]
    Done = Callable[[Made], object]


class _Request:
    """A list of specifications, the sockets made from it, and who wants to know."""

    __slots__ = ("done", "made", "specs", "waiter")

    def __init__(
        self, specs: Sequence[SocketSpec], done: Done | None, waiter: _thread.LockType | None
    ) -> None:
        self.specs = [spec.plain() for spec in specs]
        self.done = done
        #: Locked until the request is served.
        self.waiter = waiter
        self.made: Made = []


class NsThread:
    """Handle of the thread: requests go in, sockets come out."""

    __slots__ = ("_error", "_eventfd", "_requests", "_served")

    def __init__(self) -> None:
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._served: deque[_Request] = deque()
        self._error: OSError | None = None
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self, netns: int, keep: int = 0) -> None:
        """Start the thread in the network namespace behind descriptor ``netns``.

        The calling thread needs CAP_SYS_ADMIN in its own user namespace and in the one that
        owns the network namespace.  ``keep`` is the mask of capabilities that the thread
        retains, for low ports; the caller's own are its own affair.  ``netns`` may be closed
        afterwards.  OSError: the namespace cannot be entered, or no thread be made.
        """
        started = _thread.allocate_lock()
        started.acquire()
        try:
            _thread.start_new_thread(self._run, (netns, keep, started))
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        started.acquire()
        if self._error is not None:
            raise self._error

    def fileno(self) -> int:
        """Descriptor that is readable when :meth:`on_event` is to be called."""
        return self._eventfd

    def request(self, specs: Sequence[SocketSpec], done: Done) -> None:
        """Have sockets made; ``done(result)`` is called by :meth:`on_event` some time later.

        The result has a socket or the OSError for each specification, in their order.
        """
        self._requests.put(_Request(specs, done, None))

    def call(self, specs: Sequence[SocketSpec]) -> Made:
        """Have sockets made and wait for them; result as for :meth:`request`.

        The thread must have been started.
        """
        waiter = _thread.allocate_lock()
        waiter.acquire()
        request = _Request(specs, None, waiter)
        self._requests.put(request)
        waiter.acquire()
        return request.made

    def on_event(self, _events: int = 0) -> None:
        """Deliver what has been made since the last time."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass
        served = self._served
        while served:
            request = served.popleft()
            assert request.done is not None
            request.done(request.made)

    def close(self) -> None:
        """End the thread, which was started, after what was asked before; drop the results."""
        waiter = _thread.allocate_lock()
        waiter.acquire()
        self._requests.put(_Request((), None, waiter))
        self._requests.put(None)
        waiter.acquire()
        for request in self._served:
            for sock in request.made:
                if not isinstance(sock, OSError):
                    sock.close()
        self._served.clear()
        os.close(self._eventfd)

    # In the thread.

    def _run(self, netns: int, keep: int, started: _thread.LockType) -> None:
        """Enter the namespace, then serve until told to end."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            setns(netns, CLONE_NEWNET)
            capabilities.keep(keep)
        except OSError as error:
            self._error = error
            return
        finally:
            started.release()
        while (request := self._requests.get()) is not None:
            self._serve(request)

    def _serve(self, request: _Request) -> None:
        """Make the sockets of ``request`` and hand them over."""
        try:
            request.made = open_sockets(request.specs)
        except Exception as error:  # a specification that makes no sense must not end us
            fault = OSError(errno.EINVAL, f"{type(error).__name__}: {error}")
            request.made = [fault] * len(request.specs)
        if request.waiter is not None:
            request.waiter.release()
        else:
            self._served.append(request)
            os.eventfd_write(self._eventfd, 1)
