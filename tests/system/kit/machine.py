"""A passt under test, and a namespace that stands for the virtual machine it serves.

::

    passt (host) ── UNIX socket ── shuttle.py ── tap "eth0" in a namespace of its own

The namespace has the addresses that passt assigns, unless the test has it ask for them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from .netns import Netns, wait_for
from .pasta import Program
from .topology import GATEWAY, HOST, Topology
from .users import User


def passt_command(program: Program) -> list[str]:
    """Return the words that start passt: the same program as *program*, by its other name."""
    *interpreter, script = program.argv
    link = os.path.join(os.path.dirname(script), "passt")
    if not os.path.lexists(link):
        os.symlink(script, link)
    return [*interpreter, link]


class Passt:
    """A passt in *host*, in the foreground, that waits at the socket :attr:`path`."""

    def __init__(
        self, program: Program, host: Netns, user: User, folder: str, *options: str
    ) -> None:
        self.host = host
        self.path = os.path.join(folder, "guest.socket")
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        words = [*passt_command(program), "-f", "-s", self.path, *options]
        self.process = host.popen(words, prefix=user.prefix, stderr=self._messages, cwd="/")
        wait_for(self._waits, what="passt to wait for its guest")

    def _waits(self) -> bool:
        assert self.process.poll() is None, self.messages()
        # By the kernel's list, as connecting would be the arrival of a guest.
        rows = self.host.table("unix")
        return any(row[-1] == self.path and row[3] == "00010000" for row in rows)

    def connect(self) -> socket.socket:
        """Return a connection to the guest's socket, which may have to wait for its turn."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.host.processes.sockets.add(sock)
        sock.connect(self.path)
        sock.settimeout(10.0)
        return sock

    def messages(self) -> str:
        """Return what the program has written to standard error so far."""
        self._messages.seek(0)
        return self._messages.read()

    def said(self, text: str) -> None:
        """Wait until the program has said *text*."""
        wait_for(lambda: text in self.messages(), what=text)

    def close(self) -> None:
        """End it. AssertionError if it had ended before, or reported a fault."""
        ended = self.process.poll()
        status = self.host.processes.stop(self.process)
        messages = self.messages()
        self._messages.close()
        assert ended is None, f"passt ended early, status {ended}\n{messages}"
        assert "Traceback" not in messages, messages
        assert status == 0, f"passt ended with status {status}\n{messages}"


class Machine:
    """What stands for a virtual machine of *passt*; commands run in :attr:`ns`."""

    def __init__(self, topology: Topology, passt: Passt, *, configure: bool = True) -> None:
        self.ns = topology.namespace("machine")
        self._passt = passt
        self.shuttle: subprocess.Popen[str]
        self.plug_in()
        if configure:
            self.configure()

    def plug_in(self) -> None:
        """Connect to passt."""
        program = os.path.join(os.path.dirname(__file__), "shuttle.py")
        self.shuttle = self.ns.popen(
            [sys.executable, "-S", program, "eth0", self._passt.path], stdout=subprocess.PIPE
        )
        assert self.shuttle.stdout
        line = self.shuttle.stdout.readline()
        assert line == "ready\n", line

    def unplug(self) -> None:
        """Disconnect, without a word; the interface is gone."""
        self.ns.processes.stop(self.shuttle)

    def configure(self, versions: Sequence[int] = (4, 6)) -> None:
        """Give the machine the addresses of the host, as passt assigns them."""
        for version in versions:
            length, nodad = (24, "") if version == 4 else (64, "nodad")
            self.ns.ip(
                f"addr add {HOST[version]}/{length} dev eth0 {nodad}\n"
                f"route add default via {GATEWAY[version]}\n"
            )
