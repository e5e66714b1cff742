"""The command lines that are compared, and instances of them.

A subject is given by one word, or by ``NAME=WORDS``, where the first of the words is one of

================  ==============================================================================
``direct``        nothing: loopback, or the veth pair to *remote*. What the machine can do.
``veth``          a namespace joined to the host by a veth pair, with routes: the physical limit
``ours``          this package, as installed with the interpreter that runs this
``ebpf``          ``ours --accel=ebpf``
``tree:SOURCE``   this package from the source tree SOURCE, or of the git revision SOURCE
``upstream``      the pasta of the Debian tree of ``--peers``, otherwise of the system's PATH
``slirp4netns``   that of the system's PATH, otherwise of the tree of ``--peers``
a path            any program with pasta's command line
================  ==============================================================================

and the others are options of it.  All run as the same ordinary user in the same network, and what
they are asked for is the same: an :class:`Instance` knows for each way of a connection
(:data:`perf.subjects.base.ROUTES`) who the client is, whom it calls, and where the server listens.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil

from perf.lab import Lab
from perf.subjects.base import Instance, Route, Subject, UnsupportedError
from perf.subjects.direct import Direct, Veth
from perf.subjects.pasta import PastaSubject
from perf.subjects.slirp import Slirp
from tests.system.kit.pasta import Program, peer_command

__all__ = ["Instance", "Route", "Subject", "SubjectError", "UnsupportedError", "make", "split"]

ALIASES = {"ebpf": ["ours", "--accel=ebpf"]}
NAMES = ("direct", "veth", "ours", "ebpf", "upstream", "slirp4netns")


class SubjectError(Exception):
    """A subject that is not understood or not there; the message says why."""


def split(text: str) -> tuple[str, list[str]]:
    """Name and words of a subject's text; SubjectError."""
    name, sign, rest = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.+-]+", name):
        name, rest = text, text
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise SubjectError(f"{text}: {error}") from None
    if not words:
        raise SubjectError(f"{text!r}: no command")
    if words[0] in ALIASES:
        words[:1] = ALIASES[words[0]]
    return name, words


def make(text: str, lab: Lab, peers: str = "") -> Subject:
    """The subject that *text* describes; SubjectError if there is no such program."""
    name, words = split(text)
    first, options = words[0], words[1:]
    command = shlex.join(words)
    if first in ("direct", "veth"):
        if options:
            raise SubjectError(f"{first} has no options: {text}")
        return Veth(name, command) if first == "veth" else Direct(name, command, lab.user)
    if first == "slirp4netns":
        if options:
            raise SubjectError(f"options of slirp4netns are not supported: {text}")
        return Slirp(name, command, _slirp(peers), lab)
    program = _program(first, lab, peers)
    if any(word.startswith("--accel") and "splice" not in word for word in options):
        lab.prepare_acceleration()
    return PastaSubject(name, command, program, options, lab.user)


def _program(first: str, lab: Lab, peers: str) -> Program:
    if first == "ours":
        return lab.installed()
    if first.startswith("tree:"):
        return lab.program(first.removeprefix("tree:"))
    if first == "upstream":
        return _upstream(peers)
    path = shutil.which(first)
    if path is None or "/" not in first:
        raise SubjectError(f"no such subject or program: {first}; known: {', '.join(NAMES)}")
    return Program([os.path.abspath(path)])


def _upstream(peers: str) -> Program:
    if peers:
        words = peer_command(peers)
        if not os.path.exists(words[-1]):
            raise SubjectError(f"no pasta in {peers}")
        return Program(words)
    for folder in ("/usr/local/bin", "/usr/bin"):  # not our own, of a virtual environment
        path = os.path.join(folder, "pasta")
        if os.access(path, os.X_OK) and Program([path]).upstream:
            return Program([path])
    raise SubjectError(
        "no upstream pasta in PATH; --peers takes the root of a Debian tree with one"
    )


def _slirp(peers: str) -> list[str]:
    path = shutil.which("slirp4netns")
    if path:
        return [path]
    if peers and os.path.exists(f"{peers}/usr/bin/slirp4netns"):
        return peer_command(peers, "slirp4netns")
    raise SubjectError("no slirp4netns in PATH, nor in the tree of --peers")
