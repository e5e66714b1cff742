"""Campaigns by atheris, which is libFuzzer with Python's bytecode instrumented.

It sees branches and comparisons, not only lines, and tries tens of thousands of inputs per
second where the harness can.  It is installed by ``pip install .[fuzz]`` where there is a
build of it for this Python; otherwise :mod:`tests.fuzz.engine` has to do.

libFuzzer ends the process when it is done, so :func:`campaign` starts one, in which
:func:`main` runs.  Inputs that reached something new are kept in ``.fuzz/NAME``, finds go to
``.fuzz/finds``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from random import Random

from tests.fuzz.catalogue import CORPUS, WORK


def available() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def campaign(name: str, seconds: float, seed: int) -> int:
    """Fuzz the harness ``name``; 0 if nothing was found, the status of libFuzzer otherwise."""
    work, finds = os.path.join(WORK, name), os.path.join(WORK, "finds")
    os.makedirs(work, exist_ok=True)
    os.makedirs(finds, exist_ok=True)
    words = [
        sys.executable, "-m", "tests.fuzz.guided", name,
        f"-max_total_time={int(seconds)}", f"-seed={seed or 1}", "-timeout=25",
        "-rss_limit_mb=2048", "-print_final_stats=1", "-reload=0",
        f"-artifact_prefix={finds}/{name}-", work, os.path.join(CORPUS, name),
    ]  # fmt: skip
    return subprocess.run(words, check=False).returncode


def main(argv: list[str]) -> None:
    """In the process of a campaign: instrument the product, load the harness, and go."""
    import atheris

    name = argv[1]
    with atheris.instrument_imports(include=["passt"]):
        from tests.fuzz.catalogue import Harness

        harness = Harness(name)
    arguments = [argv[0], f"-max_len={harness.max_len}", *argv[2:]]
    if harness.dictionary:
        path = os.path.join(WORK, f"{name}.dict")
        with open(path, "w") as file:
            for word in harness.dictionary:
                file.write('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n')
        arguments.insert(1, f"-dict={path}")
    own = harness.mutate
    if own is None:
        atheris.Setup(arguments, harness.one)
    else:

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            rnd = Random(seed)
            if rnd.random() < 0.5:
                return bytes(atheris.Mutate(data, max_size))
            return own(bytes(data), rnd)[:max_size]

        atheris.Setup(arguments, harness.one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
