"""Getting maps with the program attached, by whichever way this process has the privilege for.

1. *By itself*: with CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN in the initial user namespace, as
   root has them.  The maps are this instance's alone, and end with it.
2. *Prepared*: sets of maps that an administrator has pinned for this user (:mod:`.pins`).  An
   instance takes one that is free, and nobody else uses it until it ends.
3. *Delegated*: with a token from a bpffs that was set up for our user namespace (:mod:`.tokens`).
   As by itself otherwise, and therefore tried before the second way.

Whatever the way, :mod:`.probe` has the last word.
"""

from __future__ import annotations

import errno
import os

from passt.kernel.ebpf import bytecode, kernels
from passt.kernel.ebpf.bytecode import BytecodeError
from passt.kernel.ebpf.maps import MapSet, attach, make
from passt.kernel.ebpf.probe import ProbeError, probe
from passt.syscalls.bpf import VerifierError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from passt.kernel.ebpf.bytecode import Code

NO_PRIVILEGE = "no privilege to load a program"


class UnavailableError(Exception):
    """There is no acceleration to be had; the text says why."""


def acquire(*, compile_first: bool) -> tuple[MapSet, str]:
    """Maps that were tried, and how they came about; raises UnavailableError.

    With ``compile_first`` the program is compiled even if the one shipped is good.
    """
    objection = kernels.objection(os.uname().release)
    if objection:
        raise UnavailableError(objection)
    maps, how = _find(compile_first=compile_first)
    try:
        probe(maps)
    except ProbeError as error:
        maps.close()
        raise UnavailableError(f"probe failed: {error}") from None
    return maps, how


def _find(*, compile_first: bool) -> tuple[MapSet, str]:
    """The first of the ways that leads somewhere; raises UnavailableError."""
    try:
        return own(compile_first=compile_first)
    except PermissionError:
        if compile_first:
            raise UnavailableError(NO_PRIVILEGE) from None
    except OSError as error:
        raise UnavailableError(f"kernel refuses: {error.strerror}") from None
    return _given()


def _given() -> tuple[MapSet, str]:
    """What somebody with privileges has done for us; raises UnavailableError."""
    from passt.kernel.ebpf import pins, tokens

    reasons = [NO_PRIVILEGE]
    try:
        return delegated()
    except tokens.NoTokenError:
        # As usual, and nothing to be told about.
        pass
    except OSError as error:
        reasons.append(f"the BPF token does not suffice: {error.strerror}")
    try:
        return pins.take(os.geteuid()), "prepared maps"
    except pins.NoSetError as why:
        reasons.append(f"and {why}")
    except OSError as error:
        reasons.append(f"and prepared maps fail: {error.strerror}")
    raise UnavailableError(", ".join(reasons))


def own(*, compile_first: bool) -> tuple[MapSet, str]:
    """Maps made with our own privileges, and how.

    Raises UnavailableError; OSError if the kernel refuses, PermissionError without privilege.
    """
    fds, how = load(compile_first=compile_first)
    return MapSet(fds), f"own maps, {how}"


def delegated() -> tuple[MapSet, str]:
    """Maps made with a token, and how; raises as :func:`own`, and NoTokenError."""
    from passt.kernel.ebpf import tokens

    token = tokens.take()
    try:
        fds, how = load(compile_first=False, token=token)
    finally:
        os.close(token)
    return MapSet(fds), f"own maps by a BPF token, {how}"


def load(*, compile_first: bool, token: int = -1) -> tuple[list[int], str]:
    """Descriptors of new maps with the program attached, and where that came from.

    Raises UnavailableError; OSError if the kernel refuses, PermissionError without privilege.
    """
    fds = make(token)
    try:
        how = accepted(
            lambda instructions: attach(fds, instructions(bytecode.VERDICT), token),
            compile_first=compile_first,
        )
        return fds, how
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def accepted(use: Callable[[Callable[[Code], bytes]], None], *, compile_first: bool) -> str:
    """Have ``use`` take instructions as shipped, or compiled now if those will not do.

    ``use`` is called with what makes code into instructions.  Returns which it was.  Raises
    UnavailableError if the kernel refuses both; other errors are those of ``use``.
    """
    reasons = []
    if not compile_first:
        try:
            use(bytecode.shipped)
            return "program as shipped"
        except (BytecodeError, VerifierError) as error:
            reasons.append(_reason(error))
    try:
        use(bytecode.compiled)
    except (BytecodeError, VerifierError) as error:
        reasons.append(_reason(error))
        raise UnavailableError("; ".join(reasons)) from None
    return "program compiled"


def _reason(error: Exception) -> str:
    if isinstance(error, VerifierError):
        return f"program refused: {errno.errorcode.get(error.errno or 0, str(error.errno))}"
    return str(error)
