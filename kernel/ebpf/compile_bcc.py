"""Compile a program with bcc: run as a program itself, by any interpreter that has it.

``python3 compile_bcc.py SOURCE FUNCTION MAP...`` writes the instructions of one function to
standard output.  Where they refer to a map, the number is its position among the MAPs, instead of
the descriptor that bcc has put there.  This takes root, as bcc makes the maps, and the kernel's
headers.

It is a process of its own, as bcc brings a compiler along: 130 MB, half a second.  It imports
nothing of this package, which that interpreter need not have.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile

#: BPF_LD | BPF_DW | BPF_IMM with this in the source register loads a map (linux/bpf.h).
LOAD_WIDE = 0x18
PSEUDO_MAP_FD = 1


def number_maps(code: bytes, positions: dict[int, int]) -> bytes:
    """Replace descriptors of maps by ``positions``; KeyError for one that is not there."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        wide = out[at] == LOAD_WIDE
        if wide and out[at + 1] >> 4 == PSEUDO_MAP_FD:
            (fd,) = struct.unpack_from("<i", out, at + 4)
            struct.pack_into("<i", out, at + 4, positions[fd])
        at += 16 if wide else 8
    return bytes(out)


def headers(folder: str) -> None:
    """Put together in ``folder`` the newest of the installed kernel headers.

    Debian has them in two packages, one for all flavours and one for each; bcc looks in one
    place.
    """
    base = "/usr/src"
    flavours = [name for name in os.listdir(base) if os.path.exists(f"{base}/{name}/.config")]
    if not flavours:
        sys.exit("no kernel headers")
    flavour = max(flavours)
    common = flavour.rpartition("-")[0] + "-common"
    for tree in (common, flavour):
        for part in ("include", "arch"):
            if os.path.isdir(f"{base}/{tree}/{part}"):
                shutil.copytree(
                    f"{base}/{tree}/{part}",
                    f"{folder}/{part}",
                    copy_function=os.symlink,
                    dirs_exist_ok=True,
                )


def main() -> None:
    """Find headers, and compile."""
    source, function, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        if not os.path.isdir(f"/lib/modules/{os.uname().release}/build"):
            # Those of any kernel will do: only the interface to user space is used.
            headers(folder)
            os.environ["BCC_KERNEL_SOURCE"] = folder
        compile_program(source, function, names)


def compile_program(source: str, function: str, names: list[str]) -> None:
    """Compile ``function`` of the file ``source``, and write the result."""
    from bcc import BPF, lib

    with open(source) as file:
        module = BPF(text=file.read())
    positions = {
        lib.bpf_table_fd(module.module, name.encode()): number for number, name in enumerate(names)
    }
    code = module.dump_func(function)
    sys.stdout.buffer.write(number_maps(code, positions))


if __name__ == "__main__":
    main()
