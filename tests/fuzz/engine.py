"""Our own mutation fuzzer: a corpus, changes to it, and what they uncover.

It needs nothing but Python, so it runs wherever the tests do.  An input that executes a line
of the product which none before did joins the corpus (:mod:`tests.fuzz.lines`); without that
guidance, which costs time, it is a blind fuzzer over the stored corpus, fit for a smoke test.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from time import monotonic

from tests.fuzz.catalogue import WORK, Harness
from tests.fuzz.lines import Lines
from tests.fuzz.mutate import havoc

#: File and number.
Line = tuple[str, int]

#: Seconds that one input may take, however busy the machine.
TIME_LIMIT = 20.0

#: A campaign ends with this many different failures: it would go on finding the same.
MAX_FINDS = 5


class TooSlow(BaseException):
    """One input took longer than :data:`TIME_LIMIT`; nothing that the product would catch."""


class Find:
    """An input that made a harness raise, and where."""

    def __init__(self, harness: str, data: bytes, error: BaseException) -> None:
        self.harness = harness
        self.data = data
        last = traceback.extract_tb(error.__traceback__)[-1]
        #: Two failures of the same kind at the same place are taken for one.
        self.place = type(error).__name__, last.filename, last.lineno
        self.text = "".join(traceback.format_exception(error))

    def save(self, folder: str = os.path.join(WORK, "finds")) -> str:
        """Write the input to a file whose path is returned."""
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{self.harness}-{digest(self.data)}")
        with open(path, "wb") as file:
            file.write(self.data)
        return path


class Campaign:
    """Tries changed inputs of ``harness``; the same ``seed`` and corpus give the same inputs."""

    def __init__(
        self, harness: Harness, corpus: list[bytes], seed: int, *, lines: Lines | None = None
    ) -> None:
        self.harness = harness
        self.corpus = corpus or [b""]
        self.lines = lines
        self.executions = 0
        #: Inputs that reached something new.
        self.added: list[bytes] = []
        self.finds: list[Find] = []
        self._rnd = Random(seed)
        self._places: set[tuple[str, str, int | None]] = set()

    def run(self, seconds: float) -> None:
        """Try inputs until ``seconds`` are over or there are enough finds."""
        deadline = monotonic() + seconds
        if self.lines is not None:
            self.lines.start()
        try:
            for data in list(self.corpus):
                self._try(data)
            while monotonic() < deadline and len(self.finds) < MAX_FINDS:
                data = self._changed()
                if self._try(data):
                    self.corpus.append(data)
                    self.added.append(data)
        finally:
            if self.lines is not None:
                self.lines.stop()

    def _changed(self) -> bytes:
        rnd, harness = self._rnd, self.harness
        # Late ones more often: they reached what the others did not.
        at = max(rnd.randrange(len(self.corpus)), rnd.randrange(len(self.corpus)))
        data = self.corpus[at]
        if harness.mutate is not None and rnd.random() < 0.7:
            return harness.mutate(data, rnd)[: harness.max_len]
        return havoc(
            data, rnd, limit=harness.max_len, dictionary=harness.dictionary, others=self.corpus
        )

    def _try(self, data: bytes) -> bool:
        """Execute one input; True if it reached a line that none did before."""
        self.executions += 1
        before = len(self.lines.seen) if self.lines is not None else 0
        error = attempt(self.harness.one, data)
        if error is not None:
            find = Find(self.harness.name, data, error)
            if find.place not in self._places:
                self._places.add(find.place)
                self.finds.append(find)
            return False
        return self.lines is not None and len(self.lines.seen) > before


def attempt(one: Callable[[bytes], None], data: bytes) -> BaseException | None:
    """Call ``one(data)``; returns what it raised, or TooSlow if it did not come to an end."""
    try:
        with time_limit(TIME_LIMIT):
            one(data)
    except (Exception, TooSlow) as error:
        failure: BaseException = error
    else:
        return None
    # What the interrupted frames hold, descriptors too, must not reach into the next call.
    traceback.clear_frames(failure.__traceback__)
    gc.collect()
    return failure


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the main thread once ``seconds`` are over."""

    def expire(_number: int, _frame: object) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    delay, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # Whoever had set an alarm gets it, a little late.
        signal.setitimer(signal.ITIMER_REAL, delay)
        signal.signal(signal.SIGALRM, before)


def minimise(
    harness: Harness, inputs: list[bytes], given: list[bytes], seconds: float = 4.0
) -> list[bytes]:
    """Few and short inputs that with those ``given`` execute every line that ``inputs`` do.

    Each time the input that adds most lines for its length is taken, and what can be cut out
    of it without losing one of these lines is, for ``seconds`` at most.
    """
    have: set[Line] = set()
    for data in given:
        have |= lines_of(harness, data)
    reached = {data: lines_of(harness, data) - have for data in set(inputs)}
    kept: list[bytes] = []
    while True:
        best = max(reached, key=lambda data: len(reached[data]) / (len(data) + 200), default=b"")
        new = reached.get(best, set())
        if not new:
            return kept
        short = trim(best, lambda data, new=new: new <= lines_of(harness, data), seconds)
        kept.append(short)
        have = lines_of(harness, short)
        reached = {data: left for data, lines in reached.items() if (left := lines - have)}


def lines_of(harness: Harness, data: bytes) -> set[Line]:
    """The lines that one input executes; none if it fails."""
    with Lines() as lines:
        error = attempt(harness.one, data)
    return lines.seen if error is None else set()


def trim(data: bytes, keeps: Callable[[bytes], bool], seconds: float = 20.0) -> bytes:
    """The shortest input found in time that ``keeps`` likes: pieces are cut out by halves."""
    deadline = monotonic() + seconds
    size = len(data) // 2
    while size and monotonic() < deadline:
        at = 0
        while at < len(data) and monotonic() < deadline:
            shorter = data[:at] + data[at + size :]
            if keeps(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def shorten(harness: Harness, find: Find, seconds: float = 20.0) -> Find:
    """The shortest input found in time that fails like ``find``."""
    best = find

    def fails_alike(data: bytes) -> bool:
        nonlocal best
        error = attempt(harness.one, data)
        if error is None or (other := Find(find.harness, data, error)).place != find.place:
            return False
        best = other
        return True

    trim(find.data, fails_alike, seconds)
    return best


def digest(data: bytes) -> str:
    """The name of an input that has none."""
    return hashlib.sha256(data).hexdigest()[:12]
