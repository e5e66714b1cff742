"""Switching off what the interpreter does by itself and the sandbox forbids.

Two of its features write machine code into memory and then execute it, which the system call
filter takes for an attack, and rightly so:

* The compiler of Python 3.13 and later, off by default, is switched on and off by the environment
  only, before the interpreter starts.  So if it is on, we start anew without it.  The spawned
  command gets the environment as it was.
* Support of ``perf`` (Python 3.12 and later, ``-X perf``) can be ended at any time.  But it has a
  file open, to which it writes until then, and which it closes in each child: it must be ended
  before inherited descriptors are closed, and its own be spared, or it would be a socket of ours.

Sources: PEP 744, sys(3) of Python's library (``sys._jit`` from 3.14 on), "Python support for the
Linux perf profiler".
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SWITCH = b"PYTHON_JIT"
#: Holds what the switch was set to when we started anew.
_MARK = b"PASST_PYTHON_JIT"


def start_anew_without_compiler() -> None:
    """Execute this program once more, if the compiler is on; to be called first of all.

    RuntimeError if that did not help.
    """
    compiler: Any = getattr(sys, "_jit", None)
    if compiler is None or not compiler.is_enabled():
        return
    from passt.kernel.command import original_environment

    environ = original_environment()
    if _MARK in os.environb:
        raise RuntimeError("The interpreter's compiler cannot be switched off by PYTHON_JIT=0")
    environ[_MARK] = environ.get(_SWITCH, b"")
    environ[_SWITCH] = b"0"
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def restore(environ: dict[bytes, bytes]) -> None:
    """Make of ``environ``, of a program started anew, what it was before."""
    if _MARK in environ:
        value = environ.pop(_MARK)
        if value:
            environ[_SWITCH] = value
        else:
            environ.pop(_SWITCH, None)


def end_perf_support() -> str:
    """End support of perf, if it is on; returns the path of the file it wrote to, else nothing."""
    interpreter: Any = sys
    if not getattr(interpreter, "is_stack_trampoline_active", bool)():
        return ""
    interpreter.deactivate_stack_trampoline()
    return f"/tmp/perf-{os.getpid()}.map"
