"""Programs as the kernel takes them: shipped, or compiled here and now.

``verdict.bpf`` and its like, made by ``make bytecode``, are the SHA-256 of the source that they
were compiled from, and the instructions.  They fit every kernel, as the programs look at no
structure of the kernel's own; so there is a compiler only where somebody has changed the source,
or asks for it.

The compiler is a child process (:mod:`.compile_bcc`): what it takes must not stay with us.
"""

from __future__ import annotations

import os
import struct
import sys

from passt.kernel.ebpf import layout, lookup_layout
from passt.syscalls.bpf import PSEUDO_MAP_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_COMPILER = os.path.join(_FOLDER, "compile_bcc.py")
_DIGEST = 32
_TIMEOUT = 60.0
#: BPF_LD | BPF_DW | BPF_IMM, an instruction of twice the size.
_LOAD_WIDE = 0x18


class BytecodeError(Exception):
    """There is no bytecode to be had; the text is a short reason."""


class Code:
    """A program: the ``function`` of a ``source``, which uses ``maps``."""

    __slots__ = ("function", "maps", "shipped", "source")

    def __init__(self, source: str, function: str, maps: Sequence[str]) -> None:
        """``source`` is the name of a file here; the shipped one has the function's name."""
        self.source = os.path.join(_FOLDER, source)
        self.function = function
        self.shipped = os.path.join(_FOLDER, f"{function}.bpf")
        #: Names, in the order in which the instructions number them.
        self.maps = tuple(maps)


VERDICT = Code("verdict.bpf.c", "verdict", layout.NAMES)
LOOKUP = Code("lookup.bpf.c", "lookup", lookup_layout.NAMES)
LISTENING = Code("lookup.bpf.c", "listening", lookup_layout.NAMES)
ALL = (VERDICT, LOOKUP, LISTENING)


def shipped(code: Code = VERDICT) -> bytes:
    """The instructions that came with the package; BytecodeError if the source is another."""
    try:
        with open(code.shipped, "rb") as file:
            content = file.read()
        current = digest(code)
    except OSError as error:
        raise BytecodeError(f"bytecode: {error.strerror}") from None
    if content[:_DIGEST] != current:
        raise BytecodeError("bytecode is older than its source")
    return content[_DIGEST:]


def digest(code: Code = VERDICT) -> bytes:
    """What identifies the source."""
    with open(code.source, "rb") as file:
        return _sha256(file.read())


def _sha256(data: bytes) -> bytes:
    """SHA-256 by the interpreter itself: ``hashlib`` brings OpenSSL along, which takes 3 ms."""
    for name in ("_sha2", "_sha256"):
        # The latter until Python 3.11.
        try:
            return bytes(__import__(name).sha256(data).digest())
        except ImportError:
            continue
    import hashlib

    return hashlib.sha256(data).digest()


def compiled(code: Code = VERDICT) -> bytes:
    """The instructions as bcc makes them from the source; BytecodeError.

    Tries this interpreter, and that of the system, whose packages may be others.
    """
    import subprocess

    why = "no compiler"
    for interpreter in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        if not os.access(interpreter, os.X_OK):
            continue
        words = [interpreter, _COMPILER, code.source, code.function, *code.maps]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout
        if b"No module named 'bcc'" not in done.stderr:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            why = f"compiler failed: {lines[-1] if lines else done.returncode}"
    raise BytecodeError(why)


def bind(code: bytes, maps: Sequence[int]) -> bytes:
    """``code`` with the descriptors ``maps`` instead of positions among them."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        wide = out[at] == _LOAD_WIDE
        if wide and out[at + 1] >> 4 == PSEUDO_MAP_FD:
            (position,) = struct.unpack_from("<i", out, at + 4)
            struct.pack_into("<i", out, at + 4, maps[position])
        at += 16 if wide else 8
    return bytes(out)


def main() -> None:
    """Renew the shipped bytecode: ``make bytecode``."""
    for code in ALL:
        try:
            instructions = compiled(code)
        except BytecodeError as error:
            sys.exit(f"{error}; on Debian: apt-get install python3-bpfcc linux-headers-amd64")
        with open(code.shipped, "wb") as file:
            file.write(digest(code) + instructions)


if __name__ == "__main__":
    main()
