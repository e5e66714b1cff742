"""The C library by ctypes: prototypes, error reporting, raw system calls.

Two kinds of binding, for two kinds of caller (measured on CPython 3.11, 3.13):

* `proto` sets full argument types.  ctypes then converts and checks every argument, about
  200 ns each: right for anything called once or rarely.
* `hot` leaves the arguments undeclared, which halves the cost of a call with six of them.
  ctypes passes a bare `int` as a C int, so such a function may only be given ints that fit
  one, `None`, and *ctypes instances* for pointers (`c_void_p`, arrays): an address given as
  a plain int would be cut to 32 bits.  Only the batch calls of the packet path use this.

All functions keep errno in ctypes' per-thread copy: `check` reads it and raises, hot callers
read it with `ctypes.get_errno()` and return it negated, since an exception for EAGAIN costs
more than the system call.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

libc = ctypes.CDLL(None, use_errno=True)


def proto(name: str, restype: Any, *argtypes: Any) -> Callable[..., int]:
    """Return C library function `name` with result and argument types declared.

    Each call gives a new object, so two modules may declare the same function differently
    (prctl and ioctl are called with several signatures).  AttributeError if the C library
    has no such function.
    """
    function = libc[name]
    function.restype = restype
    function.argtypes = argtypes
    return function


def hot(name: str) -> Callable[..., int]:
    """Return function `name` returning a C int, arguments undeclared: see the module's text."""
    function = libc[name]
    function.restype = ctypes.c_int
    return function


def error(number: int, name: str) -> OSError:
    """Make the OSError (or its subclass) for errno `number`, naming the call that failed."""
    return OSError(number, f"{name}: {os.strerror(number)}")


def check(ret: int, name: str) -> int:
    """Return `ret` unless it is −1, then raise OSError with errno and the call's name."""
    if ret == -1:
        raise error(ctypes.get_errno(), name)
    return ret


_syscall = proto("syscall", ctypes.c_long, *[ctypes.c_long] * 7)


def syscall(number: int, *args: int) -> int:
    """Invoke system call `number` with up to six integer or address arguments (syscall(2)).

    Returns its result, or −1 with errno set, ready for `check`.  System calls added since
    Linux 5.1 have the same number on every architecture but Alpha; others need a table.
    """
    return _syscall(number, *args, *(0,) * (6 - len(args)))
