"""A laptop's day: what survives each change of the host's network, ours and upstream's.

``python -m perf.laptop [--peer ROOT]`` prints a table.  In the namespace there are all day long

* a *transfer*: a TCP connection to a service in the world that carries bytes in both directions,
  opened anew when it ends;
* *queries* to the resolver of the host, over UDP, by the address that ``--dns-forward`` gave the
  guest; each place has a resolver of its own, which answers to nobody elsewhere;
* *pings* to the service.

After each event the host is left alone for a few seconds (``--settle``).  Then the table says
whether the transfer that was open before still carries data (*survived*), ended with a reset, or
hangs; whether a new one can be opened; and for how many seconds queries and pings went unanswered
at most, a dash if they were not answered any more.

The networks are those of :mod:`tests.system.kit.laptop`.  Takes root.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable

from tests.system.kit.laptop import ROUTER_A, ROUTER_B, ROUTER_VPN, SERVICE, Laptop
from tests.system.kit.netns import Netns
from tests.system.kit.pasta import Pasta, Program, peer_command
from tests.system.kit.users import ordinary_user

TRANSFER_PORT, DNS_PORT = 7200, 53
FORWARD = "169.254.1.1"
_INTERVAL = 0.1

DAY: list[tuple[str, Callable[[Laptop], None]]] = [
    ("no network", Laptop.no_network),
    ("address A", Laptop.address_a),
    ("VPN takes the default route", Laptop.vpn_up),
    ("VPN goes", Laptop.vpn_down),
    ("address B instead", Laptop.address_b),
    ("IPv6 appears", Laptop.ipv6_appears),
    ("IPv6 vanishes", Laptop.ipv6_vanishes),
    ("interface renamed", Laptop.renamed),
]


class World:
    """Services that echo: TCP for everybody, UDP in place of resolvers for their own networks."""

    def __init__(self, laptop: Laptop) -> None:
        self._sockets: list[socket.socket] = []
        for version in (4, 6):
            listener = laptop.world.listen(SERVICE[version], TRANSFER_PORT)
            self._serve(self._accept, listener, "")
        for router in (ROUTER_A, ROUTER_B, ROUTER_VPN):
            resolver = laptop.world.udp(router, DNS_PORT)
            self._serve(self._answer, resolver, router.rpartition(".")[0])

    def _serve(
        self, service: Callable[[socket.socket, str], None], sock: socket.socket, place: str
    ) -> None:
        sock.settimeout(None)
        self._sockets.append(sock)
        threading.Thread(target=service, args=(sock, place), daemon=True).start()

    def _accept(self, listener: socket.socket, _place: str) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    @staticmethod
    def _echo(sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
        except OSError:
            pass
        sock.close()

    @staticmethod
    def _answer(sock: socket.socket, place: str) -> None:
        while True:
            try:
                data, peer = sock.recvfrom(2048)
                if peer[0].rpartition(".")[0] == place:
                    sock.sendto(data, peer)
            except OSError:
                return


class Transfer:
    """A connection of the guest, and what becomes of it."""

    def __init__(self, guest: Netns, version: int) -> None:
        self._guest = guest
        self._version = version
        self.sock: socket.socket | None = None

    def open(self) -> bool:
        """Open one if there is none; whether there is one now, and carries something."""
        if self.sock is None:
            try:
                self.sock = self._guest.connect(SERVICE[self._version], TRANSFER_PORT, timeout=2.0)
            except OSError:
                return False
        return self.state() == "survived"

    def state(self) -> str:
        """What became of the connection."""
        if self.sock is None:
            return "none"
        try:
            # Leftovers of an earlier, unanswered question do not count.
            self.sock.settimeout(3.0)
            token = os.urandom(8)
            self.sock.sendall(token)
            got = b""
            while not got.endswith(token):
                data = self.sock.recv(4096)
                if not data:
                    return self._gone("closed")
                got += data
        except TimeoutError:
            return self._gone("hangs")
        except OSError:
            return self._gone("reset")
        return "survived"

    def _gone(self, how: str) -> str:
        assert self.sock is not None
        self.sock.close()
        self.sock = None
        return how


class Questions:
    """Asks ten times a second by *ask*, and measures the longest time without an answer."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._answered = time.monotonic()
        self._longest = 0.0
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """An event is about to happen."""
        self._answered = time.monotonic()
        self._longest = 0.0

    def gap(self) -> float:
        """The longest time without an answer since :meth:`begin`, in seconds."""
        return max(self._longest, time.monotonic() - self._answered)

    def stop(self) -> None:
        self._ending = True
        self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            if self._ask():
                now = time.monotonic()
                self._longest = max(self._longest, now - self._answered)
                self._answered = now
            time.sleep(_INTERVAL)


