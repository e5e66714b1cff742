"""The lists of sockets in /proc/net: the kernel's files line by line, and anything else.

Where every line of the input is what the kernel writes, and listening sockets come first, the
ports must be those found line by line.  Where they are not there must be no exception, and
still a set of ports.

Input: a byte that chooses the kind of list, then the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from random import Random

from passt.userspace.forward.portset import ports_in
from passt.userspace.forward.proclist import PortList
from tests.fuzz.journal import Journal
from tests.fuzz.mutate import havoc

MAX_LEN = 20000
DICTIONARY = (b" 0A ", b" 07 ", b" 01 ", b":0000", b":1F90", b"00000000", b"0100007F", b"\n")

_TITLE = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def one(data: bytes) -> None:
    """Read the list twice, as it is and cut off."""
    first = data[0] if data else 0
    tcp, v6 = bool(first & 1), bool(first & 2)
    text = data[1:]
    fd = os.memfd_create("list")
    ports = PortList(fd, tcp=tcp, v6=v6)
    try:
        with Journal():
            os.write(fd, text)
            found = ports.ports()
            assert 0 <= found < 1 << 65536
            expected = reference(text, tcp=tcp, v6=v6)
            if expected is not None:
                assert set(ports_in(found)) == expected
            assert ports.ports() == found, "another answer to the same"
            os.ftruncate(fd, len(text) // 2)
            assert 0 <= ports.ports() < 1 << 65536
    finally:
        ports.close()


def reference(text: bytes, *, tcp: bool, v6: bool) -> set[int] | None:
    """The ports of a file that the kernel could have written; ``None`` for any other."""
    lines = text.split(b"\n")
    if len(lines) < 2 or lines[-1] or not re.fullmatch(rb"  sl  local_address[a-z_> -]*", lines[0]):
        return None
    digits = 32 if v6 else 8
    pattern = re.compile(
        rb" *\d+: [0-9A-F]{%d}:([0-9A-F]{4}) [0-9A-F]{%d}:([0-9A-F]{4}) ([0-9A-F]{2}) "
        rb"[0-9A-F]{8}:[0-9A-F]{8} [ -~]*" % (digits, digits)
    )
    wanted = b"0A" if tcp else b"07"
    found, others = set(), False
    for line in lines[1:-1]:
        match = pattern.fullmatch(line)
        if match is None or (match[3] == wanted and match[2] != b"0000"):
            return None
        if line.count(b":0000 " + wanted + b" ") > (match[3] == wanted):
            return None
        if match[3] == wanted:
            if others and tcp:
                return None
            found.add(int(match[1], 16))
        else:
            others = True
    return found


def line(number: int, port: int, state: str, *, v6: bool) -> bytes:
    """One socket, as the kernel writes it."""
    local, remote = ("0" * 32, "0" * 32) if v6 else ("0100007F", "00000000")
    peer = "0000" if state in ("0A", "07") else "9C40"
    return (
        f"{number:4}: {local}:{port:04X} {remote}:{peer} {state} 00000000:00000000 00:00000000 "
        f"00000000  1000        0 {20000 + number} 1 0000000000000000 100 0 0 10 0\n"
    ).encode()


def seeds() -> Iterator[tuple[str, bytes]]:
    """Lists of each kind."""
    for kind, name in enumerate(("udp", "tcp", "udp6", "tcp6")):
        v6, state = bool(kind & 2), "0A" if kind & 1 else "07"
        some = [line(i, port, state, v6=v6) for i, port in enumerate((1, 22, 8080, 65535))]
        some += [line(9, 40000, "01", v6=v6)]
        yield name, bytes((kind,)) + _TITLE + b"".join(some)
    yield "empty", b"\1" + _TITLE
    yield "nothing", b"\1"
    yield "order", b"\0" + _TITLE + line(0, 5, "01", v6=False) + line(1, 6, "07", v6=False)
    yield "cut", b"\1" + _TITLE + line(0, 5, "0A", v6=False)[:40]
    odd = line(1, 6, "0A", v6=False).replace(b"0100007F:0006", b"0100007F:00g6")
    yield "digits", b"\1" + _TITLE + line(0, 5, "0A", v6=False) + odd


def mutate(data: bytes, rnd: Random) -> bytes:
    """More lines, in other states, or other bytes."""
    if rnd.random() < 0.4:
        return havoc(data, rnd, limit=MAX_LEN, dictionary=DICTIONARY)
    first = data[0] if data else 0
    lines = data[1:].split(b"\n")
    for _ in range(rnd.choice((1, 2, 30, 300))):
        state = rnd.choice(("0A", "07", "01", "06"))
        added = line(len(lines), rnd.randrange(65536), state, v6=bool(first & 2))
        lines.insert(rnd.randint(0, len(lines)), added[:-1])
    return bytes((first,)) + b"\n".join(lines)
