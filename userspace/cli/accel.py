"""``passt-accel``: lets users have their connections accelerated who could not by themselves.

What takes privileges is done here, by root, once: maps are made, the program loaded, both pinned
where a single user may open them (:mod:`passt.kernel.ebpf.pins`).  ``pasta --accel=ebpf`` of
that user then takes one set for as long as it runs.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys

from passt.kernel.ebpf import pins
from passt.kernel.ebpf.acquire import UnavailableError, load
from passt.kernel.ebpf.maps import MapSet
from passt.kernel.ebpf.probe import ProbeError, probe

#: Sets at most: each takes up to a megabyte of the kernel's memory.
MAX_SETS = 64


def main() -> int:
    """Run the program that ``sys.argv`` asks for; returns the exit status."""
    arguments = _parser().parse_args()
    try:
        status: int = arguments.run(arguments)
    except (UnavailableError, ProbeError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or 'bpf'}: {error.strerror}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="passt-accel", description="Prepare acceleration (pasta --accel=ebpf) for a user."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("load", help="make sets of maps, one for each running pasta")
    command.add_argument("user", type=_user, help="name or number of the user")
    command.add_argument(
        "--sets", type=_count, default=4, metavar="N", help="sets that there are to be (default 4)"
    )
    command.add_argument(
        "--compile", action="store_true", help="compile the program instead of using the shipped"
    )
    command.set_defaults(run=_load)
    command = commands.add_parser("unload", help="remove a user's sets; those in use go on")
    command.add_argument("user", type=_user)
    command.set_defaults(run=_unload)
    command = commands.add_parser("status", help="list sets")
    command.add_argument("user", type=_user, nargs="?", help="of this user only")
    command.set_defaults(run=_status)
    return parser


def _load(arguments: argparse.Namespace) -> int:
    """Make the sets that are missing; those of another version go."""
    user: pwd.struct_passwd = arguments.user
    present = {each.number for each in pins.sets(user.pw_uid) if each.current}
    for each in pins.sets(user.pw_uid):
        if not each.current:
            pins.remove(each)
    missing = [number for number in range(arguments.sets) if number not in present]
    for number in missing:
        fds, how = load(compile_first=arguments.compile)
        maps = MapSet(fds)
        try:
            probe(maps)
            pins.pin(fds, user.pw_uid, user.pw_gid, number)
        finally:
            maps.close()
        print(f"{pins.folder(user.pw_uid)}: set {number}, {how}")
    return 0


def _unload(arguments: argparse.Namespace) -> int:
    """Remove all sets of a user."""
    removed = pins.unpin(arguments.user.pw_uid)
    print(f"{arguments.user.pw_name}: {removed} sets removed")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    """List sets; status 1 if there are none."""
    found = 0
    for uid in pins.users() if arguments.user is None else [arguments.user.pw_uid]:
        for each in pins.sets(uid):
            state = "in use" if each.used else "free"
            print(f"user {uid}, set {each.number}: {state if each.current else 'other version'}")
            found += 1
    return 0 if found else 1


def _user(text: str) -> pwd.struct_passwd:
    """The user with this name or number."""
    try:
        return pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {text}") from None


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 0 < number <= MAX_SETS:
        raise argparse.ArgumentTypeError(f"from 1 to {MAX_SETS}")
    return number


def _failed(why: str) -> int:
    os.write(2, f"passt-accel: {why}\n".encode())
    return 1


if __name__ == "__main__":
    sys.exit(main())
