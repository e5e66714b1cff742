"""``pasta`` and ``passt``: the first things that happen, in an order that matters.

Descriptors come before imports that open some, the signals' dispositions and the first
set of capabilities before the fork of the netlink process, and that before everything
heavy: while it imports what it needs, so do we.  Start-up proper is
:mod:`passt.userspace.startup`.
"""

from __future__ import annotations

import gc
import os
import sys

from passt.kernel.descriptors import close_inherited, fill_standard
from passt.kernel.interpreter import end_perf_support, start_anew_without_compiler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program that ``sys.argv`` asks for, and end the process.

    The interpreter's own way out would take longer and has nothing left to do.
    """
    status = 1
    try:
        start_anew_without_compiler()
        # What start-up makes stays; there is nothing to collect before the loop.
        gc.disable()
        choose = None if _serves_namespace(sys.argv[0]) else _guest_descriptor
        guest = close_inherited(end_perf_support(), choose)
        fill_standard()
        status = _run(sys.argv, guest)
    except Exception as error:
        from passt.userspace.fault import report

        report(error)
    finally:
        from passt.userspace import log

        log.close()
        os._exit(status)


def _serves_namespace(argv0: str) -> bool:
    """Whether the program's name says so; otherwise it is passt, or an error to come."""
    return "pasta" in argv0.rpartition("/")[2]


def _guest_descriptor() -> int:
    """The descriptor of the guest's connection, if it is one of those that we have inherited."""
    from passt.userspace.config.parse import guest_descriptor

    return guest_descriptor(sys.argv[0], sys.argv[1:])


def _run(argv: list[str], guest: int) -> int:
    """Start, and run to the end; ``guest`` is the descriptor of the guest's connection, or −1."""
    from passt.kernel import capabilities, signals
    from passt.kernel.netlink.worker import Worker
    from passt.userspace import log

    signals.install_early()
    capabilities.keep(capabilities.EARLY)
    argv0, words = argv[0], argv[1:]
    try:
        worker = Worker.start()
    except OSError as error:
        log.err(f"Couldn't start network configuration: {error.strerror}")
        return 1

    from passt.userspace.config.errors import ImmediateExit, UsageError
    from passt.userspace.config.parse import parse

    try:
        options = parse(argv0, words)
    except (UsageError, ImmediateExit) as outcome:
        from passt.userspace.config.usage import report

        return report(outcome, argv0)
    from passt.userspace.config.resolve import begin_template

    # The answer is on its way while we import what will need it.
    host = begin_template(options, worker)

    if options.mode == "passt":
        from passt.userspace.vm import MachineStartup

        return MachineStartup(options, worker, host, guest).run()

    from passt.userspace.startup import Startup

    return Startup(options, worker, host).run()
