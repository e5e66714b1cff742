"""The thread that makes sockets elsewhere: order, errors, its end.

Entering a namespace takes privileges, so here it stays where it is.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from passt.kernel import nsthread
from passt.kernel.nsthread import NsThread
from passt.kernel.sockets import SocketSpec
from passt.syscalls import bare_socket
from tests.unit.fakes import open_descriptors

TCP = SocketSpec(socket.AF_INET, socket.SOCK_STREAM)
Made = list[socket.socket | OSError]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the thread did first of all."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(nsthread, "setns", lambda *args: calls.append(("setns", *args)))
    monkeypatch.setattr(nsthread.capabilities, "keep", lambda mask: calls.append(("keep", mask)))
    return calls


@pytest.fixture
def thread(entered: list[tuple[object, ...]]) -> Iterator[NsThread]:
    made = NsThread()
    made.start(77, 1 << 10)
    yield made
    made.close()


def wait(thread: NsThread) -> None:
    assert select.select([thread.fileno()], [], [], 10)[0]
    thread.on_event()


def test_enters_then_gives_up_capabilities(
    thread: NsThread, entered: list[tuple[object, ...]]
) -> None:
    assert entered == [("setns", 77, nsthread.CLONE_NEWNET), ("keep", 1 << 10)]


def test_call_waits_for_the_sockets(thread: NsThread) -> None:
    listener = SocketSpec(
        socket.AF_INET,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK,
        options=((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),),
        address=("127.0.0.1", 0),
        backlog=3,
    )
    first, second = thread.call([listener, TCP])
    assert isinstance(first, bare_socket.socket)
    assert isinstance(second, bare_socket.socket)
    assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    second.connect(first.getsockname())
    for sock in (first, second):
        assert not os.get_inheritable(sock.fileno())
        sock.close()


def test_request_calls_back_in_the_main_thread(thread: NsThread) -> None:
    results: list[Made] = []
    thread.request([TCP, TCP], results.append)
    thread.request([], results.append)
    while len(results) < 2:
        wait(thread)
    assert [len(made) for made in results] == [2, 0]
    assert not select.select([thread.fileno()], [], [], 0)[0]
    for made in results[0]:
        assert isinstance(made, bare_socket.socket)
        made.close()
    # Nothing is there: nothing happens.
    thread.on_event()


def test_requests_are_served_in_order(thread: NsThread) -> None:
    order: list[int] = []
    for number in range(50):
        thread.request([], lambda _made, number=number: order.append(number))
    assert thread.call([]) == []
    wait(thread)
    assert order == list(range(50))


def test_requests_made_before_the_start_are_served(entered: list[tuple[object, ...]]) -> None:
    thread = NsThread()
    results: list[Made] = []
    thread.request([], results.append)
    assert not select.select([thread.fileno()], [], [], 0)[0]
    thread.start(0)
    wait(thread)
    assert results == [[]]
    thread.close()


def test_errors_take_the_place_of_sockets(thread: NsThread) -> None:
    elsewhere = SocketSpec(socket.AF_INET, socket.SOCK_STREAM, address=("192.0.2.1", 80))
    nowhere = SocketSpec(socket.AF_INET, socket.SOCK_STREAM, device="no-such-device")
    made = thread.call([elsewhere, nowhere, TCP])
    assert [each.errno for each in made if isinstance(each, OSError)] == [
        errno.EADDRNOTAVAIL,
        errno.ENODEV,
    ]
    assert isinstance(made[2], bare_socket.socket)
    made[2].close()


def test_thread_survives_nonsense(thread: NsThread) -> None:
    (error,) = thread.call([SocketSpec(socket.AF_INET, socket.SOCK_STREAM, address=("x", -1))])
    assert isinstance(error, OSError)
    (sock,) = thread.call([TCP])
    assert isinstance(sock, bare_socket.socket)
    sock.close()


def test_no_namespace_to_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _kind: int) -> None:
        raise PermissionError(errno.EPERM, "setns: not here")

    monkeypatch.setattr(nsthread, "setns", refuse)
    with pytest.raises(PermissionError, match="not here"):
        NsThread().start(0)


def test_signals_are_for_others(thread: NsThread) -> None:
    blocked = ""
    for task in os.listdir("/proc/self/task"):
        if int(task) != os.getpid():
            with open(f"/proc/self/task/{task}/status") as file:
                blocked += "".join(line for line in file if line.startswith("SigBlk"))
    assert any(
        int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1 for line in blocked.splitlines()
    )


def test_close_waits_for_what_was_asked(entered: list[tuple[object, ...]]) -> None:
    before = open_descriptors()
    thread = NsThread()
    thread.start(0)
    thread.request([TCP] * 5, lambda _made: None)
    thread.close()
    assert open_descriptors() == before
