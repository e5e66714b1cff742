"""Getting maps with the program attached, by whichever way this process has the privilege for.

1. *By itself*: with CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN in the initial user namespace, as
   root has them.  The maps are this instance's alone, and end with it.
2. *Prepared*: sets of maps that an administrator has pinned for this user (:mod:`.pins`).  An
   instance takes one that is free, and nobody else uses it until it ends.

Whatever the way, :mod:`.probe` has the last word.
"""

from __future__ import annotations

import errno
import os

from passt.kernel.ebpf import bytecode, pins
from passt.kernel.ebpf.bytecode import BytecodeError
from passt.kernel.ebpf.maps import MapSet, attach, make
from passt.kernel.ebpf.probe import ProbeError, probe
from passt.syscalls.bpf import VerifierError

#: The first kernel whose TCP keeps count of data that left by way of a map: before, its receive
#: window could close for good.
OLDEST = (6, 4)


class UnavailableError(Exception):
    """There is no acceleration to be had; the text says why."""


def acquire(*, compile_first: bool) -> tuple[MapSet, str]:
    """Maps that were tried, and how they came about; raises UnavailableError.

    With ``compile_first`` the program is compiled even if the one shipped is good.
    """
    release = os.uname().release
    if _version(release) < OLDEST:
        oldest = ".".join(str(number) for number in OLDEST)
        raise UnavailableError(f"kernel too old: {release}, at least {oldest} needed")
    try:
        maps, how = _make(compile_first=compile_first)
    except PermissionError:
        if compile_first:
            raise UnavailableError("no privilege to load a program") from None
        maps, how = _prepared()
    except OSError as error:
        raise UnavailableError(f"kernel refuses: {error.strerror}") from None
    try:
        probe(maps)
    except ProbeError as error:
        maps.close()
        raise UnavailableError(f"probe failed: {error}") from None
    return maps, how


def load(*, compile_first: bool) -> tuple[list[int], str]:
    """Descriptors of new maps with the program attached, and where that came from.

    Raises UnavailableError; OSError if the kernel refuses, PermissionError without privilege.
    """
    fds = make()
    try:
        return fds, _attach(fds, compile_first=compile_first)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _make(*, compile_first: bool) -> tuple[MapSet, str]:
    fds, how = load(compile_first=compile_first)
    return MapSet(fds), f"own maps, {how}"


def _attach(fds: list[int], *, compile_first: bool) -> str:
    """Attach the shipped program, or one compiled now if that one will not do."""
    reasons = []
    if not compile_first:
        try:
            attach(fds, bytecode.shipped())
            return "program as shipped"
        except (BytecodeError, VerifierError) as error:
            reasons.append(_reason(error))
    try:
        attach(fds, bytecode.compiled())
    except (BytecodeError, VerifierError) as error:
        reasons.append(_reason(error))
        raise UnavailableError("; ".join(reasons)) from None
    return "program compiled"


def _prepared() -> tuple[MapSet, str]:
    """Take a set of maps that was made for us."""
    try:
        return pins.take(os.geteuid()), "prepared maps"
    except pins.NoSetError as why:
        raise UnavailableError(f"no privilege to load a program, and {why}") from None
    except OSError as error:
        raise UnavailableError(
            f"no privilege to load a program, and prepared maps fail: {error.strerror}"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, VerifierError):
        return f"program refused: {errno.errorcode.get(error.errno or 0, str(error.errno))}"
    return str(error)


def _version(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel's release."""
    major, _, rest = release.partition(".")
    digits = rest.partition(".")[0].partition("-")[0]
    return int(major) if major.isdigit() else 0, int(digits) if digits.isdigit() else 0