def question(guest: Netns, version: int, kind: str) -> Callable[[], bool]:
    """A function that asks once, over UDP or by an echo request, and tells whether it was answered.

    Each has a socket of its own, as each query of a resolver's library has.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def query() -> bool:
        sock = guest.new_socket(family, socket.SOCK_DGRAM)
        return exchange(sock, (FORWARD, DNS_PORT), b"query")

    def ping() -> bool:
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        request = bytes((8 if version == 4 else 128, 0, 0, 0, 0, 0, 0, 1)) + b"ping"
        sock = guest.new_socket(family, socket.SOCK_DGRAM, protocol)
        return exchange(sock, (SERVICE[version], 0), request)

    return query if kind == "query" else ping


def exchange(sock: socket.socket, server: tuple[str, int], data: bytes) -> bool:
    """Send *data* to *server* by *sock*, and close it; whether there was an answer in time."""
    try:
        sock.settimeout(0.4)
        sock.connect(server)
        sock.send(data)
        return bool(select.select([sock], [], [], 0.4)[0]) and bool(sock.recv(2048))
    except OSError:
        return False
    finally:
        sock.close()


def spend(program: Program, folder: str, settle: float) -> list[list[str]]:
    """One day with *program*; a row of cells per event."""
    rows = []
    resolv_conf = os.path.join(folder, "resolv.conf")
    with open(resolv_conf, "w"):
        os.chmod(resolv_conf, 0o644)
    with Laptop(resolv_conf) as laptop:
        world = World(laptop)
        options = ("--dns-forward", FORWARD)
        user = ordinary_user()
        pasta = Pasta(program, laptop.host, user, *options, resolv_conf=resolv_conf)
        guest = pasta.ns_as_root
        guest.sysctl("net/ipv4/ping_group_range", "0 2147483647")
        transfers = {version: Transfer(guest, version) for version in (4, 6)}
        kinds = [("query", 4), ("ping", 4), ("ping", 6)]
        questions = [Questions(question(guest, version, kind)) for kind, version in kinds]
        for name, event in DAY:
            for each in questions:
                each.begin()
            event(laptop)
            time.sleep(settle)
            gaps = [each.gap() for each in questions]
            told = ["–" if gap > settle - 0.5 else f"{gap:.1f} s" for gap in gaps]
            row = [name]
            for version, answers in ((4, told[:2]), (6, told[2:])):
                row.append(transfers[version].state())
                row.append("yes" if transfers[version].open() else "no")
                row += answers
            row.append(addresses(pasta.ns))
            rows.append(row)
        for each in questions:
            each.stop()
        pasta.close()
        del world
    return rows


def addresses(ns: Netns) -> str:
    """Global addresses of the namespace."""
    show = ns.run(["ip", "-o", "addr", "show", "scope", "global"]).stdout
    return ", ".join(line.split()[3] for line in show.splitlines()) or "none"


HEADING = ["event", "TCP", "new TCP", "DNS", "ping", "TCP, IPv6", "new", "ping", "addresses inside"]


def table(rows: list[list[str]]) -> str:
    """As a page in Markdown has it."""
    lines = [HEADING, ["---"] * len(HEADING), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="root of a Debian tree with the upstream program")
    parser.add_argument("--settle", type=float, default=8.0, help="seconds after each event")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="passt-laptop-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    try:
        ours = Program.from_environment(folder, ordinary_user())
        print("Ours:\n\n" + table(spend(ours, folder, options.settle)), flush=True)
        if options.peer:
            theirs = Program(peer_command(options.peer))
            print("\nUpstream:\n\n" + table(spend(theirs, folder, options.settle)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
