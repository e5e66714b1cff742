"""Values and descriptors between program and worker; what happens when one is gone."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from passt.kernel.netlink import channel
from passt.kernel.netlink.worker import Worker, WorkerError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        yield a, b


def test_values_arrive_as_they_were(pair: Pair) -> None:
    value = ("name", (1, -5, 1 << 40, None, True, b"\0\xff", "ü", [("a", b"b"), []]))
    channel.send(pair[0], value)
    channel.send(pair[0], 2)
    assert channel.receive(pair[1]) == (value, [])
    assert channel.receive(pair[1]) == (2, [])


def test_descriptors_arrive_in_order_and_close_on_exec(pair: Pair) -> None:
    r, w = os.pipe()
    channel.send(pair[0], "fds", [w, r])
    value, (w2, r2) = channel.receive(pair[1])
    assert value == "fds"
    assert not os.get_inheritable(w2) and not os.get_inheritable(r2)
    os.write(w2, b"through")
    assert os.read(r2, 10) == b"through"
    for fd in (r, w, r2, w2):
        os.close(fd)


def test_pending_message_is_read_before_the_end(pair: Pair) -> None:
    channel.send(pair[0], "last words")
    pair[0].close()
    assert channel.receive(pair[1])[0] == "last words"
    with pytest.raises(channel.ChannelClosedError):
        channel.receive(pair[1])
    with pytest.raises(channel.ChannelClosedError):
        channel.send(pair[1], 1)


def test_messages_are_bounded(pair: Pair) -> None:
    with pytest.raises(ValueError, match="message of"):
        channel.send(pair[0], bytes(40000))
    with pytest.raises(ValueError, match="descriptors"):
        channel.send(pair[0], 1, [0] * 101)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process have only *count* more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_room_for_descriptors(pair: Pair) -> None:
    """The kernel delivers what fits: none is kept, and it is not taken for the end."""
    before = len(os.listdir("/proc/self/fd"))
    channel.send(pair[0], "fds", [0, 1, 2])
    channel.send(pair[0], "next")
    with descriptors_left(2), pytest.raises(OSError) as caught:
        channel.receive(pair[1])
    assert caught.value.errno == errno.EMFILE
    assert len(os.listdir("/proc/self/fd")) == before
    assert channel.receive(pair[1]) == ("next", [])


def test_dead_worker_is_an_error_not_a_hang() -> None:
    worker = Worker.start()
    os.kill(worker._pid, 9)
    os.waitpid(worker._pid, 0)
    with pytest.raises(WorkerError, match="Network configuration process died"):
        worker.template()
    worker.close()
    worker.close()


def test_worker_ends_though_a_child_keeps_a_copy_of_the_channel() -> None:
    worker = Worker.start()
    copy = os.dup(worker.fileno())
    pid = worker._pid
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    os.close(copy)


def test_calls_before_entering_are_refused() -> None:
    worker = Worker.start()
    try:
        with pytest.raises(WorkerError, match="No namespace entered yet") as caught:
            worker.loopback_up()
        assert caught.value.errno
    finally:
        worker.close()


def test_missing_codec_is_one_line() -> None:
    program = (
        "import sys\n"
        "sys.modules['typing'] = None\n"
        "from passt.kernel.netlink.worker import Worker, WorkerError\n"
        "worker = Worker.start()\n"
        "try:\n"
        "    worker.loopback_up()\n"
        "    worker.loopback_up()\n"
        "except WorkerError as e:\n"
        "    print(e)\n"
        "worker.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_the_program_itself_stays_light() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from passt.kernel.netlink.worker import Worker\n"
        "worker = Worker.start()\n"
        "try:\n"
        "    worker.template()\n"
        "finally:\n"
        "    worker.close()\n"
        "heavy = {'pyroute2', 'logging', 'typing', 'argparse', 'dataclasses', 'ipaddress'}\n"
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] in heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
