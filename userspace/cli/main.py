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

    from passt.kernel.netlink.worker import Worker


def main() -> NoReturn:
    """Run the program that ``sys.argv`` asks for, and end the process.

    The interpreter's own way out would take longer and has nothing left to do.
    """
    status = 1
    try:
        start_anew_without_compiler()
        # What start-up makes stays; there is nothing to collect before the loop.
        gc.disable()
        close_inherited(spare=end_perf_support())
        fill_standard()
        status = _run(sys.argv)
    except Exception as error:
        from passt.userspace.fault import report

        report(error)
    finally:
        from passt.userspace import log

        log.close()
        os._exit(status)


def _run(argv: list[str]) -> int:
    from passt.kernel import capabilities, signals
    from passt.userspace import log

    signals.install_early()
    capabilities.keep(capabilities.EARLY)
    argv0, words = argv[0], argv[1:]
    try:
        worker = _start_worker(argv0)
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
    if options.target is None or worker is None:
        log.err("passt mode needs a guest socket, which this version does not provide yet")
        return 1

    from passt.userspace.config.resolve import begin_template

    # The answer is on its way while we import what will need it.
    host = begin_template(options, worker)

    from passt.userspace.startup import Startup

    return Startup(options, options.target, worker, host).run()


def _start_worker(argv0: str) -> Worker | None:
    """Fork the netlink process if the program's name says that it will be needed."""
    if "pasta" not in argv0.rpartition("/")[2]:
        return None
    from passt.kernel.netlink.worker import Worker

    return Worker.start()
