"""The harnesses by name, and what a harness module may say about itself.

========================  ======================================================
``one(data)``             required, see :mod:`tests.fuzz`
``seeds()``               required: inputs to begin with, by name
``mutate(data, rnd)``     changes an input the way its format suggests; otherwise
                          bytes are changed blindly
``MAX_LEN``               longest input worth trying, in bytes
``DICTIONARY``            byte strings that mean something to the parser
========================  ======================================================
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from random import Random
from types import ModuleType

#: Names of the harnesses, which are those of their modules after ``one_``.
NAMES = (
    "wire",
    "membership",
    "stack",
    "tcp",
    "reports",
    "ports",
    "server",
    "client",
    "portlist",
    "resolvconf",
    "netlink",
    "services",
    "options",
    "stream",
)

_HERE = os.path.dirname(__file__)

#: Versioned inputs, a folder for each harness.
CORPUS = os.path.join(_HERE, "corpus")
#: What campaigns add, and what they find; not versioned.
WORK = os.path.join(os.path.dirname(os.path.dirname(_HERE)), ".fuzz")


class Harness:
    """One harness, loaded when it is made."""

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"no harness {name!r}; there are {', '.join(NAMES)}")
        self.name = name
        self.module: ModuleType = importlib.import_module(f"tests.fuzz.one_{name}")
        self.one: Callable[[bytes], None] = self.module.one
        self.mutate: Callable[[bytes, Random], bytes] | None = getattr(self.module, "mutate", None)
        self.max_len: int = getattr(self.module, "MAX_LEN", 2048)
        self.dictionary: tuple[bytes, ...] = getattr(self.module, "DICTIONARY", ())

    def seeds(self) -> dict[str, bytes]:
        """The inputs to begin with."""
        return dict(self.module.seeds())

    def corpus(self, *, work: bool = False) -> list[bytes]:
        """All stored inputs, in order of name; with ``work`` those of campaigns, too."""
        folders = [os.path.join(CORPUS, self.name)]
        if work:
            folders.append(os.path.join(WORK, self.name))
        return [data for folder in folders for data in inputs(folder).values()]


def inputs(folder: str) -> dict[str, bytes]:
    """The files of ``folder`` and what is in them, in order of name; empty if there is none."""
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = file.read()
    return found
